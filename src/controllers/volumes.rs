//! Growing volumes. A `StatefulSet`'s claim templates cannot change, so the claims are grown one by one and the
//! `StatefulSet` is then replaced around its running pods.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::context::Context;
use super::outcome::Outcome;
use super::workloads::ordinal;
use crate::cluster::error::ClusterError;
use crate::cluster::index::Slot;
use crate::domain::names;
use crate::domain::quantity::Bytes;
use crate::plan::Child;

/// Grows the claims of a `StatefulSet` to its template's size and removes the `StatefulSet`, leaving its pods.
/// Nothing is removed unless every claim may grow; otherwise all else of the `StatefulSet` is made as wanted, so that a volume
/// that cannot grow keeps nobody from sleeping, stopping or waking.
///
/// # Errors
/// `Refused` when the `StorageClass` does not allow growing; otherwise `Progressing` to the new `StatefulSet`.
pub async fn grow(context: &Context, child: &Child, namespace: &str) -> Result<(), Outcome> {
    let Child::StatefulSet(set) = child else { return Ok(()) };
    if let Some((refused, _)) = claims(context, set, namespace).await? {
        context.applier.ensure_but_claims(set, namespace).await?;
        return Err(refused.into());
    }
    context.applier.release_statefulset(namespace, child.name()).await?;
    Err(Outcome::Progressing(format!("{} is replaced around its running pods, its volumes grow", child.name())))
}

/// Makes a `StatefulSet` that is not there, around the volumes that an earlier one of its name has left: first they grow, for
/// later nothing would tell that they are smaller. Where they cannot, it asks for what they have, and the next pass tries again.
///
/// # Errors
/// `Refused` when the `StorageClass` does not allow growing, or the API server does not take the `StatefulSet`.
pub async fn adopt(context: &Context, set: &StatefulSet, namespace: &str) -> Result<(), Outcome> {
    let own = prefix(set);
    let is_own = |claim: &String| ordinal(claim, &own).is_some();
    // Nothing is asked for a tenant that is new.
    let left = context.index.names(Slot::Volume, namespace).iter().any(is_own);
    let refused = if left { claims(context, set, namespace).await? } else { None };
    let mut set = set.clone();
    for template in set.spec.iter_mut().flat_map(|spec| spec.volume_claim_templates.iter_mut().flatten()) {
        let asked = template.spec.as_mut().and_then(|spec| spec.resources.as_mut()?.requests.as_mut());
        if let (Some((_, size)), Some(asked)) = (&refused, asked) {
            asked.insert("storage".to_owned(), size.clone());
        }
    }
    context.applier.ensure(&Child::StatefulSet(Box::new(set)), namespace).await?;
    refused.map_or(Ok(()), |(refused, _)| Err(refused.into()))
}

/// What the names of a `StatefulSet`'s claims begin with.
fn prefix(set: &StatefulSet) -> String {
    names::claim(set.metadata.name.as_deref().unwrap_or_default())
}

/// Sees to it that all claims of a `StatefulSet` have the size of its template, or more. Returns the first refusal, with the size
/// that its claim has.
async fn claims(
    context: &Context,
    set: &StatefulSet,
    namespace: &str,
) -> Result<Option<(ClusterError, Quantity)>, ClusterError> {
    let template = set.spec.as_ref().and_then(|spec| spec.volume_claim_templates.as_ref()?.first());
    let asked = template.and_then(|claim| claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?.get("storage"));
    let Some(storage) = asked else { return Ok(None) };
    // Asked, for the watch may not have told of the youngest yet, and nobody would look at it again.
    let found = context.applier.claim_sizes(namespace).await?;
    let own = prefix(set);
    let bytes = |quantity: &Quantity| Bytes::parse(&quantity.0).ok();
    let smaller = |(claim, size): &&(String, Quantity)| ordinal(claim, &own).is_some() && bytes(size) < bytes(storage);
    for (claim, size) in found.iter().filter(smaller) {
        match context.applier.grow_volume(namespace, claim, storage).await {
            Err(refused @ ClusterError::Refused { .. }) => return Ok(Some((refused, size.clone()))),
            grown => grown?,
        }
    }
    Ok(None)
}

//! Growing volumes. A `StatefulSet`'s claim templates cannot change, so the claims are grown one by one and the
//! `StatefulSet` is then replaced around its running pods.

use k8s_openapi::api::apps::v1::StatefulSet;

use super::context::Context;
use super::outcome::Outcome;
use super::workloads::ordinal;
use crate::cluster::error::ClusterError;
use crate::cluster::index::Slot;
use crate::plan::{Child, ChildKind};

/// Grows the claims of a `StatefulSet` to its template's size and removes the `StatefulSet`, leaving its pods.
/// Nothing is removed unless every claim may grow; otherwise all else of the `StatefulSet` is made as wanted, so that a volume
/// that cannot grow keeps nobody from sleeping, stopping or waking.
///
/// # Errors
/// `Refused` when the `StorageClass` does not allow growing; otherwise `Progressing` to the new `StatefulSet`.
pub async fn grow(context: &Context, child: &Child, namespace: &str) -> Result<(), Outcome> {
    let Child::StatefulSet(set) = child else { return Ok(()) };
    match claims(context, set, namespace).await {
        Ok(()) => {}
        Err(refused @ ClusterError::Refused { .. }) => {
            context.applier.ensure_but_claims(set, namespace).await?;
            return Err(refused.into());
        }
        Err(error) => return Err(error.into()),
    }
    context.applier.release_statefulset(namespace, child.name()).await?;
    Err(Outcome::Progressing(format!("{} is replaced around its running pods, its volumes grow", child.name())))
}

/// Grows what volumes an earlier `StatefulSet` of this name has left, before there is a new one: nothing would grow them later.
///
/// # Errors
/// [`ClusterError::Refused`] when the `StorageClass` does not allow it.
pub async fn adopt(context: &Context, child: &Child, namespace: &str) -> Result<(), ClusterError> {
    let missing = context.index.get(Slot::Child(ChildKind::StatefulSet), namespace, child.name()).is_none();
    match child {
        Child::StatefulSet(set) if missing => claims(context, set, namespace).await,
        _ => Ok(()),
    }
}

/// Sees to it that all claims of a `StatefulSet` have the size of its templates, or more.
async fn claims(context: &Context, set: &StatefulSet, namespace: &str) -> Result<(), ClusterError> {
    let entries = context.index.namespace(namespace);
    let workload = set.metadata.name.as_deref().unwrap_or_default();
    let templates = set.spec.iter().flat_map(|spec| spec.volume_claim_templates.iter().flatten());
    for template in templates {
        let name = template.metadata.name.as_deref().unwrap_or_default();
        let storage =
            template.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref()?.get("storage"));
        let Some(storage) = storage else { continue };
        let prefix = format!("{name}-{workload}");
        for claim in
            entries.iter().filter(|entry| entry.slot == Slot::Volume && ordinal(&entry.name, &prefix).is_some())
        {
            context.applier.grow_volume(namespace, &claim.name, storage).await?;
        }
    }
    Ok(())
}

//! Growing volumes. A `StatefulSet`'s claim templates cannot change, so the claims are grown one by one and the
//! `StatefulSet` is then replaced around its running pods.

use super::context::Context;
use super::outcome::Outcome;
use super::workloads::ordinal;
use crate::cluster::index::Slot;
use crate::plan::Child;

/// Grows the claims of a `StatefulSet` to its template's size and removes the `StatefulSet`, leaving its pods.
/// Nothing is removed unless every claim may grow.
///
/// # Errors
/// `Refused` when the `StorageClass` does not allow growing; otherwise `Waiting` for the new `StatefulSet`.
pub async fn grow(context: &Context, child: &Child, namespace: &str) -> Result<(), Outcome> {
    let Child::StatefulSet(set) = child else { return Ok(()) };
    let entries = context.index.namespace(namespace);
    let templates = set.spec.iter().flat_map(|spec| spec.volume_claim_templates.iter().flatten());
    for template in templates {
        let name = template.metadata.name.as_deref().unwrap_or_default();
        let storage = template
            .spec
            .as_ref()
            .and_then(|spec| spec.resources.as_ref()?.requests.as_ref()?.get("storage").map(|size| size.0.clone()));
        let Some(storage) = storage else { continue };
        let prefix = format!("{name}-{}", child.name());
        for claim in
            entries.iter().filter(|entry| entry.slot == Slot::Volume && ordinal(&entry.name, &prefix).is_some())
        {
            context.applier.grow_volume(namespace, &claim.name, &storage).await?;
        }
    }
    context.applier.release_statefulset(namespace, child.name()).await?;
    Err(Outcome::Progressing(format!("{} is replaced around its running pods, its volumes grow", child.name())))
}

//! Deletion of Tenants and `BotFleets`: bots first and gracefully, data only when the Tenant says so.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::context::Context;
use super::outcome::Outcome;
use super::workloads::ordinal;
use crate::api::DeletionPolicy;
use crate::cluster::index::{Entry, Slot};
use crate::cluster::status::{Own, has_finalizer};
use crate::domain::names::{self, Component};
use crate::plan::ChildKind;

/// `CustomResourceDefinition` of Tenant.
const TENANTS: &str = "tenants.torpor.dev";
/// `CustomResourceDefinition` of `BotFleet`.
const FLEETS: &str = "botfleets.torpor.dev";

/// One pass over a Tenant that is being deleted.
pub async fn tenant(context: &Context, metadata: &ObjectMeta, policy: DeletionPolicy) -> Outcome {
    match try_tenant(context, metadata, policy).await {
        Ok(outcome) | Err(outcome) => outcome,
    }
}

async fn try_tenant(context: &Context, metadata: &ObjectMeta, policy: DeletionPolicy) -> Result<Outcome, Outcome> {
    let name = metadata.name.as_deref().unwrap_or_default();
    if !has_finalizer(metadata) {
        return Ok(Outcome::Again);
    }
    let namespace = names::namespace(name);
    let entries = context.index.namespace(&namespace);
    let own = entries.iter().find(|entry| entry.slot == Slot::Child(ChildKind::Namespace));
    let Some(home) = own.filter(|entry| entry.tenant.as_deref() == Some(name)) else {
        // Nothing of this tenant exists, or its place is another's: there is nothing to take down.
        context.status.remove_finalizer(Own::Tenant, metadata).await?;
        return Ok(Outcome::Again);
    };
    let fleets: Vec<&Entry> = entries.iter().filter(|e| e.slot == Slot::Child(ChildKind::BotFleet)).collect();
    if !fleets.is_empty() {
        for fleet in fleets {
            context.applier.delete(fleet).await?;
        }
        return Ok(Outcome::Deleting("bots are stopping gracefully".to_owned()));
    }
    if pods(&entries, Some(Component::Bot)) > 0 {
        return Ok(Outcome::Deleting("bots are stopping gracefully".to_owned()));
    }
    for entry in &entries {
        if matches!(entry.slot, Slot::Child(ChildKind::StatefulSet | ChildKind::Deployment)) {
            context.applier.delete(entry).await?;
        }
    }
    let pods = pods(&entries, None);
    if pods > 0 && !home.deleting {
        return Ok(Outcome::Deleting(format!("{pods} pods are stopping")));
    }
    if policy == DeletionPolicy::Delete && context.reader.definition_stays(TENANTS).await? {
        // Volumes go slowly because of a finalizer, and a namespace looks again only after many seconds. It begins
        // a few seconds after its own deletion, and then they have gone already.
        for volume in entries.iter().filter(|entry| entry.slot == Slot::Volume) {
            context.applier.delete(volume).await?;
        }
        context.applier.delete(home).await?;
        return Ok(Outcome::Deleting(format!("namespace {namespace} is being deleted")));
    }
    context.status.remove_finalizer(Own::Tenant, metadata).await?;
    Ok(Outcome::Again)
}

/// One pass over a `BotFleet` that is being deleted.
pub async fn fleet(context: &Context, metadata: &ObjectMeta) -> Outcome {
    match try_fleet(context, metadata).await {
        Ok(outcome) | Err(outcome) => outcome,
    }
}

async fn try_fleet(context: &Context, metadata: &ObjectMeta) -> Result<Outcome, Outcome> {
    let name = metadata.name.as_deref().unwrap_or_default();
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    if !has_finalizer(metadata) {
        return Ok(Outcome::Again);
    }
    let workload = names::fleet_workload(name);
    let entries = context.index.namespace(namespace);
    if let Some(set) = entries.iter().find(|e| e.slot == Slot::Child(ChildKind::StatefulSet) && e.name == workload) {
        // Its pods are collected with their own grace period, each bot cancelling its orders.
        context.applier.delete(set).await?;
        return Ok(Outcome::Deleting("bots are stopping gracefully".to_owned()));
    }
    let bots: Vec<&Entry> =
        entries.iter().filter(|e| e.slot == Slot::Pod && e.fleet.as_deref() == Some(name)).collect();
    if !bots.is_empty() {
        return Ok(Outcome::Deleting(format!("{} bots are stopping gracefully", bots.len())));
    }
    if drops_volumes(context, namespace).await? {
        let claims = format!("{}-{workload}", names::DATA_CLAIM);
        for entry in entries.iter().filter(|e| e.slot == Slot::Volume && ordinal(&e.name, &claims).is_some()) {
            context.applier.delete(entry).await?;
        }
    }
    context.status.remove_finalizer(Own::BotFleet, metadata).await?;
    Ok(Outcome::Again)
}

/// Volumes go only when the Tenant can be read, says Delete, and neither `CustomResourceDefinition` is on its way out.
async fn drops_volumes(context: &Context, namespace: &str) -> Result<bool, Outcome> {
    let tenant = names::tenant_of_namespace(namespace).and_then(|name| context.tenant(name));
    let says_delete = tenant
        .as_ref()
        .and_then(|guarded| guarded.0.as_ref().ok())
        .is_some_and(|tenant| tenant.spec.deletion_policy == DeletionPolicy::Delete);
    Ok(says_delete
        && context.reader.definition_stays(FLEETS).await?
        && context.reader.definition_stays(TENANTS).await?)
}

fn pods(entries: &[Entry], component: Option<Component>) -> usize {
    entries
        .iter()
        .filter(|entry| entry.slot == Slot::Pod)
        .filter(|entry| component.is_none_or(|component| entry.component.as_deref() == Some(component.as_str())))
        .count()
}

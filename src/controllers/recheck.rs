//! The last look before something is taken down: the watch may be behind. Activity always wins, and data that has gone does not
//! come back.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt};

use super::context::Context;
use super::outcome::Outcome;
use crate::api::tenant::DeletionPolicy;
use crate::api::{BotFleet, Tenant};
use crate::cluster::error::ClusterError;
use crate::domain::activity;
use crate::domain::names;
use crate::domain::stage::{Stage, effective_stage};

/// Reads the Tenant anew and lets the pass go on only if it still sleeps at least as deep as the pass assumes. A login that the watch
/// has not shown yet must not cost the user anything.
///
/// # Errors
/// `Again` when the Tenant is another one meanwhile: its watch brings the next pass. `Transient` when it cannot be
/// read, whatever the reason; nothing is taken down on a guess.
pub async fn still_sleeps(context: &Context, tenant: &Tenant, wanted: Stage, part: &str) -> Result<(), Outcome> {
    let name = tenant.name_any();
    let live = context.reader.tenant(&name).await.map_err(unread)?;
    if live.is_some_and(|live| agrees(tenant, wanted, &live, context.clock.now())) {
        return Ok(());
    }
    tracing::info!(tenant = name, part, stage = wanted.as_str(), "not taken down: the Tenant has changed meanwhile");
    Err(Outcome::Again)
}

/// Whether the watch has shown meanwhile that the Tenant asks for something else than when the pass read it. Costs no request, and is
/// asked before each write: one that is slow makes all that follow late.
pub fn has_changed(context: &Context, tenant: &Tenant) -> bool {
    let Some(live) = context.tenant(&tenant.name_any()) else { return true };
    let Ok(live) = &live.0 else { return true };
    if live.metadata.resource_version == tenant.metadata.resource_version {
        return false;
    }
    let now = context.clock.now();
    let asks = |of: &Tenant| {
        let stage = effective_stage(&activity::facts(of, now));
        (of.metadata.uid.clone(), of.metadata.generation, of.metadata.deletion_timestamp.is_some(), stage)
    };
    asks(live) != asks(tenant)
}

/// Likewise of a Tenant or one of its fleets.
pub fn either_has_changed(context: &Context, tenant: &Tenant, fleet: &BotFleet) -> bool {
    has_changed(context, tenant) || fleet_has_changed(context, fleet)
}

fn fleet_has_changed(context: &Context, fleet: &BotFleet) -> bool {
    let live = context.fleet(&fleet.namespace().unwrap_or_default(), &fleet.name_any());
    let asks = |of: &ObjectMeta| (of.uid.clone(), of.generation, of.deletion_timestamp.is_some());
    live.is_none_or(|live| asks(live.meta()) != asks(&fleet.metadata))
}

fn agrees(tenant: &Tenant, wanted: Stage, live: &Tenant, now: Timestamp) -> bool {
    live.metadata.uid == tenant.metadata.uid
        && live.metadata.deletion_timestamp.is_none()
        && effective_stage(&activity::facts(live, now)) >= wanted
}

/// Whether this Tenant is still there, and its data is to go.
///
/// # Errors
/// `Transient` when it cannot be read; nothing is deleted on a guess.
pub async fn still_says_delete(context: &Context, tenant: &ObjectMeta) -> Result<bool, Outcome> {
    Ok(says_delete(context, tenant).await?.is_some())
}

/// Whether the data of a fleet that goes is to go with it. Where its Tenant asks for a fleet of that name, there will be another one,
/// which goes on with that data.
///
/// # Errors
/// `Transient` when the Tenant cannot be read; nothing is deleted on a guess.
pub async fn drops_fleet(context: &Context, tenant: &ObjectMeta, fleet: &str) -> Result<bool, Outcome> {
    Ok(says_delete(context, tenant).await?.is_some_and(|live| drops(&live, fleet)))
}

/// The same as far as the watch knows, which costs no request.
pub fn seems_to_drop(context: &Context, namespace: &str, fleet: &str) -> bool {
    let known = names::tenant_of_namespace(namespace).and_then(|name| context.tenant(name));
    known.as_ref().and_then(|known| known.0.as_ref().ok()).is_some_and(|known| drops(known, fleet))
}

/// Whether this Tenant lets the data of a fleet go with it: it says so, and asks for no other of that name.
fn drops(tenant: &Tenant, fleet: &str) -> bool {
    let named = tenant.spec.fleets.iter().any(|one| one.name == fleet);
    let asks_for = named && tenant.metadata.deletion_timestamp.is_none();
    tenant.spec.deletion_policy == DeletionPolicy::Delete && !asks_for
}

/// This Tenant, if it says now that its data is to go.
async fn says_delete(context: &Context, tenant: &ObjectMeta) -> Result<Option<Tenant>, Outcome> {
    let live = context.reader.tenant(tenant.name.as_deref().unwrap_or_default()).await.map_err(unread)?;
    let says = |live: &Tenant| live.metadata.uid == tenant.uid && live.spec.deletion_policy == DeletionPolicy::Delete;
    Ok(live.filter(says))
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unread(error: ClusterError) -> Outcome {
    Outcome::Transient(error.to_string())
}

/// Whether the Tenant asks for as many bots as the fleet does, where it names it: what somebody has changed in the fleet alone is put back.
pub fn agree_on_bots(tenant: &Tenant, fleet: &BotFleet) -> bool {
    let named = tenant.spec.fleets.iter().find(|one| one.name == fleet.name_any());
    named.is_none_or(|one| one.spec.replicas == fleet.spec.replicas)
}

/// Whether Tenant and fleet ask for the same as when the pass read them, and both for as many bots, and the data of those that are not
/// asked for is to go.
///
/// # Errors
/// `Transient` when one of them cannot be read; nothing is deleted on a guess.
pub async fn still_asks(context: &Context, tenant: &Tenant, fleet: &BotFleet) -> Result<bool, Outcome> {
    let says = says_delete(context, &tenant.metadata).await?;
    let same = |live: &Tenant| live.metadata.generation == tenant.metadata.generation && agree_on_bots(live, fleet);
    if says.as_ref().is_none_or(|live| !same(live)) {
        return Ok(false);
    }
    let namespace = fleet.namespace().unwrap_or_default();
    let live = context.reader.fleet(&namespace, &fleet.name_any()).await.map_err(unread)?;
    Ok(live.is_some_and(|live| (&fleet.metadata.uid, fleet.metadata.generation) == (&live.uid, live.generation)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_the_same_tenant_as_deep_asleep_agrees() {
        let tenant = |uid: &str, suspended: bool, decided: &str| -> Tenant {
            serde_json::from_value(json!({
                "apiVersion": "torpor.dev/v1alpha1", "kind": "Tenant",
                "metadata": {"name": "a", "uid": uid, "creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"tier": "free", "suspended": suspended},
                "status": {"hibernation": {"decision": {"stage": decided, "basedOn": "2026-01-01T00:00:00Z"}}},
            }))
            .expect("a tenant")
        };
        let assumed = tenant("1", false, "ServicesStopped");
        let ok = |live: &Tenant| agrees(&assumed, Stage::ServicesStopped, live, Timestamp::UNIX_EPOCH);
        assert!(ok(&assumed));
        assert!(ok(&tenant("1", true, "Active")), "deeper is no objection");
        assert!(!ok(&tenant("1", false, "BotsStopped")));
        assert!(!ok(&tenant("1", false, "Active")));
        assert!(!ok(&tenant("2", false, "ServicesStopped")), "another Tenant of that name");
        let mut login = assumed.clone();
        login.annotations_mut().insert("torpor.dev/last-activity".to_owned(), "2026-01-02T00:00:00Z".to_owned());
        assert!(!ok(&login));
        let mut going = assumed.clone();
        going.metadata.deletion_timestamp = assumed.metadata.creation_timestamp.clone();
        assert!(!ok(&going), "removal has an order of its own");
    }
}

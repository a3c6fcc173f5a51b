//! What bots wait for before they start: those who trade on the same account, what keeps others away, and their keys.

use kube::ResourceExt;

use super::children;
use super::context::Context;
use super::outcome::Outcome;
use super::sight;
use super::workloads::{self, Wanted};
use crate::api::BotFleet;
use crate::cluster::error::ClusterError;
use crate::cluster::index::{Entry, Slot};
use crate::domain::names::{self, ISOLATION};
use crate::plan::{Child, ChildKind};
use crate::validate::ValidatedTenant;

/// Lets a pass go on that starts bots, or gives them other keys, once nothing is in their way. Bots that run are changed and stopped all the
/// same.
///
/// # Errors
/// `Waiting`, which says for what, and the outcome of a request that failed.
pub async fn await_all(
    context: &Context,
    fleet: &BotFleet,
    tenant: &ValidatedTenant,
    children: &[Child],
) -> Result<(), Outcome> {
    await_predecessor(context, fleet, tenant, children)?;
    await_isolation(context, fleet, &tenant.namespace, children)?;
    await_secret(context, fleet, &tenant.namespace, children).await
}

/// Whether these children have more bots than the fleet has at present.
fn starts(context: &Context, fleet: &BotFleet, namespace: &str, children: &[Child]) -> bool {
    let mut entries = context.index.namespace(namespace);
    // Where there is no set for them, those that stop are made anew.
    let workload = names::fleet_workload(&fleet.name_any());
    if context.index.get(Slot::Child(ChildKind::StatefulSet), namespace, &workload).is_none() {
        entries.retain(|entry| entry.slot != Slot::Pod || !entry.deleting);
    }
    let running = sight::running(&entries, &fleet.name_any());
    children::workloads(children).iter().any(|workload| workload.replicas > running)
}

/// Whether pods of these workloads have what is wanted of them: by what their sets say, or where a set is made anew around its pods, by those.
fn are_made(entries: &[Entry], workloads: &[Wanted]) -> bool {
    workloads.iter().all(|wanted| {
        let set = entries.iter().find(|e| e.slot == Slot::Child(ChildKind::StatefulSet) && e.name == wanted.name);
        let mut pods = workloads::pods(entries, wanted).filter(|pod| !pod.deleting).peekable();
        match set {
            Some(set) => set.restart_hash == wanted.restart_hash,
            None => pods.peek().is_some() && pods.all(|pod| pod.restart_hash == wanted.restart_hash),
        }
    })
}

/// No bot starts beside those of a fleet that goes, or is to have none, and has the same keys, as one that was renamed has, or one that was
/// paused for another: two would trade on one account. Nor does one that runs get those keys.
fn await_predecessor(
    context: &Context,
    fleet: &BotFleet,
    tenant: &ValidatedTenant,
    children: &[Child],
) -> Result<(), Outcome> {
    let Some(keys) = &fleet.spec.credentials_secret else { return Ok(()) };
    let entries = context.index.namespace(&tenant.namespace);
    let made = are_made(&entries, &children::workloads(children));
    if made && !starts(context, fleet, &tenant.namespace, children) {
        return Ok(());
    }
    let is_bot = |entry: &&Entry, name: &str| entry.slot == Slot::Pod && entry.fleet.as_deref() == Some(name);
    let goes = |other: &BotFleet| {
        let owners = other.metadata.owner_references.iter().flatten();
        let mut owners = owners.filter(|owner| owner.controller == Some(true)).map(|owner| &owner.uid);
        let own = owners.any(|uid| Some(uid) == tenant.uid.as_ref());
        // What the Tenant says may not have been written to the fleet yet.
        let named = tenant.fleets.iter().find(|(name, _)| *name == other.name_any()).map(|(_, spec)| spec);
        let stays = if own { named } else { Some(named.unwrap_or(&other.spec)) };
        other.metadata.deletion_timestamp.is_some() || stays.is_none_or(|spec| spec.wanted() == 0)
    };
    for guarded in context.looked_after(&tenant.namespace) {
        let Ok(other) = &guarded.0 else { continue };
        let name = other.name_any();
        let same_keys = name != fleet.name_any() && other.spec.credentials_secret.as_ref() == Some(keys);
        // One that has no pod just now, but asks for one, is about to.
        if same_keys && goes(other) && !sight::bots(&entries, Some(&name)).gone() {
            let left = entries.iter().filter(|entry| is_bot(entry, &name)).count();
            return Err(Outcome::Waiting(format!(
                "fleet {name}, which stops and has the same credentialsSecret {keys}, still has {left} bots"
            )));
        }
    }
    Ok(())
}

/// No bot starts where other tenants' pods could reach it. Those that run are changed and stopped all the same.
fn await_isolation(context: &Context, fleet: &BotFleet, namespace: &str, children: &[Child]) -> Result<(), Outcome> {
    let starts = starts(context, fleet, namespace, children);
    let isolation = context.index.get(Slot::Child(ChildKind::NetworkPolicy), namespace, ISOLATION);
    if !starts || isolation.is_some_and(|policy| !policy.deleting) {
        return Ok(());
    }
    Err(Outcome::Waiting(format!("NetworkPolicy {namespace}/{ISOLATION} does not exist yet; bots start when it does")))
}

/// Holds back a write of the workload while the Secret it mounts does not exist. Settled fleets are not asked about.
async fn await_secret(context: &Context, fleet: &BotFleet, namespace: &str, children: &[Child]) -> Result<(), Outcome> {
    let Some(secret) = &fleet.spec.credentials_secret else { return Ok(()) };
    let (workloads, entries) = (children::workloads(children), context.index.namespace(namespace));
    let made = are_made(&entries, &workloads);
    if made && !starts(context, fleet, namespace, children) {
        return Ok(());
    }
    // One that was made or changed while it slept has what is wanted, and none of its bots has ever had the Secret; each that ran has a volume.
    let has_run = |wanted: &Wanted| {
        let claims = names::claim(&wanted.name);
        let mut volumes = entries.iter().filter(|entry| entry.slot == Slot::Volume);
        volumes.any(|volume| workloads::ordinal(&volume.name, &claims).is_some())
    };
    match context.applier.secret_exists(namespace, secret).await {
        Ok(true) => return Ok(()),
        Ok(false) => {}
        // Somebody permits no Secrets to be made, which is how it is asked for. Those who ran with it are taken to find it; without it they
        // would wait at the kubelet, and say so.
        Err(ClusterError::Refused { .. } | ClusterError::Failed { .. }) if made && workloads.iter().all(has_run) => {
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    }
    Err(Outcome::Waiting(format!(
        "Secret {namespace}/{secret} does not exist; create it with the exchange credentials (examples/fleet-credentials.yaml)"
    )))
}

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
    let (workloads, entries) = (children::workloads(children), context.index.namespace(&tenant.namespace));
    let starts = starts(fleet, &entries, &workloads);
    let made = are_made(&entries, &workloads);
    if starts || !made {
        await_predecessor(context, fleet, tenant, &entries)?;
    }
    if starts {
        await_isolation(context, &tenant.namespace)?;
    }
    if starts || !made {
        // One that was made or changed while it slept has what is wanted, and none of its bots has ever had the Secret; each that ran has a
        // volume.
        let ran_with_it = made && workloads.iter().all(|wanted| has_run(&entries, wanted));
        await_secret(context, fleet, &tenant.namespace, ran_with_it).await?;
    }
    Ok(())
}

/// Whether these workloads have more bots than the fleet has at present.
fn starts(fleet: &BotFleet, entries: &[Entry], workloads: &[Wanted]) -> bool {
    let mut entries = entries.to_vec();
    // Where there is no set for them, those that stop are made anew.
    let workload = names::fleet_workload(&fleet.name_any());
    if !entries.iter().any(|e| e.slot == Slot::Child(ChildKind::StatefulSet) && e.name == workload) {
        entries.retain(|entry| entry.slot != Slot::Pod || !entry.deleting);
    }
    let running = sight::running(&entries, &fleet.name_any());
    workloads.iter().any(|workload| workload.replicas > running)
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
    entries: &[Entry],
) -> Result<(), Outcome> {
    let Some(keys) = &fleet.spec.credentials_secret else { return Ok(()) };
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
        if same_keys && goes(other) && !sight::bots(entries, Some(&name)).gone() {
            let left = entries.iter().filter(|entry| is_bot(entry, &name)).count();
            return Err(Outcome::Waiting(format!(
                "fleet {name}, which stops and has the same credentialsSecret {keys}, still has {left} bots"
            )));
        }
    }
    Ok(())
}

/// No bot starts where other tenants' pods could reach it. Those that run are changed and stopped all the same.
fn await_isolation(context: &Context, namespace: &str) -> Result<(), Outcome> {
    let isolation = context.index.get(Slot::Child(ChildKind::NetworkPolicy), namespace, ISOLATION);
    if isolation.is_some_and(|policy| !policy.deleting) {
        return Ok(());
    }
    Err(Outcome::Waiting(format!("NetworkPolicy {namespace}/{ISOLATION} does not exist yet; bots start when it does")))
}

/// Whether a bot of this workload has ever run: it has a volume.
fn has_run(entries: &[Entry], wanted: &Wanted) -> bool {
    let claims = names::claim(&wanted.name);
    let mut volumes = entries.iter().filter(|entry| entry.slot == Slot::Volume);
    volumes.any(|volume| workloads::ordinal(&volume.name, &claims).is_some())
}

/// Holds back a write of the workload while the Secret it mounts does not exist. Settled fleets are not asked about.
async fn await_secret(context: &Context, fleet: &BotFleet, namespace: &str, ran_with_it: bool) -> Result<(), Outcome> {
    let Some(secret) = &fleet.spec.credentials_secret else { return Ok(()) };
    match context.applier.secret_exists(namespace, secret).await {
        Ok(true) => return Ok(()),
        Ok(false) => {}
        // Somebody permits no Secrets to be made, which is how it is asked for. Those who ran with it are taken to find it; without it they
        // would wait at the kubelet, and say so.
        Err(ClusterError::Refused { .. } | ClusterError::Failed { .. }) if ran_with_it => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    Err(Outcome::Waiting(format!(
        "Secret {namespace}/{secret} does not exist; create it with the exchange credentials (examples/fleet-credentials.yaml)"
    )))
}

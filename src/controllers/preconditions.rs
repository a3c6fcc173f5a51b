//! What bots wait for before they start: those who trade on the same account, what keeps others away, and their keys.

use kube::ResourceExt;

use super::children;
use super::context::Context;
use super::outcome::Outcome;
use super::sight;
use super::workloads::{self, Wanted};
use crate::api::{BotFleet, BotFleetSpec};
use crate::cluster::error::ClusterError;
use crate::cluster::index::{Entry, Keys, Slot};
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
        await_predecessors(context, fleet, tenant, &entries).await?;
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

/// No bot starts beside those of another fleet that have the same keys and are not to have them any more, because it goes, is to have no
/// bots, or other keys: two would trade on one account. Nor does one that runs get those keys.
async fn await_predecessors(
    context: &Context,
    fleet: &BotFleet,
    tenant: &ValidatedTenant,
    entries: &[Entry],
) -> Result<(), Outcome> {
    let Some(secret) = &fleet.spec.credentials_secret else { return Ok(()) };
    let keys = Keys::of(secret);
    let waits = |name: &str, why: String| {
        Err(Outcome::Waiting(format!("fleet {name} has to leave credentialsSecret {secret} first: {why}")))
    };
    let mut stopped = Vec::new();
    for guarded in context.looked_after(&tenant.namespace) {
        let Ok(other) = &guarded.0 else { continue };
        let name = other.name_any();
        let wanted = spec_to_come(other, tenant).filter(|spec| spec.wanted() > 0);
        // Two that are asked for it trade on one account.
        if name == fleet.name_any() || wanted.is_some_and(|spec| spec.credentials_secret.as_ref() == Some(secret)) {
            continue;
        }
        let left = entries.iter().filter(|pod| holds(pod, &name, keys)).count();
        if left > 0 {
            let swap = if wanted.is_some() { "; where each waits for the other, pause one" } else { "" };
            return waits(&name, format!("{left} of its bots still have it{swap}"));
        }
        // One that has no pod just now, but asks for one, is about to.
        let workload = names::fleet_workload(&name);
        let set = entries.iter().find(|e| e.slot == Slot::Child(ChildKind::StatefulSet) && e.name == workload);
        if set.is_some_and(|set| set.keys == Some(keys)) && !sight::bots(entries, Some(&name)).gone() {
            return waits(&name, "its StatefulSet still gives it to bots".to_owned());
        }
        if wanted.is_none() {
            stopped.push(name);
        }
    }
    if stopped.is_empty() {
        return Ok(());
    }
    // Of one that has lost its labels the watch tells that it has gone.
    let pods = context.reader.pods(&tenant.namespace).await?;
    let left = stopped.iter().find_map(|name| Some((name, pods.iter().find(|pod| holds(pod, name, keys))?)));
    left.map_or(Ok(()), |(name, pod)| {
        waits(
            name,
            format!("pod {} still has it; if it stays, it has lost its labels: delete it when it may stop", pod.name),
        )
    })
}

/// What a fleet is asked for, which its Tenant may not have written to it yet. `None` where it goes.
fn spec_to_come<'a>(fleet: &'a BotFleet, tenant: &'a ValidatedTenant) -> Option<&'a BotFleetSpec> {
    let owners = fleet.metadata.owner_references.iter().flatten();
    let mut owners = owners.filter(|owner| owner.controller == Some(true)).map(|owner| &owner.uid);
    let own = owners.any(|uid| Some(uid) == tenant.uid.as_ref());
    let named = tenant.fleets.iter().find(|(name, _)| *name == fleet.name_any()).map(|(_, spec)| spec);
    let stays = if own { named } else { named.or(Some(&fleet.spec)) };
    stays.filter(|_| fleet.metadata.deletion_timestamp.is_none())
}

/// Whether this is a bot of the fleet that may trade with these keys.
fn holds(pod: &Entry, fleet: &str, keys: Keys) -> bool {
    sight::is_bot_of(pod, fleet) && sight::counts(pod) && pod.keys == Some(keys)
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

//! What bots wait for before they start: those who trade on the same account, what keeps others away, and their keys.

use kube::{Resource, ResourceExt};

use super::children;
use super::context::{Context, Guarded};
use super::outcome::Outcome;
use super::sight;
use super::workloads::{self, Wanted, set};
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
    let heir = Heir::of(fleet, tenant, context);
    // Around those that trade on the account already a set is made anew as it was.
    let anew = |heir: &Heir<'_>| heir.has_keys(&entries, &workloads) && (!starts || is_around(&entries, &workloads));
    let heir = heir.filter(|heir| (starts || !made) && !anew(heir));
    if let Some(heir) = &heir {
        heir.await_bots(&entries)?;
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
    if let Some(heir) = &heir {
        heir.await_unlabelled(&entries).await?;
    }
    Ok(())
}

/// Whether these workloads have more bots than the fleet has at present.
fn starts(fleet: &BotFleet, entries: &[Entry], workloads: &[Wanted]) -> bool {
    let mut entries = entries.to_vec();
    // Where there is no set for them, those that stop are made anew.
    let workload = names::fleet_workload(&fleet.name_any());
    if set(&entries, &workload).is_none() {
        entries.retain(|entry| entry.slot != Slot::Pod || !entry.deleting);
    }
    let running = sight::running(&entries, &fleet.name_any());
    workloads.iter().any(|workload| workload.replicas > running)
}

/// Whether these workloads are to be made, and have pods that run.
fn is_around(entries: &[Entry], workloads: &[Wanted]) -> bool {
    let runs = |pod: &Entry| !pod.deleting && sight::counts(pod);
    workloads.iter().all(|wanted| set(entries, &wanted.name).is_none() && workloads::pods(entries, wanted).any(runs))
}

/// Whether pods of these workloads have what is wanted of them: by what their sets say, or where a set is made anew around its pods, by those.
fn are_made(entries: &[Entry], workloads: &[Wanted]) -> bool {
    workloads.iter().all(|wanted| {
        let mut pods = workloads::pods(entries, wanted).filter(|pod| !pod.deleting).peekable();
        match set(entries, &wanted.name) {
            Some(set) => set.restart_hash == wanted.restart_hash,
            None => pods.peek().is_some() && pods.all(|pod| pod.restart_hash == wanted.restart_hash),
        }
    })
}

/// A fleet whose bots are to get keys. None gets them beside bots of other fleets that have them and are not to have them any more, because
/// their fleet goes, is to have no bots, or other keys: two would trade on one account.
struct Heir<'a> {
    context: &'a Context,
    tenant: &'a ValidatedTenant,
    name: String,
    secret: &'a str,
    keys: Keys,
}

impl<'a> Heir<'a> {
    fn of(fleet: &'a BotFleet, tenant: &'a ValidatedTenant, context: &'a Context) -> Option<Self> {
        let secret = fleet.spec.credentials_secret.as_deref()?;
        Some(Self { context, tenant, name: fleet.name_any(), secret, keys: Keys::of(secret) })
    }

    /// Whether its bots have the keys already, or are about to: another change of them lets nobody trade who did not.
    fn has_keys(&self, entries: &[Entry], workloads: &[Wanted]) -> bool {
        workloads.iter().all(|wanted| match set(entries, &wanted.name) {
            Some(set) => set.keys == Some(self.keys),
            None => workloads::pods(entries, wanted).all(|pod| pod.keys == Some(self.keys)),
        })
    }

    fn await_bots(&self, entries: &[Entry]) -> Result<(), Outcome> {
        if let Some(name) = entries.iter().find_map(|pod| self.holder(pod)) {
            let left = entries.iter().filter(|pod| self.holder(pod) == Some(name)).count();
            let swap = if self.is_to_run(name) { "; where each waits for the other, pause one" } else { "" };
            return self.waits_for(name, &format!("{left} of its bots still have it{swap}"));
        }
        // One that has no pod just now, but asks for one, is about to.
        let gives = |set: &&Entry| set.slot == Slot::Child(ChildKind::StatefulSet) && set.keys == Some(self.keys);
        let makers = entries.iter().filter(gives).filter_map(Entry::fleet_by_name);
        let mut makers = makers.filter(|name| !self.shares(name) && !sight::bots(entries, Some(name)).gone());
        makers.next().map_or(Ok(()), |name| self.waits_for(name, "its StatefulSet still gives it to bots"))
    }

    /// Of a bot that has lost its labels the watch tells that it has gone. So it is asked where one may have been.
    async fn await_unlabelled(&self, entries: &[Entry]) -> Result<(), Outcome> {
        let had = |other: &Guarded<BotFleet>| {
            let name = other.name_any();
            let by_spec = |fleet: &BotFleet| fleet.spec.credentials_secret.as_deref() == Some(self.secret);
            let by_set = || set(entries, &names::fleet_workload(&name)).is_some_and(|set| set.keys == Some(self.keys));
            !self.shares(&name) && (other.0.as_ref().map_or(true, by_spec) || by_set())
        };
        if !self.context.looked_after(&self.tenant.namespace).iter().any(|other| had(other)) {
            return Ok(());
        }
        let pods = self.context.reader.pods(&self.tenant.namespace).await?;
        let left = pods.iter().find_map(|pod| Some((self.holder(pod)?, &pod.name)));
        left.map_or(Ok(()), |(name, pod)| {
            let why =
                format!("pod {pod} still has it; if it stays, it has lost its labels: delete it when it may stop");
            self.waits_for(name, &why)
        })
    }

    /// The other fleet whose bot this is, if it has the keys and is not to have them any more.
    fn holder<'b>(&self, pod: &'b Entry) -> Option<&'b str> {
        let has = sight::counts(pod) && pod.keys == Some(self.keys);
        let fleet = pod.fleet_by_name().or(pod.fleet.as_deref()).filter(|_| has)?;
        (!self.shares(fleet)).then_some(fleet)
    }

    /// Whether this is the fleet itself, or another that is asked to trade on the same account.
    fn shares(&self, fleet: &str) -> bool {
        let asked = |spec: &BotFleetSpec| spec.wanted() > 0 && spec.credentials_secret.as_deref() == Some(self.secret);
        fleet == self.name || self.with_spec_to_come(fleet, asked)
    }

    fn is_to_run(&self, fleet: &str) -> bool {
        self.with_spec_to_come(fleet, |spec| spec.wanted() > 0)
    }

    /// What is true of a fleet as it is asked for, which its Tenant may not have written to it yet. Of one that goes, or cannot be read,
    /// nothing is.
    fn with_spec_to_come(&self, fleet: &str, is: impl Fn(&BotFleetSpec) -> bool) -> bool {
        let Some(known) = self.context.fleet(&self.tenant.namespace, fleet) else { return false };
        let owners = known.meta().owner_references.iter().flatten();
        let mut owners = owners.filter(|owner| owner.controller == Some(true)).map(|owner| &owner.uid);
        let own = owners.any(|uid| Some(uid) == self.tenant.uid.as_ref());
        let named = self.tenant.fleets.iter().find(|(name, _)| name == fleet).map(|(_, spec)| spec);
        let stored = known.0.as_ref().ok().map(|fleet| &fleet.spec).filter(|_| !own);
        known.meta().deletion_timestamp.is_none() && named.or(stored).is_some_and(is)
    }

    fn waits_for(&self, fleet: &str, why: &str) -> Result<(), Outcome> {
        let secret = self.secret;
        Err(Outcome::Waiting(format!("fleet {fleet} has to leave credentialsSecret {secret} first: {why}")))
    }
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

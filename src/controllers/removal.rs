//! Deletion of Tenants and `BotFleets`: bots first and gracefully, data only when the Tenant says so.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt};

use super::context::{Context, Key};
use super::outcome::{FirstFailure, Outcome, SHOWN_AFTER};
use super::recheck;
use super::sight;
use super::steps::State;
use super::workloads::{is_surplus, ordinal, set};
use crate::api::DeletionPolicy;
use crate::api::conditions::{self, reasons};
use crate::cluster::error::ClusterError;
use crate::cluster::index::{Entry, Slot};
use crate::cluster::status::{Own, has_finalizer};
use crate::domain::names::{self, Component, label};
use crate::plan::ChildKind;
use crate::status;

/// A workload that was asked for no bots so long ago, and whose controller has not told all of them to stop, is taken down all the same:
/// something writes its number of pods anew, or refuses what the controller writes.
const LATE: Duration = Duration::from_secs(120);
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
        let is_own = if own.is_some() { Some(false) } else { context.reader.owns_namespace(name).await? };
        return match is_own {
            Some(true) => Ok(Outcome::Waiting(format!("the watch has not shown namespace {namespace} yet"))),
            Some(false) if runs(&entries, name) => Err(Outcome::Conflict(format!(
                "pods of this Tenant run in namespace {namespace}, which has lost the labels {}={} and {}={name}; put them back, or delete what runs there",
                label::MANAGED_BY,
                label::TORPOR,
                label::TENANT
            ))),
            // Nothing of this tenant exists, or its place is another's: there is nothing to take down.
            Some(false) | None => release(context, metadata).await,
        };
    };
    let fleets =
        entries.iter().filter(|e| e.slot == Slot::Child(ChildKind::BotFleet) && !has_ended(context, &entries, e));
    let fleets: Vec<&Entry> = fleets.collect();
    if !fleets.is_empty() {
        let mut failed = FirstFailure::default();
        let began = context.clock.monotonic();
        for fleet in fleets {
            let ended = if !failed.is_none() && context.has_lasted(began) {
                stop_fleet(context, fleet).await
            } else {
                end_fleet(context, fleet).await
            };
            failed.keep(ended)?;
        }
        failed.told()?;
        return Ok(Outcome::Deleting(awaited_of_fleets(context, &namespace)));
    }
    if pods(&entries, Some(Component::Bot)) > 0 {
        let mut failed = FirstFailure::default();
        failed.keep(stop_left(context, &entries, |pod| pod.is_of(Component::Bot)).await)?;
        let sets = entries.iter().filter(|entry| entry.slot == Slot::Child(ChildKind::StatefulSet));
        for set in sets.filter(|set| set.is_of(Component::Bot)) {
            failed.keep(end_bots(context, &entries, set, &Key::new(Own::Tenant, None, name)).await)?;
        }
        failed.told()?;
        return Ok(Outcome::Deleting("bots are stopping gracefully".to_owned()));
    }
    let mut failed = FirstFailure::default();
    for entry in &entries {
        if matches!(entry.slot, Slot::Child(ChildKind::StatefulSet | ChildKind::Deployment)) {
            failed.keep(take_down(context, entry).await)?;
        }
    }
    failed.told()?;
    let pods = pods(&entries, None);
    if pods > 0 && !home.deleting {
        stop_unattended(context, &entries, None, |_| true).await?;
        return Ok(Outcome::Deleting(format!("{pods} pods are stopping")));
    }
    if home.deleting && policy == DeletionPolicy::Delete {
        return Ok(Outcome::Deleting(format!("namespace {namespace} is being deleted")));
    }
    if policy == DeletionPolicy::Delete
        && recheck::still_says_delete(context, metadata).await?
        && context.reader.definition_stays(TENANTS).await?
    {
        // Volumes go slowly because of a finalizer, and a namespace looks again only after many seconds. It begins
        // a few seconds after its own deletion, and then they have gone already.
        for volume in entries.iter().filter(|entry| entry.slot == Slot::Volume) {
            context.applier.delete(volume).await?;
        }
        context.applier.delete(home).await?;
        return Ok(Outcome::Deleting(format!("namespace {namespace} is being deleted")));
    }
    if drop_policies(context, name, &entries).await? {
        return Ok(Outcome::Deleting("its network policies go".to_owned()));
    }
    release(context, metadata).await
}

/// Deletes the NetworkPolicies, which have no owner so that they are there for as long as anything runs. Whether any of them goes: until the
/// watch has shown that it has gone, a successor would take it for its own. One that cannot be deleted keeps nothing from going, and harms
/// nobody.
async fn drop_policies(context: &Context, tenant: &str, entries: &[Entry]) -> Result<bool, Outcome> {
    let (mut any, mut failed, began) = (false, false, context.clock.monotonic());
    // One hiccup is no reason to leave them.
    let patient = context.memory.failures(&Key::new(Own::Tenant, None, tenant)) < SHOWN_AFTER;
    for policy in entries.iter().filter(|entry| entry.slot == Slot::Child(ChildKind::NetworkPolicy) && !entry.deleting)
    {
        if failed && context.has_lasted(began) {
            break;
        }
        match context.applier.delete(policy).await {
            Ok(()) => any = true,
            Err(error @ ClusterError::Failed { .. }) if patient => return Err(error.into()),
            Err(error @ (ClusterError::Refused { .. } | ClusterError::Failed { .. })) => {
                failed = true;
                tracing::warn!(tenant, %error, "a network policy of a Tenant that goes stays");
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(any)
}

/// Whether anything of a tenant runs, or is about to.
fn runs(entries: &[Entry], tenant: &str) -> bool {
    entries.iter().filter(|entry| entry.tenant.as_deref() == Some(tenant)).any(|entry| match entry.slot {
        Slot::Pod => true,
        Slot::Child(ChildKind::StatefulSet | ChildKind::Deployment) => entry.desired != Some(0),
        Slot::Child(_) | Slot::Volume => false,
    })
}

/// Whether nothing is left of a fleet but somebody's finalizer: no pass makes anything for it any more, or takes anything down.
pub fn has_ended(context: &Context, entries: &[Entry], fleet: &Entry) -> bool {
    let known = context.fleet(&fleet.namespace, &fleet.name);
    let let_go = known.is_none_or(|known| !has_finalizer(known.meta()));
    fleet.deleting && let_go && sight::bots(entries, Some(&fleet.name)) == State::Missing
}

/// What a Tenant waits for until its fleets have gone: what one of them says that does not only stop its bots.
fn awaited_of_fleets(context: &Context, namespace: &str) -> String {
    let told = context.looked_after(namespace).into_iter().find_map(|guarded| {
        let conditions = &guarded.0.as_ref().ok()?.status.as_ref()?.conditions;
        let ready = status::find(conditions, conditions::READY)?;
        let current = ready.observed_generation == guarded.meta().generation;
        let more = guarded.meta().deletion_timestamp.is_some() && current && ready.reason != reasons::DELETING;
        more.then(|| format!("fleet {}: {}", guarded.name_any(), ready.message))
    });
    told.unwrap_or_else(|| "bots are stopping gracefully".to_owned())
}

/// Asks a fleet's workload for no bots.
async fn stop_fleet(context: &Context, fleet: &Entry) -> Result<(), Outcome> {
    let workload = names::fleet_workload(&fleet.name);
    Ok(context.applier.scale_down(ChildKind::StatefulSet, &fleet.namespace, &workload, 0).await?)
}

/// Deletes a fleet. Where that is refused or fails its bots stop all the same.
async fn end_fleet(context: &Context, fleet: &Entry) -> Result<(), Outcome> {
    match context.applier.delete(fleet).await {
        Err(failed @ (ClusterError::Refused { .. } | ClusterError::Failed { .. } | ClusterError::Transient { .. })) => {
            stop_fleet(context, fleet).await?;
            Err(failed.into())
        }
        done => Ok(done?),
    }
}

/// Deletes a workload. One that somebody's finalizer keeps is asked for no pods, which its controller does not heed but counts, and its
/// pods are stopped.
async fn take_down(context: &Context, workload: &Entry) -> Result<(), Outcome> {
    let Slot::Child(kind) = workload.slot else { return Ok(()) };
    if workload.deleting {
        return stop_all(context, workload, kind).await;
    }
    Ok(context.applier.delete(workload).await?)
}

/// Asks a workload for no pods, and stops those that its controller does not.
async fn stop_all(context: &Context, workload: &Entry, kind: ChildKind) -> Result<(), Outcome> {
    let own = |pod: &Entry| ordinal(&pod.name, &workload.name).is_some();
    scale_and_stop(context, &workload.namespace, (kind, &workload.name), 0, own).await
}

/// Ends the workload of bots. Its controller stops them first: the garbage collector may be behind by thousands of objects, and they would trade
/// on until their turn. Where it cannot be asked for none, or does not do it, it is left to the collector. `key` is whose end it is.
async fn end_bots(context: &Context, entries: &[Entry], set: &Entry, key: &Key) -> Result<(), Outcome> {
    if set.deleting || sight::has_stopped(entries, set) {
        return take_down(context, set).await;
    }
    let lasts = context.memory.ends_for(key, context.clock.monotonic());
    let stopped = stop_all(context, set, ChildKind::StatefulSet).await;
    if matches!(stopped, Err(Outcome::Refused(_))) || lasts > LATE && !stops(entries, set) {
        take_down(context, set).await?;
    }
    stopped
}

/// Whether pods of a workload are left, and each has been told to stop.
fn stops(entries: &[Entry], set: &Entry) -> bool {
    let own = |pod: &&Entry| ordinal(&pod.name, &set.name).is_some() && sight::counts(pod);
    let mut pods = entries.iter().filter(own).peekable();
    pods.peek().is_some() && pods.all(|pod| pod.deleting)
}

/// Lets the Tenant go. Until the watch shows that it has gone another pass may begin with it, and must take nothing down of a
/// successor's.
async fn release(context: &Context, metadata: &ObjectMeta) -> Result<Outcome, Outcome> {
    // Before it goes, or the watch might have shown its end already.
    context.listed.note(Own::Tenant, metadata, context.clock.monotonic());
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
    if let Some(set) = set(&entries, &workload) {
        end_bots(context, &entries, set, &Key::new(Own::BotFleet, Some(namespace), name)).await?;
        return Ok(Outcome::Deleting("bots are stopping gracefully".to_owned()));
    }
    let own = |pod: &Entry| sight::is_bot_of(pod, name);
    let bots = entries.iter().filter(|entry| own(entry)).count();
    if bots > 0 {
        stop_left(context, &entries, own).await?;
        return Ok(Outcome::Deleting(format!("{bots} bots are stopping gracefully")));
    }
    // Who waits for this fleet's end starts on its keys.
    let pods = context.reader.pods(namespace).await?;
    if let Some(bot) = pods.iter().find(|pod| own(pod) && sight::counts(pod)) {
        return Ok(Outcome::Waiting(format!(
            "pod {} is there, and the watch has not shown it: if it stays, it has lost its labels; delete it when it may stop",
            bot.name
        )));
    }
    let claims = names::claim(&workload);
    let volumes = entries.iter().filter(|e| e.slot == Slot::Volume && ordinal(&e.name, &claims).is_some());
    let volumes: Vec<&Entry> = volumes.collect();
    if !volumes.is_empty() && drops_volumes(context, namespace, name).await? {
        drop_volumes(context, &volumes, || !recheck::seems_to_drop(context, namespace, name)).await?;
    }
    context.status.remove_finalizer(Own::BotFleet, metadata).await?;
    Ok(Outcome::Again)
}

/// Volumes go only when the Tenant can be read, says Delete, asks for no such fleet any more, and neither `CustomResourceDefinition` is on its way out.
async fn drops_volumes(context: &Context, namespace: &str, fleet: &str) -> Result<bool, Outcome> {
    let tenant = names::tenant_of_namespace(namespace).and_then(|name| context.tenant(name));
    let Some(Ok(tenant)) = tenant.as_ref().map(|guarded| &guarded.0) else { return Ok(false) };
    Ok(tenant.spec.deletion_policy == DeletionPolicy::Delete
        && context.reader.definition_stays(FLEETS).await?
        && context.reader.definition_stays(TENANTS).await?
        && recheck::drops_fleet(context, &tenant.metadata, fleet).await?)
}

/// Deletes volumes. Many take a while, and before each it is asked whether they may be wanted again meanwhile.
///
/// # Errors
/// `Again` once they may be, or the outcome of a deletion that failed.
pub async fn drop_volumes(context: &Context, volumes: &[&Entry], wanted: impl Fn() -> bool) -> Result<(), Outcome> {
    for volume in volumes {
        if wanted() {
            return Err(Outcome::Again);
        }
        context.applier.delete(volume).await?;
    }
    Ok(())
}

/// Asks a workload for no more than so many pods, and stops those `of` it that nobody else would: also of one that cannot be asked.
///
/// # Errors
/// The outcome of a request that failed. One that is refused or fails holds up no other.
pub async fn scale_and_stop(
    context: &Context,
    namespace: &str,
    (kind, name): (ChildKind, &str),
    replicas: i32,
    of: impl Fn(&Entry) -> bool,
) -> Result<(), Outcome> {
    let mut failed = FirstFailure::default();
    let set = context.index.get(Slot::Child(kind), namespace, name);
    let entries = context.index.namespace(namespace);
    failed.keep(stop_unattended(context, &entries, set.as_ref(), of).await)?;
    let scaled = context.applier.scale_down(kind, namespace, name, replicas).await;
    failed.keep(scaled.map_err(Outcome::from))?;
    failed.told()
}

/// Stops pods that a `StatefulSet` is not wanted to have, and does not know any more.
///
/// # Errors
/// The outcome of a deletion that failed.
pub async fn stop_lost(context: &Context, namespace: &str, name: &str, replicas: i32) -> Result<(), Outcome> {
    let surplus = |name_of_pod: &String| is_surplus(name_of_pod, name, replicas);
    // Each pass comes here, and names are the least that tells that there is nothing to do.
    if !context.index.names(Slot::Pod, namespace).iter().any(surplus) {
        return Ok(());
    }
    let Some(set) = context.index.get(Slot::Child(ChildKind::StatefulSet), namespace, name) else { return Ok(()) };
    let entries = context.index.namespace(namespace);
    // Its controller comes to those that are too many only after all it is to make, and cannot make one whose name a pod has that has lost
    // its labels.
    let own = |pod: &&Entry| pod.slot == Slot::Pod && pod.owner.as_ref() == Some(&set.uid) && !surplus(&pod.name);
    let complete = || i32::try_from(entries.iter().filter(own).count()).is_ok_and(|count| count >= replicas);
    if set.desired.is_some_and(|desired| desired <= replicas) && !complete() {
        return stop_each(context, entries.iter().filter(|pod| pod.slot == Slot::Pod && surplus(&pod.name))).await;
    }
    stop_unattended(context, &entries, Some(&set), |pod| surplus(&pod.name)).await
}

/// Stops bots that nothing else would soon: whose workload is not there, and whose turn the garbage collector may come to late.
async fn stop_left(context: &Context, entries: &[Entry], of: impl Fn(&Entry) -> bool) -> Result<(), Outcome> {
    let known =
        |owner: &String| entries.iter().any(|set| set.slot == Slot::Child(ChildKind::StatefulSet) && set.uid == *owner);
    let left = |pod: &&Entry| pod.slot == Slot::Pod && of(pod) && !pod.owner.as_ref().is_some_and(known);
    let left: Vec<&Entry> = entries.iter().filter(left).collect();
    let mut failed = FirstFailure::default();
    // One that has lost its labels is there and not known, and would make them anew.
    let makers = left.iter().filter(|pod| !pod.deleting).filter_map(|pod| pod.maker());
    let makers = makers.filter(|maker| names::is_fleet_workload(&maker.name));
    let makers: HashMap<String, Entry> = makers.map(|maker| (maker.uid.clone(), maker)).collect();
    for maker in makers.values() {
        failed.keep(context.applier.delete(maker).await.map_err(Outcome::from))?;
    }
    failed.keep(stop_each(context, left.into_iter()).await)?;
    failed.told()
}

/// Stops pods that nobody else would stop, each with its grace period. `set` is the `StatefulSet` whose pods are meant, where there is one.
///
/// # Errors
/// The outcome of a deletion that failed. One that is refused or fails holds up no other.
async fn stop_unattended(
    context: &Context,
    entries: &[Entry],
    set: Option<&Entry>,
    of: impl Fn(&Entry) -> bool,
) -> Result<(), Outcome> {
    stop_each(context, unattended(entries, set, of)).await
}

async fn stop_each(context: &Context, pods: impl Iterator<Item = &Entry>) -> Result<(), Outcome> {
    let mut failed = FirstFailure::default();
    for pod in pods {
        failed.keep(context.applier.delete(pod).await.map_err(Outcome::from))?;
    }
    failed.told()
}

/// Those pods without an owner, which a `StatefulSet` that is replaced around its running pods leaves until there is a new one, or which
/// have lost a label by which it would know them; and those of a set that is on its way out and held by somebody's finalizer, which heeds
/// nothing and makes none anew.
pub fn unattended<'a>(
    entries: &'a [Entry],
    set: Option<&'a Entry>,
    of: impl Fn(&Entry) -> bool + 'a,
) -> impl Iterator<Item = &'a Entry> {
    let leaving = set.filter(|set| set.deleting && set.slot == Slot::Child(ChildKind::StatefulSet));
    entries.iter().filter(move |pod| {
        let alone = match pod.owner.as_deref() {
            None => set.is_none_or(|set| set.deleting || !sight::selects(set, pod)),
            Some(owner) => leaving.is_some_and(|set| set.uid == owner),
        };
        pod.slot == Slot::Pod && alone && of(pod)
    })
}

fn pods(entries: &[Entry], component: Option<Component>) -> usize {
    entries
        .iter()
        .filter(|entry| entry.slot == Slot::Pod)
        .filter(|entry| component.is_none_or(|component| entry.is_of(component)))
        .count()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cluster::index::Facts;

    fn entry(slot: Slot, name: &str, owner: Option<&str>, deleting: bool) -> Entry {
        let mut metadata = json!({"name": name, "namespace": "tenant-a", "uid": name});
        if let Some(owner) = owner {
            metadata["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": owner, "uid": owner, "controller": true}]);
        }
        if deleting {
            metadata["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        Entry::read(slot, &serde_json::from_value(metadata).expect("metadata"), Facts::None).expect("a name")
    }

    #[test]
    fn a_workload_stops_once_each_of_its_pods_has_been_told_to() {
        let set = entry(Slot::Child(ChildKind::StatefulSet), "bots-a", None, false);
        let pod = |name: &str, deleting: bool| entry(Slot::Pod, name, Some("bots-a"), deleting);
        assert!(!stops(&[], &set), "nobody would ever tell that it has stopped");
        assert!(!stops(&[pod("bots-b-0", true)], &set), "another's");
        assert!(!stops(&[pod("bots-a-0", true), pod("bots-a-1", false)], &set));
        assert!(stops(&[pod("bots-a-0", true), pod("bots-a-1", true), pod("bots-b-0", false)], &set));
    }

    #[test]
    fn a_pod_names_who_made_it() {
        let pod = entry(Slot::Pod, "bots-a-b-12", Some("one"), true);
        let maker = pod.maker().expect("a maker");
        let slot = Slot::Child(ChildKind::StatefulSet);
        assert_eq!((maker.slot, &*maker.name, &*maker.uid, maker.deleting), (slot, "bots-a-b", "one", false));
        assert!(entry(Slot::Pod, "bots-a-0", None, false).maker().is_none());
    }

    #[test]
    fn nobody_else_stops_pods_without_an_owner_and_of_a_set_that_is_kept() {
        let workload = |kind: ChildKind, deleting: bool| entry(Slot::Child(kind), "bots-a", None, deleting);
        let pods = [
            entry(Slot::Pod, "bots-a-0", Some("bots-a"), false),
            entry(Slot::Pod, "bots-a-1", None, false),
            entry(Slot::Pod, "bots-b-0", Some("bots-b"), false),
        ];
        let stopped = |set: Option<&Entry>| -> Vec<String> {
            unattended(&pods, set, |_| true).map(|pod| pod.name.clone()).collect()
        };
        assert_eq!(stopped(None), ["bots-a-1"]);
        assert!(stopped(Some(&workload(ChildKind::StatefulSet, false))).is_empty(), "its controller does");
        assert_eq!(stopped(Some(&workload(ChildKind::StatefulSet, true))), ["bots-a-0", "bots-a-1"]);
        assert_eq!(stopped(Some(&workload(ChildKind::Deployment, true))), ["bots-a-1"], "its ReplicaSet makes others");
        let mut quarantined = pods.clone();
        quarantined[0].owner = None;
        quarantined[0].fleet = None;
        let mut set = workload(ChildKind::StatefulSet, false);
        for one in quarantined[1..].iter_mut().chain([&mut set]) {
            one.fleet = Some("a".to_owned());
        }
        let lost: Vec<&str> = unattended(&quarantined, Some(&set), |_| true).map(|pod| &*pod.name).collect();
        assert_eq!(lost, ["bots-a-0"], "its controller does not know it any more");
    }
}

//! What the index tells of workloads: ready or not and why, which pod to replace next, which volumes are left.

use jiff::{SignedDuration, Timestamp};

use crate::cluster::index::{Entry, Facts, Slot};
use crate::domain::names::{self, Component};
use crate::domain::quantity::Cpu;
use crate::plan::ChildKind;

/// One workload as it is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// `StatefulSet` or Deployment.
    pub kind: ChildKind,
    /// Its name.
    pub name: String,
    /// Pods it should have.
    pub replicas: i32,
    /// Hash of what warrants a restart, where the operator itself replaces pods.
    pub restart_hash: Option<String>,
    /// Name of its container.
    pub container: String,
    /// CPU limit of its container; 0 where there is none.
    pub cpu: Cpu,
    /// Seconds that its pods have to stop.
    pub grace_seconds: Option<u32>,
}

/// A workload's pods: those whose name is the workload's and, for a `StatefulSet`, an ordinal.
pub fn pods<'a>(entries: &'a [Entry], wanted: &Wanted) -> impl Iterator<Item = &'a Entry> {
    let set = wanted.kind == ChildKind::StatefulSet;
    entries.iter().filter(move |entry| {
        let rest = entry.name.strip_prefix(wanted.name.as_str()).and_then(|rest| rest.strip_prefix('-'));
        entry.slot == Slot::Pod && rest.is_some_and(|rest| !set || rest.parse::<i32>().is_ok())
    })
}

/// Whether a pod is ready.
pub fn is_ready(pod: &Entry) -> bool {
    matches!(pod.facts, Facts::Pod { ready: true, .. })
}

/// Whether scheduler or kubelet say why a pod does not run.
pub fn has_problem(pod: &Entry) -> bool {
    matches!(pod.facts, Facts::Pod { problem: Some(_), .. })
}

/// How long after its time to stop a bot holds up those of other fleets. Its node may be lost.
const LOST: SignedDuration = SignedDuration::from_mins(10);

/// Whether this is a fleet's workload, and a bot of another fleet of the tenant is on its way down.
pub fn another_bot_stops(entries: &[Entry], wanted: &Wanted, now: Timestamp) -> bool {
    let own = |pod: &Entry| pods(entries, wanted).any(|own| own.name == pod.name);
    let bot = |pod: &Entry| pod.slot == Slot::Pod && pod.is_of(Component::Bot);
    let stops = |pod: &Entry| pod.deleting && pod.ends.is_none_or(|ends| now.duration_since(ends) < LOST);
    names::is_fleet_workload(&wanted.name) && entries.iter().any(|pod| bot(pod) && stops(pod) && !own(pod))
}

/// Pods of a `StatefulSet` that are ready and stay.
fn working(entries: &[Entry], wanted: &Wanted) -> i32 {
    let works = |pod: &&Entry| !pod.deleting && is_ready(pod);
    i32::try_from(pods(entries, wanted).filter(works).count()).unwrap_or(i32::MAX)
}

/// The `StatefulSet` of this name.
pub fn set<'a>(entries: &'a [Entry], name: &str) -> Option<&'a Entry> {
    entries.iter().find(|entry| entry.slot == Slot::Child(ChildKind::StatefulSet) && entry.name == name)
}

/// Whether a `StatefulSet` has all the pods that it asks for, and each of them is ready and stays.
pub fn is_whole(entries: &[Entry], set: &Entry) -> bool {
    let own = |pod: &&Entry| pod.slot == Slot::Pod && ordinal(&pod.name, &set.name).is_some();
    let mut count = 0;
    let whole = entries.iter().filter(own).inspect(|_| count += 1).all(|pod| !pod.deleting && is_ready(pod));
    whole && set.desired == Some(count)
}

/// The ordinal of a `StatefulSet`'s pod, or of a claim named after one.
pub fn ordinal(name: &str, prefix: &str) -> Option<i32> {
    name.strip_prefix(prefix)?.strip_prefix('-')?.parse().ok()
}

/// Whether a pod or claim of this name is one of those that a workload, or its claims, of so many pods does not have.
pub fn is_surplus(name: &str, prefix: &str, replicas: i32) -> bool {
    ordinal(name, prefix).is_some_and(|ordinal| ordinal >= replicas)
}

/// Whether what stands on this workload may start: it is as wanted, or its pods are, and its controller has only not counted them yet.
pub fn serves(entries: &[Entry], wanted: &Wanted, found: &Entry) -> bool {
    // One that has not seen two changes may be about to stop the pod for the first of them.
    let Facts::Workload { observed_generation, .. } = found.facts else { return false };
    let seen = found.generation - observed_generation <= 1;
    let hash = wanted.restart_hash.as_ref().filter(|hash| found.restart_hash.as_ref() == Some(*hash));
    let as_wanted = |pod: &&Entry| is_ready(pod) && !pod.deleting && pod.restart_hash.as_ref() == hash;
    let made = || pods(entries, wanted).filter(as_wanted).count();
    let uncounted = || wanted.replicas > 0 && usize::try_from(wanted.replicas).is_ok_and(|replicas| made() >= replicas);
    seen && hash.is_some() && uncounted() || unready(entries, wanted).is_none()
}

/// Why a workload is not as wanted; `None` when it is.
pub fn unready(entries: &[Entry], wanted: &Wanted) -> Option<String> {
    let found = entries.iter().find(|entry| entry.slot == Slot::Child(wanted.kind) && entry.name == wanted.name);
    let Some(Entry { generation, facts: Facts::Workload { observed_generation, replicas, ready }, .. }) = found else {
        return Some(format!("{} is being created", wanted.name));
    };
    if observed_generation < generation {
        return Some(format!("{} is waiting for its controller", wanted.name));
    }
    if *replicas > wanted.replicas {
        return Some(format!("{} stops: {replicas} of its pods are left", wanted.name));
    }
    // The count lags behind its pods: one that was just deleted still counts for a moment.
    let set = wanted.kind == ChildKind::StatefulSet;
    let ready = if set { (*ready).min(working(entries, wanted)) } else { *ready };
    if ready < wanted.replicas {
        let problem = pods(entries, wanted).find_map(|entry| match &entry.facts {
            Facts::Pod { problem: Some(problem), .. } => Some(format!(" ({}: {problem})", entry.name)),
            Facts::Pod { problem: None, .. } | Facts::Workload { .. } | Facts::None => None,
        });
        return Some(format!("{} {ready}/{} ready{}", wanted.name, wanted.replicas, problem.unwrap_or_default()));
    }
    if wanted.restart_hash.is_some() && wanted.replicas > 0 {
        let stale = pods(entries, wanted).filter(|pod| pod.restart_hash != wanted.restart_hash).count();
        if stale > 0 {
            return Some(format!("{}: {stale} pods still to be replaced, in their turn", wanted.name));
        }
    }
    None
}

/// The next pod to replace because of a changed configuration, image or size; one at a time.
///
/// None while a pod of the workload is on its way down or up, unless that pod is an outdated one that does
/// not work: replacing it is how a broken configuration is mended.
pub fn next_replacement<'a>(entries: &'a [Entry], wanted: &Wanted) -> Option<&'a Entry> {
    let hash = wanted.restart_hash.as_ref()?;
    let current = entries.iter().find(|entry| entry.slot == Slot::Child(wanted.kind) && entry.name == wanted.name)?;
    let Facts::Workload { observed_generation, replicas, .. } = current.facts else { return None };
    // A pod made before the StatefulSet controller saw the new template would be made from the old one.
    if current.deleting
        || observed_generation < current.generation
        || current.restart_hash.as_ref() != Some(hash)
        || replicas > wanted.replicas
    {
        return None;
    }
    let pods: Vec<&Entry> = pods(entries, wanted).collect();
    if pods.iter().any(|pod| pod.deleting) {
        return None;
    }
    let outdated = |pod: &&&Entry| pod.restart_hash.as_ref() != Some(hash);
    if let Some(broken) = pods.iter().filter(outdated).find(|pod| !is_ready(pod)) {
        return Some(broken);
    }
    if pods.iter().any(|pod| !is_ready(pod)) || pods.len() < usize::try_from(wanted.replicas).unwrap_or(0) {
        return None;
    }
    pods.iter().filter(outdated).max_by_key(|pod| ordinal(&pod.name, &wanted.name)).copied()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use serde_json::json;

    use super::*;
    use crate::cluster::index::Asked;

    fn entry(slot: Slot, name: &str, hash: &str, facts: Facts, deleting: bool) -> Entry {
        let annotations = json!({"torpor.dev/restart-hash": hash});
        let mut metadata =
            json!({"name": name, "namespace": "tenant-a", "uid": name, "generation": 2, "annotations": annotations});
        if deleting {
            metadata["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        let metadata: ObjectMeta = serde_json::from_value(metadata).expect("metadata");
        Entry::read(slot, &metadata, facts).expect("a name")
    }

    fn set(hash: &str, seen: i64, replicas: i32, ready: i32) -> Entry {
        let facts = Facts::Workload { observed_generation: seen, replicas, ready };
        entry(Slot::Child(ChildKind::StatefulSet), "bots-a", hash, facts, false)
    }

    fn facts(ready: bool, problem: Option<&str>) -> Facts {
        Facts::Pod { ready, problem: problem.map(str::to_owned), ended: false, starting: !ready, cpu: None }
    }

    fn pod(number: i32, hash: &str, ready: bool) -> Entry {
        entry(Slot::Pod, &format!("bots-a-{number}"), hash, facts(ready, None), false)
    }

    fn wanted() -> Wanted {
        Wanted {
            kind: ChildKind::StatefulSet,
            name: "bots-a".to_owned(),
            replicas: 2,
            restart_hash: Some("new".to_owned()),
            container: "bot".to_owned(),
            cpu: Cpu(200),
            grace_seconds: Some(120),
        }
    }

    fn next(entries: &[Entry]) -> Option<&str> {
        next_replacement(entries, &wanted()).map(|pod| pod.name.as_str())
    }

    #[test]
    fn a_set_is_whole_while_each_of_its_pods_works() {
        let set = set("new", 2, 2, 2).asking(Asked { replicas: Some(2), ..Asked::default() });
        let whole = |entries: &[Entry]| is_whole(entries, &set);
        assert!(whole(&[pod(0, "new", true), pod(1, "old", true)]));
        assert!(!whole(&[pod(0, "new", true)]), "one is missing");
        assert!(!whole(&[pod(0, "new", true), pod(1, "new", false)]), "one is on its way up");
        let leaving = entry(Slot::Pod, "bots-a-1", "old", facts(true, None), true);
        assert!(!whole(&[pod(0, "new", true), leaving]), "one is on its way down");
    }

    #[test]
    fn replaces_one_at_a_time_from_the_top() {
        assert_eq!(next(&[set("new", 2, 2, 2), pod(0, "old", true), pod(1, "old", true)]), Some("bots-a-1"));
        assert_eq!(next(&[set("new", 2, 2, 2), pod(0, "old", true), pod(1, "new", true)]), Some("bots-a-0"));
        assert_eq!(next(&[set("new", 2, 2, 2), pod(0, "new", true), pod(1, "new", true)]), None);
        assert_eq!(
            next(&[set("new", 2, 2, 1), pod(0, "old", true), pod(1, "new", false)]),
            None,
            "one is on its way up"
        );
        let leaving = entry(Slot::Pod, "bots-a-1", "old", facts(true, None), true);
        assert_eq!(next(&[set("new", 2, 2, 2), pod(0, "old", true), leaving]), None, "one is on its way down");
        assert_eq!(next(&[set("new", 2, 1, 1), pod(0, "old", true)]), None, "one is missing");
    }

    #[test]
    fn waits_until_the_controller_has_the_new_template() {
        assert_eq!(next(&[set("new", 1, 2, 2), pod(0, "old", true), pod(1, "old", true)]), None);
        assert_eq!(next(&[set("old", 2, 2, 2), pod(0, "old", true), pod(1, "old", true)]), None);
    }

    #[test]
    fn a_broken_outdated_pod_goes_first() {
        assert_eq!(next(&[set("new", 2, 2, 1), pod(0, "old", false), pod(1, "old", true)]), Some("bots-a-0"));
    }

    #[test]
    fn says_what_is_missing() {
        assert_eq!(unready(&[], &wanted()).as_deref(), Some("bots-a is being created"));
        let problem = Some("Unschedulable: 0/8 nodes");
        let stuck = entry(Slot::Pod, "bots-a-0", "new", facts(false, problem), false);
        assert_eq!(
            unready(&[set("new", 2, 2, 0), stuck], &wanted()).as_deref(),
            Some("bots-a 0/2 ready (bots-a-0: Unschedulable: 0/8 nodes)")
        );
        assert_eq!(unready(&[set("new", 2, 3, 2)], &wanted()).as_deref(), Some("bots-a stops: 3 of its pods are left"));
        let whole = [set("new", 2, 2, 2), pod(0, "new", true), pod(1, "new", true)];
        assert_eq!(unready(&whole, &wanted()), None);
        assert_eq!(unready(&whole[..2], &wanted()).as_deref(), Some("bots-a 1/2 ready"), "the count lags behind");
    }

    #[test]
    fn what_stands_on_it_starts_once_its_pods_are_ready() {
        let serves = |entries: &[Entry]| serves(entries, &wanted(), &entries[0]);
        let uncounted = set("new", 1, 0, 0);
        assert!(serves(&[uncounted.clone(), pod(0, "new", true), pod(1, "new", true)]));
        assert!(!serves(&[uncounted.clone(), pod(0, "new", true)]), "one is missing");
        assert!(!serves(&[uncounted.clone(), pod(0, "new", true), pod(1, "new", false)]), "one is not ready");
        assert!(!serves(&[uncounted.clone(), pod(0, "new", true), pod(1, "old", true)]), "one is made of what was");
        let leaving = entry(Slot::Pod, "bots-a-1", "new", facts(true, None), true);
        assert!(!serves(&[uncounted, pod(0, "new", true), leaving]), "one is on its way down");
        assert!(!serves(&[set("old", 1, 0, 0), pod(0, "new", true), pod(1, "new", true)]), "its template is another");
        assert!(!serves(&[set("new", 0, 0, 0), pod(0, "new", true), pod(1, "new", true)]), "they may be about to stop");
    }
}

//! What the index tells of the parts of a stack, for [`super::steps`] to decide from.

use super::steps::{Seen, Shrunk, State};
use super::workloads::{self, Wanted};
use crate::cluster::index::{Entry, Facts, Slot};
use crate::domain::names::{self, Component};
use crate::plan::ChildKind;

/// Reads the parts. `full` are the tenant's workloads as they are wanted while it is awake, `least` is the database
/// as it is wanted at stage `DatabaseOnly`, where that is wanted. `fleet` narrows bots down to those of one fleet.
pub fn look(entries: &[Entry], full: &[Wanted], least: Option<&Wanted>, fleet: Option<&str>) -> Seen {
    let state = |name: &str, component: Component| {
        full.iter().find(|wanted| wanted.name == name).map_or(State::Missing, |wanted| part(entries, wanted, component))
    };
    Seen {
        database: state(names::DATABASE, Component::Database),
        shrunk: least.map_or(Shrunk::No, |least| shrunk(entries, least)),
        exporter: state(names::MONITORING, Component::Monitoring),
        redis: state(names::REDIS, Component::Redis),
        dashboard: state(names::DASHBOARD, Component::Dashboard),
        bots: bots(entries, fleet),
    }
}

fn part(entries: &[Entry], wanted: &Wanted, component: Component) -> State {
    let found = workload(entries, wanted);
    let state = without_health(found.into_iter(), pods(entries, component, None));
    match state {
        State::Starting if found.is_some_and(|found| workloads::serves(entries, wanted, found)) => State::Ready,
        other => other,
    }
}

/// Bots of all fleets, or of one. Those that are up count as starting: whether they are ready is their fleet's to say.
pub fn bots(entries: &[Entry], fleet: Option<&str>) -> State {
    let of_bots = |entry: &&Entry| {
        entry.slot == Slot::Child(ChildKind::StatefulSet)
            && entry.is_of(Component::Bot)
            && fleet.is_none_or(|fleet| entry.fleet.as_deref() == Some(fleet))
    };
    without_health(entries.iter().filter(of_bots), pods(entries, Component::Bot, fleet))
}

/// Whether this is a pod of the fleet, by its label or by its name: one that has lost the label trades all the same.
pub fn is_bot_of(pod: &Entry, fleet: &str) -> bool {
    pod.slot == Slot::Pod && [pod.fleet.as_deref(), pod.fleet_by_name()].contains(&Some(fleet))
}

/// Whether a `StatefulSet` takes this pod for one of its own, as far as labels go.
pub fn selects(set: &Entry, pod: &Entry) -> bool {
    (&set.tenant, set.component, &set.fleet) == (&pod.tenant, pod.component, &pod.fleet)
}

/// Whether a `StatefulSet` has no pod any more, and makes none.
pub fn has_stopped(entries: &[Entry], set: &Entry) -> bool {
    let own = |pod: &&Entry| workloads::ordinal(&pod.name, &set.name).is_some() && counts(pod);
    let pods = entries.iter().filter(own).count();
    without_health(std::iter::once(set), pods) == State::Gone
}

/// Bots that a fleet has been given. Those of a `StatefulSet` that is not known, as while it is replaced around its pods, are all up to the
/// last one that is there: it makes its pods by number.
pub fn running(entries: &[Entry], fleet: &str) -> i32 {
    let workload = names::fleet_workload(fleet);
    if let Some(set) = workloads::set(entries, &workload) {
        return set.desired.unwrap_or(i32::MAX);
    }
    let pods = entries.iter().filter(|entry| entry.slot == Slot::Pod);
    let last = pods.filter_map(|pod| workloads::ordinal(&pod.name, &workload)).max();
    last.map_or(0, |last| last.saturating_add(1))
}

/// State of the workloads of one part together; one that is up counts as starting.
fn without_health<'a>(workloads: impl Iterator<Item = &'a Entry>, pods: usize) -> State {
    let mut state = if pods > 0 { State::Stopping } else { State::Missing };
    let mut any = false;
    for entry in workloads {
        any = true;
        if entry.desired != Some(0) {
            return State::Starting;
        }
        state = if state == State::Stopping || !has_seen_no_pods(entry) { State::Stopping } else { State::Gone };
    }
    // Pods without a workload run on: it is put anew around them when a volume grows.
    if !any && pods > 0 { State::Starting } else { state }
}

/// Its controller knows what is wanted, and counts no pod. Only then will it make none.
fn has_seen_no_pods(entry: &Entry) -> bool {
    match entry.facts {
        Facts::Workload { observed_generation, replicas, .. } => {
            observed_generation >= entry.generation && replicas == 0
        }
        Facts::None | Facts::Pod { .. } => false,
    }
}

/// Pods of a part, but not an evicted one that nobody deletes. A Deployment's own count leaves out those that stop.
fn pods(entries: &[Entry], component: Component, fleet: Option<&str>) -> usize {
    let is_of = |entry: &Entry| match fleet {
        Some(fleet) => is_bot_of(entry, fleet),
        None => entry.is_of(component),
    };
    entries.iter().filter(|entry| is_of(entry) && counts(entry)).count()
}

/// Whether this is a pod that runs or stops.
pub fn counts(entry: &Entry) -> bool {
    entry.slot == Slot::Pod && (entry.deleting || !matches!(entry.facts, Facts::Pod { ended: true, .. }))
}

fn shrunk(entries: &[Entry], least: &Wanted) -> Shrunk {
    match workload(entries, least) {
        Some(entry) if entry.restart_hash == least.restart_hash => {
            if workloads::unready(entries, least).is_none() {
                Shrunk::Ready
            } else {
                Shrunk::Written
            }
        }
        Some(_) | None => Shrunk::No,
    }
}

fn workload<'a>(entries: &'a [Entry], wanted: &Wanted) -> Option<&'a Entry> {
    entries.iter().find(|entry| entry.slot == Slot::Child(wanted.kind) && entry.name == wanted.name)
}

/// The first of these workloads that would lose pods for a stage by being written as wanted.
pub fn takes_down<'a>(entries: &[Entry], workloads: &'a [Wanted], least: Option<&Wanted>) -> Option<&'a str> {
    let loses = |wanted: &&Wanted| {
        let Some(found) = workload(entries, wanted) else {
            // A StatefulSet that comes back around its running pods with none of them wanted.
            return wanted.replicas == 0 && workloads::pods(entries, wanted).any(|pod| !pod.deleting);
        };
        // One that is on its way out and kept by somebody heeds nothing, and its pods are stopped one by one.
        let kept = || found.deleting && workloads::pods(entries, wanted).any(|pod| !pod.deleting);
        let stops = wanted.replicas == 0 && (found.desired != Some(0) || kept());
        stops || least == Some(*wanted) && found.restart_hash != wanted.restart_hash
    };
    workloads.iter().find(loses).map(|wanted| wanted.name.as_str())
}

/// Whether one of these workloads went down, or came up, after `planned` was made from what was seen: which kept it up until
/// something else would have gone, or down until something else would be ready. Written, it would come up again for a moment, or be
/// stopped. `arrived` are the workloads of the stage.
pub fn is_overtaken(entries: &[Entry], planned: &[Wanted], arrived: &[Wanted]) -> bool {
    planned.iter().any(|planned| {
        let arrived = arrived.iter().find(|wanted| wanted.name == planned.name);
        let (Some(found), Some(arrived)) = (workload(entries, planned), arrived) else { return false };
        let stopped = arrived.replicas == 0 && planned.replicas > 0 && found.desired == Some(0);
        let started = arrived.replicas > 0 && planned.replicas == 0 && found.desired > Some(0);
        let least = planned.restart_hash != arrived.restart_hash && found.restart_hash == arrived.restart_hash;
        stopped || started || least
    })
}

/// Whether the database's pod is about to be replaced by one of the least size.
pub fn replaces_for_least(entries: &[Entry], workloads: &[Wanted], least: Option<&Wanted>) -> bool {
    let planned = least.filter(|least| workloads.contains(least));
    planned.is_some_and(|least| workloads::next_replacement(entries, least).is_some())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use serde_json::json;

    use super::*;
    use crate::cluster::index::Asked;
    use crate::domain::quantity::Cpu;

    fn entry(slot: Slot, name: &str, component: Component, facts: Facts) -> Entry {
        let metadata: ObjectMeta = serde_json::from_value(json!({
            "name": name, "namespace": "tenant-a", "uid": name, "generation": 2,
            "labels": {"app.kubernetes.io/component": component.as_str(), "torpor.dev/fleet": name.split('-').nth(1).unwrap_or_default()},
            "annotations": {"torpor.dev/restart-hash": "full"},
        }))
        .expect("metadata");
        Entry::read(slot, &metadata, facts).expect("a name")
    }

    fn set(name: &str, component: Component, desired: Option<i32>, seen: i64, replicas: i32) -> Entry {
        let facts = Facts::Workload { observed_generation: seen, replicas, ready: replicas };
        entry(Slot::Child(ChildKind::StatefulSet), name, component, facts)
            .asking(Asked { replicas: desired, ..Asked::default() })
    }

    fn pod(name: &str, component: Component, ended: bool) -> Entry {
        entry(
            Slot::Pod,
            name,
            component,
            Facts::Pod { ready: !ended, problem: None, ended, starting: false, cpu: None },
        )
    }

    fn wanted(name: &str, replicas: i32, hash: &str) -> Wanted {
        let restart_hash = Some(hash.to_owned());
        let (container, cpu) = (name.to_owned(), Cpu(200));
        let (kind, name, grace_seconds) = (ChildKind::StatefulSet, name.to_owned(), None);
        Wanted { kind, name, replicas, restart_hash, container, cpu, grace_seconds }
    }

    fn redis(entries: &[Entry]) -> State {
        look(entries, &[wanted("redis", 1, "full")], None, None).redis
    }

    #[test]
    fn what_runs_is_what_the_set_asks_for_or_all_up_to_the_last_pod() {
        let (set, bot) = (
            |desired| set("bots-a", Component::Bot, desired, 2, 3),
            |number: i32| pod(&format!("bots-a-{number}"), Component::Bot, false),
        );
        assert_eq!(running(&[], "a"), 0);
        assert_eq!(running(&[set(Some(1)), bot(0), bot(2)], "a"), 1);
        assert_eq!(running(&[set(None)], "a"), i32::MAX, "unknown is not none");
        assert_eq!(
            running(&[bot(1), bot(2), pod("bots-b-5", Component::Bot, false)], "a"),
            3,
            "the first is being replaced"
        );
    }

    #[test]
    fn gone_means_that_nothing_is_left_and_nothing_will_come() {
        let (set, pod) = (
            |desired, seen, count| set("redis", Component::Redis, desired, seen, count),
            pod("redis-0", Component::Redis, false),
        );
        assert_eq!(redis(&[]), State::Missing);
        assert_eq!(redis(&[set(Some(1), 2, 1), pod.clone()]), State::Ready);
        assert_eq!(redis(&[set(None, 2, 0)]), State::Starting, "unknown is not gone");
        assert_eq!(redis(&[set(Some(0), 1, 1), pod.clone()]), State::Stopping);
        assert_eq!(redis(&[set(Some(0), 1, 0)]), State::Stopping, "its controller may still make one");
        assert_eq!(redis(&[set(Some(0), 2, 0), pod.clone()]), State::Stopping, "the count leaves out what stops");
        assert_eq!(redis(&[set(Some(0), 2, 0), self::pod("redis-0", Component::Redis, true)]), State::Gone, "evicted");
        let mut leaving = self::pod("redis-0", Component::Redis, true);
        leaving.deleting = true;
        assert_eq!(redis(&[set(Some(0), 2, 0), leaving]), State::Stopping, "on its way, and not gone yet");
        assert_eq!(redis(&[set(Some(0), 2, 0)]), State::Gone);
        assert_eq!(redis(&[pod]), State::Starting, "its workload is put anew around it");
    }

    #[test]
    fn a_set_has_stopped_once_its_controller_knows_and_no_pod_of_its_name_is_left() {
        let set = |desired, seen, count| set("bots-a", Component::Bot, Some(desired), seen, count);
        let mut bot = pod("bots-a-0", Component::Bot, false);
        bot.fleet = None;
        let stopped = |entries: &[Entry], set: &Entry| has_stopped(entries, set);
        assert!(stopped(&[], &set(0, 2, 0)));
        assert!(!stopped(&[], &set(0, 1, 0)) && !stopped(&[], &set(1, 2, 0)) && !stopped(&[], &set(0, 2, 1)));
        assert!(!stopped(std::slice::from_ref(&bot), &set(0, 2, 0)), "one without its label");
        assert!(stopped(&[pod("bots-ab-0", Component::Bot, false)], &set(0, 2, 0)), "another fleet's");
        assert_eq!(bots(&[set(0, 2, 0), bot], Some("a")), State::Stopping);
    }

    #[test]
    fn bots_of_one_fleet_or_of_all() {
        let entries = [
            set("bots-a", Component::Bot, Some(0), 2, 0),
            set("bots-b", Component::Bot, Some(2), 2, 2),
            pod("bots-b-0", Component::Bot, false),
        ];
        assert_eq!(bots(&entries, None), State::Starting);
        assert_eq!(bots(&entries, Some("a")), State::Gone);
        assert_eq!(bots(&entries, Some("c")), State::Missing);
        assert_eq!(bots(&entries[..1], None), State::Gone);
    }

    #[test]
    fn what_went_down_or_came_up_meanwhile_stays_so() {
        let (stopped, runs) =
            ([set("redis", Component::Redis, Some(0), 2, 0)], [set("redis", Component::Redis, Some(1), 2, 1)]);
        let (up, down) = ([wanted("redis", 1, "full")], [wanted("redis", 0, "full")]);
        assert!(is_overtaken(&stopped, &up, &down));
        assert!(!is_overtaken(&runs, &up, &down), "it is kept as it is");
        assert!(!is_overtaken(&stopped, &down, &down), "it stays down");
        assert!(!is_overtaken(&stopped, &up, &up), "the stage has it");
        assert!(!is_overtaken(&stopped, &down, &up), "on the way up it waits for others");
        assert!(is_overtaken(&runs, &down, &up), "and has come up meanwhile");
        let mut small = [set("postgres", Component::Database, Some(1), 2, 1)];
        let (full, least) = ([wanted("postgres", 1, "full")], [wanted("postgres", 1, "least")]);
        assert!(!is_overtaken(&small, &full, &least), "it has its full size yet");
        small[0].restart_hash = Some("least".to_owned());
        assert!(is_overtaken(&small, &full, &least));
        assert!(!is_overtaken(&small, &full, &full), "an awake tenant's grows");
    }

    #[test]
    fn only_what_loses_pods_takes_down() {
        let running = set("redis", Component::Redis, Some(1), 2, 1);
        let down = [wanted("redis", 0, "full")];
        assert_eq!(takes_down(std::slice::from_ref(&running), &down, None), Some("redis"));
        assert_eq!(takes_down(&[set("redis", Component::Redis, Some(0), 2, 0)], &down, None), None, "down already");
        assert_eq!(takes_down(&[], &down, None), None, "never was");
        assert_eq!(takes_down(&[running], &[wanted("redis", 1, "new")], None), None, "a new image is no sleep");
        let database = |hash: &str| {
            let mut entry = set("postgres", Component::Database, Some(1), 2, 1);
            entry.restart_hash = Some(hash.to_owned());
            entry
        };
        let least = wanted("postgres", 1, "least");
        let planned = std::slice::from_ref(&least);
        assert_eq!(takes_down(&[database("full")], planned, Some(&least)), Some("postgres"));
        assert_eq!(takes_down(&[database("full")], planned, None), None, "a new size while awake is no sleep");
        assert_eq!(takes_down(&[database("least")], planned, Some(&least)), None);
        let replaces = |pods: &[Entry], planned: &[Wanted]| {
            let entries = [&[database("least")], pods].concat();
            replaces_for_least(&entries, planned, Some(&least))
        };
        let full = pod("postgres-0", Component::Database, false);
        assert!(replaces(std::slice::from_ref(&full), planned));
        assert!(!replaces(&[], planned));
        assert!(!replaces(&[full], &[wanted("postgres", 1, "full")]), "the least size is not its turn yet");
    }
}

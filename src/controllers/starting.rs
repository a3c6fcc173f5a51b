//! Which pods get more CPU while they start, and which give it back.
//!
//! A bot needs four seconds of processor time before it trades; with a limit of 200m that is twenty seconds in which its
//! user waits. So a pod of a waking tenant may use more until it is ready, by a change of its resources in place, which
//! restarts nothing. Decided from what the pods say now, like everything else: a crash between the two leaves a pod
//! with more than its tier gives until the next pass.

use super::workloads::{Wanted, pods};
use crate::cluster::index::{Entry, Facts, Slot};
use crate::domain::quantity::Cpu;

/// Pods of a waking tenant that may have more CPU at once: the dashboard and three bots. The others of a large tenant
/// start with their own limits until it is their turn.
const STARTING_AT_ONCE: usize = 4;

/// One change of a running pod.
#[derive(Clone, Copy, Debug)]
pub struct Resize<'a> {
    /// The pod.
    pub pod: &'a Entry,
    /// Its container.
    pub container: &'a str,
    /// The CPU limit it gets.
    pub limit: Cpu,
}

/// The changes that are due for these workloads of a tenant, whose pods are all among `entries`. `start` is what a
/// starting pod may use while its tenant is helped, `helps`. A limit that somebody else has set stays.
pub fn resizes<'a>(entries: &'a [Entry], workloads: &'a [Wanted], start: Cpu, helps: bool) -> Vec<Resize<'a>> {
    let already = entries.iter().filter(|pod| pod.slot == Slot::Pod && pod.changed_in_part && is_starting(pod)).count();
    let mut room = STARTING_AT_ONCE.saturating_sub(already);
    let mut due = Vec::new();
    for wanted in workloads {
        for pod in pods(entries, wanted).filter(|pod| !pod.deleting) {
            let Facts::Pod { cpu: Some(cpu), .. } = pod.facts else { continue };
            let change = |limit| Resize { pod, container: &wanted.container, limit };
            let helped = helps && is_starting(pod);
            if helped && !pod.changed_in_part && cpu == wanted.cpu && cpu < start && room > 0 {
                room -= 1;
                due.push(change(start));
            } else if !helped && pod.changed_in_part && cpu > wanted.cpu {
                due.push(change(wanted.cpu));
            }
        }
    }
    due
}

fn is_starting(pod: &Entry) -> bool {
    matches!(pod.facts, Facts::Pod { starting: true, .. })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use serde_json::json;

    use super::*;
    use crate::plan::ChildKind;

    const OWN: Cpu = Cpu(200);
    const START: Cpu = Cpu(1_000);

    fn pod(number: usize, starting: bool, cpu: Cpu, manager: &str) -> Entry {
        let fields = json!([{"manager": manager, "operation": "Update", "subresource": "resize"}]);
        let metadata = json!({"name": format!("bots-a-{number}"), "namespace": "tenant-a", "managedFields": fields});
        let metadata: ObjectMeta = serde_json::from_value(metadata).expect("metadata");
        let facts = Facts::Pod { ready: !starting, problem: None, ended: false, starting, cpu: Some(cpu) };
        Entry::read(Slot::Pod, &metadata, facts).expect("a name")
    }

    fn fresh(number: usize) -> Entry {
        pod(number, true, OWN, "kubelet")
    }

    fn due(entries: &[Entry], waking: bool) -> Vec<(String, Cpu)> {
        let wanted = Wanted {
            kind: ChildKind::StatefulSet,
            name: "bots-a".to_owned(),
            replicas: 9,
            restart_hash: None,
            container: "bot".to_owned(),
            cpu: OWN,
            grace_seconds: None,
        };
        let workloads = [wanted];
        let due = resizes(entries, &workloads, START, waking);
        due.into_iter().map(|change| (change.pod.name.clone(), change.limit)).collect()
    }

    #[test]
    fn a_starting_pod_gets_more_until_it_is_ready() {
        let more = vec![("bots-a-0".to_owned(), START)];
        let own = vec![("bots-a-0".to_owned(), OWN)];
        assert_eq!(due(&[fresh(0)], true), more);
        assert_eq!(due(&[fresh(0)], false), [], "nobody waits for a bot of an awake tenant");
        assert_eq!(due(&[pod(0, true, START, "torpor-operator")], true), [], "it has more already");
        assert_eq!(due(&[pod(0, false, START, "torpor-operator")], true), own);
        assert_eq!(due(&[pod(0, true, START, "torpor-operator")], false), own, "its tenant wakes no more");
        assert_eq!(due(&[pod(0, false, OWN, "torpor-operator")], true), []);
    }

    #[test]
    fn limits_of_others_stay() {
        assert_eq!(due(&[pod(0, true, Cpu(300), "vpa")], true), []);
        assert_eq!(due(&[pod(0, false, START, "vpa")], false), []);
    }

    #[test]
    fn only_four_at_once() {
        let all: Vec<Entry> = (0..9).map(fresh).collect();
        assert_eq!(due(&all, true).len(), 4);
        let some: Vec<Entry> =
            (0..3).map(|n| pod(n, true, START, "torpor-operator")).chain((3..9).map(fresh)).collect();
        assert_eq!(due(&some, true), [("bots-a-3".to_owned(), START)]);
        let leaving = {
            let mut pod = fresh(0);
            pod.deleting = true;
            pod
        };
        assert_eq!(due(&[leaving], true), []);
    }
}

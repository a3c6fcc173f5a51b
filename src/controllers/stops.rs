//! Pods that are told to stop: when each must have gone, and which has not.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::sight;
use crate::cluster::index::{Entry, Slot};

/// What the kubelet takes beyond the grace period to kill, to clean up and to say so. Clocks differ a little, too.
const SLACK: SignedDuration = SignedDuration::from_secs(2);

/// Pods on their way out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stops {
    /// Who has outlived its grace period, in a sentence.
    pub overdue: Option<String>,
    /// How long until the next one would have.
    pub next: Option<Duration>,
}

/// Looks at the pods of a tenant, or of one of its fleets. A deletion's time has the grace period counted in.
pub fn of(entries: &[Entry], fleet: Option<&str>, now: Timestamp) -> Stops {
    let stopping = entries
        .iter()
        .filter(|entry| entry.slot == Slot::Pod && fleet.is_none_or(|fleet| sight::is_bot_of(entry, fleet)))
        .filter_map(|entry| Some((entry, entry.ends?)));
    let (overdue, due): (Vec<_>, Vec<_>) = stopping.partition(|(_, ends)| now.duration_since(*ends) > SLACK);
    let first = overdue.iter().min_by_key(|(entry, _)| &entry.name);
    let sentence = first.map(|(pod, ends)| {
        let others = match overdue.len() {
            1 => String::new(),
            count => format!(" (and {} more)", count - 1),
        };
        format!(
            "pod {}{others} should have stopped by {ends} and is still there; its kubelet ends it, Torpor forces \
             nothing. If its node is lost, see docs/operations.md",
            pod.name
        )
    });
    let next = due.iter().map(|(_, ends)| *ends).min().map(|ends| {
        // A moment later, so that the pass does not come just before.
        Duration::try_from(ends.duration_since(now) + SLACK).unwrap_or_default() + Duration::from_millis(100)
    });
    Stops { overdue: sentence, next }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use serde_json::json;

    use super::*;
    use crate::cluster::index::Facts;

    fn pod(name: &str, fleet: &str, ends: Option<&str>) -> Entry {
        let mut metadata =
            json!({"name": name, "namespace": "tenant-a", "uid": name, "labels": {"torpor.dev/fleet": fleet}});
        if let Some(ends) = ends {
            metadata["deletionTimestamp"] = json!(ends);
        }
        let metadata: ObjectMeta = serde_json::from_value(metadata).expect("metadata");
        Entry::read(Slot::Pod, &metadata, Facts::None).expect("a name")
    }

    #[test]
    fn a_pod_is_overdue_after_its_grace_and_some_slack() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().expect("a time");
        let pods = [
            pod("bots-a-0", "a", None),
            pod("bots-a-1", "a", Some("2026-01-01T00:00:57Z")),
            pod("bots-a-2", "a", Some("2026-01-01T00:00:58Z")),
            pod("bots-b-0", "b", Some("2026-01-01T00:01:30Z")),
        ];
        let all = of(&pods, None, now);
        assert!(all.overdue.as_deref().is_some_and(|text| text.starts_with("pod bots-a-1 should have stopped")));
        assert_eq!(all.next, Some(Duration::from_millis(100)), "the next is due at once");
        let other = of(&pods, Some("b"), now);
        assert_eq!(other, Stops { overdue: None, next: Some(Duration::from_millis(32_100)) });
        assert_eq!(of(&pods[..1], None, now), Stops::default());
        let later = of(&pods, None, "2026-01-01T00:05:00Z".parse().expect("a time"));
        assert!(later.overdue.is_some_and(|text| text.contains("(and 2 more)")) && later.next.is_none());
    }
}

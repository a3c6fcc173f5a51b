//! Counts tenants by tier and state for the metrics, from memory and without a request.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::context::{Context, Guarded};
use crate::api::conditions::{HIBERNATED, READY, STALLED, reasons};
use crate::api::tenant::WakeStatus;
use crate::api::{BotFleet, Condition, ConditionStatus, Tenant, Tier};
use crate::metrics::Metrics;
use crate::status::find;

/// Half of Prometheus' usual scrape interval.
const INTERVAL: Duration = Duration::from_secs(15);

/// Every state, so that one that nobody is in any more goes to 0.
const STATES: [&str; 4] = ["awake", "asleep", "working", "stalled"];

/// Every reason for which a tenant can be working, for the same purpose.
const WORKING: [&str; 7] = [
    reasons::PROGRESSING,
    reasons::WAKING_UP,
    reasons::GOING_TO_SLEEP,
    reasons::STOP_OVERDUE,
    reasons::WAITING,
    reasons::RETRYING,
    reasons::DELETING,
];

/// In place of a tier: that of a Tenant which cannot be read.
const UNKNOWN: &str = "unknown";

fn holds(conditions: &[Condition], type_: &str) -> bool {
    find(conditions, type_).is_some_and(|condition| condition.status == ConditionStatus::True)
}

fn state(conditions: &[Condition]) -> &'static str {
    if holds(conditions, STALLED) {
        "stalled"
    } else if !holds(conditions, READY) {
        "working"
    } else if holds(conditions, HIBERNATED) {
        "asleep"
    } else {
        "awake"
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Census {
    /// How many, by tier and state.
    counts: BTreeMap<(Tier, &'static str), usize>,
    unread: usize,
    awake: usize,
    /// For how many seconds the one that has been working for longest has not been Ready, by the reason that it has now.
    longest: BTreeMap<&'static str, u64>,
}

impl Census {
    fn count(&mut self, tenant: &Guarded<Tenant>, now: Timestamp) {
        let Ok(tenant) = &tenant.0 else {
            self.unread += 1;
            return;
        };
        let conditions = tenant.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        let state = state(conditions);
        self.awake += usize::from(!holds(conditions, HIBERNATED));
        *self.counts.entry((tenant.spec.tier, state)).or_default() += 1;
        if state != "working" {
            return;
        }
        let ready = find(conditions, READY);
        let wake = tenant.status.as_ref().and_then(|status| status.wake.as_ref());
        // One of which nothing was said yet is in the same place as one whose pods are awaited.
        let reason = ready.map_or(reasons::PROGRESSING, |ready| ready.reason.as_str());
        let made = tenant.metadata.creation_timestamp.as_ref().map(|made| made.0);
        let asked = wake.filter(|_| reason == reasons::WAKING_UP).and_then(WakeStatus::under_way_since);
        let since = asked.or(ready.map(|ready| ready.last_transition_time)).or(made);
        self.lasts(reason, since.unwrap_or(now), now);
    }

    /// Of fleets only that a bot does not stop: one that is deleted is no longer among what its Tenant tells of.
    fn count_fleet(&mut self, fleet: &Guarded<BotFleet>, now: Timestamp) {
        let conditions = fleet.0.as_ref().ok().and_then(|fleet| fleet.status.as_ref()).map(|status| &status.conditions);
        let ready = conditions.and_then(|conditions| find(conditions, READY));
        if let Some(overdue) = ready.filter(|ready| ready.reason == reasons::STOP_OVERDUE) {
            self.lasts(reasons::STOP_OVERDUE, overdue.last_transition_time, now);
        }
    }

    fn lasts(&mut self, reason: &str, since: Timestamp, now: Timestamp) {
        if let Some(reason) = WORKING.into_iter().find(|known| *known == reason) {
            let seconds = u64::try_from(now.duration_since(since).as_secs()).unwrap_or_default();
            let longest = self.longest.entry(reason).or_default();
            *longest = seconds.max(*longest);
        }
    }

    fn tell(&self, metrics: &Metrics) {
        metrics.set_tenants(UNKNOWN, "stalled", self.unread);
        for tier in Tier::ALL {
            for state in STATES {
                let count = self.counts.get(&(tier, state)).copied().unwrap_or_default();
                metrics.set_tenants(tier.as_str(), state, count);
            }
        }
        for reason in WORKING {
            metrics.set_longest_unready(reason, self.longest.get(reason).copied().unwrap_or_default());
        }
    }
}

/// Counts for good.
pub async fn run(context: Arc<Context>) {
    loop {
        let (mut census, now) = (Census::default(), context.clock.now());
        for tenant in context.tenants.state() {
            census.count(&tenant, now);
        }
        for fleet in context.fleets.state() {
            census.count_fleet(&fleet, now);
        }
        context.rollout.awake(census.awake);
        context.metrics.set_rolling(context.rollout.concerned(context.clock.monotonic()));
        census.tell(&context.metrics);
        tokio::time::sleep(INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn tenant(conditions: Value) -> Guarded<Tenant> {
        let tenant = json!({
            "apiVersion": "torpor.dev/v1alpha1", "kind": "Tenant", "spec": {"tier": "free"}, "status": {"conditions": conditions},
            "metadata": {"name": "a", "creationTimestamp": "2026-01-01T00:00:00Z"},
        });
        serde_json::from_value(tenant).expect("a tenant")
    }

    fn is(type_: &str, status: &str, reason: &str, since: &str) -> Value {
        json!({"type": type_, "status": status, "reason": reason, "message": "", "lastTransitionTime": since})
    }

    #[test]
    fn the_one_that_has_been_waking_for_longest_is_told() {
        let (early, late) = ("2026-01-01T00:10:00Z", "2026-01-01T00:50:00Z");
        let tenants = [
            tenant(json!([])),
            tenant(json!([is(READY, "False", reasons::WAKING_UP, early)])),
            tenant(json!([is(READY, "False", reasons::WAKING_UP, late)])),
            tenant(json!([is(READY, "True", reasons::READY, early)])),
            tenant(json!([is(READY, "True", reasons::ASLEEP, early), is(HIBERNATED, "True", reasons::ASLEEP, early)])),
            tenant(json!([is(READY, "False", reasons::REFUSED, early), is(STALLED, "True", reasons::REFUSED, early)])),
        ];
        let mut census = Census::default();
        let now = "2026-01-01T01:00:00Z".parse().expect("a time");
        for tenant in &tenants {
            census.count(tenant, now);
        }
        let counts = [("awake", 1), ("asleep", 1), ("working", 3), ("stalled", 1)];
        assert_eq!(census.counts, counts.map(|(state, count)| ((Tier::Free, state), count)).into());
        assert_eq!(census.longest, [(reasons::WAKING_UP, 3000), (reasons::PROGRESSING, 3600)].into());
        assert_eq!(census.awake, 5);
        let fleet = json!({
            "apiVersion": "torpor.dev/v1alpha1", "kind": "BotFleet", "metadata": {"name": "a", "namespace": "tenant-a"},
            "spec": {"strategy": {"kind": "v1", "config": "x"}},
            "status": {"conditions": [is(READY, "False", reasons::STOP_OVERDUE, late)]},
        });
        census.count_fleet(&serde_json::from_value(fleet).expect("a BotFleet"), now);
        assert_eq!(census.longest[reasons::STOP_OVERDUE], 600);
        let metrics = Metrics::new("1");
        census.tell(&metrics);
        Census::default().tell(&metrics);
        assert!(metrics.encode().contains("torpor_longest_unready_seconds{reason=\"WakingUp\"} 0\n"));
    }
}

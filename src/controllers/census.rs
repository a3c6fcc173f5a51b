//! Counts tenants by tier and state for the metrics, from memory and without a request.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::context::Context;
use crate::api::conditions::{HIBERNATED, READY, STALLED};
use crate::api::{Condition, ConditionStatus, Tier};
use crate::status::find;

/// Half of Prometheus' usual scrape interval.
const INTERVAL: Duration = Duration::from_secs(15);

/// Every state, so that one that nobody is in any more goes to 0.
const STATES: [&str; 4] = ["awake", "asleep", "working", "stalled"];

/// In place of a tier: that of a Tenant which cannot be read.
const UNKNOWN: &str = "unknown";

fn state(conditions: &[Condition]) -> &'static str {
    let holds = |type_| find(conditions, type_).is_some_and(|condition| condition.status == ConditionStatus::True);
    if holds(STALLED) {
        "stalled"
    } else if !holds(READY) {
        "working"
    } else if holds(HIBERNATED) {
        "asleep"
    } else {
        "awake"
    }
}

/// Counts for good.
pub async fn run(context: Arc<Context>) {
    loop {
        let mut counts: BTreeMap<(Tier, &str), usize> = BTreeMap::new();
        let mut unread = 0;
        for guarded in context.tenants.state() {
            let Ok(tenant) = &guarded.0 else {
                unread += 1;
                continue;
            };
            let conditions = tenant.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
            *counts.entry((tenant.spec.tier, state(conditions))).or_default() += 1;
        }
        context.metrics.set_tenants(UNKNOWN, "stalled", unread);
        for tier in Tier::ALL {
            for state in STATES {
                let count = counts.get(&(tier, state)).copied().unwrap_or_default();
                context.metrics.set_tenants(tier.as_str(), state, count);
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

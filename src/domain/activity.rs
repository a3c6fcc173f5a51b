//! When a tenant's user was last seen, told from what its Tenant carries.

use jiff::Timestamp;
use kube::ResourceExt;

use super::names::annotation;
use super::stage::SleepFacts;
use crate::api::Tenant;

/// The facts that decide a tenant's stage. An unreadable annotation counts as absent;
/// missing activity counts from creation.
pub fn facts(tenant: &Tenant) -> SleepFacts {
    let status = tenant.status.as_ref();
    let annotated = |key: &str| tenant.annotations().get(key).and_then(|text| text.parse::<Timestamp>().ok());
    let newest = [
        tenant.metadata.creation_timestamp.as_ref().map(|time| time.0),
        status.and_then(|status| status.last_activity_time),
        annotated(annotation::LAST_ACTIVITY),
        annotated(annotation::WAKE_REQUESTED_AT),
    ];
    let decision = status.and_then(|status| status.hibernation.as_ref()).and_then(|sleep| sleep.decision.as_ref());
    SleepFacts {
        suspended: tenant.spec.suspended,
        // Without any time at all nothing can be newer, and the tenant stays awake.
        newest_activity: newest.into_iter().flatten().max().unwrap_or(Timestamp::MAX),
        sleep_requested_at: annotated(annotation::SLEEP_REQUESTED_AT),
        decision: decision.map(|decision| (decision.stage, decision.based_on)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::stage::{Stage, effective_stage};

    fn stage(suspended: bool, annotations: serde_json::Value, status: serde_json::Value) -> Stage {
        let tenant: Tenant = serde_json::from_value(json!({
            "apiVersion": "torpor.dev/v1alpha1", "kind": "Tenant",
            "metadata": {"name": "a", "creationTimestamp": "2026-01-01T00:00:00Z", "annotations": annotations},
            "spec": {"tier": "free", "suspended": suspended},
            "status": status,
        }))
        .expect("a tenant");
        effective_stage(&facts(&tenant))
    }

    #[test]
    fn a_decision_holds_only_for_the_newest_activity() {
        let decision =
            |based_on: &str| json!({"hibernation": {"decision": {"stage": "BotsStopped", "basedOn": based_on}}});
        assert_eq!(stage(false, json!({}), decision("2026-01-01T00:00:00Z")), Stage::BotsStopped);
        assert_eq!(stage(false, json!({}), decision("2025-12-31T00:00:00Z")), Stage::Active);
        let login = json!({"torpor.dev/last-activity": "2026-01-02T00:00:00Z"});
        assert_eq!(stage(false, login.clone(), decision("2026-01-01T00:00:00Z")), Stage::Active);
        assert_eq!(stage(false, login, decision("2026-01-02T00:00:00Z")), Stage::BotsStopped);
        let wake = json!({"torpor.dev/wake-requested-at": "2026-01-03T00:00:00Z"});
        assert_eq!(stage(false, wake, decision("2026-01-01T00:00:00Z")), Stage::Active);
    }

    #[test]
    fn a_sleep_request_must_be_newer_than_activity() {
        let annotations = |sleep: &str| json!({"torpor.dev/sleep-requested-at": sleep, "torpor.dev/last-activity": "2026-01-02T00:00:00Z"});
        assert_eq!(stage(false, annotations("2026-01-02T00:00:01Z"), json!({})), Stage::DatabaseOnly);
        assert_eq!(stage(false, annotations("2026-01-02T00:00:00Z"), json!({})), Stage::Active, "a tie means awake");
        assert_eq!(stage(false, annotations("soon"), json!({})), Stage::Active, "unreadable means awake");
        assert_eq!(stage(true, annotations("soon"), json!({})), Stage::DatabaseOnly, "suspension asks nobody");
    }
}

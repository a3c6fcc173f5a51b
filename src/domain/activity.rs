//! When a tenant's user was last seen, told from what its Tenant carries.

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use super::names::annotation;
use super::stage::SleepFacts;
use crate::api::Tenant;

/// What a Tenant tells of its user's activity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Activity {
    /// The newest of portal login, annotations, creation and the end of a suspension. A Tenant without any time
    /// counts as active for ever, and so does one whose suspension has ended and whose end is not recorded yet.
    pub newest: Timestamp,
    /// The newest time that somebody reported, which creation and suspension are not.
    pub reported: Option<Timestamp>,
    /// When manual sleep was last asked for, by annotation and through the gateway.
    pub sleep_requests: [Option<Timestamp>; 2],
    /// Annotations that hold no time.
    pub malformed: Vec<&'static str>,
}

/// Clocks of whoever reports times and of ours may differ by so much before a time counts as lying in the future.
const SKEW: SignedDuration = SignedDuration::from_mins(1);

/// Whether a time lies in the future, clocks that differ a little apart.
pub fn in_future(at: Timestamp, now: Timestamp) -> bool {
    at.duration_since(now) > SKEW
}

/// From when on that time no longer lies in the future.
pub fn comes_true(at: Timestamp) -> Timestamp {
    at.checked_sub(SKEW).unwrap_or(Timestamp::MIN)
}

impl Activity {
    /// Something that tells of activity cannot be read, so the newest may be unknown, and the tenant stays awake.
    pub fn doubtful(&self) -> bool {
        self.malformed.iter().any(|key| [annotation::LAST_ACTIVITY, annotation::WAKE_REQUESTED_AT].contains(key))
    }

    /// When manual sleep was asked for. A request that names a time in the future is most likely a mistake, and no
    /// later activity would be newer; it does not count before that time, and hides no other one.
    pub fn sleep_request(&self, now: Timestamp) -> Option<Timestamp> {
        self.sleep_request_of(|at| !in_future(*at, now))
    }

    /// The newest sleep request of those that `count`.
    pub fn sleep_request_of(&self, count: impl Fn(&Timestamp) -> bool) -> Option<Timestamp> {
        self.sleep_requests.into_iter().flatten().filter(count).max()
    }

    /// The newest activity if it lies in the future.
    pub fn ahead(&self, now: Timestamp) -> Option<Timestamp> {
        Some(self.newest).filter(|newest| *newest != Timestamp::MAX && in_future(*newest, now))
    }

    /// The next sleep request that lies in the future.
    pub fn sleep_request_ahead(&self, now: Timestamp) -> Option<Timestamp> {
        self.sleep_requests.into_iter().flatten().filter(|at| in_future(*at, now)).min()
    }
}

/// Reads it. An annotation that holds no time counts as absent.
pub fn read(tenant: &Tenant) -> Activity {
    let status = tenant.status.as_ref();
    let sleep = status.and_then(|status| status.hibernation.as_ref());
    let mut malformed = Vec::new();
    let mut annotated = |key: &'static str| {
        let time = tenant.annotations().get(key)?.parse::<Timestamp>().ok();
        if time.is_none() {
            malformed.push(key);
        }
        time
    };
    let requests = status.and_then(|status| status.requests.as_ref());
    let reported = [
        status.and_then(|status| status.last_activity_time),
        requests.and_then(|requests| requests.wake_requested_at),
        annotated(annotation::LAST_ACTIVITY),
        annotated(annotation::WAKE_REQUESTED_AT),
    ];
    let reported = reported.into_iter().flatten().max();
    let by_gateway = requests.and_then(|requests| requests.sleep_requested_at);
    let sleep_requests = [annotated(annotation::SLEEP_REQUESTED_AT), by_gateway];
    let created = tenant.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let resumed = sleep.and_then(|sleep| sleep.resumed_at);
    let resumes = !tenant.spec.suspended && sleep.is_some_and(|sleep| sleep.suspended_since.is_some());
    let newest = [reported, created, resumed].into_iter().flatten().max().filter(|_| !resumes);
    Activity { newest: newest.unwrap_or(Timestamp::MAX), reported, sleep_requests, malformed }
}

/// The facts that decide a tenant's stage at `now`.
pub fn facts(tenant: &Tenant, now: Timestamp) -> SleepFacts {
    let activity = read(tenant);
    let sleep = tenant.status.as_ref().and_then(|status| status.hibernation.as_ref());
    let decision = sleep.and_then(|sleep| sleep.decision.as_ref());
    SleepFacts {
        suspended: tenant.spec.suspended,
        doubtful: activity.doubtful(),
        newest_activity: activity.newest,
        sleep_requested_at: activity.sleep_request(now),
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
        effective_stage(&facts(&tenant, "2026-06-01T00:00:00Z".parse().expect("a time")))
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
        assert_eq!(stage(false, annotations("2026-06-01T00:01:00Z"), json!({})), Stage::DatabaseOnly, "clocks differ");
        assert_eq!(stage(false, annotations("2026-06-01T00:01:01Z"), json!({})), Stage::Active, "not before its time");
        assert_eq!(stage(true, annotations("soon"), json!({})), Stage::DatabaseOnly, "suspension asks nobody");
    }

    #[test]
    fn requests_through_the_gateway_count_like_annotations() {
        let status = |requests: serde_json::Value| {
            json!({
                "requests": requests,
                "hibernation": {"decision": {"stage": "BotsStopped", "basedOn": "2026-01-01T00:00:00Z"}},
            })
        };
        assert_eq!(stage(false, json!({}), status(json!({}))), Stage::BotsStopped);
        let wake = json!({"wakeRequestedAt": "2026-01-02T00:00:00Z"});
        assert_eq!(stage(false, json!({}), status(wake)), Stage::Active);
        let sleep = |at: &str| status(json!({"wakeRequestedAt": "2026-01-02T00:00:00Z", "sleepRequestedAt": at}));
        assert_eq!(stage(false, json!({}), sleep("2026-01-03T00:00:00Z")), Stage::DatabaseOnly);
        assert_eq!(stage(false, json!({}), sleep("2026-01-02T00:00:00Z")), Stage::Active, "a tie means awake");
        let newer = json!({"torpor.dev/sleep-requested-at": "2026-01-04T00:00:00Z"});
        assert_eq!(stage(false, newer, sleep("2026-01-02T00:00:00Z")), Stage::DatabaseOnly, "the newer of the two");
        let mistake = json!({"torpor.dev/sleep-requested-at": "2062-01-01T00:00:00Z"});
        assert_eq!(stage(false, mistake, sleep("2026-01-03T00:00:00Z")), Stage::DatabaseOnly, "it hides no other one");
        let mistake = json!({"torpor.dev/sleep-requested-at": "2026-01-03T00:00:00Z"});
        assert_eq!(stage(false, mistake, sleep("2062-01-01T00:00:00Z")), Stage::DatabaseOnly, "it hides no other one");
    }

    #[test]
    fn activity_that_cannot_be_read_keeps_awake() {
        let status = json!({"hibernation": {"decision": {"stage": "DatabaseOnly", "basedOn": "2026-01-01T00:00:00Z"}}});
        assert_eq!(stage(false, json!({}), status.clone()), Stage::DatabaseOnly);
        for key in ["torpor.dev/last-activity", "torpor.dev/wake-requested-at"] {
            let asked = json!({key: "today", "torpor.dev/sleep-requested-at": "2026-01-03T00:00:00Z"});
            assert_eq!(stage(false, asked.clone(), status.clone()), Stage::Active, "{key}");
            assert_eq!(stage(true, asked, status.clone()), Stage::DatabaseOnly, "suspension asks nobody");
        }
    }

    #[test]
    fn the_end_of_a_suspension_is_activity() {
        let slept = |sleep: serde_json::Value| {
            let mut sleep = sleep;
            sleep["decision"] = json!({"stage": "DatabaseOnly", "basedOn": "2026-01-01T00:00:00Z"});
            json!({"hibernation": sleep})
        };
        assert_eq!(stage(false, json!({}), slept(json!({}))), Stage::DatabaseOnly);
        let suspended = slept(json!({"suspendedSince": "2026-01-02T00:00:00Z"}));
        assert_eq!(stage(true, json!({}), suspended.clone()), Stage::DatabaseOnly);
        assert_eq!(stage(false, json!({}), suspended), Stage::Active, "lifted, and not recorded yet");
        assert_eq!(stage(false, json!({}), slept(json!({"resumedAt": "2026-01-03T00:00:00Z"}))), Stage::Active);
    }
}

use serde_json::{Value, json};

use super::*;

fn facts(change: impl FnOnce(&mut Value)) -> Facts {
    let mut tenant = json!({
        "apiVersion": "torpor.dev/v1alpha1", "kind": "Tenant",
        "metadata": {"name": "a", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z", "annotations": {}},
        "spec": {"tier": "pro"},
        "status": {"hibernation": {}},
    });
    change(&mut tenant);
    Facts::read(&serde_json::from_value(tenant).expect("a Tenant"), &Catalog::default()).expect("not deleted")
}

/// Later than everything that these tests approve.
const NOW: &str = "2027-01-01T00:00:00Z";

fn at(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

fn now_written(facts: &Facts, now: &str) -> Written {
    written(facts, &View::of(facts, None, at(now)), Beyond::default(), at(now))
}

/// The facts after that was written.
fn after(mut facts: Facts, new: Written) -> Facts {
    facts.decision = Some(new.decision);
    facts.conditions = new.conditions;
    facts
}

#[test]
fn a_tenant_that_goes_is_nobodys_concern() {
    let tenant: Tenant = serde_json::from_value(json!({
        "apiVersion": "torpor.dev/v1alpha1", "kind": "Tenant", "spec": {"tier": "pro"},
        "metadata": {"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z"},
    }))
    .expect("a Tenant");
    assert!(Facts::read(&tenant, &Catalog::default()).is_none());
}

#[test]
fn approvals_belong_to_the_period_in_which_they_are_first_seen() {
    let approved = |record: Value, managed: Option<&str>| {
        facts(|tenant| {
            tenant["metadata"]["annotations"]["torpor.dev/hibernate"] = "approved".into();
            tenant["status"]["hibernation"] = record;
            if let Some(time) = managed {
                let fields = json!({"f:metadata": {"f:annotations": {"f:torpor.dev/hibernate": {}}}});
                tenant["metadata"]["managedFields"] = json!([{"time": time, "fieldsV1": fields}]);
            }
        })
        .approved_for(at(NOW))
    };
    let decided = |approved_for: &str| json!({"decision": {"stage": "Active", "basedOn": "2026-01-01T00:00:00Z", "approvedFor": approved_for}});
    let created = Some(at("2026-01-01T00:00:00Z"));
    assert_eq!(facts(|_| ()).approved_for(at(NOW)), None);
    assert_eq!(approved(json!({}), None), created);
    assert_eq!(approved(json!({}), Some("2026-01-01T00:00:00Z")), created, "in the same second");
    assert_eq!(approved(json!({}), Some("2025-12-31T23:59:59Z")), Some(at("2025-12-31T23:59:59Z")));
    assert_eq!(
        approved(decided("2025-06-01T00:00:00Z"), None),
        Some(at("2025-06-01T00:00:00Z")),
        "recorded for another"
    );
}

#[test]
fn a_policy_that_contradicts_itself_keeps_awake() {
    let odd = facts(|tenant| tenant["spec"]["hibernation"] = json!({"mode": "Auto", "stopBotsAfter": "60d"}));
    let view = View::of(&odd, None, at("2027-01-01T00:00:00Z"));
    assert_eq!((view.due.stage, view.due.why), (Stage::Active, Why::Doubtful));
}

#[test]
fn an_old_approval_is_told_from_a_missing_one() {
    let message = |facts: &Facts| now_written(facts, "2026-06-01T00:00:00Z").decision.held.expect("held");
    assert!(message(&facts(|_| ())).contains("set the annotation torpor.dev/hibernate=approved"));
    let old = facts(|tenant| {
        tenant["metadata"]["annotations"]["torpor.dev/hibernate"] = "approved".into();
        tenant["status"]["hibernation"]["decision"] =
            json!({"stage": "Active", "basedOn": "2025-01-01T00:00:00Z", "approvedFor": "2025-01-01T00:00:00Z"});
    });
    assert!(message(&old).contains("remove it, then set it again"));
}

#[test]
fn a_sleep_request_counts_from_its_time_on() {
    let asked = facts(|tenant| {
        tenant["metadata"]["annotations"]["torpor.dev/sleep-requested-at"] = "2026-01-03T00:00:00Z".into();
    });
    let stage = |now: &str| View::of(&asked, None, at(now)).due.stage;
    assert_eq!(stage("2026-01-02T23:58:59Z"), Stage::Active);
    assert_eq!(stage("2026-01-02T23:59:00Z"), Stage::DatabaseOnly, "clocks differ by a minute");
    let early = at("2026-01-02T00:00:00Z");
    assert_eq!(asked.comes_true_at(early), Some(at("2026-01-02T23:59:00Z")));
    let told = invalid(&asked, early).expect("worth a word");
    assert!(told.reason == reasons::FUTURE && told.message.contains("sleep-requested-at names 2026-01-03T00:00:00Z"));
    assert_eq!(invalid(&asked, at("2026-01-02T23:59:00Z")), None);
}

#[test]
fn an_approval_counts_from_its_time_on() {
    let approved = facts(|tenant| {
        tenant["status"]["requests"] = json!({"hibernationApprovedAt": "2026-01-03T00:00:00Z"});
    });
    assert_eq!(approved.comes_true_at(at("2026-01-02T00:00:00Z")), Some(at("2026-01-02T23:59:00Z")));
    assert_eq!(approved.comes_true_at(at("2026-01-02T23:59:00Z")), None);
}

#[test]
fn activity_that_cannot_be_read_beats_a_sleep_request() {
    let odd = facts(|tenant| {
        tenant["metadata"]["annotations"] =
            json!({"torpor.dev/last-activity": "now", "torpor.dev/sleep-requested-at": "2026-01-03T00:00:00Z"});
    });
    let view = View::of(&odd, None, at("2026-01-04T00:00:00Z"));
    assert_eq!((view.due.stage, view.due.why), (Stage::Active, Why::Doubtful));
}

#[test]
fn a_warning_that_was_given_up_is_remembered_by_the_next_process() {
    let facts = facts(|tenant| {
        tenant["spec"]["tier"] = "free".into();
        tenant["status"]["hibernation"]["decision"] = json!({
            "stage": "Active", "basedOn": "2026-01-01T00:00:00Z",
            "warnedFor": "2026-01-08T00:00:00Z", "warnedStage": "BotsStopped",
        });
        tenant["status"]["conditions"] = json!([{
            "type": "WarningFailed", "status": "True", "reason": "WebhookFailed", "message": "m",
            "lastTransitionTime": "2026-01-05T00:00:00Z",
        }]);
    });
    let failed = |written: Written| written.conditions.iter().any(|condition| condition.type_ == WARNING_FAILED);
    assert!(failed(now_written(&facts, "2026-01-06T00:00:00Z")));
    let notice = Notice {
        kind: NoticeKind::Warning,
        stage: Stage::ServicesStopped,
        due_at: at("2026-01-15T00:00:00Z"),
        deadline: at("2026-01-15T00:00:00Z"),
    };
    let now = at("2026-01-14T00:00:00Z");
    let next = written(&facts, &View::of(&facts, Some(&notice), now), Beyond::default(), now);
    assert!(!failed(next), "the next one was delivered");
}

#[test]
fn somebodys_long_words_fit_into_a_status() {
    let asleep = facts(|tenant| tenant["spec"]["tier"] = "free".into());
    let now = at("2026-03-01T00:00:00Z");
    let words = "ü".repeat(5_000);
    let beyond = Beyond { breaker: Some(&words), ..Beyond::default() };
    let held = written(&asleep, &View::of(&asleep, None, now), beyond, now).decision.held.expect("held");
    assert_eq!(held.chars().count(), 1_000);
}

#[test]
fn nothing_is_written_twice() {
    for (now, auto) in
        [("2026-01-02T00:00:00Z", false), ("2026-06-01T00:00:00Z", false), ("2026-06-01T00:00:00Z", true)]
    {
        let facts = facts(|tenant| {
            if auto {
                tenant["spec"]["hibernation"] = json!({"mode": "Auto"});
            }
        });
        let first = now_written(&facts, now);
        assert!(worth_writing(&facts, &first));
        let facts = after(facts, first);
        let second = now_written(&facts, now);
        assert!(!worth_writing(&facts, &second), "{now}: {second:?}");
    }
}

#[test]
fn each_part_of_a_decision_is_worth_a_write() {
    let facts = facts(|_| ());
    let first = now_written(&facts, "2026-01-02T00:00:00Z");
    let facts = after(facts, first.clone());
    let changes: [fn(&mut Written); 9] = [
        |new| new.decision.stage = Stage::BotsStopped,
        |new| new.decision.held = Some("held".to_owned()),
        |new| new.decision.warned_for = Some(Timestamp::MAX),
        |new| new.decision.warned_stage = Some(Stage::BotsStopped),
        |new| new.decision.asked_for = Some(Timestamp::MAX),
        |new| new.decision.asked_stage = Some(Stage::DatabaseOnly),
        |new| new.decision.approved_for = Some(Timestamp::MAX),
        |new| new.decision.next_transition_time = None,
        |new| new.decision.reason = None,
    ];
    for change in changes {
        let mut new = first.clone();
        change(&mut new);
        assert!(worth_writing(&facts, &new), "{new:?}");
    }
    let mut new = first.clone();
    new.conditions = vec![condition(
        &[],
        SLEEP_HELD,
        &holds(reasons::BREAKER_OPEN, "m"),
        Seen { generation: 1, now: at("2026-01-02T00:00:00Z") },
    )];
    assert!(worth_writing(&facts, &new));
    let mut unknown = first.clone();
    unknown.decision.stage = Stage::DatabaseOnly;
    unknown.decision.based_on = Timestamp::MAX;
    assert!(!worth_writing(&facts, &unknown), "the end of a suspension is not recorded yet");
    let mut moved = first;
    moved.decision.based_on = at("2026-01-01T12:00:00Z");
    assert!(!worth_writing(&facts, &moved), "a login alone is not");
}

#[test]
fn an_approval_through_the_gateway_names_its_own_period() {
    let approved = |when: &str, activity: &str| {
        facts(|tenant| {
            tenant["status"]["requests"] = json!({"hibernationApprovedAt": when});
            tenant["status"]["lastActivityTime"] = activity.into();
        })
        .approved_for(at(NOW))
    };
    let activity = "2026-02-01T00:00:00Z";
    assert_eq!(approved("2026-02-02T00:00:00Z", activity), Some(at(activity)));
    assert_eq!(approved(activity, activity), Some(at(activity)), "agreed in the moment of the login");
    assert_eq!(approved("2026-01-31T23:59:59Z", activity), None, "for an earlier period");
    assert_eq!(approved("9999-12-30T00:00:00Z", activity), None, "nobody can have agreed in the future");
}

//! What a request of a user changes in a Tenant's status: pure functions of the Tenant as it is and the time.
//!
//! Every time that is written is newer than what it has to beat, whatever the clocks of three replicas say: a wake is
//! always newer than the newest activity and than the sleep request, or it would not wake.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::api::Tenant;
use crate::api::tenant::Decision;
use crate::domain::activity::{self, Activity};
use crate::domain::stage::{Stage, effective_stage};

/// Activity of a tenant that is awake is written at most this often, and more often only where it sleeps so soon that
/// this would be felt.
pub const COALESCE: SignedDuration = SignedDuration::from_mins(5);
/// So far ahead of our clock a sleep request may be and still be beaten: clocks of replicas differ by less.
const CLOCKS: SignedDuration = SignedDuration::from_mins(5);

/// What somebody asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// The user was seen.
    Activity,
    /// The tenant is to wake.
    Wake,
    /// The user was seen at this moment, which is past: a link that was made then was followed.
    Follow(Timestamp),
    /// The tenant is to sleep.
    Sleep,
    /// The user agrees that the tenant sleeps when it is due.
    Approve,
}

/// Why a request cannot have its effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Hindered {
    /// Only whoever suspended the tenant can wake it.
    #[error("the tenant is suspended; it wakes when the suspension is lifted")]
    Suspended,
    /// Nothing could be newer than that activity, and what is tied to it would reach too far.
    #[error("the tenant's newest activity lies in the future, so the request would not have its effect now")]
    ActivityAhead,
    /// Whatever else is said, such a tenant stays awake.
    #[error("an annotation that tells of the tenant's activity cannot be read, so it stays awake")]
    Unreadable,
    /// Somebody has come while it was tried.
    #[error("the user has come since this was asked for; ask again if it is still wanted")]
    Overtaken,
    /// The end of a suspension is not recorded yet.
    #[error("the tenant's suspension was lifted a moment ago; try again")]
    Resuming,
}

/// The fields of `status` to write, as a merge patch; `None` where the Tenant says it already.
///
/// # Errors
/// [`Hindered`] where writing would not do what was asked for.
pub fn change(ask: Ask, tenant: &Tenant, now: Timestamp) -> Result<Option<Value>, Hindered> {
    let now = whole_millisecond(now);
    let known = activity::read(tenant);
    // Our clock may be the one that is behind. Whoever enacts the request may count it already.
    let past = |at: &Timestamp| at.duration_since(now) <= CLOCKS || noted_at(tenant).is_some_and(|noted| *at <= noted);
    let asked = known.sleep_request_of(past);
    let asleep = effective_stage(&activity::facts(tenant, now.max(asked.unwrap_or(now)))) > Stage::Active;
    let suspended = tenant.spec.suspended;
    let newest = if asleep && !suspended { known.newest } else { told(tenant, &known, now) };
    let approved = approved_at(tenant).filter(|at| *at >= newest && at.duration_since(now) <= CLOCKS);
    let beaten = newest.max(asked.unwrap_or(Timestamp::MIN)).max(approved.unwrap_or(Timestamp::MIN));
    if matches!(ask, Ask::Sleep | Ask::Approve) {
        if known.newest == Timestamp::MAX {
            return Err(Hindered::Resuming);
        }
        if known.ahead(now).is_some() {
            return Err(Hindered::ActivityAhead);
        }
        if known.doubtful() && !suspended {
            return Err(Hindered::Unreadable);
        }
    }
    // An approval counts until the next activity, so after one that activity is news, whichever way it was given; and so it is after a
    // request to sleep that has no effect only because something lies in the future.
    let decision = decision(tenant);
    let for_it = |decision: &Decision| decision.approved_for.is_some_and(|at| at == newest && at < Timestamp::MAX);
    let hindered = || known.ahead(now).is_some() && asked.is_some_and(|at| at > newest);
    let voids = approved.is_some() || decision.is_some_and(for_it) || hindered();
    let news = |at: Timestamp| voids || at.duration_since(newest) >= interval(decision);
    Ok(match ask {
        Ask::Wake if suspended => return Err(Hindered::Suspended),
        Ask::Wake if asleep => Some(wake(newer(now, beaten))),
        Ask::Activity if asleep && !suspended => Some(json!({"lastActivityTime": newer(now, beaten)})),
        Ask::Activity | Ask::Wake => news(now).then(|| json!({"lastActivityTime": newer(now, beaten)})),
        // A login at that moment. It wakes once: later it is no news any more.
        Ask::Follow(at) if at <= beaten => None,
        Ask::Follow(at) if asleep && !suspended => Some(wake(at)),
        Ask::Follow(at) => news(at).then(|| json!({"lastActivityTime": at})),
        Ask::Sleep if asleep && asked.is_some_and(|at| at > known.newest) => None,
        Ask::Sleep => Some(json!({"requests": {"sleepRequestedAt": newer(now, known.newest)}})),
        Ask::Approve if approved.is_some() => None,
        Ask::Approve => Some(json!({"requests": {"hibernationApprovedAt": now.max(known.newest)}})),
    })
}

/// Whether the Tenant's status says what was to be written.
pub fn says(tenant: &Tenant, fields: &Value) -> bool {
    fn holds(known: &Value, wanted: &Value) -> bool {
        match wanted.as_object() {
            Some(wanted) => wanted.iter().all(|(key, wanted)| holds(&known[key], wanted)),
            None => known == wanted,
        }
    }
    serde_json::to_value(&tenant.status).is_ok_and(|status| holds(&status, fields))
}

/// The latest time at which another process has noted something: by then it was that late for somebody, however far our own
/// clock is behind.
fn noted_at(tenant: &Tenant) -> Option<Timestamp> {
    let sleep = tenant.status.as_ref()?.hibernation.as_ref()?;
    let decided = sleep.decision.as_ref().and_then(|decision| decision.decided_at);
    decided.max(sleep.since)
}

/// The activity that a tenant which is awake is known to have had. What lies in the future is a mistake: when it is corrected only what
/// was told here is left, so that alone counts meanwhile.
fn told(tenant: &Tenant, known: &Activity, now: Timestamp) -> Timestamp {
    if known.ahead(now).is_none() {
        return known.newest;
    }
    let last = tenant.status.as_ref().and_then(|status| status.last_activity_time);
    let created = || tenant.metadata.creation_timestamp.as_ref().map(|time| time.0);
    last.or_else(created).unwrap_or(known.newest)
}

fn approved_at(tenant: &Tenant) -> Option<Timestamp> {
    tenant.status.as_ref()?.requests.as_ref()?.hibernation_approved_at
}

fn decision(tenant: &Tenant) -> Option<&Decision> {
    tenant.status.as_ref()?.hibernation.as_ref()?.decision.as_deref()
}

/// How old the newest activity must be before another one is worth a write: the time until the tenant sleeps is felt in
/// days, and where it is minutes, a 24th of it is.
fn interval(decision: Option<&Decision>) -> SignedDuration {
    let idle = decision.and_then(|decision| Some(decision.next_transition_time?.duration_since(decision.based_on)));
    let share = idle.filter(SignedDuration::is_positive).map_or(COALESCE, |idle| idle / 24);
    share.clamp(SignedDuration::from_secs(1), COALESCE)
}

/// A wake is activity, too, so that the time until the next sleep begins anew.
fn wake(at: Timestamp) -> Value {
    json!({"lastActivityTime": at, "requests": {"wakeRequestedAt": at}})
}

fn newer(now: Timestamp, beaten: Timestamp) -> Timestamp {
    if now > beaten { now } else { beaten.saturating_add(SignedDuration::from_millis(1)).unwrap_or(Timestamp::MAX) }
}

fn whole_millisecond(at: Timestamp) -> Timestamp {
    Timestamp::from_millisecond(at.as_millisecond()).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-06-01T00:00:00Z";

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn tenant(status: Value) -> Tenant {
        serde_json::from_value(json!({
            "apiVersion": "torpor.dev/v1alpha1", "kind": "Tenant",
            "metadata": {"name": "a", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"tier": "basic"}, "status": status,
        }))
        .expect("a Tenant")
    }

    fn suspended() -> Tenant {
        let mut tenant = tenant(json!({}));
        tenant.spec.suspended = true;
        tenant
    }

    fn asleep() -> Tenant {
        tenant(json!({
            "lastActivityTime": "2026-02-01T00:00:00Z",
            "hibernation": {"decision": {"stage": "DatabaseOnly", "basedOn": "2026-02-01T00:00:00Z"}},
        }))
    }

    fn changed(ask: Ask, tenant: &Tenant) -> Option<Value> {
        change(ask, tenant, at(NOW)).expect("an effect")
    }

    /// The Tenant after that was written.
    fn after(tenant: &Tenant, change: &Value) -> Tenant {
        let mut value = serde_json::to_value(tenant).expect("JSON");
        for (key, field) in change.as_object().expect("an object") {
            match field {
                Value::Object(inner) => inner.iter().for_each(|(k, v)| value["status"][key][k] = v.clone()),
                other => value["status"][key] = other.clone(),
            }
        }
        serde_json::from_value(value).expect("a Tenant")
    }

    #[test]
    fn what_was_written_is_recognised() {
        for ask in [Ask::Activity, Ask::Wake, Ask::Sleep, Ask::Approve] {
            let before = asleep();
            let before =
                if ask == Ask::Sleep { tenant(json!({"lastActivityTime": "2026-05-01T00:00:00Z"})) } else { before };
            let fields = changed(ask, &before).expect("something to write");
            assert!(!says(&before, &fields), "{ask:?}");
            assert!(says(&after(&before, &fields), &fields), "{ask:?}");
        }
    }

    #[test]
    fn activity_is_written_when_it_is_news() {
        let active = |last: &str| tenant(json!({"lastActivityTime": last}));
        assert_eq!(changed(Ask::Activity, &active("2026-05-31T23:55:01Z")), None, "less than five minutes ago");
        assert_eq!(changed(Ask::Activity, &active("2026-05-31T23:55:00Z")), Some(json!({"lastActivityTime": NOW})));
        assert_eq!(changed(Ask::Activity, &active("2026-06-01T09:00:00Z")), None, "it never moves back");
        let woken = after(&asleep(), &changed(Ask::Activity, &asleep()).expect("news"));
        assert_eq!(effective_stage(&activity::facts(&woken, at(NOW))), Stage::Active);
        assert_eq!(changed(Ask::Activity, &woken), None, "once is enough, also while it still wakes");
        let idle = suspended();
        assert_eq!(
            changed(Ask::Activity, &idle),
            Some(json!({"lastActivityTime": NOW})),
            "noted, though it cannot wake"
        );
        assert_eq!(changed(Ask::Activity, &after(&idle, &json!({"lastActivityTime": NOW}))), None);
    }

    #[test]
    fn a_wake_wakes_whatever_clocks_say() {
        let awake = |last: &str| tenant(json!({"lastActivityTime": last}));
        assert_eq!(changed(Ask::Wake, &awake("2026-05-31T23:58:00Z")), None, "awake already");
        let seen = changed(Ask::Wake, &awake("2026-05-31T23:50:00Z"));
        assert_eq!(seen, Some(json!({"lastActivityTime": NOW})), "whoever wakes it was seen");
        let woken = changed(Ask::Wake, &asleep()).expect("a change");
        assert_eq!(woken, wake(at(NOW)));
        assert_eq!(changed(Ask::Wake, &after(&asleep(), &woken)), None, "idempotent");
        for ahead in ["2026-06-01T00:00:00Z", "2026-06-01T00:00:40Z", "2026-06-01T00:04:00Z", "2026-06-01T00:30:00Z"] {
            let sleeping = [
                json!({"requests": {"sleepRequestedAt": ahead}}),
                json!({"lastActivityTime": ahead, "hibernation": {"decision": {"stage": "BotsStopped", "basedOn": ahead}}}),
            ];
            for status in sleeping {
                let sleeping = tenant(status);
                let Some(change) = changed(Ask::Wake, &sleeping) else { continue };
                let stage = effective_stage(&activity::facts(&after(&sleeping, &change), at(NOW)));
                assert_eq!(stage, Stage::Active, "{ahead}: {change}");
            }
        }
        assert_eq!(change(Ask::Wake, &suspended(), at(NOW)), Err(Hindered::Suspended));
    }

    #[test]
    fn a_clock_that_went_back_by_a_month_wakes_who_was_put_to_sleep() {
        let requested = "2026-07-01T00:00:00Z";
        let sleeping = |decided: &str, stage: &str| {
            tenant(json!({
                "lastActivityTime": "2026-06-30T00:00:00Z", "requests": {"sleepRequestedAt": requested},
                "hibernation": {"stage": stage, "since": decided,
                    "decision": {"stage": stage, "basedOn": "2026-06-30T00:00:00Z", "decidedAt": decided}},
            }))
        };
        for ask in [Ask::Wake, Ask::Activity] {
            let sleeping = sleeping("2026-07-01T00:00:03Z", "DatabaseOnly");
            let woken = after(&sleeping, &changed(ask, &sleeping).expect("a change"));
            let stage = effective_stage(&activity::facts(&woken, at("2026-07-01T00:01:00Z")));
            assert_eq!(stage, Stage::Active, "{ask:?}");
        }
        // Nobody has acted on that one: it is a mistake, and activity is not moved behind it.
        let change = changed(Ask::Wake, &sleeping("2026-06-30T23:00:00Z", "BotsStopped")).expect("a change");
        assert_eq!(change, wake(at("2026-06-30T00:00:00.001Z")));
    }

    #[test]
    fn a_link_wakes_once() {
        let made = at("2026-05-31T23:59:00Z");
        let woken = changed(Ask::Follow(made), &asleep()).expect("a change");
        assert_eq!(woken, wake(made));
        let woken = after(&asleep(), &woken);
        assert_eq!(changed(Ask::Follow(made), &woken), None);
        let slept = after(&woken, &json!({"requests": {"sleepRequestedAt": "2026-05-31T23:59:30Z"}}));
        assert_eq!(changed(Ask::Follow(made), &slept), None, "it was put to sleep after the link was made");
        assert!(changed(Ask::Follow(at("2026-05-31T23:59:31Z")), &slept).is_some());
        let awake = tenant(json!({"lastActivityTime": "2026-05-31T23:50:00Z"}));
        assert_eq!(changed(Ask::Follow(made), &awake), Some(json!({"lastActivityTime": made})), "seen, though awake");
        assert_eq!(changed(Ask::Follow(made), &after(&awake, &json!({"lastActivityTime": made}))), None);
        assert_eq!(
            changed(Ask::Follow(made), &suspended()),
            Some(json!({"lastActivityTime": made})),
            "it stays asleep"
        );
    }

    #[test]
    fn who_sleeps_soon_is_seen_often() {
        let idle = |next: &str, last: &str| {
            tenant(json!({
                "lastActivityTime": last,
                "hibernation": {"decision": {"stage": "Active", "basedOn": "2026-05-31T23:58:00Z", "nextTransitionTime": next}},
            }))
        };
        let four_minutes = "2026-06-01T00:02:00Z";
        assert_eq!(changed(Ask::Activity, &idle(four_minutes, "2026-05-31T23:59:51Z")), None);
        assert!(changed(Ask::Activity, &idle(four_minutes, "2026-05-31T23:59:50Z")).is_some());
        assert_eq!(changed(Ask::Activity, &idle("2026-06-07T00:00:00Z", "2026-05-31T23:55:01Z")), None);
    }

    #[test]
    fn a_login_is_recorded_while_an_annotation_lies_in_the_future() {
        let mistaken = |mut tenant: Tenant| {
            let year = "2062-06-01T00:00:00Z".to_owned();
            tenant.metadata.annotations = Some([("torpor.dev/last-activity".to_owned(), year)].into());
            tenant
        };
        let noted = Some(json!({"lastActivityTime": NOW}));
        let seen = |last: &str| mistaken(tenant(json!({"lastActivityTime": last})));
        for ask in [Ask::Activity, Ask::Wake] {
            assert_eq!(changed(ask, &mistaken(tenant(json!({})))), noted, "news since it was made");
            assert_eq!(changed(ask, &seen("2026-05-31T23:55:00Z")), noted);
            assert_eq!(changed(ask, &seen("2026-05-31T23:55:01Z")), None, "less than five minutes ago");
            assert_eq!(changed(ask, &seen("2026-06-01T01:00:00Z")), None, "it never moves back");
            assert_eq!(changed(ask, &seen("2063-01-01T00:00:00Z")), None, "it never moves back");
        }
        let made = at("2026-05-31T23:59:00Z");
        let followed = Some(json!({"lastActivityTime": made}));
        assert_eq!(changed(Ask::Follow(made), &seen("2026-05-31T23:50:00Z")), followed);
        assert_eq!(changed(Ask::Follow(made), &seen("2026-05-31T23:58:00Z")), None);
        let mut idle = seen("2026-05-31T23:50:00Z");
        idle.spec.suspended = true;
        assert_eq!(changed(Ask::Activity, &idle), noted, "noted, though it cannot wake");
        // What was asked for before the mistake has its effect as soon as that is corrected, and the login is the newer one.
        for requests in [
            json!({"sleepRequestedAt": "2026-05-31T23:59:30Z"}),
            json!({"hibernationApprovedAt": "2026-05-31T23:59:30Z"}),
        ] {
            let asked = mistaken(tenant(json!({"lastActivityTime": "2026-05-31T23:59:00Z", "requests": requests})));
            assert_eq!(changed(Ask::Activity, &asked), noted, "{requests}");
            assert_eq!(changed(Ask::Activity, &after(&asked, &json!({"lastActivityTime": NOW}))), None, "once");
        }
        // Whoever sleeps is woken by what is newer than everything.
        let year = "2026-06-01T00:30:00Z";
        let sleeping = tenant(json!({
            "lastActivityTime": "2026-02-01T00:00:00Z", "requests": {"wakeRequestedAt": year},
            "hibernation": {"decision": {"stage": "DatabaseOnly", "basedOn": year}},
        }));
        assert_eq!(changed(Ask::Wake, &sleeping), Some(wake(at("2026-06-01T00:30:00.001Z"))));
        assert_eq!(changed(Ask::Follow(made), &sleeping), None);
    }

    #[test]
    fn nothing_is_tied_to_a_time_that_nobody_has_seen() {
        let ahead = tenant(json!({"lastActivityTime": "2026-07-01T00:00:00Z"}));
        let resuming = tenant(json!({"hibernation": {"suspendedSince": "2026-05-01T00:00:00Z"}}));
        for ask in [Ask::Sleep, Ask::Approve] {
            assert_eq!(change(ask, &ahead, at(NOW)), Err(Hindered::ActivityAhead));
            assert_eq!(change(ask, &resuming, at(NOW)), Err(Hindered::Resuming));
            let mut unreadable = tenant(json!({}));
            kube::ResourceExt::annotations_mut(&mut unreadable)
                .insert("torpor.dev/last-activity".to_owned(), "today".to_owned());
            assert_eq!(change(ask, &unreadable, at(NOW)), Err(Hindered::Unreadable));
        }
    }

    #[test]
    fn sleep_beats_the_newest_activity_and_nothing_in_the_future() {
        let active = tenant(json!({"lastActivityTime": "2026-06-01T00:00:30Z"}));
        let slept = changed(Ask::Sleep, &active).expect("a change");
        assert_eq!(slept, json!({"requests": {"sleepRequestedAt": "2026-06-01T00:00:30.001Z"}}));
        let slept = after(&active, &slept);
        assert_eq!(effective_stage(&activity::facts(&slept, at(NOW))), Stage::DatabaseOnly);
        assert_eq!(changed(Ask::Sleep, &slept), None, "idempotent");
        assert!(changed(Ask::Sleep, &asleep()).is_some(), "deeper than it sleeps, perhaps");
    }

    #[test]
    fn an_approval_is_given_once_for_a_period() {
        let given = changed(Ask::Approve, &asleep()).expect("a change");
        assert_eq!(given, json!({"requests": {"hibernationApprovedAt": NOW}}));
        let approved = after(&asleep(), &given);
        assert_eq!(changed(Ask::Approve, &approved), None);
        let next = after(&approved, &json!({"lastActivityTime": "2026-06-01T00:00:10Z"}));
        let again = changed(Ask::Approve, &next).expect("another period");
        assert_eq!(again["requests"]["hibernationApprovedAt"], "2026-06-01T00:00:10Z");
        let recent = tenant(json!({
            "lastActivityTime": "2026-05-31T23:58:00Z", "requests": {"hibernationApprovedAt": "2026-06-01T00:00:20Z"},
        }));
        let voided = changed(Ask::Activity, &recent).expect("a login voids an approval, however soon it comes");
        assert_eq!(voided, json!({"lastActivityTime": "2026-06-01T00:00:20.001Z"}));
    }

    #[test]
    fn a_login_voids_an_approval_by_annotation_however_soon_it_comes() {
        let last = "2026-05-31T23:58:00Z";
        let approved = |period: &str| {
            tenant(json!({
                "lastActivityTime": last,
                "hibernation": {"decision": {"stage": "Active", "basedOn": last, "approvedFor": period}},
            }))
        };
        for ask in [Ask::Activity, Ask::Wake] {
            let voided = changed(ask, &approved(last)).expect("a login soon after the approval");
            assert_eq!(voided, json!({"lastActivityTime": NOW}));
            assert_eq!(changed(ask, &after(&approved(last), &voided)), None, "once is enough");
            assert_eq!(changed(ask, &approved("2026-05-01T00:00:00Z")), None, "another period's is void already");
        }
        let made = at("2026-05-31T23:59:00Z");
        assert_eq!(changed(Ask::Follow(made), &approved(last)), Some(json!({"lastActivityTime": made})));
        let given = changed(Ask::Approve, &approved(last)).expect("nobody has approved through the gateway");
        assert_eq!(given, json!({"requests": {"hibernationApprovedAt": NOW}}));
        // The end of a suspension is not recorded yet: no time is newer than that.
        let resuming = tenant(json!({
            "hibernation": {
                "suspendedSince": "2026-05-01T00:00:00Z",
                "decision": {"stage": "Active", "basedOn": last, "approvedFor": Timestamp::MAX},
            },
        }));
        assert_eq!(changed(Ask::Activity, &resuming), None);
    }
}

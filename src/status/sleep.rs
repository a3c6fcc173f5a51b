//! Sleep and wake in the status of Tenants and `BotFleets`.

use jiff::{SignedDuration, Timestamp};

use super::{find, whole_second};
use crate::api::conditions::{HIBERNATED, reasons};
use crate::api::tenant::{HibernationStatus, WakeStatus};
use crate::api::{Condition, ConditionStatus};
use crate::controllers::outcome::Verdict;
use crate::domain::activity;
use crate::domain::stage::Stage;

/// Where a tenant is between two stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The stage that is wanted.
    pub wanted: Stage,
    /// The stage that was last reached in full.
    pub reached: Stage,
    /// Something is still to go down for the wanted stage.
    pub falling: bool,
    /// The wanted stage is reached and nothing is on its way any more.
    pub arrived: bool,
}

/// The reason of the condition Hibernated.
pub fn reason(conditions: &[Condition]) -> Option<&str> {
    find(conditions, HIBERNATED).map(|condition| condition.reason.as_str())
}

/// Whether a tenant was asleep, or on its way there, and has not been awake in full since. Parts that come up then
/// wait for each other; those of a new tenant do not.
pub fn slept(conditions: &[Condition]) -> bool {
    reason(conditions).is_some_and(|reason| reason != reasons::AWAKE)
}

/// The condition Hibernated. `before` is its reason until now: a tenant that is awake, or asleep, stays so while one
/// of its pods is mended.
pub fn hibernated(before: Option<&str>, way: Way) -> Verdict {
    let Way { wanted, reached, falling, arrived } = way;
    let there = wanted == reached;
    let between = format!("at stage {reached}, on the way to {wanted}");
    let was = |reason: &str| before == Some(reason);
    let (status, reason, message) = if wanted == Stage::Active {
        if there && (arrived || before.is_none() || was(reasons::AWAKE)) {
            (ConditionStatus::False, reasons::AWAKE, "awake".to_owned())
        } else {
            (ConditionStatus::False, reasons::WAKING_UP, between)
        }
    } else if there && (arrived || was(reasons::ASLEEP)) {
        (ConditionStatus::True, reasons::ASLEEP, format!("at stage {reached}"))
    } else if falling {
        (ConditionStatus::False, reasons::GOING_TO_SLEEP, between)
    } else {
        (ConditionStatus::False, reasons::WAKING_UP, between)
    };
    Verdict { status, reason, message }
}

/// The condition Hibernated of a fleet, which has bots and knows no stages between.
pub fn fleet_hibernated(wanted: Stage, gone: bool, waking: bool) -> Verdict {
    let (status, reason, message) = if wanted == Stage::Active && waking {
        (ConditionStatus::False, reasons::WAKING_UP, "bots are on their way up".to_owned())
    } else if wanted == Stage::Active {
        (ConditionStatus::False, reasons::AWAKE, "awake".to_owned())
    } else if gone {
        (ConditionStatus::True, reasons::ASLEEP, format!("at stage {wanted}"))
    } else {
        (ConditionStatus::False, reasons::GOING_TO_SLEEP, format!("bots stop, on the way to {wanted}"))
    };
    Verdict { status, reason, message }
}

/// The last wake-up, from what was said of it before. It begins with the newest activity, which is what asked for it,
/// and ends when the tenant is awake. One that a new sleep overtakes is forgotten.
pub fn wake(
    old: Option<&WakeStatus>,
    way: Way,
    (before, reason): (Option<&str>, &str),
    (newest_activity, now): (Timestamp, Timestamp),
) -> Option<WakeStatus> {
    if way.wanted != Stage::Active {
        return old.filter(|wake| wake.ready_at.is_some()).cloned();
    }
    let begun = old.and_then(WakeStatus::under_way_since);
    let requested_at = begun.unwrap_or_else(|| whole_second(newest_activity.min(now)));
    if reason == reasons::WAKING_UP {
        return Some(WakeStatus { requested_at: Some(requested_at), ..WakeStatus::default() });
    }
    if before.is_none() || before == Some(reasons::AWAKE) {
        return old.cloned();
    }
    let ready_at = whole_second(now).max(requested_at);
    let seconds = ready_at.as_second() - requested_at.as_second();
    let (requested_at, ready_at) = (Some(requested_at), Some(ready_at));
    Some(WakeStatus { requested_at, ready_at, seconds: Some(seconds), parts: Vec::new() })
}

/// Notes a suspension while there is one, and its end, which counts as activity: as the newest, so that no decision of the time
/// before stands, even if the last login (`reported`) was in the same second or by a clock that is a little ahead.
pub fn suspension(
    mut sleep: HibernationStatus,
    suspended: bool,
    reported: Option<Timestamp>,
    now: Timestamp,
) -> HibernationStatus {
    if suspended {
        sleep.suspended_since = sleep.suspended_since.or_else(|| Some(whole_second(now)));
    } else if sleep.suspended_since.take().is_some() {
        let reported = reported.filter(|reported| !activity::in_future(*reported, now));
        let after = reported.and_then(|reported| whole_second(reported).checked_add(SignedDuration::from_secs(1)).ok());
        sleep.resumed_at = Some(after.map_or(whole_second(now), |after| after.max(whole_second(now))));
    }
    sleep
}

#[cfg(test)]
mod tests {
    use super::*;

    const AWAKE: Option<&str> = Some(reasons::AWAKE);
    const ASLEEP: Option<&str> = Some(reasons::ASLEEP);
    const FALLING: Option<&str> = Some(reasons::GOING_TO_SLEEP);
    const WAKING: Option<&str> = Some(reasons::WAKING_UP);

    fn way(wanted: Stage, reached: Stage, falling: bool, arrived: bool) -> Way {
        Way { wanted, reached, falling, arrived }
    }

    fn told(before: Option<&str>, way: Way) -> &'static str {
        hibernated(before, way).reason
    }

    #[test]
    fn hibernated_tells_way_and_arrival() {
        use Stage::{Active, BotsStopped, DatabaseOnly};
        assert_eq!(told(None, way(Active, Active, false, false)), reasons::AWAKE, "a new tenant does not wake");
        assert_eq!(told(AWAKE, way(Active, Active, false, false)), reasons::AWAKE, "nor does one with a broken pod");
        assert_eq!(told(AWAKE, way(DatabaseOnly, Active, true, false)), reasons::GOING_TO_SLEEP);
        assert_eq!(told(FALLING, way(DatabaseOnly, BotsStopped, true, false)), reasons::GOING_TO_SLEEP);
        assert_eq!(told(FALLING, way(DatabaseOnly, DatabaseOnly, false, true)), reasons::ASLEEP);
        assert_eq!(told(ASLEEP, way(DatabaseOnly, DatabaseOnly, true, false)), reasons::ASLEEP, "a pod is mended");
        assert_eq!(told(FALLING, way(Active, Active, false, false)), reasons::WAKING_UP, "turned round half-way");
        assert_eq!(told(ASLEEP, way(BotsStopped, DatabaseOnly, false, false)), reasons::WAKING_UP, "lighter");
        assert_eq!(told(WAKING, way(DatabaseOnly, DatabaseOnly, true, false)), reasons::GOING_TO_SLEEP, "back again");
        assert_eq!(told(WAKING, way(Active, Active, false, true)), reasons::AWAKE);
        let status = |way| hibernated(FALLING, way).status;
        assert_eq!(status(way(DatabaseOnly, DatabaseOnly, false, true)), ConditionStatus::True);
        assert_eq!(status(way(DatabaseOnly, BotsStopped, true, false)), ConditionStatus::False);
    }

    #[test]
    fn a_wake_begins_with_its_activity_and_ends_awake() {
        let at = |second: i64| Timestamp::from_second(second).expect("a time");
        let up = way(Stage::Active, Stage::DatabaseOnly, false, false);
        let done = way(Stage::Active, Stage::Active, false, true);
        let down = way(Stage::DatabaseOnly, Stage::Active, true, false);
        let begun = wake(None, up, (ASLEEP, reasons::WAKING_UP), (at(90), at(100)));
        let expected = WakeStatus { requested_at: Some(at(90)), ..WakeStatus::default() };
        assert_eq!(begun.as_ref(), Some(&expected));
        let later = wake(begun.as_ref(), up, (WAKING, reasons::WAKING_UP), (at(95), at(110)));
        assert_eq!(later, begun, "a further login does not begin it anew");
        let ended = wake(begun.as_ref(), done, (WAKING, reasons::AWAKE), (at(90), at(130)));
        let expected =
            WakeStatus { requested_at: Some(at(90)), ready_at: Some(at(130)), seconds: Some(40), parts: Vec::new() };
        assert_eq!(ended.as_ref(), Some(&expected));
        assert_eq!(wake(ended.as_ref(), done, (AWAKE, reasons::AWAKE), (at(140), at(150))), ended);
        assert_eq!(wake(ended.as_ref(), down, (AWAKE, reasons::GOING_TO_SLEEP), (at(90), at(200))), ended);
        assert_eq!(wake(begun.as_ref(), down, (WAKING, reasons::GOING_TO_SLEEP), (at(90), at(200))), None);
        let again = wake(ended.as_ref(), up, (ASLEEP, reasons::WAKING_UP), (at(300), at(301)));
        assert_eq!(again.and_then(|wake| wake.requested_at), Some(at(300)));
        let unknown = wake(None, up, (ASLEEP, reasons::WAKING_UP), (Timestamp::MAX, at(400)));
        assert_eq!(unknown.and_then(|wake| wake.requested_at), Some(at(400)), "never in the future");
        assert_eq!(wake(None, done, (None, reasons::AWAKE), (at(1), at(2))), None, "a new tenant does not wake");
        let at_once = wake(None, done, (FALLING, reasons::AWAKE), (at(90), at(91)));
        assert_eq!(at_once.and_then(|wake| wake.seconds), Some(1), "turned round before anything stopped");
    }

    #[test]
    fn a_suspension_leaves_its_end_behind() {
        let at = |second: i64| Timestamp::from_second(second).expect("a time");
        let suspension = |sleep, suspended, now| suspension(sleep, suspended, None, now);
        let to_the_second = |reported: Timestamp| {
            let before = HibernationStatus { suspended_since: Some(at(10)), ..HibernationStatus::default() };
            super::suspension(before, false, Some(reported), at(30)).resumed_at
        };
        assert_eq!(to_the_second(at(30)), Some(at(31)), "newer than a login in the same second");
        assert_eq!(to_the_second(at(20)), Some(at(30)));
        assert_eq!(to_the_second(at(3_000)), Some(at(30)), "a login in the future counts as now");
        let first = suspension(HibernationStatus::default(), true, at(10));
        assert_eq!(first.suspended_since, Some(at(10)));
        assert_eq!(suspension(first.clone(), true, at(20)), first);
        let lifted = suspension(first, false, at(30));
        assert_eq!((lifted.suspended_since, lifted.resumed_at), (None, Some(at(30))));
        assert_eq!(suspension(lifted.clone(), false, at(40)), lifted);
        assert_eq!(suspension(HibernationStatus::default(), false, at(50)), HibernationStatus::default());
    }
}

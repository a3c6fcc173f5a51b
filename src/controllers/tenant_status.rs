//! A Tenant's new status, from the old one and what a pass saw and came to. Pure.

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use super::outcome::{Outcome, Verdict};
use crate::api::conditions::HIBERNATED;
use crate::api::tenant::{BotCount, Cost, HibernationStatus, Placement, WakePart};
use crate::api::{Tenant, TenantStatus};
use crate::domain::{activity, names};
use crate::status::sleep::{self, Way};
use crate::status::{self, Seen, find, whole_second};

/// What a pass saw, as far as the status tells of it. `None` keeps what the status said before.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Where the tenant is between stages, and the condition that says so.
    pub way: Option<(Way, Verdict)>,
    /// How far each part is; told only during a wake-up.
    pub parts: Vec<WakePart>,
    /// Bots of all fleets.
    pub bots: Option<BotCount>,
    /// Pools that serve its tier.
    pub placement: Option<Placement>,
    /// What it asks of the cluster.
    pub cost: Option<Cost>,
    /// Volumes that no fleet uses any more.
    pub retained_volumes: Option<Vec<String>>,
}

/// The operator's part of the status.
pub fn compute(tenant: &Tenant, old: &TenantStatus, outcome: &Outcome, view: View, seen: Seen) -> TenantStatus {
    let before = old.hibernation.clone().unwrap_or_default();
    let mut hibernation = HibernationStatus { decision: None, ..before.clone() };
    let mut wake = old.wake.clone();
    if let Some((way, verdict)) = &view.way {
        if before.stage != Some(way.reached) {
            hibernation.stage = Some(way.reached);
            hibernation.since = Some(whole_second(seen.now));
        }
        let reasons = (sleep::reason(&old.conditions), verdict.reason);
        wake = sleep::wake(old.wake.as_ref(), *way, reasons, (asked_at(tenant, &before, seen.now), seen.now));
        // Not everything is ready: a fleet waits for somebody to act, or an object could not be written.
        let ended = wake.as_ref().is_some_and(|wake| wake.ready_at.is_some()) && wake != old.wake;
        wake = wake.filter(|_| !ended || matches!(outcome, Outcome::Done(_) | Outcome::Progressing(_)));
        if let Some(under_way) = wake.as_mut().filter(|wake| wake.ready_at.is_none()) {
            // A pass that failed half-way has not looked; what was told before stands.
            let known = old.wake.as_ref().map(|wake| wake.parts.clone()).unwrap_or_default();
            under_way.parts = if view.parts.is_empty() { known } else { view.parts.clone() };
        }
    }
    let reported = activity::read(tenant).reported;
    let hibernation = sleep::suspension(hibernation, tenant.spec.suspended, reported, seen.now);
    let verdict = view.way.map(|(_, verdict)| verdict);
    let kept = if verdict.is_none() { find(&old.conditions, HIBERNATED).cloned() } else { None };
    let mut conditions = outcome
        .verdicts()
        .map(|verdicts| status::conditions(&old.conditions, verdicts, verdict, seen))
        .unwrap_or_default();
    conditions.extend(kept);
    TenantStatus {
        observed_generation: if outcome.is_final() { Some(seen.generation) } else { old.observed_generation },
        conditions,
        namespace: Some(names::namespace(&tenant.name_any())),
        bots: view.bots.or_else(|| old.bots.clone()),
        last_activity_time: None,
        requests: None,
        hibernation: (hibernation != HibernationStatus::default()).then_some(hibernation),
        wake,
        placement: view.placement.or_else(|| old.placement.clone()),
        cost: view.cost.or_else(|| old.cost.clone()),
        retained_volumes: view.retained_volumes.unwrap_or_else(|| old.retained_volumes.clone()),
    }
}

/// A login while the stage was being reached, or while it was decided, is a little older than that.
const BEFORE_STAGE: SignedDuration = SignedDuration::from_mins(1);

/// When a wake that begins now was asked for: by the newest activity, unless that is from before the tenant went to
/// sleep, or from before that was decided. Then it is a decision or a sleep request that was taken back.
fn asked_at(tenant: &Tenant, before: &HibernationStatus, now: Timestamp) -> Timestamp {
    let newest = activity::read(tenant).newest.min(now);
    let decision = before.decision.as_ref().filter(|decision| decision.based_on == newest);
    let known = [before.since, decision.and_then(|decision| decision.decided_at)];
    let stale = known.into_iter().flatten().any(|at| at.duration_since(newest) > BEFORE_STAGE);
    if stale { now } else { newest }
}

/// How long a wake took that this status ends.
pub fn woke(old: &TenantStatus, new: &TenantStatus) -> Option<i64> {
    let ready_at = |status: &TenantStatus| status.wake.as_ref().and_then(|wake| wake.ready_at);
    let ended = ready_at(new).is_some() && ready_at(new) != ready_at(old);
    new.wake.as_ref().and_then(|wake| wake.seconds).filter(|_| ended)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::stage::Stage;

    fn tenant(suspended: bool) -> Tenant {
        serde_json::from_value(json!({
            "apiVersion": "torpor.dev/v1alpha1", "kind": "Tenant",
            "metadata": {"name": "a", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"tier": "free", "suspended": suspended},
        }))
        .expect("a tenant")
    }

    fn told(old: &TenantStatus, suspended: bool, way: Way, at: i64) -> TenantStatus {
        let now = Timestamp::from_second(1_800_000_000 + at).expect("a time");
        let verdict = sleep::hibernated(sleep::reason(&old.conditions), way);
        let outcome = if way.arrived { Outcome::Done(way.wanted) } else { Outcome::WakingUp("x".to_owned()) };
        let view = View { way: Some((way, verdict)), ..View::default() };
        compute(&tenant(suspended), old, &outcome, view, Seen { generation: 1, now })
    }

    #[test]
    fn a_night_of_suspension_from_end_to_end() {
        let way = |wanted, reached, falling, arrived| Way { wanted, reached, falling, arrived };
        let awake = told(&TenantStatus::default(), false, way(Stage::Active, Stage::Active, false, true), 0);
        assert_eq!((&awake.wake, woke(&TenantStatus::default(), &awake)), (&None, None));
        let falling = told(&awake, true, way(Stage::DatabaseOnly, Stage::BotsStopped, true, false), 10);
        let asleep = told(&falling, true, way(Stage::DatabaseOnly, Stage::DatabaseOnly, false, true), 20);
        let sleep = asleep.hibernation.clone().expect("told");
        let second = |time: Option<Timestamp>| time.map(|time| time.as_second() - 1_800_000_000);
        assert_eq!((sleep.stage, second(sleep.since)), (Some(Stage::DatabaseOnly), Some(20)));
        assert_eq!((second(sleep.suspended_since), sleep.resumed_at), (Some(10), None));
        let waking = told(&asleep, false, way(Stage::Active, Stage::DatabaseOnly, false, false), 30);
        let sleep = waking.hibernation.clone().expect("told");
        assert_eq!((sleep.suspended_since, second(sleep.resumed_at)), (None, Some(30)));
        let again = told(&waking, false, way(Stage::Active, Stage::BotsStopped, false, false), 40);
        let done = told(&again, false, way(Stage::Active, Stage::Active, false, true), 50);
        assert_eq!((woke(&asleep, &waking), woke(&waking, &again)), (None, None));
        let wake = done.wake.clone().expect("told");
        assert_eq!(second(wake.ready_at), Some(50));
        assert_eq!(woke(&again, &done), wake.seconds);
        assert_eq!(woke(&done, &told(&done, false, way(Stage::Active, Stage::Active, false, true), 60)), None);
    }

    #[test]
    fn a_wake_is_asked_for_by_activity_or_by_nobody() {
        let time = |text: &str| text.parse::<Timestamp>().expect("a time");
        let now = time("2026-02-01T00:00:00Z");
        let created = time("2026-01-01T00:00:00Z");
        let reached = |at: &str| HibernationStatus { since: Some(time(at)), ..HibernationStatus::default() };
        assert_eq!(asked_at(&tenant(false), &reached("2026-01-01T00:00:30Z"), now), created);
        assert_eq!(asked_at(&tenant(false), &HibernationStatus::default(), now), created);
        let back = asked_at(&tenant(false), &reached("2026-01-15T00:00:00Z"), now);
        assert_eq!(back, now, "the decision was taken back, nobody came");
        let mut login = tenant(false);
        login.annotations_mut().insert("torpor.dev/last-activity".to_owned(), "2026-01-31T23:59:50Z".to_owned());
        assert_eq!(asked_at(&login, &reached("2026-01-15T00:00:00Z"), now), time("2026-01-31T23:59:50Z"));
        // Sleep was decided, and called off before its first stage was reached.
        let decided = |based_on: Timestamp, at: &str| {
            let decision = json!({"stage": "BotsStopped", "basedOn": based_on.to_string(), "decidedAt": at});
            let decision = Some(serde_json::from_value(decision).expect("a decision"));
            HibernationStatus { decision, ..reached("2025-12-01T00:00:00Z") }
        };
        assert_eq!(asked_at(&tenant(false), &decided(created, "2026-01-31T23:59:30Z"), now), now);
        assert_eq!(asked_at(&tenant(false), &decided(created, "2026-01-01T00:00:10Z"), now), created);
        let came = time("2026-01-31T23:59:50Z");
        assert_eq!(asked_at(&login, &decided(created, "2026-01-31T23:59:30Z"), now), came);
    }

    #[test]
    fn a_pass_that_saw_nothing_keeps_what_was_said() {
        let way = Way { wanted: Stage::Active, reached: Stage::DatabaseOnly, falling: false, arrived: false };
        let old = told(&TenantStatus::default(), false, way, 0);
        let now = Timestamp::from_second(1_800_000_100).expect("a time");
        let problem = Outcome::Invalid(vec![]);
        let new = compute(&tenant(true), &old, &problem, View::default(), Seen { generation: 2, now });
        assert_eq!(sleep::reason(&new.conditions), sleep::reason(&old.conditions));
        assert_eq!(new.wake, old.wake);
        let sleep = new.hibernation.expect("told");
        assert_eq!(sleep.stage, Some(Stage::DatabaseOnly));
        assert_eq!(sleep.suspended_since, Some(now), "a suspension is noted although the spec is wrong");
    }
}

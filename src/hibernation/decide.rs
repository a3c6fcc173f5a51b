//! Which stage is due.

use jiff::{SignedDuration, Timestamp};

use crate::api::HibernationMode;
use crate::domain::catalog::Policy;
use crate::domain::stage::Stage;

/// What is known of a tenant when its stage is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Situation {
    /// The tier's policy with the tenant's overrides.
    pub policy: Policy,
    /// `spec.suspended`.
    pub suspended: bool,
    /// The newest activity, exactly as it was reported.
    pub activity: Timestamp,
    /// Something that tells of activity cannot be read, so the newest may be unknown.
    pub doubtful: bool,
    /// When manual sleep was asked for; never a time in the future.
    pub sleep_requested_at: Option<Timestamp>,
    /// The user agreed to sleep, and for the idle period since `activity`.
    pub approved: bool,
}

/// Why a stage is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Not idle for long enough.
    Active,
    /// Idle for long enough.
    Idle,
    /// The tenant is suspended.
    Suspended,
    /// Somebody asked for sleep after the newest activity.
    SleepRequested,
    /// Idle for long enough, and the user has not agreed.
    Unapproved,
    /// The policy says Never.
    NeverSleeps,
    /// The newest activity may be unknown.
    Doubtful,
}

/// A moment at which a stage becomes due if no activity comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// When.
    pub at: Timestamp,
    /// The stage; the deepest one where several become due at once.
    pub stage: Stage,
    /// From when on its user can be warned.
    pub warn_at: Timestamp,
}

/// The stage that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// The stage.
    pub stage: Stage,
    /// Why.
    pub why: Why,
    /// The activity this is based on.
    pub based_on: Timestamp,
    /// What becomes due next by the mere passing of time.
    pub next: Option<Deadline>,
}

/// The stage that is due at `now`. Suspension and a manual request count at once and ask nobody. A time in the future
/// counts as now: nobody has been idle since.
pub fn decide(situation: &Situation, now: Timestamp) -> Due {
    let settled = |stage, why| Due { stage, why, based_on: situation.activity, next: None };
    if situation.suspended {
        return settled(Stage::DatabaseOnly, Why::Suspended);
    }
    if situation.doubtful {
        return settled(Stage::Active, Why::Doubtful);
    }
    if situation.sleep_requested_at.is_some_and(|at| at > situation.activity) {
        return settled(Stage::DatabaseOnly, Why::SleepRequested);
    }
    let asks = match situation.policy.mode {
        HibernationMode::Never => return settled(Stage::Active, Why::NeverSleeps),
        HibernationMode::Prompt => !situation.approved,
        HibernationMode::Auto => false,
    };
    let deadlines = deadlines(&situation.policy, situation.activity);
    let stage = stage_at(&deadlines, now);
    if asks && stage > Stage::Active {
        return settled(Stage::Active, Why::Unapproved);
    }
    Due {
        stage,
        why: if stage > Stage::Active { Why::Idle } else { Why::Active },
        based_on: situation.activity,
        next: deadlines.into_iter().find(|deadline| deadline.at > now),
    }
}

/// The deadlines of an idle period that began at `since`, in their order.
///
/// A warning never comes before half of the time from one deadline to the next has passed: a tenant whose bots stop
/// after an hour is not warned three days before.
pub fn deadlines(policy: &Policy, since: Timestamp) -> Vec<Deadline> {
    let leads = policy.warn_before;
    let steps = [
        (Stage::BotsStopped, policy.stop_bots_after, leads.stop_bots),
        (Stage::ServicesStopped, policy.stop_services_after, leads.stop_services),
        (Stage::DatabaseOnly, policy.database_only_after, leads.database_only),
    ];
    let mut merged: Vec<(Stage, i64, i64)> = Vec::new();
    for (stage, after, lead) in steps {
        match merged.last_mut() {
            Some(last) if last.1 == after => *last = (stage, after, lead.max(last.2)),
            Some(_) | None => merged.push((stage, after, lead)),
        }
    }
    let mut before = 0;
    let deadline = |(stage, after, lead): (Stage, i64, i64)| {
        let lead = lead.min((after - before) / 2);
        before = after;
        Deadline { at: later(since, after), stage, warn_at: later(since, after - lead) }
    };
    merged.into_iter().map(deadline).collect()
}

/// The deepest stage whose deadline has come.
pub fn stage_at(deadlines: &[Deadline], time: Timestamp) -> Stage {
    deadlines.iter().rev().find(|deadline| deadline.at <= time).map_or(Stage::Active, |deadline| deadline.stage)
}

/// So many seconds later; what no Timestamp can say never comes.
pub fn later(time: Timestamp, seconds: i64) -> Timestamp {
    time.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
#[path = "tests/decide.rs"]
mod tests;

//! Whether the stage that is due may be entered: never before its warning, and never without the user's answer where
//! the policy asks.
//!
//! A warning names the moment from which on its stage may be entered. That is the deadline when the warning comes in
//! time, and a whole lead from now when it comes late, so that a user has the same time to act after an outage. The
//! moment is kept in the decision (`warnedFor`); a stage is entered when a moment that was announced has come.

use jiff::Timestamp;

use super::decide::{Deadline, Due, Situation, Why, deadlines, later, stage_at};
use crate::api::HibernationMode;
use crate::api::tenant::Decision;
use crate::domain::stage::Stage;

/// What earlier decisions say of the present idle period.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The stage that was decided.
    pub stage: Stage,
    /// The latest deadline that the user was warned of.
    pub warned_for: Option<Timestamp>,
}

impl Record {
    /// Reads the last decision. One that was based on another activity says nothing of this idle period.
    pub fn of(decision: Option<&Decision>, activity: Timestamp) -> Self {
        match decision.filter(|decision| decision.based_on == activity) {
            Some(decision) => Record { stage: decision.stage, warned_for: decision.warned_for },
            None => Record::default(),
        }
    }
}

/// What is told to a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoticeKind {
    /// A stage comes.
    Warning,
    /// A stage would come; the user is asked.
    Question,
}

/// One thing to tell one user, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Warning or question.
    pub kind: NoticeKind,
    /// The stage it is about.
    pub stage: Stage,
    /// The policy's deadline. Together with the stage it names the notice, whenever and how often it is tried.
    pub due_at: Timestamp,
    /// The moment from which on the stage may be entered.
    pub deadline: Timestamp,
}

/// What a due stage waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Its warning.
    Warning,
    /// The moment that its warning named.
    Announced(Timestamp),
    /// The user's answer.
    Approval,
}

/// What is to be done about the stage that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    /// The stage to be at.
    pub stage: Stage,
    /// It is deeper than before because of idleness, so the breaker and the pace have a say.
    pub falls_asleep: bool,
    /// What the due stage waits for, if it is deeper than `stage`.
    pub wait: Option<Wait>,
    /// What is to be told now.
    pub notice: Option<Notice>,
    /// When to look again if nothing changes.
    pub look_again: Option<Timestamp>,
}

/// Judges the stage that is due.
pub fn gate(situation: &Situation, due: &Due, record: &Record, now: Timestamp) -> Gate {
    let stay = Gate { stage: due.stage, falls_asleep: false, wait: None, notice: None, look_again: None };
    match due.why {
        Why::Suspended | Why::SleepRequested | Why::NeverSleeps | Why::Doubtful => stay,
        Why::Active => before_next(stay, situation, due, record, now),
        Why::Unapproved => question(stay, situation, record),
        Why::Idle if due.stage <= record.stage => before_next(stay, situation, due, record, now),
        Why::Idle => deeper(stay, situation, due, record, now),
    }
}

/// Nothing deeper is due; the next deadline may need its warning.
fn before_next(stay: Gate, situation: &Situation, due: &Due, record: &Record, now: Timestamp) -> Gate {
    let Some(next) = due.next else { return stay };
    let asks = situation.policy.mode == HibernationMode::Prompt && !situation.approved;
    let warned = asks || record.warned_for.is_some_and(|warned| warned >= next.at);
    if warned || now < next.warn_at {
        return Gate { look_again: Some(if warned { next.at } else { next.warn_at }), ..stay };
    }
    let notice = Notice { kind: NoticeKind::Warning, stage: next.stage, due_at: next.at, deadline: next.at };
    Gate { notice: Some(notice), look_again: Some(next.at), ..stay }
}

fn question(stay: Gate, situation: &Situation, record: &Record) -> Gate {
    let first = deadlines(&situation.policy, situation.activity).into_iter().next();
    let notice = first.filter(|first| record.warned_for.is_none_or(|asked| asked < first.at)).map(|first| Notice {
        kind: NoticeKind::Question,
        stage: first.stage,
        due_at: first.at,
        deadline: first.at,
    });
    Gate { wait: Some(Wait::Approval), notice, ..stay }
}

fn deeper(stay: Gate, situation: &Situation, due: &Due, record: &Record, now: Timestamp) -> Gate {
    let deadlines = deadlines(&situation.policy, situation.activity);
    let stay = Gate { stage: record.stage, ..stay };
    let announced = record.warned_for.filter(|warned| stage_at(&deadlines, *warned) > record.stage);
    match announced {
        Some(at) if at <= now => Gate { stage: stage_at(&deadlines, at).min(due.stage), falls_asleep: true, ..stay },
        Some(at) => Gate { wait: Some(Wait::Announced(at)), look_again: Some(at), ..stay },
        None => {
            let late = deadlines.iter().rev().find(|deadline| deadline.at <= now);
            let notice = late.map(|missed| late_notice(missed, now));
            Gate { wait: Some(Wait::Warning), notice, ..stay }
        }
    }
}

/// The warning that was missed, with the whole lead from now on.
fn late_notice(missed: &Deadline, now: Timestamp) -> Notice {
    let lead = missed.at.duration_since(missed.warn_at).as_secs();
    // Rounded up, for Kubernetes shows whole seconds.
    let deadline = Timestamp::from_second(later(now, lead + 1).as_second()).unwrap_or(Timestamp::MAX);
    Notice { kind: NoticeKind::Warning, stage: missed.stage, due_at: missed.at, deadline }
}

#[cfg(test)]
#[path = "tests/gate.rs"]
mod tests;

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

/// What a warning said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announced {
    /// From when on the stage may be entered.
    pub at: Timestamp,
    /// The deepest stage that was named.
    pub stage: Stage,
}

/// What earlier decisions say of the present idle period.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The stage that was decided because of idleness. A suspension or a request needs no warning, and its stage is
    /// none to go on from when it ends.
    pub stage: Stage,
    /// The last warning.
    pub warned: Option<Announced>,
    /// The last question: for which deadline, and about which stage.
    pub asked: Option<Announced>,
}

impl Record {
    /// Reads the last decision. One that was based on another activity says nothing of this idle period.
    pub fn of(decision: Option<&Decision>, situation: &Situation) -> Self {
        let Some(decision) = decision.filter(|decision| decision.based_on == situation.activity) else {
            return Record::default();
        };
        let announced = |(at, stage)| Announced { at, stage };
        // Decisions from before it was noted.
        let asked_stage = |at| {
            let due = || stage_at(&deadlines(&situation.policy, situation.activity), at);
            decision.asked_stage.unwrap_or_else(due)
        };
        let record = Record {
            stage: decision.idle_stage.unwrap_or(decision.stage),
            warned: decision.warned_for.zip(decision.warned_stage).map(announced),
            asked: decision.asked_for.map(|at| Announced { at, stage: asked_stage(at) }),
        };
        Record { stage: record.stage.min(record.agreed(situation)), ..record }
    }

    /// The deepest stage that its user was warned of, or asked about and agreed to.
    fn agreed(&self, situation: &Situation) -> Stage {
        let warned = self.warned.map_or(Stage::Active, |warned| warned.stage);
        warned.max(self.answered(situation).map_or(Stage::Active, |answered| answered.stage))
    }

    /// A question that was answered with yes is as good as a warning; one that was not answered is none.
    fn answered(&self, situation: &Situation) -> Option<Announced> {
        let asks = situation.policy.mode == HibernationMode::Prompt && situation.approved;
        self.asked.filter(|_| asks)
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
    /// The policy's deadline. Together with kind and stage it names the notice, whenever and how often it is tried.
    pub due_at: Timestamp,
    /// The moment from which on the stage may be entered.
    pub deadline: Timestamp,
}

/// Seconds by which a warning may be late in any case, before its deadline moves.
const SLACK: i64 = 2;

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
    let warned = record.warned.is_some_and(|warned| warned.at >= next.at && warned.stage >= next.stage);
    let warned = asks || warned;
    if warned || now < next.warn_at {
        return Gate { look_again: Some(if warned { next.at } else { next.warn_at }), ..stay };
    }
    Gate { notice: Some(warning(situation, &next, now)), look_again: Some(next.at), ..stay }
}

fn question(stay: Gate, situation: &Situation, record: &Record) -> Gate {
    let first = deadlines(&situation.policy, situation.activity).into_iter().next();
    let unasked = |first: &Deadline| record.asked.is_none_or(|asked| asked.at < first.at || asked.stage < first.stage);
    let notice = first.filter(unasked).map(|first| Notice {
        kind: NoticeKind::Question,
        stage: first.stage,
        due_at: first.at,
        deadline: first.at,
    });
    Gate { wait: Some(Wait::Approval), notice, ..stay }
}

fn deeper(stay: Gate, situation: &Situation, due: &Due, record: &Record, now: Timestamp) -> Gate {
    let stay = Gate { stage: record.stage, ..stay };
    let said = [record.answered(situation), record.warned];
    let said: Vec<Announced> = said.into_iter().flatten().filter(|said| said.stage > record.stage).collect();
    let come = said.iter().filter(|said| said.at <= now).map(|said| said.stage).max();
    if let Some(stage) = come {
        return Gate { stage: stage.min(due.stage), falls_asleep: true, ..stay };
    }
    if let Some(at) = said.iter().map(|said| said.at).min() {
        return Gate { wait: Some(Wait::Announced(at)), look_again: Some(at), ..stay };
    }
    let mut missed = deadlines(&situation.policy, situation.activity);
    missed.retain(|deadline| deadline.at <= now && deadline.stage > record.stage);
    // Stages that are entered at once have the longest of their leads, as where the policy has them come together.
    let lead = missed.iter().map(|deadline| deadline.at.duration_since(deadline.warn_at)).max().unwrap_or_default();
    let last =
        missed.last().map(|last| Deadline { warn_at: last.at.checked_sub(lead).unwrap_or(last.warn_at), ..*last });
    Gate { wait: Some(Wait::Warning), notice: last.map(|last| warning(situation, &last, now)), ..stay }
}

/// The warning of a deadline. One that comes late names a moment a whole lead from now, and the stage of that moment.
fn warning(situation: &Situation, about: &Deadline, now: Timestamp) -> Notice {
    let lead = about.at.duration_since(about.warn_at).as_secs();
    let late = now > later(about.warn_at, SLACK.max(lead / 10));
    // Rounded up, for Kubernetes shows whole seconds.
    let whole_lead = || Timestamp::from_second(later(now, lead + 1).as_second()).unwrap_or(Timestamp::MAX);
    let deadline = if late { whole_lead().max(about.at) } else { about.at };
    let all = deadlines(&situation.policy, situation.activity);
    let named = all.into_iter().rev().find(|named| named.at <= deadline).unwrap_or(*about);
    Notice { kind: NoticeKind::Warning, stage: named.stage, due_at: named.at, deadline }
}

#[cfg(test)]
#[path = "tests/gate.rs"]
mod tests;

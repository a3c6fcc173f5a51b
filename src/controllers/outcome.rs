//! What a pass came to. One enum decides conditions, events, metrics and the next pass, in one place.

use std::time::Duration;

use kube::runtime::controller::Action;
use kube::runtime::events::EventType;

use crate::api::ConditionStatus::{self, False, True};
use crate::api::conditions::reasons;
use crate::cluster::error::ClusterError;
use crate::domain::stage::Stage;
use crate::validate::Problem;

/// What a pass came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything is as it should be at this stage.
    Done(Stage),
    /// Everything is written; pods are not all as they should be. The sentence says which.
    Progressing(String),
    /// Parts are on their way up after sleep, or to a lighter stage. The sentence says what waits for what.
    WakingUp(String),
    /// Parts are on their way down to the wanted stage. The sentence says which are left.
    GoingToSleep(String),
    /// A pod did not stop within its grace period. The sentence names it.
    StopOverdue(String),
    /// Something that the spec needs does not exist. The sentence says what, and who must act.
    Waiting(String),
    /// The spec contradicts itself, its tier or the catalogue.
    Invalid(Vec<Problem>),
    /// The stored object cannot be read.
    Undecodable(String),
    /// The place belongs to somebody else, or is claimed twice.
    Conflict(String),
    /// The API server refuses something that a retry does not change.
    Refused(String),
    /// A request failed for a reason of its object's own, such as a conflict or an admission webhook that does not answer.
    Failed(String),
    /// The API server could not be reached, or was busy.
    Transient(String),
    /// Paused by its spec.
    Paused,
    /// The object is being deleted; the sentence says what is awaited.
    Deleting(String),
    /// What the pass began with has changed, by the pass or meanwhile, and a watch brings the next one.
    Again,
    /// What the pass began with is not what is known now, or not what there is.
    Behind,
}

/// The first failures of several requests none of which waits for another.
#[derive(Debug, Default)]
pub struct FirstFailure {
    failed: Option<String>,
    /// What is refused, or on its way out.
    other: Option<Outcome>,
}

impl FirstFailure {
    /// Keeps a failure that is one object's own: a refusal, a conflict, an admission webhook that does not answer, an end that is not
    /// over yet.
    ///
    /// # Errors
    /// Every other outcome of a request that failed.
    pub fn keep(&mut self, done: Result<(), Outcome>) -> Result<(), Outcome> {
        match done {
            Err(Outcome::Failed(message)) => drop(self.failed.get_or_insert(message)),
            Err(other @ (Outcome::Refused(_) | Outcome::Waiting(_))) => drop(self.other.get_or_insert(other)),
            other => return other,
        }
        Ok(())
    }

    /// Whether nothing failed.
    pub fn is_none(&self) -> bool {
        self.failed.is_none() && self.other.is_none()
    }

    /// Whether something failed that is tried again soon.
    pub fn is_tried_soon(&self) -> bool {
        self.failed.is_some()
    }

    /// Tells of it, once all is done: of what is tried again soonest, and of the other.
    ///
    /// # Errors
    /// That failure, if there is one.
    pub fn told(self) -> Result<(), Outcome> {
        match (self.failed, self.other) {
            (None, None) => Ok(()),
            (None, Some(other)) => Err(other),
            (Some(failed), Some(Outcome::Refused(other) | Outcome::Waiting(other))) => {
                Err(Outcome::Failed(format!("{failed}; {other}")))
            }
            (Some(failed), _) => Err(Outcome::Failed(failed)),
        }
    }
}

/// A condition's status, reason and message before it has a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it holds.
    pub status: ConditionStatus,
    /// One word for programs.
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
}

impl Verdict {
    fn new(status: ConditionStatus, reason: &'static str, message: impl Into<String>) -> Self {
        Verdict { status, reason, message: message.into() }
    }
}

/// Ready, Reconciling and Stalled of one outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdicts {
    /// As it should be.
    pub ready: Verdict,
    /// Work goes on.
    pub reconciling: Verdict,
    /// Somebody must act.
    pub stalled: Verdict,
}

/// Failures in a row before a status shows them: one hiccup of the API server is no news.
pub const SHOWN_AFTER: u32 = 3;
/// After so long a pass does no more than stop what is to stop, if something has failed: a webhook that does not answer takes up to 30 s,
/// and a pass that is cut off tells nothing.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// What is waited for is looked for again after this time: some of it, such as a Secret, cannot be watched. Later after a tenth of
/// the time for which it has been waited for, for some of it is asked for by requests, and many may wait for weeks.
const LOOK_AGAIN: Duration = Duration::from_secs(3);
const LOOK_AGAIN_AT_LAST: Duration = Duration::from_secs(60);

impl Outcome {
    /// The outcome's name as a metric label.
    pub const fn label(&self) -> &'static str {
        match self {
            Outcome::Done(_) => "done",
            Outcome::Progressing(_) => "progressing",
            Outcome::WakingUp(_) => "waking_up",
            Outcome::GoingToSleep(_) => "going_to_sleep",
            Outcome::StopOverdue(_) => "stop_overdue",
            Outcome::Waiting(_) => "waiting",
            Outcome::Invalid(_) => "invalid",
            Outcome::Undecodable(_) => "undecodable",
            Outcome::Conflict(_) => "conflict",
            Outcome::Refused(_) => "refused",
            Outcome::Failed(_) | Outcome::Transient(_) => "transient",
            Outcome::Paused => "paused",
            Outcome::Deleting(_) => "deleting",
            Outcome::Again => "again",
            Outcome::Behind => "behind",
        }
    }

    /// Whether the generation that was read is handled in full: done, or nothing more can be done for it.
    pub const fn is_final(&self) -> bool {
        match self {
            Outcome::Done(_)
            | Outcome::Paused
            | Outcome::Invalid(_)
            | Outcome::Undecodable(_)
            | Outcome::Conflict(_)
            | Outcome::Refused(_) => true,
            Outcome::Progressing(_)
            | Outcome::WakingUp(_)
            | Outcome::GoingToSleep(_)
            | Outcome::StopOverdue(_)
            | Outcome::Waiting(_)
            | Outcome::Failed(_)
            | Outcome::Transient(_)
            | Outcome::Deleting(_)
            | Outcome::Again
            | Outcome::Behind => false,
        }
    }

    /// The sentence of an outcome that tells of pods on their way. It changes with every pod, and may be told late.
    pub fn under_way(&self) -> Option<&str> {
        match self {
            Outcome::Progressing(message)
            | Outcome::WakingUp(message)
            | Outcome::GoingToSleep(message)
            | Outcome::StopOverdue(message)
            | Outcome::Deleting(message) => Some(message),
            Outcome::Done(_)
            | Outcome::Paused
            | Outcome::Waiting(_)
            | Outcome::Invalid(_)
            | Outcome::Undecodable(_)
            | Outcome::Conflict(_)
            | Outcome::Refused(_)
            | Outcome::Failed(_)
            | Outcome::Transient(_)
            | Outcome::Again
            | Outcome::Behind => None,
        }
    }

    /// The same outcome, unless it waits for pods one of which has outlived its grace period.
    #[must_use]
    pub fn unless_overdue(self, overdue: Option<&str>) -> Self {
        match (overdue, self.under_way()) {
            (Some(overdue), Some(message)) => Outcome::StopOverdue(format!("{overdue}; {message}")),
            (_, None) | (None, Some(_)) => self,
        }
    }

    /// Ready, Reconciling and Stalled. `None` for a pass that says nothing new.
    pub fn verdicts(&self) -> Option<Verdicts> {
        let done = |reason, message: &str| Verdicts {
            ready: Verdict::new(True, reason, message),
            reconciling: Verdict::new(False, reasons::SETTLED, "nothing left to do"),
            stalled: not_stalled(),
        };
        let working = |reason, message: &str| Verdicts {
            ready: Verdict::new(False, reason, message),
            reconciling: Verdict::new(True, reason, message),
            stalled: not_stalled(),
        };
        let stalled = |reason, message: &str| Verdicts {
            ready: Verdict::new(False, reason, message),
            reconciling: Verdict::new(False, reason, "nothing happens until somebody acts"),
            stalled: Verdict::new(True, reason, message),
        };
        Some(match self {
            Outcome::Done(Stage::Active) => done(reasons::READY, "everything is ready"),
            Outcome::Done(stage) => done(reasons::ASLEEP, &format!("asleep as decided, at stage {stage}")),
            Outcome::Paused => done(reasons::PAUSED, "stopped by spec.paused; the volumes are kept"),
            Outcome::Progressing(message) => working(reasons::PROGRESSING, message),
            Outcome::WakingUp(message) => working(reasons::WAKING_UP, message),
            Outcome::GoingToSleep(message) => working(reasons::GOING_TO_SLEEP, message),
            Outcome::StopOverdue(message) => working(reasons::STOP_OVERDUE, message),
            Outcome::Waiting(message) => working(reasons::WAITING, message),
            Outcome::Failed(message) | Outcome::Transient(message) => working(reasons::RETRYING, message),
            Outcome::Deleting(message) => working(reasons::DELETING, message),
            Outcome::Invalid(problems) => stalled(reasons::INVALID_SPEC, &join(problems)),
            Outcome::Undecodable(message) => stalled(reasons::UNDECODABLE, message),
            Outcome::Conflict(message) => stalled(reasons::NOT_OWNED, message),
            Outcome::Refused(message) => stalled(reasons::REFUSED, message),
            Outcome::Again | Outcome::Behind => return None,
        })
    }

    /// The kind of Event that tells of this outcome.
    pub const fn event_type(&self) -> EventType {
        match self {
            Outcome::Done(_)
            | Outcome::Paused
            | Outcome::Progressing(_)
            | Outcome::WakingUp(_)
            | Outcome::GoingToSleep(_)
            | Outcome::Deleting(_)
            | Outcome::Again
            | Outcome::Behind => EventType::Normal,
            Outcome::StopOverdue(_)
            | Outcome::Waiting(_)
            | Outcome::Invalid(_)
            | Outcome::Undecodable(_)
            | Outcome::Conflict(_)
            | Outcome::Refused(_)
            | Outcome::Failed(_)
            | Outcome::Transient(_) => EventType::Warning,
        }
    }

    /// When the next pass comes if no watch brings it earlier. `failures` counts transient ones in a row; `due` is
    /// a time after which something may be different although no watch tells; `silent` is how long nothing new was told.
    pub fn next(&self, failures: u32, due: Option<Duration>, silent: Duration) -> Action {
        let usual = match self {
            Outcome::Progressing(_)
            | Outcome::WakingUp(_)
            | Outcome::GoingToSleep(_)
            | Outcome::StopOverdue(_)
            | Outcome::Deleting(_)
            | Outcome::Conflict(_)
            | Outcome::Refused(_) => Some(Duration::from_secs(60)),
            Outcome::Waiting(_) => Some((silent / 10).clamp(LOOK_AGAIN, LOOK_AGAIN_AT_LAST)),
            // A watch is sooner, unless it has told already.
            Outcome::Behind => Some(LOOK_AGAIN),
            // The next round, if nothing happens before.
            Outcome::Done(_) | Outcome::Paused | Outcome::Invalid(_) | Outcome::Undecodable(_) | Outcome::Again => None,
            Outcome::Failed(_) | Outcome::Transient(_) => Some(pause(failures)),
        };
        usual.into_iter().chain(due).min().map_or_else(Action::await_change, Action::requeue)
    }
}

impl From<ClusterError> for Outcome {
    fn from(error: ClusterError) -> Self {
        let message = error.to_string();
        match error {
            ClusterError::Refused { .. } => Outcome::Refused(message),
            ClusterError::NotOwned { .. } => Outcome::Conflict(message),
            ClusterError::Waiting { .. } => Outcome::Waiting(message),
            ClusterError::Behind { .. } => Outcome::Behind,
            ClusterError::Failed { .. } => Outcome::Failed(message),
            ClusterError::Transient { .. } | ClusterError::ClaimsDiffer { .. } | ClusterError::NotLeading => {
                Outcome::Transient(message)
            }
        }
    }
}

fn not_stalled() -> Verdict {
    Verdict::new(False, reasons::NOT_STALLED, "nothing prevents progress")
}

fn join(problems: &[Problem]) -> String {
    problems.iter().map(|problem| problem.0.as_str()).collect::<Vec<_>>().join("; ")
}

/// 0.2 s, doubled with each failure in a row, at most five minutes.
pub fn pause(failures: u32) -> Duration {
    Duration::from_millis(100).saturating_mul(1_u32 << failures.min(12)).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_object_that_fails_holds_up_no_other_and_is_tried_again_first() {
        let mut first = FirstFailure::default();
        let refused = || Outcome::Refused("policy".to_owned());
        let failed = |what: &str| Outcome::Failed(what.to_owned());
        for done in [Ok(()), Err(refused()), Err(failed("a")), Err(failed("b")), Err(refused())] {
            assert_eq!(first.keep(done), Ok(()));
        }
        assert_eq!(first.told(), Err(failed("a; policy")));
        let sick = || Err(Outcome::Transient("busy".to_owned()));
        assert_eq!(FirstFailure::default().keep(sick()), sick(), "nothing more is asked of a busy API server");
    }

    fn all() -> Vec<Outcome> {
        let text = || "x".to_owned();
        vec![
            Outcome::Done(Stage::Active),
            Outcome::Done(Stage::DatabaseOnly),
            Outcome::Progressing(text()),
            Outcome::WakingUp(text()),
            Outcome::GoingToSleep(text()),
            Outcome::StopOverdue(text()),
            Outcome::Waiting(text()),
            Outcome::Invalid(vec![Problem(text())]),
            Outcome::Undecodable(text()),
            Outcome::Conflict(text()),
            Outcome::Refused(text()),
            Outcome::Failed(text()),
            Outcome::Transient(text()),
            Outcome::Paused,
            Outcome::Deleting(text()),
        ]
    }

    #[test]
    fn exactly_one_of_ready_reconciling_stalled_holds() {
        for outcome in all() {
            let verdicts = outcome.verdicts().expect("every outcome but Again is told");
            let held = [&verdicts.ready, &verdicts.reconciling, &verdicts.stalled]
                .into_iter()
                .filter(|verdict| verdict.status == True)
                .count();
            assert_eq!(held, 1, "{outcome:?}");
            let stays = verdicts.ready.status == True || verdicts.stalled.status == True;
            assert_eq!(stays, outcome.is_final(), "observedGeneration moves exactly when work has ended: {outcome:?}");
        }
    }

    #[test]
    fn only_who_waits_for_pods_waits_too_long() {
        for outcome in all() {
            let waits = outcome.under_way().is_some();
            let overdue = outcome.clone().unless_overdue(Some("bots-a-0 is late"));
            let expected = if waits { Outcome::StopOverdue("bots-a-0 is late; x".to_owned()) } else { outcome.clone() };
            assert_eq!(overdue, expected);
            assert_eq!(outcome.clone().unless_overdue(None), outcome);
        }
    }

    #[test]
    fn what_is_due_comes_before_the_usual_time() {
        let due = Duration::from_secs(5);
        let next = |outcome: &Outcome, due| format!("{:?}", outcome.next(0, due, Duration::ZERO));
        let working = Outcome::Progressing(String::new());
        assert_eq!(next(&working, Some(due)), format!("{:?}", Action::requeue(due)));
        assert_eq!(next(&working, Some(due * 100)), next(&working, None));
        assert_eq!(next(&Outcome::Again, Some(due)), format!("{:?}", Action::requeue(due)));
    }

    #[test]
    fn what_is_waited_for_for_long_is_looked_for_seldom() {
        let waiting = Outcome::Waiting(String::new());
        let after = |silent: u64| format!("{:?}", waiting.next(0, None, Duration::from_secs(silent)));
        let pause = |seconds: u64| format!("{:?}", Action::requeue(Duration::from_secs(seconds)));
        assert_eq!([0, 20, 100, 86_400].map(after), [3, 3, 10, 60].map(pause));
    }

    #[test]
    fn pauses_grow_and_end() {
        assert_eq!(pause(1), Duration::from_millis(200));
        assert!(pause(40) <= LONGEST_PAUSE);
    }
}

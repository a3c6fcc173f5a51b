//! How a pass ends: status, Event, metrics and the time of the next pass, all from its outcome.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::controller::Action;
use smol_str::SmolStr;

use super::context::{Context, Key, Written};
use super::outcome::{Outcome, SHOWN_AFTER};
use crate::api::conditions::READY;
use crate::api::{Condition, ConditionStatus};
use crate::cluster::status::Own;
use crate::status::find;
use crate::status::own::Status;

/// How a pass ended.
#[derive(Debug)]
pub struct Turn {
    /// When the next one is due.
    pub action: Action,
    /// The outcome's name as a metric label.
    pub outcome: &'static str,
    /// Whether the status was written.
    pub told: bool,
}

/// Shortest and longest pause between two statuses that tell nothing new but the wording of what is under way.
const PAUSES: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(60));

/// How long such a status has to wait; `None` when it may be written. The pause is as long as things had been under
/// way at the last write: a start is told in a few writes however long it takes, and whoever waits for long still
/// sees the message move. `under_way` is the time until now, `silent` the time since the last write.
fn wait(under_way: Duration, silent: Duration) -> Option<Duration> {
    let pause = under_way.saturating_sub(silent).clamp(PAUSES.0, PAUSES.1);
    pause.checked_sub(silent).filter(|left| !left.is_zero())
}

/// Nobody waits any more for what has been under way for so long.
const LONG: SignedDuration = SignedDuration::from_mins(10);

/// Whether that is so long ago.
pub fn is_long_ago(at: Timestamp, now: Timestamp) -> bool {
    now.duration_since(at) > LONG
}

/// Whether a condition has not held for long.
pub fn fails_for_long(conditions: &[Condition], type_: &str, now: Timestamp) -> bool {
    let failing = find(conditions, type_).filter(|condition| condition.status != ConditionStatus::True);
    failing.is_some_and(|condition| is_long_ago(condition.last_transition_time, now))
}

/// Whether what was asked for last was told of, and has not been so for long. A change that nobody has told of is always news.
pub fn is_old_news(conditions: &[Condition], generation: Option<i64>, now: Timestamp) -> bool {
    let told = find(conditions, READY).and_then(|ready| ready.observed_generation);
    told >= generation && fails_for_long(conditions, READY, now)
}

/// How long Ready has been what it is.
fn since<S: Status>(old: &S, now: Timestamp) -> Duration {
    let took = find(old.conditions(), READY).map(|ready| now.duration_since(ready.last_transition_time));
    took.and_then(|took| Duration::try_from(took).ok()).unwrap_or_default()
}

impl Turn {
    /// A watch brings the next pass.
    pub fn again() -> Self {
        Turn::of(&Outcome::Again, 0, (None, Duration::ZERO))
    }

    /// The turn of an outcome after so many failures in a row. `due` asks for a pass after that time at the latest; `silent` is how
    /// long nothing new was told.
    pub fn of(outcome: &Outcome, failures: u32, (due, silent): (Option<Duration>, Duration)) -> Self {
        Turn { action: outcome.next(failures, due, silent), outcome: outcome.label(), told: false }
    }
}

/// The status that a pass starts from: what the watch shows, or what an earlier pass wrote and it does not show yet.
pub fn current<S: Status>(context: &Context, kind: Own, metadata: &ObjectMeta, shown: Option<&S>) -> S {
    let key = key(kind, metadata);
    let version = metadata.resource_version.as_deref().unwrap_or_default();
    context
        .memory
        .unseen(&key, version)
        .and_then(|written| serde_json::from_value(written.status).ok())
        .or_else(|| shown.cloned())
        .unwrap_or_default()
}

/// Ends a pass. `new` computes the operator's part of the status from the outcome; it is written if it differs. `due`
/// asks for the next pass after that time at the latest.
pub async fn finish<S: Status>(
    context: &Context,
    kind: Own,
    metadata: &ObjectMeta,
    old: &S,
    (outcome, due): (Outcome, Option<Duration>),
    new: impl FnOnce(&Outcome) -> S,
) -> Turn {
    let key = key(kind, metadata);
    let failed = matches!(outcome, Outcome::Failed(_) | Outcome::Transient(_));
    let failures = if failed { context.failed(kind, &key) } else { 0 };
    let silent = context.memory.silent_for(&key, context.clock.monotonic());
    // A process that has not told anything yet finds what was told before it came.
    let waited = silent.unwrap_or_else(|| since(old, context.clock.now()));
    let turn = |outcome: &Outcome, failures, due| Turn::of(outcome, failures, (due, waited));
    let ended = |turn: Turn| {
        context.metrics.set_in_backoff(kind.as_str(), context.memory.failing(kind.as_str()));
        turn
    };
    // Not before the status is written, too: a status that is refused each time must be tried ever more seldom.
    let well = |turn: Turn| {
        if !failed {
            context.memory.succeeded(&key);
        }
        ended(turn)
    };
    if let Outcome::Failed(message) | Outcome::Transient(message) = &outcome {
        tracing::warn!(
            kind = key.kind,
            namespace = key.namespace,
            name = key.name,
            failures,
            "{message}; trying again"
        );
        if failures < SHOWN_AFTER {
            return ended(turn(&outcome, failures, due));
        }
    }
    if matches!(outcome, Outcome::Again | Outcome::Behind) {
        return well(turn(&outcome, failures, due));
    }
    let status = new(&outcome);
    if old.own() == status.own() {
        return well(turn(&outcome, failures, due));
    }
    let wording = failed || outcome.under_way().is_some() || matches!(outcome, Outcome::Refused(_));
    if wording
        && old.urgent() == status.urgent()
        && let Some(left) = silent.and_then(|silent| wait(since(old, context.clock.now()), silent))
    {
        // What failed is tried again ever more seldom, whatever there is to tell of it.
        let left = (!failed).then_some(left);
        return well(turn(&outcome, failures, due.into_iter().chain(left).min()));
    }
    let told = ready_reason(&status) != ready_reason(old);
    // What could not be read is not known, and what is left out of one's own part of a status goes.
    let unread = matches!(outcome, Outcome::Undecodable(_));
    let writer = if unread { &context.status.of_the_unread() } else { &context.status };
    match writer.write(kind, metadata, &status).await {
        Ok(Some(_)) => {
            let merged = serde_json::to_value(status.over(old)).unwrap_or_default();
            let from = metadata.resource_version.clone().unwrap_or_default();
            context.memory.wrote(&key, Written { from, status: merged }, context.clock.monotonic());
        }
        Ok(None) => return well(turn(&outcome, failures, due)),
        Err(error) => {
            let failures = if failed { failures } else { context.failed(kind, &key) };
            tracing::warn!(kind = key.kind, name = key.name, failures, %error, "status was not written; trying again");
            return ended(turn(&Outcome::Transient(error.to_string()), failures, due));
        }
    }
    if told && let Some(ready) = find(status.conditions(), READY) {
        let verdicts = outcome.verdicts();
        let reason = verdicts.map_or(READY, |verdicts| verdicts.ready.reason);
        tracing::info!(kind = key.kind, namespace = key.namespace, name = key.name, reason, "{}", ready.message);
        context.events.publish(kind, metadata, outcome.event_type(), reason, &ready.message);
    }
    well(Turn { told: true, ..turn(&outcome, failures, due) })
}

fn key(kind: Own, metadata: &ObjectMeta) -> Key {
    Key::new(kind, metadata.namespace.as_deref(), metadata.name.as_deref().unwrap_or_default())
}

fn ready_reason<S: Status>(status: &S) -> Option<(SmolStr, ConditionStatus)> {
    find(status.conditions(), READY).map(|ready| (ready.reason.clone(), ready.status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wording_is_told_seldom_and_ever_more_so() {
        let seconds = Duration::from_secs;
        let mut told = vec![0];
        for now in 1..=200 {
            let silent = now - told[told.len() - 1];
            if wait(seconds(now), seconds(silent)).is_none() {
                told.push(now);
            }
        }
        assert_eq!(told, [0, 20, 40, 80, 140, 200]);
        assert_eq!(wait(seconds(22), seconds(4)), Some(seconds(16)));
        assert_eq!(wait(Duration::ZERO, seconds(20)), None, "a wall clock that went back holds nothing up");
    }
}

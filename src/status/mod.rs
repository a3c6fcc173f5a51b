//! New status from old status, observations and outcome. Pure; written only when something but a time differs.

pub mod own;
pub mod sleep;

use jiff::Timestamp;

use crate::api::Condition;
use crate::api::conditions::{HIBERNATED, READY, RECONCILING, STALLED};
use crate::controllers::outcome::{Verdict, Verdicts};

/// Observations of one generation at one time.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// The generation that was read.
    pub generation: i64,
    /// When.
    pub now: Timestamp,
}

/// Ready, Reconciling, Stalled and, where a stage is known, Hibernated.
/// A condition whose status stays keeps its transition time.
pub fn conditions(old: &[Condition], verdicts: Verdicts, sleep: Option<Verdict>, seen: Seen) -> Vec<Condition> {
    let wanted = [
        (READY, Some(verdicts.ready)),
        (RECONCILING, Some(verdicts.reconciling)),
        (STALLED, Some(verdicts.stalled)),
        (HIBERNATED, sleep),
    ];
    wanted
        .into_iter()
        .filter_map(|(type_, verdict)| verdict.map(|verdict| condition(old, type_, &verdict, seen)))
        .collect()
}

/// One condition; it keeps its transition time while its status stays.
pub fn condition(old: &[Condition], type_: &str, verdict: &Verdict, seen: Seen) -> Condition {
    let before = find(old, type_).filter(|condition| condition.status == verdict.status);
    Condition {
        type_: type_.into(),
        status: verdict.status,
        observed_generation: Some(seen.generation),
        last_transition_time: before.map_or_else(|| whole_second(seen.now), |condition| condition.last_transition_time),
        reason: verdict.reason.into(),
        message: verdict.message.chars().take(4_000).collect(),
    }
}

/// The condition of a type.
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Kubernetes' times have whole seconds.
pub fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::outcome::Outcome;
    use crate::domain::stage::Stage;

    fn seen(second: i64) -> Seen {
        Seen { generation: 2, now: Timestamp::from_second(second).expect("a time") }
    }

    fn told(old: &[Condition], outcome: &Outcome, at: i64) -> Vec<Condition> {
        conditions(old, outcome.verdicts().expect("told"), None, seen(at))
    }

    #[test]
    fn transition_time_moves_only_with_the_status() {
        let first = told(&[], &Outcome::Progressing("a".to_owned()), 10);
        let second = told(&first, &Outcome::Progressing("b".to_owned()), 20);
        assert!(first != second, "the message changed");
        assert_eq!(find(&second, READY).map(|c| c.last_transition_time.as_second()), Some(10));
        let third = told(&second, &Outcome::Done(Stage::Active), 30);
        assert_eq!(find(&third, READY).map(|c| c.last_transition_time.as_second()), Some(30));
        assert_eq!(find(&third, STALLED).map(|c| c.last_transition_time.as_second()), Some(10));
        assert!(third == told(&third, &Outcome::Done(Stage::Active), 40), "nothing but time passed");
    }
}

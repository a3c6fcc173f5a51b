//! Objects that somebody else changes as often as the operator puts them back.
//!
//! One edit is put back at once. A controller that does not give up would make two programs write for as long as both live, which
//! costs every tenant the API server's time; so after a while the operator takes its time, and says so.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::error::ClusterError;
use crate::clock::Clock;
use crate::plan::ChildKind;

/// So often in quick succession an object is put back at once: more than people and scripts that edit do.
const AT_ONCE: u32 = 20;
/// So long without an edit allows one more at once.
const REGAINED: Duration = Duration::from_secs(5);
/// Pause before each further time.
const PAUSE: Duration = Duration::from_secs(10);
/// So long after it was last put back an object that stays as it is is no longer contested.
const CALM: Duration = Duration::from_secs(60);
/// Objects in memory from which on those that are not contested any more are dropped.
const MANY: usize = 64;

type Place = (ChildKind, String, String);

#[derive(Debug)]
struct Contest {
    /// Times that it was put back at once, less what was regained.
    spent: u32,
    last: Instant,
}

impl Contest {
    fn is_lasting(&self) -> bool {
        self.spent > AT_ONCE
    }
}

/// What was put back lately.
#[derive(Debug)]
pub(super) struct Contests {
    clock: Arc<dyn Clock>,
    objects: Mutex<HashMap<Place, Contest>>,
}

/// An object may be put back.
#[derive(Debug)]
#[must_use]
pub(super) struct Turn {
    told: Option<ClusterError>,
}

impl Turn {
    /// Tells of the contest once the object was put back.
    ///
    /// # Errors
    /// [`ClusterError::Waiting`] when it is put back slowly.
    pub fn told(self) -> Result<(), ClusterError> {
        self.told.map_or(Ok(()), Err)
    }
}

impl Contests {
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Contests { clock, objects: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Place, Contest>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an object that others have changed is put back now.
    ///
    /// # Errors
    /// [`ClusterError::Waiting`] when that was done a moment ago, and often before.
    pub fn turn(&self, kind: ChildKind, namespace: &str, name: &str) -> Result<Turn, ClusterError> {
        let now = self.clock.monotonic();
        let since = |last: Instant| now.saturating_duration_since(last);
        let mut objects = self.lock();
        if objects.len() >= MANY {
            objects.retain(|_, contest| since(contest.last) < CALM);
        }
        let place = (kind, namespace.to_owned(), name.to_owned());
        let contest = objects.entry(place).or_insert(Contest { spent: 0, last: now });
        let pause = since(contest.last);
        if pause >= CALM {
            contest.spent = 0;
        }
        if contest.is_lasting() {
            if pause < PAUSE {
                return Err(contested(kind, namespace, name));
            }
        } else {
            let regained = pause.as_secs() / REGAINED.as_secs();
            contest.spent = contest.spent.saturating_sub(u32::try_from(regained).unwrap_or(u32::MAX)) + 1;
        }
        contest.last = now;
        Ok(Turn { told: contest.is_lasting().then(|| contested(kind, namespace, name)) })
    }

    /// Tells of the contest about an object that is as wanted just now.
    ///
    /// # Errors
    /// [`ClusterError::Waiting`] when it was put back a moment ago, and often before.
    pub fn quiet(&self, kind: ChildKind, namespace: &str, name: &str) -> Result<(), ClusterError> {
        let objects = self.lock();
        // Nearly always.
        if objects.is_empty() {
            return Ok(());
        }
        let found = objects.get(&(kind, namespace.to_owned(), name.to_owned())).filter(|contest| contest.is_lasting());
        let now = self.clock.monotonic();
        match found {
            Some(contest) if now.saturating_duration_since(contest.last) < CALM => {
                Err(contested(kind, namespace, name))
            }
            _ => Ok(()),
        }
    }
}

fn contested(kind: ChildKind, namespace: &str, name: &str) -> ClusterError {
    let reason = "somebody changes it as often as it is put back, who is named in its metadata.managedFields";
    ClusterError::Waiting { what: format!("{} {namespace}/{name}", kind.as_str()), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::clock::FixedClock;

    fn contests() -> (Arc<FixedClock>, Contests) {
        let clock = Arc::new(FixedClock::new(Timestamp::UNIX_EPOCH));
        (clock.clone(), Contests::new(clock))
    }

    fn turn(contests: &Contests) -> Result<Result<(), ClusterError>, ClusterError> {
        contests.turn(ChildKind::Service, "tenant-a", "redis").map(Turn::told)
    }

    fn quiet(contests: &Contests) -> Result<(), ClusterError> {
        contests.quiet(ChildKind::Service, "tenant-a", "redis")
    }

    #[test]
    fn who_does_not_give_up_is_answered_slowly_and_told_of() {
        let (clock, contests) = contests();
        for _ in 0..AT_ONCE {
            assert_eq!((turn(&contests), quiet(&contests)), (Ok(Ok(())), Ok(())));
        }
        let lasts = || Err(contested(ChildKind::Service, "tenant-a", "redis"));
        assert_eq!(turn(&contests), Ok(lasts()), "put back, and told");
        let mut writes = 0;
        for _ in 0..600 {
            clock.advance(Duration::from_millis(100));
            writes += usize::from(turn(&contests).is_ok());
            assert_eq!(quiet(&contests), lasts());
        }
        assert_eq!(writes, 6, "one in ten seconds");
        assert!(contests.turn(ChildKind::Service, "tenant-b", "redis").is_ok_and(|turn| turn.told().is_ok()));
        clock.advance(CALM);
        assert_eq!((quiet(&contests), turn(&contests)), (Ok(()), Ok(Ok(()))), "they have given up");
    }

    #[test]
    fn who_edits_now_and_then_is_answered_at_once() {
        let (clock, contests) = contests();
        for _ in 0..10 * AT_ONCE {
            assert_eq!(turn(&contests), Ok(Ok(())));
            clock.advance(REGAINED);
        }
    }

    #[test]
    fn what_is_calm_is_forgotten() {
        let (clock, contests) = contests();
        for number in 0..MANY {
            let _ = contests.turn(ChildKind::Service, "tenant-a", &number.to_string());
        }
        clock.advance(CALM);
        assert_eq!(turn(&contests), Ok(Ok(())));
        assert_eq!(contests.lock().len(), 1);
    }
}

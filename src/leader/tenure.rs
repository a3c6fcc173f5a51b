//! How long this process may still regard itself as the leader.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::clock::Clock;

/// Tells whether this process still leads; cheap, and right even before anybody has noticed the loss.
#[derive(Clone, Debug)]
pub struct LeaderGuard(Option<Arc<Tenure>>);

impl LeaderGuard {
    /// A guard for a process that runs without election, where an administrator sees to it that it is the only one.
    pub fn unelected() -> Self {
        Self(None)
    }

    pub(super) fn of(tenure: Arc<Tenure>) -> Self {
        Self(Some(tenure))
    }

    /// Whether a write may be sent now. Once it is false it stays false.
    pub fn is_valid(&self) -> bool {
        self.0.as_ref().is_none_or(|tenure| !tenure.left().is_zero())
    }
}

/// The time that this process may still regard itself as the leader.
#[derive(Debug)]
pub(super) struct Tenure {
    clock: Arc<dyn Clock>,
    window: Duration,
    /// `None` once it is over.
    deadline: Mutex<Option<Instant>>,
}

impl Tenure {
    /// A tenure that was first confirmed by a request sent at `sent`; every confirmation lasts `window` from then.
    pub(super) fn new(clock: Arc<dyn Clock>, window: Duration, sent: Instant) -> Self {
        Self { clock, window, deadline: Mutex::new(Some(sent + window)) }
    }

    /// Zero means over, for good.
    pub(super) fn left(&self) -> Duration {
        Self::left_of(&mut self.deadline(), self.clock.monotonic())
    }

    /// A renewal that was sent at `sent` has succeeded; false where it came too late to count.
    pub(super) fn confirm(&self, sent: Instant) -> bool {
        let mut deadline = self.deadline();
        let in_time = !Self::left_of(&mut deadline, self.clock.monotonic()).is_zero();
        if in_time {
            *deadline = Some(sent + self.window);
        }
        in_time
    }

    pub(super) fn end(&self) {
        *self.deadline() = None;
    }

    fn left_of(deadline: &mut Option<Instant>, now: Instant) -> Duration {
        let left = deadline.map_or(Duration::ZERO, |end| end.saturating_duration_since(now));
        if left.is_zero() {
            *deadline = None;
        }
        left
    }

    fn deadline(&self) -> MutexGuard<'_, Option<Instant>> {
        self.deadline.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! The only room that reads the wall clock and the monotonic clock; everyone else is handed a [`Clock`].

use std::{
    fmt::Debug,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;

/// Where the time comes from.
pub trait Clock: Debug + Send + Sync {
    /// The wall clock, for what is written into objects and shown to people. It may jump, in both directions.
    fn now(&self) -> Timestamp;

    /// A clock that never goes back, for measuring how long something took. It runs on while the process is stopped
    /// by a signal, and stands still while the machine is suspended.
    fn monotonic(&self) -> Instant;
}

/// The clocks of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

#[expect(clippy::disallowed_methods, reason = "this is the room where the clocks are read")]
impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn monotonic(&self) -> Instant {
        Instant::now()
    }
}

/// A clock for tests: it stands still until it is moved.
#[derive(Debug)]
pub struct FixedClock {
    times: Mutex<(Timestamp, Instant)>,
}

impl FixedClock {
    /// A clock whose wall time is `now`.
    #[expect(
        clippy::disallowed_methods,
        reason = "an Instant can only be made from the real clock; what counts is its later movement"
    )]
    pub fn new(now: Timestamp) -> Self {
        Self { times: Mutex::new((now, Instant::now())) }
    }

    /// Lets both clocks run on by `step`. The wall clock stays where it is at the end of what a `Timestamp` can say.
    pub fn advance(&self, step: Duration) {
        self.change(|(now, monotonic)| {
            *now = now.saturating_add(step).unwrap_or(Timestamp::MAX);
            *monotonic += step;
        });
    }

    /// Sets the wall clock alone, as an administrator or NTP does.
    pub fn set(&self, to: Timestamp) {
        self.change(|(now, _)| *now = to);
    }

    fn change<T>(&self, change: impl FnOnce(&mut (Timestamp, Instant)) -> T) -> T {
        change(&mut self.times.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Clock for FixedClock {
    fn now(&self) -> Timestamp {
        self.change(|(now, _)| *now)
    }

    fn monotonic(&self) -> Instant {
        self.change(|(_, monotonic)| *monotonic)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_clock_moves_only_when_told() {
        let clock = FixedClock::new(Timestamp::UNIX_EPOCH);
        let start = clock.monotonic();
        assert_eq!((clock.now(), clock.monotonic()), (Timestamp::UNIX_EPOCH, start));

        clock.advance(Duration::from_secs(90));
        assert_eq!(clock.now().as_second(), 90);
        assert_eq!(clock.monotonic() - start, Duration::from_secs(90));
    }

    #[test]
    fn setting_the_wall_clock_leaves_measured_time_alone() {
        let clock = FixedClock::new(Timestamp::UNIX_EPOCH);
        let start = clock.monotonic();
        clock.set(Timestamp::MAX);
        clock.advance(Duration::from_secs(1));
        assert_eq!((clock.now(), clock.monotonic() - start), (Timestamp::MAX, Duration::from_secs(1)));
    }

    #[test]
    fn the_system_clock_is_of_this_century() {
        let clock = SystemClock;
        let start = clock.monotonic();
        assert!(clock.now().as_second() > 1_700_000_000);
        assert!(clock.monotonic() >= start);
    }
}

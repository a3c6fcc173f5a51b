//! How long to wait between two attempts.

use std::time::Duration;

use sha2::{Digest, Sha256};

/// No pause is longer, in milliseconds.
const LONGEST: u64 = 300_000;

/// Pauses between the attempts for one event: they double from 1 second to 5 minutes.
///
/// The n-th pause lies between half and the whole of 2ⁿ seconds, and from the ninth on between 2.5 and 5 minutes. Where
/// in that range depends on event and attempt alone, so thousands of events that failed at once are not retried at
/// once, and a process that was started anew comes to the same pauses.
#[derive(Clone, Debug)]
pub struct Backoff(Sha256);

impl Backoff {
    /// The pauses for the event with this id.
    pub fn new(id: &str) -> Self {
        Self(Sha256::new_with_prefix(id))
    }

    /// The pause after the attempt with this number, that has failed; the first is number 1, and 0 counts as it.
    pub fn pause(&self, attempt: u32) -> Duration {
        // 2⁹ seconds are more than the longest pause already.
        let whole = (1_000 << attempt.clamp(1, 9)).min(LONGEST);
        let digest = self.0.clone().chain_update(attempt.to_be_bytes()).finalize();
        let mut head = [0; 8];
        head.copy_from_slice(&digest[..8]);
        let half = whole / 2;
        Duration::from_millis(half + u64::from_be_bytes(head) % (half + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_five_minutes() {
        for id in ["a", "b", "tenant-7/BotsStopped"] {
            let backoff = Backoff::new(id);
            for (attempt, most) in [(1, 2), (2, 4), (3, 8), (4, 16), (5, 32), (6, 64), (7, 128), (8, 256), (9, 300)] {
                let pause = backoff.pause(attempt);
                assert!(pause >= Duration::from_secs(most) / 2 && pause <= Duration::from_secs(most), "{attempt}");
            }
            for attempt in [10, 31, 64, u32::MAX] {
                let pause = backoff.pause(attempt).as_secs();
                assert!((150..=300).contains(&pause), "{attempt}: {pause}");
            }
            assert!((1_000..=2_000).contains(&backoff.pause(0).as_millis()));
        }
    }

    #[test]
    fn the_same_event_always_waits_the_same_time() {
        let pauses = |id: &str| (1..20).map(|attempt| Backoff::new(id).pause(attempt)).collect::<Vec<_>>();
        assert_eq!(pauses("acme"), pauses("acme"));
        assert_ne!(pauses("acme"), pauses("umbrella"));
    }

    /// A thousand events that failed together spread over the range, in the first round as in a late one.
    #[test]
    fn events_are_not_retried_in_step() {
        for (attempt, least, width) in [(1, 1_000, 1_000), (12, 150_000, 150_000)] {
            let mut tenths = [0; 10];
            for tenant in 0..1_000 {
                let pause = Backoff::new(&format!("tenant-{tenant}")).pause(attempt).as_millis();
                let tenth = usize::try_from((pause - least) * 10 / width).expect("a small number");
                tenths[tenth.min(9)] += 1;
            }
            assert!(tenths.iter().all(|count| (60..=140).contains(count)), "{tenths:?}");
        }
    }

    /// At the longest pause, too, the order of two events changes from round to round.
    #[test]
    fn every_round_is_shuffled_anew() {
        let backoff = Backoff::new("acme");
        assert_ne!(backoff.pause(10), backoff.pause(11));
    }
}

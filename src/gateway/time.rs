//! What time it is, for what is written and compared. A clock that is days behind would write a login as one of days ago, or drop it as no
//! news; so where the API server's clock is ahead of ours, that one counts. It is never the other way round: whoever was ahead has written
//! times already, and to one that then goes back behind them every login would be old.

use std::fmt::Display;
use std::future::Future;
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::Mutex;

use crate::clock::Clock;
use crate::domain::activity;

/// The API server is asked no more often than this.
const BELIEVED: Duration = Duration::from_secs(60);
/// It is asked again so soon where it gave no answer.
const AGAIN: Duration = Duration::from_secs(5);
/// Somebody waits, and most clocks are right.
const PATIENCE: Duration = Duration::from_secs(1);

/// Tells the time. It asks nobody by itself: only whoever wants to know the time makes it ask.
pub(super) struct Time {
    clock: Arc<dyn Clock>,
    known: StdMutex<Known>,
    asking: Mutex<()>,
}

#[derive(Default)]
struct Known {
    /// What the API server said last, and when that was by the clock that never jumps. Without an answer it goes on from there: whoever
    /// was right a minute ago is not days behind now.
    said: Option<(Timestamp, Instant)>,
    ask_at: Option<Instant>,
    behind: bool,
}

impl Time {
    /// By this clock.
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Time { clock, known: StdMutex::default(), asking: Mutex::default() }
    }

    /// The time. `ask` asks the API server for its own, and is dropped where that was asked a moment ago.
    pub(super) async fn now<E: Display>(&self, ask: impl Future<Output = Result<Timestamp, E>>) -> Timestamp {
        if self.is_old() {
            // Of many who want to know, one asks for all.
            let _alone = self.asking.lock().await;
            if self.is_old() {
                self.ask(ask).await;
            }
        }
        let (own, monotonic) = (self.clock.now(), self.clock.monotonic());
        let said = self.known().said;
        corrected(own, said.and_then(|(said, at)| said.checked_add(monotonic.saturating_duration_since(at)).ok()))
    }

    fn is_old(&self) -> bool {
        let now = self.clock.monotonic();
        self.known().ask_at.is_none_or(|at| now >= at)
    }

    async fn ask<E: Display>(&self, ask: impl Future<Output = Result<Timestamp, E>>) {
        let answer = tokio::time::timeout(PATIENCE, ask).await;
        let (own, monotonic) = (self.clock.now(), self.clock.monotonic());
        let mut known = self.known();
        let Ok(Ok(said)) = answer else {
            let error = match &answer {
                Ok(Err(error)) => error.to_string(),
                _ => format!("no answer in {PATIENCE:?}"),
            };
            tracing::debug!(error, "the API server did not tell the time");
            known.ask_at = monotonic.checked_add(AGAIN);
            return;
        };
        known.said = Some((said, monotonic));
        known.ask_at = monotonic.checked_add(BELIEVED);
        let behind = activity::in_future(said, own);
        match (known.behind, behind) {
            (false, true) => {
                let seconds = said.duration_since(own).as_secs();
                tracing::warn!(
                    seconds,
                    "the API server's clock is ahead of this machine's, and its time is used; correct the one that is wrong"
                );
            }
            (true, false) => tracing::info!("this machine's clock is right again"),
            _ => {}
        }
        known.behind = behind;
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Our own time, unless the API server's is further ahead than clocks of one cluster may differ.
fn corrected(own: Timestamp, said: Option<Timestamp>) -> Timestamp {
    said.filter(|said| activity::in_future(*said, own)).unwrap_or(own)
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::clock::FixedClock;

    const OWN: &str = "2026-06-01T00:00:00Z";
    const AHEAD: &str = "2026-06-04T00:00:00Z";

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn time() -> (Time, Arc<FixedClock>) {
        let clock = Arc::new(FixedClock::new(at(OWN)));
        (Time::new(clock.clone()), clock)
    }

    fn says(text: &str) -> impl Future<Output = Result<Timestamp, String>> {
        ready(Ok(at(text)))
    }

    fn fails() -> impl Future<Output = Result<Timestamp, String>> {
        ready(Err("it is away".to_owned()))
    }

    #[test]
    fn our_own_clock_counts_unless_it_is_behind() {
        assert_eq!(corrected(at(OWN), None), at(OWN));
        for said in ["2026-05-01T00:00:00Z", OWN, "2026-06-01T00:01:00Z"] {
            assert_eq!(corrected(at(OWN), Some(at(said))), at(OWN), "{said}: never back, and clocks differ a little");
        }
        assert_eq!(corrected(at(OWN), Some(at("2026-06-01T00:01:01Z"))), at("2026-06-01T00:01:01Z"));
    }

    #[tokio::test]
    async fn a_clock_that_is_behind_goes_on_by_the_api_servers() {
        let (time, clock) = time();
        assert_eq!(time.now(says(AHEAD)).await, at(AHEAD));
        clock.advance(Duration::from_secs(59));
        assert_eq!(time.now(fails()).await, at("2026-06-04T00:00:59Z"), "nobody is asked within a minute");
        clock.advance(Duration::from_secs(1));
        assert_eq!(time.now(fails()).await, at("2026-06-04T00:01:00Z"), "no answer takes nobody back by days");
        clock.set(at("2026-06-04T00:01:02Z"));
        assert_eq!(time.now(fails()).await, at("2026-06-04T00:01:02Z"), "its clock was corrected");
    }

    #[tokio::test]
    async fn one_asks_for_all_and_again_soon_without_an_answer() {
        let (time, clock) = time();
        let asked = AtomicUsize::new(0);
        let ask = |answer: Result<Timestamp, String>| {
            let asked = &asked;
            async move {
                asked.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
                answer
            }
        };
        let away = || Err("it is away".to_owned());
        let all = futures::future::join_all((0..20).map(|_| time.now(ask(away())))).await;
        assert!(all.iter().all(|now| *now == at(OWN)));
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        clock.advance(AGAIN);
        let all = futures::future::join_all((0..20).map(|_| time.now(ask(Ok(at(AHEAD)))))).await;
        assert!(all.iter().all(|now| *now == at(AHEAD)));
        assert_eq!(asked.load(Ordering::Relaxed), 2);
        clock.advance(BELIEVED);
        time.now(ask(Ok(at(OWN)))).await;
        assert_eq!(asked.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn silence_holds_nobody_up() {
        let (time, _) = time();
        let now = tokio::time::timeout(3 * PATIENCE, time.now::<String>(pending())).await;
        assert_eq!(now.expect("a time in time"), at(OWN));
    }
}

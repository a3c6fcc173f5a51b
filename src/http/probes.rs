//! Health and metrics: `/livez`, `/readyz` and `/metrics`.
//!
//! Alive means making progress. Work that must never stand still has a heart that beats whenever it gets something
//! done; a heart that is silent for too long makes the kubelet restart the process, which mends a wedged watch or a
//! deadlock that no error message tells of.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Router,
    http::{
        StatusCode,
        header::{CACHE_CONTROL, CONTENT_TYPE},
    },
    response::IntoResponse,
    routing::get,
};

use crate::{
    clock::Clock,
    metrics::{self, Metrics},
};

/// What this process knows about its own health; clones share it.
#[derive(Clone, Debug)]
pub struct Health {
    clock: Arc<dyn Clock>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    hearts: BTreeMap<&'static str, Heart>,
    pending: BTreeSet<&'static str>,
    unseen: BTreeSet<&'static str>,
    standing_by: bool,
}

#[derive(Debug)]
struct Heart {
    last_beat: Instant,
    max_silence: Duration,
}

impl Health {
    /// A process that is alive and ready until something is registered.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, state: Arc::default() }
    }

    /// Registers work that must make progress at least every `max_silence`; registering counts as the first beat.
    /// A second registration of a name replaces the first.
    pub fn heart(&self, name: &'static str, max_silence: Duration) {
        let last_beat = self.clock.monotonic();
        self.state().hearts.insert(name, Heart { last_beat, max_silence });
    }

    /// The work of this name got something done. A name that was never registered is a mistake in the program and
    /// changes nothing.
    pub fn progress(&self, name: &'static str) {
        let now = self.clock.monotonic();
        let mut state = self.state();
        let heart = state.hearts.get_mut(name);
        debug_assert!(heart.is_some(), "no heart is called {name:?}");
        if let Some(heart) = heart {
            heart.last_beat = now;
        }
    }

    /// The work of this name has ended as it should; its silence is no longer held against the process.
    pub fn finished(&self, name: &'static str) {
        self.state().hearts.remove(name);
    }

    /// The process is not ready before [`Health::ready`] is called with the same name.
    pub fn pending(&self, name: &'static str) {
        self.state().pending.insert(name);
    }

    /// What was pending under this name is there.
    pub fn ready(&self, name: &'static str) {
        self.state().pending.remove(name);
    }

    /// The same, and until [`Health::seen`] nothing may be concluded from what does not exist.
    pub fn announce(&self, name: &'static str) {
        let mut state = self.state();
        state.pending.insert(name);
        state.unseen.insert(name);
    }

    /// All that is announced under this name has been seen once, whatever has become of it since then.
    pub fn seen(&self, name: &'static str) {
        self.state().unseen.remove(name);
    }

    /// Whether all that was announced has been seen once.
    pub fn has_seen_all(&self) -> bool {
        self.state().unseen.is_empty()
    }

    /// This process waits until another stops leading. It is ready for that: a rollout must not wait for it to lead.
    pub fn stand_by(&self) {
        self.state().standing_by = true;
    }

    /// This process leads; from now on readiness tells of its own work.
    pub fn lead(&self) {
        self.state().standing_by = false;
    }

    fn all_is_well(&self) -> &'static str {
        if self.state().standing_by { "standing by for leadership" } else { "ready" }
    }

    /// One line for each heart that is silent for too long; none means alive.
    pub fn silent(&self) -> Vec<String> {
        let now = self.clock.monotonic();
        let state = self.state();
        let silence = state.hearts.iter().filter_map(|(name, heart)| {
            let silence = now.saturating_duration_since(heart.last_beat);
            (silence > heart.max_silence).then(|| {
                let (silence, allowed) = (silence.as_secs(), heart.max_silence.as_secs());
                format!("{name}: no progress for {silence} s, {allowed} s are allowed")
            })
        });
        silence.collect()
    }

    /// One line for each thing that is waited for; none means ready.
    pub fn waiting_for(&self) -> Vec<String> {
        self.state().pending.iter().map(|name| format!("waiting for {name}")).collect()
    }

    /// A poisoned lock still holds whole values: every change under it is a single insertion or removal.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The routes of the probe address.
pub fn routes(health: Health, metrics: Metrics) -> Router {
    let alive = health.clone();
    Router::new()
        .route("/livez", get(async move || answer(alive.silent(), "ok")))
        .route("/readyz", get(async move || answer(health.waiting_for(), health.all_is_well())))
        .route("/metrics", get(async move || ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics.encode())))
}

fn answer(problems: Vec<String>, all_is_well: &str) -> impl IntoResponse + use<> {
    let (status, lines) = if problems.is_empty() {
        (StatusCode::OK, vec![all_is_well.to_owned()])
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, problems)
    };
    let mut text = String::new();
    for line in lines {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{line}");
    }
    (status, [(CACHE_CONTROL, "no-store")], text)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::{clock::FixedClock, http::tests::ask};

    fn health() -> (Health, Arc<FixedClock>) {
        let clock = Arc::new(FixedClock::new(Timestamp::UNIX_EPOCH));
        (Health::new(clock.clone()), clock)
    }

    async fn get(health: &Health, path: &str) -> (u16, String) {
        let response = ask(routes(health.clone(), Metrics::new("1")), path).await;
        (response.status, response.body)
    }

    #[tokio::test]
    async fn alive_while_hearts_beat_in_time() {
        let (health, clock) = health();
        assert_eq!(get(&health, "/livez").await, (200, "ok\n".into()));
        health.heart("tenants", Duration::from_secs(300));
        health.heart("nodes", Duration::from_secs(60));

        clock.advance(Duration::from_secs(60));
        assert_eq!(get(&health, "/livez").await, (200, "ok\n".into()));

        clock.advance(Duration::from_secs(1));
        let silent = "nodes: no progress for 61 s, 60 s are allowed\n";
        assert_eq!(get(&health, "/livez").await, (503, silent.into()));

        clock.advance(Duration::from_secs(300));
        health.progress("nodes");
        let silent = "tenants: no progress for 361 s, 300 s are allowed\n";
        assert_eq!(get(&health, "/livez").await, (503, silent.into()));

        health.finished("tenants");
        assert_eq!(get(&health, "/livez").await, (200, "ok\n".into()));
    }

    #[tokio::test]
    async fn a_jump_of_the_wall_clock_kills_nobody() {
        let (health, clock) = health();
        health.heart("tenants", Duration::from_secs(300));
        clock.set(Timestamp::MAX);
        assert_eq!(get(&health, "/livez").await, (200, "ok\n".into()));
    }

    #[tokio::test]
    async fn ready_once_nothing_is_waited_for() {
        let (health, _) = health();
        health.pending("the watch of tenants");
        health.pending("leadership");
        let all = "waiting for leadership\nwaiting for the watch of tenants\n";
        assert_eq!(get(&health, "/readyz").await, (503, all.into()));
        assert_eq!(get(&health, "/livez").await, (200, "ok\n".into()));
        health.ready("leadership");
        let rest = "waiting for the watch of tenants\n";
        assert_eq!(get(&health, "/readyz").await, (503, rest.into()));
        health.ready("the watch of tenants");
        assert_eq!(get(&health, "/readyz").await, (200, "ready\n".into()));
    }

    #[tokio::test]
    async fn what_has_been_seen_once_may_fail_again() {
        let (health, _) = health();
        health.announce("Tenant");
        health.announce("Pod");
        health.seen("Pod");
        assert!(!health.has_seen_all());
        health.seen("Tenant");
        health.pending("Pod");
        assert!(health.has_seen_all());
        let all = "waiting for Pod\nwaiting for Tenant\n";
        assert_eq!(get(&health, "/readyz").await, (503, all.into()));
    }

    #[tokio::test]
    async fn a_standby_is_ready_and_says_what_it_is() {
        let (health, _) = health();
        health.stand_by();
        assert_eq!(get(&health, "/readyz").await, (200, "standing by for leadership\n".into()));
        health.pending("Tenant");
        health.lead();
        assert_eq!(get(&health, "/readyz").await, (503, "waiting for Tenant\n".into()));
    }

    #[tokio::test]
    async fn metrics_come_with_their_media_type() {
        let (health, _) = health();
        let response = ask(routes(health, Metrics::new("1")), "/metrics").await;
        assert_eq!(response.status, 200);
        let media_type = format!("content-type: {}", metrics::CONTENT_TYPE);
        assert!(response.head.contains(&media_type), "{}", response.head);
        assert!(response.body.ends_with("# EOF\n"));
    }
}

//! Nobody falls asleep when many would at once, when the clock jumps, when the feed is silent, or when somebody says so.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use torpor::clock::{Clock, FixedClock};
use torpor::controllers::hibernation::{Start, hibernator};
use torpor::domain::catalog::Catalog;
use torpor::domain::names;
use torpor::hibernation::breaker::{Limits, Saved};
use torpor::http::probes::Health;
use torpor::leader::LeaderGuard;
use torpor::metrics::Metrics;
use torpor_cluster::Cluster;

use super::{Objects, catalog, sleepers};
use crate::harness::eventually;
use crate::many::{client, create_tenants};
use crate::process::{Process, TORPOR};
use crate::rights::HOME;
use crate::tenants::{ensure, same, tenant};

const SOON: Duration = Duration::from_secs(40);
const CROWD: usize = 200;

fn crowd(objects: &Objects) -> Result<(), String> {
    let tenants = (0..CROWD).map(|number| tenant(&format!("t-{number}"), json!({"tier": "free"})));
    create_tenants(&objects.cluster, tenants).map(drop)
}

/// `torpor hibernator` with these arguments, run to its end: exit code and what it printed.
fn command(cluster: &Cluster, arguments: &[&str]) -> Result<(Option<i32>, String), String> {
    let output = Command::new(TORPOR)
        .arg("hibernator")
        .args(arguments)
        .env("KUBECONFIG", cluster.kubeconfig())
        .env("TORPOR_LEASE_NAMESPACE", HOME)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.code(), String::from_utf8_lossy(&text).into_owned()))
}

fn metric(hibernator: &Process, line: &str) -> Result<(), String> {
    let (_, page) = hibernator.http("/metrics")?;
    ensure(page.lines().any(|found| found == line), || format!("no {line} in {page}"))
}

/// Waits until the breaker is open for this reason, and every place where a person looks says so.
fn is_open(objects: &Objects, hibernator: &Process, reason: &str, due: usize) -> Result<(), String> {
    eventually(SOON, || {
        let data = objects.get(&["configmap", "torpor-breaker", "-n", HOME])?["data"].clone();
        ensure(data["state"] == "open" && data["reason"] == reason, || format!("{data}, {}", hibernator.log_text()))
    })?;
    eventually(SOON, || metric(hibernator, &format!("torpor_breaker_open{{reason=\"{reason}\"}} 1")))?;
    eventually(SOON, || {
        let wide = objects.kubectl(&["get", "tenants", "-o", "wide"])?;
        let held = wide.lines().filter(|line| line.contains("BreakerOpen")).count();
        same("tenants that kubectl get shows as held", &held, &due)
    })?;
    eventually(SOON, || {
        let about = objects.kubectl(&["get", "events", "-A", "--field-selector", "reason=BreakerOpened"])?;
        ensure(about.contains("torpor-breaker"), || format!("no Event BreakerOpened: {about}"))
    })?;
    if due > 0 {
        let described = objects.kubectl(&["describe", "tenant", "t-0"])?;
        ensure(described.contains("sleep is held for every tenant"), || described)?;
    }
    same("tenants asleep", &sleepers(objects)?, &0)
}

/// The catalogue is edited from days to seconds with 200 tenants: held, also over a restart, until it is released. A feed
/// that is silent holds, and so does a person.
pub fn a_crowd_is_held_until_somebody_has_looked() -> Result<(), String> {
    let objects = Objects::start()?;
    crowd(&objects)?;
    let days = objects.hibernator(&[])?;
    objects.await_decisions(CROWD)?;
    drop(days);
    // With these times a tenant younger than its first deadline would be warned in good time, and only then be held.
    std::thread::sleep(Duration::from_secs(3));
    let seconds = catalog(&objects.cluster, "seconds", &[("free", "Auto", ["2s", "600s", "1200s"])])?;
    let seconds = ["--catalog", seconds.as_str(), "--sleeps-per-minute", "100000"];
    let mut hibernator = objects.hibernator(&seconds)?;
    is_open(&objects, &hibernator, "PolicyChange", CROWD)?;
    hibernator.kill();
    let hibernator = objects.hibernator(&seconds)?;
    is_open(&objects, &hibernator, "PolicyChange", CROWD)?;
    same("warnings of what is held", &objects.events("SleepWarning")?.len(), &0)?;

    let now = Timestamp::now().to_string();
    objects.kubectl(&["annotate", "tenant", "t-7", &format!("torpor.dev/last-activity={now}")])?;
    eventually(SOON, || {
        let decision = objects.get(&["tenant", "t-7"])?["status"]["hibernation"]["decision"].clone();
        ensure(decision["basedOn"].as_str().is_some_and(|text| now.starts_with(text.trim_end_matches('Z'))), || {
            format!("activity does not count while the breaker is open: {decision}")
        })
    })?;

    let (code, said) = command(&objects.cluster, &["--release"])?;
    ensure(code == Some(0) && said.contains("200 of 200 tenants"), || format!("{code:?} {said}"))?;
    eventually(SOON, || same("tenants asleep after the release", &sleepers(&objects)?, &CROWD))?;
    eventually(SOON, || metric(&hibernator, "torpor_breaker_open{reason=\"PolicyChange\"} 0"))?;
    let (code, said) = command(&objects.cluster, &["--release"])?;
    ensure(code == Some(0) && said.contains("nothing to release"), || format!("{code:?} {said}"))
}

/// A silent feed and a person each hold; each shows, and is released by the same command.
pub fn a_silent_feed_and_a_hand_hold() -> Result<(), String> {
    let objects = Objects::start()?;
    create_tenants(&objects.cluster, (0..3).map(|number| tenant(&format!("t-{number}"), json!({"tier": "free"}))))?;
    let seconds = catalog(&objects.cluster, "seconds", &[("free", "Auto", ["4s", "600s", "1200s"])])?;
    let hibernator = objects.hibernator(&["--catalog", &seconds, "--feed-silence", "1s"])?;
    is_open(&objects, &hibernator, "FeedSilent", 3)?;
    drop(hibernator);
    let (code, said) = command(&objects.cluster, &["--release"])?;
    ensure(code == Some(0) && said.contains("no activity of any tenant"), || format!("{code:?} {said}"))?;
    let (code, said) = command(&objects.cluster, &["--hold", "database migration"])?;
    ensure(code == Some(0), || format!("{code:?} {said}"))?;
    let hibernator = objects.hibernator(&["--catalog", &seconds])?;
    eventually(SOON, || metric(&hibernator, "torpor_breaker_open{reason=\"ByHand\"} 1"))?;
    eventually(SOON, || {
        let held = objects.get(&["tenant", "t-0"])?["status"]["hibernation"]["decision"]["held"].clone();
        ensure(held.as_str().is_some_and(|held| held.contains("database migration")), || format!("held: {held}"))
    })?;
    same("tenants asleep", &sleepers(&objects)?, &0)?;
    let (code, said) = command(&objects.cluster, &["--release"])?;
    ensure(code == Some(0) && said.contains("database migration"), || format!("{code:?} {said}"))?;
    eventually(SOON, || same("tenants asleep", &sleepers(&objects)?, &3))?;

    // The same words again are the same Event again.
    for _ in 0..2 {
        let (code, said) = command(&objects.cluster, &["--hold", "lunch"])?;
        ensure(code == Some(0), || format!("{code:?} {said}"))?;
        eventually(SOON, || metric(&hibernator, "torpor_breaker_open{reason=\"ByHand\"} 1"))?;
        let (code, said) = command(&objects.cluster, &["--release"])?;
        ensure(code == Some(0), || format!("{code:?} {said}"))?;
        eventually(SOON, || metric(&hibernator, "torpor_breaker_open{reason=\"ByHand\"} 0"))?;
    }

    // Who sleeps already wakes during a hold, and a hold outlives its process and its object.
    let (code, said) = command(&objects.cluster, &["--hold", "second migration"])?;
    ensure(code == Some(0), || format!("{code:?} {said}"))?;
    eventually(SOON, || metric(&hibernator, "torpor_breaker_open{reason=\"ByHand\"} 1"))?;
    drop(hibernator);
    let hibernator = objects.hibernator(&["--catalog", &seconds])?;
    objects.kubectl(&["delete", "configmap", "torpor-breaker", "-n", HOME])?;
    eventually(SOON, || {
        let data = objects.get(&["configmap", "torpor-breaker", "-n", HOME])?["data"].clone();
        let kept = data["state"] == "open" && data["message"].as_str().is_some_and(|m| m.contains("second migration"));
        ensure(kept, || format!("the hold was lost with its object: {data}"))
    })?;
    let now = Timestamp::now().to_string();
    objects.kubectl(&["annotate", "tenant", "t-1", &format!("torpor.dev/last-activity={now}")])?;
    eventually(SOON, || same("tenants asleep after a login", &sleepers(&objects)?, &2))?;
    // Past its first deadline again, it stays awake.
    std::thread::sleep(Duration::from_secs(6));
    same("tenants asleep during the hold", &sleepers(&objects)?, &2)?;
    metric(&hibernator, "torpor_breaker_open{reason=\"ByHand\"} 1")
}

/// The hibernator's own loop in this process, with a clock that the test sets: 31 days ahead with 200 tenants.
pub fn a_clock_that_jumps_puts_nobody_to_sleep() -> Result<(), String> {
    let objects = Objects::start()?;
    crowd(&objects)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let clock = Arc::new(FixedClock::new(Timestamp::now()));
    let metrics = Metrics::new("test");
    let running = runtime.block_on(run(&objects, clock.clone(), metrics.clone()))?;
    objects.await_decisions(CROWD)?;

    clock.set(clock.now().checked_add(Duration::from_secs(31 * 86_400)).map_err(|error| error.to_string())?);
    let open = "torpor_breaker_open{reason=\"ClockJump\"} 1";
    eventually(SOON, || ensure(metrics.encode().contains(open), || metrics.encode()))?;
    eventually(SOON, || {
        let data = objects.get(&["configmap", "torpor-breaker", "-n", HOME])?["data"].clone();
        let message = data["message"].as_str().unwrap_or_default().to_owned();
        ensure(message == "the wall clock jumped by 31d", || data.to_string())
    })?;
    eventually(SOON, || {
        let held = |tenant: &&Value| {
            let held = tenant["status"]["hibernation"]["decision"]["held"].as_str().unwrap_or_default();
            held.contains("the wall clock jumped by 31d")
        };
        let tenants = objects.tenants()?;
        same("tenants that say why they are held", &tenants.iter().filter(held).count(), &CROWD)
    })?;
    same("tenants asleep", &sleepers(&objects)?, &0)?;
    same("warnings", &objects.events("SleepWarning")?.len(), &0)?;
    ensure(!running.is_finished(), || "the loop has ended".to_owned())?;
    runtime.shutdown_background();
    Ok(())
}

async fn run(
    objects: &Objects,
    clock: Arc<FixedClock>,
    metrics: Metrics,
) -> Result<tokio::task::JoinHandle<()>, String> {
    let client = client(objects.cluster.kubeconfig()).await?;
    let leader = LeaderGuard::unelected();
    let cluster = torpor::cluster::Cluster::new(names::HIBERNATOR, client.into(), &metrics, &leader);
    let start = Start {
        catalog: Catalog::default(),
        limits: Limits::default(),
        saved: Saved::default(),
        hold: None,
        webhook: None,
        give_up: jiff::SignedDuration::from_hours(24),
        store: cluster.breaker(HOME),
        leader,
        health: Health::new(clock.clone()),
        metrics,
        clock,
    };
    Ok(tokio::spawn(async move {
        if let Err(ended) = hibernator(cluster, start).await {
            eprintln!("{ended}");
        }
    }))
}

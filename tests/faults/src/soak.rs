//! A long run of one process under churn and errors: what it holds must not grow.

use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, ensure};
use serde::Serialize;

use crate::api::Api;
use crate::matrix::Settings;
use crate::observer;
use crate::plan::{Action, Match, Plan, Rule};
use crate::report::{Row, Violation};
use crate::rig::Rig;
use crate::workflow::{self, Goal, Step};

/// How long it takes where nothing else is said.
const LONG: Duration = Duration::from_secs(30 * 60);
/// Passes that as long a run is made of, at least.
const PASSES: f64 = 100_000.0;
/// Tenants that are changed all the time.
const TENANTS: usize = 24;
/// Between two changes of one tenant.
const PAUSE: Duration = Duration::from_secs(2);
/// Between two looks at the process.
const SAMPLE: Duration = Duration::from_secs(5);
/// What is held at first (lists, allocator, connections) is not growth: so much of the run is not judged.
const WARM_UP: f64 = 0.3;
/// How long everything may take to be well when nothing is broken any more.
const MENDED: Duration = Duration::from_secs(120);

/// What may grow by so much over the part of the run that is judged, without anybody calling it a leak: the allocator gives
/// pages back late.
const ALLOWED: [(&str, f64); 3] = [("memory, MiB", 1.0), ("file descriptors", 3.0), ("tasks", 3.0)];

/// How one measure went.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Measure {
    /// What was measured.
    pub name: String,
    /// The first sample after the warm-up, and the last.
    pub from: f64,
    /// The last.
    pub to: f64,
    /// Growth per hour by least squares.
    pub slope: f64,
    /// Its 95 % interval, of residuals that are taken to be normal.
    pub interval: (f64, f64),
}

/// What the run was.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Soaked {
    minutes: f64,
    passes: f64,
    changes: usize,
    faults: usize,
    measures: Vec<Measure>,
}

/// Errors at about one write in twenty.
fn errors() -> Plan {
    let answer = |code, reason: &str, retry_after| Action::Answer { code, reason: reason.to_owned(), retry_after };
    let writes = || Match { writes: true, ..Match::default() };
    let rules = [
        (97, answer(500, "InternalError", None)),
        (101, answer(429, "TooManyRequests", Some(1))),
        (103, answer(409, "Conflict", None)),
        (107, Action::Cut),
        (109, Action::CommitThenCut),
    ];
    Plan::new(rules.map(|(every, action)| Rule { of: writes(), nth: None, every: Some(every), action }).into())
}

/// Runs it and returns one row.
pub async fn run(settings: &Settings) -> Result<(Vec<Row>, Soaked)> {
    let mut rig = Rig::start(&settings.torpor, &settings.root).await?;
    let began = Instant::now();
    let end = settings.end.unwrap_or(began + LONG);
    let subjects: Vec<String> = (0..TENANTS).map(|number| format!("c-{number:05}")).collect();
    for subject in &subjects {
        Step::Create { delete_data: true }.ask(&rig.api, subject).await?;
    }
    rig.proxy.set(errors());
    let changing = futures::future::try_join_all(subjects.iter().enumerate().map(|(number, subject)| {
        let random = fastrand::Rng::with_seed(settings.seed.wrapping_add(number as u64));
        churn(&rig.api, subject, random, end)
    }));
    let (changes, samples) = tokio::join!(changing, watch(&rig, end));
    let (changes, samples) = (changes?, samples?);
    let mut row = Row::new("soak", TENANTS);
    let mut found = Vec::new();
    let faults = rig.proxy.met();
    rig.proxy.set(Plan::default());
    for subject in &subjects {
        if let Err(error) = mended(&rig.api, subject).await {
            found.push(format!("{error:#}"));
        }
    }
    for subject in &subjects {
        found.extend(observer::doubled(&rig.observer.seen(&workflow::namespace(subject))));
    }
    if let Some(code) = rig.restart_if_ended().await? {
        found.push(format!("the operator ended with {code}"));
    }
    let log = rig.operator.log_text();
    found.extend(log.lines().filter(|line| line.contains("panicked")).map(str::to_owned));
    let passes = samples.last().map_or(0.0, |sample| sample.passes);
    let soaked = Soaked {
        minutes: began.elapsed().as_secs_f64() / 60.0,
        passes,
        changes: changes.iter().sum(),
        faults,
        measures: measures(&samples),
    };
    let hours =
        judged(&samples).last().zip(judged(&samples).first()).map_or(0.0, |(last, first)| last.hours - first.hours);
    for (measure, (_, allowed)) in soaked.measures.iter().zip(ALLOWED) {
        if measure.interval.0 * hours > allowed {
            found.push(format!("grows: {measure:?}"));
        }
    }
    if soaked.minutes >= LONG.as_secs_f64() / 60.0 && passes < PASSES {
        found.push(format!("only {passes:.0} passes instead of {PASSES:.0}"));
    }
    row.violations = found.into_iter().map(|what| Violation { case: "soak".to_owned(), what }).collect();
    (row.trials, row.met, row.seconds) = (soaked.changes, soaked.faults, began.elapsed().as_secs_f64());
    println!("{:.0} passes, {} changes, {faults} faults in {:.1} min", passes, soaked.changes, soaked.minutes);
    for measure in &soaked.measures {
        let Measure { name, from, to, slope, interval } = measure;
        println!("{name}: {from:.1} to {to:.1}, {slope:+.2} an hour ({:+.2} to {:+.2})", interval.0, interval.1);
    }
    Ok((vec![row], soaked))
}

/// Asks for one thing after the other, whatever became of the last. Returns how many were asked for.
async fn churn(api: &Api, subject: &str, mut random: fastrand::Rng, end: Instant) -> Result<usize> {
    let mut count = 0;
    while Instant::now() < end {
        let step = [
            Step::ChangeSpec,
            Step::ChangeFleets,
            Step::RequestSleep,
            Step::Wake,
            Step::Wake,
            Step::Suspend(true),
            Step::Suspend(false),
            Step::Suspend(false),
        ][random.usize(..8)];
        let asked = if random.u8(..) < 8 { again(api, subject).await } else { step.ask(api, subject).await };
        // A tenant on its way out refuses changes; it comes again.
        if asked.is_ok() {
            count += 1;
        }
        tokio::time::sleep(PAUSE.mul_f64(0.5 + random.f64())).await;
    }
    Ok(count)
}

/// The tenant goes with all it has, and another of its name comes.
async fn again(api: &Api, subject: &str) -> Result<()> {
    Step::Delete.ask(api, subject).await?;
    let began = Instant::now();
    while !Goal::NamespaceGone.is_reached(api, subject).await? {
        ensure!(began.elapsed() < MENDED, "{subject} does not go");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Step::Create { delete_data: true }.ask(api, subject).await
}

async fn mended(api: &Api, subject: &str) -> Result<()> {
    let tenant = api.get(&workflow::tenant_path(subject)).await?;
    if tenant.is_none() {
        Step::Create { delete_data: true }.ask(api, subject).await?;
    }
    Step::Suspend(false).ask(api, subject).await?;
    Step::Wake.ask(api, subject).await?;
    let began = Instant::now();
    while !Goal::Ready.is_reached(api, subject).await? {
        let status = api.get(&workflow::tenant_path(subject)).await?.unwrap_or_default()["status"].clone();
        ensure!(began.elapsed() < MENDED, "{subject} is not well after all errors ended: {status}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// What the process holds at one moment.
#[derive(Clone, Copy, Debug)]
struct Sample {
    hours: f64,
    /// As in [`ALLOWED`].
    held: [f64; 3],
    passes: f64,
}

async fn watch(rig: &Rig, end: Instant) -> Result<Vec<Sample>> {
    let began = Instant::now();
    let mut samples = Vec::new();
    while Instant::now() < end {
        let pid = rig.operator.pid();
        let kib = u32::try_from(rig.operator.rss_kib().map_err(Error::msg)?)?;
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        let metrics = rig.probes.metrics(&rig.operator).await?;
        let held = [
            f64::from(kib) / 1024.0,
            f64::from(u32::try_from(descriptors)?),
            metrics.get("torpor_tasks").copied().context("no metric torpor_tasks")?,
        ];
        let passes =
            metrics.iter().filter(|(name, _)| name.starts_with("torpor_reconciles_total")).map(|(_, n)| n).sum();
        samples.push(Sample { hours: began.elapsed().as_secs_f64() / 3600.0, held, passes });
        rig.proxy.forget();
        tokio::time::sleep(SAMPLE).await;
    }
    Ok(samples)
}

fn judged(samples: &[Sample]) -> &[Sample] {
    let total = samples.last().map_or(0.0, |sample| sample.hours);
    let first = samples.iter().position(|sample| sample.hours >= WARM_UP * total).unwrap_or_default();
    &samples[first..]
}

fn measures(samples: &[Sample]) -> Vec<Measure> {
    let judged = judged(samples);
    let one = |(index, (name, _)): (usize, (&str, f64))| {
        let points: Vec<(f64, f64)> = judged.iter().map(|sample| (sample.hours, sample.held[index])).collect();
        let (slope, half) = line(&points);
        let held = |sample: Option<&Sample>| sample.map_or(f64::NAN, |sample| sample.held[index]);
        let (from, to) = (held(judged.first()), held(judged.last()));
        Measure { name: name.to_owned(), from, to, slope, interval: (slope - half, slope + half) }
    };
    ALLOWED.into_iter().enumerate().map(one).collect()
}

/// The slope of the line of least squares and half the width of its 95 % interval.
fn line(points: &[(f64, f64)]) -> (f64, f64) {
    /// Of the normal distribution; there are hundreds of samples.
    const Z: f64 = 1.96;
    let count = f64::from(u32::try_from(points.len()).unwrap_or(u32::MAX));
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let spread: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    let slope = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum::<f64>() / spread;
    let rest: f64 = points.iter().map(|point| (point.1 - y - slope * (point.0 - x)).powi(2)).sum();
    (slope, Z * (rest / (count - 2.0) / spread).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_and_how_sure_it_is() {
        let exact: Vec<(f64, f64)> = (0..10).map(|n| (f64::from(n), 3.0 * f64::from(n) + 1.0)).collect();
        let (slope, half) = line(&exact);
        assert!((slope - 3.0).abs() < 1e-9 && half < 1e-6, "{slope} {half}");
        let noisy: Vec<(f64, f64)> = (0..100).map(|n| (f64::from(n), f64::from(n % 2))).collect();
        let (slope, half) = line(&noisy);
        assert!(slope.abs() < half, "{slope} {half}");
    }

    #[test]
    fn about_one_write_in_twenty_meets_an_error() {
        use crate::request::Request;
        let mut plan = errors();
        let write = Request { verb: "patch".into(), resource: "pods".into(), ..Request::default() };
        let met = (0..10_000).filter(|_| plan.decide(&write).is_some()).count();
        assert!((450..=520).contains(&met), "{met}");
    }
}

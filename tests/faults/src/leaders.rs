//! Two leaders: one is stopped in the middle of its work for longer than its Lease, another takes over, and the first goes on.
//!
//! The request at which it was stopped is on its way meanwhile, and arrives when nobody waits for it any more.

use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, bail};

use crate::canonical::{self, Objects};
use crate::matrix::{self, Settings};
use crate::oracle;
use crate::plan::{Action, Plan};
use crate::proxy::Proxy;
use crate::report::{Row, Violation};
use crate::rig::{self, Rig};
use crate::trial::{self, Boundary, Course};
use crate::workflow::{self, Goal, Step, Workflow};
use torpor_cluster::torpor::Process;

const LEASE: [&str; 2] = ["--lease-seconds", "6"];
/// The lease, a standby's look, and a busy machine.
const TAKEOVER: Duration = Duration::from_secs(60);
/// Who was stopped past its lease must have ended by then.
const END: Duration = Duration::from_secs(12);
/// What arrives late has been put right by then, and stays so.
const SETTLED: Duration = Duration::from_secs(25);
/// Stopped at so many writes of each workflow where no sample is asked for.
const ROUNDS: usize = 6;
/// Workflows at whose writes it is stopped, and what is asked for before the late request arrives, which then means what is not wanted
/// any more.
const WORKFLOWS: [(&str, Option<(Step, Goal)>); 3] =
    [("create", None), ("change-spec", None), ("wake", Some((Step::Suspend(true), Goal::Asleep("DatabaseOnly"))))];

/// Stops the leader at writes of each workflow and returns a row each.
pub async fn run(settings: &Settings) -> Result<Vec<Row>> {
    let mut rig = Rig::start_with(&settings.torpor, &settings.root, &LEASE).await?;
    let identity = rig.cluster.serving(&["127.0.0.1"])?;
    let beside = Proxy::start(rig.cluster.server()?, rig.cluster.authority()?, &identity).await?;
    let mut rows = Vec::new();
    if !WORKFLOWS.iter().any(|(name, _)| settings.wants(name)) {
        bail!("no such workflow; there are {}", WORKFLOWS.map(|(name, _)| name).join(", "));
    }
    for (name, then) in WORKFLOWS.into_iter().filter(|(name, _)| settings.wants(name)) {
        let workflow = workflow::ALL.iter().find(|workflow| workflow.name == name).context("no such workflow")?;
        let row = of_workflow(settings, &mut rig, &beside, workflow, then).await?;
        eprintln!("{row}");
        rows.push(row);
    }
    Ok(rows)
}

async fn of_workflow(
    settings: &Settings,
    rig: &mut Rig,
    beside: &Proxy,
    workflow: &Workflow,
    then: Option<(Step, Goal)>,
) -> Result<Row> {
    let began = Instant::now();
    let subjects: Vec<String> =
        (0..=settings.sample.unwrap_or(ROUNDS)).map(|n| format!("{}-{n:02}", workflow.name)).collect();
    matrix::bring(&rig.api, workflow, &subjects).await?;
    let mut expected = trial::run(rig, workflow, &subjects[0], Vec::new(), None).await?.course;
    let mut boundaries = expected.boundaries.clone();
    boundaries.sort_by_key(ToString::to_string);
    fastrand::Rng::with_seed(settings.seed).shuffle(&mut boundaries);
    if let Some((step, goal)) = then {
        step.ask(&rig.api, &subjects[0]).await?;
        matrix::await_goal(&rig.api, goal, &subjects[0]).await?;
        tokio::time::sleep(trial::QUIET).await;
        let objects = Box::pin(workflow::objects(&rig.api, workflow, &subjects[0])).await?;
        expected.objects = without_history(canonical::objects(objects, &subjects[0]));
    }
    let program = rig::program(&rig.cluster, beside, &settings.torpor, "operator", &LEASE)?;
    let mut row = Row::new(workflow.name, expected.boundaries.len());
    for (boundary, subject) in boundaries.iter().zip(&subjects[1..]) {
        if settings.is_over() {
            row.left_out += 1;
            continue;
        }
        let mut standby = program.clone().start().map_err(Error::msg)?;
        await_text(rig, &standby, "standing by for leadership\n").await?;
        let leaders = Leaders { standby: &standby, beside, then };
        let found = round(rig, workflow, subject, boundary, &leaders, &expected).await?;
        row.trials += 1;
        row.met += usize::from(found.is_some());
        if found.is_none() {
            row.unmet.push(boundary.to_string());
        }
        for what in found.unwrap_or_default() {
            eprintln!("VIOLATION {} ({subject}), stopped before {boundary}: {what}", workflow.name);
            row.violations.push(Violation { case: format!("stopped before {boundary}"), what });
        }
        standby.kill();
        rig.restart(Plan::default()).await?;
        rig.await_ready().await?;
    }
    row.seconds = began.elapsed().as_secs_f64();
    row.seconds_each = row.each(row.seconds);
    Ok(row)
}

/// Who takes over, and what it is asked for before the first one's request arrives.
struct Leaders<'a> {
    standby: &'a Process,
    beside: &'a Proxy,
    then: Option<(Step, Goal)>,
}

/// One leader is stopped at that write. `None` where the write did not come.
async fn round(
    rig: &mut Rig,
    workflow: &Workflow,
    subject: &str,
    boundary: &Boundary,
    leaders: &Leaders<'_>,
    expected: &Course,
) -> Result<Option<Vec<String>>> {
    let mut found = Vec::new();
    let audit = rig.cluster.audit().context("chaos needs an audit log of its own")?;
    let mark = audit.mark()?;
    let (first, second) = (rig.proxy.count(), leaders.beside.count());
    let namespace = workflow::namespace(subject);
    let seen = rig.observer.mark(&namespace);
    let before = oracle::data(&Box::pin(workflow::objects(&rig.api, workflow, subject)).await?);
    rig.proxy.set(Plan::new(vec![boundary.rule(subject, Action::Hold)]));
    workflow.step.ask(&rig.api, subject).await?;
    if tokio::time::timeout(Duration::from_secs(20), rig.proxy.closed()).await.is_err() {
        return Ok(None);
    }
    rig.operator.signal("STOP").map_err(Error::msg)?;
    let stopped = Instant::now();
    await_text(rig, leaders.standby, "ready\n").await?;
    for goal in std::iter::once(workflow.goal).chain(leaders.then.map(|(_, goal)| goal)) {
        if goal != workflow.goal
            && let Some((step, _)) = leaders.then
        {
            step.ask(&rig.api, subject).await?;
        }
        while !goal.is_reached(&rig.api, subject).await? {
            if stopped.elapsed() > TAKEOVER {
                found.push(format!("the standby has not come to {goal:?}"));
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    // Now its request arrives, and whatever else it has in mind may pass.
    let number = rig.proxy.count();
    rig.proxy.set(Plan::default());
    rig.proxy.open();
    rig.operator.signal("CONT").map_err(Error::msg)?;
    let going = Instant::now();
    while rig.operator.runs() {
        if going.elapsed() > END {
            found.push("the operator that was stopped past its lease goes on".to_owned());
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    match rig.operator.ended() {
        Some(1) | None => {}
        Some(code) => found.push(format!("the operator that was stopped past its lease ended with {code}")),
    }
    let wrote = rig.proxy.since(number).into_iter().filter(|record| record.request.is_write() && record.committed());
    found.extend(wrote.map(|record| format!("an operator that was stopped past its lease wrote: {}", record.request)));

    let mut objects = Vec::new();
    let mut differences = Vec::new();
    let limit = Instant::now() + SETTLED;
    while Instant::now() < limit {
        objects = Box::pin(workflow::objects(&rig.api, workflow, subject)).await?;
        let now = canonical::objects(objects.clone(), subject);
        let now = if leaders.then.is_some() { without_history(now) } else { now };
        differences = canonical::differences(&expected.objects, &now);
        let quiet = leaders.beside.quiet(second, |request| trial::is_about(request, workflow, subject));
        if differences.is_empty() && quiet > Some(trial::QUIET) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    found.extend(differences);
    if leaders.then.is_none() {
        let events = audit.since(mark)?;
        found.extend(oracle::counts_differ("made", &expected.creations, &oracle::creations(&events, subject)));
        found.extend(oracle::counts_differ("started", &expected.pods, &oracle::pods_made(&events, subject)));
    }
    let mut records = rig.proxy.since(first);
    records.extend(leaders.beside.since(second));
    records.retain(|record| trial::is_about(&record.request, workflow, subject));
    found.extend(oracle::requests(&records, workflow));
    // Whoever is suspended afterwards has bots that stop.
    let bots = if leaders.then.is_some() { Workflow { pods: workflow::Pods::Any, ..*workflow } } else { *workflow };
    found.extend(oracle::pods(&rig.observer.seen(&namespace), seen, &bots));
    found.extend(oracle::data_lost(&before, &oracle::data(&objects), workflow));
    Ok(Some(found))
}

/// Without what tells of the past: how often something was changed, and when the tenant was woken. A late write that is put right has
/// changed it, and a late status takes away what only the status tells.
fn without_history(objects: Objects) -> Objects {
    canonical::without(objects, &[("metadata", "generation"), ("status", "wake")])
}

async fn await_text(rig: &Rig, process: &Process, wanted: &str) -> Result<()> {
    let end = Instant::now() + TAKEOVER;
    loop {
        match rig.probes.readiness(process).await {
            Ok((_, text)) if text == wanted => return Ok(()),
            other if Instant::now() > end => {
                bail!("it says {other:?}, not {wanted:?}; its log: {}", process.log_text())
            }
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

//! Two leaders: one is stopped in the middle of its work for longer than its Lease, another takes over, and the first goes on.

use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, bail};

use crate::canonical;
use crate::matrix::Settings;
use crate::oracle;
use crate::plan::{Action, Plan};
use crate::proxy::Proxy;
use crate::report::{Row, Violation};
use crate::rig::{self, Rig};
use crate::trial::{self, Boundary, Course};
use crate::workflow::{self, Workflow};
use torpor_cluster::torpor::Process;

const LEASE: [&str; 2] = ["--lease-seconds", "6"];
/// The lease, a standby's look, and a busy machine.
const TAKEOVER: Duration = Duration::from_secs(60);
/// Who was stopped past its lease must have ended by then.
const END: Duration = Duration::from_secs(12);
/// Stopped at so many writes where no sample is asked for.
const ROUNDS: usize = 12;

/// Stops the leader at writes of `create` and returns one row.
pub async fn run(settings: &Settings) -> Result<Row> {
    let began = Instant::now();
    let mut rig = Rig::start_with(&settings.torpor, &settings.root, &LEASE).await?;
    let create = workflow::ALL.iter().find(|workflow| workflow.name == "create").context("no workflow create")?;
    let expected = trial::run(&mut rig, create, "c-00000", Vec::new(), None).await?.course;
    let mut boundaries = expected.boundaries.clone();
    boundaries.sort_by_key(ToString::to_string);
    fastrand::Rng::with_seed(settings.seed).shuffle(&mut boundaries);
    boundaries.truncate(settings.sample.unwrap_or(ROUNDS));
    let identity = rig.cluster.serving(&["127.0.0.1"])?;
    let beside = Proxy::start(rig.cluster.server()?, rig.cluster.authority()?, &identity).await?;
    let program = rig::program(&rig.cluster, &beside, &settings.torpor, "operator", &LEASE)?;
    let mut row = Row::new("two leaders", expected.boundaries.len());
    for (number, boundary) in boundaries.iter().enumerate() {
        let subject = format!("c-{:05}", number + 1);
        let mut standby = program.clone().start().map_err(Error::msg)?;
        await_text(&rig, &standby, "standing by for leadership\n").await?;
        let found = round(&mut rig, create, &subject, boundary, &standby, &expected).await?;
        row.trials += 1;
        row.met += usize::from(found.is_some());
        if found.is_none() {
            row.unmet.push(boundary.to_string());
        }
        let case = format!("stopped before {boundary}");
        row.violations.extend(found.unwrap_or_default().into_iter().map(|what| Violation { case: case.clone(), what }));
        standby.kill();
        rig.restart(Plan::default()).await?;
        rig.await_ready().await?;
    }
    row.seconds = began.elapsed().as_secs_f64();
    row.seconds_each = row.each(row.seconds);
    Ok(row)
}

/// One leader is stopped at that write. `None` where the write did not come.
async fn round(
    rig: &mut Rig,
    workflow: &Workflow,
    subject: &str,
    boundary: &Boundary,
    standby: &Process,
    expected: &Course,
) -> Result<Option<Vec<String>>> {
    let mut found = Vec::new();
    let audit = rig.cluster.audit().context("chaos needs an audit log of its own")?;
    let mark = audit.mark()?;
    rig.proxy.set(Plan::new(vec![boundary.rule(subject, Action::KillBefore)]));
    workflow.step.ask(&rig.api, subject).await?;
    if tokio::time::timeout(Duration::from_secs(20), rig.proxy.closed()).await.is_err() {
        return Ok(None);
    }
    rig.operator.signal("STOP").map_err(Error::msg)?;
    let stopped = Instant::now();
    await_text(rig, standby, "ready\n").await?;
    while !workflow.goal.is_reached(&rig.api, subject).await? {
        if stopped.elapsed() > TAKEOVER {
            found.push("the standby has not finished the work".to_owned());
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    // Its held request is never answered; whatever else it has in mind may pass.
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

    let mut differences = Vec::new();
    let limit = Instant::now() + Duration::from_secs(25);
    while Instant::now() < limit {
        let objects = canonical::objects(Box::pin(workflow::objects(&rig.api, workflow, subject)).await?, subject);
        differences = canonical::differences(&expected.objects, &objects);
        if differences.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    found.extend(differences);
    let events = audit.since(mark)?;
    found.extend(oracle::counts_differ("made", &expected.creations, &oracle::creations(&events, subject)));
    found.extend(oracle::counts_differ("started", &expected.pods, &oracle::pods_made(&events, subject)));
    Ok(Some(found))
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

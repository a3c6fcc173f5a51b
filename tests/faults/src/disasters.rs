//! What befalls the whole cluster, not one request: it is set back, out of reach, out of disk, or its clocks jump.

mod away;
mod clocks;
mod disk;
mod restored;

use std::time::{Duration, Instant};

use anyhow::{Error, Result, bail};
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use serde_json::Value;

use crate::matrix::{Settings, await_goal};
use crate::oracle;
use crate::report::{Row, Violation};
use crate::rig::Rig;
use crate::workflow::{self, Goal, Step, Workflow};

/// All must be as it should so long after the end of a disaster.
const HEALED: Duration = Duration::from_secs(60);
/// What takes longer is waited for no more.
const NEVER: Duration = Duration::from_secs(300);

type Ran<'a> = LocalBoxFuture<'a, Result<()>>;
type Run = for<'a> fn(&'a Settings, &'a mut Told) -> Ran<'a>;

const ALL: [(&str, Run); 4] = [
    ("restored", |settings, told| restored::run(settings, told).boxed_local()),
    ("away", |settings, told| away::run(settings, told).boxed_local()),
    ("clocks", |settings, told| clocks::run(settings, told).boxed_local()),
    ("disk", |settings, told| disk::run(settings, told).boxed_local()),
];

/// Runs them and returns a row each.
pub async fn run(settings: &Settings) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (name, disaster) in ALL.into_iter().filter(|(name, _)| settings.wants(name)) {
        let mut told = Told::new(name);
        let ran = disaster(settings, &mut told).await;
        if let Err(error) = ran {
            told.found("the run itself", format!("{error:#}"));
        }
        rows.push(told.row());
    }
    if rows.is_empty() {
        bail!("no such disaster; there are {}", ALL.map(|(name, _)| name).join(", "));
    }
    Ok(rows)
}

/// What is found of one disaster as it goes on.
struct Told {
    row: Row,
    began: Instant,
}

impl Told {
    fn new(name: &str) -> Self {
        Self { row: Row::new(name, 0), began: Instant::now() }
    }

    fn say(&self, what: impl std::fmt::Display) {
        eprintln!("{} {:>5.0} s: {what}", self.row.workflow, self.began.elapsed().as_secs_f64());
    }

    /// Something is tried from here on.
    fn tried(&mut self, what: impl std::fmt::Display) {
        self.row.trials += 1;
        self.row.met += 1;
        self.say(what);
    }

    fn found(&mut self, case: &str, what: String) {
        eprintln!("VIOLATION {}: {case}: {what}", self.row.workflow);
        self.row.violations.push(Violation { case: case.to_owned(), what });
    }

    fn row(mut self) -> Row {
        self.row.seconds = self.began.elapsed().as_secs_f64();
        self.row.seconds_each = self.row.each(self.row.seconds);
        self.row
    }

    /// Waits until every goal is reached and tells of those that are not within [`HEALED`] of `from`.
    async fn goals(&mut self, rig: &mut Rig, case: &str, from: Instant, goals: &[(String, Goal)]) -> Result<()> {
        let mut open: Vec<&(String, Goal)> = goals.iter().collect();
        let mut kubelet = Kubelet::default();
        while !open.is_empty() && from.elapsed() < NEVER {
            let mut left = Vec::new();
            for goal in open {
                if !goal.1.is_reached(&rig.api, &goal.0).await.unwrap_or(false) {
                    left.push(goal);
                }
            }
            open = left;
            kubelet.look(rig)?;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let took = from.elapsed();
        self.say(format_args!("{case}: {} goals reached after {:.1} s", goals.len() - open.len(), took.as_secs_f64()));
        if let Some((subject, goal)) = open.first() {
            let status = rig.api.get(&workflow::tenant_path(subject)).await?.unwrap_or_default()["status"].clone();
            self.found(
                case,
                format!("{} of {} never came, such as {subject} to {goal:?}: {status}", open.len(), goals.len()),
            );
        } else if took > HEALED {
            self.found(case, format!("all goals were reached only after {took:.1?}"));
        }
        Ok(())
    }
}

/// Starts the operator again when it has ended, ever later, as a kubelet does: after 10 s, then twice that, at most 5 min.
#[derive(Default)]
struct Kubelet {
    restarts: u32,
    due: Option<Instant>,
}

impl Kubelet {
    fn look(&mut self, rig: &mut Rig) -> Result<()> {
        const FIRST: Duration = Duration::from_secs(10);
        const LAST: Duration = Duration::from_secs(300);
        if rig.operator.runs() {
            return Ok(());
        }
        let pause = FIRST.saturating_mul(2_u32.saturating_pow(self.restarts)).min(LAST);
        let due = *self.due.get_or_insert_with(|| Instant::now() + pause);
        if Instant::now() >= due {
            rig.operator.restart().map_err(Error::msg)?;
            self.restarts += 1;
            self.due = None;
        }
        Ok(())
    }
}

/// Makes tenants, each at its goal afterwards.
async fn make(rig: &Rig, steps: &[(&str, &[(Step, Goal)])]) -> Result<()> {
    let longest = steps.iter().map(|(_, steps)| steps.len()).max().unwrap_or_default();
    for round in 0..longest {
        let now: Vec<(&str, Step, Goal)> = steps
            .iter()
            .filter_map(|(subject, steps)| steps.get(round).map(|(step, goal)| (*subject, *step, *goal)))
            .collect();
        for (subject, step, _) in &now {
            step.ask(&rig.api, subject).await?;
        }
        for (subject, _, goal) in &now {
            await_goal(&rig.api, *goal, subject).await?;
        }
    }
    Ok(())
}

fn create() -> &'static Workflow {
    &workflow::ALL[0]
}

async fn objects_of(rig: &Rig, subject: &str) -> Result<Vec<Value>> {
    Box::pin(workflow::objects(&rig.api, create(), subject)).await
}

/// What no request since that number may have been.
fn forbidden(rig: &Rig, from: usize) -> Vec<String> {
    oracle::requests(&rig.proxy.since(from), create())
}

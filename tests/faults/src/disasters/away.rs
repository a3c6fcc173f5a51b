//! The API server is out of Torpor's reach for minutes, half of them refusing, half of them silent, while users go on.

use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result};

use super::{Kubelet, NEVER, Told, forbidden};
use crate::matrix::{Settings, await_goal};
use crate::oracle;
use crate::plan::{Action, Match, Plan, Rule};
use crate::rig::Rig;
use crate::workflow::{Goal, Step};

/// Enough for a queue after the return.
const TENANTS: usize = 300;
const MINUTES: u64 = 10;
/// As the chart has it: whoever comes back in a pod waits a third of the Lease of the one that ended there.
const LEASE: [&str; 4] = ["--lease-seconds", "30", "--pod-uid", "5d1c"];
/// What a user does in the meantime, one tenant in each so many.
const STRIDE: usize = 15;
/// A quiet process asks and tells little of it: an API server's answer is looked for by each watch, the Lease and the passes.
const LINES_PER_MINUTE: usize = 60;

pub(super) async fn run(settings: &Settings, told: &mut Told) -> Result<()> {
    let mut rig = Rig::start_with(&settings.torpor, &settings.root, &LEASE).await?;
    let count = settings.sample.unwrap_or(TENANTS);
    let subjects: Vec<String> = (0..count).map(|number| format!("a-{number:03}")).collect();
    for subject in &subjects {
        Step::Create { delete_data: false }.ask(&rig.api, subject).await?;
    }
    for subject in &subjects {
        await_goal(&rig.api, Goal::Ready, subject).await?;
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    let away =
        settings.end.map_or(Duration::from_secs(60 * MINUTES), |end| end.saturating_duration_since(Instant::now()));
    let audit = rig.cluster.audit().context("an audit log")?;
    let mark = audit.mark()?;
    let from = rig.proxy.count();
    let lines = rig.operator.log_text().lines().count();
    told.tried(format_args!("{count} tenants; the API server is away for {:.1} min", away.as_secs_f64() / 60.0));
    let all = |action| Plan::new(vec![Rule { of: Match::default(), nth: None, every: None, action }]);
    rig.proxy.set(all(Action::Cut));
    rig.proxy.cut_watches(Match::default());
    let began = Instant::now();
    let mut kubelet = Kubelet::default();
    let mut goals: Vec<(String, Goal)> = Vec::new();
    for (number, subject) in subjects.iter().enumerate() {
        let (step, goal) = match number % STRIDE {
            0 => (Step::ChangeSpec, Goal::Ready),
            1 => (Step::RequestSleep, Goal::Asleep("DatabaseOnly")),
            2 => (Step::Delete, Goal::Gone),
            3 => (Step::ChangeFleets, Goal::Ready),
            _ => {
                goals.push((subject.clone(), Goal::Ready));
                continue;
            }
        };
        step.ask(&rig.api, subject).await?;
        goals.push((subject.clone(), goal));
    }
    for number in 0..count.div_ceil(STRIDE) {
        let subject = format!("a-new-{number}");
        Step::Create { delete_data: false }.ask(&rig.api, &subject).await?;
        goals.push((subject, Goal::Ready));
    }
    let mut silent = false;
    while began.elapsed() < away {
        kubelet.look(&mut rig)?;
        if !silent && began.elapsed() > away / 2 {
            silent = true;
            told.say("it does not refuse any more but is silent");
            rig.proxy.set(all(Action::Silence { millis: 60_000 }));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    rig.proxy.set(Plan::default());
    let healed = Instant::now();
    told.say(format_args!("it is back; the operator was started again {} times", kubelet.restarts));
    let said = rig.operator.log_text().lines().count().saturating_sub(lines);
    let minutes = usize::try_from(away.as_secs().div_ceil(60))?;
    if said > LINES_PER_MINUTE * minutes {
        told.found("away", format!("{said} lines of log in {minutes} min"));
    }
    told.goals(&mut rig, "back again", healed, &goals).await?;
    let ready = Instant::now();
    while !rig.is_ready().await && ready.elapsed() < NEVER {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    told.say(format_args!("ready {:.1} s after", healed.elapsed().as_secs_f64()));
    let events = audit.since(mark)?;
    for (number, subject) in subjects.iter().enumerate().filter(|(number, _)| number % STRIDE > 3) {
        let made = oracle::pods_made(&events, subject);
        let created = oracle::creations(&events, subject);
        if !made.is_empty() || !created.is_empty() {
            told.found("away", format!("{number}: {subject} asked for nothing and got {made:?} {created:?}"));
        }
    }
    for what in forbidden(&rig, from) {
        told.found("away", what);
    }
    let kib = rig.operator.peak_kib().map_err(Error::msg)?;
    told.say(format_args!("the operator's peak: {} MiB", kib / 1024));
    Ok(())
}

//! Who decides about sleep and who lets users in: the hibernator and the gateway, killed at each of their writes, or answered with an
//! error, while tenants fall asleep because nobody comes, and wake because somebody does.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Error, Result, ensure};
use torpor_cluster::torpor::{Process, Program};

use crate::canonical::{self, Objects};
use crate::door::Door;
use crate::faults::{self, Fault};
use crate::matrix::{Settings, await_goal};
use crate::oracle::{self, Counts};
use crate::plan::{Action, Plan, Rule};
use crate::proxy::Proxy;
use crate::record::Record;
use crate::report::{Row, Violation};
use crate::request::text;
use crate::rig::{self, Rig};
use crate::trial::{self, Boundary};
use crate::workflow::{self, Goal, MADE, Pods, Step, Workflow};

/// What a tenant of tier basic is idle for until each stage, in seconds. All tenants must have been made before the first.
const STAGES: [(&str, &str, u64); 3] = [
    ("stopBotsAfter: 25s", "BotsStopped", 100),
    ("stopServicesAfter: 35s", "ServicesStopped", 130),
    ("databaseOnlyAfter: 45s", "DatabaseOnly", 160),
];
/// Tenants that fall asleep together: so many have been made before the first of them is due.
const ROUND: usize = 45;
/// How long the way down may take, faults included, and the way up.
const LIMIT: Duration = Duration::from_secs(300);
/// A time in an object is one of whole seconds.
const SECOND: Duration = Duration::from_secs(1);
/// That many tenants fall asleep at once is meant here.
const HIBERNATOR: [&str; 4] = ["--breaker-least", "100000", "--sleeps-per-minute", "100000"];

/// A tenant falls asleep because nobody comes.
const DOWN: Workflow = Workflow {
    name: "hibernator",
    before: &[MADE],
    step: Step::RequestSleep,
    goal: Goal::Asleep("DatabaseOnly"),
    pods: Pods::Stop,
};
/// It wakes because somebody does.
const UP: Workflow =
    Workflow { name: "gateway", before: &[MADE], step: Step::Wake, goal: Goal::Ready, pods: Pods::Start };

/// A program that is killed when its proxy says so, and started again under what is left of the plan.
struct Mortal<'a> {
    name: &'static str,
    proxy: &'a Proxy,
    program: Program,
    process: Process,
    kills: usize,
    ends: Vec<String>,
}

impl Mortal<'_> {
    /// Waits for a moment, and kills it if its time comes. One that ends by itself is started again, and that is found.
    async fn watch(&mut self, rig: &Rig) -> Result<()> {
        if tokio::time::timeout(Duration::from_millis(100), self.proxy.closed()).await.is_err() {
            if let Some(code) = self.process.ended() {
                self.ends.push(format!("{} ended by itself with code {code}", self.name));
                self.process = self.program.clone().start().map_err(Error::msg)?;
            }
            return Ok(());
        }
        self.kills += 1;
        self.process.kill();
        self.proxy.set(self.proxy.rest());
        rig.delete_lease_of(self.name).await?;
        self.proxy.open();
        self.process = self.program.clone().start().map_err(Error::msg)?;
        Ok(())
    }
}

/// One fault: where, which, and whose write it meets.
#[derive(Clone)]
struct Case {
    subject: String,
    name: String,
    write: Boundary,
    action: Action,
}

impl Case {
    /// The same with another subject.
    fn of(&self, subject: &str) -> Self {
        Self { subject: subject.to_owned(), ..self.clone() }
    }

    fn rule(&self) -> Rule {
        self.write.rule(&self.subject, self.action.clone())
    }
}

/// Kills both at their writes, and returns a row each.
pub async fn run(settings: &Settings) -> Result<Vec<Row>> {
    let mut rig = Rig::start(&settings.torpor, &settings.root).await?;
    rig.give_catalog(&catalog(&settings.root)?, Plan::default()).await?;
    rig.await_ready().await?;
    let file = rig.catalog.display().to_string();
    let catalog = ["--catalog", file.as_str()];
    let (below, above) = (proxy(&rig).await?, proxy(&rig).await?);
    let of = |proxy: &Proxy, name: &str, arguments: &[&str]| {
        rig::program(&rig.cluster, proxy, &settings.torpor, name, arguments)
    };
    let program = of(&below, "hibernator", &[&catalog[..], &HIBERNATOR].concat())?;
    let process = program.clone().start().map_err(Error::msg)?;
    let mut hibernator = Mortal { name: "hibernator", proxy: &below, program, process, kills: 0, ends: Vec::new() };
    let (door, process) = Door::open(&rig, settings, of(&above, "gateway", &[])?).await?;
    let mut gateway =
        Mortal { name: "gateway", proxy: &above, program: door.program.clone(), process, kills: 0, ends: Vec::new() };

    // Undisturbed: what there is to be met, and what it comes to.
    let first = ["d-first".to_owned()];
    let made = make(&rig, &first).await?;
    let awake = sleep(&rig, &mut hibernator, &first).await?;
    ensure!(awake.is_empty(), "undisturbed, {awake:?} does not fall asleep");
    let asleep = Seen::of(&rig, &DOWN, &first[0]).await?;
    let writes = boundaries(&below, &DOWN, &first[0]);
    let mut down = Row::new(DOWN.name, writes.len());
    for what in judge(&rig, &below.since(0), &first[0], &made[&first[0]]).await? {
        found(&mut down, "undisturbed", &first[0], what);
    }
    door.post(&first[0], "activity").await?;
    await_goal(&rig.api, Goal::Ready, &first[0]).await?;
    let asks = boundaries(&above, &UP, &first[0]);
    ensure!(!writes.is_empty() && !asks.is_empty(), "hibernator or gateway has written nothing");
    let (falls, wakes) = (cases(&writes, settings), cases(&asks, settings));
    let mut up = Row::new(UP.name, asks.len());
    for (row, writes, chosen) in [(&mut down, &writes, &falls), (&mut up, &asks, &wakes)] {
        row.not_chosen = writes.len() * faults().len() - chosen.len();
    }
    let mut wakes = wakes.into_iter();
    for (round, falls) in falls.chunks(ROUND).enumerate() {
        if round > 0 && settings.is_over() {
            down.left_out += falls.len();
            continue;
        }
        let began = Instant::now();
        let subjects: Vec<String> = falls.iter().map(|case| case.subject.clone()).collect();
        let number = below.count();
        // Its first writes come while others are made.
        below.set(plan(falls));
        let made = make_beside(&rig, &mut hibernator, &subjects).await?;
        for subject in sleep(&rig, &mut hibernator, &subjects).await? {
            let case = falls.iter().find(|case| case.subject == subject);
            found(&mut down, case.map_or("", |case| &case.name), &subject, format!("awake after {LIMIT:?}"));
        }
        for end in std::mem::take(&mut hibernator.ends) {
            found(&mut down, "a fault", "all", end);
        }
        count(&mut down, falls, &below.rest(), began);
        below.set(Plan::default());
        let records = below.since(number);
        for Case { subject, name, action, .. } in falls {
            let now = Seen::of(&rig, &DOWN, subject).await?;
            let mut wrong = judge(&rig, &records, subject, &made[subject]).await?;
            wrong.extend(canonical::differences(&asleep.objects, &now.objects));
            // What is told late is told of a deeper stage, and leaves that its whole lead.
            let late = matches!(action, Action::Silence { .. }) && !now.told.is_empty();
            if !late || now.told.iter().any(|(what, count)| asleep.told.get(what).is_none_or(|usual| count > usual)) {
                wrong.extend(oracle::counts_differ("told", &asleep.told, &now.told));
            }
            for what in wrong {
                found(&mut down, name, subject, what);
            }
        }
        eprintln!("{down}\nthe hibernator was killed {} times", hibernator.kills);

        // Those that sleep now are woken, each by itself.
        let began = Instant::now();
        let now: Vec<Case> = subjects.iter().zip(wakes.by_ref()).map(|(subject, case)| case.of(subject)).collect();
        above.set(plan(&now));
        for Case { subject, name, .. } in &now {
            let before = Before::of(&rig, &UP, subject).await?;
            let number = above.count();
            let woken = log_in(&rig, &mut gateway, &door, subject).await;
            let mut wrong = before.lost(&rig, &UP, subject).await?;
            wrong.extend(woken.err().map(|error| format!("{error:#}")));
            wrong.append(&mut gateway.ends);
            wrong.extend(oracle::requests(&about(&above.since(number), &UP, subject), &UP));
            for what in wrong {
                found(&mut up, name, subject, what);
            }
        }
        count(&mut up, &now, &above.rest(), began);
        above.set(Plan::default());
        eprintln!("{up}\nthe gateway was killed {} times", gateway.kills);
    }
    up.left_out += wakes.len();
    Ok(vec![down, up])
}

async fn proxy(rig: &Rig) -> Result<Proxy> {
    Proxy::start(rig.cluster.server()?, rig.cluster.authority()?, &rig.cluster.serving(&["127.0.0.1"])?).await
}

/// A catalogue by which idle tenants sleep after a minute.
fn catalog(root: &Path) -> Result<String> {
    let mut text = std::fs::read_to_string(root.join("examples/catalog-demo.yaml"))?;
    for (line, _, seconds) in STAGES {
        ensure!(text.contains(line), "examples/catalog-demo.yaml does not say {line}");
        let key = line.split_once(' ').map_or(line, |(key, _)| key);
        text = text.replace(line, &format!("{key} {seconds}s"));
    }
    Ok(text)
}

/// The writes of a program that are about a subject.
fn boundaries(proxy: &Proxy, workflow: &Workflow, subject: &str) -> Vec<Boundary> {
    trial::boundaries(&about(&proxy.since(0), workflow, subject), subject)
}

fn about(records: &[Record], workflow: &Workflow, subject: &str) -> Vec<Record> {
    records.iter().filter(|record| trial::is_about(&record.request, workflow, subject)).cloned().collect()
}

/// What is tried at each write.
fn faults() -> Vec<Fault> {
    [faults::kills(), faults::errors().at_writes].concat()
}

/// A subject for each fault at each of these writes, or for so many.
fn cases(writes: &[Boundary], settings: &Settings) -> Vec<Case> {
    let faults = faults();
    let mut all: Vec<_> = writes.iter().flat_map(|write| faults.iter().map(move |fault| (write, fault))).collect();
    fastrand::Rng::with_seed(settings.seed).shuffle(&mut all);
    all.truncate(settings.sample.unwrap_or(usize::MAX));
    let case = |(number, (write, fault)): (usize, (&Boundary, &Fault))| {
        let name = format!("{write}: {}", fault.name);
        Case { subject: String::new(), name, write: write.clone(), action: fault.action.clone() }
            .of(&format!("d-{number:03}"))
    };
    all.into_iter().enumerate().map(case).collect()
}

fn plan(cases: &[Case]) -> Plan {
    Plan::new(cases.iter().map(Case::rule).collect())
}

/// Counts which cases have been met.
fn count(row: &mut Row, cases: &[Case], rest: &Plan, began: Instant) {
    let unmet = cases.iter().filter(|case| rest.rules.contains(&case.rule()));
    let before = row.unmet.len();
    row.unmet.extend(unmet.map(|case| case.name.clone()));
    row.trials += cases.len();
    row.met += cases.len() - (row.unmet.len() - before);
    row.seconds += began.elapsed().as_secs_f64();
    row.seconds_each = row.each(row.seconds);
}

fn found(row: &mut Row, case: &str, subject: &str, what: String) {
    eprintln!("VIOLATION {} ({subject}): {case}: {what}", row.workflow);
    row.violations.push(Violation { case: format!("{case} ({subject})"), what });
}

/// What there is of a subject, and what it was told.
struct Seen {
    objects: Objects,
    /// How often it was warned. Events that tell of decisions are lost with the process.
    told: Counts,
}

impl Seen {
    async fn of(rig: &Rig, workflow: &Workflow, subject: &str) -> Result<Self> {
        let objects = canonical::objects(Box::pin(workflow::objects(&rig.api, workflow, subject)).await?, subject);
        let mut told = Counts::new();
        for event in rig.api.list("/apis/events.k8s.io/v1/namespaces/default/events").await? {
            let by = text(&event["reportingController"]);
            let reason = text(&event["reason"]);
            if event["regarding"]["name"] == subject && by.contains("hibernator") && reason == "SleepWarning" {
                *told.entry(reason).or_default() += 1;
            }
        }
        Ok(Self { objects, told })
    }
}

/// What there was before something happens.
struct Before {
    seen: usize,
    data: BTreeMap<String, String>,
}

impl Before {
    async fn of(rig: &Rig, workflow: &Workflow, subject: &str) -> Result<Self> {
        let data = oracle::data(&Box::pin(workflow::objects(&rig.api, workflow, subject)).await?);
        Ok(Self { seen: rig.observer.mark(&workflow::namespace(subject)), data })
    }

    /// What has become of data and pods that may not.
    async fn lost(&self, rig: &Rig, workflow: &Workflow, subject: &str) -> Result<Vec<String>> {
        let data = oracle::data(&Box::pin(workflow::objects(&rig.api, workflow, subject)).await?);
        let mut wrong = oracle::data_lost(&self.data, &data, workflow);
        wrong.extend(oracle::pods(&rig.observer.seen(&workflow::namespace(subject)), self.seen, workflow));
        Ok(wrong)
    }
}

/// A tenant that nobody has come to since.
struct Made {
    at: Instant,
    before: Before,
}

/// Makes tenants, all of them awake.
async fn make(rig: &Rig, subjects: &[String]) -> Result<BTreeMap<String, Made>> {
    let began = Instant::now();
    let mut times = Vec::new();
    for subject in subjects {
        times.push(Instant::now());
        MADE.0.ask(&rig.api, subject).await?;
    }
    for subject in subjects {
        await_goal(&rig.api, MADE.1, subject).await?;
    }
    let before = subjects.iter().map(|subject| Before::of(rig, &DOWN, subject));
    let before = futures::future::try_join_all(before).await?;
    let named = subjects.iter().zip(times).zip(before);
    let made = named.map(|((subject, at), before)| (subject.clone(), Made { at, before })).collect();
    let (_, stage, first) = STAGES[0];
    ensure!(began.elapsed().as_secs() < first, "{} tenants took so long to make that {stage} is due", subjects.len());
    Ok(made)
}

/// Makes tenants while the hibernator is killed when its time comes.
async fn make_beside(rig: &Rig, hibernator: &mut Mortal<'_>, subjects: &[String]) -> Result<BTreeMap<String, Made>> {
    let all_made = Cell::new(false);
    let making = async {
        let made = make(rig, subjects).await;
        all_made.set(true);
        made
    };
    let watching = async {
        while !all_made.get() {
            hibernator.watch(rig).await?;
        }
        Ok(())
    };
    let (made, watched): (Result<_>, Result<()>) = tokio::join!(making, watching);
    watched?;
    made
}

/// Waits until all sleep as deep as they may and nothing more is written. Returns who does not.
async fn sleep(rig: &Rig, hibernator: &mut Mortal<'_>, subjects: &[String]) -> Result<Vec<String>> {
    const STILL: Duration = Duration::from_secs(3);
    let began = Instant::now();
    let mut awake = subjects.to_vec();
    loop {
        hibernator.watch(rig).await?;
        let mut left = Vec::new();
        for subject in awake {
            if !DOWN.goal.is_reached(&rig.api, &subject).await? {
                left.push(subject);
            }
        }
        awake = left;
        let quiet = [&rig.proxy, hibernator.proxy].map(|proxy| proxy.quiet(0, |_| true));
        if awake.is_empty() && quiet.iter().all(|quiet| quiet.is_some_and(|quiet| quiet > STILL)) {
            return Ok(awake);
        }
        if began.elapsed() > LIMIT {
            return Ok(awake);
        }
    }
}

/// What is wrong with what the hibernator wrote about a tenant, and with what became of it.
async fn judge(rig: &Rig, records: &[Record], subject: &str, made: &Made) -> Result<Vec<String>> {
    let records = about(records, &DOWN, subject);
    let mut wrong = made.before.lost(rig, &DOWN, subject).await?;
    wrong.extend(oracle::requests(&records, &DOWN));
    let mut deepest = 0;
    for record in records.iter().filter(|record| record.committed()) {
        let stage = text(&record.body["status"]["hibernation"]["decision"]["stage"]);
        let Some((_, _, due)) = STAGES.iter().find(|(_, name, _)| *name == stage) else { continue };
        let idle = record.at.saturating_duration_since(made.at) + SECOND;
        if idle < Duration::from_secs(*due) {
            wrong.push(format!("{stage} was decided after {idle:?}"));
        }
        if *due < deepest {
            wrong.push(format!("{stage} was decided after a deeper stage"));
        }
        deepest = deepest.max(*due);
    }
    Ok(wrong)
}

/// Logs in until that is answered, and waits until the tenant is awake.
async fn log_in(rig: &Rig, gateway: &mut Mortal<'_>, door: &Door, subject: &str) -> Result<()> {
    let began = Instant::now();
    loop {
        let asked = {
            let mut asking = std::pin::pin!(door.post(subject, "activity"));
            loop {
                tokio::select! {
                    asked = &mut asking => break asked,
                    () = gateway.proxy.closed() => gateway.watch(rig).await?,
                }
            }
        };
        match asked {
            Ok(()) => break,
            Err(error) => ensure!(began.elapsed() < LIMIT, "nobody can log in to {subject}: {error:#}"),
        }
        gateway.watch(rig).await?;
    }
    gateway.watch(rig).await?;
    await_goal(&rig.api, Goal::Ready, subject).await
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::request::Request;

    #[test]
    fn a_case_is_met_when_its_rule_is_left_no_more() {
        let request = Request { verb: "patch".into(), resource: "tenants".into(), ..Request::default() };
        let write = Boundary { request: request.clone(), nth: 1 };
        let case = Case { subject: "d-1".into(), name: String::new(), write, action: Action::KillAfter };
        let cases = [case.of("d-1"), Case { write: Boundary { request: request.clone(), nth: 2 }, ..case }];
        let mut all = plan(&cases);
        all.decide(&request);
        let mut row = Row::new("x", 1);
        count(&mut row, &cases, &all.rest(), Instant::now());
        assert_eq!((row.trials, row.met), (2, 1));
        assert!(json!(all.rest()).to_string().contains("\"nth\":2"));
    }
}

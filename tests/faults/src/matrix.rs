//! Every write of every workflow, met by every fault.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;
use torpor_cluster::hash;

use crate::api::Api;
use crate::faults::{Fault, Faults};
use crate::plan::{Plan, View};
use crate::refused;
use crate::report::{Row, Violation};
use crate::request::Request;
use crate::rig::Rig;
use crate::trial::{self, Boundary, Course, Start};
use crate::workflow::{self, Goal, Step, Workflow};

/// So many subjects are made at once, and wait for their turn.
const CHUNK: usize = 24;
/// So many cases that leave the process alive are tried with one subject.
const HAND: usize = 4;
/// With so many subjects at once. Most of the time is spent on waiting for what is tried again after a minute.
const TABLE: usize = 64;
/// With so many where the writes are Events.
const TABLE_OF_EVENTS: usize = 12;
/// What was not met among others is tried once more by itself.
const ROUNDS: usize = 2;
/// How long they may take to be where the workflow begins.
const PREPARED: Duration = Duration::from_secs(300);
/// A boundary that was not met, because its write was not necessary that time, is tried so often.
const ATTEMPTS: usize = 3;

/// What is run, and how much of it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The binary under test.
    pub torpor: PathBuf,
    /// The project's folder.
    pub root: PathBuf,
    /// Clusters beside each other.
    pub lanes: usize,
    /// Only workflows whose name contains this, or one of these, separated by commas.
    pub only: Option<String>,
    /// So many trials in all instead of every one.
    pub sample: Option<usize>,
    /// Chooses which.
    pub seed: u64,
    /// So many pairs of kills of each of `create` and `wake`.
    pub pairs: usize,
    /// Nothing is begun any more after that; what was left out is told.
    pub end: Option<Instant>,
    /// The undisturbed course of each workflow, once it is known.
    pub courses: Courses,
}

/// Courses by workflow. They tell nothing of the cluster that they were seen in.
pub type Courses = Arc<Mutex<BTreeMap<&'static str, Course>>>;

impl Settings {
    /// Whether something of this name is to be run.
    pub fn wants(&self, name: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only.split(',').any(|part| name.contains(part)))
    }

    /// Whether nothing is begun any more.
    pub fn is_over(&self) -> bool {
        self.end.is_some_and(|end| Instant::now() > end)
    }
}

/// One thing to try: faults that follow on each other, or a view of the cluster.
#[derive(Clone, Debug, Default)]
struct Case {
    met: Vec<(Boundary, Fault)>,
    throughout: Option<(&'static str, View)>,
    /// Every request like this one is refused.
    refused: Option<Request>,
}

impl Case {
    fn name(&self) -> String {
        let met = self.met.iter().map(|(boundary, fault)| format!("{boundary}: {}", fault.name));
        let parts = met.chain(self.throughout.map(|(name, _)| name.to_owned()));
        let parts = parts.chain(self.refused.as_ref().map(|request| format!("{request}: refused for good")));
        parts.collect::<Vec<_>>().join(", then ")
    }

    /// Whether it is about an Event.
    fn is_of_an_event(&self) -> bool {
        self.met.iter().any(|(boundary, _)| boundary.request.resource == "events")
    }

    /// The plan of each process.
    fn plans(&self, subject: &str) -> Vec<Plan> {
        let mut view = self.throughout.map_or(View::AS_IT_IS, |(_, view)| view);
        let mut plans = Vec::new();
        for (boundary, fault) in &self.met {
            plans.push(Plan::new(vec![boundary.rule(subject, fault.action.clone())]).shown(view));
            view = fault.then;
        }
        if view != View::AS_IT_IS {
            plans.push(Plan::default().shown(view));
        }
        plans
    }
}

/// Runs the matrix of these faults and returns a row for each workflow, in order.
pub fn run(settings: &Settings, faults: &Faults) -> Result<Vec<Row>> {
    let wanted = |workflow: &&Workflow| settings.wants(workflow.name);
    let chosen: Vec<Workflow> = workflow::ALL.iter().filter(wanted).copied().collect();
    if chosen.is_empty() {
        bail!("no such workflow; there are {}", workflow::ALL.map(|workflow| workflow.name).join(", "));
    }
    // Where time runs out it is not always the same ones that are left out.
    let mut order = chosen.clone();
    fastrand::Rng::with_seed(settings.seed).shuffle(&mut order);
    let queue = Mutex::new(VecDeque::from(order));
    let rows = Mutex::new(Vec::new());
    let share = settings.sample.map(|sample| sample.div_ceil(chosen.len()));
    std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..settings.lanes.min(chosen.len()))
            .map(|_| scope.spawn(|| lane(settings, faults, share, &queue, &rows)))
            .collect();
        lanes.into_iter().try_for_each(|lane| lane.join().unwrap_or_else(|_| bail!("a lane panicked")))
    })?;
    let mut rows = rows.into_inner().unwrap_or_else(PoisonError::into_inner);
    rows.sort_by_key(|row: &Row| chosen.iter().position(|workflow| workflow.name == row.workflow));
    Ok(rows)
}

fn lane(
    settings: &Settings,
    faults: &Faults,
    share: Option<usize>,
    queue: &Mutex<VecDeque<Workflow>>,
    rows: &Mutex<Vec<Row>>,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut rig = Rig::start(&settings.torpor, &settings.root).await?;
        if faults.second_server {
            rig.start_second().await?;
        }
        let mut lane = Lane { rig, subjects: 0 };
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(workflow) = next else { return Ok(()) };
            let row = if settings.is_over() {
                not_begun(&workflow, faults, settings, share)
            } else {
                let row = lane.workflow(&workflow, faults, settings, share).await;
                row.unwrap_or_else(|error| lane.broken_off(&workflow, &error))
            };
            eprintln!("{row}");
            rows.lock().unwrap_or_else(PoisonError::into_inner).push(row);
        }
    })
}

/// A workflow for which no time was left. How many cases that are is known where its course is, from another part of the run.
fn not_begun(workflow: &Workflow, faults: &Faults, settings: &Settings, share: Option<usize>) -> Row {
    let known = settings.courses.lock().unwrap_or_else(PoisonError::into_inner).get(workflow.name).cloned();
    let count = |share| known.as_ref().map_or(0, |course| cases(workflow, course, faults, settings, share).len());
    let (left_out, all) = (count(share), count(None));
    let boundaries = known.as_ref().map_or(0, |course| course.boundaries.len());
    Row { left_out, not_chosen: all - left_out, not_begun: true, ..Row::new(workflow.name, boundaries) }
}

struct Lane {
    rig: Rig,
    subjects: usize,
}

impl Lane {
    async fn workflow(
        &mut self,
        workflow: &Workflow,
        faults: &Faults,
        settings: &Settings,
        share: Option<usize>,
    ) -> Result<Row> {
        let began = Instant::now();
        let courses = || settings.courses.lock().unwrap_or_else(PoisonError::into_inner);
        let known = courses().get(workflow.name).cloned();
        let (expected, mut violations) = match known {
            Some(course) => (course, Vec::new()),
            None => self.reference(workflow).await?,
        };
        if violations.is_empty() {
            courses().insert(workflow.name, expected.clone());
        }
        let cases = cases(workflow, &expected, faults, settings, share);
        let mut row = Row::new(workflow.name, expected.boundaries.len());
        row.not_chosen = self::cases(workflow, &expected, faults, settings, None).len() - cases.len();
        row.writes = expected.boundaries.iter().map(ToString::to_string).collect();
        let found = (&mut row, &mut violations);
        let trying = if faults.together && !workflow.is_of_all() {
            self.together(workflow, cases, &expected, settings, found).await?
        } else {
            self.one_by_one(workflow, &cases, &expected, settings, found).await?
        };
        row.violations = violations;
        row.seconds = began.elapsed().as_secs_f64();
        row.seconds_each = row.each(trying.as_secs_f64());
        Ok(row)
    }

    /// Runs cases one after the other, each with a subject and where need be a process of its own. Returns how long they took.
    async fn one_by_one(
        &mut self,
        workflow: &Workflow,
        cases: &[Case],
        expected: &Course,
        settings: &Settings,
        (row, violations): (&mut Row, &mut Vec<Violation>),
    ) -> Result<Duration> {
        let mut trying = Duration::ZERO;
        let chunk = if workflow.step == Step::ChangeCatalog { 1 } else { CHUNK };
        for some in cases.chunks(chunk) {
            if settings.is_over() {
                row.left_out += some.len();
                continue;
            }
            let subjects = self.prepare(workflow, some.len()).await?;
            let all: Vec<&str> = subjects.iter().map(String::as_str).collect();
            let begun = Start::of(&self.rig, workflow, &all).await?;
            for (case, subject) in some.iter().zip(&subjects) {
                if settings.is_over() {
                    row.left_out += 1;
                    continue;
                }
                let began = Instant::now();
                let met = self.case(workflow, case, subject, expected, violations).await?;
                trying += began.elapsed();
                row.trials += 1;
                row.met += usize::from(met);
                if !met {
                    row.unmet.push(case.name());
                }
            }
            // What happened to a subject in its own turn is told already.
            let mut others = begun.look_back(&self.rig, workflow).await?;
            others.retain(|(_, what)| !violations.iter().any(|told| told.what == *what));
            for (subject, what) in others {
                tell(workflow, "in another's turn", &subject, vec![what], violations);
            }
            self.clean(workflow, &subjects).await;
            let (name, tried, of) = (workflow.name, row.trials, cases.len());
            eprintln!("{name}: {tried} of {of} cases, {} violations", violations.len());
        }
        Ok(trying)
    }

    /// Runs cases that leave the process alive, many subjects at once. What was not met is dealt once more, one case to each. Returns
    /// how long they took.
    async fn together(
        &mut self,
        workflow: &Workflow,
        cases: Vec<Case>,
        expected: &Course,
        settings: &Settings,
        (row, violations): (&mut Row, &mut Vec<Violation>),
    ) -> Result<Duration> {
        let mut random = fastrand::Rng::with_seed(settings.seed ^ hash(&[workflow.name, "together"]));
        let (began, in_all) = (Instant::now(), cases.len());
        let (told, others): (Vec<Case>, Vec<Case>) = cases.into_iter().partition(Case::is_of_an_event);
        // Events are sent one after the other.
        for (mut cases, table) in [(others, TABLE), (told, TABLE_OF_EVENTS)] {
            for round in 0..ROUNDS {
                random.shuffle(&mut cases);
                let hand = if round == 0 { HAND } else { 1 };
                let mut unmet = Vec::new();
                for hands in deal(std::mem::take(&mut cases), hand).chunks(table) {
                    if settings.is_over() {
                        let left = hands.iter().flatten().cloned();
                        if round == 0 {
                            row.left_out += left.count();
                        } else {
                            unmet.extend(left);
                        }
                        continue;
                    }
                    unmet.extend(self.sitting(workflow, hands, expected, violations).await?);
                    let (name, left) = (workflow.name, unmet.len());
                    eprintln!("{name}: {left} of {in_all} cases not met so far, {} violations", violations.len());
                }
                cases = unmet;
            }
            row.unmet.extend(cases.iter().map(Case::name));
        }
        row.trials = in_all - row.left_out;
        row.met = row.trials - row.unmet.len();
        for name in &row.unmet {
            eprintln!("{}: not met: {name}", workflow.name);
        }
        Ok(began.elapsed())
    }

    /// Lets each of as many subjects as there are hands meet the cases of one. Returns those that were not met.
    async fn sitting(
        &mut self,
        workflow: &Workflow,
        hands: &[Vec<Case>],
        expected: &Course,
        violations: &mut Vec<Violation>,
    ) -> Result<Vec<Case>> {
        let subjects = self.prepare(workflow, hands.len()).await?;
        let rules = |(subject, hand): (&String, &Vec<Case>)| {
            let met = hand.iter().flat_map(|case| &case.met);
            (subject.clone(), met.map(|(boundary, fault)| boundary.rule(subject, fault.action.clone())).collect())
        };
        let runs: Vec<_> = subjects.iter().zip(hands).map(rules).collect();
        let (tried, ended) = trial::run_together(&mut self.rig, workflow, &runs, expected).await?;
        if let Some(code) = ended {
            let what = format!("the operator ended by itself with {code}");
            tell(workflow, "one of all cases", "all", vec![what], violations);
        }
        let mut unmet = Vec::new();
        for ((outcome, met), (hand, subject)) in tried.into_iter().zip(hands.iter().zip(&subjects)) {
            let (met, missed): (Vec<_>, Vec<_>) = hand.iter().zip(met).partition(|(_, met)| *met);
            let names: Vec<String> = met.iter().map(|(case, _)| case.name()).collect();
            for line in outcome.writes.iter().filter(|_| !outcome.violations.is_empty()) {
                eprintln!("  {line}");
            }
            tell(workflow, &names.join(" and "), subject, outcome.violations, violations);
            unmet.extend(missed.into_iter().map(|(case, _)| case.clone()));
        }
        self.clean(workflow, &subjects).await;
        Ok(unmet)
    }

    /// A workflow that could not be run to its end is none without violations.
    fn broken_off(&self, workflow: &Workflow, error: &anyhow::Error) -> Row {
        const LINES: usize = 5;
        let log = self.rig.operator.log_text();
        let told: Vec<&str> = log.lines().filter(|line| line.contains(" WARN ") || line.contains(" ERROR ")).collect();
        let last = told[told.len().saturating_sub(LINES)..].join("\n  ");
        let what = format!("{error:#}; the operator's last warnings:\n  {last}");
        eprintln!("VIOLATION {}: {what}", workflow.name);
        let violations = vec![Violation { case: "the run itself".to_owned(), what }];
        Row { violations, ..Row::new(workflow.name, 0) }
    }

    /// Two undisturbed runs, which must be alike: what they have in common is what every other run is held against. The
    /// boundaries are those of both.
    async fn reference(&mut self, workflow: &Workflow) -> Result<(Course, Vec<Violation>)> {
        let mut subjects = self.prepare(workflow, if workflow.is_of_all() { 1 } else { 2 }).await?;
        let mut course = trial::run(&mut self.rig, workflow, &subjects[0], Vec::new(), None).await?;
        if workflow.is_of_all() {
            subjects.extend(self.prepare(workflow, 1).await?);
        }
        let again = trial::run(&mut self.rig, workflow, &subjects[1], Vec::new(), Some(&course.course)).await?;
        course.violations.extend(again.violations);
        let named = course.violations.into_iter();
        let mut violations: Vec<Violation> =
            named.map(|what| Violation { case: "undisturbed".to_owned(), what }).collect();
        for boundary in again.course.boundaries {
            if !course.course.boundaries.contains(&boundary) {
                course.course.boundaries.push(boundary);
            }
        }
        if course.course.boundaries.is_empty() {
            let what = "nothing was written".to_owned();
            violations.push(Violation { case: "undisturbed".to_owned(), what });
        }
        self.clean(workflow, &subjects).await;
        Ok((course.course, violations))
    }

    /// Runs one case, again with another subject where nothing was met. Returns whether all faults were.
    async fn case(
        &mut self,
        workflow: &Workflow,
        case: &Case,
        subject: &str,
        expected: &Course,
        violations: &mut Vec<Violation>,
    ) -> Result<bool> {
        if let Some(refused) = &case.refused {
            let tried = refused::run(&mut self.rig, workflow, subject, refused, expected).await;
            let (wrong, met) = tried.with_context(|| format!("{}: {}", workflow.name, case.name()))?;
            tell(workflow, &case.name(), subject, wrong, violations);
            return Ok(met);
        }
        let (mut subject, mut more) = (subject.to_owned(), Vec::new());
        let mut met = false;
        for attempt in 1..=ATTEMPTS {
            let plans = case.plans(&subject);
            self.rig.doomed = case.met.iter().find_map(|(_, fault)| fault.component);
            let outcome = trial::run(&mut self.rig, workflow, &subject, plans, Some(expected)).await;
            let outcome = outcome.with_context(|| format!("{}: {}", workflow.name, case.name()))?;
            for line in outcome.writes.iter().filter(|_| !outcome.violations.is_empty()) {
                eprintln!("  {line}");
            }
            tell(workflow, &case.name(), &subject, outcome.violations, violations);
            met = outcome.met >= case.met.len();
            if met || attempt == ATTEMPTS {
                break;
            }
            subject = self.prepare(workflow, 1).await?.remove(0);
            more.push(subject.clone());
        }
        self.clean(workflow, &more).await;
        Ok(met)
    }

    /// New subjects where the workflow begins.
    async fn prepare(&mut self, workflow: &Workflow, count: usize) -> Result<Vec<String>> {
        let subjects: Vec<String> = (0..count).map(|more| format!("c-{:05}", self.subjects + more)).collect();
        self.subjects += count;
        self.rig.usual_catalog().await?;
        bring(&self.rig.api, workflow, &subjects).await?;
        if !workflow.before.is_empty() {
            // What is told late of the way here would be taken for a write of the workflow.
            self.settle(&subjects).await;
        }
        Ok(subjects)
    }

    async fn settle(&self, subjects: &[String]) {
        const STILL: Duration = Duration::from_secs(2);
        let end = Instant::now() + Duration::from_secs(40);
        loop {
            let about = |name: &str| subjects.iter().any(|subject| name.contains(subject.as_str()));
            let quiet = self.rig.proxy.quiet(0, |request| about(&request.namespace) || about(&request.name));
            if quiet.is_some_and(|quiet| quiet >= STILL) || Instant::now() > end {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Takes down what is done with. Nobody waits for it, and what is left disturbs nobody.
    async fn clean(&self, workflow: &Workflow, subjects: &[String]) {
        for subject in subjects {
            if workflow.is_of_pool() {
                let _ = Step::DeletePool.ask(&self.rig.api, subject).await;
                for set in ["a", "b"] {
                    let _ = self.rig.api.delete(&format!("/api/v1/nodes/{subject}-{set}")).await;
                }
                continue;
            }
            let policy = json!({"spec": {"deletionPolicy": "Delete"}});
            let _ = self.rig.api.patch(&workflow::tenant_path(subject), &policy).await;
            let _ = Step::Delete.ask(&self.rig.api, subject).await;
        }
    }
}

/// Hands of so many cases, which one subject meets, each at a write that is like none of the others: an error makes for one write more.
fn deal(mut cases: Vec<Case>, hand: usize) -> Vec<Vec<Case>> {
    let write = |case: &Case| case.met.first().map(|(boundary, _)| boundary.request.to_string());
    cases.sort_by_cached_key(write);
    let alike = cases.chunk_by(|one, other| write(one) == write(other)).map(<[_]>::len).max().unwrap_or_default();
    let count = cases.len().div_ceil(hand).max(alike);
    let mut hands = vec![Vec::new(); count];
    for (number, case) in cases.into_iter().enumerate() {
        hands[number % count].push(case);
    }
    hands
}

fn tell(workflow: &Workflow, case: &str, subject: &str, found: Vec<String>, violations: &mut Vec<Violation>) {
    for what in found {
        eprintln!("VIOLATION {} ({subject}): {case}: {what}", workflow.name);
        violations.push(Violation { case: format!("{case} ({subject})"), what });
    }
}

/// Brings new subjects to where the workflow begins.
pub(crate) async fn bring(api: &Api, workflow: &Workflow, subjects: &[String]) -> Result<()> {
    for (step, goal) in workflow.before {
        for subject in subjects {
            step.ask(api, subject).await?;
        }
        for subject in subjects {
            await_goal(api, *goal, subject).await?;
        }
    }
    Ok(())
}

/// Waits until the goal is reached.
pub(crate) async fn await_goal(api: &Api, goal: Goal, subject: &str) -> Result<()> {
    let end = Instant::now() + PREPARED;
    while !goal.is_reached(api, subject).await? {
        if Instant::now() > end {
            let tenant = api.get(&workflow::tenant_path(subject)).await?.unwrap_or_default();
            bail!("{subject} does not come to {goal:?}: {}", tenant["status"]);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// Every boundary with every fault, or so many of them, and pairs of kills.
fn cases(
    workflow: &Workflow,
    course: &Course,
    faults: &Faults,
    settings: &Settings,
    share: Option<usize>,
) -> Vec<Case> {
    let mut boundaries = course.boundaries.clone();
    // What happens side by side happens in any order; a sample by seed must not depend on it.
    boundaries.sort_by_key(ToString::to_string);
    let mut random = fastrand::Rng::with_seed(settings.seed ^ hash(&[workflow.name]));
    let single = |boundary: &Boundary| {
        let boundary = boundary.clone();
        let met = move |fault: &Fault| Case { met: vec![(boundary.clone(), fault.clone())], ..Case::default() };
        faults.at_writes.iter().map(met)
    };
    let throughout = faults.throughout.iter().map(|view| Case { throughout: Some(*view), ..Case::default() });
    let refused = boundaries.iter().filter(|boundary| faults.refused && boundary.nth == 1);
    let refused = refused.map(|boundary| Case { refused: Some(boundary.request.clone()), ..Case::default() });
    let mut cases: Vec<Case> = boundaries.iter().flat_map(single).chain(throughout).chain(refused).collect();
    if let Some(share) = share {
        random.shuffle(&mut cases);
        cases.truncate(share);
    }
    let faults = &faults.at_writes;
    // A second process comes after a kill, and a second fault with it.
    let kills = !faults.is_empty() && faults.iter().all(|fault| fault.action.kills());
    if kills && matches!(workflow.name, "create" | "wake") && !boundaries.is_empty() {
        for _ in 0..settings.pairs {
            // In the order of the run: the second is met only if the first process has not come so far.
            let first = random.usize(..course.boundaries.len());
            let second = random.usize(first..course.boundaries.len());
            let at = |index: usize, fault: usize| (course.boundaries[index].clone(), faults[fault].clone());
            let met = vec![at(first, random.usize(..faults.len())), at(second, random.usize(..faults.len()))];
            cases.push(Case { met, ..Case::default() });
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults;

    #[test]
    fn nobody_is_dealt_the_same_write_twice() {
        let boundary = |name: &str| Boundary { request: Request { name: name.into(), ..Request::default() }, nth: 1 };
        let course = Course { boundaries: ["a", "b", "c", "d", "e"].map(boundary).into(), ..Course::default() };
        let settings = Settings {
            torpor: PathBuf::new(),
            root: PathBuf::new(),
            lanes: 1,
            only: None,
            sample: None,
            seed: 1,
            pairs: 0,
            end: None,
            courses: Courses::default(),
        };
        let cases = cases(&workflow::ALL[0], &course, &faults::errors(), &settings, None);
        let hands = deal(cases, HAND);
        assert_eq!((hands.len(), hands.iter().map(Vec::len).sum::<usize>()), (12, 45));
        let of_one = hands.iter().flatten().filter(|case| case.met[0].0.request.name == "a").cloned().collect();
        for hand in hands.into_iter().chain(deal(of_one, HAND)) {
            let mut writes: Vec<String> = hand.iter().map(|case| case.met[0].0.to_string()).collect();
            writes.sort();
            writes.dedup();
            assert_eq!(writes.len(), hand.len(), "{writes:?}");
        }
    }
}

//! One run of a workflow under a plan, and its judgement.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use torpor_cluster::{AuditEvent, AuditMark};

use crate::canonical::{self, Objects, SUBJECT};
use crate::oracle::{self, Counts};
use crate::plan::{Action, Match, Plan, Rule};
use crate::record::Record;
use crate::request::Request;
use crate::rig::Rig;
use crate::workflow::{self, Workflow};

/// For so long nothing is written about the subject before its objects are looked at.
pub(crate) const QUIET: Duration = Duration::from_millis(600);
/// An undisturbed run must have been silent for longer than a status is told late.
const QUIET_UNDISTURBED: Duration = Duration::from_secs(6);
/// Objects that differ after so much silence will not change any more.
const SETTLED: Duration = Duration::from_secs(25);
/// A run that has not arrived by then does not arrive.
const LIMIT: Duration = Duration::from_secs(120);
/// Nor may one be on its way for so long after what it stands on was started again: what was refused by an API server that does not know
/// its rights yet is tried again after a minute.
const HEALED: Duration = Duration::from_secs(75);
/// So much more where all that the process hears is late: of two API servers, of which one is, some writes take seconds each.
const LIMIT_LATE: Duration = Duration::from_secs(60);
/// So much more for each further error that it meets: what is refused is tried again after a minute.
const LIMIT_MORE: Duration = Duration::from_secs(80);

/// One write of a workflow: the so-manieth of its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boundary {
    /// The request, with [`SUBJECT`] in place of the subject's name.
    pub request: Request,
    /// Counted from 1.
    pub nth: usize,
}

impl std::fmt::Display for Boundary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.request)?;
        if self.nth > 1 { write!(f, " #{}", self.nth) } else { Ok(()) }
    }
}

impl Boundary {
    /// The rule that does this at the boundary, for a subject.
    pub fn rule(&self, subject: &str, action: Action) -> Rule {
        let mut request = self.request.clone();
        request.name = request.name.replace(SUBJECT, subject);
        request.namespace = request.namespace.replace(SUBJECT, subject);
        Rule { of: Match::like(&request), nth: Some(self.nth), every: None, action }
    }
}

/// What one run was like.
#[derive(Clone, Debug, Default)]
pub struct Course {
    /// Its objects at the end.
    pub objects: Objects,
    /// What the operator made.
    pub creations: Counts,
    /// What StatefulSets made.
    pub pods: Counts,
    /// What the operator ended.
    pub deletions: Counts,
    /// The operator's writes in order.
    pub boundaries: Vec<Boundary>,
}

/// How a run went.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// What it was like.
    pub course: Course,
    /// How many requests met a rule.
    pub met: usize,
    /// What it should not have been like.
    pub violations: Vec<String>,
    /// How long it took from the ask to the end.
    pub took: Duration,
    /// The operator's writes, for who wants to know how it came to this.
    pub writes: Vec<String>,
}

/// Whether a request is about a subject.
pub(crate) fn is_about(request: &Request, workflow: &Workflow, subject: &str) -> bool {
    let class = workflow.is_of_pool() && request.resource == "priorityclasses";
    class || request.namespace.ends_with(subject) || request.name.contains(subject)
}

/// Runs a workflow for a subject that is where the workflow begins. The plans are those of the first process and of those that
/// follow when it is killed. Without `expected` it is a course to compare others with.
pub async fn run(
    rig: &mut Rig,
    workflow: &Workflow,
    subject: &str,
    plans: Vec<Plan>,
    expected: Option<&Course>,
) -> Result<Outcome> {
    let start = Start::of(rig, workflow, &[subject]).await?;
    let lateness = plans.iter().map(|plan| plan.view.latest()).max().unwrap_or_default();
    let behind = plans.last().is_some_and(|plan| plan.view.second_behind > 0);
    let limit = LIMIT + LIMIT_LATE * u32::from(!lateness.is_zero());
    rig.proxy.remember(&rig.api.version().await?);

    let way = Way { workflow, subject, expected, number: start.number, lateness, limit, among: false };
    let unlogged = rig.doomed.is_some();
    rig.healed = None;
    let mut plans = plans.into_iter();
    rig.proxy.set(plans.next().unwrap_or_default());
    let mut outcome = Outcome::default();
    let began = Instant::now();
    rig.ask(workflow.step, subject).await?;
    let found = Box::pin(arrive(rig, &way, &mut plans, &mut outcome)).await?;
    outcome.took = began.elapsed();
    let healed = rig.healed.take().map(|healed| healed.elapsed().saturating_sub(way.quiet()));
    outcome.met += rig.proxy.met();
    // Of a kill that was not met there is no second process.
    let followed = plans.next().is_none();
    if behind && followed && !rig.proxy.since(start.number).iter().any(|record| record.second) {
        outcome.violations.push("nothing was asked of the second API server".to_owned());
    }
    rig.proxy.set(Plan::default());
    let events = start.events(rig).await?;
    // Controllers and scheduler, each on its own, wait for up to a minute before they list again what their watches have lost.
    if let Some(took) = healed.filter(|took| *took > HEALED && !oracle::waited_for_others(&events, subject)) {
        outcome.violations.push(format!("has arrived {took:?} after what was killed was started again"));
    }
    start.judge(rig, &way, (&events, unlogged), began, found, &mut outcome);
    Ok(outcome)
}

/// How several subjects went, which of its rules each had met when it arrived, and the code with which the operator ended by itself.
pub type Together = (Vec<(Outcome, Vec<bool>)>, Option<i32>);

/// Runs a workflow for several subjects at once, each under rules of its own that leave the process alive.
pub async fn run_together(
    rig: &mut Rig,
    workflow: &Workflow,
    runs: &[(String, Vec<Rule>)],
    expected: &Course,
) -> Result<Together> {
    let subjects: Vec<&str> = runs.iter().map(|(subject, _)| subject.as_str()).collect();
    let start = Start::of(rig, workflow, &subjects).await?;
    rig.proxy.set(Plan::new(runs.iter().flat_map(|(_, rules)| rules.clone()).collect()));
    let began = Instant::now();
    for subject in &subjects {
        workflow.step.ask(&rig.api, subject).await?;
    }
    let way = |run| Way::among(workflow, run, expected, start.number);
    let mut first = 0;
    let arrivals = runs.iter().map(|run| {
        let own = first..first + run.1.len();
        first = own.end;
        arrive_undisturbed(rig, way(run), own)
    });
    let arrivals = futures::future::try_join_all(arrivals).await?;
    rig.proxy.set(Plan::default());
    let ended = rig.restart_if_ended().await?;
    let events = start.events(rig).await?;
    let judged = runs.iter().zip(arrivals).map(|(run, (found, met, mut outcome))| {
        start.judge(rig, &way(run), (&events, false), began, found, &mut outcome);
        (outcome, met)
    });
    Ok((judged.collect(), ended))
}

/// What there was before a step is asked for.
pub(crate) struct Start {
    audited: AuditMark,
    /// Of the first request that belongs to it.
    number: usize,
    /// Of each subject, how much of its bots had been seen, and its data.
    before: BTreeMap<String, (usize, BTreeMap<String, String>)>,
}

impl Start {
    pub(crate) async fn of(rig: &Rig, workflow: &Workflow, subjects: &[&str]) -> Result<Self> {
        let audited = rig.cluster.audit().context("chaos needs an audit log of its own")?.mark()?;
        let number = rig.proxy.count();
        let mut before = BTreeMap::new();
        for subject in subjects {
            let seen = rig.observer.mark(&workflow::namespace(subject));
            let data = oracle::data(&Box::pin(workflow::objects(&rig.api, workflow, subject)).await?);
            before.insert((*subject).to_owned(), (seen, data));
        }
        Ok(Self { audited, number, before })
    }

    /// What has befallen these subjects since, whoever of them was to be disturbed: those that had waited for their turn, and those
    /// that had arrived.
    pub(crate) async fn look_back(&self, rig: &Rig, workflow: &Workflow) -> Result<Vec<(String, String)>> {
        // Those of before may be on their way out.
        let mut records = rig.proxy.since(self.number);
        records.retain(|record| self.before.keys().any(|subject| is_about(&record.request, workflow, subject)));
        let mut found: Vec<(String, String)> =
            oracle::requests(&records, workflow).into_iter().map(|what| ("all".to_owned(), what)).collect();
        for (subject, (seen, before)) in &self.before {
            let after = oracle::data(&Box::pin(workflow::objects(&rig.api, workflow, subject)).await?);
            let mut wrong = oracle::data_lost(before, &after, workflow);
            wrong.extend(oracle::pods(&rig.observer.seen(&workflow::namespace(subject)), *seen, workflow));
            found.extend(wrong.into_iter().map(|what| (subject.clone(), what)));
        }
        Ok(found)
    }

    async fn events(&self, rig: &Rig) -> Result<Vec<AuditEvent>> {
        // The log follows the answers within a moment.
        tokio::time::sleep(Duration::from_millis(50)).await;
        rig.cluster.audit().context("chaos needs an audit log of its own")?.since(self.audited)
    }

    /// Holds what was found of a subject against what is expected. Of what is `unlogged` the audit log may have lost lines.
    fn judge(
        &self,
        rig: &Rig,
        way: &Way<'_>,
        (events, unlogged): (&[AuditEvent], bool),
        began: Instant,
        found: Vec<Value>,
        outcome: &mut Outcome,
    ) {
        let Way { workflow, subject, expected, .. } = *way;
        let Some((seen, before)) = self.before.get(subject) else { return };
        let mut records = rig.proxy.since(self.number);
        records.retain(|record| is_about(&record.request, workflow, subject));
        outcome.writes =
            records.iter().filter(|record| record.request.is_write()).map(|record| told(record, began)).collect();
        let mut course = Course {
            objects: canonical::objects(found.clone(), subject),
            creations: oracle::creations(events, subject),
            pods: oracle::pods_made(events, subject),
            deletions: oracle::deletions(&records, subject),
            boundaries: boundaries(&records, subject),
        };
        let violations = &mut outcome.violations;
        violations.extend(oracle::requests(&records, workflow));
        violations.extend(oracle::order(&records));
        violations.extend(oracle::pods(&rig.observer.seen(&workflow::namespace(subject)), *seen, workflow));
        violations.extend(oracle::data_lost(before, &oracle::data(&found), workflow));
        if let Some(expected) = expected {
            if unlogged {
                oracle::complete(&mut course.creations, &expected.creations);
                oracle::complete(&mut course.pods, &expected.pods);
            }
            violations.extend(canonical::differences(&expected.objects, &course.objects));
            violations.extend(oracle::counts_differ("made", &expected.creations, &course.creations));
            violations.extend(oracle::counts_differ("started", &expected.pods, &course.pods));
            violations.extend(oracle::counts_differ("deleted", &expected.deletions, &course.deletions));
        }
        outcome.course = course;
    }
}

/// What is on its way.
struct Way<'a> {
    workflow: &'a Workflow,
    subject: &'a str,
    expected: Option<&'a Course>,
    /// Of the first request that belongs to it.
    number: usize,
    /// What the process does not know yet is not decided on yet.
    lateness: Duration,
    /// A run that has not arrived by then does not arrive.
    limit: Duration,
    /// Whether there are others beside it. Events are sent one after the other, so its own may wait for theirs.
    among: bool,
}

impl<'a> Way<'a> {
    /// That of one among others, under its own rules.
    fn among(
        workflow: &'a Workflow,
        (subject, rules): &'a (String, Vec<Rule>),
        expected: &'a Course,
        number: usize,
    ) -> Self {
        let more = u32::try_from(rules.len().saturating_sub(1)).unwrap_or(u32::MAX);
        let limit = LIMIT + LIMIT_MORE.saturating_mul(more);
        Self { workflow, subject, expected: Some(expected), number, lateness: Duration::ZERO, limit, among: true }
    }

    /// For so long nothing is written before it counts as done.
    fn quiet(&self) -> Duration {
        self.lateness + if self.expected.is_some() { QUIET } else { QUIET_UNDISTURBED }
    }

    /// What is found, once the goal is reached and nothing more happens, or nothing more is to be hoped for. `since`: from when on the
    /// goal was reached and the process ready.
    async fn look(
        &self,
        rig: &Rig,
        began: Instant,
        since: &mut Option<Instant>,
        outcome: &mut Outcome,
    ) -> Result<Option<Vec<Value>>> {
        let Self { workflow, subject, expected, number, .. } = *self;
        let late = began.elapsed() > self.limit;
        let about =
            |request: &Request| is_about(request, workflow, subject) || self.among && request.resource == "events";
        let quiet = rig.proxy.quiet(number, about).unwrap_or_default();
        if quiet < self.quiet() && !late {
            return Ok(None);
        }
        let reached = workflow.goal.is_reached(&rig.api, subject).await.unwrap_or(false);
        if !reached && !late {
            return Ok(None);
        }
        if since.is_none() && rig.is_ready().await {
            *since = Some(Instant::now());
        }
        let quiet = quiet.min(since.map_or(Duration::ZERO, |since| since.elapsed()));
        if quiet < self.quiet() && !late {
            return Ok(None);
        }
        let found = Box::pin(workflow::objects(&rig.api, workflow, subject)).await?;
        let same = match expected {
            Some(expected) => canonical::objects(found.clone(), subject) == expected.objects,
            None => true,
        };
        if same && reached {
            let own = |request: &Request| is_about(request, workflow, subject);
            if late && rig.proxy.quiet(number, own).unwrap_or_default() < QUIET {
                outcome.violations.push(format!("is as it is to be, and never quiet within {:?}", self.limit));
            }
            return Ok(Some(found));
        }
        if late {
            let state = if reached { "is never quiet" } else { "has not arrived" };
            outcome.violations.push(format!("{state} within {:?}", self.limit));
            ensure!(expected.is_some(), "{}: an undisturbed run {state}", workflow.name);
        }
        Ok((late || quiet > SETTLED).then_some(found))
    }
}

/// Waits until the goal is reached and nothing more happens, or nothing more is to be hoped for. Kills and restarts on the way.
async fn arrive(
    rig: &mut Rig,
    way: &Way<'_>,
    plans: &mut impl Iterator<Item = Plan>,
    outcome: &mut Outcome,
) -> Result<Vec<Value>> {
    let began = Instant::now();
    let mut ready_since: Option<Instant> = None;
    loop {
        let killed = tokio::select! {
            () = rig.proxy.closed() => true,
            // The component dies while the request is on its way.
            () = rig.proxy.meeting(), if rig.doomed.is_some() => false,
            () = tokio::time::sleep(Duration::from_millis(100)) => false,
        };
        if killed {
            outcome.met += rig.proxy.met();
            rig.restart(plans.next().unwrap_or_default()).await?;
            ready_since = None;
            continue;
        }
        rig.doom().await?;
        if let Some(code) = rig.restart_if_ended().await? {
            outcome.violations.push(format!("the operator ended by itself with {code}"));
            ready_since = None;
            continue;
        }
        if let Some(found) = Box::pin(way.look(rig, began, &mut ready_since, outcome)).await? {
            return Ok(found);
        }
    }
}

/// The same of one among others, by whose rules no process is killed. Tells which of its own rules were met, too.
async fn arrive_undisturbed(rig: &Rig, way: Way<'_>, own: Range<usize>) -> Result<(Vec<Value>, Vec<bool>, Outcome)> {
    let (began, mut since, mut outcome) = (Instant::now(), None, Outcome::default());
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        if let Some(found) = Box::pin(way.look(rig, began, &mut since, &mut outcome)).await? {
            let met = rig.proxy.met_rules().get(own).unwrap_or_default().to_vec();
            outcome.took = began.elapsed();
            return Ok((found, met, outcome));
        }
    }
}

/// When a write came, what it was, and what became of it.
fn told(record: &Record, began: Instant) -> String {
    let replicas = &record.body["spec"]["replicas"];
    let replicas = if replicas.is_null() { String::new() } else { format!(" replicas {replicas}") };
    let code = record.code.map_or_else(|| "unanswered".to_owned(), |code| code.to_string());
    let after = record.at.saturating_duration_since(began).as_secs_f64();
    format!("{after:>6.2} s {}{replicas}: {code}", record.request)
}

/// The writes among these, Leases apart, each the so-manieth of its kind.
pub(crate) fn boundaries(records: &[Record], subject: &str) -> Vec<Boundary> {
    let mut found: Vec<Boundary> = Vec::new();
    for record in records.iter().filter(|record| record.request.is_write() && !record.request.is_lease()) {
        let mut request = record.request.clone();
        request.name = request.name.replace(subject, SUBJECT);
        request.namespace = request.namespace.replace(subject, SUBJECT);
        let nth = 1 + found.iter().filter(|boundary| boundary.request == request).count();
        found.push(Boundary { request, nth });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundaries_are_numbered_and_lead_back_to_their_requests() {
        let request = Request {
            verb: "apply".into(),
            resource: "services".into(),
            namespace: "tenant-c-1".into(),
            name: "redis".into(),
            ..Request::default()
        };
        let record = Record {
            number: 0,
            at: Instant::now(),
            ended: Instant::now(),
            request: request.clone(),
            body: Value::Null,
            code: None,
            delivered: false,
            second: false,
        };
        let found = boundaries(&[record.clone(), record], "c-1");
        assert_eq!(found[1].to_string(), "apply services tenant-$subject/redis #2");
        let rule = found[1].rule("c-2", Action::Cut);
        assert_eq!((rule.of.namespace.as_deref(), rule.nth), (Some("tenant-c-2"), Some(2)));
        assert!(!rule.of.takes(&request));
    }
}

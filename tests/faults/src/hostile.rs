//! Objects whose fields hold anything: refused when they are applied, or Stalled soon with a message, and nobody else notices.

pub mod cases;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::{Value, json};
use torpor_cluster::torpor::Process;

use self::cases::{Case, Field};
use crate::api::Api;
use crate::broken_watch::Probe;
use crate::matrix::Settings;
use crate::report::{Row, Violation};
use crate::request::text;
use crate::rig::Rig;
use crate::workflow::{self, Step};

/// Within this an accepted object is handled: what is wrong with it stands in its conditions.
const HANDLED: Duration = Duration::from_secs(5);
/// What other tenants wait for the operator meanwhile.
const REACTION: Duration = Duration::from_secs(2);
/// So many times that is looked at before.
const BEFORE: usize = 10;
/// How long the objects may take to be well again when their fields are.
const MENDED: Duration = Duration::from_secs(120);
/// So many objects of a kind are changed beside each other.
const LANES: usize = 8;
/// A case in all of three kinds where no sample is asked for.
const CASES: usize = 10_000;
/// Whose Service is deleted again and again, to see how soon it is there again.
const BYSTANDER: &str = "bystander";
/// The tenant whose fleets are changed.
const HOST: &str = "host";

const BASE: &str = "/apis/torpor.dev/v1alpha1";

/// What of a kind is changed, and how large its share of the cases is.
struct Kind {
    name: &'static str,
    definition: &'static str,
    /// A JSON pointer.
    part: &'static str,
    percent: u32,
}

const SPEC: &str = "/spec";
const ANNOTATIONS: &str = "/metadata/annotations";

const KINDS: [Kind; 4] = [
    Kind { name: "Tenant", definition: "tenants", part: SPEC, percent: 55 },
    Kind { name: "Tenant", definition: "tenants", part: ANNOTATIONS, percent: 5 },
    Kind { name: "BotFleet", definition: "botfleets", part: SPEC, percent: 25 },
    Kind { name: "WorkerPool", definition: "workerpools", part: SPEC, percent: 15 },
];

/// What users and portals tell by annotations of a Tenant.
const TOLD: [&str; 4] = [
    "torpor.dev/last-activity",
    "torpor.dev/sleep-requested-at",
    "torpor.dev/wake-requested-at",
    "torpor.dev/hibernate",
];

impl Kind {
    /// What it is called.
    fn title(&self) -> String {
        if self.part == SPEC { self.name.to_owned() } else { format!("{} annotations", self.name) }
    }

    /// Its fields.
    fn fields(&self, rig: &Rig, settings: &Settings) -> Result<Vec<Field>> {
        if self.part == ANNOTATIONS {
            let properties: Value = TOLD.iter().map(|name| ((*name).to_owned(), json!({"type": "string"}))).collect();
            return Ok(cases::fields(&json!({"properties": properties})));
        }
        let file = settings.root.join(format!("crds/{}.torpor.dev.yaml", self.definition));
        let definition =
            rig.cluster.kubectl(["create", "--dry-run=client", "-o", "json", "-f", &file.display().to_string()])?;
        let definition: Value = serde_json::from_str(&definition)?;
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        let fields = cases::fields(schema);
        ensure!(!fields.is_empty(), "{} has no fields", self.name);
        Ok(fields)
    }

    /// A sound object of a name.
    fn object(&self, name: &str, lane: usize) -> Value {
        json!({"apiVersion": "torpor.dev/v1alpha1", "kind": self.name,
            "metadata": {"name": name, "annotations": untold()}, "spec": self.sound(lane)})
    }

    fn collection(&self) -> String {
        match self.name {
            "BotFleet" => format!("{BASE}/namespaces/{}/botfleets", workflow::namespace(HOST)),
            _ => format!("{BASE}/{}", self.definition),
        }
    }

    /// A sound object's spec.
    fn sound(&self, lane: usize) -> Value {
        let strategy = json!({"kind": "script", "config": "script_file_name: a.py\n"});
        match self.name {
            "Tenant" => json!({"tier": "premium", "fleets": [{"name": "a", "replicas": 1, "strategy": strategy}]}),
            "BotFleet" => json!({"replicas": 1, "strategy": strategy}),
            _ => json!({"tiers": ["premium"], "nodeSelector": {"hostile": format!("nodes-{lane}")},
                "priority": {"class": "torpor-critical", "value": 1_000_000}}),
        }
    }
}

/// Annotations that say nothing to Torpor.
fn untold() -> Value {
    json!({"example.com/kept": "yes"})
}

/// What became of the cases of one kind.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    kind: String,
    fields: usize,
    cases: usize,
    refused: usize,
    stalled: usize,
    taken: usize,
    /// The slowest that an accepted object was handled, in seconds.
    slowest_handled: f64,
    /// The reaction for another tenant before and meanwhile, the median of each and the slowest, in seconds, and how many were timed.
    reaction_before: f64,
    reaction: f64,
    slowest_reaction: f64,
    reactions: usize,
}

/// Runs all of it: a row and counts for each kind.
pub async fn run(settings: &Settings) -> Result<(Vec<Row>, Vec<Counts>)> {
    let mut rig = Rig::start(&settings.torpor, &settings.root).await?;
    for tenant in [BYSTANDER, HOST] {
        Step::Create { delete_data: false }.ask(&rig.api, tenant).await?;
    }
    let host = json!({"spec": {"tier": "premium", "fleets": null}});
    rig.api.patch(&workflow::tenant_path(HOST), &host).await?;
    for tenant in [BYSTANDER, HOST] {
        await_well(&rig.api, &workflow::tenant_path(tenant)).await?;
    }
    // They read the same objects.
    let mut others = rig.start_others(&settings.torpor)?;
    let all = settings.sample.unwrap_or(CASES);
    let (mut rows, mut counts) = (Vec::new(), Vec::new());
    let kinds = KINDS.iter().filter(|kind| settings.only.as_deref().is_none_or(|only| kind.title().contains(only)));
    let kinds: Vec<&Kind> = kinds.collect();
    for (number, kind) in kinds.iter().enumerate() {
        // Where time is short each has its share of it.
        let left: u32 = kinds[number..].iter().map(|kind| kind.percent).sum();
        let share = |end: Instant| end.saturating_duration_since(Instant::now()) * kind.percent / left;
        let end = settings.end.map(|end| Instant::now() + share(end));
        let (mut row, counted) =
            one(&rig, kind, all * usize::try_from(kind.percent)? / 100, &Settings { end, ..settings.clone() }).await?;
        let mut found = panics(&rig.operator);
        for (name, process) in &mut others {
            found.extend(panics(process));
            if !process.runs() {
                found.push(format!("the {name} ended with {:?}", process.ended()));
            }
        }
        if let Some(code) = rig.restart_if_ended().await? {
            found.push(format!("the operator ended with {code}"));
        }
        row.violations.extend(found.into_iter().map(|what| Violation { case: "the process".to_owned(), what }));
        eprintln!("{row}\n{counted:?}");
        rows.push(row);
        counts.push(counted);
    }
    Ok((rows, counts))
}

fn panics(process: &Process) -> Vec<String> {
    process.log_text().lines().filter(|line| line.contains("panicked")).map(str::to_owned).collect()
}

/// What the lanes of a kind share.
struct Shared<'a> {
    api: &'a Api,
    kind: &'a Kind,
    cases: Vec<Case>,
    next: AtomicUsize,
    end: Option<Instant>,
    counts: Mutex<Counts>,
    violations: Mutex<Vec<Violation>>,
}

async fn one(rig: &Rig, kind: &Kind, count: usize, settings: &Settings) -> Result<(Row, Counts)> {
    let began = Instant::now();
    let fields = kind.fields(rig, settings)?;
    let before = reactions(&rig.api, |taken| taken == BEFORE).await?;
    let mut rng = fastrand::Rng::with_seed(settings.seed);
    let shared = Shared {
        api: &rig.api,
        kind,
        cases: cases::cases(&fields, count, &mut rng),
        next: AtomicUsize::new(0),
        end: settings.end,
        counts: Mutex::default(),
        violations: Mutex::default(),
    };
    let lanes = futures::future::try_join_all((0..LANES).map(|number| shared.lane(number)));
    let done = std::cell::Cell::new(false);
    let lanes = async {
        let result = lanes.await;
        done.set(true);
        result
    };
    let (lanes, meanwhile) = tokio::join!(lanes, reactions(&rig.api, |_| done.get()));
    lanes?;
    let meanwhile = meanwhile?;
    for slow in meanwhile.iter().filter(|took| **took > REACTION.as_secs_f64()) {
        shared.violation("another tenant", format!("its Service came back after {slow} s, or not at all"));
    }
    let tried = shared.next.load(Ordering::Relaxed).min(shared.cases.len());
    let mut row = Row::new(&kind.title(), fields.len());
    (row.trials, row.met, row.left_out) = (tried, tried, shared.cases.len() - tried);
    row.violations = shared.violations.into_inner().unwrap_or_default();
    row.seconds = began.elapsed().as_secs_f64();
    row.seconds_each = row.seconds / f64::from(u32::try_from(tried.max(1))?);
    let mut counts = shared.counts.into_inner().unwrap_or_default();
    (counts.kind, counts.fields, counts.cases) = (kind.title(), fields.len(), tried);
    (counts.reaction_before, counts.reaction, counts.reactions) =
        (median(&before), median(&meanwhile), meanwhile.len());
    counts.slowest_reaction = meanwhile.into_iter().fold(0.0, f64::max);
    Ok((row, counts))
}

impl Shared<'_> {
    fn count(&self, change: impl FnOnce(&mut Counts)) {
        if let Ok(mut counts) = self.counts.lock() {
            change(&mut counts);
        }
    }

    fn violation(&self, case: &str, what: String) {
        eprintln!("VIOLATION {}: {case}: {what}", self.kind.title());
        if let Ok(mut violations) = self.violations.lock() {
            violations.push(Violation { case: case.to_owned(), what });
        }
    }

    /// One object that is changed again and again, and is well at the end.
    async fn lane(&self, number: usize) -> Result<()> {
        let sound = if self.kind.part == SPEC { self.kind.sound(number) } else { untold() };
        let name = format!("h-{number}");
        let path = format!("{}/{name}", self.kind.collection());
        self.api.create(&self.kind.collection(), &self.kind.object(&name, number)).await?;
        self.await_well(&path).await?;
        loop {
            let next = self.next.load(Ordering::Relaxed);
            if next >= self.cases.len() || self.end.is_some_and(|end| Instant::now() > end) {
                break;
            }
            let next = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(case) = self.cases.get(next) else { break };
            self.case(&path, &cases::changed(&sound, case), &brief(case)).await?;
        }
        // Fields that cannot go back stay; what else was wrong is forgotten.
        let (code, message) = self.api.replace(&path, self.kind.part, &sound).await?;
        if code >= 300 {
            self.api.delete(&path).await?;
            eprintln!("{name} cannot be made sound again: {message}");
            return Ok(());
        }
        self.await_well(&path).await?;
        self.api.delete(&path).await
    }

    async fn await_well(&self, path: &str) -> Result<()> {
        // A pool without nodes is never Ready.
        if self.kind.name == "WorkerPool" { Ok(()) } else { await_well(self.api, path).await }
    }

    async fn case(&self, path: &str, changed: &Value, case: &str) -> Result<()> {
        let (code, message) = self.api.replace(path, self.kind.part, changed).await?;
        match code {
            200 => {}
            400 | 413 | 422 => {
                if message.trim().is_empty() {
                    self.violation(case, format!("refused with {code} and no message"));
                }
                self.count(|counts| counts.refused += 1);
                return Ok(());
            }
            _ => {
                self.violation(case, format!("answered with {code}: {message}"));
                return Ok(());
            }
        }
        let began = Instant::now();
        loop {
            let object = self.api.get(path).await?.with_context(|| format!("{path} has gone"))?;
            let stalled = workflow::condition(&object, "Stalled");
            if judged(&object) {
                let said = object["status"]["conditions"].as_array().into_iter().flatten();
                let silent = said.filter(|condition| text(&condition["message"]).trim().is_empty()).count();
                if silent > 0 {
                    self.violation(case, format!("{silent} conditions without a message"));
                }
                let took = began.elapsed().as_secs_f64();
                self.count(|counts| {
                    counts.slowest_handled = counts.slowest_handled.max(took);
                    *(if stalled == "True" { &mut counts.stalled } else { &mut counts.taken }) += 1;
                });
                return Ok(());
            }
            if began.elapsed() > HANDLED {
                self.violation(case, format!("accepted, and not handled within {HANDLED:?}: {}", object["status"]));
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// How soon another tenant is served, in seconds, again and again until it is enough. One that is not served at all takes for ever.
async fn reactions(api: &Api, enough: impl Fn(usize) -> bool) -> Result<Vec<f64>> {
    let mut taken = Vec::new();
    while !enough(taken.len()) {
        let took = Probe::Service.reaction(api, BYSTANDER, taken.len()).await?;
        taken.push(took.map_or(f64::INFINITY, |took| took.as_secs_f64()));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(taken)
}

/// The middle one; NaN of none.
fn median(taken: &[f64]) -> f64 {
    let mut sorted = taken.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Whether the conditions are about the object as it is now. What it becomes may take longer.
fn judged(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    let mut stalled = conditions.filter(|condition| condition["type"] == "Stalled");
    stalled.any(|condition| condition["observedGeneration"] == object["metadata"]["generation"])
}

async fn await_well(api: &Api, path: &str) -> Result<()> {
    let began = Instant::now();
    loop {
        let object = api.get(path).await?.with_context(|| format!("{path} has gone"))?;
        if workflow::handled(&object) && workflow::condition(&object, "Ready") == "True" {
            return Ok(());
        }
        ensure!(began.elapsed() < MENDED, "{path} is not Ready again: {}", object["status"]);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// A case in a few words.
fn brief(case: &Case) -> String {
    const LONGEST: usize = 80;
    let one = |(path, value): &(cases::Path, Option<Value>)| {
        let value = value.as_ref().map_or("left out".to_owned(), ToString::to_string);
        let shown: String = value.chars().take(LONGEST).collect();
        format!("{} = {shown}", path.join("."))
    };
    case.iter().map(one).collect::<Vec<_>>().join(", ")
}

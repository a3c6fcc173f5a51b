//! Each watch of the operator broken in turn, in each way: how soon does it react to all else, and what does it say of itself.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Value, json};

use crate::api::Api;
use crate::matrix::Settings;
use crate::plan::{Action, FrameAction, Match, Plan, Rule};
use crate::report::{Row, Violation};
use crate::request::{WatchKey, text};
use crate::rig::Rig;
use crate::workflow::{self, Goal, Step};

/// More clusters at once would make each reaction late on two cores.
const LANES: usize = 2;
/// Within this the operator must react to what its other watches tell.
const REACTION: Duration = Duration::from_secs(2);
/// Within this after the end of the fault the watch must tell again.
const HEALED: Duration = Duration::from_secs(5);
/// A reaction that takes longer never comes.
const NEVER: Duration = Duration::from_secs(20);
/// The watch has been broken for this long before anything is asked.
const BROKEN: Duration = Duration::from_secs(3);

/// So late are the frames of a watch that is late.
const LATE_MILLIS: u64 = 20_000;
/// So long after something was told that the watch cannot read.
const TOLD: Duration = Duration::from_secs(1);

/// A way to break a watch.
#[derive(Clone, Debug)]
struct Break {
    name: &'static str,
    action: Action,
    /// Whether lists fail as well.
    lists: bool,
    /// Whether the client can notice it soon. A connection that stays and says nothing looks like a quiet cluster.
    noticeable: bool,
    since: Since,
    /// How late what it tells comes.
    late: Duration,
}

/// Since when a watch is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Since {
    /// Since it was cut.
    Cut,
    /// Since it was cut and something was told, which it has to be before it is broken.
    Told,
    /// Since before the operator started.
    Start,
}

fn breaks() -> Vec<Break> {
    let unavailable = || Action::Answer { code: 503, reason: "ServiceUnavailable".to_owned(), retry_after: None };
    let frames = |action| Action::Frames(action);
    let of = |name, action, lists, noticeable| Break {
        name,
        action,
        lists,
        noticeable,
        since: Since::Cut,
        late: Duration::ZERO,
    };
    vec![
        of("refused", unavailable(), true, true),
        Break { since: Since::Start, ..of("refused from the start on", unavailable(), false, true) },
        of("black-holed", frames(FrameAction::Drop), false, false),
        of("ended with 410", frames(FrameAction::Error { code: 410, reason: "Expired".to_owned() }), false, true),
        Break {
            late: Duration::from_millis(LATE_MILLIS),
            ..of("20 s late", frames(FrameAction::Delay { millis: LATE_MILLIS }), false, false)
        },
        Break {
            since: Since::Told,
            ..of(
                "undecodable",
                frames(FrameAction::Set { pointer: "/metadata".to_owned(), value: json!(7) }),
                false,
                true,
            )
        },
    ]
}

/// Something to react to, told by one watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// A deleted Service is applied again.
    Service,
    /// A deleted NetworkPolicy is applied again.
    NetworkPolicy,
    /// A deleted ConfigMap of a fleet is applied again.
    ConfigMap,
    /// A changed Tenant is seen.
    Tenant,
    /// A label of a StatefulSet that somebody changed is put back.
    StatefulSet,
    /// A changed WorkerPool is seen.
    WorkerPool,
}

impl Probe {
    const ALL: [Self; 6] =
        [Self::Service, Self::NetworkPolicy, Self::ConfigMap, Self::Tenant, Self::StatefulSet, Self::WorkerPool];

    /// The resource whose watch tells of it.
    fn resource(self) -> &'static str {
        match self {
            Self::Service => "services",
            Self::NetworkPolicy => "networkpolicies",
            Self::ConfigMap => "configmaps",
            Self::Tenant => "tenants",
            Self::StatefulSet => "statefulsets",
            Self::WorkerPool => "workerpools",
        }
    }

    fn path(self, subject: &str) -> String {
        let namespace = workflow::namespace(subject);
        match self {
            Self::Service => format!("/api/v1/namespaces/{namespace}/services/redis"),
            Self::NetworkPolicy => format!("/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies"),
            Self::ConfigMap => format!("/api/v1/namespaces/{namespace}/configmaps"),
            Self::Tenant => workflow::tenant_path(subject),
            Self::StatefulSet => format!("/apis/apps/v1/namespaces/{namespace}/statefulsets/redis"),
            Self::WorkerPool => "/apis/torpor.dev/v1alpha1/workerpools/worker-mid".to_owned(),
        }
    }

    /// Changes something of that tenant's and waits for the reaction; none where it did not come within 20 s.
    pub async fn reaction(self, api: &Api, subject: &str, number: usize) -> Result<Option<Duration>> {
        let changed = self.change(api, subject, number).await?;
        Ok(changed.settled(api).await?.then(|| changed.began.elapsed()))
    }

    /// Changes something of that tenant's.
    async fn change(self, api: &Api, subject: &str, number: usize) -> Result<Changed> {
        let mut path = self.path(subject);
        if matches!(self, Self::NetworkPolicy | Self::ConfigMap) {
            let list = api.list(&format!("{path}?labelSelector=app.kubernetes.io/managed-by=torpor")).await?;
            let first = list.first().with_context(|| format!("{path}: none"))?;
            path = format!("{path}/{}", text(&first["metadata"]["name"]));
        }
        let before = api.get(&path).await?.with_context(|| format!("{path} is missing"))?;
        let began = Instant::now();
        match self {
            Self::Service | Self::NetworkPolicy | Self::ConfigMap => api.delete(&path).await?,
            Self::Tenant => {
                api.patch(&path, &json!({"spec": {"displayName": format!("Probe {number}")}})).await?;
            }
            Self::StatefulSet => {
                let labels = json!({"app.kubernetes.io/name": "changed"});
                api.patch(&path, &json!({"metadata": {"labels": labels}})).await?;
            }
            Self::WorkerPool => {
                let tenants = 100 + number % 50;
                api.patch(&path, &json!({"spec": {"maxTenantsPerNode": tenants}})).await?;
            }
        }
        Ok(Changed { probe: self, path, before, began })
    }
}

/// Something that was changed, and what it was like before.
struct Changed {
    probe: Probe,
    path: String,
    before: Value,
    began: Instant,
}

impl Changed {
    /// Waits for the reaction. Whether it came within 20 s.
    async fn settled(&self, api: &Api) -> Result<bool> {
        let (asked, before) = (Instant::now(), &self.before);
        let done = |found: &Value| match self.probe {
            Probe::Service | Probe::NetworkPolicy | Probe::ConfigMap => {
                !found.is_null() && found["metadata"]["uid"] != before["metadata"]["uid"]
            }
            Probe::Tenant | Probe::WorkerPool => {
                found["metadata"]["generation"] != before["metadata"]["generation"]
                    && found["status"]["observedGeneration"] == found["metadata"]["generation"]
            }
            Probe::StatefulSet => found["metadata"]["labels"] == before["metadata"]["labels"],
        };
        while asked.elapsed() < NEVER {
            if done(&api.get(&self.path).await?.unwrap_or_default()) {
                return Ok(true);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(false)
    }
}

/// What was measured of one watch and one way to break it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Measured {
    /// The watch.
    pub watch: String,
    /// How it was broken.
    pub broken: String,
    /// The slowest reaction on another kind, in seconds; none where one did not come.
    pub slowest: Option<f64>,
    /// Whether readiness told of it.
    pub named: bool,
    /// The kinds that `torpor_watch_up` called broken meanwhile.
    pub down: Vec<String>,
    /// The kinds that it still calls broken five seconds after the end of the fault, before anything is told.
    pub still_down: Vec<String>,
    /// Whether there is something that this watch alone tells and that the operator reacts to within seconds.
    pub probed: bool,
    /// From the end of the fault to the reaction to that, in seconds; none where it did not come.
    pub healed: Option<f64>,
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = |time: Option<f64>| time.map_or("never".to_owned(), |time| format!("{time:.2} s"));
        let Self { watch, broken, slowest, named, down, still_down, probed, healed } = self;
        let healed =
            if *probed { format!("itself again after {}", seconds(*healed)) } else { "without a probe".to_owned() };
        write!(
            f,
            "{watch}, {broken}: others after {}, {healed}, readiness tells: {named}, metrics: {down:?}, \
             5 s later: {still_down:?}",
            seconds(*slowest),
        )
    }
}

/// What readiness and metrics call the kind that a watch is about.
fn kind((_, resource, selector): &WatchKey) -> String {
    const KINDS: [&str; 19] = [
        "BotFleet",
        "ConfigMap",
        "Deployment",
        "Ingress",
        "LimitRange",
        "Namespace",
        "NetworkPolicy",
        "Node",
        "PersistentVolumeClaim",
        "Pod",
        "PodDisruptionBudget",
        "PriorityClass",
        "ResourceQuota",
        "Secret",
        "Service",
        "ServiceAccount",
        "StatefulSet",
        "Tenant",
        "WorkerPool",
    ];
    let plural = |kind: &str| match kind.to_lowercase() {
        kind if kind.ends_with('y') => format!("{}ies", &kind[..kind.len() - 1]),
        kind if kind.ends_with('s') => format!("{kind}es"),
        kind => format!("{kind}s"),
    };
    let kind = KINDS.into_iter().find(|kind| plural(kind) == *resource).unwrap_or(resource);
    if selector.contains("!=") { format!("referenced {kind}") } else { kind.to_owned() }
}

/// Changes an object that the watch tells of, in a way that means nothing. `false` where there is none.
async fn touch(api: &Api, (group, resource, selector): &WatchKey, number: usize) -> Result<bool> {
    let base = match group.as_str() {
        "" => "/api/v1".to_owned(),
        "torpor.dev" => "/apis/torpor.dev/v1alpha1".to_owned(),
        group => format!("/apis/{group}/v1"),
    };
    let found = api.list(&format!("{base}/{resource}?limit=1&labelSelector={}", selector.replace('!', "%21"))).await?;
    let Some(first) = found.first() else { return Ok(false) };
    let metadata = &first["metadata"];
    let place = match metadata["namespace"].as_str() {
        Some(namespace) => format!("{base}/namespaces/{namespace}/{resource}"),
        None => format!("{base}/{resource}"),
    };
    let touched = json!({"metadata": {"annotations": {"chaos.torpor.dev/touched": number.to_string()}}});
    api.patch(&format!("{place}/{}", text(&metadata["name"])), &touched).await?;
    Ok(true)
}

/// A row for each watch, with what was measured.
type Found = (Vec<Row>, Vec<Measured>);

/// Breaks the watches, of as many clusters at once as there are lanes, each of one of them.
pub async fn run(settings: &Settings) -> Result<Found> {
    let lanes = settings.lanes.min(LANES);
    let mut rigs = Vec::new();
    for _ in 0..lanes {
        rigs.push(Rig::start(&settings.torpor, &settings.root).await?);
    }
    let lanes = rigs.iter_mut().enumerate().map(|(lane, rig)| some(rig, settings, (lane, lanes)));
    let found = futures::future::try_join_all(lanes).await?;
    let (rows, measured): (Vec<_>, Vec<_>) = found.into_iter().unzip();
    let (mut rows, mut measured) = (rows.concat(), measured.concat());
    rows.sort_by(|a, b| a.workflow.cmp(&b.workflow));
    measured.sort_by(|a, b| a.watch.cmp(&b.watch));
    Ok((rows, measured))
}

/// Breaks each so-manieth watch.
async fn some(rig: &mut Rig, settings: &Settings, (lane, lanes): (usize, usize)) -> Result<Found> {
    let subject = "c-00000";
    Step::Create { delete_data: false }.ask(&rig.api, subject).await?;
    while !Goal::Ready.is_reached(&rig.api, subject).await? {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let watches = rig.proxy.since(0).into_iter().filter(|record| record.request.verb == "watch");
    // The same order in each lane.
    let keys: BTreeSet<WatchKey> = watches.map(|record| record.request.watch_key()).collect();
    let named = keys.into_iter().map(|key| {
        let name = if key.2.contains("!=") { format!("{} of others", key.1) } else { key.1.clone() };
        (name, key)
    });
    let wanted = named.filter(|(name, _)| settings.wants(name));
    let mut rows = Vec::new();
    let mut measured = Vec::new();
    let mut number = 0;
    for (name, key) in wanted.skip(lane).step_by(lanes) {
        let began = Instant::now();
        let mut row = Row::new(&name, 1);
        for broken in breaks() {
            if settings.is_over() {
                row.left_out += 1;
                continue;
            }
            let found = one(rig, &key, &name, &broken, subject, &mut number, &mut row).await?;
            eprintln!("{found}");
            row.trials += 1;
            row.met += 1;
            measured.push(found);
        }
        row.seconds = began.elapsed().as_secs_f64();
        row.seconds_each = row.seconds / f64::from(u32::try_from(row.trials)?.max(1));
        eprintln!("{row}");
        rows.push(row);
    }
    Ok((rows, measured))
}

/// Waits until an operator that has just started waits for nothing but the watch of this kind. Whether it does.
async fn begins(rig: &Rig, kind: &str) -> bool {
    let (began, wanted) = (Instant::now(), format!("waiting for {kind}\n"));
    while began.elapsed() < NEVER {
        if rig.probes.readiness(&rig.operator).await.is_ok_and(|(_, says)| says == wanted) {
            tokio::time::sleep(TOLD).await;
            return true;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    false
}

/// A fault that ends.
struct Ending<'a> {
    rig: &'a Rig,
    subject: &'a str,
    broken: &'a Break,
    row: &'a mut Row,
}

impl Ending<'_> {
    fn found(&mut self, what: String) {
        self.row.violations.push(Violation { case: self.broken.name.to_owned(), what });
    }

    /// When the fault ended, and how long after that what was changed was reacted to, if anything was.
    async fn healed(
        &mut self,
        changed: Option<Changed>,
        watch: Match,
        number: &mut usize,
    ) -> Result<(Instant, Option<Duration>)> {
        let api = &self.rig.api;
        let mut began = Instant::now();
        let mut healed = None;
        let is_late = !self.broken.late.is_zero();
        if let Some(changed) = changed.as_ref().filter(|_| is_late) {
            // It is told of all the same, and that is the end of the fault.
            tokio::time::sleep(self.broken.late.saturating_sub(changed.began.elapsed())).await;
            began = Instant::now();
            healed = changed.settled(api).await?.then(|| began.elapsed());
        }
        if !self.broken.noticeable || self.broken.since == Since::Told {
            // What is not noticed does not end by itself within the time that this takes, and a watch that was opened meanwhile goes on as
            // it was opened.
            self.rig.proxy.cut_watches(watch);
        }
        let Some(changed) = changed else { return Ok((began, None)) };
        if !is_late {
            healed = changed.settled(api).await?.then(|| began.elapsed());
        }
        if healed.is_none_or(|healed| healed > HEALED) {
            self.found(format!("heals {healed:?} after the fault"));
        }
        // A list alone would have told of that.
        *number += 1;
        let again = changed.probe.reaction(api, self.subject, *number).await?;
        if again.is_none_or(|took| took > REACTION) {
            self.found(format!("reacts {again:?} once it has healed"));
        }
        Ok((began, healed))
    }
}

async fn one(
    rig: &mut Rig,
    key: &WatchKey,
    name: &str,
    broken: &Break,
    subject: &str,
    number: &mut usize,
    row: &mut Row,
) -> Result<Measured> {
    let (group, resource, selector) = key.clone();
    let of = |verb: &str| Match {
        verb: Some(verb.to_owned()),
        group: Some(group.clone()),
        resource: Some(resource.clone()),
        selector: Some(selector.clone()),
        ..Match::default()
    };
    let rule = |verb: &str| Rule { of: of(verb), nth: None, every: None, action: broken.action.clone() };
    let mut rules = vec![rule("watch")];
    if broken.lists {
        rules.push(rule("list"));
    }
    let kind = kind(key);
    if broken.since == Since::Start {
        rig.restart(Plan::new(rules)).await?;
        if !begins(rig, &kind).await {
            let what = "it does not begin, or waits for more than this watch".to_owned();
            row.violations.push(Violation { case: broken.name.to_owned(), what });
        }
    } else {
        rig.proxy.set(Plan::new(rules));
        rig.proxy.cut_watches(of("watch"));
        tokio::time::sleep(BROKEN).await;
    }
    let mut noticeable = broken.noticeable;
    if broken.since == Since::Told {
        *number += 1;
        noticeable = touch(&rig.api, key, *number).await?;
        tokio::time::sleep(TOLD).await;
    }
    let mut slowest = Some(Duration::ZERO);
    for probe in Probe::ALL.into_iter().filter(|probe| probe.resource() != resource) {
        *number += 1;
        let took = probe.reaction(&rig.api, subject, *number).await?;
        if took.is_none_or(|took| took > REACTION) {
            let what = format!("{probe:?} is reacted to after {took:?}");
            row.violations.push(Violation { case: broken.name.to_owned(), what });
        }
        slowest = slowest.zip(took).map(|(before, took)| before.max(took));
    }
    let (_, says) = rig.probes.readiness(&rig.operator).await.unwrap_or_default();
    let named = says.lines().any(|line| line.ends_with(&format!(" {kind}")));
    if noticeable && !named {
        let what = format!("readiness does not name it: {:?}", says.trim());
        row.violations.push(Violation { case: broken.name.to_owned(), what });
    }
    let down = rig.probes.broken_watches(&rig.operator).await?;
    let others = down.iter().filter(|down| **down != kind).count();
    if noticeable && down.len() == others || others > 0 {
        let what = format!("metrics name {down:?}");
        row.violations.push(Violation { case: broken.name.to_owned(), what });
    }
    // What happens to the kind itself meanwhile is seen to when the watch is whole again.
    let own = Probe::ALL.into_iter().find(|probe| probe.resource() == resource && !name.ends_with("of others"));
    let mut changed = None;
    if let Some(probe) = own {
        *number += 1;
        changed = Some(probe.change(&rig.api, subject, *number).await?);
    }
    rig.proxy.set(Plan::default());
    let mut end = Ending { rig, subject, broken, row };
    let (began, healed) = end.healed(changed, of("watch"), number).await?;
    tokio::time::sleep(HEALED.saturating_sub(began.elapsed())).await;
    let still_down = rig.probes.broken_watches(&rig.operator).await?;
    if !still_down.is_empty() {
        let what = format!("metrics call it broken 5 s after the fault: {still_down:?}");
        row.violations.push(Violation { case: broken.name.to_owned(), what });
    }
    let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
    Ok(Measured {
        watch: name.to_owned(),
        broken: broken.name.to_owned(),
        slowest: seconds(slowest),
        named,
        down,
        still_down,
        probed: own.is_some(),
        healed: seconds(healed),
    })
}

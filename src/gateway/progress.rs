//! What is told of a tenant: one document for programs, from which the page for people is made, too. Pure.

use jiff::Timestamp;
use kube::ResourceExt;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::conditions::{HIBERNATED, READY, STALLED, reasons};
use crate::api::tenant::PartState as Reported;
use crate::api::{Condition, ConditionStatus, Tenant, TenantStatus};
use crate::domain::activity;
use crate::domain::names;
use crate::domain::stage::{Stage, effective_stage};
use crate::plan::Parts;
use crate::status::find;

/// Where a tenant is.
#[derive(Serialize, ToSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Everything is there for the first time.
    Starting,
    /// Everything runs.
    Awake,
    /// It is on its way up.
    Waking,
    /// It is on its way down.
    GoingToSleep,
    /// It sleeps.
    Asleep,
    /// It was suspended; nobody but the operator of the service can wake it.
    Suspended,
}

/// How far one part of a stack is.
#[derive(Serialize, ToSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartState {
    /// It sleeps.
    Stopped,
    /// Its turn has not come.
    Waiting,
    /// It still stops, from the way down.
    Stopping,
    /// It was started and is not ready.
    Starting,
    /// It works.
    Ready,
}

/// One part of a tenant's stack.
#[derive(Serialize, ToSchema, Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// postgres, redis, monitoring, dashboard or bots.
    pub name: String,
    /// How far it is.
    pub state: PartState,
    /// What it waits for, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Why a tenant is not as it should be until somebody acts.
#[derive(Serialize, ToSchema, Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// One word for programs: Suspended, or the reason of the Tenant's condition.
    pub reason: String,
    /// What is missing, for people who know the cluster.
    pub message: String,
}

/// Where a tenant is, and how long it still takes.
#[derive(Serialize, ToSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Its name.
    pub name: String,
    /// Its tier.
    pub tier: String,
    /// Where it is.
    pub state: State,
    /// The stage it is at: Active, BotsStopped, ServicesStopped or DatabaseOnly.
    pub stage: String,
    /// The stage it should be at.
    pub wanted: String,
    /// The part that is on its way up now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// How far each part is, in the order in which they come up.
    pub parts: Vec<Part>,
    /// The dashboard can be opened.
    pub dashboard_ready: bool,
    /// Where the dashboard is reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dashboard: Option<String>,
    /// Something that time alone does not mend, for whoever runs the service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<Trouble>,
    /// When the wake-up was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub requested_at: Option<String>,
    /// Seconds for which the wake-up has gone on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub elapsed_seconds: Option<i64>,
    /// Seconds that it still takes, by the wake-ups that this cluster has seen; absent without any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimated_seconds: Option<i64>,
    /// When the tenant's user was last seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub last_activity_time: Option<String>,
    /// When the next stage of sleep is due if nobody is seen; a time that has come where it waits for its turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub next_transition_time: Option<String>,
}

impl Progress {
    /// Without the words that only whoever runs the cluster understands, and that are nobody else's.
    #[must_use]
    pub fn for_people(mut self) -> Self {
        for part in &mut self.parts {
            part.message = None;
        }
        if let Some(problem) = &mut self.problem {
            problem.message.clear();
        }
        self
    }

    /// Nothing of the wake-up is left to wait for.
    pub fn is_awake(&self) -> bool {
        self.state == State::Awake
    }
}

/// Reads it. `usual` is how many seconds a wake-up takes, `scheme` that of dashboards' addresses.
pub fn of(tenant: &Tenant, usual: Option<i64>, scheme: &str, now: Timestamp) -> Progress {
    let empty = TenantStatus::default();
    let status = tenant.status.as_ref().unwrap_or(&empty);
    let sleep = status.hibernation.as_ref();
    let stage = sleep.and_then(|sleep| sleep.stage).unwrap_or_default();
    let wanted = effective_stage(&activity::facts(tenant, now));
    let state = state(tenant, status, stage, wanted);
    let under_way = status.wake.as_ref().filter(|wake| wake.ready_at.is_none() && state == State::Waking);
    let told = under_way.map(|wake| wake.parts.as_slice()).unwrap_or_default();
    let parts: Vec<Part> = if told.is_empty() {
        at_stage(stage, state)
    } else {
        told.iter()
            .map(|part| Part { name: part.name.clone(), state: reported(part.state), message: part.message.clone() })
            .collect()
    };
    let moving = |part: &&Part| !matches!(part.state, PartState::Ready | PartState::Stopped);
    let step = parts.iter().find(moving).map(|part| part.name.clone()).filter(|_| state == State::Waking);
    let ready = |part: &Part| part.name == names::DASHBOARD && part.state == PartState::Ready;
    let elapsed = under_way.and_then(|wake| wake.requested_at).map(|at| now.duration_since(at).as_secs().max(0));
    let waits = matches!(state, State::Waking | State::Asleep);
    Progress {
        name: tenant.name_any(),
        tier: tenant.spec.tier.as_str().to_owned(),
        state,
        stage: stage.as_str().to_owned(),
        wanted: wanted.as_str().to_owned(),
        step,
        dashboard_ready: parts.iter().any(ready),
        parts,
        dashboard: host(tenant).map(|host| format!("{scheme}://{host}/")),
        problem: problem(&status.conditions, state),
        requested_at: under_way.and_then(|wake| wake.requested_at).map(|at| at.to_string()),
        elapsed_seconds: elapsed,
        estimated_seconds: usual.filter(|_| waits).map(|usual| (usual - elapsed.unwrap_or_default()).max(1)),
        last_activity_time: status.last_activity_time.map(|at| at.to_string()),
        next_transition_time: sleep
            .and_then(|sleep| sleep.decision.as_ref()?.next_transition_time)
            .map(|at| at.to_string()),
    }
}

/// The host under which a tenant's dashboard is reached.
pub fn host(tenant: &Tenant) -> Option<&str> {
    tenant.spec.dashboard.host.as_deref()
}

fn state(tenant: &Tenant, status: &TenantStatus, stage: Stage, wanted: Stage) -> State {
    let hibernated = find(&status.conditions, HIBERNATED).map(|condition| condition.reason.as_str());
    // Before its first version was handled in full, a Tenant has no sleep to wake from.
    let new = status.observed_generation.is_none_or(|generation| generation < 0);
    match (wanted, hibernated) {
        _ if tenant.spec.suspended => State::Suspended,
        (Stage::Active, None) => State::Starting,
        (Stage::Active, Some(reasons::AWAKE)) if new => State::Starting,
        (Stage::Active, Some(reasons::AWAKE)) if stage == Stage::Active => State::Awake,
        (Stage::Active, Some(_)) => State::Waking,
        (_, Some(reasons::ASLEEP)) if stage == wanted => State::Asleep,
        _ => State::GoingToSleep,
    }
}

/// Parts as a stage has them, where nobody reports them one by one.
fn at_stage(stage: Stage, state: State) -> Vec<Part> {
    let up = Parts::of(stage);
    let running = if state == State::Starting { PartState::Starting } else { PartState::Ready };
    let part = |name: &str, up: bool| Part {
        name: name.to_owned(),
        state: if up { running } else { PartState::Stopped },
        message: None,
    };
    vec![
        part(names::DATABASE, true),
        part(names::REDIS, up.redis),
        part(names::MONITORING, up.exporter),
        part(names::DASHBOARD, up.dashboard),
        part(names::BOTS, up.bots),
    ]
}

const fn reported(state: Reported) -> PartState {
    match state {
        Reported::Waiting => PartState::Waiting,
        Reported::Stopping => PartState::Stopping,
        Reported::Starting => PartState::Starting,
        Reported::Ready => PartState::Ready,
    }
}

/// The reason of [`Trouble`] for a suspended tenant.
pub const SUSPENDED: &str = "Suspended";

fn problem(conditions: &[Condition], state: State) -> Option<Trouble> {
    let trouble = |reason: &str, message: &str| Trouble { reason: reason.to_owned(), message: message.to_owned() };
    if state == State::Suspended {
        return Some(trouble(SUSPENDED, "spec.suspended is set"));
    }
    let stalled = find(conditions, STALLED).filter(|condition| condition.status == ConditionStatus::True);
    let waits =
        || find(conditions, READY).filter(|ready| [reasons::WAITING, reasons::RETRYING].contains(&&*ready.reason));
    stalled.or_else(waits).map(|condition| trouble(&condition.reason, &condition.message))
}

/// How many seconds a wake-up usually takes: the median of tenants of the same tier, or of all where the tier has
/// fewer than three; `None` where nobody has woken yet.
pub fn usual_seconds<'a>(tenants: impl Iterator<Item = &'a Tenant>, tier: crate::api::Tier) -> Option<i64> {
    let (mut same, mut all) = (Vec::new(), Vec::new());
    for tenant in tenants {
        let wake = tenant.status.as_ref().and_then(|status| status.wake.as_ref());
        let Some(seconds) = wake.and_then(|wake| wake.seconds) else { continue };
        all.push(seconds);
        if tenant.spec.tier == tier {
            same.push(seconds);
        }
    }
    let mut samples = if same.len() < 3 { all } else { same };
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn tenant(status: Value) -> Tenant {
        serde_json::from_value(json!({
            "apiVersion": "torpor.dev/v1alpha1", "kind": "Tenant",
            "metadata": {"name": "a", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"tier": "basic", "dashboard": {"host": "a.example.com"}}, "status": status,
        }))
        .expect("a Tenant")
    }

    fn condition(type_: &str, status: &str, reason: &str) -> Value {
        json!({"type": type_, "status": status, "reason": reason, "message": format!("about {reason}"), "lastTransitionTime": "2026-01-01T00:00:00Z"})
    }

    fn told(status: Value, usual: Option<i64>) -> Progress {
        of(&tenant(status), usual, "https", "2026-06-01T00:00:10Z".parse().expect("a time"))
    }

    fn asleep(stage: &str, reason: &str) -> Value {
        json!({
            "lastActivityTime": "2026-02-01T00:00:00Z",
            "hibernation": {"stage": stage, "decision": {"stage": "DatabaseOnly", "basedOn": "2026-02-01T00:00:00Z"}},
            "conditions": [condition("Hibernated", "True", reason)],
        })
    }

    #[test]
    fn each_state_is_told_from_what_is_wanted_and_what_is() {
        let state = |status| told(status, None).state;
        assert_eq!(state(json!({})), State::Starting);
        let mut awake =
            json!({"hibernation": {"stage": "Active"}, "conditions": [condition("Hibernated", "False", "Awake")]});
        assert_eq!(state(awake.clone()), State::Starting, "made a moment ago");
        awake["observedGeneration"] = 1.into();
        assert_eq!(state(awake), State::Awake);
        assert_eq!(state(asleep("DatabaseOnly", "Asleep")), State::Asleep);
        assert_eq!(state(asleep("BotsStopped", "GoingToSleep")), State::GoingToSleep);
        assert_eq!(state(asleep("BotsStopped", "Asleep")), State::GoingToSleep, "a deeper stage was decided just now");
        let mut woken = asleep("DatabaseOnly", "Asleep");
        woken["lastActivityTime"] = "2026-06-01T00:00:00Z".into();
        assert_eq!(state(woken), State::Waking, "before anybody has acted on it");
        let mut suspended = tenant(asleep("DatabaseOnly", "Asleep"));
        suspended.spec.suspended = true;
        let told = of(&suspended, None, "https", Timestamp::UNIX_EPOCH);
        let reason = told.problem.map(|problem| problem.reason);
        assert_eq!((told.state, reason.as_deref()), (State::Suspended, Some(SUSPENDED)));
    }

    #[test]
    fn a_wake_tells_its_parts_and_what_is_left() {
        let status = json!({
            "lastActivityTime": "2026-06-01T00:00:00Z",
            "hibernation": {"stage": "DatabaseOnly"},
            "conditions": [condition("Hibernated", "False", "WakingUp")],
            "wake": {"requestedAt": "2026-06-01T00:00:00Z", "parts": [
                {"name": "postgres", "state": "Ready"},
                {"name": "redis", "state": "Starting", "message": "redis 0/1 ready"},
                {"name": "dashboard", "state": "Waiting", "message": "waits for redis"},
            ]},
        });
        let waking = told(status, Some(45));
        assert_eq!(waking.step.as_deref(), Some("redis"));
        assert_eq!((waking.elapsed_seconds, waking.estimated_seconds), (Some(10), Some(35)));
        assert!(!waking.dashboard_ready);
        assert_eq!(waking.dashboard.as_deref(), Some("https://a.example.com/"));
        let asleep = told(asleep("DatabaseOnly", "Asleep"), Some(45));
        assert_eq!((asleep.elapsed_seconds, asleep.estimated_seconds), (None, Some(45)));
        let states: Vec<PartState> = asleep.parts.iter().map(|part| part.state).collect();
        assert_eq!(states[1..], [PartState::Stopped; 4]);
    }

    #[test]
    fn what_needs_somebody_is_a_problem() {
        let status = |conditions: Value| json!({"hibernation": {"stage": "Active"}, "conditions": conditions});
        let problem = |conditions| told(status(conditions), None).problem.map(|problem| problem.message);
        assert_eq!(problem(json!([condition("Ready", "False", "Progressing")])), None);
        assert_eq!(problem(json!([condition("Ready", "False", "Waiting")])).as_deref(), Some("about Waiting"));
        assert_eq!(problem(json!([condition("Stalled", "True", "InvalidSpec")])).as_deref(), Some("about InvalidSpec"));
    }

    #[test]
    fn the_estimate_is_what_the_cluster_has_seen() {
        let woke = |seconds: i64| tenant(json!({"wake": {"seconds": seconds}}));
        let tenants = [woke(10), woke(90), woke(30), tenant(json!({}))];
        assert_eq!(usual_seconds(tenants.iter(), crate::api::Tier::Basic), Some(30));
        assert_eq!(usual_seconds(tenants.iter(), crate::api::Tier::Free), Some(30), "of all, where its own has none");
        assert_eq!(usual_seconds(std::iter::empty(), crate::api::Tier::Free), None);
    }
}

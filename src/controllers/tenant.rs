//! One pass over a Tenant: dereference, validate, plan, apply, prune, replace, observe, status.

use std::sync::Arc;

use kube::ResourceExt;

use super::context::{Context, Guarded};
use super::outcome::Outcome;
use super::report::Turn;
use super::workloads::{self, Wanted};
use super::{children, removal, report, undecodable};
use crate::api::conditions::{READY, STALLED, reasons};
use crate::api::tenant::{BotCount, Cost, HibernationStatus, Placement};
use crate::api::{BotFleet, Condition, ConditionStatus, Tenant, TenantStatus};
use crate::cluster::index::{Entry, Slot};
use crate::cluster::status::{Own, has_finalizer};
use crate::domain::activity;
use crate::domain::names::{self, Component};
use crate::domain::quantity::Size;
use crate::domain::stage::{Stage, effective_stage};
use crate::plan::{self, Child, ChildKind};
use crate::status::{self, Seen, find, whole_second};
use crate::validate::{self, Problem, ValidatedTenant};

/// Runs one pass and tells when the next is due.
pub async fn reconcile(guarded: Arc<Guarded<Tenant>>, context: &Context) -> Turn {
    let tenant = match &guarded.0 {
        Ok(tenant) => tenant,
        Err(invalid) => return undecodable::tenant(context, invalid).await,
    };
    let old = report::current(context, Own::Tenant, &tenant.metadata, tenant.status.as_ref());
    let seen = Seen { generation: tenant.metadata.generation.unwrap_or_default(), now: context.clock.now() };
    let (outcome, view) = if tenant.metadata.deletion_timestamp.is_some() {
        let policy = tenant.spec.deletion_policy;
        (removal::tenant(context, &tenant.metadata, policy).await, View::default())
    } else {
        pass(context, tenant, &old).await
    };
    report::finish(context, Own::Tenant, &tenant.metadata, &old, outcome, |outcome| {
        tenant_status(tenant, &old, outcome, view, seen)
    })
    .await
}

/// What a pass saw, as far as the status tells of it. `None` keeps what the status said before.
#[derive(Clone, Debug, Default)]
struct View {
    stages: Option<(Stage, Stage)>,
    bots: Option<BotCount>,
    placement: Option<Placement>,
    cost: Option<Cost>,
    retained_volumes: Option<Vec<String>>,
}

async fn pass(context: &Context, tenant: &Tenant, old: &TenantStatus) -> (Outcome, View) {
    let mut view = View::default();
    if !has_finalizer(&tenant.metadata) {
        let added = context.status.add_finalizer(Own::Tenant, &tenant.metadata).await;
        return (added.map_or_else(Outcome::from, |()| Outcome::Again), view);
    }
    let validated = match validate::tenant(tenant, &context.catalog, &context.serving_pools()) {
        Ok(validated) => validated,
        Err(problems) => return (Outcome::Invalid(problems), view),
    };
    let wanted_stage = effective_stage(&activity::facts(tenant));
    let before = context.index.namespace(&validated.namespace);
    let stage = next_stage(wanted_stage, &before, &context.fleets_of(&validated.namespace));
    let children = plan::tenant(&validated, plan::Parts::of(stage), &context.settings);
    view.placement = Some(Placement { pools: validated.pools.clone() });
    view.cost = Some(cost(&validated, &children, &context.fleets_of(&validated.namespace)));

    view.stages = Some((wanted_stage, known_stage(old)));
    let workloads = children::workloads(&children);
    if let Err(outcome) = enact(context, tenant, &validated, &children, &workloads).await {
        return (outcome, view);
    }
    let entries = context.index.namespace(&validated.namespace);
    let fleets = context.fleets_of(&validated.namespace);
    view.bots = Some(count(&fleets));
    view.retained_volumes = Some(retained(&entries, &fleets));
    let seen: Vec<FleetView> = fleets.iter().map(|fleet| view_fleet(fleet, &entries, stage)).collect();
    let unready = unready(&entries, &workloads, &seen, &validated);
    let stalled = stalled(&seen);
    let reached = unready.is_empty() && stalled.is_none();
    view.stages = Some((wanted_stage, if reached { stage } else { known_stage(old) }));
    let outcome = awaited(&validated, wanted_stage, stage, &unready).or(stalled).unwrap_or(Outcome::Done(stage));
    (outcome, view)
}

async fn enact(
    context: &Context,
    tenant: &Tenant,
    validated: &ValidatedTenant,
    children: &[Child],
    workloads: &[Wanted],
) -> Result<(), Outcome> {
    // Without a pool there is no PriorityClass, and every pod would be refused; existing ones stay as they are.
    let runs_pods = |child: &Child| matches!(child.kind(), ChildKind::StatefulSet | ChildKind::Deployment);
    let now = children.iter().filter(|child| !validated.pools.is_empty() || !runs_pods(child));
    let now: Vec<&Child> = now.collect();
    children::apply(context, &validated.namespace, now).await?;
    children::prune(context, tenant.metadata.uid.as_deref(), &validated.namespace, children).await?;
    children::replace_pods(context, &validated.namespace, workloads).await
}

/// What services and bots ask of the scheduler at present.
fn cost(validated: &ValidatedTenant, children: &[Child], fleets: &[BotFleet]) -> Cost {
    let of_tenant = validated.fleet_context();
    let bots = fleets.iter().map(|fleet| {
        let desired = fleet.status.as_ref().and_then(|status| status.desired_replicas).unwrap_or_default();
        of_tenant.bot_request(&fleet.spec) * i64::from(desired)
    });
    let sum = bots.sum::<Size>() + plan::cost(children);
    Cost { cpu: Some(sum.cpu.to_string()), memory: Some(sum.memory.to_string()) }
}

/// What is still to be waited for, if anything.
fn awaited(validated: &ValidatedTenant, wanted: Stage, stage: Stage, unready: &[String]) -> Option<Outcome> {
    if validated.pools.is_empty() {
        return Some(Outcome::Waiting(format!(
            "no ready WorkerPool serves tier {}; create one with spec.tiers containing {} (examples/pools.yaml)",
            validated.tier, validated.tier
        )));
    }
    if !unready.is_empty() {
        return Some(Outcome::Progressing(unready.join("; ")));
    }
    (stage != wanted).then(|| Outcome::Progressing(format!("at stage {stage}, on the way to {wanted}")))
}

fn known_stage(old: &TenantStatus) -> Stage {
    old.hibernation.as_ref().and_then(|sleep| sleep.stage).unwrap_or_default()
}

/// The stage to plan for now on the way to the wanted one. Nothing is taken from under a bot that still
/// stops: services go down only when no bot is left, and the database shrinks only when no service is.
fn next_stage(wanted: Stage, entries: &[Entry], fleets: &[BotFleet]) -> Stage {
    let pods_of = |component: Component| {
        entries.iter().any(|entry| entry.slot == Slot::Pod && entry.component.as_deref() == Some(component.as_str()))
    };
    let bots_wanted = fleets.iter().any(|fleet| {
        fleet.status.as_ref().and_then(|status| status.desired_replicas).is_some_and(|desired| desired > 0)
    });
    let bots = bots_wanted || pods_of(Component::Bot);
    let services = pods_of(Component::Redis) || pods_of(Component::Dashboard);
    match wanted {
        Stage::Active | Stage::BotsStopped => wanted,
        Stage::ServicesStopped | Stage::DatabaseOnly if bots => Stage::BotsStopped,
        Stage::DatabaseOnly if services => Stage::ServicesStopped,
        Stage::ServicesStopped | Stage::DatabaseOnly => wanted,
    }
}

fn unready(entries: &[Entry], workloads: &[Wanted], fleets: &[FleetView], validated: &ValidatedTenant) -> Vec<String> {
    let mut reasons: Vec<String> = workloads.iter().filter_map(|wanted| workloads::unready(entries, wanted)).collect();
    for (name, _) in &validated.fleets {
        if !fleets.iter().any(|fleet| fleet.name == *name) {
            reasons.push(format!("fleet {name} is being created"));
        }
    }
    reasons.extend(fleets.iter().filter_map(|fleet| match &fleet.state {
        FleetState::Working(reason) => Some(format!("fleet {}: {reason}", fleet.name)),
        FleetState::Ready | FleetState::Stalled(_) => None,
    }));
    reasons
}

/// What the Tenant makes of a fleet's status.
struct FleetView {
    name: String,
    state: FleetState,
}

enum FleetState {
    Ready,
    Working(String),
    /// Somebody must act; the fleet's condition Stalled.
    Stalled(Condition),
}

fn view_fleet(fleet: &BotFleet, entries: &[Entry], stage: Stage) -> FleetView {
    let name = fleet.name_any();
    let status = fleet.status.clone().unwrap_or_default();
    let entry = entries.iter().find(|entry| entry.slot == Slot::Child(ChildKind::BotFleet) && entry.name == name);
    // The answer to a write of the fleet is known before the watch shows the fleet as it is now.
    let newest = fleet.metadata.generation.max(entry.map(|entry| entry.generation));
    let holds = |type_| find(&status.conditions, type_).filter(|condition| condition.status == ConditionStatus::True);
    // Nothing in a fleet's own spec tells of the stage, so its status may still be that of another one.
    let asleep = find(&status.conditions, READY).is_some_and(|ready| ready.reason == reasons::ASLEEP);
    let another_stage =
        if stage == Stage::Active { asleep } else { status.desired_replicas.is_some_and(|desired| desired > 0) };
    let state = match (find(&status.conditions, READY), holds(STALLED)) {
        (None, _) => FleetState::Working("not handled yet".to_owned()),
        (Some(_), _)
            if status.observed_generation != newest && (holds(READY).is_some() || holds(STALLED).is_some()) =>
        {
            FleetState::Working("its latest change is being handled".to_owned())
        }
        (Some(_), Some(stalled)) => FleetState::Stalled(stalled.clone()),
        (Some(_), None) if another_stage => FleetState::Working(format!("on the way to {stage}")),
        (Some(ready), None) if ready.status != ConditionStatus::True => FleetState::Working(ready.message.clone()),
        (Some(_), None) => FleetState::Ready,
    };
    FleetView { name, state }
}

/// A Tenant whose fleet waits for somebody to act waits for the same.
fn stalled(fleets: &[FleetView]) -> Option<Outcome> {
    let stalled = fleets.iter().filter_map(|fleet| match &fleet.state {
        FleetState::Stalled(condition) => Some((format!("fleet {}: {}", fleet.name, condition.message), condition)),
        FleetState::Ready | FleetState::Working(_) => None,
    });
    let (messages, conditions): (Vec<String>, Vec<&Condition>) = stalled.unzip();
    let first = conditions.first()?;
    Some(if first.reason == reasons::REFUSED {
        Outcome::Refused(messages.join("; "))
    } else {
        Outcome::Invalid(messages.into_iter().map(Problem).collect())
    })
}

fn count(fleets: &[BotFleet]) -> BotCount {
    let sum = |read: fn(&crate::api::BotFleetStatus) -> Option<i32>| {
        fleets.iter().filter_map(|fleet| fleet.status.as_ref().and_then(read)).sum()
    };
    BotCount { desired: sum(|status| status.desired_replicas), ready: sum(|status| status.ready_replicas) }
}

/// Volumes of bots that no fleet's spec asks for any more.
fn retained(entries: &[Entry], fleets: &[BotFleet]) -> Vec<String> {
    let mut volumes: Vec<String> = entries
        .iter()
        .filter(|entry| entry.slot == Slot::Volume && entry.component.as_deref() == Some(Component::Bot.as_str()))
        .filter(|entry| {
            let fleet = fleets.iter().find(|fleet| Some(fleet.name_any()) == entry.fleet);
            let ordinal = fleet.and_then(|fleet| {
                let prefix = format!("{}-{}", names::DATA_CLAIM, names::fleet_workload(&fleet.name_any()));
                workloads::ordinal(&entry.name, &prefix)
            });
            !matches!((fleet, ordinal), (Some(fleet), Some(ordinal)) if ordinal < fleet.spec.replicas)
        })
        .map(|entry| entry.name.clone())
        .collect();
    volumes.sort();
    volumes.truncate(100);
    volumes
}

fn tenant_status(tenant: &Tenant, old: &TenantStatus, outcome: &Outcome, view: View, seen: Seen) -> TenantStatus {
    let before = old.hibernation.clone().unwrap_or_default();
    let hibernation = view.stages.map(|(_, reached)| HibernationStatus {
        stage: Some(reached),
        since: if before.stage == Some(reached) { before.since } else { Some(whole_second(seen.now)) },
        decision: None,
        ..before.clone()
    });
    let sleep = view.stages.map(|(wanted, reached)| status::hibernated(wanted, reached));
    let kept_sleep = find(&old.conditions, crate::api::conditions::HIBERNATED).cloned();
    let verdicts = outcome.verdicts();
    let mut conditions =
        verdicts.map(|verdicts| status::conditions(&old.conditions, verdicts, sleep.clone(), seen)).unwrap_or_default();
    if sleep.is_none() {
        conditions.extend(kept_sleep);
    }
    TenantStatus {
        observed_generation: if outcome.is_final() { Some(seen.generation) } else { old.observed_generation },
        conditions,
        namespace: Some(names::namespace(&tenant.name_any())),
        bots: view.bots.or_else(|| old.bots.clone()),
        last_activity_time: None,
        hibernation: hibernation
            .or_else(|| old.hibernation.clone().map(|sleep| HibernationStatus { decision: None, ..sleep })),
        wake: None,
        placement: view.placement.or_else(|| old.placement.clone()),
        cost: view.cost.or_else(|| old.cost.clone()),
        retained_volumes: view.retained_volumes.unwrap_or_else(|| old.retained_volumes.clone()),
    }
}

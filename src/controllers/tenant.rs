//! One pass over a Tenant: dereference, validate, plan, apply, prune, replace, observe, status.

use std::sync::Arc;

use kube::ResourceExt;

use super::context::{Context, Guarded};
use super::outcome::Outcome;
use super::report::Turn;
use super::workloads::{self, Wanted};
use super::{children, removal, report, undecodable};
use crate::api::conditions::READY;
use crate::api::tenant::{BotCount, Cost, HibernationStatus, Placement};
use crate::api::{BotFleet, ConditionStatus, Tenant, TenantStatus};
use crate::cluster::index::{Entry, Slot};
use crate::cluster::status::{Own, has_finalizer};
use crate::domain::activity;
use crate::domain::names::{self, Component};
use crate::domain::quantity::Size;
use crate::domain::stage::{Stage, effective_stage};
use crate::plan::{self, Child, ChildKind};
use crate::status::{self, Seen, find, whole_second};
use crate::validate::{self, ValidatedTenant};

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
    let children = plan::tenant(&validated, stage, &context.settings);
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
    let settled = unready(&entries, &workloads, &fleets, &validated);
    view.stages = Some((wanted_stage, if settled.is_empty() { stage } else { known_stage(old) }));
    (judge(&validated, wanted_stage, stage, &settled), view)
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

fn judge(validated: &ValidatedTenant, wanted: Stage, stage: Stage, unready: &[String]) -> Outcome {
    if validated.pools.is_empty() {
        return Outcome::Waiting(format!(
            "no ready WorkerPool serves tier {}; create one with spec.tiers containing {} (examples/pools.yaml)",
            validated.tier, validated.tier
        ));
    }
    if !unready.is_empty() {
        return Outcome::Progressing(unready.join("; "));
    }
    if stage != wanted {
        return Outcome::Progressing(format!("at stage {stage}, on the way to {wanted}"));
    }
    Outcome::Done(stage)
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

fn unready(entries: &[Entry], workloads: &[Wanted], fleets: &[BotFleet], validated: &ValidatedTenant) -> Vec<String> {
    let mut reasons: Vec<String> = workloads.iter().filter_map(|wanted| workloads::unready(entries, wanted)).collect();
    for (name, _) in &validated.fleets {
        if !fleets.iter().any(|fleet| fleet.name_any() == *name) {
            reasons.push(format!("fleet {name} is being created"));
        }
    }
    reasons.extend(fleets.iter().filter_map(fleet_unready));
    reasons
}

fn fleet_unready(fleet: &BotFleet) -> Option<String> {
    let status = fleet.status.clone().unwrap_or_default();
    let handled = status.observed_generation == fleet.metadata.generation;
    let ready = find(&status.conditions, READY);
    match ready {
        Some(ready) if handled && ready.status == ConditionStatus::True => None,
        Some(ready) => Some(format!("fleet {}: {}", fleet.name_any(), ready.message)),
        None => Some(format!("fleet {} has not been handled yet", fleet.name_any())),
    }
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

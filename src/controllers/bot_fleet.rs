//! One pass over a `BotFleet`: its tenant, its share of the tier's bots, its configuration, its `StatefulSet`.

use std::sync::Arc;

use kube::{Resource, ResourceExt};

use super::context::{Context, Guarded, Key, MOST_FLEETS};
use super::outcome::Outcome;
use super::report::Turn;
use super::rollout::Pace;
use super::workloads::{self, Wanted};
use super::{children, fleet_views, preconditions, recheck, removal, report, sight, steps, stops, tenant, undecodable};
use crate::api::conditions::reasons;
use crate::api::{BotFleet, BotFleetStatus, DeletionPolicy, Tenant};
use crate::cluster::index::{Entry, Facts, Slot};
use crate::cluster::read::Referenced;
use crate::cluster::status::{Own, has_finalizer};
use crate::domain::activity;
use crate::domain::names::{self, Component};
use crate::domain::stage::{Stage, effective_stage};
use crate::plan::{self, Child, ChildKind, Parts};
use crate::status::{self, Seen, sleep};
use crate::validate::{self, Desired, FleetContext, FleetFacts, Problem, Share, ValidatedTenant};

/// Whether somebody waits for what a pass does: the spec has changed, the fleet is to go, or its tenant is awaited.
pub fn is_awaited(guarded: &Guarded<BotFleet>, context: &Context) -> bool {
    let namespace = guarded.namespace().unwrap_or_default();
    let tenant = names::tenant_of_namespace(&namespace).and_then(|name| context.tenant(name));
    let changed = |fleet: &BotFleet| {
        let conditions = fleet.status.as_ref().map(|status| &status.conditions[..]).unwrap_or_default();
        !fleet.is_observed() && !report::is_old_news(conditions, fleet.metadata.generation, context.clock.now())
    };
    guarded.meta().deletion_timestamp.is_some()
        || guarded.0.as_ref().is_ok_and(changed)
        || tenant.is_some_and(|tenant| tenant::is_awaited(&tenant, context))
}

/// Runs one pass and tells when the next is due.
pub async fn reconcile(guarded: Arc<Guarded<BotFleet>>, context: &Context) -> Turn {
    let fleet = match &guarded.0 {
        Ok(fleet) => fleet,
        Err(invalid) => return undecodable::fleet(context, invalid).await,
    };
    let old = report::current(context, Own::BotFleet, &fleet.metadata, fleet.status.as_ref());
    let (outcome, view) = if fleet.metadata.deletion_timestamp.is_some() {
        (removal::fleet(context, &fleet.metadata).await, View::default())
    } else {
        match pass(context, fleet).await {
            Ok(done) => done,
            Err(outcome) => (outcome, View::default()),
        }
    };
    let seen = Seen { generation: fleet.metadata.generation.unwrap_or_default(), now: context.clock.now() };
    let entries = context.index.namespace(&fleet.namespace().unwrap_or_default());
    let stops = stops::of(&entries, Some(&fleet.name_any()), seen.now);
    let outcome = outcome.unless_overdue(stops.overdue.as_deref());
    if matches!(outcome, Outcome::Done(_) | Outcome::Paused) {
        let key = Key::new(Own::BotFleet, fleet.namespace().as_deref(), &fleet.name_any());
        context.memory.answered(&key);
        if let Some(generation) = view.planned_for {
            context.seen_as_planned(&key.namespace, &key, generation);
        }
    }
    report::finish(context, Own::BotFleet, &fleet.metadata, &old, (outcome, stops.next), |outcome| {
        fleet_status(fleet, &old, outcome, view, seen)
    })
    .await
}

/// What a pass saw, as far as the status tells of it. `None` keeps what the status said before.
#[derive(Clone, Copy, Debug, Default)]
struct View {
    /// The stage that is wanted, whether no bot is left, and whether its Tenant wakes.
    sleep: Option<(Stage, bool, bool)>,
    desired: Option<i32>,
    replicas: Option<i32>,
    ready: Option<i32>,
    over_tier: i32,
    /// The generation of the Tenant that it was planned for.
    planned_for: Option<i64>,
}

async fn pass(context: &Context, fleet: &BotFleet) -> Result<(Outcome, View), Outcome> {
    let namespace = fleet.namespace().unwrap_or_default();
    let name = fleet.name_any();
    let guarded = tenant_of(context, &namespace)?;
    let tenant = guarded.0.as_ref().map_err(|_| {
        Outcome::Waiting(format!("the Tenant of {namespace} cannot be read; its bots are left as they are"))
    })?;
    if !has_finalizer(&fleet.metadata) {
        context.status.add_finalizer(Own::BotFleet, &fleet.metadata).await?;
        return Ok((Outcome::Again, View::default()));
    }
    if tenant.metadata.deletion_timestamp.is_some() {
        return Err(Outcome::Waiting("its Tenant is being deleted".to_owned()));
    }
    let wanted = effective_stage(&activity::facts(tenant, context.clock.now()));
    let waking = wanted == Stage::Active && tenant.status.as_ref().is_some_and(|s| sleep::slept(&s.conditions));
    let planned = match plan(context, fleet, tenant, wanted, waking).await {
        Ok(planned) => planned,
        // Stopping needs neither a valid spec nor anything that it refers to.
        Err(outcome) if wanted != Stage::Active || fleet.spec.paused => {
            return stop(context, fleet, tenant, wanted, outcome).await;
        }
        Err(outcome) => {
            let entries = context.index.namespace(&namespace);
            let workload = names::fleet_workload(&name);
            let set = workloads::set(&entries, &workload);
            // Others may wait for its turn, and it for them.
            let has_turn = context.rollout.has((&namespace, &workload));
            if has_turn && set.is_some_and(|set| workloads::is_whole(&entries, set)) {
                context.end_turn(&namespace, Some(&workload));
            }
            let desired = set.map_or(Some(0), |set| set.desired);
            let sleep = Some((wanted, sight::bots(&entries, Some(&name)).gone(), waking));
            return Ok((outcome, View { sleep, desired, ..observe(&entries, &name) }));
        }
    };
    let workloads = children::workloads(&planned.children);
    if wanted != Stage::Active
        && !fleet.spec.paused
        && let Some(part) = sight::takes_down(&context.index.namespace(&namespace), &workloads, None)
    {
        if tenant.status.as_ref().is_some_and(|s| sleep::reason(&s.conditions) == Some(reasons::AWAKE)) {
            // A descent that nobody has noted could not be told from an awake tenant after a login. The Tenant's
            // pass is under way, and its status brings the next one here.
            let view = View { sleep: Some((wanted, false, false)), ..View::default() };
            return Ok((Outcome::GoingToSleep("bots stop as soon as their Tenant says so".to_owned()), view));
        }
        recheck::still_sleeps(context, tenant, wanted, part).await?;
    }
    let changed = || recheck::either_has_changed(context, tenant, fleet);
    let bots = if fleet.spec.paused { 0 } else { planned.share.bots };
    let arrived: Vec<Wanted> = workloads.iter().map(|wanted| Wanted { replicas: bots, ..wanted.clone() }).collect();
    // Bots that were held back, as far as the watch had told, may run by now.
    let overtaken = || waking && sight::is_overtaken(&context.index.namespace(&namespace), &workloads, &arrived);
    let outdated = || changed() || overtaken();
    let mut failures = children::apply(context, &namespace, &planned.children, outdated).await?;
    // Bots that wake are made anew.
    let asked = context.memory.is_asked(&Key::new(Own::BotFleet, Some(&namespace), &name));
    let observed = fleet.is_observed() && tenant.is_observed() && !asked;
    let pace = Pace::of(wanted != Stage::Active, observed);
    let made = workloads.iter().filter(|workload| failures.has_made(workload));
    let replaced = children::replace_pods(context, &namespace, made, pace, changed).await;
    failures.first.keep(replaced)?;
    failures.first.keep(children::help_to_start(context, &namespace, &workloads, waking).await)?;
    let owner = fleet.metadata.uid.as_deref();
    failures.first.keep(children::prune(context, (owner, &[]), &namespace, &planned.children, changed).await)?;
    let entries = context.index.namespace(&namespace);
    // A workload that could not be written may still make the pod that uses one.
    if tenant.spec.deletion_policy == DeletionPolicy::Delete && failures.first.is_none() {
        drop_surplus_volumes(context, fleet, tenant, &entries).await?;
    }
    let mut view = observe(&entries, &name);
    view.desired = workloads.first().map(|workload| workload.replicas);
    view.planned_for = tenant.metadata.generation;
    view.over_tier = (fleet.spec.wanted() - planned.share.bots).max(0);
    let judged = || judge(fleet, &entries, workloads.first(), (wanted, waking), planned.held);
    let outcome = match failures.first.told().map_or_else(|failed| failed, |()| judged()) {
        Outcome::Progressing(message) if wanted == Stage::Active && planned.share.fit < planned.share.bots => {
            let Share { fit, bots, .. } = planned.share;
            let short = format!("{message}; beside other fleets the tier has room for {fit} of its {bots} bots");
            Outcome::Progressing(short)
        }
        other => other,
    };
    let still = waking && !matches!(outcome, Outcome::Done(_) | Outcome::Paused);
    view.sleep = Some((wanted, sight::bots(&entries, Some(&name)).gone(), still));
    Ok((outcome, view))
}

/// Stops the bots of a fleet that cannot be planned. One that only waits for something is asleep all the same.
async fn stop(
    context: &Context,
    fleet: &BotFleet,
    tenant: &Tenant,
    wanted: Stage,
    outcome: Outcome,
) -> Result<(Outcome, View), Outcome> {
    let (namespace, name) = (fleet.namespace().unwrap_or_default(), fleet.name_any());
    let workload = names::fleet_workload(&name);
    let set = context.index.get(Slot::Child(ChildKind::StatefulSet), &namespace, &workload);
    let own = |pod: &Entry| sight::is_bot_of(pod, &name);
    let left = removal::unattended(&context.index.namespace(&namespace), set.as_ref(), own).any(|pod| !pod.deleting);
    if (left || set.as_ref().is_some_and(|set| set.desired != Some(0))) && !fleet.spec.paused {
        recheck::still_sleeps(context, tenant, wanted, &workload).await?;
    }
    if recheck::either_has_changed(context, tenant, fleet) {
        return Err(Outcome::Again);
    }
    removal::scale_and_stop(context, &namespace, (ChildKind::StatefulSet, &workload), 0, own).await?;
    let entries = context.index.namespace(&namespace);
    let state = sight::bots(&entries, Some(&name));
    let mut view = observe(&entries, &name);
    view.desired = Some(0);
    view.sleep = Some((wanted, state.gone(), false));
    let asleep = wanted != Stage::Active && state.gone() && matches!(outcome, Outcome::Waiting(_));
    Ok((if asleep { Outcome::Done(wanted) } else { outcome }, view))
}

/// The children of a fleet, what the tier leaves to it, and what its bots wait for.
struct Planned {
    children: Vec<Child>,
    share: Share,
    held: Option<&'static str>,
}

async fn plan(
    context: &Context,
    fleet: &BotFleet,
    tenant: &Tenant,
    wanted: Stage,
    waking: bool,
) -> Result<Planned, Outcome> {
    let namespace = fleet.namespace().unwrap_or_default();
    let home = context.index.get(Slot::Child(ChildKind::Namespace), &namespace, &namespace);
    if home.is_none_or(|home| home.tenant.as_deref() != Some(&*tenant.name_any())) {
        return Err(Outcome::Waiting(format!("namespace {namespace} is not yet the Tenant's")));
    }
    let share = |tier: &FleetContext| {
        let entries = context.index.namespace(&namespace);
        let facts = |fleet: &BotFleet| FleetFacts::of(fleet, tier, sight::running(&entries, &fleet.name_any()));
        let facts: Vec<FleetFacts> = context.fleets_of(&namespace).iter().map(facts).collect();
        validate::allot(tier.max_bots, tier.room(), &facts).get(&fleet.name_any()).copied().unwrap_or_default()
    };
    let (most, planned) = if !context.looks_after(fleet) {
        let problem = format!(
            "namespace {namespace} has {MOST_FLEETS} older BotFleets, and no more are looked after: ask one of them for more replicas, or delete some"
        );
        (fleet.spec.wanted(), Err(Outcome::Invalid(vec![Problem(problem)])))
    } else if let Ok(validated) = validate::tenant(tenant, &context.catalog, &context.serving_pools()) {
        let tier = validated.fleet_context();
        let before = share(&tier);
        let planned = plan_share(context, fleet, &validated, before, (wanted, waking)).await;
        // To find out may have taken long, and other fleets have changed meanwhile.
        if planned.is_err() && share(&tier).number != before.number {
            return Err(Outcome::Behind);
        }
        (before.number, planned)
    } else {
        // The tier of a Tenant that makes no sense takes no bots.
        let waits = Outcome::Waiting("its Tenant is Stalled; see the Tenant's conditions".to_owned());
        (fleet.spec.wanted(), Err(waits))
    };
    if planned.is_err() {
        if recheck::either_has_changed(context, tenant, fleet) {
            return Err(Outcome::Again);
        }
        // Whatever it waits for, no more of its bots run than are asked for.
        let workload = names::fleet_workload(&fleet.name_any());
        children::stop_surplus(context, &namespace, (ChildKind::StatefulSet, &workload), most).await?;
    }
    planned
}

async fn plan_share(
    context: &Context,
    fleet: &BotFleet,
    tenant: &ValidatedTenant,
    share: Share,
    (wanted, waking): (Stage, bool),
) -> Result<Planned, Outcome> {
    if tenant.pools.is_empty() {
        return Err(context.await_pool(tenant.tier));
    }
    let namespace = &tenant.namespace;
    let config = config(context, fleet, namespace).await?;
    let desired = Desired { replicas: share.bots };
    let validated = validate::fleet(fleet, &tenant.fleet_context(), desired, &config).map_err(Outcome::Invalid)?;
    let (parts, held) = parts(context, tenant, &fleet.name_any(), wanted, waking);
    let children = plan::fleet(&validated, parts, &context.settings);
    if parts.bots && !fleet.spec.paused {
        preconditions::await_all(context, fleet, tenant, &children).await?;
    }
    Ok(Planned { children, share, held })
}

/// The parts to plan this fleet for, and what its bots wait for: during a wake they come last. The Tenant's pass
/// decides in the same way, from the same index.
fn parts(
    context: &Context,
    tenant: &ValidatedTenant,
    fleet: &str,
    wanted: Stage,
    waking: bool,
) -> (Parts, Option<&'static str>) {
    if !waking {
        return (Parts::of(wanted), None);
    }
    let full = children::workloads(&plan::tenant(tenant, Parts::of(Stage::Active), &context.settings));
    let seen = sight::look(&context.index.namespace(&tenant.namespace), &full, None, Some(fleet));
    let seen = context.regardless_of_dashboard(&tenant.name, wanted, seen);
    let parts = steps::next(wanted, seen, true);
    let awaited = steps::held(wanted, parts, seen).map(|(_, awaited)| awaited);
    (parts, awaited.filter(|_| !parts.bots))
}

fn tenant_of(context: &Context, namespace: &str) -> Result<Arc<Guarded<Tenant>>, Outcome> {
    names::tenant_of_namespace(namespace).and_then(|name| context.tenant(name)).ok_or_else(|| {
        Outcome::Waiting(format!(
            "namespace {namespace} belongs to no Tenant; put the BotFleet into the namespace of one (tenant-<name>)"
        ))
    })
}

/// The text of the strategy's configuration, inline or from the `ConfigMap` it refers to.
async fn config(context: &Context, fleet: &BotFleet, namespace: &str) -> Result<String, Outcome> {
    let strategy = &fleet.spec.strategy;
    let Some(reference) = &strategy.config_map_ref else {
        return Ok(strategy.config.clone().unwrap_or_default());
    };
    if let Some(text) = context.memory.config(namespace, reference) {
        return Ok(text);
    }
    let changes = context.memory.config_changes();
    match context.reader.config(namespace, reference).await? {
        Referenced::Found(text) => {
            context.memory.keep_config(namespace, reference, &text, changes);
            Ok(text)
        }
        Referenced::Missing(message) => Err(Outcome::Waiting(message)),
    }
}

/// Deletes volumes of bots that the spec no longer asks for, where the Tenant says Delete and no pod is left to use them.
async fn drop_surplus_volumes(
    context: &Context,
    fleet: &BotFleet,
    tenant: &Tenant,
    entries: &[Entry],
) -> Result<(), Outcome> {
    let claims = names::claim(&names::fleet_workload(&fleet.name_any()));
    let surplus = |entry: &&Entry| {
        let beyond = workloads::is_surplus(&entry.name, &claims, fleet.spec.replicas);
        entry.slot == Slot::Volume && !entry.deleting && beyond && !fleet_views::in_use(entries, entry)
    };
    let surplus: Vec<&Entry> = entries.iter().filter(surplus).collect();
    if surplus.is_empty()
        || !recheck::agree_on_bots(tenant, fleet)
        || !recheck::still_asks(context, tenant, fleet).await?
    {
        return Ok(());
    }
    let changed = || recheck::either_has_changed(context, tenant, fleet);
    removal::drop_volumes(context, &surplus, changed).await
}

/// Pods of the fleet's workload, as its controller counts them.
fn observe(entries: &[Entry], fleet: &str) -> View {
    let workload = names::fleet_workload(fleet);
    let (replicas, ready) = match workloads::set(entries, &workload).map(|entry| &entry.facts) {
        Some(Facts::Workload { replicas, ready, .. }) => (*replicas, *ready),
        Some(Facts::None | Facts::Pod { .. }) | None => (0, 0),
    };
    View { replicas: Some(replicas), ready: Some(ready), ..View::default() }
}

fn judge(
    fleet: &BotFleet,
    entries: &[Entry],
    workload: Option<&Wanted>,
    (wanted, waking): (Stage, bool),
    held: Option<&str>,
) -> Outcome {
    match workload.and_then(|workload| workloads::unready(entries, workload)) {
        Some(reason) if wanted != Stage::Active => Outcome::GoingToSleep(reason),
        Some(reason) if waking => Outcome::WakingUp(reason),
        Some(reason) => Outcome::Progressing(reason),
        None if fleet.spec.paused => Outcome::Paused,
        None => held.map_or(Outcome::Done(wanted), |before| Outcome::WakingUp(format!("bots wait for {before}"))),
    }
}

fn fleet_status(fleet: &BotFleet, old: &BotFleetStatus, outcome: &Outcome, view: View, seen: Seen) -> BotFleetStatus {
    let mut verdicts = outcome.verdicts();
    if let (Some(verdicts), Outcome::Done(Stage::Active)) = (&mut verdicts, outcome)
        && view.over_tier > 0
    {
        verdicts.ready.reason = reasons::OVER_TIER;
        verdicts.ready.message =
            format!("ready, but {} bots are not started: the tier has no more for this fleet", view.over_tier);
    }
    let sleep = view.sleep.map(|(wanted, gone, waking)| sleep::fleet_hibernated(wanted, gone, waking));
    let kept_sleep = status::find(&old.conditions, crate::api::conditions::HIBERNATED).cloned();
    let told = sleep.is_some();
    let mut conditions =
        verdicts.map(|verdicts| status::conditions(&old.conditions, verdicts, sleep, seen)).unwrap_or_default();
    if !told {
        conditions.extend(kept_sleep);
    }
    let tenant =
        names::tenant_of_namespace(fleet.metadata.namespace.as_deref().unwrap_or_default()).unwrap_or_default();
    let mut selector = names::selector(tenant, Component::Bot);
    selector.insert(names::label::FLEET.to_owned(), fleet.name_any());
    let selector = selector.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
    BotFleetStatus {
        observed_generation: if outcome.is_final() { Some(seen.generation) } else { old.observed_generation },
        conditions,
        desired_replicas: view.desired.or(old.desired_replicas),
        replicas: view.replicas.or(old.replicas),
        ready_replicas: view.ready.or(old.ready_replicas),
        selector: Some(selector),
    }
}

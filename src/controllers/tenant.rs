//! One pass over a Tenant: dereference, validate, step, plan, apply, prune, replace, observe, status.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::{Resource, ResourceExt};

use super::context::{Context, Guarded, Key};
use super::fleet_views::{self, FleetState, FleetView};
use super::outcome::Outcome;
use super::report::Turn;
use super::rollout::Pace;
use super::tenant_status::{self, View};
use super::workloads::{self, Wanted};
use super::{children, recheck, removal, report, sight, steps, stops, undecodable, wake_parts};
use crate::api::conditions::{HIBERNATED, reasons};
use crate::api::tenant::{Cost, Placement, WakePart};
use crate::api::{BotFleet, Tenant, TenantStatus};
use crate::cluster::index::{Entry, Slot};
use crate::cluster::status::{Own, has_finalizer};
use crate::domain::activity;
use crate::domain::names;
use crate::domain::quantity::Size;
use crate::domain::stage::{Stage, effective_stage};
use crate::plan::{self, Child, ChildKind, DatabaseSize, Parts};
use crate::status::Seen;
use crate::status::sleep::{self, Way};
use crate::validate::{self, ValidatedTenant};

/// Whether somebody waits for what a pass does: the spec has changed, the Tenant is to go, or the tenant to another stage. What has not
/// become so for long is no news; stopping always is.
pub fn is_awaited(guarded: &Guarded<Tenant>, context: &Context) -> bool {
    let moves = || guarded.0.as_ref().is_ok_and(|tenant| moves(tenant, context.clock.now()));
    guarded.meta().deletion_timestamp.is_some() || moves()
}

fn moves(tenant: &Tenant, now: Timestamp) -> bool {
    let wanted = effective_stage(&activity::facts(tenant, now));
    let status = tenant.status.as_ref();
    let conditions = status.map(|status| &status.conditions[..]).unwrap_or_default();
    let reached = status.and_then(|status| status.hibernation.as_ref()?.stage).unwrap_or_default();
    let waking = wanted == Stage::Active && sleep::slept(conditions);
    let begun = status.and_then(|status| status.wake.as_ref()?.under_way_since());
    // Hibernated may not have held since the tenant was awake last, where sleep was called off half-way.
    let for_long = report::fails_for_long(conditions, HIBERNATED, now)
        && begun.is_none_or(|begun| report::is_long_ago(begun, now))
        && sleep::reason(conditions) == Some(reasons::WAKING_UP);
    let rises = (wanted < reached || waking) && !for_long;
    let changed = !tenant.is_observed() && !report::is_old_news(conditions, tenant.metadata.generation, now);
    wanted > reached || rises || changed
}

/// Runs one pass and tells when the next is due.
pub async fn reconcile(guarded: Arc<Guarded<Tenant>>, context: &Context) -> Turn {
    let tenant = match &guarded.0 {
        Ok(tenant) => tenant,
        Err(invalid) => return undecodable::tenant(context, invalid).await,
    };
    let old = report::current(context, Own::Tenant, &tenant.metadata, tenant.status.as_ref());
    let (outcome, view) = if tenant.metadata.deletion_timestamp.is_some() {
        let policy = tenant.spec.deletion_policy;
        (removal::tenant(context, &tenant.metadata, policy).await, View::default())
    } else {
        pass(context, tenant, &old).await
    };
    let seen = Seen { generation: tenant.metadata.generation.unwrap_or_default(), now: context.clock.now() };
    let entries = context.index.namespace(&names::namespace(&tenant.name_any()));
    let stops = stops::of(&entries, None, seen.now);
    let outcome = outcome.unless_overdue(stops.overdue.as_deref());
    let mut woke = None;
    // A request that this clock takes for one of the future counts later.
    let ahead = activity::read(tenant).sleep_request_ahead(seen.now).map(activity::comes_true);
    let ahead = ahead.and_then(|at| Duration::try_from(at.duration_since(seen.now)).ok());
    let due = stops.next.into_iter().chain(ahead).min();
    let turn = report::finish(context, Own::Tenant, &tenant.metadata, &old, (outcome, due), |outcome| {
        let new = tenant_status::compute(tenant, &old, outcome, view, seen);
        woke = tenant_status::woke(&old, &new);
        new
    })
    .await;
    if let Some(seconds) = woke.filter(|_| turn.told) {
        context.metrics.woke(Duration::from_secs(u64::try_from(seconds).unwrap_or_default()));
    }
    turn
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
    let wanted = effective_stage(&activity::facts(tenant, context.clock.now()));
    let step = Step::next(context, &validated, wanted, sleep::slept(&old.conditions));
    // No more than the status has room for; pods know all of them.
    view.placement = Some(Placement { pools: validated.pools.iter().take(Placement::MOST).cloned().collect() });
    view.cost = Some(cost(&validated, &step.children, &context.fleets_of(&validated.namespace)));
    if step.waking && step.parts.bots {
        // Nothing of a fleet changes when what its bots wait for becomes ready.
        for fleet in context.fleets_of(&validated.namespace) {
            context.triggers.fleet(&validated.namespace, &fleet.name_any());
        }
    }
    let before = sleep::reason(&old.conditions);
    let observe = || step.observe(context, &validated, old, tenant.metadata.generation.unwrap_or_default());
    // Fleets stop their bots when this is told, so no write that hangs or fails may come before it.
    let descends = wanted != Stage::Active && before == Some(reasons::AWAKE);
    let (enacted, observed) = match descends.then(observe).filter(|untold| untold.way.falling) {
        Some(untold) => (Ok(()), untold),
        None => (step.enact(context, tenant, &validated).await, observe()),
    };
    view.way = Some((observed.way, sleep::hibernated(before, observed.way)));
    let failed = match enacted {
        Ok(()) => None,
        Err(failed @ (Outcome::Refused(_) | Outcome::Failed(_) | Outcome::Waiting(_))) => Some(failed),
        Err(outcome) => return (outcome, view),
    };
    view.parts.clone_from(&observed.parts);
    view.bots = Some(fleet_views::count(&observed.fleets));
    view.retained_volumes = Some(fleet_views::retained(&observed.entries, &observed.fleets));
    let reason = view.way.as_ref().map_or(reasons::AWAKE, |(_, verdict)| verdict.reason);
    (failed.unwrap_or_else(|| observed.outcome(context, &validated, reason)), view)
}

/// What one pass does on the way to the wanted stage.
struct Step {
    wanted: Stage,
    waking: bool,
    parts: Parts,
    children: Vec<Child>,
    workloads: Vec<Wanted>,
    /// The workloads of an awake tenant, to compare with.
    full: Vec<Wanted>,
    /// The workloads of a tenant that has arrived at the stage.
    arrived: Vec<Wanted>,
    /// The database at its least size, where that is wanted.
    least: Option<Wanted>,
}

impl Step {
    fn next(context: &Context, validated: &ValidatedTenant, wanted: Stage, slept: bool) -> Self {
        let plan = |parts| plan::tenant(validated, parts, &context.settings);
        let awake = plan(Parts::of(Stage::Active));
        let full = children::workloads(&awake);
        let asleep = (wanted != Stage::Active).then(|| plan(Parts::of(wanted)));
        let arrived = children::workloads(asleep.as_ref().unwrap_or(&awake));
        let least = match Parts::of(wanted).database {
            DatabaseSize::Full => None,
            DatabaseSize::Least => arrived.iter().find(|part| part.name == names::DATABASE).cloned(),
        };
        let seen = sight::look(&context.index.namespace(&validated.namespace), &full, least.as_ref(), None);
        let seen = context.regardless_of_dashboard(&validated.name, wanted, seen);
        let parts = steps::next(wanted, seen, slept);
        let children = match asleep {
            _ if parts == Parts::of(Stage::Active) => awake,
            Some(asleep) if parts == Parts::of(wanted) => asleep,
            _ => plan(parts),
        };
        let workloads = children::workloads(&children);
        Step { wanted, waking: slept && wanted == Stage::Active, parts, children, workloads, full, arrived, least }
    }

    async fn enact(&self, context: &Context, tenant: &Tenant, validated: &ValidatedTenant) -> Result<(), Outcome> {
        let namespace = &validated.namespace;
        let entries = context.index.namespace(namespace);
        let down = sight::takes_down(&entries, &self.workloads, self.least.as_ref());
        // Without a pool and its PriorityClass every pod would be refused; existing ones stay as they are.
        if let Some(part) = down.filter(|_| !validated.pools.is_empty()) {
            recheck::still_sleeps(context, tenant, self.wanted, part).await?;
        }
        // The Secret can only be asked for by making it, so it comes with the pods that want it.
        let runs_pods =
            |child: &Child| matches!(child.kind(), ChildKind::Secret | ChildKind::StatefulSet | ChildKind::Deployment);
        let now = self.children.iter().filter(|child| !validated.pools.is_empty() || !runs_pods(child));
        let now: Vec<&Child> = now.collect();
        let changed = || recheck::has_changed(context, tenant);
        let outdated = || changed() || self.parts != Parts::of(self.wanted) && self.is_overtaken(context, namespace);
        let mut failures = children::apply(context, namespace, now, outdated).await?;
        context.bots_do_without_dashboard(&validated.name, failures.of_dashboard());
        let status = tenant.status.as_ref();
        let asleep = status.and_then(|status| sleep::reason(&status.conditions)) == Some(reasons::ASLEEP);
        let on_the_way = self.waking || self.wanted != Stage::Active && !asleep;
        let pace = Pace::of(on_the_way, tenant.is_observed());
        let entries = context.index.namespace(namespace);
        let for_least = sight::replaces_for_least(&entries, &self.workloads, self.least.as_ref());
        // Thousands may wait for their turn, and none of them has to be looked at before.
        let waits = for_least && pace != Pace::AtOnce && !context.has_turn(namespace);
        // Without a pool what is taken down finds no node.
        let replaces = !waits && !validated.pools.is_empty();
        if for_least && replaces {
            recheck::still_sleeps(context, tenant, self.wanted, names::DATABASE).await?;
        }
        if replaces {
            let made = self.workloads.iter().filter(|workload| failures.has_made(workload));
            let replaced = children::replace_pods(context, namespace, made, pace, changed).await;
            failures.first.keep(replaced)?;
        }
        failures.first.keep(children::help_to_start(context, namespace, &self.workloads, self.waking).await)?;
        // Last: whoever wakes does not wait for what is to go.
        let owner = tenant.metadata.uid.as_deref();
        failures
            .first
            .keep(children::prune(context, (owner, plan::UNOWNED), namespace, &self.children, changed).await)?;
        failures.first.told()
    }

    /// Whether a part that is only kept up, or down, has changed since it was seen. All of them are asked before anything is
    /// written, for the database's configuration goes with its size.
    fn is_overtaken(&self, context: &Context, namespace: &str) -> bool {
        let of = |wanted: &Wanted| context.index.get(Slot::Child(wanted.kind), namespace, &wanted.name);
        let entries: Vec<Entry> = self.workloads.iter().filter_map(of).collect();
        sight::is_overtaken(&entries, &self.workloads, &self.arrived)
    }

    fn observe(&self, context: &Context, validated: &ValidatedTenant, old: &TenantStatus, generation: i64) -> Observed {
        let entries = context.index.namespace(&validated.namespace);
        let fleets = context.fleets_of(&validated.namespace);
        let views: Vec<FleetView> =
            fleets.iter().map(|fleet| fleet_views::view(fleet, &entries, self.wanted)).collect();
        let seen = sight::look(&entries, &self.full, self.least.as_ref(), None);
        let seen = context.regardless_of_dashboard(&validated.name, self.wanted, seen);
        let held = steps::held(self.wanted, self.parts, seen);
        let mut unready: Vec<String> =
            self.workloads.iter().filter_map(|wanted| workloads::unready(&entries, wanted)).collect();
        if unready.is_empty() {
            let key = Key::new(Own::Tenant, None, &validated.name);
            context.seen_as_planned(&validated.namespace, &key, generation);
        }
        // Fleets that are held back only repeat what holds them.
        let bots_are_held = held.is_some() && !self.parts.bots;
        unready.extend(fleets_unready(&views, validated).into_iter().filter(|_| !bots_are_held));
        let left = steps::left(self.wanted, seen);
        let complete = held.is_none() && unready.is_empty() && !validated.pools.is_empty();
        // Whoever wakes is awake without those that go.
        unready.extend(fleets_leaving(context, &entries));
        let before = old.hibernation.as_ref().and_then(|sleep| sleep.stage).unwrap_or_default();
        let reached = steps::reached(before, self.wanted, seen, complete);
        let arrived =
            reached == self.wanted && left.is_empty() && held.is_none() && (self.wanted != Stage::Active || complete);
        let way = Way { wanted: self.wanted, reached, falling: !left.is_empty(), arrived };
        let done = unready.is_empty() && left.is_empty() && self.parts == Parts::of(self.wanted);
        let mut message: Vec<String> =
            held.map(|(part, before)| format!("{part} waits for {before}")).into_iter().collect();
        if !left.is_empty() {
            message.push(format!("still to go down: {}", left.join(", ")));
        }
        message.extend(unready);
        let why =
            |name: &str| self.full.iter().find(|part| part.name == name).and_then(|w| workloads::unready(&entries, w));
        let parts = wake_parts::of(seen, &views, why);
        Observed { entries, fleets, views, parts, way, done, message: message.join("; ") }
    }
}

/// What a pass sees when it has written what it wants.
struct Observed {
    entries: Vec<Entry>,
    fleets: Vec<BotFleet>,
    views: Vec<FleetView>,
    parts: Vec<WakePart>,
    way: Way,
    done: bool,
    message: String,
}

impl Observed {
    /// What the pass came to. `sleeping` is the reason of the condition Hibernated.
    fn outcome(&self, context: &Context, validated: &ValidatedTenant, sleeping: &str) -> Outcome {
        if validated.pools.is_empty() {
            return context.await_pool(validated.tier);
        }
        if self.done {
            return fleet_views::stalled(&self.views).unwrap_or(Outcome::Done(self.way.wanted));
        }
        let way = format!("at stage {}, on the way to {}", self.way.reached, self.way.wanted);
        let between = || if self.message.is_empty() { way.clone() } else { format!("{way}; {}", self.message) };
        match sleeping {
            reasons::WAKING_UP => Outcome::WakingUp(between()),
            reasons::GOING_TO_SLEEP => Outcome::GoingToSleep(between()),
            _ => Outcome::Progressing(self.message.clone()),
        }
    }
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

/// Fleets that are being deleted: their bots trade until they have stopped.
fn fleets_leaving(context: &Context, entries: &[Entry]) -> Vec<String> {
    let leaving = |entry: &&Entry| entry.slot == Slot::Child(ChildKind::BotFleet) && entry.deleting;
    let leaving = entries.iter().filter(leaving).filter(|fleet| !removal::has_ended(context, entries, fleet));
    leaving.map(|fleet| format!("fleet {} is being deleted", fleet.name)).collect()
}

fn fleets_unready(fleets: &[FleetView], validated: &ValidatedTenant) -> Vec<String> {
    let missing = validated.fleets.iter().filter(|(name, _)| !fleets.iter().any(|fleet| fleet.name == *name));
    let missing = missing.map(|(name, _)| format!("fleet {name} is being created"));
    let working = fleets.iter().filter_map(|fleet| match &fleet.state {
        FleetState::Working(reason) => Some(format!("fleet {}: {reason}", fleet.name)),
        FleetState::Ready | FleetState::Stalled(_) => None,
    });
    missing.chain(working).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_tenant_at_rest_is_not_awaited() {
        let of = |spec: serde_json::Value, status: serde_json::Value| {
            let object = json!({
                "apiVersion": "torpor.dev/v1alpha1", "kind": "Tenant", "spec": spec, "status": status,
                "metadata": {"name": "a", "generation": 2, "creationTimestamp": "2026-01-01T00:00:00Z"},
            });
            moves(&serde_json::from_value(object).expect("a Tenant"), "2026-01-01T01:00:00Z".parse().expect("a time"))
        };
        let condition = |type_: &str, reason: &str, seen: i64, since: &str| {
            json!({"type": type_, "status": if reason == "Asleep" { "True" } else { "False" }, "reason": reason, "message": "",
                "observedGeneration": seen, "lastTransitionTime": since})
        };
        let (an_hour_ago, now) = ("2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z");
        let at = |stage: &str, seen: i64, reason: &str, since: &str| {
            json!({"observedGeneration": seen, "hibernation": {"stage": stage},
                "conditions": [condition("Hibernated", reason, seen, since)]})
        };
        let (awake, asleep) = (json!({"tier": "free"}), json!({"tier": "free", "suspended": true}));
        assert!(!of(awake.clone(), at("Active", 2, "Awake", an_hour_ago)));
        assert!(!of(asleep.clone(), at("DatabaseOnly", 2, "Asleep", an_hour_ago)));
        // Not Ready for an hour, and what was asked for last was told of.
        let unready = |seen: i64, mut status: serde_json::Value| {
            let ready = condition("Ready", "Progressing", seen, an_hour_ago);
            status["conditions"].as_array_mut().expect("conditions").push(ready);
            status
        };
        let begun = |at: &str, mut status: serde_json::Value| {
            status["wake"] = json!({"requestedAt": at});
            status
        };
        for (what, spec, status) in [
            ("a new one", &awake, json!({})),
            ("a change", &awake, at("Active", 1, "Awake", an_hour_ago)),
            ("a change of what is not ready", &awake, unready(1, at("Active", 1, "Awake", an_hour_ago))),
            ("a suspension", &asleep, at("Active", 2, "Awake", an_hour_ago)),
            ("one of what is not ready", &asleep, unready(2, at("Active", 2, "Awake", an_hour_ago))),
            ("a wake", &awake, at("DatabaseOnly", 2, "Asleep", an_hour_ago)),
            ("one of what is not ready", &awake, unready(2, at("DatabaseOnly", 2, "Asleep", an_hour_ago))),
            ("a wake that is not over", &awake, at("Active", 2, "WakingUp", now)),
            ("a login while bots stop", &awake, at("Active", 2, "GoingToSleep", an_hour_ago)),
            ("and when that was told", &awake, begun(now, at("Active", 2, "WakingUp", an_hour_ago))),
        ] {
            assert!(of(spec.clone(), status), "{what}");
        }
        assert!(!of(awake.clone(), unready(2, at("Active", 1, "Awake", an_hour_ago))), "it has been told for an hour");
        for status in [at("BotsStopped", 2, "WakingUp", an_hour_ago), at("Active", 2, "WakingUp", an_hour_ago)] {
            assert!(!of(awake.clone(), begun(an_hour_ago, status.clone())), "a wake that does not get on");
            assert!(!of(awake.clone(), status), "a wake that does not get on");
        }
    }
}

//! What tenants and fleets do alike with their planned children: apply, prune, replace pods.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::Value;

use super::context::{Context, Key};
use super::outcome::{self, FirstFailure, Outcome};
use super::removal;
use super::rollout::Pace;
use super::starting::{self, Resize};
use super::volumes;
use super::workloads::{self, Wanted};
use crate::api::BotFleetSpec;
use crate::cluster::apply::Applied;
use crate::cluster::error::ClusterError;
use crate::cluster::index::{Entry, Slot};
use crate::cluster::status::Own;
use crate::domain::names::{self, DASHBOARD, ISOLATION, annotation, label};
use crate::plan::{self, Child, ChildKind};

/// What could not be made of a plan. Nothing else of the pass waits for it, for a tenant that is refused an Ingress must
/// still be able to sleep and to wake.
#[derive(Debug, Default)]
pub struct Failures {
    /// The first of them, and of later steps; told once all else is done.
    pub first: FirstFailure,
    /// Components whose configuration is not as wanted, so that new pods would be made of what was.
    outdated: HashSet<String>,
    /// What the pods of all components need is not there.
    of_all: bool,
    /// The dashboard, itself or what it is made of.
    dashboard: bool,
    /// Kinds of which one has failed.
    kinds: HashSet<ChildKind>,
    /// Workloads whose pods would be made of what is not as wanted.
    held: HashSet<String>,
}

impl Failures {
    fn keep(
        &mut self,
        child: &Child,
        missing: impl Fn(&Child) -> bool,
        done: Result<(), Outcome>,
    ) -> Result<(), Outcome> {
        let Err(failed) = done else { return Ok(()) };
        self.kinds.insert(child.kind());
        let missing = missing(child);
        match child.kind() {
            // Where there is no namespace there is nothing else to do, nor where there soon will be none.
            ChildKind::Namespace if missing || matches!(failed, Outcome::Waiting(_)) => return Err(failed),
            ChildKind::ConfigMap => self.outdated.extend(component(child)),
            // Where the database's workload is there, the Secret is taken to be, too.
            ChildKind::Secret => self.of_all = true,
            ChildKind::ServiceAccount => self.of_all |= missing,
            // The others only allow what this one forbids.
            ChildKind::NetworkPolicy => self.of_all |= missing && child.name() == ISOLATION,
            _ => {}
        }
        self.first.keep(Err(failed))
    }

    /// Whether the pods of this child would be made of what is not as wanted.
    fn spares(&self, child: &Child) -> bool {
        self.of_all || component(child).is_some_and(|component| self.outdated.contains(&component))
    }

    /// Whether the configuration of this workload was made as wanted, and what all need.
    pub fn has_made(&self, workload: &Wanted) -> bool {
        !self.held.contains(&workload.name)
    }

    /// Whether the dashboard cannot be had, for which bots otherwise wait until it is asked for.
    pub fn of_dashboard(&self) -> bool {
        self.dashboard
    }
}

fn component(child: &Child) -> Option<String> {
    child.metadata().labels.as_ref().and_then(|labels| labels.get(label::COMPONENT)).cloned()
}

/// Makes the children as wanted, in order. `outdated` tells, just before each is written, whether the plan would now be another.
/// A workload that cannot be written has no more pods than it is wanted to have all the same.
///
/// # Errors
/// The first outcome that stops the pass, [`Outcome::Again`] for a plan that is outdated. An object that is refused or fails does not.
pub async fn apply(
    context: &Context,
    namespace: &str,
    children: impl IntoIterator<Item = &Child>,
    outdated: impl Fn() -> bool,
) -> Result<Failures, Outcome> {
    let mut failures = Failures::default();
    let began = context.clock.monotonic();
    // One on its way out may be gone at any moment.
    let missing = |child: &Child| {
        let found = context.index.get(Slot::Child(child.kind()), namespace, child.name());
        found.is_none_or(|found| found.deleting)
    };
    for child in children {
        if outdated() {
            return Err(Outcome::Again);
        }
        let workload = workload(child);
        let starts = || workload.is_some() || child.kind() == ChildKind::BotFleet && missing(child);
        let spared = failures.spares(child) && starts();
        let done = if failures.kinds.contains(&child.kind()) && context.has_lasted(began) {
            let kind = child.kind().resource().plural;
            Err(Outcome::Failed(format!("{kind} are not all tried, each takes long to fail")))
        } else if spared {
            Ok(())
        } else {
            ensure(context, child, namespace).await
        };
        let failed = spared || done.is_err();
        if let Some(workload) = workload.as_ref().filter(|_| !failed) {
            failures.first.keep(removal::stop_lost(context, namespace, &workload.name, workload.replicas).await)?;
        }
        failures.dashboard |= failed && child.kind() == ChildKind::Deployment && child.name() == DASHBOARD;
        let kept = failures.keep(child, missing, done);
        let busy = matches!(kept, Err(Outcome::Transient(_)));
        if let Some(workload) = workload.filter(|_| failed && (kept.is_ok() || busy)) {
            // It may have taken long to fail.
            if outdated() {
                return Err(Outcome::Again);
            }
            let surplus = stop_surplus(context, namespace, (workload.kind, &workload.name), workload.replicas).await;
            failures.first.keep(surplus)?;
            // One that failed itself has the hash that is wanted only if all that its pods are made of is, too.
            failures.held.extend(spared.then_some(workload.name));
        }
        kept?;
    }
    // One hiccup is no reason for bots to overtake it.
    failures.dashboard &= !failures.first.is_tried_soon() || failed_often(context, namespace);
    Ok(failures)
}

fn failed_often(context: &Context, namespace: &str) -> bool {
    let tenant = names::tenant_of_namespace(namespace).map(|name| Key::new(Own::Tenant, None, name));
    tenant.is_some_and(|key| context.memory.failures(&key) >= outcome::SHOWN_AFTER)
}

/// Stops the pods of a workload that are more than it is wanted to have, those that nobody else would stop, too, where it is not there or on its way out.
///
/// # Errors
/// The outcome of a request that failed.
pub async fn stop_surplus(
    context: &Context,
    namespace: &str,
    (kind, name): (ChildKind, &str),
    replicas: i32,
) -> Result<(), Outcome> {
    let surplus = |pod: &Entry| workloads::is_surplus(&pod.name, name, replicas);
    removal::scale_and_stop(context, namespace, (kind, name), replicas, surplus).await
}

/// The planned spec of a fleet, and `null` for what the live one has besides. `None` where it has nothing.
fn taken_back(live: &BotFleetSpec, planned: &BotFleetSpec) -> Option<Value> {
    // The only fields that a plan may leave out.
    let optional = |spec: &BotFleetSpec| {
        let strategy = &spec.strategy;
        let resources = spec.resources.as_ref();
        [
            spec.paused,
            spec.credentials_secret.is_some(),
            resources.is_some(),
            resources.is_some_and(|resources| resources.cpu.is_some()),
            resources.is_some_and(|resources| resources.memory.is_some()),
            strategy.config.is_some(),
            strategy.config_map_ref.is_some(),
        ]
    };
    let besides = optional(live).into_iter().zip(optional(planned)).any(|(live, planned)| live && !planned);
    let spec = || Some((serde_json::to_value(live).ok()?, serde_json::to_value(planned).ok()?));
    besides.then(spec).flatten().map(|(live, planned)| with_nulls(&live, planned))
}

fn with_nulls(live: &Value, planned: Value) -> Value {
    let (Value::Object(live), Value::Object(mut planned)) = (live, planned.clone()) else { return planned };
    for (key, value) in live {
        let field = planned.remove(key).map_or(Value::Null, |planned| with_nulls(value, planned));
        planned.insert(key.clone(), field);
    }
    Value::Object(planned)
}

async fn ensure(context: &Context, child: &Child, namespace: &str) -> Result<(), Outcome> {
    if let Child::StatefulSet(set) = child
        && context.index.get(Slot::Child(ChildKind::StatefulSet), namespace, child.name()).is_none()
    {
        return volumes::adopt(context, set, namespace).await;
    }
    if let Child::BotFleet(planned) = child
        && let Some(live) = context.fleet(namespace, child.name())
        && let Ok(live) = &live.0
        && live.metadata.deletion_timestamp.is_none()
        && let Some(spec) = taken_back(&live.spec, &planned.spec)
    {
        // First what is planned, as far as it is permitted beside what others have set: what the second request alone changes is
        // then what goes, which is nobody's afterwards.
        match context.applier.ensure(child, namespace).await {
            // It may be the plan itself that has dropped it, and then it has gone by this.
            Ok(Applied::Updated) => {}
            Ok(_) | Err(ClusterError::Refused { .. }) => {
                tracing::info!(
                    namespace,
                    fleet = child.name(),
                    "what its Tenant does not say of a fleet is taken back"
                );
            }
            Err(error) => return Err(error.into()),
        }
        context.applier.take_back(namespace, child.name(), &spec).await?;
    }
    if let Child::ResourceQuota(quota) = child
        && !context.is_as_planned(namespace)
        && let Some(plans) = context.applier.another_plan(child, namespace)
    {
        if context.memory.is_roomy(namespace, &plans) {
            return Ok(());
        }
        if let Some(now) = context.reader.quota(namespace, child.name()).await? {
            let roomy = Child::ResourceQuota(plan::roomy(quota, &now));
            context.applier.ensure(&roomy, namespace).await?;
            if let Some(plans) = context.applier.another_plan(child, namespace) {
                context.made_roomy(namespace, &plans);
            }
            return Ok(());
        }
    }
    match context.applier.ensure(child, namespace).await {
        Err(ClusterError::ClaimsDiffer { .. }) => volumes::grow(context, child, namespace).await,
        ensured => ensured.map(|_| ()).map_err(Outcome::from),
    }
}

/// Deletes what an earlier plan of this owner made and the present one does not want, and what is `unowned` and not wanted.
/// Namespaces, Secrets and volumes carry no owner and are never among it.
///
/// # Errors
/// The outcome of a deletion that failed. One that is refused or fails holds up no other.
pub async fn prune(
    context: &Context,
    (owner, unowned): (Option<&str>, &[(ChildKind, &str)]),
    namespace: &str,
    children: &[Child],
    outdated: impl Fn() -> bool,
) -> Result<(), Outcome> {
    let wanted: HashSet<(ChildKind, &str)> = children.iter().map(|child| (child.kind(), child.name())).collect();
    let mut failed = FirstFailure::default();
    for entry in context.index.namespace(namespace) {
        let Slot::Child(kind) = entry.slot else { continue };
        let owned = match &entry.owner {
            Some(uid) => owner == Some(uid),
            None => unowned.contains(&(kind, &entry.name)),
        };
        if owned && !wanted.contains(&(kind, entry.name.as_str())) {
            if outdated() {
                return Err(Outcome::Again);
            }
            failed.keep(context.applier.delete(&entry).await.map_err(Outcome::from))?;
        }
    }
    failed.told()
}

/// Deletes, for each workload, the next pod that a change of configuration, image or size has outdated, if it has its turn. What
/// comes in the place of a pod is made of what there is, which must be as wanted; a workload to which the change was refused does not have
/// the hash that is wanted.
///
/// # Errors
/// The outcome of a deletion that failed. One that is refused or fails holds up no other.
pub async fn replace_pods(
    context: &Context,
    namespace: &str,
    workloads: impl Iterator<Item = &Wanted>,
    pace: Pace,
    outdated: impl Fn() -> bool,
) -> Result<(), Outcome> {
    let entries = context.index.namespace(namespace);
    let mut failed = FirstFailure::default();
    for workload in workloads {
        let place = (namespace, workload.name.as_str());
        let grace = Duration::from_secs(workload.grace_seconds.unwrap_or_default().into());
        // One that is known not to work is mended by it. That of a node which is cut off works for all that is known.
        let broken = |pod: &Entry| workloads::has_problem(pod) || pace == Pace::Asked && !workloads::is_ready(pod);
        let may = || {
            let held = workloads::another_bot_stops(&entries, workload, context.clock.now());
            context.may_replace(place, pace, held, grace)
        };
        match workloads::next_replacement(&entries, workload) {
            Some(_) if outdated() => return Err(Outcome::Again),
            Some(pod) if broken(pod) || may() => {
                let deleted = context.applier.delete_replaced(pod, workload.grace_seconds).await;
                if deleted.is_ok() {
                    context.replaced(place, grace);
                }
                failed.keep(deleted.map_err(Outcome::from))?;
            }
            None if context.rollout.has(place) && workloads::unready(&entries, workload).is_none() => {
                context.end_turn(namespace, Some(&workload.name));
            }
            Some(_) | None => {}
        }
    }
    failed.told()
}

/// Gives pods of a waking tenant more CPU until they are ready, and takes it back from those that are.
///
/// # Errors
/// The outcome of a request that failed, once all were tried. Being refused is none: the pod starts more slowly, or has more than its
/// tier gives until it is replaced. Neither is a reason to call the tenant broken.
pub async fn help_to_start(
    context: &Context,
    namespace: &str,
    workloads: &[Wanted],
    waking: bool,
) -> Result<(), Outcome> {
    let entries = context.index.namespace(namespace);
    let mut failed = FirstFailure::default();
    for Resize { pod, container, limit } in starting::resizes(&entries, workloads, context.catalog.start_cpu, waking) {
        match context.applier.resize_pod(pod, container, limit).await {
            Err(ClusterError::Refused { what, reason }) => {
                tracing::info!(%what, %limit, %reason, "the CPU limit of a pod was not changed");
            }
            other => failed.keep(other.map_err(Outcome::from))?,
        }
    }
    failed.told()
}

/// The workloads among planned children.
pub fn workloads(children: &[Child]) -> Vec<Wanted> {
    children.iter().filter_map(workload).collect()
}

fn workload(child: &Child) -> Option<Wanted> {
    let (replicas, pod) = plan::pods(child)?;
    // Only StatefulSets carry the hash; a Deployment replaces its pods itself.
    let annotations = child.metadata().annotations.as_ref();
    let restart_hash = annotations.and_then(|annotations| annotations.get(annotation::RESTART_HASH)).cloned();
    let container = pod.containers.first()?;
    Some(Wanted {
        kind: child.kind(),
        name: child.name().to_owned(),
        replicas,
        restart_hash,
        container: container.name.clone(),
        cpu: plan::limit(container).cpu,
        grace_seconds: pod.termination_grace_period_seconds.and_then(|seconds| u32::try_from(seconds).ok()),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_others_have_set_in_a_tenants_fleet_is_taken_back() {
        let spec = |mut more: Value| -> BotFleetSpec {
            more["strategy"].as_object_mut().map(|strategy| strategy.insert("kind".to_owned(), json!("v1")));
            serde_json::from_value(more).expect("a spec")
        };
        let planned = spec(json!({"strategy": {"config": "strategy: a"}, "resources": {"cpu": "100m"}}));
        assert_eq!(taken_back(&planned, &planned), None);
        assert_eq!(taken_back(&spec(json!({"replicas": 9, "strategy": {"config": "strategy: b"}})), &planned), None);
        for (live, field) in [
            (json!({"paused": true, "strategy": {"config": "strategy: a"}}), "/paused"),
            (json!({"credentialsSecret": "keys", "strategy": {"config": "strategy: a"}}), "/credentialsSecret"),
            (json!({"resources": {"memory": "1Gi"}, "strategy": {"config": "strategy: a"}}), "/resources/memory"),
            (json!({"strategy": {"configMapRef": {"name": "mine"}}}), "/strategy/configMapRef"),
        ] {
            let spec = taken_back(&spec(live), &planned).expect(field);
            assert_eq!(spec.pointer(field), Some(&Value::Null), "{spec}");
            assert_eq!(spec["resources"]["cpu"], "100m");
            assert_eq!(spec["strategy"]["config"], "strategy: a");
        }
    }
}

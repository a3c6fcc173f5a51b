//! `WorkerPools`: their `PriorityClass` and status, one pass each; and the marks on nodes, one pass over all.

use std::cell::Cell;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use tokio::sync::Notify;

use super::context::{Context, Guarded};
use super::outcome::Outcome;
use super::report::Turn;
use super::{report, undecodable};
use crate::api::worker_pool::{Allocatable, NodeCount, Preemption};
use crate::api::{Tenant, WorkerPool, WorkerPoolStatus};
use crate::cluster::error::ClusterError;
use crate::cluster::status::Own;
use crate::domain::names;
use crate::domain::quantity::{Bytes, Cpu};
use crate::domain::stage::Stage;
use crate::placement::assign::{Assignment, Node, Pool, assign};
use crate::status::{self, Seen};

/// Runs one pass and tells when the next is due.
pub async fn reconcile(guarded: Arc<Guarded<WorkerPool>>, context: &Context) -> Turn {
    let pool = match &guarded.0 {
        Ok(pool) => pool,
        Err(invalid) => return undecodable::pool(context, invalid).await,
    };
    if pool.metadata.deletion_timestamp.is_some() {
        return Turn::again();
    }
    let old = report::current(context, Own::WorkerPool, &pool.metadata, pool.status.as_ref());
    let seen = Seen { generation: pool.metadata.generation.unwrap_or_default(), now: context.clock.now() };
    let nodes = context.nodes.nodes();
    let assignment = assign(&pools(context), &unread(context), &nodes);
    let outcome = match class(context, pool).await {
        Ok(()) => judge(pool, &assignment, &nodes, |node| context.nodes.refusal(node)),
        Err(outcome) => outcome,
    };
    report::finish(context, Own::WorkerPool, &pool.metadata, &old, (outcome, None), |outcome| {
        pool_status(context, pool, &old, outcome, (&assignment, &nodes), seen)
    })
    .await
}

fn readable(context: &Context) -> Vec<WorkerPool> {
    let state = context.pools.state();
    let readable = state.iter().filter_map(|guarded| guarded.0.as_ref().ok());
    readable.filter(|pool| pool.metadata.deletion_timestamp.is_none()).cloned().collect()
}

fn pools(context: &Context) -> Vec<Pool> {
    let mut pools: Vec<Pool> = readable(context)
        .into_iter()
        .map(|pool| Pool {
            name: pool.name_any(),
            selector: pool.spec.node_selector.clone(),
            dedicated: pool.spec.dedicated,
        })
        .collect();
    pools.sort_by(|a, b| a.name.cmp(&b.name));
    pools
}

/// Names of the pools that cannot be read.
fn unread(context: &Context) -> BTreeSet<String> {
    let pools = context.pools.state();
    pools.iter().filter_map(|guarded| guarded.0.as_ref().err()?.metadata.name.clone()).collect()
}

const fn preemption(preemption: Preemption) -> &'static str {
    match preemption {
        Preemption::PreemptLowerPriority => "PreemptLowerPriority",
        Preemption::Never => "Never",
    }
}

/// Makes the pool's `PriorityClass` as wanted. Its value is immutable, so another value replaces the class:
/// pods that exist keep the priority they were admitted with.
async fn class(context: &Context, pool: &WorkerPool) -> Result<(), Outcome> {
    let wanted = &pool.spec.priority;
    if let Some(other) = readable(context)
        .iter()
        .find(|other| other.spec.priority.class == wanted.class && other.spec.priority != *wanted)
    {
        return Err(Outcome::Conflict(format!(
            "WorkerPool {} gives PriorityClass {} another value or preemption; make them equal",
            other.name_any(),
            wanted.class
        )));
    }
    let policy = preemption(wanted.preemption);
    let done = match context.nodes.classes().get(&wanted.class) {
        Some(found) if found.value == wanted.value && found.preemption == policy => return Ok(()),
        Some(found) => context.nodes.replace_class(&wanted.class, &found.uid, wanted.value, policy).await,
        None => context.nodes.create_class(&wanted.class, wanted.value, policy).await,
    };
    match done {
        Err(ClusterError::NotOwned { .. }) => Err(Outcome::Conflict(format!(
            "PriorityClass {} exists with another value and is not Torpor's; choose another priority.class",
            wanted.class
        ))),
        other => Ok(other?),
    }
}

fn judge(
    pool: &WorkerPool,
    assignment: &Assignment,
    nodes: &[Node],
    refusal: impl Fn(&str) -> Option<String>,
) -> Outcome {
    let name = pool.name_any();
    if let Some(disputes) = assignment.disputes.get(&name) {
        return Outcome::Conflict(format!("{}; let one selector match", disputes.join("; ")));
    }
    let is_own = |node: &String| assignment.members.get(&name).is_some_and(|members| members.contains(node));
    let mut unmarked = assignment.edits.iter().map(|edit| &edit.node).filter(|node| is_own(node)).peekable();
    if unmarked.peek().is_some() {
        let refused = unmarked.find_map(|node| refusal(node));
        return refused.map_or_else(|| Outcome::Progressing("nodes are being marked".to_owned()), Outcome::Refused);
    }
    // New pods land there as long as they have its label.
    let mut left = assignment.edits.iter().filter(|edit| edit.loses.as_ref() == Some(&name));
    if let Some(kept) = left.find_map(|edit| refusal(&edit.node)) {
        return Outcome::Refused(kept);
    }
    let members = members(assignment, nodes, &name);
    if members.iter().any(|node| node.ready) {
        Outcome::Done(Stage::Active)
    } else {
        let labels: Vec<String> = pool.spec.node_selector.iter().map(|(k, v)| format!("{k}={v}")).collect();
        Outcome::Waiting(format!("{} nodes match {} and none is ready", members.len(), labels.join(",")))
    }
}

fn members<'a>(assignment: &Assignment, nodes: &'a [Node], pool: &str) -> Vec<&'a Node> {
    let names = assignment.members.get(pool);
    nodes.iter().filter(|node| names.is_some_and(|names| names.contains(&node.name))).collect()
}

fn pool_status(
    context: &Context,
    pool: &WorkerPool,
    old: &WorkerPoolStatus,
    outcome: &Outcome,
    (assignment, nodes): (&Assignment, &[Node]),
    seen: Seen,
) -> WorkerPoolStatus {
    let members = members(assignment, nodes, &pool.name_any());
    let ready: Vec<&&Node> = members.iter().filter(|node| node.ready).collect();
    let served = Cell::new(0);
    // A list of thousands is only counted, not copied.
    let _ = context.tenants.find(|guarded| {
        let is_served = guarded.0.as_ref().is_ok_and(|tenant| pool.spec.tiers.contains(&tenant.spec.tier));
        served.set(served.get() + usize::from(is_served));
        false
    });
    let served = served.get();
    // Waiting for nodes is a state that this generation can stay in; its PriorityClass is there, so tenants may be planned.
    let handled = outcome.is_final() || matches!(outcome, Outcome::Waiting(_) | Outcome::Progressing(_));
    WorkerPoolStatus {
        observed_generation: if handled { Some(seen.generation) } else { old.observed_generation },
        conditions: outcome.verdicts().map(|v| status::conditions(&old.conditions, v, None, seen)).unwrap_or_default(),
        nodes: Some(NodeCount {
            total: i32::try_from(members.len()).unwrap_or(i32::MAX),
            ready: i32::try_from(ready.len()).unwrap_or(i32::MAX),
        }),
        allocatable: Some(Allocatable {
            cpu: Cpu(ready.iter().map(|node| node.cpu).sum()).to_string(),
            memory: Bytes(ready.iter().map(|node| node.memory).sum()).to_string(),
            pods: ready.iter().map(|node| node.pods).sum(),
        }),
        tenants: Some(i32::try_from(served).unwrap_or(i32::MAX)),
    }
}

/// Puts marks on nodes and takes them away, whenever `changed` says that nodes or pools changed. Also drops
/// `PriorityClasses` that nobody needs. It looks at all pools at once, so that it works when the last one has gone.
pub async fn keep_nodes(context: Arc<Context>, changed: Arc<Notify>) {
    let mut failures = 0_u32;
    loop {
        match mark(&context).await {
            Ok(Left::Nothing) => {
                failures = 0;
                changed.notified().await;
            }
            Ok(Left::InUse) => {
                failures = 0;
                let _ = tokio::time::timeout(STILL_USED, changed.notified()).await;
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                tracing::warn!(%error, failures, "nodes were not marked; trying again");
                context.every_pool();
                // Whatever was refused, what is new is seen to soon.
                let pause = Duration::from_millis(200 << failures.min(8));
                let least = pause.min(Duration::from_secs(5));
                tokio::time::sleep(least).await;
                let _ = tokio::time::timeout(pause.saturating_sub(least), changed.notified()).await;
            }
        }
    }
}

/// How often it is looked whether the last workload has let go of a class, or of a node's label, that nobody names any more.
const STILL_USED: Duration = Duration::from_secs(10);

/// What is left of earlier pools and catalogues.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    /// Nothing, or nobody can tell.
    Nothing,
    /// Pods that run may still need a `PriorityClass`, or the label of their node, that nobody names any more.
    InUse,
}

/// # Errors
/// The first error; a node or class that cannot be written holds up no other.
async fn mark(context: &Context) -> Result<Left, ClusterError> {
    let mut result = Ok(());
    let unread = unread(context);
    let mut left_over = Left::Nothing;
    let edits = assign(&pools(context), &unread, &context.nodes.nodes()).edits;
    let in_use =
        if edits.iter().any(|edit| edit.loses.is_some()) { context.index.nodes_in_use() } else { HashSet::new() };
    for edit in edits {
        // A kubelet that restarts admits its pods anew, and kills without grace those that need a label which has gone.
        if edit.loses.is_some() && in_use.contains(&*edit.node) {
            left_over = Left::InUse;
            if context.nodes.keep(&edit) {
                context.every_pool();
            }
            continue;
        }
        result = result.and(context.nodes.mark(&edit).await);
    }
    // Which class a pool or a Tenant needs that cannot be read is not known.
    if !unread.is_empty() || context.tenants.state().iter().any(|guarded| guarded.0.is_err()) {
        return result.map(|()| left_over);
    }
    let named: HashSet<String> = readable(context).into_iter().map(|pool| pool.spec.priority.class).collect();
    let tenants = context.tenants.state();
    let used: HashSet<&str> = tenants
        .iter()
        .filter_map(|guarded| guarded.0.as_ref().ok())
        .map(|tenant| context.catalog.tier(tenant.spec.tier).priority_class.as_str())
        .collect();
    let known = context.nodes.classes();
    let left = known.iter().filter(|(name, _)| !named.contains(*name) && !used.contains(name.as_str()));
    // What a catalogue before this one named, workloads have for as long as they are not as planned, and pods of theirs are made anew.
    let planned = |tenant: &Arc<Guarded<Tenant>>| context.is_as_planned(&names::namespace(&tenant.name_any()));
    let mut all_planned = None;
    for (name, class) in left {
        let free = context.nodes.class_answered(name).is_some()
            || *all_planned.get_or_insert_with(|| tenants.iter().all(planned));
        if free {
            result = result.and(context.nodes.delete_class(name, &class.uid).await);
        } else {
            left_over = Left::InUse;
        }
    }
    result.map(|()| left_over)
}

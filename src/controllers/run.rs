//! The operator's loops: watches feed stores, index and triggers; kube-runtime's applier runs the passes.

use std::fmt::Debug;
use std::future::Future;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::channel::mpsc::{self, UnboundedReceiver, UnboundedSender};
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::core::PartialObjectMeta;
use kube::runtime::controller::{Action, Config, Error, ReconcileRequest};
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::{applier, watcher};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use thiserror::Error as ThisError;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::context::{Context, Guarded, Memory, Triggers};
use super::report::Turn;
use super::{bot_fleet, tenant, worker_pool};
use crate::api::{BotFleet, Tenant, WorkerPool};
use crate::clock::Clock;
use crate::cluster::Cluster;
use crate::cluster::index::{ChildIndex, Entry, Facts, Slot};
use crate::cluster::status::Own;
use crate::cluster::watch::{self, Change, Watches};
use crate::domain::catalog::Catalog;
use crate::domain::names::{self, label};
use crate::http::probes::Health;
use crate::metrics::Metrics;
use crate::plan::{ChildKind, Settings};

/// Passes that run at the same time, per kind. More only makes the API server queue them.
const CONCURRENCY: u16 = 16;
/// A pass that hangs must not hold its place for good.
const LONGEST_PASS: Duration = Duration::from_secs(60);
/// How often each loop proves that it still turns.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// A loop that was silent for so long is stuck.
const LONGEST_SILENCE: Duration = Duration::from_secs(180);
/// No object can have this name, so a request for it turns the loop and touches nothing.
const NOBODY: &str = ".heartbeat";

/// A loop ended although nothing asked it to; the process must end, too.
#[derive(Debug, ThisError)]
#[error("the {0} loop ended unexpectedly")]
pub struct Ended(String);

/// What the operator is started with.
pub struct Start {
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The tier catalogue.
    pub catalog: Catalog,
    /// Settings that shape objects.
    pub settings: Settings,
    /// Liveness and readiness.
    pub health: Health,
    /// Counts.
    pub metrics: Metrics,
}

/// Runs until a loop ends, which is always an error.
///
/// # Errors
/// [`Ended`], naming the loop.
pub async fn operator(cluster: Cluster, start: Start) -> Result<(), Ended> {
    let Start { clock, catalog, settings, health, metrics } = start;
    let (tenants, tenant_writer) = reflector::store::<Guarded<Tenant>>();
    let (fleets, fleet_writer) = reflector::store::<Guarded<BotFleet>>();
    let (pools, pool_writer) = reflector::store::<Guarded<WorkerPool>>();
    let (tenant_requests, tenant_queue) = mpsc::unbounded();
    let (fleet_requests, fleet_queue) = mpsc::unbounded();
    let (pool_requests, pool_queue) = mpsc::unbounded();
    let triggers = Triggers { tenants: tenant_requests, fleets: fleet_requests, pools: pool_requests };
    let context = Arc::new(Context {
        clock,
        catalog,
        settings,
        index: cluster.index.clone(),
        nodes: cluster.nodes.clone(),
        applier: cluster.applier.clone(),
        status: cluster.status.clone(),
        events: cluster.events.clone(),
        reader: cluster.reader.clone(),
        metrics,
        tenants,
        fleets,
        pools,
        triggers,
        memory: Memory::default(),
    });
    let nodes_changed = Arc::new(Notify::new());
    // Named before the first watch starts, so that not one of them can be overlooked below.
    for name in watch::NAMES {
        health.pending(name);
    }
    let mut loops = JoinSet::new();
    let watches = Arc::new(cluster.watches(health.clone()));
    watch_own(&mut loops, &cluster, &watches, &context, &nodes_changed, (tenant_writer, fleet_writer, pool_writer));
    watch_others(&mut loops, &cluster, &watches, &context, &nodes_changed);

    // Before every watch has listed once, absence means nothing and no pass may run.
    while !health.waiting_for().is_empty() {
        if let Some(ended) = loops.try_join_next() {
            return Err(end(ended));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tracing::info!(
        tenants = context.tenants.len(),
        fleets = context.fleets.len(),
        pools = context.pools.len(),
        "all watches have listed; passes begin"
    );
    check_user_namespaces(&context);
    {
        let (context, changed) = (context.clone(), nodes_changed);
        loops.spawn(async move {
            worker_pool::keep_nodes(context, changed).await;
            "nodes"
        });
    }
    loops.spawn(passes(Own::WorkerPool, &context, &health, context.pools.clone(), (context.triggers.pools.clone(), pool_queue), |object, context| async move {
        worker_pool::reconcile(object, &context).await
    }));
    loops.spawn(passes(Own::Tenant, &context, &health, context.tenants.clone(), (context.triggers.tenants.clone(), tenant_queue), |object, context| async move {
        tenant::reconcile(object, &context).await
    }));
    loops.spawn(passes(Own::BotFleet, &context, &health, context.fleets.clone(), (context.triggers.fleets.clone(), fleet_queue), |object, context| async move {
        bot_fleet::reconcile(object, &context).await
    }));
    match loops.join_next().await {
        Some(ended) => Err(end(ended)),
        None => Err(Ended("empty".to_owned())),
    }
}

fn end(ended: Result<&'static str, tokio::task::JoinError>) -> Ended {
    Ended(ended.map_or_else(|error| error.to_string(), str::to_owned))
}

/// Watches Tenants, BotFleets and WorkerPools into their stores.
fn watch_own(
    loops: &mut JoinSet<&'static str>,
    cluster: &Cluster,
    watches: &Arc<Watches>,
    context: &Arc<Context>,
    nodes_changed: &Arc<Notify>,
    (tenants, fleets, pools): (Writer<Guarded<Tenant>>, Writer<Guarded<BotFleet>>, Writer<Guarded<WorkerPool>>),
) {
    let own = |kind: Own| match kind {
        Own::Tenant => "Tenant",
        Own::BotFleet => "BotFleet",
        Own::WorkerPool => "WorkerPool",
    };
    let (feed, api, told) = (watches.clone(), cluster.all::<Guarded<Tenant>>(), context.clone());
    loops.spawn(async move {
        let mut store = Stored::new(tenants);
        feed.run(own(Own::Tenant), api, None, |event| {
            store.take(event, |object| {
                told.triggers.tenant(&object.name_any());
                for fleet in told.fleets_of(&names::namespace(&object.name_any())) {
                    told.triggers.fleet(&fleet.namespace().unwrap_or_default(), &fleet.name_any());
                }
                // Only a tenant that comes or goes changes what pools count.
                if object.meta().generation == Some(1) || object.meta().deletion_timestamp.is_some() {
                    every_pool(&told);
                }
            });
        }).await;
        own(Own::Tenant)
    });
    let (feed, api, told) = (watches.clone(), cluster.all::<Guarded<BotFleet>>(), context.clone());
    loops.spawn(async move {
        let mut store = Stored::new(fleets);
        let slot = Slot::Child(ChildKind::BotFleet);
        feed.run(own(Own::BotFleet), api, None, |event| {
            index_fleet(&told.index, slot, &event);
            store.take(event, |object| {
                let namespace = object.namespace().unwrap_or_default();
                told.triggers.fleet(&namespace, &object.name_any());
                told.triggers.tenant_of(&namespace);
                // The fleets of a namespace share the tier's bots.
                if object.meta().generation != Some(1) || object.meta().deletion_timestamp.is_some() {
                    for other in told.fleets_of(&namespace) {
                        told.triggers.fleet(&namespace, &other.name_any());
                    }
                }
            });
        }).await;
        own(Own::BotFleet)
    });
    let (feed, api, told, changed) = (watches.clone(), cluster.all::<Guarded<WorkerPool>>(), context.clone(), nodes_changed.clone());
    loops.spawn(async move {
        let mut store = Stored::new(pools);
        let mut served = Vec::new();
        feed.run(own(Own::WorkerPool), api, None, |event| {
            store.take(event, |_| {
                every_pool(&told);
                changed.notify_one();
            });
            // Tenants care only about which pools serve which tiers, not about a pool's status.
            let mut now = told.serving_pools();
            now.sort_by(|a, b| a.name.cmp(&b.name));
            if now != served {
                served = now;
                every_tenant(&told);
            }
        }).await;
        own(Own::WorkerPool)
    });
}

/// Watches children, nodes, PriorityClasses and the ConfigMaps that fleets refer to.
fn watch_others(
    loops: &mut JoinSet<&'static str>,
    cluster: &Cluster,
    watches: &Arc<Watches>,
    context: &Arc<Context>,
    nodes_changed: &Arc<Notify>,
) {
    let (feed, told) = (watches.clone(), context.clone());
    loops.spawn(async move {
        let index = told.index.clone();
        feed.children(index, move |change: Change| {
            told.triggers.tenant_of(&change.namespace);
            if let Some(fleet) = change.fleet {
                told.triggers.fleet(&change.namespace, &fleet);
            }
        }).await;
        "children"
    });
    let (feed, api, told) = (watches.clone(), cluster.all::<PartialObjectMeta<ConfigMap>>(), context.clone());
    loops.spawn(async move {
        let others = format!("{}!={}", label::MANAGED_BY, label::TORPOR);
        feed.run("referenced ConfigMap", api, Some(&others), |event| {
            let (watcher::Event::Apply(object) | watcher::Event::InitApply(object) | watcher::Event::Delete(object)) = event
            else { return };
            let namespace = object.namespace().unwrap_or_default();
            let known = told.memory.drop_config(&namespace, &object.name_any());
            for fleet in told.fleets_of(&namespace) {
                let refers = fleet.spec.strategy.config_map_ref.as_ref().is_some_and(|r| r.name == object.name_any());
                if known || refers {
                    told.triggers.fleet(&namespace, &fleet.name_any());
                }
            }
        }).await;
        "referenced ConfigMap"
    });
    let (feed, api, told, changed) = (watches.clone(), cluster.all::<Node>(), context.clone(), nodes_changed.clone());
    loops.spawn(async move {
        let mut seen = Vec::new();
        feed.run("Node", api, None, |event| {
            if told.nodes.take_node(&mut seen, event) {
                every_pool(&told);
                changed.notify_one();
            }
        }).await;
        "Node"
    });
    let (feed, api, told, changed) = (watches.clone(), cluster.all::<PriorityClass>(), context.clone(), nodes_changed.clone());
    loops.spawn(async move {
        let mut seen = Vec::new();
        feed.run("PriorityClass", api, Some(label::MANAGED_SELECTOR), |event| {
            if told.nodes.take_class(&mut seen, event) {
                every_pool(&told);
                changed.notify_one();
            }
        }).await;
        "PriorityClass"
    });
}

fn every_pool(context: &Context) {
    for pool in context.pools.state() {
        context.triggers.pool(&pool.name_any());
    }
}

fn every_tenant(context: &Context) {
    for tenant in context.tenants.state() {
        context.triggers.tenant(&tenant.name_any());
    }
    for fleet in context.fleets.state() {
        context.triggers.fleet(&fleet.namespace().unwrap_or_default(), &fleet.name_any());
    }
}

/// A store that is fed by a watch, with `managedFields` dropped: nothing reads them there.
struct Stored<K: Resource<DynamicType = ()> + Clone + 'static> {
    writer: Writer<K>,
}

impl<K> Stored<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug,
{
    fn new(writer: Writer<K>) -> Self {
        Stored { writer }
    }

    fn take(&mut self, mut event: watcher::Event<K>, touched: impl Fn(&K)) {
        if let watcher::Event::Apply(object) | watcher::Event::InitApply(object) | watcher::Event::Delete(object) = &mut event {
            object.meta_mut().managed_fields = None;
        }
        self.writer.apply_watcher_event(&event);
        match &event {
            watcher::Event::Apply(object) | watcher::Event::InitApply(object) | watcher::Event::Delete(object) => touched(object),
            watcher::Event::InitDone => self.writer.as_reader().state().iter().for_each(|object| touched(object)),
            watcher::Event::Init => {}
        }
    }
}

/// Fleets are children of Tenants, too, and stand in the index like the others.
fn index_fleet(index: &ChildIndex, slot: Slot, event: &watcher::Event<Guarded<BotFleet>>) {
    match event {
        watcher::Event::Init => index.begin_listing(slot),
        watcher::Event::Apply(object) | watcher::Event::InitApply(object) => {
            if let Some(entry) = Entry::read(slot, object.meta(), Facts::None) {
                index.upsert(entry);
            }
        }
        watcher::Event::Delete(object) => {
            if let Some(entry) = Entry::read(slot, object.meta(), Facts::None) {
                index.remove(slot, &entry.namespace, &entry.name, &entry.uid);
            }
        }
        watcher::Event::InitDone => {
            index.finish_listing(slot);
        }
    }
}

/// The loop of one kind: takes requests, runs passes, tells that it turns.
fn passes<K, F, P>(
    kind: Own,
    context: &Arc<Context>,
    health: &Health,
    store: reflector::Store<K>,
    (requests, queue): (UnboundedSender<ReconcileRequest<K>>, UnboundedReceiver<ReconcileRequest<K>>),
    pass: P,
) -> impl Future<Output = &'static str> + Send + use<K, F, P>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Eq + Hash,
    F: Future<Output = Turn> + Send + 'static,
    P: Fn(Arc<K>, Arc<Context>) -> F + Send + Sync + Clone + 'static,
{
    let (context, health) = (context.clone(), health.clone());
    health.heart(kind.as_str(), LONGEST_SILENCE);
    async move {
        let heart = async {
            loop {
                // The receiver is this very loop's; when it is gone the loop has ended.
                let _ = requests.unbounded_send(ObjectRef::new(NOBODY).into());
                tokio::time::sleep(HEARTBEAT).await;
            }
        };
        let guarded = move |object: Arc<K>, context: Arc<Context>| {
            let pass = pass.clone();
            async move { Ok::<Action, Never>(guard(kind, object, context, pass).await) }.boxed()
        };
        let stream = applier(
            guarded,
            |_, error: &Never, _| match *error {},
            context,
            store,
            queue.map(Ok::<_, Never>),
            Config::default().concurrency(CONCURRENCY),
        );
        let turns = async {
            let mut stream = pin!(stream);
            while let Some(turn) = stream.next().await {
                match turn {
                    // An object that has gone, or the heartbeat's own name.
                    Ok(_) | Err(Error::ObjectNotFound(_)) => health.progress(kind.as_str()),
                    Err(error) => tracing::error!(kind = kind.as_str(), %error, "the loop failed"),
                }
            }
        };
        tokio::select! {
            () = heart => {}
            () = turns => {}
        }
        kind.as_str()
    }
}

/// An error that does not happen.
#[derive(Debug, ThisError)]
enum Never {}

/// One pass with its bounds: it may neither hang nor take the others down with a panic.
async fn guard<K, F>(kind: Own, object: Arc<K>, context: Arc<Context>, pass: impl Fn(Arc<K>, Arc<Context>) -> F) -> Action
where
    K: Resource<DynamicType = ()>,
    F: Future<Output = Turn>,
{
    let (name, namespace) = (object.name_any(), object.namespace().unwrap_or_default());
    let began = context.clock.monotonic();
    let bounded = tokio::time::timeout(LONGEST_PASS, AssertUnwindSafe(pass(object, context.clone())).catch_unwind());
    let (label, action) = match bounded.await {
        Ok(Ok(turn)) => (turn.outcome, turn.action),
        Ok(Err(_)) => {
            tracing::error!(kind = kind.as_str(), namespace, name, "a pass panicked; trying again in a minute");
            ("panicked", Action::requeue(Duration::from_secs(60)))
        }
        Err(_) => {
            tracing::warn!(kind = kind.as_str(), namespace, name, "a pass took over a minute; trying again");
            ("timeout", Action::requeue(Duration::from_secs(10)))
        }
    };
    let took = context.clock.monotonic().saturating_duration_since(began);
    context.metrics.reconciled(kind.as_str(), label, took);
    action
}

/// With user namespaces on, nodes whose runtime lacks them refuse the pods; better said at the start.
fn check_user_namespaces(context: &Context) {
    if context.settings.user_namespaces == crate::plan::settings::UserNamespaces::Off {
        return;
    }
    let nodes = context.nodes.nodes();
    let lacking: Vec<&str> = nodes
        .iter()
        .filter(|node| node.ready && node.user_namespaces == Some(false))
        .map(|node| node.name.as_str())
        .collect();
    if !lacking.is_empty() {
        tracing::warn!(
            count = lacking.len(),
            first = lacking[0],
            "ready nodes report no support for user namespaces (hostUsers: false); pods cannot start there, use --user-namespaces=off or newer nodes"
        );
    }
}

//! The operator's loops: watches feed stores, index and triggers; kube-runtime's applier runs the passes.

use std::fmt::Debug;
use std::future::Future;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use kube::runtime::applier;
use kube::runtime::controller::{Action, Config, Error};
use kube::runtime::reflector::{self, ObjectRef};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use thiserror::Error as ThisError;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::context::{Context, Guarded, Key, Memory};
use super::feeds::{Feeds, Writers};
use super::places::{Places, Requests};
use super::report::Turn;
use super::rollout::Rollout;
use super::triggers::Triggers;
use super::{bot_fleet, census, outcome, rounds, tenant, worker_pool};
use crate::api::{BotFleet, Tenant, WorkerPool};
use crate::clock::Clock;
use crate::cluster::Cluster;
use crate::cluster::listed::{self, LONGEST_PASS};
use crate::cluster::status::Own;
use crate::domain::catalog::Catalog;
use crate::http::probes::Health;
use crate::metrics::Metrics;
use crate::plan::Settings;

/// Passes that run at the same time, per kind. More only makes the API server queue them.
const CONCURRENCY: u16 = 16;
/// So many of them may be about objects of which nobody awaits anything.
const UPKEEP: usize = 12;
/// One that finds no place is told when there is one, and comes again after this time in any case: it may be awaited since.
const NO_PLACE: Duration = Duration::from_secs(10);
/// How often each loop proves that it still turns.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// A loop that was silent for so long is stuck.
const LONGEST_SILENCE: Duration = Duration::from_secs(180);
/// No object can have this name, so a request for it turns the loop and touches nothing.
const NOBODY: &str = ".heartbeat";

/// A loop ended although nothing asked it to; the process must end, too.
#[derive(Debug, ThisError)]
#[error("the {0} loop ended unexpectedly")]
pub struct Ended(pub String);

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

/// Names every watch to readiness before the first one starts, so that not one of them can be overlooked.
pub fn announce(health: &Health, watches: &[&'static str]) {
    for name in watches {
        health.announce(name);
    }
}

/// Runs until a loop ends, which is always an error.
///
/// # Errors
/// [`Ended`], naming the loop.
pub async fn operator(cluster: Cluster, start: Start) -> Result<(), Ended> {
    let cluster = Arc::new(cluster);
    let Start { clock, catalog, settings, health, metrics } = start;
    let (tenants, tenants_writer) = reflector::store::<Guarded<Tenant>>();
    let (fleets, fleets_writer) = reflector::store::<Guarded<BotFleet>>();
    let (pools, pools_writer) = reflector::store::<Guarded<WorkerPool>>();
    let writers = Writers { tenants: tenants_writer, fleets: fleets_writer, pools: pools_writer };
    let (tenant_places, tenant_requests) = Places::new(UPKEEP);
    let (fleet_places, fleet_requests) = Places::new(UPKEEP);
    let (pool_places, pool_requests) = Places::new(UPKEEP);
    let triggers = Triggers::new(tenant_places, fleet_places, pool_places);
    let context = Arc::new(Context {
        clock,
        catalog,
        settings,
        index: cluster.index.clone(),
        nodes: cluster.nodes.clone(),
        listed: cluster.listed.clone(),
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
        rollout: Rollout::default(),
    });
    let nodes_changed = Arc::new(Notify::new());
    let mut loops = JoinSet::new();
    let watches = cluster.watches(health.clone());
    let feeds = Feeds { cluster, watches, context: context.clone(), nodes_changed: nodes_changed.clone() };
    feeds.spawn(&mut loops, writers);

    // Before every kind was listed once, absence means nothing and no pass may run. A watch that fails after that holds up
    // its own kind alone, as it does later.
    while !health.has_seen_all() {
        if let Some(ended) = loops.try_join_next() {
            return Err(end(ended));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tracing::info!(
        tenants = context.tenants.len(),
        fleets = context.fleets.len(),
        pools = context.pools.len(),
        "everything was listed; passes begin"
    );
    check_user_namespaces(&context);
    spawn(&mut loops, "census", census::run(context.clone()));
    spawn(&mut loops, "nodes", worker_pool::keep_nodes(context.clone(), nodes_changed));
    loops.spawn(passes(
        Own::WorkerPool,
        &context,
        &health,
        context.pools.clone(),
        (context.triggers.pools.clone(), pool_requests),
        |_, _| true,
        |object, context| async move { worker_pool::reconcile(object, &context).await },
    ));
    loops.spawn(passes(
        Own::Tenant,
        &context,
        &health,
        context.tenants.clone(),
        (context.triggers.tenants.clone(), tenant_requests),
        tenant::is_awaited,
        |object, context| async move { tenant::reconcile(object, &context).await },
    ));
    loops.spawn(passes(
        Own::BotFleet,
        &context,
        &health,
        context.fleets.clone(),
        (context.triggers.fleets.clone(), fleet_requests),
        bot_fleet::is_awaited,
        |object, context| async move { bot_fleet::reconcile(object, &context).await },
    ));
    context.begin();
    spawn(&mut loops, "rounds", rounds::run(context.clone()));
    match loops.join_next().await {
        Some(ended) => Err(end(ended)),
        None => Err(Ended("empty".to_owned())),
    }
}

fn spawn<F>(loops: &mut JoinSet<&'static str>, name: &'static str, work: F)
where
    F: Future<Output = ()> + Send + 'static,
{
    loops.spawn(async move {
        work.await;
        name
    });
}

fn end(ended: Result<&'static str, tokio::task::JoinError>) -> Ended {
    Ended(ended.map_or_else(|error| error.to_string(), str::to_owned))
}

/// The loop of one kind: takes requests, runs passes, tells that it turns.
fn passes<K, F, P>(
    kind: Own,
    context: &Arc<Context>,
    health: &Health,
    store: reflector::Store<K>,
    (places, requests): (Arc<Places<K>>, Requests<K>),
    awaited: fn(&K, &Context) -> bool,
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
    let (heart_places, turns_places) = (places.clone(), places.clone());
    async move {
        let heart = async {
            loop {
                heart_places.ask(ObjectRef::new(NOBODY));
                tokio::time::sleep(HEARTBEAT).await;
            }
        };
        let known = store.clone();
        let guarded = move |object: Arc<K>, context: Arc<Context>| {
            let (pass, news) = (pass.clone(), context.listed.news());
            // Read once more: what was told between the library's look and the count would be taken for read.
            let object = known.get(&ObjectRef::from_obj(&*object)).unwrap_or(object);
            let (place, places) = (places.take(&object, awaited(&object, &context)), places.clone());
            async move {
                let Some(place) = place else { return Ok(Action::requeue(NO_PLACE)) };
                let action = listed::since(news, guard(kind, object, context, pass)).await;
                places.give_back(place);
                Ok::<Action, Never>(action)
            }
            .boxed()
        };
        let stream = applier(
            guarded,
            |_, error: &Never, _| match *error {},
            context,
            store,
            requests.map(Ok::<_, Never>),
            Config::default().concurrency(CONCURRENCY),
        );
        let turns = async {
            let mut stream = pin!(stream);
            while let Some(turn) = stream.next().await {
                match turn {
                    Ok(_) => health.progress(kind.as_str()),
                    // An object that has gone, or the heartbeat's own name.
                    Err(Error::ObjectNotFound(gone)) => {
                        turns_places.is_gone(gone.namespace.as_deref(), &gone.name);
                        health.progress(kind.as_str());
                    }
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
async fn guard<K, F>(
    kind: Own,
    object: Arc<K>,
    context: Arc<Context>,
    pass: impl Fn(Arc<K>, Arc<Context>) -> F,
) -> Action
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
            let failures = context.failed(kind, &Key::new(kind, Some(&namespace), &name));
            ("timeout", Action::requeue(outcome::pause(failures).max(Duration::from_secs(10))))
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

//! The watches: each with its own backoff, each feeding the index or a store, each telling its health.
//!
//! kube's `Controller` merges all triggers behind one backoff and shows a mapper no difference between
//! a change and a deletion. Here every watch stands alone, so a broken one neither silences the others
//! nor leaves the index wrong; the same applier of kube-runtime runs the passes.

use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use backon::ExponentialBuilder;
use futures::StreamExt;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{
    ConfigMap, LimitRange, Namespace, PersistentVolumeClaim, Pod, ResourceQuota, Service, ServiceAccount,
};
use k8s_openapi::api::networking::v1::{Ingress, NetworkPolicy};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{ApiResource, ListParams, Object};
use kube::core::PartialObjectMeta;
use kube::runtime::utils::ResetTimerBackoff;
use kube::runtime::watcher::ExponentialBackoff;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::time::sleep;

use super::history::History;
use super::index::{Asked, ChildIndex, Entry, Facts, Slot};
use super::pods::{PodSpec, PodStatus, WorkloadSpec};
use crate::domain::names::label;
use crate::http::probes::Health;
use crate::metrics::Metrics;
use crate::plan::ChildKind;

/// Longer than the API server's default of 5 to 10 minutes would be cut anyway; bookmarks every minute keep
/// the connection from being idle at load balancers that drop it silently.
const WATCH_SECONDS: u32 = 540;

/// Objects of a page of a list. A page is decoded as a whole, and all watches list at once when the operator starts.
const PAGE: u32 = 50;

/// Waits between the tries of a watch that is broken; chance adds up to as much again. Its kind is not reacted to meanwhile,
/// so the longest bounds how late that is after the end of a fault.
const SHORTEST_WAIT: Duration = Duration::from_millis(400);
const LONGEST_WAIT: Duration = Duration::from_millis(1_500);
/// A watch that has not failed for so long after an error delivers, whether or not there was anything to deliver: one that
/// goes on where it broke off says nothing of it. Longer than twice [`LONGEST_WAIT`].
const CALM: Duration = Duration::from_secs(4);
/// An error that comes so long after the last one begins with the shortest wait again.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// Every watch of the operator, by the name that readiness and metrics show.
pub const NAMES: [&str; 19] = [
    "Tenant",
    "BotFleet",
    "WorkerPool",
    "Node",
    "PriorityClass",
    "referenced ConfigMap",
    "Namespace",
    "ServiceAccount",
    "NetworkPolicy",
    "ResourceQuota",
    "LimitRange",
    "ConfigMap",
    "Service",
    "Ingress",
    "PodDisruptionBudget",
    "PersistentVolumeClaim",
    "StatefulSet",
    "Deployment",
    "Pod",
];

/// Every watch of the hibernator, likewise.
pub const HIBERNATOR_NAMES: [&str; 2] = ["Tenant", "breaker"];

/// Every watch of the gateway, likewise.
pub const GATEWAY_NAMES: [&str; 1] = ["Tenant"];

/// What has been told of a watch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Told {
    #[default]
    Nothing,
    Delivers,
    Fails,
}

/// What is known of a watch.
#[derive(Debug, Default)]
struct WatchState {
    /// It has listed everything once.
    listed: bool,
    /// It has failed a short while ago. That a list was answered since then does not say that its changes will come.
    doubted: bool,
    /// It has failed, and nobody has asked since then whether the cluster is still ahead of it.
    suspect: bool,
    told: Told,
}

impl WatchState {
    fn take<K>(&mut self, event: &watcher::Event<K>) {
        match event {
            watcher::Event::InitDone => self.listed = true,
            watcher::Event::Apply(_) | watcher::Event::Delete(_) => self.doubted = false,
            watcher::Event::Init | watcher::Event::InitApply(_) => {}
        }
    }

    fn failed(&mut self) {
        (self.doubted, self.suspect) = (true, true);
    }

    fn delivers(&self) -> bool {
        self.listed && !self.doubted
    }

    /// What was told before.
    fn tell(&mut self, told: Told) -> Told {
        std::mem::replace(&mut self.told, told)
    }
}

/// A child appeared, changed or went: what the controllers are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Namespace of the object.
    pub namespace: String,
    /// Fleet it belongs to, if any.
    pub fleet: Option<String>,
    /// Tenant by its label, if any.
    pub tenant: Option<String>,
}

fn waits() -> ResetTimerBackoff<ExponentialBackoff> {
    let doubling = ExponentialBuilder::new().with_min_delay(SHORTEST_WAIT).with_max_delay(LONGEST_WAIT).with_jitter();
    ResetTimerBackoff::new(doubling.without_max_times().into(), FORGOTTEN)
}

/// What every watch needs.
#[derive(Clone)]
pub struct Watches {
    client: Client,
    history: History,
    health: Health,
    metrics: Metrics,
    stays_ready: bool,
}

impl Watches {
    /// Watches over this client. The process is ready while all of them deliver.
    pub fn new(client: Client, history: History, health: Health, metrics: Metrics) -> Self {
        Watches { client, history, health, metrics, stays_ready: false }
    }

    /// The same for a server, which stays ready once it has seen everything: whoever asks is served better from what was
    /// seen last than by nobody.
    #[must_use]
    pub fn of_a_server(self) -> Self {
        Watches { stays_ready: true, ..self }
    }

    /// Runs one watch for good. Every event goes to `sink`; errors are counted, logged and retried.
    pub async fn run<K, F>(&self, name: &'static str, api: Api<K>, selector: Option<&str>, sink: F)
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
        F: FnMut(watcher::Event<K>),
    {
        let config = watcher::Config::default();
        self.run_with(name, api, selector.map_or(config.clone(), |labels| config.labels(labels)), sink).await;
    }

    /// The same for what a configuration selects.
    pub async fn run_with<K, F>(&self, name: &'static str, api: Api<K>, config: watcher::Config, mut sink: F)
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
        F: FnMut(watcher::Event<K>),
    {
        let config = config.timeout(WATCH_SECONDS).page_size(PAGE);
        debug_assert!(NAMES.contains(&name) || HIBERNATOR_NAMES.contains(&name), "{name} is missing in NAMES");
        let mut one = ListParams::default().limit(1);
        // Rights may end at what is selected.
        (one.label_selector, one.field_selector) = (config.label_selector.clone(), config.field_selector.clone());
        let mut stream = pin!(watcher(api.clone(), config).backoff(waits()));
        let mut state = WatchState::default();
        let mut calm = pin!(sleep(CALM));
        loop {
            let item = tokio::select! {
                item = stream.next() => Some(item),
                () = &mut calm, if state.doubted => None,
            };
            match item {
                None => state.doubted = false,
                Some(None) => return,
                Some(Some(Ok(event))) => {
                    let seen = matches!(event, watcher::Event::InitDone);
                    state.take(&event);
                    sink(event);
                    if seen {
                        self.health.seen(name);
                    }
                }
                Some(Some(Err(error))) => {
                    self.metrics.watch_error(name);
                    if !self.stays_ready {
                        self.health.pending(name);
                    }
                    calm.set(sleep(CALM));
                    state.failed();
                    if state.tell(Told::Fails) != Told::Fails {
                        tracing::warn!(watch = name, %error, "watch failed, trying again");
                    }
                }
            }
            if state.suspect && state.delivers() {
                match self.goes_forward(&api, &one).await {
                    Some(true) => state.suspect = false,
                    // Whoever waits for the history ends the process.
                    Some(false) => std::future::pending().await,
                    None => {
                        calm.set(sleep(CALM));
                        state.doubted = true;
                    }
                }
            }
            if state.delivers() && state.told != Told::Delivers {
                self.health.ready(name);
                self.metrics.watch_up(name);
                if state.tell(Told::Delivers) == Told::Fails {
                    tracing::info!(watch = name, "watch works again");
                }
            }
        }
    }

    /// Whether the cluster is where this watch has been, or further. `None` where it does not say.
    async fn goes_forward<K>(&self, api: &Api<K>, one: &ListParams) -> Option<bool>
    where
        K: Resource + Clone + DeserializeOwned + Debug,
    {
        // Before the question, or a watch that opens meanwhile would be newer than the answer.
        let newest = self.history.newest(api.resource_url());
        // Without a version in the question the answer is up to date, whichever API server gives it.
        let list = tokio::time::timeout(CALM, api.list_metadata(one)).await.ok()?.ok()?;
        let version = list.metadata.resource_version?.parse().ok()?;
        Some(self.history.goes_on(api.resource_url(), newest, version))
    }

    /// Watches every kind of child into the index and tells `notify` of each change. Ends never.
    pub async fn children<F>(&self, index: Arc<ChildIndex>, notify: F)
    where
        F: Fn(Change) + Clone + Send + Sync + 'static,
    {
        tokio::join!(
            self.metadata::<Namespace, F>(ChildKind::Namespace, &index, &notify),
            self.metadata::<ServiceAccount, F>(ChildKind::ServiceAccount, &index, &notify),
            self.metadata::<NetworkPolicy, F>(ChildKind::NetworkPolicy, &index, &notify),
            self.metadata::<ResourceQuota, F>(ChildKind::ResourceQuota, &index, &notify),
            self.metadata::<LimitRange, F>(ChildKind::LimitRange, &index, &notify),
            self.metadata::<ConfigMap, F>(ChildKind::ConfigMap, &index, &notify),
            self.metadata::<Service, F>(ChildKind::Service, &index, &notify),
            self.metadata::<Ingress, F>(ChildKind::Ingress, &index, &notify),
            self.metadata::<PodDisruptionBudget, F>(ChildKind::PodDisruptionBudget, &index, &notify),
            self.volumes(&index, &notify),
            self.status::<StatefulSet, WorkloadSpec, StatefulSetStatus, F>(
                "StatefulSet",
                Slot::Child(ChildKind::StatefulSet),
                (&index, &notify),
                WorkloadSpec::asked,
                |_, status| Facts::Workload {
                    observed_generation: status.as_ref().and_then(|s| s.observed_generation).unwrap_or(0),
                    replicas: status.as_ref().map_or(0, |s| s.replicas),
                    ready: status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0),
                },
            ),
            self.status::<Deployment, WorkloadSpec, DeploymentStatus, F>(
                "Deployment",
                Slot::Child(ChildKind::Deployment),
                (&index, &notify),
                WorkloadSpec::asked,
                |_, status| Facts::Workload {
                    observed_generation: status.as_ref().and_then(|s| s.observed_generation).unwrap_or(0),
                    replicas: status.as_ref().and_then(|s| s.replicas).unwrap_or(0),
                    // While a new template is rolled out, a pod of the old one still counts as ready.
                    ready: status.as_ref().map_or(0, |s| s.ready_replicas.min(s.updated_replicas).unwrap_or(0)),
                },
            ),
            self.status::<Pod, PodSpec, PodStatus, F>(
                "Pod",
                Slot::Pod,
                (&index, &notify),
                PodSpec::asked,
                |spec, status| spec.facts(status.as_ref()),
            ),
        );
    }

    async fn metadata<K, F>(&self, kind: ChildKind, index: &Arc<ChildIndex>, notify: &F)
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
        F: Fn(Change),
    {
        let api: Api<PartialObjectMeta<K>> = Api::all(self.client.clone());
        let feed = Feed { slot: Slot::Child(kind), index, notify };
        self.run(kind.as_str(), api, Some(label::MANAGED_SELECTOR), |event| {
            feed.take(event, |_| (Facts::None, Asked::default()));
        })
        .await;
    }

    async fn volumes<F: Fn(Change)>(&self, index: &Arc<ChildIndex>, notify: &F) {
        let api: Api<PartialObjectMeta<PersistentVolumeClaim>> = Api::all(self.client.clone());
        let feed = Feed { slot: Slot::Volume, index, notify };
        self.run("PersistentVolumeClaim", api, Some(label::MANAGED_SELECTOR), |event| {
            feed.take(event, |_| (Facts::None, Asked::default()));
        })
        .await;
    }

    /// Watches a kind whose status matters, decoding metadata, status and as much of the spec as `P` holds.
    async fn status<K, P, S, F>(
        &self,
        name: &'static str,
        slot: Slot,
        (index, notify): (&Arc<ChildIndex>, &F),
        asked: fn(&P) -> Asked,
        read: fn(&P, &Option<S>) -> Facts,
    ) where
        K: Resource<DynamicType = ()>,
        P: DeserializeOwned + Clone + Debug + Send + Sync + 'static,
        S: DeserializeOwned + Default + Clone + Debug + Send + Sync + 'static,
        F: Fn(Change),
    {
        let api: Api<Object<P, S>> = Api::all_with(self.client.clone(), &ApiResource::erase::<K>(&()));
        let feed = Feed { slot, index, notify };
        self.run(name, api, Some(label::MANAGED_SELECTOR), |event| {
            feed.take(event, |object: &Object<P, S>| (read(&object.spec, &object.status), asked(&object.spec)));
        })
        .await;
    }
}

struct Feed<'a, F> {
    slot: Slot,
    index: &'a Arc<ChildIndex>,
    notify: &'a F,
}

impl<F: Fn(Change)> Feed<'_, F> {
    fn take<K: ResourceExt>(&self, event: watcher::Event<K>, read: impl Fn(&K) -> (Facts, Asked)) {
        let in_list = matches!(event, watcher::Event::InitApply(_));
        match event {
            watcher::Event::Init => self.index.begin_listing(self.slot),
            watcher::Event::Apply(object) | watcher::Event::InitApply(object) => {
                let (facts, asked) = read(&object);
                if let Some(entry) = Entry::read(self.slot, object.meta(), facts) {
                    let entry = entry.asking(asked);
                    let change = Change::of(&entry);
                    let is_news = if in_list { self.index.listed(entry) } else { self.index.watched(entry) };
                    if is_news {
                        (self.notify)(change);
                    }
                }
            }
            watcher::Event::Delete(object) => {
                if let Some(entry) = Entry::read(self.slot, object.meta(), Facts::None) {
                    self.index.remove(&entry);
                    (self.notify)(Change::of(&entry));
                }
            }
            watcher::Event::InitDone => {
                for entry in self.index.finish_listing(self.slot) {
                    (self.notify)(Change::of(&entry));
                }
            }
        }
    }
}

impl Change {
    fn of(entry: &Entry) -> Self {
        let fleet = entry.fleet.clone().or_else(|| entry.fleet_by_name().map(str::to_owned));
        Change { namespace: entry.namespace.clone(), fleet, tenant: entry.tenant.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_alone_does_not_mend_a_watch() {
        let mut state = WatchState { listed: true, ..WatchState::default() };
        state.failed();
        for event in [watcher::Event::Init, watcher::Event::InitApply(Pod::default()), watcher::Event::InitDone] {
            state.take(&event);
        }
        assert!(!state.delivers(), "its changes may still not come");
        state.take(&watcher::Event::Apply(Pod::default()));
        assert!(state.delivers());
    }
}

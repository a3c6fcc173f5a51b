//! What each watch of Torpor's own resources, nodes and references feeds, and which passes it asks for.

use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Node};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher::{self, Event};
use kube::{Resource, ResourceExt};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::context::{Context, Guarded, Key};
use crate::api::{BotFleet, Tenant, Tier, WorkerPool};
use crate::cluster::Cluster;
use crate::cluster::index::{ChildIndex, Entry, Facts, Slot};
use crate::cluster::status::Own;
use crate::cluster::watch::{Change, Watches};
use crate::domain::names::{self, annotation, label};
use crate::plan::ChildKind;

/// The ends through which watches fill the stores.
pub struct Writers {
    /// Fills the store of Tenants.
    pub tenants: Writer<Guarded<Tenant>>,
    /// Fills the store of fleets.
    pub fleets: Writer<Guarded<BotFleet>>,
    /// Fills the store of pools.
    pub pools: Writer<Guarded<WorkerPool>>,
}

/// What every feed works with.
#[derive(Clone)]
pub struct Feeds {
    /// The cluster to watch.
    pub cluster: Arc<Cluster>,
    /// How to watch it.
    pub watches: Watches,
    /// What to fill, and whom to tell.
    pub context: Arc<Context>,
    /// Told when nodes may need other marks.
    pub nodes_changed: Arc<Notify>,
}

impl Feeds {
    /// Starts every watch. A feed that ends returns its name.
    pub fn spawn(&self, loops: &mut JoinSet<&'static str>, writers: Writers) {
        loops.spawn(self.clone().tenants(writers.tenants));
        loops.spawn(self.clone().fleets(writers.fleets));
        loops.spawn(self.clone().pools(writers.pools));
        loops.spawn(self.clone().nodes());
        loops.spawn(self.clone().classes());
        loops.spawn(self.clone().references());
        loops.spawn(self.clone().children());
    }

    async fn tenants(self, writer: Writer<Guarded<Tenant>>) -> &'static str {
        let name = "Tenant";
        let mut store = Stored { writer, kind: Own::Tenant };
        let known = store.writer.as_reader();
        let told = |object: &Guarded<Tenant>| {
            self.context.triggers.tenant(&object.name_any());
            self.context.every_fleet(&names::namespace(&object.name_any()));
        };
        let sink = |event: Event<Guarded<Tenant>>| {
            // Each tenant's status is told several times; a pass over a pool counts all tenants of its tiers.
            let counted = match &event {
                Event::Apply(object) => {
                    let (before, after) =
                        (tier(known.get(&ObjectRef::from_obj(object)).as_deref()), tier(Some(object)));
                    if before == after { Vec::new() } else { before.into_iter().chain(after).collect() }
                }
                Event::Delete(object) => tier(Some(object)).into_iter().collect(),
                Event::InitDone => Tier::ALL.to_vec(),
                Event::Init | Event::InitApply(_) => Vec::new(),
            };
            store.take(&self.context, event, told);
            if !counted.is_empty() {
                self.context.every_pool_of(|pool| counted.iter().any(|tier| pool.spec.tiers.contains(tier)));
            }
        };
        self.watches.run(name, self.cluster.all(), None, sink).await;
        name
    }

    async fn fleets(self, writer: Writer<Guarded<BotFleet>>) -> &'static str {
        let name = "BotFleet";
        let mut store = Stored { writer, kind: Own::BotFleet };
        let known = store.writer.as_reader();
        let sink = |event| {
            let gone = index_fleet(&self.context.index, &event);
            let as_asked = is_as_asked(&known, &event);
            let outdated = outdated_texts(&known, &event);
            store.take(&self.context, event, |object: &Guarded<BotFleet>| {
                let namespace = object.namespace().unwrap_or_default();
                self.context.triggers.tenant_of(&namespace);
                self.context.triggers.fleet(&namespace, &object.name_any());
                // The fleets of a namespace share the tier's bots, by what is asked of them.
                if !as_asked {
                    self.context.every_fleet(&namespace);
                }
            });
            self.drop_texts(outdated);
            for fleet in gone {
                self.context.triggers.tenant_of(&fleet.namespace);
            }
        };
        self.watches.run(name, self.cluster.all(), None, sink).await;
        name
    }

    /// Drops texts. A pass that has begun before reads them once more than needed.
    fn drop_texts(&self, outdated: Texts) {
        match outdated {
            Texts::Of(namespace, names) => {
                for name in names {
                    self.context.memory.drop_config(&namespace, &name);
                }
            }
            Texts::All => self.context.memory.drop_configs(),
        }
    }

    async fn pools(self, writer: Writer<Guarded<WorkerPool>>) -> &'static str {
        let name = "WorkerPool";
        let mut store = Stored { writer, kind: Own::WorkerPool };
        let known = store.writer.as_reader();
        let mut served = Vec::new();
        let sink = |event: Event<Guarded<WorkerPool>>| {
            // Pools share tiers and nodes by what is asked of them, not by what their status says.
            let as_asked = is_as_asked(&known, &event);
            store.take(&self.context, event, |object: &Guarded<WorkerPool>| {
                if as_asked {
                    self.context.triggers.pool(&object.name_any());
                } else {
                    self.context.every_pool();
                    self.nodes_changed.notify_one();
                }
            });
            // Tenants care about which pools serve which tiers, not about a pool's status.
            let mut now = self.context.serving_pools();
            now.sort_by(|a, b| a.name.cmp(&b.name));
            if now != served {
                served = now;
                self.context.every_tenant();
            }
        };
        self.watches.run(name, self.cluster.all(), None, sink).await;
        name
    }

    async fn nodes(self) -> &'static str {
        let name = "Node";
        let mut seen = Vec::new();
        let sink = |event: Event<Node>| {
            if self.context.nodes.take_node(&mut seen, event) {
                self.context.every_pool();
                self.nodes_changed.notify_one();
            }
        };
        self.watches.run(name, self.cluster.all(), None, sink).await;
        name
    }

    async fn classes(self) -> &'static str {
        let name = "PriorityClass";
        let mut seen = Vec::new();
        let sink = |event: Event<PriorityClass>| {
            if self.context.nodes.take_class(&mut seen, event) {
                self.context.every_pool();
                self.nodes_changed.notify_one();
            }
        };
        self.watches.run(name, self.cluster.all(), Some(label::MANAGED_SELECTOR), sink).await;
        name
    }

    /// `ConfigMaps` that fleets refer to belong to users and carry none of our labels.
    async fn references(self) -> &'static str {
        let name = "referenced ConfigMap";
        let others = format!("{}!={}", label::MANAGED_BY, label::TORPOR);
        let sink = |event: Event<PartialObjectMeta<ConfigMap>>| {
            let memory = &self.context.memory;
            match event {
                Event::Init | Event::InitApply(_) => {}
                // One that went while nobody watched is in no list.
                Event::InitDone => {
                    memory.drop_configs();
                    self.context.look_at_fleets(|fleet| reference_of_guarded(fleet).is_some());
                }
                Event::Apply(object) | Event::Delete(object) => {
                    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
                    memory.drop_config(&namespace, &name);
                    let fleets = self.context.fleets_of(&namespace);
                    for fleet in fleets.iter().filter(|fleet| reference_of(fleet) == Some(&name)) {
                        memory.ask(Key::new(Own::BotFleet, Some(&namespace), &fleet.name_any()));
                        self.context.triggers.fleet(&namespace, &fleet.name_any());
                    }
                }
            }
        };
        self.watches.run(name, self.cluster.all(), Some(&others), sink).await;
        name
    }

    async fn children(self) -> &'static str {
        let triggers = self.context.triggers.clone();
        let notify = move |change: Change| {
            triggers.tenant_of(&change.namespace);
            if let Some(fleet) = change.fleet {
                triggers.fleet(&change.namespace, &fleet);
            }
        };
        // Thirteen watches in one future are large enough to belong on the heap.
        Box::pin(self.watches.children(self.context.index.clone(), notify)).await;
        "children"
    }
}

/// The `ConfigMap` that a fleet refers to.
fn reference_of(fleet: &BotFleet) -> Option<&str> {
    fleet.spec.strategy.config_map_ref.as_ref().map(|reference| reference.name.as_str())
}

/// Texts of `ConfigMaps` that are not to be used any more.
enum Texts {
    /// Those of a namespace's `ConfigMaps` by name.
    Of(String, Vec<String>),
    All,
}

/// The text that a changed fleet referred to, which may be nobody's any more, and that it refers to now: who changes both at
/// once means the new text. After a list all of them, for which fleets have changed it does not tell.
fn outdated_texts(known: &Store<Guarded<BotFleet>>, event: &Event<Guarded<BotFleet>>) -> Texts {
    match event {
        Event::Apply(object) | Event::Delete(object) if !is_as_asked(known, event) => {
            let before = known.get(&ObjectRef::from_obj(object));
            let fleets = [before.as_deref(), Some(object)].into_iter().flatten();
            let names = fleets.filter_map(reference_of_guarded).map(str::to_owned).collect();
            Texts::Of(object.namespace().unwrap_or_default(), names)
        }
        Event::InitDone => Texts::All,
        Event::Apply(_) | Event::Delete(_) | Event::Init | Event::InitApply(_) => Texts::Of(String::new(), Vec::new()),
    }
}

fn reference_of_guarded(fleet: &Guarded<BotFleet>) -> Option<&str> {
    fleet.0.as_ref().ok().and_then(reference_of)
}

/// Where an object of this key stands in its store.
fn reference<K: Resource<DynamicType = ()>>(key: &Key) -> ObjectRef<K> {
    let reference = ObjectRef::new(&key.name);
    if key.namespace.is_empty() { reference } else { reference.within(&key.namespace) }
}

/// Whether the event shows an object of which the same is asked as before: its status has changed, or its metadata.
fn is_as_asked<K>(known: &Store<K>, event: &Event<K>) -> bool
where
    K: Resource<DynamicType = ()> + Clone,
{
    let Event::Apply(object) = event else { return false };
    let asked = |object: &K| (object.uid(), object.meta().generation);
    known.get(&ObjectRef::from_obj(object)).is_some_and(|before| asked(&before) == asked(object))
}

/// What pools count a tenant by.
fn tier(tenant: Option<&Guarded<Tenant>>) -> Option<Tier> {
    tenant.and_then(|guarded| guarded.0.as_ref().ok()).map(|tenant| tenant.spec.tier)
}

/// A store that is fed by a watch, without what nothing reads there: who manages which field, labels, and annotations
/// but those that tell of activity. A map takes half a kilobyte, however little it holds.
struct Stored<K: Resource<DynamicType = ()> + Clone + 'static> {
    writer: Writer<K>,
    kind: Own,
}

impl<K> Stored<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug,
{
    fn take(&mut self, context: &Context, mut event: Event<K>, touched: impl Fn(&K)) {
        let known = self.writer.as_reader();
        let is_new = matches!(&event, Event::Apply(object) if known.get(&ObjectRef::from_obj(object)).is_none());
        if let Event::Apply(object) | Event::InitApply(object) | Event::Delete(object) = &mut event {
            let metadata = object.meta_mut();
            metadata.managed_fields = None;
            metadata.labels = None;
            metadata.annotations.take_if(|annotations| {
                annotations.retain(|key, _| annotation::ACTIVITY.contains(&key.as_str()));
                annotations.is_empty()
            });
        }
        self.writer.apply_watcher_event(&event);
        // Once it can be read, or a pass would be taken to have read it.
        let (listed, now) = (&context.listed, context.clock.monotonic());
        match &event {
            Event::Init => listed.begin(self.kind),
            Event::InitApply(object) => listed.note(self.kind, object.meta(), now),
            Event::InitDone => listed.finish(self.kind, now),
            Event::Apply(object) if is_new => listed.came(self.kind, object.meta(), now),
            Event::Apply(object) => listed.seen(self.kind, object.meta(), now),
            Event::Delete(object) => listed.gone(self.kind, object.meta(), now),
        }
        match &event {
            // Objects of a listing are readable only when it is complete.
            watcher::Event::Init | watcher::Event::InitApply(_) => {}
            watcher::Event::Apply(object) => touched(object),
            watcher::Event::Delete(object) => {
                context.forget(self.kind, object.namespace().as_deref(), &object.name_any());
                touched(object);
            }
            watcher::Event::InitDone => {
                context.forget_but(self.kind, |key| known.get(&reference(key)).is_some());
                match self.kind {
                    // Not one by one: all of them at once would stay in the memory of the schedule.
                    Own::Tenant | Own::BotFleet => context.everybody(),
                    Own::WorkerPool => known.state().iter().for_each(|object| touched(object)),
                }
            }
        }
    }
}

/// Fleets are children of Tenants, too, and stand in the index like the others. Returns those that went while nobody watched.
fn index_fleet(index: &ChildIndex, event: &Event<Guarded<BotFleet>>) -> Vec<Entry> {
    let slot = Slot::Child(ChildKind::BotFleet);
    match event {
        Event::Init => index.begin_listing(slot),
        Event::Apply(object) => {
            if let Some(entry) = Entry::read(slot, object.meta(), Facts::None) {
                index.watched(entry);
            }
        }
        Event::InitApply(object) => {
            if let Some(entry) = Entry::read(slot, object.meta(), Facts::None) {
                index.listed(entry);
            }
        }
        Event::Delete(object) => {
            if let Some(entry) = Entry::read(slot, object.meta(), Facts::None) {
                index.remove(&entry);
            }
        }
        Event::InitDone => return index.finish_listing(slot),
    }
    Vec::new()
}

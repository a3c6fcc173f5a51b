//! What every pass works with.

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kube::core::DeserializeGuard;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Resource, ResourceExt};

use super::outcome::{Outcome, PATIENCE};
use super::rollout::{Pace, Rollout};
use super::steps::{Seen, State};
use super::triggers::Triggers;
use crate::api::bot_fleet::ConfigMapRef;
use crate::api::{BotFleet, Tenant, Tier, WorkerPool};
use crate::clock::Clock;
use crate::cluster::apply::Applier;
use crate::cluster::events::Events;
use crate::cluster::index::{ChildIndex, Slot};
use crate::cluster::listed::Listed;
use crate::cluster::nodes::Nodes;
use crate::cluster::read::Reader;
use crate::cluster::status::{Own, StatusWriter};
use crate::domain::catalog::Catalog;
use crate::domain::names;
use crate::domain::stage::Stage;
use crate::metrics::Metrics;
use crate::plan::{ChildKind, Settings};
use crate::validate::PoolFacts;

/// An object as it was read, or why it could not be.
pub type Guarded<K> = DeserializeGuard<K>;

/// Everything a pass may use. Time comes from `clock`, requests go through the cluster room's types.
pub struct Context {
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The tier catalogue.
    pub catalog: Catalog,
    /// The operator's settings.
    pub settings: Settings,
    /// What the watches know of children.
    pub index: Arc<ChildIndex>,
    /// What the watch knows of nodes, and the way to mark them.
    pub nodes: Nodes,
    /// What is wanted, as far as a list alone tells of it.
    pub listed: Arc<Listed>,
    /// Writes children.
    pub applier: Applier,
    /// Writes status and finalizers.
    pub status: StatusWriter,
    /// Publishes Events.
    pub events: Events,
    /// Reads what a spec refers to.
    pub reader: Reader,
    /// Counts.
    pub metrics: Metrics,
    /// All Tenants.
    pub tenants: Store<Guarded<Tenant>>,
    /// All `BotFleets`.
    pub fleets: Store<Guarded<BotFleet>>,
    /// All `WorkerPools`.
    pub pools: Store<Guarded<WorkerPool>>,
    /// Asks for further passes.
    pub triggers: Triggers,
    /// What is remembered between passes, none of which is needed for correctness.
    pub memory: Memory,
    /// Who replaces pods at present.
    pub rollout: Rollout,
}

/// Fleets of one namespace that are looked after: as many as the largest tier may have bots. Each of them is planned with an eye on all
/// others, so that thousands would occupy the operator for everybody.
pub const MOST_FLEETS: usize = 200;

impl Context {
    /// The Tenant of this name, if it exists.
    pub fn tenant(&self, name: &str) -> Option<Arc<Guarded<Tenant>>> {
        self.tenants.get(&ObjectRef::new(name))
    }

    /// The fleet of that name, as the watch shows it.
    pub fn fleet(&self, namespace: &str, name: &str) -> Option<Arc<Guarded<BotFleet>>> {
        self.fleets.get(&ObjectRef::new(name).within(namespace))
    }

    /// The readable fleets of a namespace that are not being deleted, of those that are looked after.
    pub fn fleets_of(&self, namespace: &str) -> Vec<BotFleet> {
        self.looked_after(namespace)
            .iter()
            .filter_map(|guarded| guarded.0.as_ref().ok().cloned())
            .filter(|fleet| fleet.metadata.deletion_timestamp.is_none())
            .collect()
    }

    /// Whether a fleet is one of the oldest [`MOST_FLEETS`] of its namespace.
    pub fn looks_after(&self, fleet: &BotFleet) -> bool {
        let all = self.looked_after(&fleet.namespace().unwrap_or_default());
        all.iter().any(|known| known.name_any() == fleet.name_any())
    }

    /// The fleets of a namespace that are looked after, also those that cannot be read or are being deleted.
    pub fn looked_after(&self, namespace: &str) -> Vec<Arc<Guarded<BotFleet>>> {
        let names = self.index.names(Slot::Child(ChildKind::BotFleet), namespace);
        let mut found: Vec<_> = names.iter().filter_map(|name| self.fleet(namespace, name)).collect();
        if found.len() > MOST_FLEETS {
            // In the order of names before: fleets of one second go by name.
            found.sort_by_key(|fleet| fleet.meta().creation_timestamp.as_ref().map(|time| time.0));
            found.truncate(MOST_FLEETS);
        }
        found
    }

    /// Forgets an object that has gone, and counts what is left.
    pub fn forget(&self, kind: Own, namespace: Option<&str>, name: &str) {
        let key = Key::new(kind, namespace, name);
        self.memory.forget(&key);
        match kind {
            Own::Tenant => {
                self.memory.end_room(&names::namespace(name));
                self.end_turn(&names::namespace(name), None);
            }
            Own::BotFleet => self.end_turn(&key.namespace, Some(&names::fleet_workload(name))),
            Own::WorkerPool => {}
        }
        self.metrics.set_in_backoff(key.kind, self.memory.failing(key.kind));
    }

    /// Forgets the objects of a kind that a complete list has not shown.
    pub fn forget_but(&self, kind: Own, is_there: impl Fn(&Key) -> bool) {
        self.memory.retain(|key| key.kind != kind.as_str() || is_there(key));
        self.metrics.set_in_backoff(kind.as_str(), self.memory.failing(kind.as_str()));
    }

    /// What is seen of the parts, but on the way up a dashboard that is refused is taken to be on its way: nobody's bots wait for somebody to
    /// permit it.
    pub fn regardless_of_dashboard(&self, tenant: &str, wanted: Stage, seen: Seen) -> Seen {
        let refused = || lock(&self.memory.without_dashboard).contains(&Key::new(Own::Tenant, None, tenant));
        if wanted == Stage::Active && !seen.dashboard.runs() && refused() {
            return Seen { dashboard: State::Starting, ..seen };
        }
        seen
    }

    /// Notes whether a tenant's dashboard is refused, and tells its fleets when that has changed.
    pub fn bots_do_without_dashboard(&self, tenant: &str, refused: bool) {
        let key = Key::new(Own::Tenant, None, tenant);
        let changed = {
            let mut without = lock(&self.memory.without_dashboard);
            if refused { without.insert(key) } else { without.remove(&key) }
        };
        if changed {
            self.every_fleet(&names::namespace(tenant));
        }
    }

    /// Whether a pass that began then has lasted so long that it should come to an end.
    pub fn has_lasted(&self, began: Instant) -> bool {
        self.clock.monotonic().saturating_duration_since(began) > PATIENCE
    }

    /// Counts one more failure in a row, unless the object has gone meanwhile: nobody would ever end the row.
    pub fn failed(&self, kind: Own, key: &Key) -> u32 {
        let known = match kind {
            Own::Tenant => self.tenant(&key.name).is_some(),
            Own::BotFleet => self.fleet(&key.namespace, &key.name).is_some(),
            Own::WorkerPool => self.pools.get(&ObjectRef::new(&key.name)).is_some(),
        };
        if known { self.memory.failed(key) } else { self.memory.failures(key) }
    }

    /// Whether an outdated pod of this workload may be replaced now.
    pub fn may_replace(&self, workload: (&str, &str), pace: Pace, held: bool, grace: Duration) -> bool {
        self.rollout.take(workload, pace, held, grace, self.clock.monotonic())
    }

    /// Whether a tenant would have a turn at replacing pods now.
    pub fn has_turn(&self, namespace: &str) -> bool {
        self.rollout.has_room(namespace, self.clock.monotonic())
    }

    /// An outdated pod of this workload was taken down.
    pub fn replaced(&self, workload: (&str, &str), grace: Duration) {
        self.rollout.renew(workload, grace, self.clock.monotonic());
    }

    /// Lets others replace pods, now that this workload is whole or is no more, or the whole tenant.
    pub fn end_turn(&self, namespace: &str, workload: Option<&str>) {
        for namespace in self.rollout.end(namespace, workload) {
            self.triggers.tenant_of(&namespace);
            self.every_fleet(&namespace);
        }
    }

    /// A pass over each fleet of a namespace that is looked after, or has bots.
    pub fn every_fleet(&self, namespace: &str) {
        for name in self.fleets_with_bots(namespace) {
            self.triggers.fleet(namespace, &name);
        }
    }

    /// Names of the fleets of a namespace that are looked after, or have bots.
    pub fn fleets_with_bots(&self, namespace: &str) -> Vec<String> {
        let mut names = self.index.names(Slot::Child(ChildKind::BotFleet), namespace);
        if names.len() > MOST_FLEETS {
            let after: HashSet<String> = self.looked_after(namespace).iter().map(|fleet| fleet.name_any()).collect();
            let set = |name: &str| {
                self.index.get(Slot::Child(ChildKind::StatefulSet), namespace, &names::fleet_workload(name))
            };
            names.retain(|name| after.contains(name) || set(name).is_some_and(|set| set.desired != Some(0)));
        }
        names
    }

    /// Notes that the pods of a Tenant's services, or of one of its fleets, are as the Tenant's `generation` plans them. When all
    /// are, a quota that was left larger for their sake is looked at once more.
    pub fn seen_as_planned(&self, namespace: &str, key: &Key, generation: i64) {
        if self.memory.as_planned(key, generation) {
            self.end_room(namespace);
        }
    }

    /// Notes that the quota of a namespace was left larger on the way between these plans.
    pub fn made_roomy(&self, namespace: &str, plans: &[String; 2]) {
        self.memory.made_roomy(namespace, plans);
        // The last of them may have become so while the quota was written.
        self.end_room(namespace);
    }

    fn end_room(&self, namespace: &str) {
        if self.memory.has_room(namespace) && self.is_as_planned(namespace) {
            self.memory.end_room(namespace);
            self.triggers.tenant_of(namespace);
        }
    }

    /// Whether this process has seen the tenant's services, and every fleet that has bots, as it plans them for what the Tenant asks
    /// for now.
    pub fn is_as_planned(&self, namespace: &str) -> bool {
        let Some(name) = names::tenant_of_namespace(namespace) else { return false };
        let generation = self.tenant(name).and_then(|tenant| tenant.meta().generation);
        let fleets = self.index.names(Slot::Child(ChildKind::BotFleet), namespace);
        let set =
            |fleet: &str| self.index.get(Slot::Child(ChildKind::StatefulSet), namespace, &names::fleet_workload(fleet));
        let fleets = fleets.iter().filter(|fleet| set(fleet).is_some_and(|set| set.desired != Some(0)));
        let fleets = fleets.map(|fleet| Key::new(Own::BotFleet, Some(namespace), fleet));
        let planned = lock(&self.memory.planned);
        let tenant = std::iter::once(Key::new(Own::Tenant, None, name));
        tenant.chain(fleets).all(|key| planned.get(&key.number()).copied() == generation)
    }

    /// A pass over each `WorkerPool`.
    pub fn every_pool(&self) {
        self.every_pool_of(|_| true);
    }

    /// A pass over each `WorkerPool` of which this holds, or that cannot be read.
    pub fn every_pool_of(&self, wanted: impl Fn(&WorkerPool) -> bool) {
        for pool in self.pools.state().iter().filter(|pool| pool.0.as_ref().map_or(true, &wanted)) {
            self.triggers.pool(&pool.name_any());
        }
    }

    /// Lets passes be asked for, and begins with a look at each object that is known.
    pub fn begin(&self) {
        self.triggers.begin();
        self.every_pool();
        self.everybody();
    }

    /// The pools whose `PriorityClass` and node labels have been seen to once, for those of their tiers whose own class there is: without it
    /// every new pod of such a tenant would be refused, and so none of those that run is taken down. Of a class that others made, and that
    /// this process has not asked for yet, a pool's status tells.
    pub fn serving_pools(&self) -> Vec<PoolFacts> {
        let pools = self.pools.state();
        let ready: Vec<&WorkerPool> = pools
            .iter()
            .filter_map(|guarded| guarded.0.as_ref().ok())
            .filter(|pool| pool.metadata.deletion_timestamp.is_none())
            .filter(|pool| pool.status.as_ref().and_then(|s| s.observed_generation).is_some_and(|seen| seen >= 0))
            .collect();
        let has_class = |tier: &Tier| {
            let class = &self.catalog.tier(*tier).priority_class;
            let naming: Vec<&WorkerPool> =
                ready.iter().copied().filter(|pool| pool.spec.priority.class == *class).collect();
            // While pools contradict each other nobody asks for their class.
            let agreed = naming.windows(2).all(|two| two[0].spec.priority == two[1].spec.priority);
            let accepted = || agreed && naming.iter().any(|pool| pool.is_accepted());
            let answered = || self.nodes.class_answered(class).unwrap_or_else(accepted);
            self.nodes.has_class(class) || !naming.is_empty() && answered()
        };
        ready
            .iter()
            .map(|pool| PoolFacts {
                name: pool.metadata.name.clone().unwrap_or_default(),
                tiers: pool.spec.tiers.iter().copied().filter(&has_class).collect(),
            })
            .collect()
    }

    /// What a tenant comes to that no pool serves.
    pub fn await_pool(&self, tier: Tier) -> Outcome {
        let class = &self.catalog.tier(tier).priority_class;
        Outcome::Waiting(format!(
            "no ready WorkerPool serves tier {tier}; create one with spec.tiers containing {tier} and spec.priority.class {class} (examples/pools.yaml)"
        ))
    }
}

/// Bytes of referenced texts that are kept of one namespace. What has no room is read with each pass that wants it.
const MOST_TEXT: usize = 8 << 20;

/// Names one of Torpor's own objects.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Its kind.
    pub kind: &'static str,
    /// Its namespace, empty for a cluster-scoped one.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Key {
    /// The key of an object.
    pub fn new(kind: Own, namespace: Option<&str>, name: &str) -> Self {
        Key { kind: kind.as_str(), namespace: namespace.unwrap_or_default().to_owned(), name: name.to_owned() }
    }

    fn number(&self) -> u64 {
        number(self)
    }
}

/// A number for it, within this process.
pub(super) fn number(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// The answer to the last status write, until the watch shows it.
#[derive(Clone, Debug)]
pub struct Written {
    /// Resource version of the object that the status was computed from.
    pub from: String,
    /// The status, as JSON.
    pub status: serde_json::Value,
}

/// What is remembered between passes. Losing all of it costs time, never correctness.
#[derive(Default)]
pub struct Memory {
    failures: Mutex<HashMap<Key, u32>>,
    written: Mutex<HashMap<Key, Written>>,
    spoken: Mutex<HashMap<Key, Instant>>,
    configs: Mutex<HashMap<(String, String), HashMap<ConfigMapRef, String>>>,
    config_changes: AtomicU64,
    told: Mutex<HashMap<Key, (String, i64)>>,
    /// Whose pods were once as this process plans them, by [`Key::number`], for there are many, and for which generation of the Tenant.
    planned: Mutex<HashMap<u64, i64>>,
    /// Quotas that were left larger than they are to be: between which plans, by namespace. Numbers of both, for with a new
    /// catalogue there are many.
    roomy: Mutex<HashMap<u64, u64>>,
    /// Fleets whose referenced text somebody has changed, until their bots have it.
    asked: Mutex<HashSet<Key>>,
    /// Tenants whose dashboard is refused.
    without_dashboard: Mutex<HashSet<Key>>,
    /// Since when this process has been stopping the bots of what is being deleted.
    ends: Mutex<HashMap<Key, Instant>>,
}

fn lock<T>(known: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one insert or remove, so a panic elsewhere leaves it whole.
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Memory {
    /// Counts one more transient failure in a row.
    fn failed(&self, key: &Key) -> u32 {
        let mut failures = lock(&self.failures);
        let count = failures.entry(key.clone()).or_default();
        *count = count.saturating_add(1);
        *count
    }

    /// How many failures there were in a row.
    pub fn failures(&self, key: &Key) -> u32 {
        lock(&self.failures).get(key).copied().unwrap_or_default()
    }

    /// Somebody has asked for a change of this fleet otherwise than by its spec.
    pub fn ask(&self, key: Key) {
        lock(&self.asked).insert(key);
    }

    /// Whether somebody has, and it is not done yet.
    pub fn is_asked(&self, key: &Key) -> bool {
        lock(&self.asked).contains(key)
    }

    /// That change is done.
    pub fn answered(&self, key: &Key) {
        lock(&self.asked).remove(key);
    }

    /// Ends a row of failures.
    pub fn succeeded(&self, key: &Key) {
        lock(&self.failures).remove(key);
    }

    /// Number of objects of a kind with failures.
    pub fn failing(&self, kind: &str) -> usize {
        lock(&self.failures).keys().filter(|key| key.kind == kind).count()
    }

    /// Keeps the answer to a status write, and the time of it.
    pub fn wrote(&self, key: &Key, written: Written, now: Instant) {
        lock(&self.written).insert(key.clone(), written);
        lock(&self.spoken).insert(key.clone(), now);
    }

    /// How long this process has been stopping the bots of this object, which is being deleted.
    pub fn ends_for(&self, key: &Key, now: Instant) -> Duration {
        now.saturating_duration_since(*lock(&self.ends).entry(key.clone()).or_insert(now))
    }

    /// How long ago the status was written last; `None` when this process has not written it.
    pub fn silent_for(&self, key: &Key, now: Instant) -> Option<Duration> {
        lock(&self.spoken).get(key).map(|spoken| now.saturating_duration_since(*spoken))
    }

    /// The status written by an earlier pass if the watch still shows the object from before that write.
    pub fn unseen(&self, key: &Key, version: &str) -> Option<Written> {
        let mut written = lock(&self.written);
        if written.get(key).is_some_and(|written| written.from == version) {
            return written.get(key).cloned();
        }
        written.remove(key);
        None
    }

    /// Whether an unreadable object was reported at this uid and generation: its status cannot be read back, so
    /// this is all that keeps it from being written again and again.
    pub fn was_told(&self, key: &Key, version: &(String, i64)) -> bool {
        lock(&self.told).get(key) == Some(version)
    }

    /// Notes that an unreadable object was reported at this uid and generation.
    pub fn tell(&self, key: &Key, version: (String, i64)) {
        lock(&self.told).insert(key.clone(), version);
    }

    /// The pods of this Tenant's services, or of this fleet, are as planned. Whether that is news.
    fn as_planned(&self, key: &Key, generation: i64) -> bool {
        lock(&self.planned).insert(key.number(), generation) != Some(generation)
    }

    /// Whether the quota of a namespace was left larger on the way between these plans.
    pub fn is_roomy(&self, namespace: &str, plans: &[String; 2]) -> bool {
        lock(&self.roomy).get(&number(&namespace)) == Some(&number(plans))
    }

    fn made_roomy(&self, namespace: &str, plans: &[String; 2]) {
        lock(&self.roomy).insert(number(&namespace), number(plans));
    }

    fn has_room(&self, namespace: &str) -> bool {
        lock(&self.roomy).contains_key(&number(&namespace))
    }

    fn end_room(&self, namespace: &str) {
        lock(&self.roomy).remove(&number(&namespace));
    }

    /// Forgets an object that has gone.
    pub fn forget(&self, key: &Key) {
        lock(&self.planned).remove(&key.number());
        lock(&self.told).remove(key);
        lock(&self.spoken).remove(key);
        lock(&self.failures).remove(key);
        lock(&self.written).remove(key);
        lock(&self.without_dashboard).remove(key);
        lock(&self.asked).remove(key);
        lock(&self.ends).remove(key);
    }

    fn retain(&self, stays: impl Fn(&Key) -> bool) {
        lock(&self.told).retain(|key, _| stays(key));
        lock(&self.spoken).retain(|key, _| stays(key));
        lock(&self.failures).retain(|key, _| stays(key));
        lock(&self.written).retain(|key, _| stays(key));
        lock(&self.without_dashboard).retain(|key| stays(key));
        lock(&self.asked).retain(|key| stays(key));
        lock(&self.ends).retain(|key, _| stays(key));
    }

    /// The referenced text, if it was read since the `ConfigMap` last changed.
    pub fn config(&self, namespace: &str, reference: &ConfigMapRef) -> Option<String> {
        let place = (namespace.to_owned(), reference.name.clone());
        lock(&self.configs).get(&place).and_then(|texts| texts.get(reference)).cloned()
    }

    /// How often any `ConfigMap` has changed: to be asked before one is read.
    pub fn config_changes(&self) -> u64 {
        self.config_changes.load(Ordering::SeqCst)
    }

    /// Keeps a referenced text until its `ConfigMap` changes, as far as there is room. It is not kept if one has changed since it was asked for, for it
    /// may be what was before that change.
    pub fn keep_config(&self, namespace: &str, reference: &ConfigMapRef, text: &str, changes: u64) {
        let mut configs = lock(&self.configs);
        let kept = configs.iter().filter(|((of, _), _)| of == namespace).flat_map(|(_, texts)| texts.values());
        let has_room = kept.map(String::len).sum::<usize>() + text.len() <= MOST_TEXT;
        if has_room && self.config_changes() == changes {
            let place = (namespace.to_owned(), reference.name.clone());
            configs.entry(place).or_default().insert(reference.clone(), text.to_owned());
        }
    }

    /// Drops all texts: what has become of their `ConfigMaps` while nobody watched is not known.
    pub fn drop_configs(&self) {
        let mut configs = lock(&self.configs);
        self.config_changes.fetch_add(1, Ordering::SeqCst);
        configs.clear();
    }

    /// Drops the texts of a `ConfigMap` that changed.
    pub fn drop_config(&self, namespace: &str, name: &str) {
        let mut configs = lock(&self.configs);
        self.config_changes.fetch_add(1, Ordering::SeqCst);
        configs.remove(&(namespace.to_owned(), name.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_list_has_not_shown_fails_no_more() {
        let memory = Memory::default();
        let key = |name: &str| Key::new(Own::WorkerPool, None, name);
        assert_eq!(["gone", "there"].map(|name| memory.failed(&key(name))), [1, 1]);
        memory.retain(|key| key.name == "there");
        assert_eq!(memory.failing(Own::WorkerPool.as_str()), 1);
        assert_eq!(memory.failed(&key("there")), 2, "it goes on where it was");
    }

    #[test]
    fn what_was_as_planned_for_another_generation_is_not_now() {
        let memory = Memory::default();
        let key = Key::new(Own::Tenant, None, "a");
        assert_eq!([1, 1, 2].map(|generation| memory.as_planned(&key, generation)), [true, false, true]);
    }

    #[test]
    fn a_text_that_was_read_before_a_change_is_not_kept() {
        let (memory, reference) = (Memory::default(), ConfigMapRef { name: "mine".to_owned(), key: "a".to_owned() });
        let before = memory.config_changes();
        memory.drop_config("tenant-a", "mine");
        memory.keep_config("tenant-a", &reference, "old", before);
        assert_eq!(memory.config("tenant-a", &reference), None);
        memory.keep_config("tenant-a", &reference, "new", memory.config_changes());
        assert_eq!(memory.config("tenant-a", &reference).as_deref(), Some("new"));
        let large = ConfigMapRef { name: "large".to_owned(), key: "a".to_owned() };
        memory.keep_config("tenant-a", &large, &" ".repeat(MOST_TEXT), memory.config_changes());
        assert_eq!(memory.config("tenant-a", &large), None, "there is no room for it");
        memory.drop_configs();
        assert_eq!(memory.config("tenant-a", &reference), None);
    }
}

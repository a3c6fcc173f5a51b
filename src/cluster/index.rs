//! What the watches have seen of every tenant's children, a few hundred bytes each.
//!
//! The index holds identity, the operator's own annotations and a compact reading of status,
//! never an object as a whole. All decisions of a pass are made from it, without a request.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta};
use serde_json::{Value, json};

use super::ownership;
use crate::domain::names::{OPERATOR, annotation, label};
use crate::domain::quantity::Cpu;
use crate::plan::ChildKind;

/// What an entry of the index is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Slot {
    /// An object that the operator applies.
    Child(ChildKind),
    /// A pod of one of its workloads.
    Pod,
    /// A volume claim of one of its workloads.
    Volume,
}

/// A compact reading of an object's status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Facts {
    /// The kind has no status that matters.
    #[default]
    None,
    /// A `StatefulSet` or Deployment.
    Workload {
        /// Generation that its controller has seen.
        observed_generation: i64,
        /// Pods that exist.
        replicas: i32,
        /// Pods that are ready.
        ready: i32,
    },
    /// A pod.
    Pod {
        /// Its Ready condition.
        ready: bool,
        /// Why it is not ready, in the words of scheduler or kubelet.
        problem: Option<String>,
        /// Whether all its containers have ended for good, as those of an evicted pod that is still listed.
        ended: bool,
        /// Its container runs for the first time, is not ready yet, and can be given other resources.
        starting: bool,
        /// CPU limit of its container.
        cpu: Option<Cpu>,
    },
}

/// One object.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What it is.
    pub slot: Slot,
    /// Its namespace; a Namespace stands in itself.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its resource version as a number, for comparing age; 0 where it is none.
    pub version: u64,
    /// `metadata.generation`.
    pub generation: i64,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// When a pod that is being deleted has to be gone: its grace period is counted in.
    pub ends: Option<Timestamp>,
    /// uid of its controlling owner.
    pub owner: Option<String>,
    /// Value of its tenant label.
    pub tenant: Option<String>,
    /// Value of its component label.
    pub component: Option<String>,
    /// Value of its fleet label.
    pub fleet: Option<String>,
    /// Hash of what the operator last applied.
    pub applied_hash: Option<String>,
    /// Hash of what warrants a restart.
    pub restart_hash: Option<String>,
    /// The operator has changed the resources of this pod.
    pub resized: bool,
    /// Pods that a workload's spec asks for. `None` where that is not known, or makes no sense.
    pub desired: Option<i32>,
    /// Compact status.
    pub facts: Facts,
    fields: Fields,
}

fn is_resize(fields: &ManagedFieldsEntry) -> bool {
    fields.manager.as_deref() == Some(OPERATOR) && fields.subresource.as_deref() == Some("resize")
}

/// The operator's field sets: kept in full until one pass has compared them, then as a hash. In full they are the JSON text
/// of a list, a tenth of what the tree takes; and tenants of a tier share them, for what is owned is the same.
#[derive(Clone, Debug)]
enum Fields {
    Unverified(Arc<str>),
    Verified(u64),
}

impl Entry {
    /// Reads an object's metadata. `None` for an object without a name, which the API server never sends.
    pub fn read(slot: Slot, metadata: &ObjectMeta, facts: Facts) -> Option<Self> {
        let name = metadata.name.clone()?;
        let text = |map: &Option<BTreeMap<String, String>>, key: &str| map.as_ref().and_then(|m| m.get(key)).cloned();
        let owner = metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        let managed = metadata.managed_fields.as_deref().unwrap_or_default();
        let fields = match slot {
            Slot::Child(_) => Fields::Unverified(json!(ownership::owned_fields(managed)).to_string().into()),
            Slot::Pod | Slot::Volume => Fields::Verified(0),
        };
        Some(Entry {
            slot,
            namespace: metadata.namespace.clone().unwrap_or_else(|| name.clone()),
            name,
            uid: metadata.uid.clone().unwrap_or_default(),
            version: metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0),
            generation: metadata.generation.unwrap_or(0),
            deleting: metadata.deletion_timestamp.is_some(),
            ends: metadata.deletion_timestamp.as_ref().map(|time| time.0),
            owner: owner.map(|owner| owner.uid.clone()),
            tenant: text(&metadata.labels, label::TENANT),
            component: text(&metadata.labels, label::COMPONENT),
            fleet: text(&metadata.labels, label::FLEET),
            applied_hash: text(&metadata.annotations, annotation::APPLIED_HASH),
            restart_hash: text(&metadata.annotations, annotation::RESTART_HASH),
            resized: slot == Slot::Pod && managed.iter().any(is_resize),
            desired: None,
            facts,
            fields,
        })
    }

    /// The same entry of a workload whose spec asks for this many pods.
    #[must_use]
    pub fn asking_for(mut self, desired: Option<i32>) -> Self {
        self.desired = desired;
        self
    }
}

fn digest(fields: &str) -> u64 {
    // Only compared within one process, so the standard hasher will do.
    let mut hasher = DefaultHasher::new();
    fields.hash(&mut hasher);
    hasher.finish()
}

/// How an object in the cluster relates to the wanted one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// It does not exist.
    Missing,
    /// It exists, as wanted.
    Same,
    /// It exists and must be applied again.
    Differs,
    /// It is on its way out; nothing can be applied until it has gone.
    Leaving,
}

type Key = (Slot, String);

#[derive(Debug, Default)]
struct Inner {
    namespaces: HashMap<String, BTreeMap<Key, Entry>>,
    /// uids seen since a listing of the kind began, by listing, watch or answer.
    listing: HashMap<Slot, HashSet<String>>,
    /// Field sets that entries share while they are kept in full.
    sets: HashSet<Arc<str>>,
    /// How many of them there may be before those are forgotten that no entry has any more.
    sets_limit: usize,
}

impl Inner {
    /// The fewest that are worth a look whether they are still needed.
    const SETS: usize = 256;

    fn shared(&mut self, fields: Arc<str>) -> Arc<str> {
        if let Some(known) = self.sets.get(&fields) {
            return known.clone();
        }
        if self.sets.len() >= self.sets_limit {
            self.sets.retain(|set| Arc::strong_count(set) > 1);
            self.sets_limit = Self::SETS + 2 * self.sets.len();
        }
        self.sets.insert(fields.clone());
        fields
    }
}

/// The index over all tenants' namespaces.
#[derive(Debug, Default)]
pub struct ChildIndex {
    inner: Mutex<Inner>,
}

impl ChildIndex {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change under this lock is a single insert or remove, so a panic elsewhere leaves it whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A complete listing of a kind begins.
    pub fn begin_listing(&self, slot: Slot) {
        self.lock().listing.insert(slot, HashSet::new());
    }

    /// The listing is complete: forgets and returns what neither it nor a write since its begin has shown.
    pub fn finish_listing(&self, slot: Slot) -> Vec<Entry> {
        let mut inner = self.lock();
        let Some(seen) = inner.listing.remove(&slot) else { return Vec::new() };
        let mut gone = Vec::new();
        for children in inner.namespaces.values_mut() {
            children.retain(|(kind, _), entry| {
                let stays = *kind != slot || seen.contains(&entry.uid);
                if !stays {
                    gone.push(entry.clone());
                }
                stays
            });
        }
        inner.namespaces.retain(|_, children| !children.is_empty());
        gone
    }

    /// Takes in what a watch or an answer showed. `false` when that was known already, or is older.
    pub fn upsert(&self, mut entry: Entry) -> bool {
        let mut inner = self.lock();
        if let Some(seen) = inner.listing.get_mut(&entry.slot) {
            seen.insert(entry.uid.clone());
        }
        if let Fields::Unverified(fields) = entry.fields {
            entry.fields = Fields::Unverified(inner.shared(fields));
        }
        let children = inner.namespaces.entry(entry.namespace.clone()).or_default();
        let key = (entry.slot, entry.name.clone());
        if let Some(known) = children.get(&key).filter(|known| known.uid == entry.uid) {
            // The answer to a write may come before the watch shows the same version, and has no status.
            let brings_status =
                known.version == entry.version && entry.facts != Facts::None && entry.facts != known.facts;
            if known.version >= entry.version && entry.version != 0 && !brings_status {
                return false;
            }
            if let (Fields::Verified(known), Fields::Unverified(fields)) = (&known.fields, &entry.fields)
                && *known == digest(fields)
            {
                entry.fields = Fields::Verified(*known);
            }
            if entry.facts == Facts::None {
                entry.facts = known.facts.clone();
            }
            entry.desired = entry.desired.or(known.desired);
        }
        children.insert(key, entry);
        true
    }

    /// Forgets an object that has gone, unless another of its name has come meanwhile.
    pub fn remove(&self, slot: Slot, namespace: &str, name: &str, uid: &str) {
        let namespaces = &mut self.lock().namespaces;
        if let Some(children) = namespaces.get_mut(namespace) {
            let key = (slot, name.to_owned());
            if children.get(&key).is_some_and(|known| known.uid == uid) {
                children.remove(&key);
            }
            if children.is_empty() {
                namespaces.remove(namespace);
            }
        }
    }

    /// How the wanted object relates to what is known of the cluster.
    pub fn compare(&self, kind: ChildKind, namespace: &str, name: &str, hash: &str, wanted: &Value) -> Difference {
        let mut inner = self.lock();
        let key = (Slot::Child(kind), name.to_owned());
        let Some(entry) = inner.namespaces.get_mut(namespace).and_then(|children| children.get_mut(&key)) else {
            return Difference::Missing;
        };
        if entry.deleting {
            return Difference::Leaving;
        }
        if entry.applied_hash.as_deref() != Some(hash) {
            return Difference::Differs;
        }
        match &entry.fields {
            Fields::Verified(_) => Difference::Same,
            Fields::Unverified(fields) => {
                let owned: Vec<Value> = serde_json::from_str(fields).unwrap_or_default();
                if ownership::covers(&owned.iter().collect::<Vec<_>>(), wanted) {
                    entry.fields = Fields::Verified(digest(fields));
                    Difference::Same
                } else {
                    Difference::Differs
                }
            }
        }
    }

    /// Everything known of one namespace.
    pub fn namespace(&self, namespace: &str) -> Vec<Entry> {
        self.lock().namespaces.get(namespace).map(|children| children.values().cloned().collect()).unwrap_or_default()
    }

    /// Names of all objects of one kind in one namespace.
    pub fn names(&self, slot: Slot, namespace: &str) -> Vec<String> {
        let inner = self.lock();
        let children = inner.namespaces.get(namespace);
        let keys = children.into_iter().flat_map(BTreeMap::keys);
        keys.filter(|(kind, _)| *kind == slot).map(|(_, name)| name.clone()).collect()
    }

    /// One object.
    pub fn get(&self, slot: Slot, namespace: &str, name: &str) -> Option<Entry> {
        self.lock().namespaces.get(namespace).and_then(|children| children.get(&(slot, name.to_owned()))).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(version: &str, hash: &str, owned: Value) -> Entry {
        let metadata: ObjectMeta = serde_json::from_value(json!({
            "name": "redis", "namespace": "tenant-a", "uid": "u1", "resourceVersion": version,
            "annotations": {"torpor.dev/applied-hash": hash},
            "managedFields": [{"manager": "torpor-operator", "operation": "Apply", "fieldsV1": owned}],
        }))
        .expect("metadata");
        Entry::read(Slot::Child(ChildKind::ConfigMap), &metadata, Facts::None).expect("a name")
    }

    fn compare(index: &ChildIndex, hash: &str) -> Difference {
        let wanted = json!({"metadata": {"name": "redis"}, "data": {"a": "1"}});
        index.compare(ChildKind::ConfigMap, "tenant-a", "redis", hash, &wanted)
    }

    #[test]
    fn unchanged_until_hash_or_ownership_differs() {
        let index = ChildIndex::default();
        assert_eq!(compare(&index, "h"), Difference::Missing);
        let owned = json!({"f:data": {"f:a": {}}});
        assert!(index.upsert(entry("5", "h", owned.clone())));
        assert_eq!(compare(&index, "h"), Difference::Same);
        assert_eq!(compare(&index, "other"), Difference::Differs);
        assert!(!index.upsert(entry("5", "h", owned.clone())), "the same version again is no news");
        assert!(!index.upsert(entry("4", "old", owned.clone())), "an older one must not win");
        assert!(index.upsert(entry("6", "h", owned)));
        assert_eq!(compare(&index, "h"), Difference::Same);
        assert!(index.upsert(entry("7", "h", json!({"f:other": {}}))));
        assert_eq!(compare(&index, "h"), Difference::Differs, "somebody took data.a");
    }

    #[test]
    fn an_answer_keeps_the_status_and_the_watch_brings_the_newer_one() {
        let slot = Slot::Child(ChildKind::StatefulSet);
        let read = |version: &str, generation: i64, facts: Facts| {
            let metadata: ObjectMeta = serde_json::from_value(json!({
                "name": "redis", "namespace": "tenant-a", "uid": "u1", "resourceVersion": version, "generation": generation,
            }))
            .expect("metadata");
            Entry::read(slot, &metadata, facts).expect("a name")
        };
        let status = |ready: i32| Facts::Workload { observed_generation: 1, replicas: 2, ready };
        let index = ChildIndex::default();
        index.upsert(read("5", 1, status(1)));
        index.upsert(read("7", 2, Facts::None).asking_for(Some(0)));
        let known = index.get(slot, "tenant-a", "redis").expect("known");
        assert_eq!((known.generation, &known.facts), (2, &status(1)), "not yet seen by its controller");
        assert_eq!(known.desired, Some(0), "what was written is known before the watch shows it");
        assert!(!index.upsert(read("6", 1, status(2))), "older than the answer");
        assert!(index.upsert(read("7", 2, status(2))), "the answer's version, with the status of that version");
        assert!(!index.upsert(read("7", 2, status(2))));
        let known = index.get(slot, "tenant-a", "redis").expect("known");
        assert_eq!((known.facts, known.desired), (status(2), Some(0)));
    }

    #[test]
    fn a_listing_forgets_only_what_it_could_have_seen() {
        let index = ChildIndex::default();
        let slot = Slot::Child(ChildKind::ConfigMap);
        index.begin_listing(slot);
        index.upsert(entry("5", "h", json!({})));
        assert!(index.finish_listing(slot).is_empty(), "written while the listing ran");
        index.begin_listing(slot);
        assert_eq!(index.finish_listing(slot).len(), 1);
        assert!(index.namespace("tenant-a").is_empty());
    }

    #[test]
    fn equal_field_sets_are_kept_once_and_not_for_ever() {
        let index = ChildIndex::default();
        let named = |number: usize, owned: &Value| {
            let mut entry = entry("5", "h", owned.clone());
            entry.name = format!("c-{number}");
            index.upsert(entry);
        };
        (0..100).for_each(|number| named(number, &json!({"f:data": {"f:a": {}}})));
        assert_eq!(index.lock().sets.len(), 1);
        // Each is replaced by the next, as of an object that changes all the time.
        (0..10_000).for_each(|number| named(0, &json!({"f:data": {format!("f:{number}"): {}}})));
        assert!(index.lock().sets.len() <= 2 * Inner::SETS, "{}", index.lock().sets.len());
    }

    #[test]
    fn a_late_deletion_spares_the_successor() {
        let index = ChildIndex::default();
        index.upsert(entry("5", "h", json!({})));
        index.remove(Slot::Child(ChildKind::ConfigMap), "tenant-a", "redis", "another");
        assert_eq!(index.namespace("tenant-a").len(), 1);
    }
}

//! What the watches have seen of every tenant's children, a few hundred bytes each.
//!
//! The index holds identity, the operator's own annotations and a compact reading of status,
//! never an object as a whole. All decisions of a pass are made from it, without a request.

mod compact;

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta};
use serde_json::{Value, json};

use self::compact::{Compact, Mark, Shared, Uid};
use super::ownership;
use crate::domain::names::{self, Component, OPERATOR, annotation, label};
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
    /// The part of the stack that its component label names.
    pub component: Option<Component>,
    /// Value of its fleet label.
    pub fleet: Option<String>,
    /// Hash of what the operator last applied.
    pub applied_hash: Option<String>,
    /// Hash of what warrants a restart.
    pub restart_hash: Option<String>,
    /// The operator has changed a part of it by a subresource: the resources of a pod, the number of pods of a workload.
    pub changed_in_part: bool,
    /// Pods that a workload's spec asks for. `None` where that is not known, or makes no sense.
    pub desired: Option<i32>,
    /// Compact status.
    pub facts: Facts,
    /// Node that a pod runs on.
    pub node: Option<String>,
    /// Exchange credentials that a pod has, or that a workload gives to those it makes.
    pub keys: Option<Keys>,
    fields: Fields,
}

/// What the spec of a workload or of a pod tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Pods that a workload asks for.
    pub replicas: Option<i32>,
    /// Node that a pod is bound to.
    pub node: Option<String>,
    /// Exchange credentials in its volumes.
    pub keys: Option<Keys>,
}

/// Which Secret exchange credentials come from, in eight bytes: whether it is the same one is all that is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keys(NonZeroU64);

impl Keys {
    /// Those of the Secret of this name.
    pub fn of(secret: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        secret.hash(&mut hasher);
        Self(NonZeroU64::MIN.saturating_add(hasher.finish()))
    }
}

fn is_in_part(fields: &ManagedFieldsEntry) -> bool {
    fields.manager.as_deref() == Some(OPERATOR) && matches!(fields.subresource.as_deref(), Some("resize" | "scale"))
}

/// The operator's field sets: kept in full until one pass has compared them, then as a hash. In full they are the JSON text
/// of a list, a tenth of what the tree takes; and tenants of a tier share them, for what is owned is the same but for the
/// owner's uid, in whose place stands [`OWNER`].
#[derive(Clone, Debug)]
enum Fields {
    Unverified(Arc<str>),
    Verified(u64),
}

/// Stands in field sets for the uid of the controlling owner; nothing that is owned is called so.
const OWNER: &str = "$owner";

impl Entry {
    /// Whether it serves this part of a tenant's stack, by its label.
    pub fn is_of(&self, component: Component) -> bool {
        self.component == Some(component)
    }

    /// The fleet whose workload or bot this is by its name, also where it has lost its label.
    pub fn fleet_by_name(&self) -> Option<&str> {
        match self.slot {
            Slot::Pod => {
                let (workload, ordinal) = self.name.rsplit_once('-')?;
                ordinal.parse::<i32>().ok()?;
                names::fleet_of_workload(workload)
            }
            Slot::Child(ChildKind::StatefulSet) => names::fleet_of_workload(&self.name),
            Slot::Child(_) | Slot::Volume => None,
        }
    }

    /// The `StatefulSet` that a pod says made it, which need not be there, or known, any more.
    pub fn maker(&self) -> Option<Self> {
        let (workload, _) = self.name.rsplit_once('-').filter(|_| self.slot == Slot::Pod)?;
        let (name, uid) = (workload.to_owned(), self.owner.clone()?);
        let slot = Slot::Child(ChildKind::StatefulSet);
        Some(Entry { slot, name, uid, deleting: false, ..self.clone() })
    }

    /// Reads an object's metadata. `None` for an object without a name, which the API server never sends.
    pub fn read(slot: Slot, metadata: &ObjectMeta, facts: Facts) -> Option<Self> {
        let name = metadata.name.clone()?;
        let text = |map: &Option<BTreeMap<String, String>>, key: &str| map.as_ref().and_then(|m| m.get(key)).cloned();
        let owner = metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        let managed = metadata.managed_fields.as_deref().unwrap_or_default();
        let fields = match slot {
            Slot::Child(_) => {
                let text = json!(ownership::owned_fields(managed)).to_string();
                let uid = owner.map(|owner| owner.uid.as_str()).filter(|uid| !uid.is_empty());
                let text = match uid {
                    Some(uid) => text.replace(uid, OWNER),
                    None => text,
                };
                Fields::Unverified(text.into())
            }
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
            component: text(&metadata.labels, label::COMPONENT).and_then(|name| Component::named(&name)),
            fleet: text(&metadata.labels, label::FLEET),
            applied_hash: text(&metadata.annotations, annotation::APPLIED_HASH),
            restart_hash: text(&metadata.annotations, annotation::RESTART_HASH),
            changed_in_part: managed.iter().any(is_in_part),
            desired: None,
            facts,
            node: None,
            keys: None,
            fields,
        })
    }

    /// The same entry of an object whose spec tells this.
    #[must_use]
    pub fn asking(self, Asked { replicas, node, keys }: Asked) -> Self {
        Entry { desired: replicas, node, keys, ..self }
    }
}

fn digest(fields: &str, owner: Option<&str>) -> u64 {
    // Only compared within one process, so the standard hasher will do.
    let mut hasher = DefaultHasher::new();
    (fields, owner).hash(&mut hasher);
    hasher.finish()
}

/// How an object in the cluster relates to the wanted one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// It does not exist.
    Missing,
    /// It exists, as wanted.
    Same,
    /// It exists as another plan wanted it.
    Differs,
    /// This plan was applied, and somebody has changed it since.
    Edited,
    /// It is on its way out; nothing can be applied until it has gone.
    Leaving,
}

#[derive(Debug, Default)]
struct Inner {
    /// Each namespace's objects by slot and name.
    namespaces: HashMap<Arc<str>, Vec<Compact>>,
    /// uids seen since a listing of the kind began, by listing, watch or answer.
    listing: HashMap<Slot, HashSet<Uid>>,
    /// The newest version that the watch of a kind has shown since the last listing began. All up to it was shown, too.
    shown: HashMap<Slot, u64>,
    shared: Shared,
}

impl Inner {
    fn show(&mut self, entry: &Entry) {
        let shown = self.shown.entry(entry.slot).or_default();
        *shown = entry.version.max(*shown);
    }

    fn upsert(&mut self, entry: Entry) -> bool {
        let namespace = self.shared.texts.shared(&entry.namespace);
        let mut entry = Compact::of(entry, &mut self.shared);
        if let Some(seen) = self.listing.get_mut(&entry.slot) {
            seen.insert(entry.uid.clone());
        }
        let children = self.namespaces.entry(namespace).or_default();
        let place = find(children, entry.slot, &entry.name);
        // An answer that comes late may be about an object that has had its successor since.
        if place
            .is_ok_and(|at| children[at].uid != entry.uid && children[at].version > entry.version && entry.version != 0)
        {
            return false;
        }
        if let Some(known) = place.ok().map(|at| &children[at]).filter(|known| known.uid == entry.uid) {
            // The answer to a write may come before the watch shows the same version, and has no status.
            let brings_status =
                known.version == entry.version && *entry.facts() != Facts::None && entry.facts() != known.facts();
            if known.version >= entry.version && entry.version != 0 && !brings_status {
                return false;
            }
            if let (Fields::Verified(known), Fields::Unverified(fields)) = (&known.fields, &entry.fields)
                && *known == digest(fields, entry.owner().as_deref())
            {
                let (known, fields) = (*known, fields.clone());
                entry.fields = Fields::Verified(known);
                self.shared.texts.give_back(fields);
            }
            entry.keep_of(known);
        }
        match place {
            Ok(at) => children[at] = entry,
            Err(at) => {
                reserve(children);
                children.insert(at, entry);
            }
        }
        true
    }
}

/// Where an object is among those of its namespace, or where it belongs.
fn find(children: &[Compact], slot: Slot, name: &str) -> Result<usize, usize> {
    children.binary_search_by(|known| (known.slot, &*known.name).cmp(&(slot, name)))
}

/// Makes room for one more, and for few beside it: namespaces are many, and seldom grow.
fn reserve(children: &mut Vec<Compact>) {
    const ROOM: usize = 4;
    if children.len() == children.capacity() {
        children.reserve_exact(ROOM + children.len() / 8);
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
        let mut inner = self.lock();
        inner.listing.insert(slot, HashSet::new());
        // A list may be older than what was watched, and then the watch goes on from there.
        inner.shown.remove(&slot);
    }

    /// The listing is complete: forgets and returns what neither it nor a write since its begin has shown.
    pub fn finish_listing(&self, slot: Slot) -> Vec<Entry> {
        let mut inner = self.lock();
        let Some(seen) = inner.listing.remove(&slot) else { return Vec::new() };
        let mut gone = Vec::new();
        for (namespace, children) in &mut inner.namespaces {
            children.retain(|known| {
                let stays = known.slot != slot || seen.contains(&known.uid);
                if !stays {
                    gone.push(known.entry(namespace));
                }
                stays
            });
        }
        inner.namespaces.retain(|_, children| !children.is_empty());
        // The last of the lists that fill them; there may be few namespaces of many.
        if inner.listing.is_empty() {
            inner.namespaces.values_mut().for_each(Vec::shrink_to_fit);
        }
        gone
    }

    /// Takes in the answer to a write. One that comes so late that the watch has shown the end of its object since brings
    /// nothing back.
    pub fn answered(&self, entry: Entry) {
        let inner = &mut *self.lock();
        let of_past = inner.shown.get(&entry.slot).is_some_and(|shown| entry.version != 0 && entry.version <= *shown);
        let children = inner.namespaces.get(&*entry.namespace);
        if of_past && children.is_none_or(|children| find(children, entry.slot, &entry.name).is_err()) {
            return;
        }
        inner.upsert(entry);
    }

    /// Takes in that this object was told to go, of which the watch tells later.
    pub fn leaves(&self, entry: &Entry) {
        if let Some(children) = self.lock().namespaces.get_mut(&*entry.namespace)
            && let Ok(at) = find(children, entry.slot, &entry.name)
            && children[at].uid == Uid::read(&entry.uid)
        {
            children[at].deleting = true;
        }
    }

    /// Takes in what a watch has shown. `false` when that was known already, or is older.
    pub fn watched(&self, entry: Entry) -> bool {
        let mut inner = self.lock();
        inner.show(&entry);
        inner.upsert(entry)
    }

    /// Takes in what a list holds. `false` when that was known already, or is older.
    pub fn listed(&self, entry: Entry) -> bool {
        self.lock().upsert(entry)
    }

    /// Forgets an object that has gone, unless another of its name has come meanwhile.
    pub fn remove(&self, gone: &Entry) {
        let mut inner = self.lock();
        inner.show(gone);
        if let Some(children) = inner.namespaces.get_mut(&*gone.namespace) {
            if let Ok(at) = find(children, gone.slot, &gone.name)
                && children[at].uid == Uid::read(&gone.uid)
            {
                children.remove(at);
            }
            if children.is_empty() {
                inner.namespaces.remove(&*gone.namespace);
            }
        }
    }

    /// Forgets all that is known of a namespace, which has gone, but a new one of its name.
    pub fn forget_namespace(&self, namespace: &str) {
        let namespaces = &mut self.lock().namespaces;
        if let Some(children) = namespaces.get_mut(namespace) {
            children.retain(|known| known.slot == Slot::Child(ChildKind::Namespace));
            if children.is_empty() {
                namespaces.remove(namespace);
            }
        }
    }

    /// How the wanted object relates to what is known of the cluster.
    pub fn compare(&self, kind: ChildKind, namespace: &str, name: &str, hash: &str, wanted: &Value) -> Difference {
        let inner = &mut *self.lock();
        let children = inner.namespaces.get_mut(namespace);
        let found = children.and_then(|children| {
            let at = find(children, Slot::Child(kind), name).ok()?;
            children.get_mut(at)
        });
        let Some(entry) = found else { return Difference::Missing };
        if entry.deleting {
            return Difference::Leaving;
        }
        if entry.applied_hash != Mark::read(Some(hash)) {
            return Difference::Differs;
        }
        let Fields::Unverified(fields) = &entry.fields else { return Difference::Same };
        let text = fields.replace(OWNER, &entry.owner().unwrap_or_default());
        let owned: Vec<Value> = serde_json::from_str(&text).unwrap_or_default();
        if !ownership::covers(&owned.iter().collect::<Vec<_>>(), wanted) {
            return if entry.changed_in_part() { Difference::Differs } else { Difference::Edited };
        }
        let verified = Fields::Verified(digest(fields, entry.owner().as_deref()));
        if let Fields::Unverified(fields) = std::mem::replace(&mut entry.fields, verified) {
            inner.shared.texts.give_back(fields);
        }
        Difference::Same
    }

    /// Everything known of one namespace.
    pub fn namespace(&self, namespace: &str) -> Vec<Entry> {
        let inner = self.lock();
        let children = inner.namespaces.get(namespace).into_iter().flatten();
        children.map(|known| known.entry(namespace)).collect()
    }

    /// Nodes on which tenants' pods run, or are about to.
    pub fn nodes_in_use(&self) -> HashSet<Arc<str>> {
        let inner = self.lock();
        inner.namespaces.values().flatten().filter_map(Compact::node).cloned().collect()
    }

    /// Names of all objects of one kind in one namespace.
    pub fn names(&self, slot: Slot, namespace: &str) -> Vec<String> {
        let inner = self.lock();
        let children = inner.namespaces.get(namespace).into_iter().flatten();
        children.filter(|known| known.slot == slot).map(|known| known.name.to_string()).collect()
    }

    /// One object.
    pub fn get(&self, slot: Slot, namespace: &str, name: &str) -> Option<Entry> {
        let inner = self.lock();
        let children = inner.namespaces.get(namespace)?;
        find(children, slot, name).ok().map(|at| children[at].entry(namespace))
    }
}

#[cfg(test)]
mod tests;

//! Nodes and `PriorityClasses`: what the watches know of them, and the writes on them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::Node as ApiNode;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

use super::error::ClusterError;
use crate::domain::names::{OPERATOR, annotation, label};
use crate::domain::quantity::{Bytes, Cpu};
use crate::leader::LeaderGuard;
use crate::metrics::Metrics;
use crate::placement::assign::{Edit, Marks, Node, Taint};

/// A `PriorityClass` as far as pools care.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// Its uid.
    pub uid: String,
    /// Its value.
    pub value: i32,
    /// Its preemption policy.
    pub preemption: String,
}

#[derive(Debug, Default)]
struct Known {
    nodes: BTreeMap<String, Node>,
    classes: BTreeMap<String, Class>,
    /// Whether a `PriorityClass` of this name was there after it was last asked for.
    answered: BTreeMap<String, bool>,
    /// Why nodes were refused their marks, by name.
    refused: BTreeMap<String, String>,
}

/// Nodes and managed `PriorityClasses`.
#[derive(Clone)]
pub struct Nodes {
    client: Client,
    metrics: Metrics,
    leader: LeaderGuard,
    known: Arc<Mutex<Known>>,
}

/// Takes a watch's event into a map; `true` when it is not like what was there.
fn take<T, K: ResourceExt>(
    map: &mut BTreeMap<String, T>,
    event: watcher::Event<K>,
    read: impl Fn(&K) -> T,
    is_like: impl Fn(&mut T, &T) -> bool,
) -> bool {
    match event {
        // A listing replaces what is known only as its objects arrive; what is gone meanwhile is
        // forgotten at its end by the caller.
        watcher::Event::Init | watcher::Event::InitDone => false,
        watcher::Event::Apply(object) | watcher::Event::InitApply(object) => {
            let new = read(&object);
            let changed = map.get_mut(&object.name_any()).is_none_or(|known| !is_like(known, &new));
            map.insert(object.name_any(), new);
            changed
        }
        watcher::Event::Delete(object) => map.remove(&object.name_any()).is_some(),
    }
}

impl Nodes {
    /// Knows nothing yet.
    pub fn new(client: Client, metrics: Metrics, leader: LeaderGuard) -> Self {
        Nodes { client, metrics, leader, known: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a node's event; `true` when something changed that pools care about.
    pub fn take_node(&self, seen: &mut Vec<String>, event: watcher::Event<ApiNode>) -> bool {
        let known = &mut *self.lock();
        listing(seen, &event);
        let ended = matches!(event, watcher::Event::InitDone);
        let changed = take(&mut known.nodes, event, read_node, is_like) | (ended && forget(&mut known.nodes, seen));
        known.refused.retain(|name, _| known.nodes.contains_key(name));
        changed
    }

    /// Takes in a `PriorityClass`'s event; `true` when something changed that pools care about.
    pub fn take_class(&self, seen: &mut Vec<String>, event: watcher::Event<PriorityClass>) -> bool {
        let mut known = self.lock();
        listing(seen, &event);
        let ended = matches!(event, watcher::Event::InitDone);
        let read = |class: &PriorityClass| Class {
            uid: class.uid().unwrap_or_default(),
            value: class.value,
            preemption: class.preemption_policy.clone().unwrap_or_else(|| "PreemptLowerPriority".to_owned()),
        };
        let changed = take(&mut known.classes, event, read, |known, new| known == new);
        changed | (ended && forget(&mut known.classes, seen))
    }

    /// All nodes.
    pub fn nodes(&self) -> Vec<Node> {
        self.lock().nodes.values().cloned().collect()
    }

    /// All `PriorityClasses` that Torpor made.
    pub fn classes(&self) -> BTreeMap<String, Class> {
        self.lock().classes.clone()
    }

    /// Whether Torpor made a `PriorityClass` of this name.
    pub fn has_class(&self, name: &str) -> bool {
        self.lock().classes.contains_key(name)
    }

    /// Whether there was a `PriorityClass` of this name when this process last asked for one; `None` where it has not. One that it has asked
    /// for is none that only an earlier catalogue named.
    pub fn class_answered(&self, name: &str) -> Option<bool> {
        self.lock().answered.get(name).copied()
    }

    fn may_write(&self) -> Result<(), ClusterError> {
        if self.leader.is_valid() { Ok(()) } else { Err(ClusterError::NotLeading) }
    }

    /// Writes label, taints and marks of one node, if it is still the version that was seen.
    ///
    /// # Errors
    /// [`ClusterError`]; a node that changed meanwhile is transient.
    pub async fn mark(&self, edit: &Edit) -> Result<(), ClusterError> {
        self.may_write()?;
        let mut metadata = json!({
            "resourceVersion": edit.version,
            "annotations": {annotation::NODE_POOL: edit.marks.format()},
        });
        if let Some(value) = &edit.label {
            metadata["labels"] = json!({label::POOL: value});
        }
        let mut patch = json!({ "metadata": metadata });
        if let Some(taints) = &edit.taints {
            patch["spec"]["taints"] = taints.iter().map(taint_value).collect();
        }
        let api: Api<ApiNode> = Api::all(self.client.clone());
        let params = PatchParams { field_manager: Some(OPERATOR.to_owned()), ..PatchParams::default() };
        let answer = api.patch_metadata(&edit.node, &params, &Patch::Merge(&patch)).await;
        self.metrics.api_write("patch", "Node");
        let done = match answer {
            Ok(_) => Ok(()),
            Err(error) if ClusterError::is_not_found(&error) => Ok(()),
            Err(error) => Err(ClusterError::of(&format!("Node {}", edit.node), &error)),
        };
        let refused = &mut self.lock().refused;
        match &done {
            Err(refusal @ ClusterError::Refused { .. }) => drop(refused.insert(edit.node.clone(), refusal.to_string())),
            Ok(()) => drop(refused.remove(&edit.node)),
            Err(_) => {}
        }
        done
    }

    /// Notes that a node keeps its label for now, and why. Whether that is news.
    pub fn keep(&self, edit: &Edit) -> bool {
        let (node, label) = (&edit.node, edit.loses.as_deref().unwrap_or_default());
        let why = format!("node {node} keeps {}={label} while pods run there that need it; drain it", label::POOL);
        let news = self.lock().refused.insert(node.clone(), why.clone()).as_ref() != Some(&why);
        if news {
            tracing::warn!(node, "{why}");
        }
        news
    }

    /// Why this node was refused its marks, if it was.
    pub fn refusal(&self, node: &str) -> Option<String> {
        self.lock().refused.get(node).cloned()
    }

    /// Creates a `PriorityClass`. One of that name that others made is used when it says the same, and never touched.
    ///
    /// # Errors
    /// [`ClusterError::NotOwned`] when it says something else.
    pub async fn create_class(&self, name: &str, value: i32, preemption: &str) -> Result<(), ClusterError> {
        let done = self.try_class(name, value, preemption, false).await;
        let is_there = match &done {
            Ok(()) | Err(ClusterError::NotOwned { .. }) => true,
            // Whoever may not create it may still use that of somebody else.
            Err(ClusterError::Refused { .. }) => {
                let api: Api<PriorityClass> = Api::all(self.client.clone());
                api.get_opt(name).await.is_ok_and(|found| found.is_some())
            }
            Err(_) => return done,
        };
        self.lock().answered.insert(name.to_owned(), is_there);
        done
    }

    /// Replaces a `PriorityClass` that Torpor made by one that says something else, if it is still the one that was seen. Not before the
    /// other one is known to be permitted: until there is one, no pod that names it can be made.
    ///
    /// # Errors
    /// As those of [`Nodes::create_class`] and [`Nodes::delete_class`].
    pub async fn replace_class(&self, name: &str, uid: &str, value: i32, preemption: &str) -> Result<(), ClusterError> {
        self.try_class(name, value, preemption, true).await?;
        // Nobody need wait for the moment in between.
        self.lock().answered.insert(name.to_owned(), true);
        self.remove_class(name, uid).await?;
        self.create_class(name, value, preemption).await
    }

    /// Whether it is only tried: then one that is there is as good as none, and says nothing.
    async fn try_class(&self, name: &str, value: i32, preemption: &str, dry: bool) -> Result<(), ClusterError> {
        self.may_write()?;
        let what = format!("PriorityClass {name}");
        let mut class = PriorityClass {
            value,
            preemption_policy: Some(preemption.to_owned()),
            description: Some("Pods of Torpor's tenants; kept by the WorkerPools that name it.".to_owned()),
            ..PriorityClass::default()
        };
        class.metadata.name = Some(name.to_owned());
        class.metadata.labels = Some(
            [(label::MANAGED_BY, label::TORPOR), (label::PART_OF, label::TORPOR)]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
        );
        let api: Api<PriorityClass> = Api::all(self.client.clone());
        let params = PostParams { field_manager: Some(OPERATOR.to_owned()), dry_run: dry };
        let answer = api.create(&params, &class).await;
        if !dry {
            self.metrics.api_write("create", "PriorityClass");
        }
        match answer {
            Ok(_) => Ok(()),
            // Admission is asked before the name is.
            Err(error) if dry && ClusterError::is_there(&error) => Ok(()),
            Err(error) if ClusterError::is_there(&error) => {
                let found = api.get(name).await.map_err(|error| ClusterError::of(&what, &error))?;
                let policy = found.preemption_policy.as_deref().unwrap_or("PreemptLowerPriority");
                if found.value == value && policy == preemption { Ok(()) } else { Err(ClusterError::NotOwned { what }) }
            }
            Err(error) => Err(ClusterError::of(&what, &error)),
        }
    }

    /// Deletes a `PriorityClass` that Torpor made, if it is still the one that was seen.
    ///
    /// # Errors
    /// [`ClusterError`], classified.
    pub async fn delete_class(&self, name: &str, uid: &str) -> Result<(), ClusterError> {
        self.remove_class(name, uid).await?;
        self.lock().answered.remove(name);
        Ok(())
    }

    async fn remove_class(&self, name: &str, uid: &str) -> Result<(), ClusterError> {
        self.may_write()?;
        let api: Api<PriorityClass> = Api::all(self.client.clone());
        let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let answer = api.delete(name, &params).await;
        self.metrics.api_write("delete", "PriorityClass");
        match answer {
            Ok(_) => Ok(()),
            // Another one of that name: whether it will do is asked next.
            Err(error) if ClusterError::is_not_found(&error) || ClusterError::is_conflict(&error) => Ok(()),
            Err(error) => Err(ClusterError::of(&format!("PriorityClass {name}"), &error)),
        }
    }
}

fn listing<K: ResourceExt>(seen: &mut Vec<String>, event: &watcher::Event<K>) {
    match event {
        watcher::Event::Init => seen.clear(),
        watcher::Event::InitApply(object) => seen.push(object.name_any()),
        watcher::Event::Apply(_) | watcher::Event::Delete(_) | watcher::Event::InitDone => {}
    }
}

fn forget<T>(map: &mut BTreeMap<String, T>, seen: &[String]) -> bool {
    let before = map.len();
    map.retain(|name, _| seen.contains(name));
    map.len() != before
}

fn taint_value(taint: &Taint) -> Value {
    let mut value = json!({"key": taint.key, "value": taint.value, "effect": taint.effect});
    if let Some(added) = taint.time_added {
        value["timeAdded"] = json!(Time(added));
    }
    value
}

/// Whether pools need not care: a kubelet writes its node's status often, and says the same. What is known is replaced afterwards.
fn is_like(known: &mut Node, new: &Node) -> bool {
    known.version.clone_from(&new.version);
    known == new
}

fn read_node(node: &ApiNode) -> Node {
    let status = node.status.as_ref();
    let allocatable =
        |key: &str| status.and_then(|status| status.allocatable.as_ref()?.get(key)).map(|quantity| quantity.0.clone());
    let ready = status
        .and_then(|status| status.conditions.as_ref())
        .is_some_and(|conditions| conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True"));
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let handlers = status.and_then(|status| status.runtime_handlers.as_ref());
    Node {
        name: node.name_any(),
        version: node.resource_version().unwrap_or_default(),
        labels: node.labels().clone(),
        taints: taints
            .into_iter()
            .map(|taint| Taint {
                key: taint.key,
                value: taint.value.unwrap_or_default(),
                effect: taint.effect,
                time_added: taint.time_added.map(|time| time.0),
            })
            .collect(),
        marks: node.annotations().get(annotation::NODE_POOL).map(|text| Marks::parse(text)).unwrap_or_default(),
        ready: ready && node.spec.as_ref().is_none_or(|spec| spec.unschedulable != Some(true)),
        cpu: allocatable("cpu").and_then(|text| Cpu::parse(&text).ok()).unwrap_or_default().0,
        memory: allocatable("memory").and_then(|text| Bytes::parse(&text).ok()).unwrap_or_default().0,
        pods: allocatable("pods").and_then(|text| text.parse().ok()).unwrap_or_default(),
        user_namespaces: handlers.map(|handlers| {
            handlers.iter().any(|h| h.features.as_ref().is_some_and(|f| f.user_namespaces == Some(true)))
        }),
    }
}

//! `WorkerPool`: nodes that serve tiers.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::common::{CEL_DNS_LABEL, CEL_DURATION, DNS_LABEL_MESSAGE, DURATION_MESSAGE, Tier};
use super::conditions::{Condition, STALLED, reasons};

fn default_max_tenants() -> i32 {
    100
}

/// The wanted nodes and priority of one pool.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "torpor.dev",
    version = "v1alpha1",
    kind = "WorkerPool",
    plural = "workerpools",
    shortname = "wp",
    category = "torpor",
    status = "WorkerPoolStatus",
    derive = "PartialEq",
    cel,
    doc = "A WorkerPool is a group of nodes on which tenants of some tiers run, with the priority of their pods.",
    validation = Rule::new("self.metadata.name.size() <= 63 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("metadata.name must be a DNS label of at most 63 characters: it becomes a node label's value").field_path(".metadata.name"),
    validation = Rule::new("!('torpor.dev/pool' in self.spec.nodeSelector) || self.spec.nodeSelector['torpor.dev/pool'] == self.metadata.name").message("nodeSelector torpor.dev/pool must be the name of the WorkerPool"),
    printcolumn(name = "Tiers", type_ = "string", json_path = ".spec.tiers"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes.ready"),
    printcolumn(name = "Tenants", type_ = "integer", json_path = ".status.tenants"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Dedicated", type_ = "boolean", json_path = ".spec.dedicated", priority = 1),
    printcolumn(name = "Priority", type_ = "integer", json_path = ".spec.priority.value", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1)
)]
#[serde(rename_all = "camelCase")]
pub struct WorkerPoolSpec {
    /// Tiers whose tenants may run here, for example `[free]`. At least one.
    #[schemars(length(min = 1, max = 4))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub tiers: Vec<Tier>,
    /// Labels that find the pool's nodes. A selector `torpor.dev/pool: <name of the pool>` adopts nodes labelled so by others; with any other selector the operator puts that label on the nodes it finds.
    #[schemars(extend("minProperties" = 1, "maxProperties" = 16, "additionalProperties" = {"type": "string", "maxLength": 63}))]
    #[x_kube(
        validation = Rule::new(r"self.all(k, k.matches('^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[a-zA-Z0-9]([-_.a-zA-Z0-9]{0,61}[a-zA-Z0-9])?$'))")
            .message("nodeSelector keys must be label keys like torpor.dev/pool"),
        validation = Rule::new("self.all(k, self[k].matches('^([a-zA-Z0-9]([-_.a-zA-Z0-9]*[a-zA-Z0-9])?)?$'))")
            .message("nodeSelector values must be label values: letters, digits, '-', '_' and '.'")
    )]
    pub node_selector: BTreeMap<String, String>,
    /// Puts a taint on the pool's nodes so that only tenants of its tiers run there. Default false.
    #[serde(default)]
    pub dedicated: bool,
    /// PriorityClass of the pods that run here.
    pub priority: PoolPriority,
    /// Most tenants on one node. Default 100. Recorded for placement; not enforced by this version.
    #[serde(default = "default_max_tenants")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_tenants_per_node: i32,
    /// Weights of the load score. Recorded for placement; no effect in this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scoring: Option<Scoring>,
    /// Bounds and thresholds of scaling out. Recorded for placement; no effect in this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,
    /// Whether the pool's nodes are spot or preemptible ones. Default false. Recorded for placement; no effect in this version.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub spot: bool,
}

/// Whether pods of a PriorityClass may push out others.
#[derive(Serialize, Deserialize, schemars::JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preemption {
    /// Pods of lower priority make room.
    #[default]
    PreemptLowerPriority,
    /// Pods wait for room.
    Never,
}

/// PriorityClass that the operator keeps for the pool.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PoolPriority {
    /// Name of the PriorityClass, for example `torpor-low`. It is the class that the tier catalogue gives to the pool's tiers.
    #[schemars(length(max = 63))]
    #[x_kube(
        validation = Rule::new(CEL_DNS_LABEL).message(DNS_LABEL_MESSAGE),
        validation = Rule::new("!self.startsWith('system-')").message("priority.class must not start with system-")
    )]
    pub class: String,
    /// Priority of the pods, higher first. A change replaces the PriorityClass; pods that exist keep their old value.
    #[schemars(range(min = -1_000_000_000, max = 1_000_000_000))]
    pub value: i32,
    /// Whether these pods may push out pods of lower priority. Default `PreemptLowerPriority`.
    #[serde(default)]
    pub preemption: Preemption,
}

/// Weights of the parts of a node's load score; only their proportions count.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Scoring {
    /// Weight of CPU use. Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub cpu_weight: Option<i32>,
    /// Weight of memory use. Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub memory_weight: Option<i32>,
    /// Weight of the number of tenants. Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub tenant_weight: Option<i32>,
}

fn default_cpu_percent() -> i32 {
    70
}

fn default_percent() -> i32 {
    80
}

fn default_window() -> String {
    "10m".to_owned()
}

/// Bounds and thresholds of scaling out.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.min <= self.max").message("autoscaling.min must not be larger than autoscaling.max"))]
pub struct Autoscaling {
    /// Least number of nodes.
    #[schemars(range(min = 0, max = 5000))]
    pub min: i32,
    /// Largest number of nodes.
    #[schemars(range(min = 1, max = 5000))]
    pub max: i32,
    /// CPU use in percent of allocatable at which the pool grows. Default 70.
    #[serde(default = "default_cpu_percent")]
    #[schemars(range(min = 1, max = 100))]
    pub cpu_percent: i32,
    /// Memory use in percent of allocatable at which the pool grows. Default 80.
    #[serde(default = "default_percent")]
    #[schemars(range(min = 1, max = 100))]
    pub memory_percent: i32,
    /// Tenants in percent of `maxTenantsPerNode` at which the pool grows. Default 80.
    #[serde(default = "default_percent")]
    #[schemars(range(min = 1, max = 100))]
    pub tenant_percent: i32,
    /// How long a threshold must hold, like `10m`. Default `10m`.
    #[serde(default = "default_window")]
    #[schemars(length(max = 20))]
    #[x_kube(validation = Rule::new(CEL_DURATION).message(DURATION_MESSAGE))]
    pub window: String,
}

impl WorkerPool {
    /// Whether all that is asked for was handled, by `status.observedGeneration`, and nothing of it was refused.
    pub fn is_accepted(&self) -> bool {
        let refused = |condition: &Condition| condition.type_ == STALLED && condition.reason == reasons::REFUSED;
        self.status.as_ref().is_some_and(|status| {
            status.observed_generation == self.metadata.generation && !status.conditions.iter().any(refused)
        })
    }
}

/// What was seen of the pool.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct WorkerPoolStatus {
    /// The `metadata.generation` that was last handled in full; -1 before the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Reconciling and Stalled, each with a reason and a message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Nodes of the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodeCount>,
    /// Sums of what the pool's nodes offer to pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocatable: Option<Allocatable>,
    /// Tenants of the tiers this pool serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenants: Option<i32>,
}

/// Number of nodes, found and ready.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeCount {
    /// Nodes that belong to the pool.
    pub total: i32,
    /// Nodes of these that are ready.
    pub ready: i32,
}

/// Sums of what nodes offer to pods.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq, Eq)]
pub struct Allocatable {
    /// CPU, for example `64` or `63500m`.
    #[schemars(length(max = 20))]
    pub cpu: String,
    /// Memory, for example `256Gi`.
    #[schemars(length(max = 20))]
    pub memory: String,
    /// Number of pods.
    pub pods: i64,
}

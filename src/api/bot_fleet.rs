//! `BotFleet`: bots that share one configuration.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::common::{
    CEL_DNS_LABEL, CEL_IMAGE, CEL_STORAGE, CEL_STORAGE_KEEPS, DNS_LABEL_MESSAGE, IMAGE_MESSAGE, Resources,
    STORAGE_MESSAGE,
};
use super::conditions::Condition;

/// Default bot image: the first release with `hbot start --foreground`, which stops gracefully on SIGTERM.
pub const BOT_IMAGE: &str = "hummingbot/hummingbot:version-2.16.0";
/// Longest name of a BotFleet: the StatefulSet, its revision label and its claims stay legal.
pub const MAX_FLEET_NAME: usize = 40;

fn default_replicas() -> i32 {
    1
}

fn default_image() -> String {
    BOT_IMAGE.to_owned()
}

fn default_storage() -> String {
    "500Mi".to_owned()
}

fn default_grace() -> i64 {
    120
}

/// The wanted bots of one fleet.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "torpor.dev",
    version = "v1alpha1",
    kind = "BotFleet",
    plural = "botfleets",
    shortname = "bf",
    category = "torpor",
    namespaced,
    status = "BotFleetStatus",
    derive = "PartialEq",
    cel,
    doc = "A BotFleet is a number of Hummingbot bots with one configuration, in the namespace of its tenant. One pod is one bot with a volume of its own.",
    scale(spec_replicas_path = ".spec.replicas", status_replicas_path = ".status.replicas", label_selector_path = ".status.selector"),
    validation = Rule::new("self.metadata.name.size() <= 40").message("metadata.name must be at most 40 characters").field_path(".metadata.name"),
    validation = Rule::new("self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("metadata.name must be a DNS label: lower case letters, digits and '-'").field_path(".metadata.name"),
    printcolumn(name = "Wanted", type_ = "integer", json_path = ".spec.replicas"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Bots", type_ = "integer", json_path = ".status.readyReplicas"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Image", type_ = "string", json_path = ".spec.image", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1)
)]
#[serde(rename_all = "camelCase")]
pub struct BotFleetSpec {
    /// Number of bots. Default 1. The tier's bots go to the oldest fleet first, by number and size, and what is left over is not started; a smaller number stops the highest ones gracefully and keeps their volumes.
    #[serde(default = "default_replicas")]
    #[schemars(range(min = 0, max = 200))]
    pub replicas: i32,
    /// Hummingbot image, version 2.16.0 or later. Default `hummingbot/hummingbot:version-2.16.0`. A change restarts this fleet's bots one at a time.
    #[serde(default = "default_image")]
    #[schemars(length(max = 300))]
    #[x_kube(validation = Rule::new(CEL_IMAGE).message(IMAGE_MESSAGE))]
    pub image: String,
    /// What the bots trade with.
    pub strategy: Strategy,
    /// Secret in the tenant's namespace whose keys `<exchange>.json` hold exchange credentials and whose key `HBOT_PASSWORD` holds the keystore password. Default: none, for paper trading.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    #[x_kube(
        validation = Rule::new(CEL_DNS_LABEL).message(DNS_LABEL_MESSAGE),
        validation = Rule::new("self != 'torpor-generated'").message(OWN_SECRET)
    )]
    pub credentials_secret: Option<String>,
    /// CPU and memory limits of one bot. All bots together stay within the tier. Default 200m and 512Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Size of each bot's volume (trades database and logs). Default `500Mi`. It can grow where the StorageClass allows it, and never shrink.
    #[serde(default = "default_storage")]
    #[schemars(length(max = 20))]
    #[x_kube(
        validation = Rule::new(CEL_STORAGE).message(STORAGE_MESSAGE),
        validation = Rule::new(CEL_STORAGE_KEEPS).message("storage of a fleet cannot shrink")
    )]
    pub storage: String,
    /// Stops this fleet's bots gracefully and keeps their volumes. Default false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// Seconds a bot has to cancel its orders when it is stopped. Default 120; exchanges that cancel slowly need more (XRPL 660). Its pod has 600 more, for a bot that is stopped while it starts.
    #[serde(default = "default_grace")]
    #[schemars(range(min = 120, max = 3600))]
    pub termination_grace_period_seconds: i64,
}

impl BotFleetSpec {
    /// Bots that it asks for: none while paused.
    pub const fn wanted(&self) -> i32 {
        if self.paused { 0 } else { self.replicas }
    }
}

/// Kind of Hummingbot configuration.
#[derive(Serialize, Deserialize, schemars::JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum StrategyKind {
    /// A V2 script configuration (`conf/scripts`), naming its script with `script_file_name`.
    Script,
    /// A single controller configuration (`conf/controllers`).
    Controller,
    /// A V1 strategy configuration (`conf/strategies`).
    V1,
}

/// A strategy: its kind, and its configuration either inline or in a ConfigMap.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.config) != has(self.configMapRef)")
        .message("strategy needs exactly one of config and configMapRef")
)]
pub struct Strategy {
    /// script (V2 script), controller (one V2 controller) or v1 (V1 strategy).
    pub kind: StrategyKind,
    /// The configuration file's text (YAML, at most 32768 characters). `${BOT_INDEX}` and `${BOT_NAME}` are replaced for each bot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32768))]
    pub config: Option<String>,
    /// A ConfigMap in the tenant's namespace that holds the configuration file. A change of its contents restarts the fleet's bots one at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_ref: Option<Box<ConfigMapRef>>,
}

/// Why a fleet cannot use it: it holds the passwords of the tenant's database.
pub const OWN_SECRET: &str = "must not be Torpor's own Secret";
/// Why such a name is refused: a fleet is not told of changes of what Torpor writes itself.
const OWN_CONFIG_MAP: &str = "must not be one of Torpor's own ConfigMaps: postgres, redis, bots-...";

fn default_key() -> String {
    "config.yml".to_owned()
}

/// A key of a ConfigMap in the same namespace.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapRef {
    /// Name of the ConfigMap.
    #[schemars(length(max = 63))]
    #[x_kube(
        validation = Rule::new(CEL_DNS_LABEL).message(DNS_LABEL_MESSAGE),
        validation = Rule::new("!self.startsWith('bots-') && self != 'postgres' && self != 'redis'").message(OWN_CONFIG_MAP)
    )]
    pub name: String,
    /// Key that holds the configuration file. Default `config.yml`.
    #[serde(default = "default_key")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[-._a-zA-Z0-9]+$')").message("must be a ConfigMap key: letters, digits, '-', '_' and '.'"))]
    pub key: String,
}

impl BotFleet {
    /// Whether all that is asked for was handled, by `status.observedGeneration`.
    pub fn is_observed(&self) -> bool {
        self.status.as_ref().and_then(|status| status.observed_generation) == self.metadata.generation
    }
}

/// What was seen of the fleet.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BotFleetStatus {
    /// The `metadata.generation` that was last handled in full; -1 before the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Reconciling, Stalled and Hibernated, each with a reason and a message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Bots that should run now: `spec.replicas` within the tier, 0 while paused or asleep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired_replicas: Option<i32>,
    /// Bots that exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Bots that are ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_replicas: Option<i32>,
    /// Label selector of the fleet's pods, for `kubectl scale` and autoscalers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub selector: Option<String>,
}

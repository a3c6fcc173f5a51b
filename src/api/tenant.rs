//! `Tenant`: one customer's whole stack.

use jiff::Timestamp;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::bot_fleet::BotFleetSpec;
use super::common::{
    CEL_DNS_LABEL, CEL_DURATION, CEL_IMAGE, CEL_STORAGE, CEL_STORAGE_KEEPS, DNS_LABEL_MESSAGE, DURATION_MESSAGE,
    IMAGE_MESSAGE, Resources, STORAGE_MESSAGE, Tier, cel_not_shorter,
};
use super::conditions::Condition;
use crate::domain::stage::Stage;

/// Longest name of a Tenant: names built on it (`tenant-<name>`) stay DNS labels.
pub const MAX_TENANT_NAME: usize = 40;

/// The wanted stack of one customer.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "torpor.dev",
    version = "v1alpha1",
    kind = "Tenant",
    plural = "tenants",
    shortname = "tn",
    category = "torpor",
    status = "TenantStatus",
    derive = "PartialEq",
    cel,
    doc = "A Tenant is one customer of the trading-bot service: PostgreSQL, Redis, dashboard, metrics exporter and bots in a namespace of its own.",
    validation = Rule::new("self.metadata.name.size() <= 40").message("metadata.name must be at most 40 characters").field_path(".metadata.name"),
    validation = Rule::new("self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("metadata.name must be a DNS label: lower case letters, digits and '-'").field_path(".metadata.name"),
    printcolumn(name = "Tier", type_ = "string", json_path = ".spec.tier"),
    printcolumn(name = "Stage", type_ = "string", json_path = ".status.hibernation.stage"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Bots", type_ = "integer", json_path = ".status.bots.ready"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Desired", type_ = "integer", json_path = ".status.bots.desired", priority = 1),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", priority = 1),
    printcolumn(name = "Next", type_ = "string", json_path = ".status.hibernation.decision.nextTransitionTime", priority = 1),
    printcolumn(name = "Held", type_ = "string", json_path = ".status.conditions[?(@.type==\"SleepHeld\")].reason", priority = 1),
    printcolumn(name = "Namespace", type_ = "string", json_path = ".status.namespace", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1)
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.tier != 'free' || !has(self.hibernation) || !has(self.hibernation.mode) || self.hibernation.mode == 'Auto'")
        .message("hibernation.mode must be Auto for tier free"),
    validation = Rule::new("self.tier != 'free' || !has(self.hibernation) || !(has(self.hibernation.stopBotsAfter) || has(self.hibernation.stopServicesAfter) || has(self.hibernation.databaseOnlyAfter))")
        .message("hibernation durations cannot be changed for tier free"),
    validation = Rule::new("!has(self.fleets) || self.fleets.all(f, self.fleets.exists_one(g, g.name == f.name))")
        .message("fleet names must be unique"),
    validation = Rule::new("(has(self.redis) && has(self.redis.storage)) == (has(oldSelf.redis) && has(oldSelf.redis.storage))")
        .message("redis.storage can only be set or left out when the Tenant is created")
)]
pub struct TenantSpec {
    /// Service tier: free, basic, pro or premium. Sets bots, CPU, memory, pool, priority and hibernation.
    pub tier: Tier,
    /// Name for people, shown in reports. Has no effect on the stack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 200))]
    pub display_name: Option<String>,
    /// Billing stop: bots are stopped gracefully at once, then only the database stays, with its least size. Default false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspended: bool,
    /// When an idle tenant sleeps. Default: the tier's policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hibernation: Option<Hibernation>,
    /// Fleets of bots; each becomes a BotFleet object in the tenant's namespace. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub fleets: Vec<TenantFleet>,
    /// PostgreSQL of this tenant.
    #[serde(default)]
    pub database: Database,
    /// Redis of this tenant. Default: the tier's size, contents in memory only.
    #[serde(default)]
    pub redis: Redis,
    /// Dashboard of this tenant. Default: the tier's size.
    #[serde(default)]
    pub dashboard: Dashboard,
    /// What happens to namespace, volumes and Secret when the Tenant is deleted: Retain (default) keeps them for a new Tenant of the same name, Delete removes them.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

/// What happens to a tenant's data when its Tenant object is deleted.
#[derive(Serialize, Deserialize, schemars::JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeletionPolicy {
    /// Namespace, volumes and Secret stay.
    #[default]
    Retain,
    /// The namespace with all it holds is removed after the last bot has stopped.
    Delete,
}

/// Auto sleeps by itself, Prompt asks first, Never does not sleep. Default: the tier's mode. Tier free is always Auto.
#[derive(Serialize, Deserialize, schemars::JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HibernationMode {
    /// Sleeps by itself when idle.
    Auto,
    /// Asks its user first.
    Prompt,
    /// Never sleeps by itself.
    Never,
}

/// Overrides of the tier's hibernation policy.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(cel_not_shorter("self.stopBotsAfter", "self.stopServicesAfter"))
        .message("hibernation.stopServicesAfter must not be shorter than stopBotsAfter"),
    validation = Rule::new(cel_not_shorter("self.stopServicesAfter", "self.databaseOnlyAfter"))
        .message("hibernation.databaseOnlyAfter must not be shorter than stopServicesAfter"),
    validation = Rule::new(cel_not_shorter("self.stopBotsAfter", "self.databaseOnlyAfter"))
        .message("hibernation.databaseOnlyAfter must not be shorter than stopBotsAfter")
)]
pub struct Hibernation {
    /// Auto sleeps by itself, Prompt asks first, Never does not sleep. Default: the tier's mode. Tier free is always Auto.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<HibernationMode>,
    /// Idle time after which bots stop, like `7d` or `36h` (units s, m, h, d). Default: the tier's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 20))]
    #[x_kube(validation = Rule::new(CEL_DURATION).message(DURATION_MESSAGE))]
    pub stop_bots_after: Option<String>,
    /// Idle time after which dashboard and Redis stop. Default: the tier's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 20))]
    #[x_kube(validation = Rule::new(CEL_DURATION).message(DURATION_MESSAGE))]
    pub stop_services_after: Option<String>,
    /// Idle time after which only the database stays, with its least size. Default: the tier's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 20))]
    #[x_kube(validation = Rule::new(CEL_DURATION).message(DURATION_MESSAGE))]
    pub database_only_after: Option<String>,
}

/// A fleet written inside its Tenant: a name and the fields of a BotFleet.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TenantFleet {
    /// Name of the fleet and of the BotFleet object: a DNS label of at most 40 characters.
    #[schemars(length(max = 40))]
    #[x_kube(validation = Rule::new(CEL_DNS_LABEL).message(DNS_LABEL_MESSAGE))]
    pub name: String,
    /// The fleet itself.
    #[serde(flatten)]
    pub spec: BotFleetSpec,
}

fn default_database_image() -> String {
    DATABASE_IMAGE.to_owned()
}

fn default_database_storage() -> String {
    "5Gi".to_owned()
}

/// Default PostgreSQL image. Like the others it is a default of the schema, which is stored with the Tenant: a new operator version never
/// changes the image of a tenant that exists.
pub const DATABASE_IMAGE: &str = "postgres:17.11-bookworm";
/// Default Redis image.
pub const REDIS_IMAGE: &str = "redis:7.2.16-bookworm";
/// Default dashboard image.
pub const DASHBOARD_IMAGE: &str = "hummingbot/dashboard:latest";

/// The tenant's PostgreSQL.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(self.image.contains('@') && !self.image.matches('^[^@]*:[0-9]+[^/@]*@')) || (oldSelf.image.contains('@') && !oldSelf.image.matches('^[^@]*:[0-9]+[^/@]*@')) || self.image.find(':[0-9]+[^/]*$').find('[0-9]+') == oldSelf.image.find(':[0-9]+[^/]*$').find('[0-9]+')")
        .message("the major version of database.image cannot change in place")
)]
pub struct Database {
    /// PostgreSQL image of the official, Debian-based layout (user 999). Default `postgres:17.11-bookworm`. A change restarts the database; its major version cannot change.
    #[serde(default = "default_database_image")]
    #[schemars(length(max = 300))]
    #[x_kube(validation = Rule::new(CEL_IMAGE).message(IMAGE_MESSAGE))]
    pub image: String,
    /// Size of the data volume. Default `5Gi`. It can grow where the StorageClass allows it, and never shrink.
    #[serde(default = "default_database_storage")]
    #[schemars(length(max = 20))]
    #[x_kube(
        validation = Rule::new(CEL_STORAGE).message(STORAGE_MESSAGE),
        validation = Rule::new(CEL_STORAGE_KEEPS).message("database.storage cannot shrink")
    )]
    pub storage: String,
    /// CPU and memory limits. All services together stay within the tier. Default: the tier's share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
}

impl Default for Database {
    fn default() -> Self {
        Self { image: default_database_image(), storage: default_database_storage(), resources: None }
    }
}

fn default_redis_image() -> String {
    REDIS_IMAGE.to_owned()
}

/// The tenant's Redis.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Redis {
    /// Redis image of the official layout (user 999). Default `redis:7.2.16-bookworm`.
    #[serde(default = "default_redis_image")]
    #[schemars(length(max = 300))]
    #[x_kube(validation = Rule::new(CEL_IMAGE).message(IMAGE_MESSAGE))]
    pub image: String,
    /// Size of a volume for its snapshots. Default: none, contents are lost on a restart. Chosen when the Tenant is created: it cannot be added or left out later, and can grow but never shrink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 20))]
    #[x_kube(
        validation = Rule::new(CEL_STORAGE).message(STORAGE_MESSAGE),
        validation = Rule::new(CEL_STORAGE_KEEPS).message("redis.storage cannot shrink")
    )]
    pub storage: Option<String>,
    /// CPU and memory limits. All services together stay within the tier. Default: the tier's share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
}

impl Default for Redis {
    fn default() -> Self {
        Self { image: default_redis_image(), storage: None, resources: None }
    }
}

fn default_dashboard_image() -> String {
    DASHBOARD_IMAGE.to_owned()
}

/// The tenant's dashboard.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Dashboard {
    /// Dashboard image, serving port 8501. Default `hummingbot/dashboard:latest`.
    #[serde(default = "default_dashboard_image")]
    #[schemars(length(max = 300))]
    #[x_kube(validation = Rule::new(CEL_IMAGE).message(IMAGE_MESSAGE))]
    pub image: String,
    /// Host name under which the dashboard is reached, for example `alice.bots.example.com`. Makes an Ingress where the operator has an IngressClass, and is given to the dashboard's Service as the annotation `torpor.dev/host`. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?([.][a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$')").message("must be a host name like alice.bots.example.com, without scheme, port or path"), validation = Rule::new("!self.matches('^[0-9.]+$')").message("must be a host name like alice.bots.example.com, not an address"))]
    pub host: Option<String>,
    /// CPU and memory limits. All services together stay within the tier. Default: the tier's share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
}

impl Default for Dashboard {
    fn default() -> Self {
        Self { image: default_dashboard_image(), host: None, resources: None }
    }
}

impl Tenant {
    /// Whether all that is asked for was handled, by `status.observedGeneration`.
    pub fn is_observed(&self) -> bool {
        self.status.as_ref().and_then(|status| status.observed_generation) == self.metadata.generation
    }
}

/// What was seen of the tenant's stack, and what was decided for it.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TenantStatus {
    /// The `metadata.generation` that was last handled in full; -1 before the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Reconciling, Stalled and Hibernated, each with a reason and a message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Namespace of the tenant's stack, `tenant-<name>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub namespace: Option<String>,
    /// Bots of all fleets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bots: Option<BotCount>,
    /// When the tenant's user was last seen. It only moves forward. Missing counts from creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_activity_time: Option<Timestamp>,
    /// What the tenant's user asked for through the gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<UserRequests>,
    /// Sleep: what is and what should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hibernation: Option<HibernationStatus>,
    /// The last wake-up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wake: Option<WakeStatus>,
    /// Where the tenant's pods may run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// What the tenant asks of the cluster at its present stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
    /// Volumes kept of bots that no fleet runs any more, as `<claim name>`; at most 100 are listed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), inner(length(max = 253)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub retained_volumes: Vec<String>,
}

/// Number of bots, wanted and ready.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq, Eq)]
pub struct BotCount {
    /// Bots that should run at the present stage.
    pub desired: i32,
    /// Bots that are ready.
    pub ready: i32,
}

/// What a user asked for, as the gateway wrote it. The annotations of the same meaning count, too; the newer one wins.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct UserRequests {
    /// When waking was asked for. It counts as activity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wake_requested_at: Option<Timestamp>,
    /// When sleep was asked for. It holds until newer activity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sleep_requested_at: Option<Timestamp>,
    /// When the user agreed to sleep, in mode Prompt. It counts for the idle period in which it was given: from the newest activity before it to the next one after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hibernation_approved_at: Option<Timestamp>,
}

/// Sleep of a tenant: the hibernator writes `decision`, the operator writes the rest.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HibernationStatus {
    /// The stage the stack is at: Active, BotsStopped, ServicesStopped or DatabaseOnly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
    /// Since when it is at this stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// When `spec.suspended` was first seen; absent while the tenant is not suspended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspended_since: Option<Timestamp>,
    /// When the last suspension was lifted. It counts as activity, so the tenant wakes and its idle time starts anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed_at: Option<Timestamp>,
    /// What the hibernator decided.
    // On the heap: every Tenant of the cluster is kept in memory, and without a hibernator none has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Box<Decision>>,
}

/// A decision to sleep. It is obeyed only while `basedOn` is still the newest activity.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// The stage the tenant should be at.
    pub stage: Stage,
    /// The activity the decision was based on; a newer one makes it void.
    pub based_on: Timestamp,
    /// The stage that idleness alone had led to, where a suspension or a request leads to a deeper one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_stage: Option<Stage>,
    /// When it was decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided_at: Option<Timestamp>,
    /// Why, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub reason: Option<String>,
    /// When the next stage is due if no activity comes; a time that has come where it waits for its turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_transition_time: Option<Timestamp>,
    /// The deadline that the user was last warned of. No deeper stage is entered before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warned_for: Option<Timestamp>,
    /// The stage that this warning named. No deeper one is entered without another warning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warned_stage: Option<Stage>,
    /// The deadline for which the user was asked, in mode Prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_for: Option<Timestamp>,
    /// The stage that this question was about. No deeper one is entered for its answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_stage: Option<Stage>,
    /// The activity for whose idle period `torpor.dev/hibernate: approved` was given, or approval through the gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved_for: Option<Timestamp>,
    /// Why a due sleep is held back; absent when nothing is held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub held: Option<String>,
}

/// The last wake-up of the tenant.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct WakeStatus {
    /// When it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_at: Option<Timestamp>,
    /// When everything was ready again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_at: Option<Timestamp>,
    /// Seconds between the two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<i64>,
    /// How far each part is, in the order in which they come up; only while the wake-up is under way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub parts: Vec<WakePart>,
}

impl WakeStatus {
    /// When the wake-up was asked for that is still under way.
    pub fn under_way_since(&self) -> Option<Timestamp> {
        self.requested_at.filter(|_| self.ready_at.is_none())
    }
}

/// One part of a stack that is being woken.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
pub struct WakePart {
    /// The part: postgres, redis, monitoring, dashboard or bots.
    #[schemars(length(max = 63))]
    pub name: String,
    /// How far it is.
    pub state: PartState,
    /// What it waits for, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
}

/// How far a part of a stack is on its way up.
#[derive(Serialize, Deserialize, schemars::JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PartState {
    /// Its turn has not come.
    Waiting,
    /// It still stops, from the way down.
    Stopping,
    /// It was started and is not ready.
    Starting,
    /// It works.
    Ready,
}

/// Where a tenant's pods may run.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    /// Worker pools that serve the tenant's tier, by name.
    // Written also when it is empty: server-side apply turns an object whose last field goes into null, which the schema
    // refuses.
    #[serde(default)]
    #[schemars(length(max = 32), inner(length(max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub pools: Vec<String>,
}

impl Placement {
    /// The most pools that the schema takes.
    pub const MOST: usize = 32;
}

/// What a tenant asks of the cluster at its present stage, as sums over its pods.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Cost {
    /// Sum of CPU requests, for example `1600m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 20))]
    pub cpu: Option<String>,
    /// Sum of memory requests, for example `1792Mi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 20))]
    pub memory: Option<String>,
}

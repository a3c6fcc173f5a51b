//! What a Tenant goes through, one workflow for each thing that somebody can ask for.

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::api::Api;
use crate::request::text;

const TENANTS: &str = "/apis/torpor.dev/v1alpha1/tenants";
const FLEETS: &str = "/apis/torpor.dev/v1alpha1";
const POOLS: &str = "/apis/torpor.dev/v1alpha1/workerpools";
/// Name of the fleet that a user makes, and of the ConfigMap that it refers to.
pub const OWN: &str = "own";
/// The script that its ConfigMap names when it has been changed.
const CHANGED: &str = "b.py";
/// Finds the nodes of a pool that is made for a run.
const NODE_LABEL: &str = "chaos.torpor.dev/nodes";

/// One thing that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The Tenant is created. `true`: with it everything is to be deleted.
    Create {
        /// Whether its data goes with it.
        delete_data: bool,
    },
    /// The fleet's configuration changes and Redis grows: pods are replaced.
    ChangeSpec,
    /// A fleet goes and another comes.
    ChangeFleets,
    /// basic becomes pro.
    ChangeTier,
    /// The bots' and the database's volumes grow.
    GrowVolumes,
    /// Sleep is asked for.
    RequestSleep,
    /// The hibernator decides on a stage.
    Decide(&'static str),
    /// Somebody logs in.
    Wake,
    /// Suspended, or no more.
    Suspend(bool),
    /// The dashboard gets a host, or loses it.
    Host(bool),
    /// The user makes a fleet of their own, with credentials, whose configuration stands in a ConfigMap.
    CreateFleet,
    /// That ConfigMap changes: the fleet's bot restarts.
    ChangeReference,
    /// The user deletes that fleet.
    DeleteFleet,
    /// The Tenant is deleted.
    Delete,
    /// The operator starts anew with another catalogue, by which bots are smaller and databases larger: pods are replaced.
    ChangeCatalog,
    /// A WorkerPool and two nodes for it come.
    CreatePool,
    /// The pool gets other nodes, and keeps them for itself.
    ChangePool,
    /// The pool goes.
    DeletePool,
}

/// When a step has been carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// The Tenant is Ready and awake.
    Ready,
    /// The Tenant sleeps at that stage.
    Asleep(&'static str),
    /// The Tenant has gone.
    Gone,
    /// The Tenant and its namespace have gone.
    NamespaceGone,
    /// The Tenant is, and so is the user's own fleet.
    FleetReady,
    /// Both are, and its bot has the text that was changed.
    FleetReads,
    /// The user's own fleet has gone, and the Tenant is Ready.
    FleetGone,
    /// The WorkerPool is Ready.
    PoolReady,
    /// The WorkerPool has gone.
    PoolGone,
}

/// Which way the number of pods of each workload may go meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pods {
    /// Never up.
    Stop,
    /// Never down.
    Start,
    /// Either way.
    Any,
}

/// A workflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workflow {
    /// Its name.
    pub name: &'static str,
    /// Undisturbed steps before, each with its goal.
    pub before: &'static [(Step, Goal)],
    /// The step that is disturbed.
    pub step: Step,
    /// Its goal.
    pub goal: Goal,
    /// What may become of the pods of its workloads.
    pub pods: Pods,
}

/// A tenant is made.
pub const MADE: (Step, Goal) = (Step::Create { delete_data: false }, Goal::Ready);
const MADE_TO_DELETE: (Step, Goal) = (Step::Create { delete_data: true }, Goal::Ready);
/// It sleeps because somebody asked for it.
pub const ASLEEP: (Step, Goal) = (Step::RequestSleep, Goal::Asleep("DatabaseOnly"));
/// Somebody logs in and it is awake.
pub const WOKEN: (Step, Goal) = (Step::Wake, Goal::Ready);
const BOTS_STOPPED: (Step, Goal) = (Step::Decide("BotsStopped"), Goal::Asleep("BotsStopped"));
const SERVICES_STOPPED: (Step, Goal) = (Step::Decide("ServicesStopped"), Goal::Asleep("ServicesStopped"));
const SUSPENDED: (Step, Goal) = (Step::Suspend(true), Goal::Asleep("DatabaseOnly"));
const HOSTED: (Step, Goal) = (Step::Host(true), Goal::Ready);
const OWN_FLEET: (Step, Goal) = (Step::CreateFleet, Goal::FleetReady);
const FLEET_DELETED: (Step, Goal) = (Step::DeleteFleet, Goal::FleetGone);
const POOL: (Step, Goal) = (Step::CreatePool, Goal::PoolReady);

const fn workflow(
    name: &'static str,
    before: &'static [(Step, Goal)],
    (step, goal): (Step, Goal),
    pods: Pods,
) -> Workflow {
    Workflow { name, before, step, goal, pods }
}

/// Every workflow of the operator.
pub const ALL: [Workflow; 26] = [
    workflow("create", &[], MADE, Pods::Start),
    workflow("change-spec", &[MADE], (Step::ChangeSpec, Goal::Ready), Pods::Any),
    workflow("change-fleets", &[MADE], (Step::ChangeFleets, Goal::Ready), Pods::Any),
    workflow("change-tier", &[MADE], (Step::ChangeTier, Goal::Ready), Pods::Any),
    workflow("change-catalog", &[MADE], (Step::ChangeCatalog, Goal::Ready), Pods::Start),
    workflow("grow-volumes", &[MADE], (Step::GrowVolumes, Goal::Ready), Pods::Start),
    workflow("sleep", &[MADE], ASLEEP, Pods::Stop),
    workflow("stop-bots", &[MADE], BOTS_STOPPED, Pods::Stop),
    workflow("stop-services", &[MADE, BOTS_STOPPED], SERVICES_STOPPED, Pods::Stop),
    workflow(
        "database-only",
        &[MADE, SERVICES_STOPPED],
        (Step::Decide("DatabaseOnly"), Goal::Asleep("DatabaseOnly")),
        Pods::Stop,
    ),
    workflow("wake", &[MADE, ASLEEP], WOKEN, Pods::Start),
    workflow("suspend", &[MADE], SUSPENDED, Pods::Stop),
    workflow("resume", &[MADE, SUSPENDED], (Step::Suspend(false), Goal::Ready), Pods::Start),
    workflow("delete-retain", &[MADE], (Step::Delete, Goal::Gone), Pods::Stop),
    workflow("delete-asleep", &[MADE, ASLEEP], (Step::Delete, Goal::Gone), Pods::Stop),
    workflow("delete-data", &[MADE_TO_DELETE], (Step::Delete, Goal::NamespaceGone), Pods::Stop),
    workflow("adopt", &[MADE, (Step::Delete, Goal::Gone)], MADE, Pods::Start),
    workflow("add-host", &[MADE], HOSTED, Pods::Start),
    workflow("drop-host", &[MADE, HOSTED], (Step::Host(false), Goal::Ready), Pods::Start),
    workflow("own-fleet", &[MADE], OWN_FLEET, Pods::Start),
    workflow("change-reference", &[MADE, OWN_FLEET], (Step::ChangeReference, Goal::FleetReads), Pods::Start),
    workflow("end-fleet", &[MADE, OWN_FLEET], FLEET_DELETED, Pods::Stop),
    workflow("end-fleet-data", &[MADE_TO_DELETE, OWN_FLEET], FLEET_DELETED, Pods::Stop),
    workflow("create-pool", &[], POOL, Pods::Any),
    workflow("change-pool", &[POOL], (Step::ChangePool, Goal::PoolReady), Pods::Any),
    workflow("delete-pool", &[POOL], (Step::DeletePool, Goal::PoolGone), Pods::Any),
];

impl Workflow {
    /// Whether it is about a WorkerPool.
    pub fn is_of_pool(&self) -> bool {
        matches!(self.goal, Goal::PoolReady | Goal::PoolGone)
    }

    /// Whether what is asked for is asked of all tenants, or is about what all pools share, so that there can be one subject at a time.
    pub fn is_of_all(&self) -> bool {
        self.is_of_pool() || self.step == Step::ChangeCatalog
    }

    /// Whether volumes and Secret may go.
    pub fn drops_data(&self) -> bool {
        self.goal == Goal::NamespaceGone
    }

    /// Whether this volume may go.
    pub fn drops_volume(&self, name: &str) -> bool {
        let of_own_fleet = self.goal == Goal::FleetGone && self.before.contains(&MADE_TO_DELETE);
        self.drops_data() || of_own_fleet && name.starts_with("data-bots-own-")
    }
}

/// The namespace of a tenant.
pub fn namespace(subject: &str) -> String {
    format!("tenant-{subject}")
}

/// The path of a Tenant.
pub fn tenant_path(subject: &str) -> String {
    format!("{TENANTS}/{subject}")
}

fn pool_path(subject: &str) -> String {
    format!("{POOLS}/{subject}")
}

fn fleet(name: &str, replicas: i32, file: &str, storage: &str) -> Value {
    let strategy = json!({"kind": "script", "config": format!("script_file_name: {file}\n")});
    json!({"name": name, "replicas": replicas, "strategy": strategy, "storage": storage})
}

fn tenant(subject: &str, delete_data: bool) -> Value {
    let policy = if delete_data { "Delete" } else { "Retain" };
    let spec = json!({"tier": "basic", "deletionPolicy": policy, "fleets": [fleet("makers", 2, "a.py", "500Mi")]});
    json!({"apiVersion": "torpor.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": subject}, "spec": spec})
}

/// Where the user's own fleet lies, and the collection of its kind.
fn own(subject: &str, collection: &str) -> String {
    format!(
        "{}/namespaces/{}/{collection}",
        if collection == "botfleets" { FLEETS } else { "/api/v1" },
        namespace(subject)
    )
}

/// What the user's own fleet is made of: its credentials, its configuration, and itself.
fn own_fleet() -> [(&'static str, Value); 3] {
    let metadata = |name: &str| json!({"name": name});
    let keys = json!({"HBOT_PASSWORD": "change-me"});
    let reference = json!({"kind": "script", "configMapRef": {"name": OWN, "key": "own.yml"}});
    let spec = json!({"replicas": 1, "credentialsSecret": "keys", "strategy": reference, "storage": "500Mi"});
    [
        ("secrets", json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata("keys"), "stringData": keys})),
        (
            "configmaps",
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata(OWN), "data": own_text("a.py")}),
        ),
        (
            "botfleets",
            json!({"apiVersion": "torpor.dev/v1alpha1", "kind": "BotFleet", "metadata": metadata(OWN), "spec": spec}),
        ),
    ]
}

fn own_text(file: &str) -> Value {
    json!({"own.yml": format!("script_file_name: {file}\n")})
}

fn node(subject: &str, set: &str) -> Value {
    let resources = json!({"cpu": "4", "memory": "8Gi", "pods": "50"});
    json!({"apiVersion": "v1", "kind": "Node",
        "metadata": {"name": format!("{subject}-{set}"), "labels": {NODE_LABEL: format!("{subject}-{set}")},
            "annotations": {"kwok.x-k8s.io/node": "fake"}},
        "status": {"capacity": resources, "allocatable": resources}})
}

fn pool(subject: &str) -> Value {
    json!({"apiVersion": "torpor.dev/v1alpha1", "kind": "WorkerPool", "metadata": {"name": subject},
        "spec": {"tiers": ["premium"], "nodeSelector": {NODE_LABEL: format!("{subject}-a")},
            "priority": {"class": "torpor-critical", "value": 1_000_000}}})
}

impl Step {
    /// Asks for it. A catalogue is changed by [`crate::rig::Rig::ask`].
    pub async fn ask(self, api: &Api, subject: &str) -> Result<()> {
        let change = |spec: Value| json!({"spec": spec});
        let path = tenant_path(subject);
        match self {
            Self::Create { delete_data } => api.create(TENANTS, &tenant(subject, delete_data)).await,
            Self::ChangeSpec => {
                let redis = json!({"resources": {"memory": "96Mi"}});
                api.patch(&path, &change(json!({"fleets": [fleet("makers", 2, "b.py", "500Mi")], "redis": redis})))
                    .await
            }
            Self::ChangeFleets => {
                api.patch(&path, &change(json!({"fleets": [fleet("takers", 1, "a.py", "500Mi")]}))).await
            }
            Self::ChangeTier => api.patch(&path, &change(json!({"tier": "pro"}))).await,
            Self::GrowVolumes => {
                let fleets = json!([fleet("makers", 2, "a.py", "1Gi")]);
                api.patch(&path, &change(json!({"fleets": fleets, "database": {"storage": "8Gi"}}))).await
            }
            Self::RequestSleep => annotate(api, subject, "torpor.dev/sleep-requested-at").await,
            Self::Wake => annotate(api, subject, "torpor.dev/last-activity").await,
            Self::Decide(stage) => {
                let live = api.get(&path).await?.context("the Tenant has gone")?;
                // The newest activity of a tenant that nobody has logged in to is its creation.
                let decision = json!({"stage": stage, "basedOn": live["metadata"]["creationTimestamp"]});
                api.patch(&format!("{path}/status"), &json!({"status": {"hibernation": {"decision": decision}}})).await
            }
            Self::Suspend(suspended) => api.patch(&path, &change(json!({"suspended": suspended}))).await,
            Self::Host(has) => {
                let host = has.then(|| format!("{subject}.example.com"));
                api.patch(&path, &change(json!({"dashboard": {"host": host}}))).await
            }
            Self::CreateFleet => {
                for (collection, object) in own_fleet() {
                    api.create(&own(subject, collection), &object).await?;
                }
                Ok(())
            }
            Self::ChangeReference => {
                let path = format!("{}/{OWN}", own(subject, "configmaps"));
                api.patch(&path, &json!({"data": own_text(CHANGED)})).await
            }
            Self::DeleteFleet => api.delete(&format!("{}/{OWN}", own(subject, "botfleets"))).await,
            Self::Delete => api.delete(&path).await,
            Self::ChangeCatalog => bail!("a catalogue is the operator's, and not asked for by an object"),
            Self::CreatePool => {
                for set in ["a", "b"] {
                    api.create("/api/v1/nodes", &node(subject, set)).await?;
                }
                api.create(POOLS, &pool(subject)).await
            }
            Self::ChangePool => {
                let selector = json!({NODE_LABEL: format!("{subject}-b")});
                api.patch(&pool_path(subject), &change(json!({"nodeSelector": selector, "dedicated": true}))).await
            }
            Self::DeletePool => api.delete(&pool_path(subject)).await,
        }
    }
}

async fn annotate(api: &Api, subject: &str, key: &str) -> Result<()> {
    let annotations = json!({"metadata": {"annotations": {key: Timestamp::now().to_string()}}});
    api.patch(&tenant_path(subject), &annotations).await
}

impl Goal {
    /// Whether it is reached.
    pub async fn is_reached(self, api: &Api, subject: &str) -> Result<bool> {
        if matches!(self, Self::PoolReady | Self::PoolGone) {
            let pool = api.get(&pool_path(subject)).await?;
            return Ok(match &pool {
                Some(pool) => self == Self::PoolReady && handled(pool) && condition(pool, "Ready") == "True",
                None => self == Self::PoolGone,
            });
        }
        let tenant = api.get(&tenant_path(subject)).await?;
        if matches!(self, Self::FleetReady | Self::FleetReads | Self::FleetGone) {
            let fleet = api.get(&format!("{}/{OWN}", own(subject, "botfleets"))).await?;
            let there = fleet.as_ref().is_some_and(|fleet| handled(fleet) && condition(fleet, "Ready") == "True");
            let arrived = match self {
                Self::FleetGone => fleet.is_none(),
                Self::FleetReads => there && reads(api, subject).await?,
                _ => there,
            };
            return Ok(arrived && tenant.is_some_and(|tenant| condition(&tenant, "Ready") == "True"));
        }
        Ok(match (self, &tenant) {
            (Self::Gone, None) => true,
            (Self::NamespaceGone, None) => {
                api.get(&format!("/api/v1/namespaces/{}", namespace(subject))).await?.is_none()
            }
            (Self::Ready, Some(tenant)) => {
                handled(tenant)
                    && condition(tenant, "Ready") == "True"
                    && tenant["status"]["hibernation"]["stage"].as_str().is_none_or(|stage| stage == "Active")
                    && condition(tenant, "Hibernated") != "True"
            }
            (Self::Asleep(stage), Some(tenant)) => {
                handled(tenant)
                    && condition(tenant, "Ready") == "True"
                    && condition(tenant, "Hibernated") == "True"
                    && tenant["status"]["hibernation"]["stage"] == stage
            }
            _ => false,
        })
    }
}

/// Whether the bot of the user's own fleet was started with the text that was changed.
async fn reads(api: &Api, subject: &str) -> Result<bool> {
    let place = format!("/namespaces/{}", namespace(subject));
    let set = api.get(&format!("/apis/apps/v1{place}/statefulsets/bots-{OWN}")).await?.unwrap_or_default();
    let pod = api.get(&format!("/api/v1{place}/pods/bots-{OWN}-0")).await?.unwrap_or_default();
    let text = api.get(&format!("/api/v1{place}/configmaps/bots-{OWN}")).await?.unwrap_or_default();
    let hash = |metadata: &Value| metadata["annotations"]["torpor.dev/restart-hash"].clone();
    Ok(text["data"].to_string().contains(CHANGED)
        && hash(&pod["metadata"]) == hash(&set["spec"]["template"]["metadata"]))
}

/// Whether the operator has looked at this generation of the object.
pub fn handled(object: &Value) -> bool {
    object["status"]["observedGeneration"] == object["metadata"]["generation"]
}

/// The status of a condition; empty where there is none.
pub fn condition(object: &Value, kind: &str) -> String {
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    conditions.filter(|condition| condition["type"] == kind).map(|condition| text(&condition["status"])).collect()
}

/// What a tenant's namespace holds.
const KINDS: [(&str, &str); 14] = [
    ("/api/v1", "serviceaccounts"),
    ("/apis/networking.k8s.io/v1", "networkpolicies"),
    ("/api/v1", "resourcequotas"),
    ("/api/v1", "limitranges"),
    ("/api/v1", "secrets"),
    ("/api/v1", "configmaps"),
    ("/api/v1", "services"),
    ("/apis/networking.k8s.io/v1", "ingresses"),
    ("/apis/policy/v1", "poddisruptionbudgets"),
    ("/apis/apps/v1", "statefulsets"),
    ("/apis/apps/v1", "deployments"),
    ("/api/v1", "persistentvolumeclaims"),
    ("/api/v1", "pods"),
    ("/apis/torpor.dev/v1alpha1", "botfleets"),
];

/// Every object that a workflow is about.
pub async fn objects(api: &Api, workflow: &Workflow, subject: &str) -> Result<Vec<Value>> {
    let mut found = Vec::new();
    if workflow.is_of_pool() {
        found.extend(api.get(&pool_path(subject)).await?);
        for set in ["a", "b"] {
            found.extend(api.get(&format!("/api/v1/nodes/{subject}-{set}")).await?);
        }
        found.extend(
            api.list("/apis/scheduling.k8s.io/v1/priorityclasses?labelSelector=app.kubernetes.io/managed-by=torpor")
                .await?,
        );
        return Ok(found);
    }
    let namespace = namespace(subject);
    let lists = KINDS.map(|(group, kind)| {
        let path = format!("{group}/namespaces/{namespace}/{kind}");
        async move { api.list(&path).await }
    });
    found.extend(api.get(&tenant_path(subject)).await?);
    found.extend(api.get(&format!("/api/v1/namespaces/{namespace}")).await?);
    for list in futures::future::join_all(lists).await {
        found.extend(list?);
    }
    Ok(found)
}

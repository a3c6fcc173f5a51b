//! A cluster with Torpor's programs on it, and what every measurement does with them.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use kube::api::{DynamicObject, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client, Config};
use serde_json::Value;
use tokio::runtime::Runtime;
use torpor_cluster::torpor::{self, COMPONENTS, HOME, Process, Program};
use torpor_cluster::{Cluster, NodeCapacity, Options};

use crate::audit::{Tail, agent};
use crate::report::Progress;
use crate::tenants::Tenant;

/// Outlasts the times in which the API server of a machine that runs everything answers nobody, or is down.
const LEASE: [&str; 2] = ["--lease-seconds", "60"];
const START: Duration = Duration::from_secs(90);
/// How long anything may take before a measurement gives up.
pub const LONG: Duration = Duration::from_secs(1_200);
/// Silence that counts as settled.
pub const QUIET: Duration = Duration::from_secs(3);
/// Tenants are created so many at a time; by then the API server is what is waited for.
const AT_ONCE: usize = 16;

/// A cluster with Torpor's accounts, and its client.
pub struct World {
    /// The operator, while it runs. Stopped before the cluster.
    pub operator: Option<Process>,
    /// The cluster.
    pub cluster: Cluster,
    /// The binary under test.
    pub binary: PathBuf,
    /// The administrator's client.
    client: Client,
    runtime: Runtime,
}

/// The folder of the project.
pub fn project() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

impl World {
    /// A cluster with nodes for some thousand tenants, the custom resources, accounts, rights and policies of the chart,
    /// and the default pools. No program runs yet.
    pub fn start(binary: &Path, progress: &Progress) -> Result<Self> {
        Self::start_with(binary, progress, &[])
    }

    /// The same with objects that a [`crate::copies::Template`] can read in etcd.
    pub fn start_readable(binary: &Path, progress: &Progress) -> Result<Self> {
        Self::start_with(binary, progress, &["--storage-media-type=application/json"])
    }

    fn start_with(binary: &Path, progress: &Progress, api_server: &[&str]) -> Result<Self> {
        progress.say("starting a cluster");
        let users = COMPONENTS.map(|component| format!("system:serviceaccount:{HOME}:torpor-{component}"));
        let capacity = NodeCapacity { cpu: "1000".into(), memory: "4Ti".into(), pods: 5_000 };
        let options = Options {
            nodes_per_pool: 4,
            capacity,
            log_bodies_of: vec![users[0].clone()],
            api_server: api_server.iter().map(ToString::to_string).collect(),
            ..Options::default()
        };
        let cluster = Cluster::start(options)?;
        torpor::install_crds(binary, &cluster).map_err(Error::msg)?;
        torpor::install_accounts(&cluster, &project().join("charts/torpor")).map_err(Error::msg)?;
        cluster.kubectl(["apply", "-f", &project().join("examples/pools.yaml").display().to_string()])?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let client = runtime.block_on(client(cluster.kubeconfig()))?;
        Ok(World { operator: None, cluster, binary: binary.into(), client, runtime })
    }

    /// One of Torpor's programs, with the lease that every program has here if it has one.
    pub fn program(&self, subcommand: &str) -> Program {
        let program = Program::new(&self.binary, &self.cluster, subcommand);
        if subcommand == "gateway" { program } else { program.arguments(&LEASE) }
    }

    /// Starts an operator with further arguments, if none runs, and waits until it is ready.
    pub fn start_operator(&mut self, arguments: &[&str]) -> Result<()> {
        if self.operator.is_none() {
            let operator = self.program("operator").arguments(arguments).start().map_err(Error::msg)?;
            operator.await_ready(START).map_err(Error::msg)?;
            self.operator = Some(operator);
        }
        Ok(())
    }

    /// The operator, which must run.
    pub fn operator(&self) -> Result<&Process> {
        self.operator.as_ref().context("no operator runs")
    }

    /// Ends the operator as a rollout does, so that the next one need not wait for its Lease.
    pub fn stop_operator(&mut self) -> Result<()> {
        if let Some(mut operator) = self.operator.take() {
            let code = operator.terminate().map_err(Error::msg)?;
            ensure!(code == Some(0), "the operator ended with {code:?}:\n{}", operator.log_text());
        }
        Ok(())
    }

    /// Ends the operator as a crash does, and removes its Lease, whose end a successor would wait for.
    pub fn kill_operator(&mut self) -> Result<()> {
        if let Some(mut operator) = self.operator.take() {
            operator.kill();
            self.cluster.kubectl(["delete", "lease", "torpor-operator", "-n", HOME])?;
        }
        Ok(())
    }

    /// Waits until the operator has nothing to do.
    pub fn await_settled(&self) -> Result<()> {
        Tail::start(&self.cluster)?.await_silence(&[agent::OPERATOR], QUIET, LONG)
    }

    /// All Tenants.
    pub fn tenants(&self) -> Result<Vec<Value>> {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &tenant_resource());
        let list = self.runtime.block_on(api.list(&ListParams::default().match_any()))?;
        list.items.into_iter().map(|item| serde_json::to_value(item).map_err(Error::from)).collect()
    }

    /// One Tenant.
    pub fn tenant(&self, name: &str) -> Result<Value> {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &tenant_resource());
        Ok(serde_json::to_value(self.runtime.block_on(api.get(name))?)?)
    }

    /// Creates Tenants and tells the uid of each. The first refusal ends it.
    pub fn create(&self, tenants: &[Tenant]) -> Result<Vec<String>> {
        self.create_as(tenants, Tenant::manifest)
    }

    /// The same with what their owners write.
    pub fn create_as(&self, tenants: &[Tenant], manifest: fn(&Tenant) -> Value) -> Result<Vec<String>> {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &tenant_resource());
        let create = |tenant: &Tenant| {
            let (api, object) = (api.clone(), serde_json::from_value(manifest(tenant)));
            async move {
                let made = api.create(&PostParams::default(), &object?).await?;
                made.metadata.uid.context("an object without uid")
            }
        };
        let created = stream::iter(tenants.iter().map(create)).buffered(AT_ONCE);
        self.runtime.block_on(created.try_collect())
    }

    /// Changes Tenants by the same merge patch.
    pub fn patch(&self, names: &[String], patch: &Value) -> Result<()> {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &tenant_resource());
        let change = |name: &String| {
            let (api, name) = (api.clone(), name.clone());
            async move { api.patch(&name, &Default::default(), &kube::api::Patch::Merge(patch)).await.map(drop) }
        };
        let changed = stream::iter(names.iter().map(change)).buffered(AT_ONCE);
        self.runtime.block_on(changed.try_collect::<()>()).map_err(Error::from)
    }

    /// Waits until a condition of all these tenants has this status. A look at many tenants costs the API server
    /// something, so the more there are, the rarer the looks.
    pub fn await_condition(&self, names: &[String], type_: &str, status: &str) -> Result<()> {
        let names: HashSet<&str> = names.iter().map(String::as_str).collect();
        let since = Instant::now();
        loop {
            let all = self.tenants()?;
            let holds = |tenant: &&Value| {
                let name = tenant["metadata"]["name"].as_str().unwrap_or_default();
                condition(tenant, type_)["status"] == status && names.contains(name)
            };
            let count = all.iter().filter(holds).count();
            if count == names.len() {
                return Ok(());
            }
            ensure!(since.elapsed() < LONG, "{count} of {} tenants are {type_}={status}", names.len());
            std::thread::sleep(Duration::from_millis(500).max(Duration::from_millis(all.len() as u64)));
        }
    }

    /// Runs something asynchronous.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }
}

/// A client for what listens on this machine.
pub fn http_client() -> Result<reqwest::Client> {
    // The first one stays; it is the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Ok(reqwest::Client::builder().no_proxy().build()?)
}

/// The condition of a type, or null.
pub fn condition<'a>(object: &'a Value, type_: &str) -> &'a Value {
    let conditions = object["status"]["conditions"].as_array();
    conditions.and_then(|all| all.iter().find(|condition| condition["type"] == type_)).unwrap_or(&Value::Null)
}

fn tenant_resource() -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("torpor.dev", "v1alpha1", "Tenant"), "tenants")
}

async fn client(kubeconfig: &Path) -> Result<Client> {
    let file = Kubeconfig::read_from(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

//! A cluster with Torpor's rights, and one operator behind a proxy.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, bail, ensure};
use serde_json::json;
use torpor_cluster::torpor::{self, HOME, Process, Program};
use torpor_cluster::{Cluster, NodeCapacity, Options};

use crate::api::Api;
use crate::kwok::Reminder;
use crate::observer::Observer;
use crate::plan::Plan;
use crate::probes::Probes;
use crate::proxy::{self, Proxy};
use crate::relay::Relay;
use crate::workflow::Step;

/// How long a process may take until it is ready.
const START: Duration = Duration::from_secs(60);
/// The operator's lease: outlasts the pauses of a busy machine. Who is killed is followed at once, for its Lease is deleted.
const LEASE_SECONDS: &str = "60";

/// What a change of the catalogue changes: bots get smaller, the databases of tier basic larger and its Redis smaller.
const CATALOG: [(&str, &str); 3] = [
    ("bot: {cpu: 200m, memory: 512Mi}", "bot: {cpu: 200m, memory: 448Mi}"),
    ("postgres: {cpu: 400m, memory: 352Mi}", "postgres: {cpu: 400m, memory: 384Mi}"),
    ("redis: {cpu: 200m, memory: 160Mi}", "redis: {cpu: 200m, memory: 128Mi}"),
];

/// One cluster, one proxy, one operator.
pub struct Rig {
    /// The operator; stopped before the cluster.
    pub operator: Process,
    /// What its requests pass through.
    pub proxy: Proxy,
    /// The cluster past the proxy.
    pub api: Api,
    /// Pods and StatefulSets as they come and go.
    pub observer: Observer,
    /// How the operator is started.
    pub program: Program,
    /// The file of its tier catalogue.
    pub catalog: PathBuf,
    /// What stands in there unless a workflow changes it.
    usual_catalog: String,
    /// The component that is killed when a rule of the plan is met.
    pub doomed: Option<&'static str>,
    /// When the component that was killed last was started again.
    pub healed: Option<Instant>,
    /// Reminds kwok of what it failed to do, since something that it stands on was killed.
    pub kwok: Option<Reminder>,
    /// What programs tell of themselves.
    pub probes: Probes,
    /// The cluster itself.
    pub cluster: Cluster,
}

impl Rig {
    /// Starts all of it, with the default pools, and waits until the operator is ready. `root` is the project's folder.
    pub async fn start(torpor: &Path, root: &Path) -> Result<Self> {
        Self::start_with(torpor, root, &[]).await
    }

    /// The same with further arguments for the operator.
    pub async fn start_with(torpor: &Path, root: &Path, arguments: &[&str]) -> Result<Self> {
        Self::start_on(Self::options(), torpor, root, arguments).await
    }

    /// What its cluster is made of.
    pub fn options() -> Options {
        // Room for 300 awake tenants at once, which is the most that one of the parts makes.
        let capacity = NodeCapacity { cpu: "1000".to_owned(), memory: "4Ti".to_owned(), pods: 2_000 };
        // Pods that run before they are ready are given more CPU meanwhile.
        let (graceful_stop, slow_start) = (Some(Duration::from_millis(300)), Some(Duration::from_millis(700)));
        Options { capacity, graceful_stop, slow_start, nodes_per_pool: 1, ..Options::default() }
    }

    /// The same on a cluster of another kind.
    pub async fn start_on(options: Options, torpor: &Path, root: &Path, arguments: &[&str]) -> Result<Self> {
        let cluster = Cluster::start(options)?;
        install(&cluster, torpor, root)?;
        let authority = cluster.authority()?.to_owned();
        let api = Api::new(cluster.server()?, &authority, &token(&cluster, "default", "chaos")?)?;
        let proxy = Proxy::start(cluster.server()?, &authority, &cluster.serving(&["127.0.0.1"])?).await?;
        let (catalog, usual_catalog) = (cluster.data_dir().join("catalog.yaml"), usual_catalog(root)?);
        std::fs::write(&catalog, &usual_catalog)?;
        let file = catalog.display().to_string();
        let arguments = [arguments, &["--catalog", &file]].concat();
        let program = program(&cluster, &proxy, torpor, "operator", &arguments)?;
        let operator = program.clone().start().map_err(Error::msg)?;
        let observer = Observer::start(&api);
        let probes = Probes::new(proxy::client(&authority)?);
        let rig = Self {
            operator,
            proxy,
            api,
            observer,
            program,
            catalog,
            usual_catalog,
            doomed: None,
            healed: None,
            kwok: None,
            probes,
            cluster,
        };
        rig.await_ready().await?;
        rig.cluster.kubectl(["apply", "-f", &root.join("examples/pools.yaml").display().to_string()])?;
        Ok(rig)
    }

    /// Starts a second API server, to which no connection leads before a plan says so.
    pub async fn start_second(&mut self) -> Result<()> {
        let relay = Relay::start(([127, 0, 0, 1], self.cluster.etcd_port()?).into()).await?;
        // It is asked for while the relay, which is of this runtime, has to work.
        let port = relay.address.port();
        let server = tokio::task::block_in_place(|| self.cluster.second_api_server(port))?;
        self.proxy.second(server, relay);
        Ok(())
    }

    /// Waits until the operator says that it is ready.
    pub async fn await_ready(&self) -> Result<()> {
        let end = Instant::now() + START;
        loop {
            match self.probes.readiness(&self.operator).await {
                Ok((200, text)) if text == "ready\n" => return Ok(()),
                other if Instant::now() > end => bail!("the operator is not ready: {other:?}"),
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Whether it is ready now.
    pub async fn is_ready(&self) -> bool {
        self.probes.is_ready(&self.operator).await
    }

    /// kill -9, then the same program again, which finds no Lease to wait for, under another plan.
    pub async fn restart(&mut self, plan: Plan) -> Result<()> {
        self.operator.kill();
        self.proxy.set(plan);
        self.delete_lease().await?;
        self.proxy.open();
        self.operator = self.program.clone().start().map_err(Error::msg)?;
        Ok(())
    }

    /// Asks for a step, under the plan that is set.
    pub async fn ask(&mut self, step: Step, subject: &str) -> Result<()> {
        if step != Step::ChangeCatalog {
            return step.ask(&self.api, subject).await;
        }
        let mut changed = self.usual_catalog.clone();
        for (was, is) in CATALOG {
            ensure!(changed.contains(was), "the catalogue does not say {was}");
            changed = changed.replace(was, is);
        }
        self.give_catalog(&changed, self.proxy.rest()).await
    }

    /// Has the operator work by the usual catalogue, if it does not.
    pub async fn usual_catalog(&mut self) -> Result<()> {
        let usual = self.usual_catalog.clone();
        if std::fs::read_to_string(&self.catalog)? == usual {
            return Ok(());
        }
        self.give_catalog(&usual, Plan::default()).await?;
        self.await_ready().await
    }

    /// Starts the operator anew with this catalogue, as a rollout of the chart does, under that plan.
    pub async fn give_catalog(&mut self, text: &str, plan: Plan) -> Result<()> {
        std::fs::write(&self.catalog, text)?;
        self.restart(plan).await
    }

    /// Starts the two programs beside the operator.
    pub fn start_others(&self, torpor: &Path) -> Result<Others> {
        let start = |name, arguments: &[&str]| {
            let program = Program::new(torpor, &self.cluster, name).arguments(arguments);
            anyhow::Ok((name, program.start().map_err(Error::msg)?))
        };
        Ok(vec![start("hibernator", &["--lease-seconds", "60"])?, start("gateway", &["--address", "127.0.0.1:0"])?])
    }

    /// Starts it again if it has ended by itself, and says with which code.
    pub async fn restart_if_ended(&mut self) -> Result<Option<i32>> {
        if self.operator.runs() {
            return Ok(None);
        }
        let code = self.operator.ended().unwrap_or(-1);
        self.delete_lease().await?;
        self.operator = self.program.clone().start().map_err(Error::msg)?;
        Ok(Some(code))
    }

    /// Kills the doomed component, if its time has come, and starts it again after a while.
    pub async fn doom(&mut self) -> Result<()> {
        /// Long enough for the operator to notice.
        const AWAY: Duration = Duration::from_secs(2);
        // At once, while the request is on its way.
        if self.proxy.met() > 0
            && let Some(component) = self.doomed.take()
        {
            self.cluster.kill_component(component)?;
            tokio::time::sleep(AWAY).await;
            self.cluster.restart_component(component)?;
            self.healed = Some(Instant::now());
            self.kwok = Some(Reminder::default());
            return Ok(());
        }
        if let Some(kwok) = &mut self.kwok {
            // Its peers may end for it, such as a scheduler that finds its cache wrong.
            self.cluster.restart_ended()?;
            kwok.remind(&self.api).await;
        }
        Ok(())
    }

    /// Deletes the Lease of a program.
    pub async fn delete_lease_of(&self, program: &str) -> Result<()> {
        let path = format!("/apis/coordination.k8s.io/v1/namespaces/{HOME}/leases/torpor-{program}");
        self.api.delete(&path).await
    }

    /// Deletes the operator's Lease: how it is waited for is shown elsewhere.
    pub async fn delete_lease(&self) -> Result<()> {
        self.delete_lease_of("operator").await
    }
}

/// Hibernator and gateway by name.
pub type Others = Vec<(&'static str, Process)>;

/// The catalogue that the operator comes with.
fn usual_catalog(root: &Path) -> Result<String> {
    let file = root.join("src/domain/catalog.yaml");
    std::fs::read_to_string(&file).with_context(|| file.display().to_string())
}

/// A program of Torpor's whose API server is the proxy, under the account that the chart gives it.
pub fn program(
    cluster: &Cluster,
    proxy: &Proxy,
    torpor: &Path,
    subcommand: &str,
    arguments: &[&str],
) -> Result<Program> {
    let folder = cluster.data_dir();
    let kubeconfig = folder.join(format!("chaos-{subcommand}-{}.kubeconfig", proxy.address.port()));
    let token = token(cluster, HOME, &format!("torpor-{subcommand}"))?;
    std::fs::write(&kubeconfig, proxy::kubeconfig(proxy.address, &folder.join("ca.crt"), &token))?;
    let lease = ["--lease-seconds", LEASE_SECONDS];
    // All replicas of the gateway work.
    let lease = if subcommand == "gateway" || arguments.contains(&lease[0]) { &[][..] } else { &lease };
    let program = Program::new(torpor, cluster, subcommand).kubeconfig(&kubeconfig);
    Ok(program.arguments(arguments).arguments(lease))
}

/// A token that outlasts the longest run.
fn token(cluster: &Cluster, namespace: &str, account: &str) -> Result<String> {
    let token = cluster.kubectl(["create", "token", account, "-n", namespace, "--duration=12h"])?;
    Ok(token.trim().to_owned())
}

/// The definitions, the chart's accounts, rights and policies, and an account that may do everything.
fn install(cluster: &Cluster, torpor: &Path, root: &Path) -> Result<()> {
    torpor::install_crds(torpor, cluster).map_err(Error::msg)?;
    torpor::install_accounts(cluster, &root.join("charts/torpor")).map_err(Error::msg)?;
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "chaos", "namespace": "default"}});
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "chaos"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "chaos", "namespace": "default"}]});
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [account, binding]});
    cluster.kubectl_stdin(["apply", "-f", "-"], &list.to_string())?;
    // Its garbage collector learns of new kinds every half minute; what a run leaves would depend on when it began.
    cluster.restart_component("kube-controller-manager")?;
    // Volumes that may grow are a workflow of their own.
    let expand = r#"{"allowVolumeExpansion":true}"#;
    for class in cluster.kubectl(["get", "storageclasses", "-o", "name"])?.lines() {
        cluster.kubectl(["patch", class, "--type=merge", "-p", expand])?;
    }
    Ok(())
}

/// The binary under test beside this one, and the project's folder.
pub fn places() -> Result<(PathBuf, PathBuf)> {
    let own = std::env::current_exe()?;
    let mut folder = own.parent().context("a program lies in a folder")?;
    if folder.ends_with("deps") {
        folder = folder.parent().context("deps lies in a folder")?;
    }
    let torpor = folder.join("torpor");
    ensure!(torpor.is_file(), "{} is missing: cargo build --bin torpor", torpor.display());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    Ok((torpor, root))
}

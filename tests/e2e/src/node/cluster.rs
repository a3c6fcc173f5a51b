//! The handle of the whole cluster.

use std::{
    ffi::OsStr,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use torpor_cluster::{
    AuditLog, Kubectl, Tools,
    control_plane::{API_SERVER, AUDIT_LOG, ETCD},
    pki::Authority,
    process::{Component, Spawner, wait_until},
};

use super::{
    addons,
    command::{locked, run},
    control::{self, CONTROLLER_MANAGER, SCHEDULER, VOLUMES},
    images,
    network::{self, CONTROL, FORWARD, NodeNetwork},
    preflight,
    programs::Programs,
    space::Space,
    state::{Machine, lock},
    store,
    worker::{Worker, find, kill, stop},
    world::World,
};

const START_LIMIT: Duration = Duration::from_secs(120);

/// How the cluster is to be made.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many nodes, 1 to 9.
    pub nodes: u8,
    /// OCI archives that every node has from the start. They are unpacked once and kept, so what changes with every build
    /// is better imported by [`Cluster::import_image`].
    pub images: Vec<PathBuf>,
    /// Names outside of the cluster, e.g. of an exchange, and the address that the cluster's name server gives for each.
    pub names: Vec<(String, Ipv4Addr)>,
    /// Where the logs of all programs are copied to at the end.
    pub keep_logs: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self { nodes: 2, images: Vec::new(), names: Vec::new(), keep_logs: None }
    }
}

/// A Kubernetes with real nodes. Dropping it ends everything and leaves the machine as it was.
pub struct Cluster {
    kubectl: Kubectl,
    tools: Tools,
    authority: Authority,
    data: PathBuf,
    run: PathBuf,
    keep_logs: Option<PathBuf>,
    worlds: Mutex<Vec<Arc<World>>>,
    workers: Vec<Worker>,
    components: Mutex<Vec<Component>>,
    control: Space,
    router: Space,
    spawner: Arc<Spawner>,
    // Last, because it deletes the run folder and lets the next run begin.
    machine: Mutex<Machine>,
}

/// Builds what nodes are made of, as far as it is not in the cache, and starts nothing. Fails with [`super::Missing`] on a
/// machine that can't hold them.
pub fn build() -> Result<()> {
    preflight::check()?;
    build_parts().map(drop)
}

/// The programs, and the images that the cluster itself runs.
fn build_parts() -> Result<(Programs, Vec<PathBuf>)> {
    let programs = Programs::build()?;
    let images = images::build(&programs)?;
    Ok((programs, images))
}

impl Cluster {
    /// Brings it up: nodes Ready, names resolved, images there. The first time programs and images are built, which takes
    /// minutes. Waits for the end of another run on this machine. Fails with [`super::Missing`] on a machine that can't hold it.
    pub fn start(options: Options) -> Result<Self> {
        ensure!((1..=9).contains(&options.nodes), "there can be 1 to 9 nodes");
        preflight::check()?;
        let mut machine = Machine::take(lock(true)?)?;
        let (programs, own) = build_parts()?;
        let archives = [own, options.images.clone()].concat();
        let run = machine.prepare()?;
        let data = run.join("control");
        fs::create_dir_all(&data)?;

        let spawner = Arc::new(Spawner::start()?);
        let router = Space::start(&spawner, "torpor-router", FORWARD, &run)?;
        machine.watch(router.init())?;
        network::prepare_router(&router)?;
        network::connect_host(&router)?;
        let control = Space::start(&spawner, "torpor-control", "", &run)?;
        machine.watch(control.init())?;
        network::connect(&router, &control, "control", &[CONTROL])?;

        let authority = Authority::new()?;
        let components = control::create(&data, &control, &programs, &authority)?;
        let mut workers = Vec::new();
        for number in 1..=options.nodes {
            let network = NodeNetwork(number);
            let worker = Worker::create(network, &run, &programs, &spawner, &router, &authority)?;
            machine.watch(worker.init())?;
            workers.push(worker);
        }
        let cluster = Self {
            kubectl: Kubectl {
                program: programs.tools.bin("kubectl"),
                kubeconfig: data.join("admin.kubeconfig"),
                cache: run.join("kube-cache"),
            },
            tools: programs.tools.clone(),
            authority,
            data,
            run,
            keep_logs: options.keep_logs.clone(),
            worlds: Mutex::default(),
            workers,
            components: Mutex::new(components),
            control,
            router,
            spawner,
            machine: Mutex::new(machine),
        };
        cluster.bring_up(&archives, &programs, &options)?;
        Ok(cluster)
    }

    fn bring_up(&self, archives: &[PathBuf], programs: &Programs, options: &Options) -> Result<()> {
        // What a component says when it dies is worth more than that somebody else waited for it in vain.
        let brought = self.bring_up_in_parallel(archives, programs, options);
        if brought.is_err() {
            self.check()?;
        }
        brought
    }

    fn bring_up_in_parallel(&self, archives: &[PathBuf], programs: &Programs, options: &Options) -> Result<()> {
        let started = Instant::now();
        let say = |what: &str| eprintln!("[{:4.1} s] {what}", started.elapsed().as_secs_f32());
        std::thread::scope(|scope| {
            let runtimes = scope.spawn(|| -> Result<()> {
                let store = store::ensure(archives, programs, &self.spawner)?;
                self.workers.iter().try_for_each(|worker| worker.start_runtime(&store))
            });
            self.bring_up_control_plane(options)?;
            say("control plane");
            join(runtimes)?;
            say("containerd and images");
            let nodes: Vec<_> = self.workers.iter().map(|worker| scope.spawn(|| worker.start_node())).collect();
            for node in nodes {
                join(node)?;
            }
            self.wait("the nodes", || self.nodes_ready())?;
            say("nodes");
            self.wait("the name server", || {
                Ok(self
                    .kubectl(["-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=1s"])
                    .is_ok())
            })?;
            say("names");
            Ok(())
        })
    }

    fn bring_up_control_plane(&self, options: &Options) -> Result<()> {
        self.start_component(ETCD)?;
        self.start_component(API_SERVER)?;
        self.wait(API_SERVER, || Ok(self.kubectl(["get", "--raw=/readyz"]).is_ok()))?;
        self.start_component(CONTROLLER_MANAGER)?;
        self.start_component(SCHEDULER)?;
        self.kubectl_stdin(["apply", "--server-side", "-f", "-"], &addons::objects(&options.names))?;
        self.start_component(VOLUMES)?;
        self.wait("the default service account", || {
            Ok(self.kubectl(["-n", "default", "get", "serviceaccount", "default"]).is_ok())
        })
    }

    fn nodes_ready(&self) -> Result<bool> {
        const READY_AND_TAINTS: &str = "-o=jsonpath={range .items[*]}\
            {.status.conditions[?(@.type==\"Ready\")].status}{.spec.taints}{\"\\n\"}{end}";
        let nodes = self.kubectl(["get", "nodes", READY_AND_TAINTS])?;
        Ok(nodes.lines().filter(|node| *node == "True").count() == self.workers.len())
    }

    /// The nodes, `torpor-node1` first.
    pub fn workers(&self) -> &[Worker] {
        &self.workers
    }

    /// One node by its name.
    pub fn worker(&self, name: &str) -> Result<&Worker> {
        self.workers.iter().find(|worker| worker.name() == name).with_context(|| format!("no node {name}"))
    }

    /// The kubeconfig file of the administrator; it works anywhere on this machine.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubectl.kubeconfig
    }

    /// A new kubeconfig file for any user, by a client certificate of that name; two groups at most.
    pub fn kubeconfig_for(&self, user: &str, groups: &[&str]) -> Result<PathBuf> {
        self.user_file(user, &self.authority.kubeconfig(&control::server(), user, groups)?)
    }

    /// A new kubeconfig file for an existing service account, with a token as its pods get it, good for an hour.
    pub fn kubeconfig_for_service_account(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        let token = self.kubectl(["create", "token", name, "-n", namespace])?;
        let text = self.kubectl(["config", "view", "--raw", "--flatten", "--minify", "-o=json"])?;
        let mut config: Value = serde_json::from_str(&text)?;
        config["users"][0]["user"] = json!({"token": token.trim()});
        self.user_file(&format!("{namespace}-{name}"), &config.to_string())
    }

    fn user_file(&self, user: &str, content: &str) -> Result<PathBuf> {
        let file = self.data.join(format!("user-{}.kubeconfig", user.replace([':', '/'], "-")));
        fs::write(&file, content)?;
        Ok(file)
    }

    /// The folder of the control plane's programs, of kubectl and helm.
    pub fn bin_dir(&self) -> &Path {
        self.tools.path()
    }

    /// The folder that holds everything of this run; deleted at its end.
    pub fn run_dir(&self) -> &Path {
        &self.run
    }

    /// Runs kubectl as administrator and returns its stdout; the error carries its stderr.
    pub fn kubectl<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Result<String> {
        self.kubectl.run(args)
    }

    /// The same with `input` as kubectl's stdin, for `apply -f -`.
    pub fn kubectl_stdin<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>, input: &str) -> Result<String> {
        self.kubectl.run_with_input(args, input)
    }

    /// Runs helm as administrator and returns its stdout; the error carries its stderr.
    pub fn helm<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Result<String> {
        let mut command = Command::new(self.tools.bin("helm"));
        command.args(args).env("KUBECONFIG", self.kubeconfig());
        for (name, folder) in [("HELM_CACHE_HOME", "cache"), ("HELM_CONFIG_HOME", "config"), ("HELM_DATA_HOME", "data")]
        {
            command.env(name, self.run.join("helm").join(folder));
        }
        run(&mut command, "")
    }

    /// Runs a command in a pod's container, its first if none is named, and gives what it printed.
    pub fn exec_in_pod(&self, namespace: &str, pod: &str, container: Option<&str>, command: &[&str]) -> Result<String> {
        let mut args = vec!["exec", "--quiet", "-n", namespace, pod];
        if let Some(container) = container {
            args.extend(["-c", container]);
        }
        args.push("--");
        self.kubectl([&args, command].concat())
    }

    /// Makes the images of an OCI archive known to every node.
    pub fn import_image(&self, archive: &Path) -> Result<()> {
        std::thread::scope(|scope| {
            let imports: Vec<_> =
                self.workers.iter().map(|worker| scope.spawn(|| worker.import_image(archive))).collect();
            imports.into_iter().try_for_each(join)
        })
    }

    /// Drains a node, as an administrator would: its pods are evicted, with all their grace.
    pub fn drain(&self, node: &str, limit: Duration) -> Result<String> {
        let timeout = format!("--timeout={}s", limit.as_secs());
        self.kubectl(["drain", node, "--ignore-daemonsets", "--delete-emptydir-data", &timeout])
    }

    /// Lets a drained node take pods again.
    pub fn uncordon(&self, node: &str) -> Result<()> {
        self.kubectl(["uncordon", node]).map(drop)
    }

    /// A host outside of the cluster with these addresses, for as long as the cluster runs.
    pub fn world(&self, name: &str, addresses: &[Ipv4Addr]) -> Result<Arc<World>> {
        let mut worlds = locked(&self.worlds);
        let world = World::create(name, worlds.len(), addresses, &self.run, &self.spawner, &self.router)?;
        locked(&self.machine).watch(world.init())?;
        let world = Arc::new(world);
        worlds.push(Arc::clone(&world));
        Ok(world)
    }

    /// How many packets the guard has kept from leaving the machine so far.
    pub fn guard_drops(&self) -> Result<u64> {
        network::guard_drops(&self.router)
    }

    /// The API server's audit log.
    pub fn audit(&self) -> AuditLog {
        AuditLog::new(&self.data.join(AUDIT_LOG))
    }

    /// Ends a part of the control plane by SIGTERM and leaves it down: `etcd`, `kube-apiserver`,
    /// `kube-controller-manager`, `kube-scheduler` or `local-path-provisioner`.
    pub fn stop_component(&self, name: &str) -> Result<()> {
        stop(find(&mut self.components(), name)?)
    }

    /// Ends it by SIGKILL and leaves it down.
    pub fn kill_component(&self, name: &str) -> Result<()> {
        kill(find(&mut self.components(), name)?)
    }

    /// Starts it again, on the same data.
    pub fn start_component(&self, name: &str) -> Result<()> {
        find(&mut self.components(), name)?.start(&self.spawner)
    }

    /// Waits until the API server answers, e.g. after it was started again.
    pub fn wait_for_api_server(&self) -> Result<()> {
        self.wait(API_SERVER, || Ok(self.kubectl(["get", "--raw=/readyz"]).is_ok()))
    }

    /// An error if a program of the cluster has ended by itself.
    pub fn check(&self) -> Result<()> {
        self.components().iter_mut().try_for_each(Component::check)?;
        self.workers.iter().try_for_each(Worker::check)
    }

    /// Ends everything now. The same as dropping the handle.
    pub fn stop(self) {}

    fn components(&self) -> MutexGuard<'_, Vec<Component>> {
        locked(&self.components)
    }

    /// Waits, but not for something that a program which has died can no longer bring about.
    fn wait(&self, what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
        wait_until(what, START_LIMIT, || {
            self.check()?;
            done()
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(to) = &self.keep_logs
            && let Err(error) = copy_logs(&self.run, to)
        {
            eprintln!("cannot keep the logs: {error:#}");
        }
        for world in locked(&self.worlds).drain(..) {
            world.end();
        }
        self.workers.clear();
        self.control.end();
        self.components().iter_mut().for_each(Component::kill);
        self.router.end();
    }
}

/// Every `*.log` of the run, with the folders they are in.
fn copy_logs(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, name, kind) = (entry.path(), entry.file_name(), entry.file_type()?);
        if kind.is_dir() && name != "lib" {
            copy_logs(&path, &to.join(name))?;
        } else if kind.is_file() && path.extension().is_some_and(|kind| kind == "log") {
            fs::create_dir_all(to)?;
            fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}

fn join(thread: std::thread::ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

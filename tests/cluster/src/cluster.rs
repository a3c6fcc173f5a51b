//! The handle of a running cluster.

use std::{
    env,
    ffi::OsStr,
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    audit::AuditLog,
    control_plane::{self, API_SERVER, AUDIT_LOG, ETCD, Ports},
    kubectl::Kubectl,
    options::Options,
    pki::{Authority, Identity},
    process::{Component, Janitor, Spawner, wait_until},
    tools::Tools,
};

/// Names an existing cluster to use instead of one of our own.
pub const KUBECONFIG_ENV: &str = "TORPOR_KUBECONFIG";

/// What was asked for can't be done, and the asker can change that.
#[derive(Debug)]
pub struct Refused(String);

impl std::fmt::Display for Refused {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

const START_LIMIT: Duration = Duration::from_secs(90);

/// A Kubernetes control plane with nodes that kwok plays. Dropping the handle stops everything and deletes the data
/// folder; so does the end of the process, whatever ends it.
pub struct Cluster {
    own: Option<Own>,
    kubeconfig: PathBuf,
    data: PathBuf,
    tools: Tools,
    users: AtomicU32,
    // Last, because it deletes the data folder.
    janitor: Janitor,
}

/// What exists for a cluster that we started ourselves.
struct Own {
    components: Mutex<Vec<Component>>,
    authority: Authority,
    server: String,
    ports: Ports,
    service_cidr: String,
    spawner: Spawner,
}

impl Cluster {
    /// Starts a cluster of our own and waits until its nodes take pods. Builds the tools first if need be.
    pub fn start(options: Options) -> Result<Self> {
        if let Some(dir) = &options.keep_dir {
            let empty = fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none());
            let text = format!("the data folder {} is not empty", dir.display());
            ensure!(empty, Refused(text));
        }
        let tools = Tools::ensure()?;
        match Self::try_start(tools.clone(), &options) {
            // Somebody took a port between our choice and the start.
            Err(error) if format!("{error:#}").contains("address already in use") => Self::try_start(tools, &options),
            other => other,
        }
    }

    /// Uses the cluster that `TORPOR_KUBECONFIG` names, or starts one. An existing cluster must hold no Tenants, and
    /// is left running at the end.
    pub fn connect_or_start(options: Options) -> Result<Self> {
        match env::var_os(KUBECONFIG_ENV).filter(|path| !path.is_empty()) {
            Some(path) => Self::connect(Path::new(&path)),
            None => Self::start(options),
        }
    }

    fn try_start(tools: Tools, options: &Options) -> Result<Self> {
        let data = match &options.keep_dir {
            Some(dir) => {
                fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
                std::path::absolute(dir)?
            }
            None => temp_folder()?,
        };
        let janitor = Janitor::start(&data, options.keep_dir.is_none())?;
        let ports = Ports::choose()?;
        let server = format!("https://127.0.0.1:{}", ports.api_server);
        let authority = Authority::new()?;
        let stages = options.stages(&tools.kwok_stages()?)?;
        control_plane::write_files(&data, &authority, &server, &stages, options)?;
        let components = control_plane::components(&tools, &data, &ports, options);
        let cluster = Self {
            own: Some(Own {
                components: Mutex::new(components),
                authority,
                server,
                ports,
                service_cidr: options.service_cidr.clone(),
                spawner: Spawner::start()?,
            }),
            kubeconfig: data.join("admin.kubeconfig"),
            data,
            tools,
            users: AtomicU32::new(0),
            janitor,
        };
        cluster.bring_up(options)?;
        Ok(cluster)
    }

    fn bring_up(&self, options: &Options) -> Result<()> {
        let names: Vec<&str> = self.components()?.iter().map(|one| one.name).collect();
        for name in names {
            self.restart_component(name)?;
        }
        self.kubectl([OsStr::new("apply"), OsStr::new("-f"), self.tools.storage_class().as_os_str()])?;
        if let Some(nodes) = options.node_list() {
            self.kubectl_stdin(["create", "-f", "-"], &nodes)?;
        }
        self.wait("nodes", || self.nodes_take_pods())?;
        self.wait("the default service account", || {
            Ok(self.kubectl(["-n", "default", "get", "serviceaccount", "default"]).is_ok())
        })
    }

    fn nodes_take_pods(&self) -> Result<bool> {
        const READY_AND_TAINTS: &str = "-o=jsonpath={range .items[*]}\
            {.status.conditions[?(@.type==\"Ready\")].status}{.spec.taints}{\"\\n\"}{end}";
        let nodes = self.kubectl(["get", "nodes", READY_AND_TAINTS])?;
        Ok(nodes.lines().all(|node| node == "True"))
    }

    fn connect(path: &Path) -> Result<Self> {
        let text = format!("{KUBECONFIG_ENV}: there is no file {}", path.display());
        ensure!(path.is_file(), Refused(text));
        let tools = Tools::ensure()?;
        let data = temp_folder()?;
        let cluster = Self {
            own: None,
            kubeconfig: path.canonicalize()?,
            janitor: Janitor::start(&data, true)?,
            data,
            tools,
            users: AtomicU32::new(0),
        };
        let config = cluster.flat_kubeconfig()?;
        let server = config["clusters"][0]["cluster"]["server"].as_str().unwrap_or("(none)").to_owned();
        let context = config["current-context"].as_str().unwrap_or("(none)");
        eprintln!("using the existing cluster {server} (context {context})");
        let crd = cluster
            .kubectl([
                "--request-timeout=15s",
                "get",
                "crd",
                "tenants.torpor.dev",
                "--ignore-not-found",
                "--output=name",
            ])
            .with_context(|| format!("cannot use the cluster {server}"))?;
        if !crd.trim().is_empty() {
            let tenants = cluster.kubectl(["get", "tenants.torpor.dev", "-A", "--output=name"])?;
            let count = tenants.lines().count();
            let text = format!(
                "{KUBECONFIG_ENV}: the cluster {server} has {count} Tenants, which this would disturb; use another"
            );
            ensure!(count == 0, Refused(text));
        }
        Ok(cluster)
    }

    /// The kubeconfig file of the administrator.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A new kubeconfig file for any user: with a client certificate of that name in a cluster of our own (at most two
    /// groups), by impersonation in an existing one.
    pub fn kubeconfig_for(&self, user: &str, groups: &[&str]) -> Result<PathBuf> {
        let content = match &self.own {
            Some(own) => own.authority.kubeconfig(&own.server, user, groups)?,
            None => {
                let mut config = self.flat_kubeconfig()?;
                config["users"][0]["user"]["as"] = user.into();
                config["users"][0]["user"]["as-groups"] = groups.into();
                config.to_string()
            }
        };
        self.user_file(&content)
    }

    /// A new kubeconfig file for an existing service account, with a token as its pods get it, good for an hour.
    pub fn kubeconfig_for_service_account(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        let token = self.kubectl(["create", "token", name, "-n", namespace])?;
        let mut config = self.flat_kubeconfig()?;
        config["users"][0]["user"] = json!({"token": token.trim()});
        self.user_file(&config.to_string())
    }

    /// The address of the API server of a cluster of our own.
    pub fn server(&self) -> Result<&str> {
        Ok(&self.own()?.server)
    }

    /// The certificate, PEM, of the authority that a cluster of our own trusts.
    pub fn authority(&self) -> Result<&str> {
        Ok(&self.own()?.authority.cert)
    }

    /// A certificate of that authority for a server that stands before the API server, reached under these names.
    pub fn serving(&self, names: &[&str]) -> Result<Identity> {
        self.own()?.authority.serving(names)
    }

    fn user_file(&self, content: &str) -> Result<PathBuf> {
        let number = self.users.fetch_add(1, Ordering::Relaxed);
        let file = self.data.join(format!("user-{number}.kubeconfig"));
        fs::write(&file, content)?;
        Ok(file)
    }

    fn flat_kubeconfig(&self) -> Result<Value> {
        let text = self.kubectl(["config", "view", "--raw", "--flatten", "--minify", "-o=json"])?;
        Ok(serde_json::from_str(&text)?)
    }

    /// The path of a built program: `kubectl`, `helm`, `kube-apiserver`, …
    pub fn bin(&self, name: &str) -> PathBuf {
        self.tools.bin(name)
    }

    /// The folder of the built programs.
    pub fn bin_dir(&self) -> &Path {
        self.tools.path()
    }

    /// The folder with every component's `<name>.log`, certificates and etcd's data.
    pub fn data_dir(&self) -> &Path {
        &self.data
    }

    /// Runs kubectl as administrator and returns its stdout; the error carries its stderr.
    pub fn kubectl<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Result<String> {
        self.kubectl_stdin(args, "")
    }

    /// The same with `input` as kubectl's stdin, for `apply -f -`.
    pub fn kubectl_stdin<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>, input: &str) -> Result<String> {
        let kubectl = Kubectl {
            program: self.bin("kubectl"),
            kubeconfig: self.kubeconfig.clone(),
            cache: self.data.join("kube-cache"),
        };
        kubectl.run_with_input(args, input)
    }

    /// The API server's audit log; `None` for an existing cluster, whose log isn't ours to read.
    pub fn audit(&self) -> Option<AuditLog> {
        let file = self.data.join(AUDIT_LOG);
        self.own.is_some().then(|| AuditLog::new(&file))
    }

    /// Kills one component of a cluster of our own (SIGKILL) and leaves it down.
    pub fn kill_component(&self, name: &str) -> Result<()> {
        let mut components = self.components()?;
        find(&mut components, name)?.kill();
        self.janitor.watch(components.iter())
    }

    /// Starts one component again, on the same port and data, and waits until it can be talked to.
    pub fn restart_component(&self, name: &str) -> Result<()> {
        let own = self.own()?;
        {
            let mut components = self.components()?;
            let component = find(&mut components, name)?;
            component.kill();
            component.start(&own.spawner)?;
            self.janitor.watch(components.iter())?;
        }
        let port = match name {
            ETCD => own.ports.etcd,
            API_SERVER => own.ports.api_server,
            _ => return Ok(()),
        };
        // Those that stand on it may have ended for it, and are started again by whoever wants them.
        wait_until(name, START_LIMIT, || {
            find(&mut self.components()?, name)?.check()?;
            Ok(TcpStream::connect(("127.0.0.1", port)).is_ok()
                && (name == ETCD || self.kubectl(["get", "--raw=/readyz"]).is_ok()))
        })
    }

    /// The port of etcd.
    pub fn etcd_port(&self) -> Result<u16> {
        Ok(self.own()?.ports.etcd)
    }

    /// Starts one more API server, whose etcd is reached at another port, and returns its address. All write one audit log.
    pub fn second_api_server(&self, etcd_port: u16) -> Result<String> {
        const NAME: &str = "second-kube-apiserver";
        let own = self.own()?;
        let port = control_plane::free_port()?;
        let args = control_plane::api_server_at(&self.data, etcd_port, port, &own.service_cidr);
        let mut component = Component::new(NAME, self.tools.bin(API_SERVER), args, &self.data);
        component.start(&own.spawner)?;
        {
            let mut components = self.components()?;
            components.push(component);
            self.janitor.watch(components.iter())?;
        }
        let server = format!("https://127.0.0.1:{port}");
        let ready = ["--server", &server, "get", "--raw=/readyz"];
        self.wait(NAME, || Ok(self.kubectl(ready).is_ok()))?;
        Ok(server)
    }

    /// Starts again the components that have ended by themselves, as a kubelet does with those of a real control plane.
    pub fn restart_ended(&self) -> Result<()> {
        let own = self.own()?;
        let mut components = self.components()?;
        let mut any = false;
        for component in components.iter_mut() {
            if component.check().is_err() {
                component.start(&own.spawner)?;
                any = true;
            }
        }
        if any { self.janitor.watch(components.iter()) } else { Ok(()) }
    }

    /// Stops everything now. The same as dropping the handle.
    pub fn stop(self) {}

    fn own(&self) -> Result<&Own> {
        self.own.as_ref().with_context(|| format!("{KUBECONFIG_ENV} is set, its components aren't ours"))
    }

    fn components(&self) -> Result<MutexGuard<'_, Vec<Component>>> {
        let components = &self.own()?.components;
        Ok(components.lock().unwrap_or_else(|error| error.into_inner()))
    }

    /// Waits, but not for something that a component which has died can no longer bring about.
    fn wait(&self, what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
        wait_until(what, START_LIMIT, || {
            for component in self.components()?.iter_mut() {
                component.check()?;
            }
            done()
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Ok(mut components) = self.components() {
            // What depends on others goes first, so that no log ends in lost connections.
            for component in components.iter_mut().rev() {
                component.kill();
            }
            // The janitor must not kill by pids that may belong to others by now.
            let _ = self.janitor.watch(components.iter());
        }
    }
}

fn find<'a>(components: &'a mut [Component], name: &str) -> Result<&'a mut Component> {
    let known: Vec<&str> = components.iter().map(|one| one.name).collect();
    let message = format!("no component {name:?}, only {}", known.join(", "));
    components.iter_mut().find(|one| one.name == name).context(message)
}

fn temp_folder() -> Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt;
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("torpor-cluster-{}-{number}", std::process::id());
        let dir = env::temp_dir().join(name);
        // Nobody else may read it: it holds the administrator's key.
        match fs::DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => return Ok(dir),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).context(format!("cannot create {}", dir.display())),
        }
    }
}

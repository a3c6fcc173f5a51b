//! The background process: a cluster, the custom resources, operator, hibernator and gateway, until it is told to stop.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process, setsid};
use torpor_cluster::{Cluster, Options, POOLS as POOL_NAMES};

use super::{
    BadInput, CATALOG, PORTAL, TENANTS, eventually, say,
    state::{Running, State},
    tail,
};
use crate::signals;

/// How long bots of the demo take to end: long enough to be seen.
const GRACEFUL_STOP: Duration = Duration::from_secs(2);

/// Serves. What is said here reaches the user through the log; a failure goes into a file of its own.
pub fn run() -> Result<()> {
    // The end of the terminal that started us must not reach us.
    setsid().context("serve is started by torpor-demo itself")?;
    let state = State::open()?;
    let Some(_lock) = state.try_lock()? else {
        bail!("a demo runs already");
    };
    let result = serve(&state);
    if let Err(error) = &result {
        fs::write(state.error(), format!("{error:#}\n"))?;
    }
    result
}

fn serve(state: &State) -> Result<()> {
    let (stop, stopped) = mpsc::channel();
    let ready = Arc::new(AtomicBool::new(false));
    let is_ready = Arc::clone(&ready);
    signals::on_signal(move |signal| {
        // Half a demo needs no orderly stop: its processes end with ours.
        if !is_ready.load(Ordering::SeqCst) {
            std::process::exit(128 + signal);
        }
        let _ = stop.send(());
    })?;
    state.write_pid()?;
    let torpor = beside_us("torpor")?;

    let own_cluster = std::env::var_os(torpor_cluster::KUBECONFIG_ENV).is_none_or(|path| path.is_empty());
    if own_cluster {
        say("starting etcd, kube-apiserver, kube-controller-manager, kube-scheduler and kwok");
    }
    let cluster = Cluster::connect_or_start(Options { graceful_stop: Some(GRACEFUL_STOP), ..Options::default() })?;
    let nodes = cluster.kubectl(["get", "nodes", "-o=name"])?.lines().count();
    say(format!("the cluster is ready: {nodes} nodes"));

    let crds = Command::new(&torpor).arg("crds").output().context("cannot run torpor crds")?;
    let crds = String::from_utf8(crds.stdout)?;
    cluster.kubectl_stdin(["apply", "--server-side", "-f", "-"], &crds)?;
    cluster.kubectl_stdin(["wait", "--for=condition=Established", "--timeout=60s", "-f", "-"], &crds)?;
    say("custom resources installed: torpor crds | kubectl apply --server-side -f -");

    let mut programs = Programs::start(&torpor, &cluster)?;
    say("torpor operator, torpor hibernator and torpor gateway are ready");
    ready.store(true, Ordering::SeqCst);
    let [operator, hibernator, gateway] = &programs.all;
    state.publish(&Running {
        kubeconfig: cluster.kubeconfig().to_owned(),
        data: cluster.data_dir().to_owned(),
        operator_log: operator.log.clone(),
        hibernator_log: hibernator.log.clone(),
        gateway_log: gateway.log.clone(),
        probes: operator.probes.clone(),
        gateway: programs.gateway.clone(),
        own_cluster,
    })?;

    // Whoever deletes the cache folder deletes the way to stop us, too.
    while stopped.recv_timeout(Duration::from_millis(500)) == Err(RecvTimeoutError::Timeout)
        && state.running().is_some()
    {
        programs.all.iter_mut().try_for_each(Program::keep_running)?;
    }
    if !own_cluster {
        leave(&cluster);
    }
    drop(programs);
    cluster.stop();
    state.clear()
}

/// Takes the demo's objects out of a cluster that stays. The operator still runs, so finalizers do their work.
fn leave(cluster: &Cluster) {
    let delete = |kind: &str, names: &[&str]| {
        let args = [&["delete", kind, "--ignore-not-found", "--timeout=100s"], names].concat();
        if let Err(error) = cluster.kubectl(args) {
            say(format!("{error:#}"));
        }
    };
    delete("tenants.torpor.dev", &TENANTS.map(|(name, _)| name));
    delete("workerpools.torpor.dev", &POOL_NAMES);
    if let Err(error) = cluster.kubectl_stdin(["delete", "--ignore-not-found", "-f", "-"], PORTAL.yaml) {
        say(format!("{error:#}"));
    }
    // The operator takes its marks off the nodes and deletes the PriorityClasses; it must live that long.
    let left = ["get", "priorityclasses", "-l", "app.kubernetes.io/managed-by=torpor", "-o", "name"];
    let gone = eventually(Duration::from_secs(20), || {
        let classes = cluster.kubectl(left)?;
        Ok(if classes.is_empty() { Ok(()) } else { Err(format!("still there: {}", classes.trim())) })
    });
    if let Err(error) = gone {
        say(format!("{error:#}"));
    }
    let namespaces = TENANTS.map(|(name, _)| format!("tenant-{name}")).join(" ");
    say(
        "deleted the demo's Tenants and WorkerPools; their data stays, as a Tenant's data does by default. To delete it:",
    );
    say(format!("  kubectl delete namespace {namespaces}"));
    say("  kubectl delete crd tenants.torpor.dev botfleets.torpor.dev workerpools.torpor.dev");
}

/// A program of the same build: cargo puts all of them into one folder.
fn beside_us(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let program = own.parent().unwrap_or(Path::new(".")).join(name);
    if !program.is_file() {
        bail!("there is no {}: build it with cargo build --workspace --bins", program.display());
    }
    Ok(program)
}

/// Operator and hibernator with one catalogue, and a gateway.
struct Programs {
    all: [Program; 3],
    /// Host and port on which the gateway answers.
    gateway: String,
}

impl Programs {
    fn start(torpor: &Path, cluster: &Cluster) -> Result<Self> {
        let given = std::env::var_os("TORPOR_CATALOG").filter(|path| !path.is_empty()).map(PathBuf::from);
        let catalog = match given {
            Some(path) => path,
            None => {
                let file = cluster.data_dir().join("catalog-demo.yaml");
                fs::write(&file, CATALOG.yaml)?;
                file
            }
        };
        let catalog = ["--catalog".into(), catalog.into_os_string()];
        let gateway = free_address()?;
        let mut programs = Programs {
            all: [
                Program::new(torpor, "operator", cluster, &catalog)?,
                Program::new(torpor, "hibernator", cluster, &catalog)?,
                Program::new(torpor, "gateway", cluster, &door(cluster, &gateway)?)?,
            ],
            gateway,
        };
        programs.all.iter_mut().try_for_each(Program::start)?;
        programs.all.iter_mut().try_for_each(Program::await_ready)?;
        Ok(programs)
    }
}

/// Arguments of the gateway. The key of its links lasts as long as the demo.
fn door(cluster: &Cluster, address: &str) -> Result<[OsString; 6]> {
    let mut random = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    let key: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let file = cluster.data_dir().join("link-key");
    fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&file)?
        .write_all(key.as_bytes())?;
    let (address, key) = (["--address".into(), address.into()], ["--link-key-file".into(), file.into_os_string()]);
    let ([a, b], [c, d]) = (address, key);
    Ok([a, b, c, d, "--public-scheme".into(), "http".into()])
}

fn free_address() -> Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

/// A program of Torpor's as a child that does not outlive us.
struct Program {
    torpor: PathBuf,
    subcommand: &'static str,
    kubeconfig: PathBuf,
    arguments: Vec<OsString>,
    log: PathBuf,
    probes: String,
    child: Option<Child>,
}

impl Program {
    fn new(torpor: &Path, subcommand: &'static str, cluster: &Cluster, arguments: &[OsString]) -> Result<Self> {
        Ok(Program {
            torpor: torpor.to_owned(),
            subcommand,
            kubeconfig: cluster.kubeconfig().to_owned(),
            arguments: arguments.to_vec(),
            log: cluster.data_dir().join(format!("{subcommand}.log")),
            probes: free_address()?,
            child: None,
        })
    }

    /// Starts it from the thread that lives as long as the process: the kernel ends it with that thread.
    fn start(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let child = bound_to_us(&self.torpor)
            .args([self.subcommand, "--probe-address", &self.probes])
            .args(&self.arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start torpor {}", self.subcommand))?;
        self.child = Some(child);
        Ok(())
    }

    fn await_ready(&mut self) -> Result<()> {
        eventually(Duration::from_secs(60), || {
            if let Some(status) = self.child.as_mut().map(Child::try_wait).transpose()?.flatten() {
                let name = self.subcommand;
                let text = format!("torpor {name} ended ({status}); the end of its log:\n{}", tail(&self.log));
                return Err(if status.code() == Some(2) { BadInput(text).into() } else { anyhow!(text) });
            }
            let waits = |reason| format!("torpor {} does not get ready: {reason}", self.subcommand);
            Ok(ready(&self.probes).map_err(waits))
        })
    }

    /// Starts it again when it has ended, as Kubernetes would: it ends itself when it loses its lease, for example
    /// because this machine slept.
    fn keep_running(&mut self) -> Result<()> {
        if let Some(status) = self.child.as_mut().map(Child::try_wait).transpose()?.flatten() {
            say(format!("torpor {} ended ({status}) and is started again", self.subcommand));
            thread::sleep(Duration::from_secs(1));
            self.start()?;
        }
        Ok(())
    }

    /// Lets it give its lease back.
    fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let _ = kill_process(Pid::from_child(&child), Signal::TERM);
        for _ in 0..100 {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What `/readyz` says; its body names what is awaited.
fn ready(address: &str) -> Result<(), String> {
    let get = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = get().map_err(|error| error.to_string())?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).trim();
    // A process that stands by until another stops leading is ready for that, and serves nobody.
    if body == "ready" { Ok(()) } else { Err(body.to_owned()) }
}

/// A command whose process the kernel kills when we end, where util-linux is there to ask for it. Elsewhere the
/// operator ends itself when it can no longer renew its lease.
fn bound_to_us(program: &Path) -> Command {
    let quiet = |command: &mut Command| command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    let works = quiet(Command::new("setpriv").args(["--pdeathsig", "KILL", "true"])).is_ok_and(|s| s.success());
    if !works {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

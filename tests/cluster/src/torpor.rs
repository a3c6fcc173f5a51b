//! Torpor's programs as processes of their own under the accounts that the chart gives them: started in any way, looked at
//! from outside, ended in any way. Nothing here knows the library: a program is a binary.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::Cluster;

/// Namespace of Torpor's programs.
pub const HOME: &str = "torpor-system";
/// Torpor's long-running programs.
pub const COMPONENTS: [&str; 3] = ["operator", "hibernator", "gateway"];

/// How long a program may take to end once asked to.
const END: Duration = Duration::from_secs(40);

/// `/proc` counts in hundredths of a second, whatever the kernel's own clock ticks in.
const TICKS_PER_SECOND: f64 = 100.0;

/// What is to be run, and how.
#[derive(Clone, Debug)]
pub struct Program {
    binary: PathBuf,
    subcommand: String,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    log: PathBuf,
    /// Why it can't be started.
    problem: Option<String>,
}

impl Program {
    /// A subcommand of a binary under the account that the chart gives it, with a log of its own in the cluster's data
    /// folder.
    pub fn new(binary: &Path, cluster: &Cluster, subcommand: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let account = account(cluster, subcommand);
        let program = Program {
            binary: binary.into(),
            subcommand: subcommand.to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
            log: cluster.data_dir().join(format!("{subcommand}-{number}.log")),
            problem: account.as_ref().err().cloned(),
        };
        // What the kubelet sets in every container is how a program knows that it is to wait for its API server.
        let program = program.environment("KUBERNETES_SERVICE_HOST", "127.0.0.1");
        program.kubeconfig(&account.unwrap_or_default()).environment("TORPOR_LEASE_NAMESPACE", HOME)
    }

    /// The same with another binary.
    #[must_use]
    pub fn binary(mut self, path: &Path) -> Self {
        path.clone_into(&mut self.binary);
        self
    }

    /// The same as another user.
    #[must_use]
    pub fn kubeconfig(self, path: &Path) -> Self {
        self.environment("KUBECONFIG", &path.display().to_string())
    }

    /// The same with further arguments.
    #[must_use]
    pub fn arguments(mut self, more: &[&str]) -> Self {
        self.arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        self
    }

    /// The same with one more environment variable; the last value of a name counts.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts it and waits for nothing.
    pub fn start(self) -> Result<Process, String> {
        if let Some(problem) = self.problem {
            return Err(problem);
        }
        let text = |error: std::io::Error| error.to_string();
        let probes = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).map_err(text)?;
        let probes = probes.to_string();
        let log = File::options().create(true).append(true).open(&self.log).map_err(text)?;
        let child = Command::new(&self.binary)
            .args([&self.subcommand, "--probe-address", &probes])
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|error| format!("{}: {error}", self.binary.display()))?;
        Ok(Process { child, probes, program: self })
    }
}

/// A program that runs, or has run; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    probes: String,
    program: Program,
}

impl Process {
    /// Waits until `/readyz` says so.
    pub fn await_ready(&self, limit: Duration) -> Result<(), String> {
        eventually(limit, || match self.http("/readyz")? {
            (200, text) if text == "ready\n" => Ok(()),
            (code, body) => Err(format!("/readyz {code}: {body}; log: {}", self.log_text())),
        })
    }

    /// What its metrics say of a counter, its series together, or those that begin with the labels in `name`.
    pub fn counter(&self, name: &str) -> Result<f64, String> {
        let (_, page) = self.http("/metrics")?;
        let of_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ',', ' ']));
        let values = page.lines().filter(of_name).filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
        Ok(values.sum())
    }

    /// A GET on the probe port: status code and body.
    pub fn http(&self, path: &str) -> Result<(u16, String), String> {
        let text = |error: std::io::Error| error.to_string();
        let mut stream = TcpStream::connect(&self.probes).map_err(text)?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(text)?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").map_err(text)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(text)?;
        let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or("no status line")?;
        Ok((code, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()))
    }

    /// Host and port of its probes.
    pub fn probes(&self) -> &str {
        &self.probes
    }

    /// Everything it has logged, before restarts too.
    pub fn log_text(&self) -> String {
        std::fs::read_to_string(&self.program.log).unwrap_or_default()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Peak resident memory in KiB, as the kernel counts it.
    pub fn peak_kib(&self) -> Result<u64, String> {
        self.memory("VmHWM:")
    }

    /// Resident memory in KiB at this moment.
    pub fn rss_kib(&self) -> Result<u64, String> {
        self.memory("VmRSS:")
    }

    /// Seconds of processor time since its start, its own and the kernel's for it.
    pub fn cpu_seconds(&self) -> Result<f64, String> {
        let stat = self.proc("stat")?;
        // The second field is the program's name, which may hold spaces; utime and stime are fields 14 and 15.
        let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace()).ok_or("no name in stat")?;
        let ticks: Vec<u32> = fields.skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
        match ticks[..] {
            [user, system] => Ok((f64::from(user) + f64::from(system)) / TICKS_PER_SECOND),
            _ => Err(format!("no times in {stat:?}")),
        }
    }

    fn memory(&self, field: &str) -> Result<u64, String> {
        let status = self.proc("status")?;
        let value = status.lines().find_map(|line| line.strip_prefix(field));
        let kib = value.and_then(|value| value.trim().trim_end_matches(" kB").parse().ok());
        kib.ok_or_else(|| format!("no {field} in {status:?}; has the process ended?"))
    }

    fn proc(&self, file: &str) -> Result<String, String> {
        let path = format!("/proc/{}/{file}", self.pid());
        std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))
    }

    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) -> Result<(), String> {
        match Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status() {
            Ok(status) if status.success() => Ok(()),
            other => Err(format!("kill -{name}: {other:?}")),
        }
    }

    /// Whether it has not ended.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Its exit code, once it has ended by itself.
    pub fn ended(&mut self) -> Option<i32> {
        self.child.try_wait().ok().flatten().and_then(|status| status.code())
    }

    /// kill -9, then waits for its end. `false` when it had ended already.
    pub fn kill(&mut self) -> bool {
        let runs = self.runs();
        // Fails only for a process that has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        runs
    }

    /// kill -9, then the same program again with the same log, at another probe address. Does not wait until it is
    /// ready.
    pub fn restart(&mut self) -> Result<(), String> {
        self.kill();
        *self = self.program.clone().start()?;
        Ok(())
    }

    /// SIGTERM, then its exit code.
    pub fn terminate(&mut self) -> Result<Option<i32>, String> {
        self.signal("TERM")?;
        self.exit_code(END)
    }

    /// Waits for its end. No code means that a signal ended it.
    pub fn exit_code(&mut self, limit: Duration) -> Result<Option<i32>, String> {
        eventually(limit, || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status.code()),
            Ok(None) => Err(format!("torpor {} still runs", self.program.subcommand)),
            Err(error) => Err(error.to_string()),
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Gives a cluster the accounts, rights and policies of the chart in this folder.
pub fn install_accounts(cluster: &Cluster, chart: &Path) -> Result<(), String> {
    let text = |error| format!("{error:#}");
    let accounts: String = COMPONENTS
        .map(|component| {
            format!(
                "---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: torpor-{component}, namespace: {HOME}}}\n"
            )
        })
        .concat();
    let home = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {HOME}}}\n{accounts}");
    let apply = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
    cluster.kubectl_stdin(apply, &home).map_err(text)?;
    cluster.kubectl_stdin(apply, &rights_of_chart(&cluster.bin("helm"), chart)?).map(drop).map_err(text)
}

/// What the chart in this folder says of rights and policies, as YAML.
pub fn rights_of_chart(helm: &Path, chart: &Path) -> Result<String, String> {
    let output = Command::new(helm)
        .args(["template", "torpor"])
        .arg(chart)
        .args(["--namespace", HOME])
        .args(["--show-only", "templates/rbac/*.yaml", "--show-only", "templates/policy/*.yaml"])
        .output()
        .map_err(|error| format!("helm: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("helm template: {}", String::from_utf8_lossy(&output.stderr)))
    }
}

/// Gives a cluster the custom resources of a binary, and waits until they can be used.
pub fn install_crds(binary: &Path, cluster: &Cluster) -> Result<(), String> {
    let crds = Command::new(binary).arg("crds").output().map_err(|error| format!("{}: {error}", binary.display()))?;
    let yaml = String::from_utf8_lossy(&crds.stdout);
    let kubectl =
        |arguments: &[&str]| cluster.kubectl_stdin(arguments, &yaml).map(drop).map_err(|error| format!("{error:#}"));
    kubectl(&["apply", "--server-side", "-f", "-"])?;
    kubectl(&["wait", "--for=condition=Established", "--timeout=30s", "-f", "-"])
}

/// A kubeconfig with which one is a program of Torpor's.
pub fn account(cluster: &Cluster, component: &str) -> Result<PathBuf, String> {
    cluster.kubeconfig_for_service_account(HOME, &format!("torpor-{component}")).map_err(|error| format!("{error:#}"))
}

/// Tries until it succeeds; after the limit, the last error. Ever less often: most attempts start a kubectl, and would take
/// a quarter of a small machine from what is waited for.
pub fn eventually<T>(limit: Duration, mut attempt: impl FnMut() -> Result<T, String>) -> Result<T, String> {
    let start = Instant::now();
    loop {
        let waited = start.elapsed();
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if waited >= limit => return Err(format!("not within {limit:?}: {error}")),
            Err(_) => std::thread::sleep((waited / 20).clamp(Duration::from_millis(200), Duration::from_millis(600))),
        }
    }
}

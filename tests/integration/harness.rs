//! A cluster with the CRDs, an operator process beside it, and waiting with a limit.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use torpor_cluster::{Cluster, Options};

/// The binary under test.
pub const TORPOR: &str = env!("CARGO_BIN_EXE_torpor");

/// A cluster, and an operator that works on it.
pub struct Ctx {
    /// The operator; stopped before the cluster.
    pub operator: Operator,
    /// The cluster.
    pub cluster: Cluster,
}

impl Ctx {
    /// The shared cluster: default nodes, bots that take a second to stop, the default pools.
    pub fn start() -> Result<Self, String> {
        let ctx = Self::with(Options { graceful_stop: Some(Duration::from_secs(1)), ..Options::default() }, &[])?;
        ctx.apply_file("examples/pools.yaml")?;
        Ok(ctx)
    }

    /// A cluster of one's own, with the CRDs and an operator started with further arguments.
    pub fn with(options: Options, arguments: &[&str]) -> Result<Self, String> {
        let cluster = bare(options)?;
        let operator = Operator::start(&cluster, arguments)?;
        Ok(Ctx { operator, cluster })
    }

    /// Runs kubectl; the error carries what it printed.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        self.cluster.kubectl(arguments).map_err(|error| format!("{error:#}"))
    }

    /// Runs kubectl with standard input.
    pub fn kubectl_stdin(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        self.cluster.kubectl_stdin(arguments, input).map_err(|error| format!("{error:#}"))
    }

    /// Applies YAML.
    pub fn apply(&self, yaml: &str) -> Result<String, String> {
        self.kubectl_stdin(&["apply", "-f", "-"], yaml)
    }

    /// Applies a file of the project.
    pub fn apply_file(&self, path: &str) -> Result<String, String> {
        self.kubectl(&["apply", "-f", path])
    }

    /// One object, or all of a kind, as JSON.
    pub fn get(&self, arguments: &[&str]) -> Result<Value, String> {
        let text = self.kubectl(&[&["get", "-o", "json"], arguments].concat())?;
        serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
    }

    /// Waits until a condition of an object has a status, and returns the object.
    pub fn await_condition(
        &self,
        object: &[&str],
        type_: &str,
        status: &str,
        limit: Duration,
    ) -> Result<Value, String> {
        eventually(limit, || {
            let found = self.get(object)?;
            let condition = condition(&found, type_);
            if condition["status"] == status { Ok(found) } else { Err(format!("{object:?} {type_}: {condition}")) }
        })
    }

    /// Waits until a tenant is Ready.
    pub fn await_ready(&self, tenant: &str) -> Result<Value, String> {
        self.await_condition(&["tenant", tenant], "Ready", "True", Duration::from_secs(180))
    }
}

/// A cluster with the CRDs and without an operator.
pub fn bare(options: Options) -> Result<Cluster, String> {
    let cluster = Cluster::connect_or_start(options).map_err(|error| format!("{error:#}"))?;
    let crds = Command::new(TORPOR).arg("crds").output().map_err(|error| error.to_string())?;
    let yaml = String::from_utf8_lossy(&crds.stdout);
    let kubectl =
        |arguments: &[&str], input: &str| cluster.kubectl_stdin(arguments, input).map_err(|error| format!("{error:#}"));
    kubectl(&["apply", "--server-side", "-f", "-"], &yaml)?;
    kubectl(&["wait", "--for=condition=Established", "--timeout=30s", "-f", "-"], &yaml)?;
    Ok(cluster)
}

/// The condition of a type, or null.
pub fn condition<'a>(object: &'a Value, type_: &str) -> &'a Value {
    object["status"]["conditions"]
        .as_array()
        .and_then(|conditions| conditions.iter().find(|condition| condition["type"] == type_))
        .unwrap_or(&Value::Null)
}

/// Tries until it succeeds; after the limit, the last error.
pub fn eventually<T>(limit: Duration, mut attempt: impl FnMut() -> Result<T, String>) -> Result<T, String> {
    let end = Instant::now() + limit;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= end => return Err(format!("not within {limit:?}: {error}")),
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

/// A running `torpor operator`.
pub struct Operator {
    child: Child,
    log: PathBuf,
    probes: String,
    kubeconfig: PathBuf,
    arguments: Vec<String>,
}

impl Operator {
    /// Starts it and waits until it is ready.
    pub fn start(cluster: &Cluster, arguments: &[&str]) -> Result<Self, String> {
        let number = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_err(|error| error.to_string())?
            .as_nanos();
        let log = cluster.data_dir().join(format!("operator-{number}.log"));
        let operator = Self::spawn(cluster.kubeconfig(), log, arguments.iter().map(|a| (*a).to_owned()).collect())?;
        operator.await_ready()?;
        Ok(operator)
    }

    fn spawn(kubeconfig: &Path, log: PathBuf, arguments: Vec<String>) -> Result<Self, String> {
        let probes = free_address()?;
        let file = File::options().create(true).append(true).open(&log).map_err(|error| error.to_string())?;
        let child = Command::new(TORPOR)
            .args(["operator", "--probe-address", &probes, "--lease-seconds", "60"])
            .args(&arguments)
            .env("KUBECONFIG", kubeconfig)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .map_err(|error| error.to_string())?;
        Ok(Operator { child, log, probes, kubeconfig: kubeconfig.to_owned(), arguments })
    }

    /// Waits until `/readyz` says so.
    pub fn await_ready(&self) -> Result<(), String> {
        eventually(Duration::from_secs(60), || match self.http("/readyz")? {
            (200, text) if text == "ready\n" => Ok(()),
            (code, body) => Err(format!("/readyz {code}: {body}; log: {}", self.log_text())),
        })
    }

    /// A GET on the probe port: status code and body.
    pub fn http(&self, path: &str) -> Result<(u16, String), String> {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(&self.probes).map_err(|error| error.to_string())?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(|error| error.to_string())?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .map_err(|error| error.to_string())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(|error| error.to_string())?;
        let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or("no status line")?;
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
        Ok((code, body))
    }

    /// Everything it has logged.
    pub fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Peak resident memory in KiB, as the kernel counts it.
    pub fn peak_kib(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim().trim_end_matches(" kB").parse().ok()
    }

    /// kill -9, then waits for its end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again with the same arguments and log. Does not wait until it is ready.
    pub fn restart(&mut self) -> Result<(), String> {
        self.kill();
        *self = Self::spawn(&self.kubeconfig.clone(), self.log.clone(), self.arguments.clone())?;
        Ok(())
    }

    /// SIGTERM, then its exit code.
    pub fn terminate(&mut self) -> Result<Option<i32>, String> {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        self.exit_code(Duration::from_secs(40))
    }

    /// Waits for its end.
    pub fn exit_code(&mut self, limit: Duration) -> Result<Option<i32>, String> {
        eventually(limit, || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status.code()),
            Ok(None) => Err("the operator still runs".to_owned()),
            Err(error) => Err(error.to_string()),
        })
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_address() -> Result<String, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    Ok(listener.local_addr().map_err(|error| error.to_string())?.to_string())
}

//! One Torpor program as a process.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

/// How it is started.
#[derive(Clone, Debug)]
pub struct Program {
    /// The binary.
    pub binary: PathBuf,
    /// `operator`, `hibernator` or `gateway`.
    pub subcommand: String,
    /// More arguments.
    pub arguments: Vec<String>,
    /// How it reaches the API server.
    pub kubeconfig: PathBuf,
    /// Namespace of its Lease.
    pub lease_namespace: String,
    /// Where its log is appended.
    pub log: PathBuf,
}

/// A process that runs, or has run; killed when dropped.
pub struct Process {
    child: Child,
    probes: String,
    log: PathBuf,
}

impl Program {
    /// Starts it and waits for nothing.
    pub fn start(&self) -> Result<Process> {
        let probes = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let log = File::options().create(true).append(true).open(&self.log)?;
        let child = Command::new(&self.binary)
            .args([&self.subcommand, "--probe-address", &probes])
            .args(&self.arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("TORPOR_LEASE_NAMESPACE", &self.lease_namespace)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", self.binary.display()))?;
        Ok(Process { child, probes, log: self.log.clone() })
    }
}

impl Process {
    /// kill -9, then waits for its end. `false` when it had ended already.
    pub fn kill(&mut self) -> bool {
        let runs = self.runs();
        // Fails only for a process that has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        runs
    }

    /// Whether it has not ended.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Its exit code, once it has ended by itself.
    pub fn ended(&mut self) -> Option<i32> {
        self.child.try_wait().ok().flatten().and_then(|status| status.code())
    }

    /// Sends a signal: `STOP`, `CONT`, `TERM`.
    pub fn signal(&self, name: &str) -> Result<()> {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status()?;
        anyhow::ensure!(status.success(), "kill -{name}: {status}");
        Ok(())
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What `/readyz` says: the code and the text; an error while nobody answers.
    pub async fn readiness(&self, client: &reqwest::Client) -> Result<(u16, String)> {
        let request = client.get(format!("http://{}/readyz", self.probes)).timeout(Duration::from_secs(5));
        let answer = request.send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    /// Its metrics by name and labels.
    pub async fn metrics(&self, client: &reqwest::Client) -> Result<BTreeMap<String, f64>> {
        let request = client.get(format!("http://{}/metrics", self.probes)).timeout(Duration::from_secs(5));
        let page = request.send().await?.text().await?;
        let values = page.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Ok(values.collect())
    }

    /// The kinds whose watch its metrics call broken.
    pub async fn broken_watches(&self, client: &reqwest::Client) -> Result<Vec<String>> {
        let metrics = self.metrics(client).await?;
        let down = metrics.iter().filter(|(_, value)| **value < 0.5);
        let kind = |name: &String| Some(name.strip_prefix("torpor_watch_up{kind=\"")?.strip_suffix("\"}")?.to_owned());
        Ok(down.filter_map(|(name, _)| kind(name)).collect())
    }

    /// Where its log is.
    pub fn log(&self) -> &Path {
        &self.log
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

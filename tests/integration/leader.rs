//! Several operators by mistake: one works, the others wait, and who cannot prove that it leads ends.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::harness::eventually;

/// An operator of any program and any user; killed when dropped.
pub struct Process {
    child: Child,
    log: PathBuf,
    probes: String,
}

impl Process {
    /// Starts it and waits for nothing. Its log goes into the folder.
    pub fn start(program: &Path, kubeconfig: &Path, folder: &Path, arguments: &[&str]) -> Result<Self, String> {
        let probes = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .map_err(|error| error.to_string())?
            .to_string();
        let log = folder.join(format!("operator-{}.log", probes.replace(':', "-")));
        let file = File::create(&log).map_err(|error| error.to_string())?;
        let child = Command::new(program)
            .args(["operator", "--probe-address", &probes, "--lease-seconds", "5"])
            .args(arguments)
            .env("KUBECONFIG", kubeconfig)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .map_err(|error| error.to_string())?;
        Ok(Process { child, log, probes })
    }

    /// A GET on the probe port: status code and body.
    pub fn http(&self, path: &str) -> Result<(u16, String), String> {
        let io = |error: std::io::Error| error.to_string();
        let mut stream = TcpStream::connect(&self.probes).map_err(io)?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(io)?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").map_err(io)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(io)?;
        let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or("no status line")?;
        Ok((code, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()))
    }

    /// Waits until `/readyz` says so.
    pub fn await_ready(&self, limit: Duration) -> Result<(), String> {
        eventually(limit, || match self.http("/readyz")? {
            (200, text) if text == "ready\n" => Ok(()),
            (code, body) => Err(format!("/readyz {code}: {body}; log: {}", self.log_text())),
        })
    }

    /// Everything it has logged.
    pub fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) -> Result<(), String> {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        match status {
            Ok(status) if status.success() => Ok(()),
            other => Err(format!("kill -{name}: {other:?}")),
        }
    }

    /// SIGTERM, then its exit code.
    pub fn terminate(&mut self) -> Result<Option<i32>, String> {
        self.signal("TERM")?;
        self.exit_code(Duration::from_secs(15))
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

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only for a process that has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

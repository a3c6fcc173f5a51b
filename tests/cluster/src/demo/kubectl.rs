//! kubectl on the demo's cluster.

use std::{
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The program and the files it needs.
pub struct Kubectl {
    /// The built program.
    pub program: PathBuf,
    /// How to reach the cluster.
    pub kubeconfig: PathBuf,
    /// Its discovery cache: the default one is keyed by address, which later clusters use again.
    pub cache: PathBuf,
}

impl Kubectl {
    /// Runs it and returns its stdout; the error carries its stderr.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        self.with_input(args, "")
    }

    /// The same with a standard input.
    pub fn with_input(&self, args: &[&str], input: &str) -> Result<String> {
        let mut child = Command::new(&self.program)
            .args(args)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("KUBECACHEDIR", &self.cache)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start kubectl")?;
        if let Some(mut stdin) = child.stdin.take() {
            // kubectl may well end without reading its input; its exit code tells.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!("kubectl {}: {}", args.join(" "), stderr.trim());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Objects as JSON.
    pub fn get(&self, args: &[&str]) -> Result<Value> {
        let text = self.run(&[&["get", "-o", "json"], args].concat())?;
        Ok(serde_json::from_str(&text)?)
    }
}

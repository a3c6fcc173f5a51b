//! kubectl on one cluster.

use std::{
    ffi::OsStr,
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// The program and the files it needs.
#[derive(Clone, Debug)]
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
    pub fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Result<String> {
        self.run_with_input(args, "")
    }

    /// The same with `input` as its stdin, for `apply -f -`.
    pub fn run_with_input<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>, input: &str) -> Result<String> {
        let mut command = self.command();
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start kubectl")?;
        if let Some(mut stdin) = child.stdin.take() {
            // kubectl may well end without reading its input; its exit code tells.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let words: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
            let stderr = String::from_utf8_lossy(&output.stderr);
            // The discovery client logs each of its attempts; kubectl's own message follows them.
            let lines = stderr.lines().filter(|line| !line.contains(" memcache.go:"));
            let message = lines.collect::<Vec<_>>().join("\n");
            bail!("kubectl {}: {}", words.join(" "), message.trim());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The command without arguments, for those who read its output as it comes.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env("KUBECONFIG", &self.kubeconfig).env("KUBECACHEDIR", &self.cache);
        command
    }
}

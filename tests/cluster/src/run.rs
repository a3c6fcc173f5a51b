//! One command with a cluster around it.

use std::{
    env,
    ffi::OsString,
    io::IsTerminal,
    os::unix::process::ExitStatusExt,
    process::{Command, ExitCode},
    sync::{Arc, Mutex},
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::SIGINT;
use torpor_cluster::{Cluster, Options};

use crate::signals;

pub fn run(command: &[OsString]) -> Result<ExitCode> {
    let running: Arc<Mutex<Option<Pid>>> = Arc::default();
    let target = Arc::clone(&running);
    signals::on_signal(move |signal| {
        let pid = *target.lock().unwrap_or_else(|error| error.into_inner());
        match pid {
            // The cluster's processes end with ours.
            None => std::process::exit(128 + signal),
            // A terminal has sent it to the command too.
            Some(_) if signal == SIGINT && std::io::stdin().is_terminal() => {}
            Some(pid) => {
                let _ = kill_process(pid, Signal::from_named_raw(signal).unwrap_or(Signal::TERM));
            }
        }
    })?;
    let cluster = Cluster::connect_or_start(Options::default())?;
    let mut path = OsString::from(cluster.bin_dir());
    if let Some(rest) = env::var_os("PATH") {
        path.push(":");
        path.push(rest);
    }
    let (program, args) = command.split_first().context("no command")?;
    let set = |pid| *running.lock().unwrap_or_else(|error| error.into_inner()) = pid;
    let mut child = Command::new(program)
        .args(args)
        .env("KUBECONFIG", cluster.kubeconfig())
        .env("PATH", path)
        .spawn()
        .with_context(|| format!("cannot run {}", program.display()))?;
    set(Some(Pid::from_child(&child)));
    let status = child.wait()?;
    set(None);
    cluster.stop();
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

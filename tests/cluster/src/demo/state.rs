//! Where the demo's background process is found again: a folder in the user's cache, the same from every clone.

use std::{
    fs::{self, File, TryLockError},
    io::{ErrorKind, Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use torpor_cluster::cache_dir;

use super::{eventually, say};

/// The folder.
pub struct State {
    dir: PathBuf,
}

/// What there is to know of a running demo.
pub struct Running {
    /// How to reach the cluster.
    pub kubeconfig: PathBuf,
    /// Folder of logs and data; it goes with the demo.
    pub data: PathBuf,
    /// The operator's log.
    pub operator_log: PathBuf,
    /// The hibernator's log.
    pub hibernator_log: PathBuf,
    /// The gateway's log.
    pub gateway_log: PathBuf,
    /// Host and port of the operator's probes and metrics.
    pub probes: String,
    /// Host and port of the gateway.
    pub gateway: String,
    /// Whether the cluster was started for the demo.
    pub own_cluster: bool,
}

impl State {
    /// Opens the folder, which is made if need be.
    pub fn open() -> Result<Self> {
        let dir = cache_dir()?.join("demo");
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(State { dir })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Lines for the user, and whatever else the background process prints.
    pub fn log(&self) -> PathBuf {
        self.file("serve.log")
    }

    /// Why the background process ended, if it failed.
    pub fn error(&self) -> PathBuf {
        self.file("error")
    }

    /// Held by the background process as long as it lives, so nothing stale is ever taken for a running demo.
    pub fn try_lock(&self) -> Result<Option<File>> {
        let file = File::create(self.file("lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error.into()),
        }
    }

    /// Forgets a demo that has ended.
    pub fn clear(&self) -> Result<()> {
        for name in ["kubeconfig", "running", "pid", "error"] {
            match fs::remove_file(self.file(name)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Leaves our pid for who wants to stop us.
    pub fn write_pid(&self) -> Result<()> {
        Ok(fs::write(self.file("pid"), std::process::id().to_string())?)
    }

    /// Tells that the demo runs. Others wait for this file, so it appears complete.
    pub fn publish(&self, running: &Running) -> Result<()> {
        let mut kubeconfig = running.kubeconfig.clone();
        if running.own_cluster {
            // A place that stays the same from one demo to the next. The file holds a key.
            kubeconfig = self.file("kubeconfig");
            let mut file =
                fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&kubeconfig)?;
            std::io::copy(&mut File::open(&running.kubeconfig)?, &mut file)?;
        }
        let text = json!({
            "kubeconfig": kubeconfig,
            "data": running.data,
            "operatorLog": running.operator_log,
            "hibernatorLog": running.hibernator_log,
            "gatewayLog": running.gateway_log,
            "probes": running.probes,
            "gateway": running.gateway,
            "ownCluster": running.own_cluster,
        });
        let partial = self.file("running.partial");
        fs::write(&partial, text.to_string())?;
        fs::rename(partial, self.file("running"))?;
        Ok(())
    }

    /// The demo that runs, once it has been published.
    pub fn running(&self) -> Option<Running> {
        let text = fs::read_to_string(self.file("running")).ok()?;
        let value: Value = serde_json::from_str(&text).ok()?;
        let path = |key: &str| value[key].as_str().map(PathBuf::from);
        Some(Running {
            kubeconfig: path("kubeconfig")?,
            data: path("data")?,
            operator_log: path("operatorLog")?,
            hibernator_log: path("hibernatorLog")?,
            gateway_log: path("gatewayLog")?,
            gateway: value["gateway"].as_str()?.to_owned(),
            probes: value["probes"].as_str()?.to_owned(),
            own_cluster: value["ownCluster"].as_bool()?,
        })
    }

    /// Asks the background process to end and waits until it has; `false` when there is none.
    /// Its lines go to `relay` meanwhile.
    pub fn stop(&self, mut relay: impl FnMut()) -> Result<bool> {
        if self.try_lock()?.is_some() {
            self.clear()?;
            return Ok(false);
        }
        // It writes its pid right after it has taken the lock.
        let pid = eventually(Duration::from_secs(5), || {
            let text = fs::read_to_string(self.file("pid")).unwrap_or_default();
            let pid = text.trim().parse().ok().and_then(Pid::from_raw);
            Ok(pid.ok_or_else(|| format!("a demo runs, but there is no pid in {}", self.file("pid").display())))
        })?;
        // It may end by itself at this very moment.
        let _ = kill_process(pid, Signal::TERM);
        eventually(Duration::from_secs(240), || {
            relay();
            let ended = self.try_lock()?.is_some();
            Ok(if ended { Ok(()) } else { Err(format!("process {} does not end", pid.as_raw_nonzero())) })
        })?;
        relay();
        self.clear()?;
        Ok(true)
    }
}

/// `torpor-demo stop`.
pub fn stop() -> Result<()> {
    let state = State::open()?;
    let mut follow = Follow::from_end(&state.log());
    let stopped = state.stop(|| follow.lines().iter().for_each(say))?;
    say(if stopped { "The demo is stopped." } else { "No demo runs." });
    Ok(())
}

/// Reads the lines that are added to a file.
pub struct Follow {
    file: PathBuf,
    at: u64,
}

impl Follow {
    /// From the beginning.
    pub fn from_start(file: &Path) -> Self {
        Follow { file: file.to_owned(), at: 0 }
    }

    /// Only what is added from now on.
    pub fn from_end(file: &Path) -> Self {
        Follow { file: file.to_owned(), at: fs::metadata(file).map_or(0, |metadata| metadata.len()) }
    }

    /// Complete lines since the last call.
    pub fn lines(&mut self) -> Vec<String> {
        let mut bytes = Vec::new();
        let read = File::open(&self.file).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.at))?;
            file.read_to_end(&mut bytes)
        });
        let Some(end) = read.ok().and_then(|_| bytes.iter().rposition(|&byte| byte == b'\n')) else {
            return Vec::new();
        };
        self.at += end as u64 + 1;
        String::from_utf8_lossy(&bytes[..end]).lines().map(str::to_owned).collect()
    }
}

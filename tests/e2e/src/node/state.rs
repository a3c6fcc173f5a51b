//! What a run changes on the machine itself, written down before it is changed, so that the next one can undo it.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use torpor_cluster::cache_dir;

use super::{
    cgroup, network,
    space::{runs, start_time, wait_for_end},
};

/// The kubelet sets these for the whole machine.
const SYSCTLS: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];

/// The folder of everything that a run writes; deleted at its end.
pub fn run_dir() -> Result<PathBuf> {
    Ok(home()?.join("run"))
}

/// The folder of locks and of what `torpor-e2e up` tells `down`.
pub fn home() -> Result<PathBuf> {
    Ok(cache_dir()?.join("e2e"))
}

/// Clears away what a run that was killed has left.
pub fn clean() -> Result<()> {
    let taken = Machine::take(lock(false)?)?;
    drop(taken);
    Ok(())
}

/// One run at a time holds the machine.
pub(super) fn lock(wait: bool) -> Result<File> {
    let home = home()?;
    fs::create_dir_all(&home).with_context(|| format!("cannot create {}", home.display()))?;
    let lock = File::create(home.join("lock"))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::Error(error)) => return Err(error.into()),
        Err(TryLockError::WouldBlock) => {
            ensure!(wait, "another run holds the machine; it ends by itself, or with torpor-e2e down");
            eprintln!("another run holds the machine, waiting for its end");
            lock.lock()?;
        }
    }
    Ok(lock)
}

/// What there is to undo.
#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
struct Changes {
    /// Values of the machine's settings before the run.
    sysctls: BTreeMap<String, String>,
    /// Process 1 of each space, with its start time.
    spaces: BTreeMap<u32, String>,
}

/// The machine, held by one run at a time. Dropping it undoes what was changed.
pub(super) struct Machine {
    file: PathBuf,
    changes: Changes,
    // Last: another run may begin only when all is undone.
    _lock: File,
}

impl Machine {
    /// Takes the machine, and clears away what a run that was killed has left.
    pub(super) fn take(lock: File) -> Result<Self> {
        let home = home()?;
        let file = home.join("changes.json");
        let changes = match fs::read_to_string(&file) {
            Ok(text) => serde_json::from_str(&text).with_context(|| format!("cannot read {}", file.display()))?,
            Err(error) if error.kind() == ErrorKind::NotFound => Changes::default(),
            Err(error) => return Err(error.into()),
        };
        let mut machine = Self { file, changes, _lock: lock };
        machine.undo()?;
        Ok(machine)
    }

    /// Notes the machine's settings, and makes the empty data folder.
    pub(super) fn prepare(&mut self) -> Result<PathBuf> {
        for name in SYSCTLS {
            // Not every kernel has each of them.
            if let Ok(value) = fs::read_to_string(Path::new("/proc/sys").join(name)) {
                self.changes.sysctls.insert(name.into(), value.trim().into());
            }
        }
        network::check_addresses()?;
        self.save()?;
        network::reserve_addresses()?;
        let run = run_dir()?;
        fs::create_dir_all(&run)?;
        Ok(run)
    }

    /// Notes a space, whose end somebody may have to bring about.
    pub(super) fn watch(&mut self, init: u32) -> Result<()> {
        if let Some(start) = start_time(init) {
            self.changes.spaces.insert(init, start);
        }
        self.save()
    }

    fn save(&self) -> Result<()> {
        let partial = self.file.with_extension("partial");
        fs::write(&partial, serde_json::to_string(&self.changes)?)?;
        Ok(fs::rename(partial, &self.file)?)
    }

    fn undo(&mut self) -> Result<()> {
        for (pid, start) in &self.changes.spaces {
            // The pid alone may be another's by now.
            if let Some(target) = i32::try_from(*pid).ok().and_then(Pid::from_raw)
                && runs(*pid)
                && start_time(*pid).as_ref() == Some(start)
            {
                let _ = kill_process(target, Signal::KILL);
                wait_for_end(*pid);
            }
        }
        for (name, value) in &self.changes.sysctls {
            let path = Path::new("/proc/sys").join(name);
            fs::write(&path, value).with_context(|| format!("cannot restore {}", path.display()))?;
        }
        cgroup::remove()?;
        network::release_addresses();
        remove_dir(&run_dir()?)?;
        self.changes = Changes::default();
        match fs::remove_file(&self.file) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = self.undo() {
            eprintln!("the machine is not as it was: {error:#}; the next run tries again");
        }
    }
}

fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot delete {}", dir.display()))
        }
        _ => Ok(()),
    }
}

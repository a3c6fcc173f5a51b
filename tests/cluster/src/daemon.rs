//! A cluster in the background: `up`, the process behind it, and `down`.

use std::{
    fs::{self, File},
    io::ErrorKind,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process, setsid};
use torpor_cluster::{Cluster, Options, Tools, cache_dir};

use crate::{UpArgs, signals};

/// Where `up` leaves what `down` needs.
struct State {
    dir: PathBuf,
}

impl State {
    fn open() -> Result<Self> {
        let dir = cache_dir()?.join("cluster");
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(Self { dir })
    }

    fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.join("pid")
    }

    fn log(&self) -> PathBuf {
        self.dir.join("serve.log")
    }

    /// Held by the serving process as long as it lives, so a stale state is never taken for a running cluster.
    fn try_lock(&self) -> Result<Option<File>> {
        let file = File::create(self.dir.join("lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(error.into()),
        }
    }

    fn clear(&self) -> Result<()> {
        for file in [self.kubeconfig(), self.pid_file()] {
            match fs::remove_file(&file) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    fn print_use(&self) -> Result<()> {
        let kubeconfig = self.kubeconfig();
        println!("kubeconfig: {}", kubeconfig.display());
        println!("use it:     export KUBECONFIG={}", quoted(&kubeconfig));
        println!("programs:   export PATH={}:\"$PATH\"", quoted(&Tools::dir()?));
        println!("stop it:    {} down", quoted(&std::env::current_exe()?));
        Ok(())
    }
}

/// Starts the serving process, and returns when its cluster is ready.
pub fn up(args: &UpArgs) -> Result<()> {
    let state = State::open()?;
    if state.try_lock()?.is_none() {
        wait(|| Ok(state.kubeconfig().exists())).context("a cluster is starting, but does not get ready")?;
        println!("a cluster runs already");
        return state.print_use();
    }
    Tools::ensure()?;
    state.clear()?;
    let log = File::create(state.log())?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["serve", "--nodes-per-pool"])
        .arg(args.nodes_per_pool.to_string())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    if let Some(dir) = &args.keep_dir {
        command.arg("--keep-dir").arg(std::path::absolute(dir)?);
    }
    let mut serve = command.spawn()?;
    let pid = Pid::from_child(&serve);
    signals::on_signal(move |signal| {
        // It has left our process group, so it doesn't hear of a Ctrl-C by itself.
        let _ = kill_process(pid, Signal::TERM);
        std::process::exit(128 + signal);
    })?;
    loop {
        if state.kubeconfig().exists() {
            println!("the cluster is ready");
            return state.print_use();
        }
        if serve.try_wait()?.is_some() {
            let log = fs::read_to_string(state.log()).unwrap_or_default();
            bail!("{}", log.trim().trim_start_matches("error: "));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The process behind `up`: runs until it is told to stop.
pub fn serve(args: &UpArgs) -> Result<()> {
    // The end of the shell that called `up` must not reach us.
    setsid().context("serve is started by up")?;
    let state = State::open()?;
    let Some(_lock) = state.try_lock()? else {
        bail!("a cluster runs already");
    };
    let (stop, stopped) = std::sync::mpsc::channel();
    let ready = Arc::new(AtomicBool::new(false));
    let is_ready = Arc::clone(&ready);
    signals::on_signal(move |signal| {
        // Half a cluster needs no orderly stop: its processes end with ours.
        if !is_ready.load(Ordering::SeqCst) {
            std::process::exit(128 + signal);
        }
        let _ = stop.send(());
    })?;
    fs::write(state.pid_file(), std::process::id().to_string())?;
    let cluster = Cluster::start(Options {
        nodes_per_pool: args.nodes_per_pool,
        keep_dir: args.keep_dir.clone(),
        ..Options::default()
    })?;
    ready.store(true, Ordering::SeqCst);
    publish(cluster.kubeconfig(), &state.kubeconfig())?;
    stopped.recv()?;
    state.clear()?;
    cluster.stop();
    Ok(())
}

/// Others wait for this file to appear, so it must appear complete.
fn publish(from: &Path, to: &Path) -> Result<()> {
    let partial = to.with_extension("partial");
    fs::copy(from, &partial)?;
    // In the data folder the folder itself keeps others out.
    fs::set_permissions(&partial, fs::Permissions::from_mode(0o600))?;
    fs::rename(partial, to)?;
    Ok(())
}

/// Stops the serving process and waits for its end.
pub fn down() -> Result<()> {
    let state = State::open()?;
    if state.try_lock()?.is_some() {
        state.clear()?;
        println!("no cluster runs");
        return Ok(());
    }
    let text = fs::read_to_string(state.pid_file()).context("a cluster runs, but not its pid file")?;
    let pid = text.trim().parse().ok().and_then(Pid::from_raw);
    let pid = pid.with_context(|| format!("no pid in {}", state.pid_file().display()))?;
    kill_process(pid, Signal::TERM)?;
    wait(|| Ok(state.try_lock()?.is_some())).context("the cluster does not stop")?;
    println!("the cluster is stopped");
    Ok(())
}

fn wait(mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    for _ in 0..1800 {
        if done()? {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    ensure!(done()?, "gave up after 90 s");
    Ok(())
}

fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

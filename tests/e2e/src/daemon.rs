//! A cluster in the background: `up`, the process behind it, and `down`; and one around a command.

use std::{
    env,
    ffi::OsString,
    fs::{self, File, TryLockError},
    io::{ErrorKind, Read, Write},
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process, setsid};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};
use torpor_e2e::node::{self, Cluster, Options};

const STOP_LIMIT: Duration = Duration::from_secs(90);

/// Where `up` leaves what `down` needs.
struct State {
    dir: PathBuf,
}

impl State {
    fn open() -> Result<Self> {
        let dir = node::home()?;
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(Self { dir })
    }

    fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.join("pid")
    }

    /// Held by the serving process as long as it lives, so a stale state is never taken for a running cluster.
    fn try_lock(&self) -> Result<Option<File>> {
        let file = File::create(self.dir.join("serve.lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error.into()),
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
        println!("kubeconfig: export KUBECONFIG={}", quoted(&self.kubeconfig()));
        println!("programs:   export PATH={}:\"$PATH\"", quoted(&torpor_cluster::Tools::dir()?));
        println!("logs:       {}", quoted(&node::run_dir()?));
        println!("stop it:    {} down", quoted(&env::current_exe()?));
        Ok(())
    }
}

/// Starts the serving process, shows what it says, and returns when its cluster is ready.
pub fn up() -> Result<ExitCode> {
    let state = State::open()?;
    if state.try_lock()?.is_none() {
        println!("the cluster runs already");
        state.print_use()?;
        return Ok(ExitCode::SUCCESS);
    }
    state.clear()?;
    let path = state.dir.join("serve.log");
    let log = File::create(&path)?;
    let mut serve = Command::new(env::current_exe()?)
        .arg("serve")
        .args(env::args_os().skip(2))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    let pid = Pid::from_child(&serve);
    on_signal(move |_| {
        // It has left our process group, so it doesn't hear of a Ctrl-C by itself.
        let _ = kill_process(pid, Signal::TERM);
    })?;
    let mut log = File::open(&path)?;
    loop {
        let ended = serve.try_wait()?;
        let mut text = String::new();
        log.read_to_string(&mut text)?;
        eprint!("{text}");
        std::io::stderr().flush()?;
        if let Some(status) = ended {
            return Ok(code(status.code(), status.signal()));
        }
        if state.kubeconfig().exists() {
            state.print_use()?;
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The process behind `up`: runs until it is told to stop.
pub fn serve(options: Options) -> Result<ExitCode> {
    // The end of the shell that called `up` must not reach us.
    setsid().context("serve is started by up")?;
    let state = State::open()?;
    let Some(_lock) = state.try_lock()? else {
        bail!("the cluster runs already");
    };
    fs::write(state.pid_file(), std::process::id().to_string())?;
    // Who asks us to stop in the middle of the start waits for the end of it.
    let (stop, stopped) = mpsc::channel();
    on_signal(move |_| {
        let _ = stop.send(());
    })?;
    let cluster = match Cluster::start(options) {
        Ok(cluster) => cluster,
        Err(error) => {
            state.clear()?;
            return Err(error);
        }
    };
    publish(cluster.kubeconfig(), &state.kubeconfig())?;
    stopped.recv()?;
    state.clear()?;
    cluster.stop();
    Ok(ExitCode::SUCCESS)
}

/// Others wait for this file to appear, so it must appear complete.
fn publish(from: &Path, to: &Path) -> Result<()> {
    let partial = to.with_extension("partial");
    fs::copy(from, &partial)?;
    // It holds the administrator's key.
    fs::set_permissions(&partial, fs::Permissions::from_mode(0o600))?;
    Ok(fs::rename(partial, to)?)
}

/// Stops the serving process and waits for its end; clears away what a killed one left.
pub fn down() -> Result<ExitCode> {
    let state = State::open()?;
    if state.try_lock()?.is_some() {
        state.clear()?;
        node::clean()?;
        println!("no cluster runs");
        return Ok(ExitCode::SUCCESS);
    }
    let text = fs::read_to_string(state.pid_file()).context("a cluster runs, but not its pid file")?;
    let pid = text.trim().parse().ok().and_then(Pid::from_raw);
    kill_process(pid.with_context(|| format!("no pid in {}", state.pid_file().display()))?, Signal::TERM)?;
    let asked = Instant::now();
    while state.try_lock()?.is_none() {
        ensure!(
            asked.elapsed() < STOP_LIMIT,
            "the cluster does not stop; its log is {}",
            state.dir.join("serve.log").display()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    println!("the cluster is stopped");
    Ok(ExitCode::SUCCESS)
}

/// One command with a cluster around it.
pub fn run(options: Options, command: &[OsString]) -> Result<ExitCode> {
    // A terminal sends it to the command too, whose end is ours.
    let (stop, stopped) = mpsc::channel();
    on_signal(move |_| {
        let _ = stop.send(());
    })?;
    let cluster = Cluster::start(options)?;
    let mut path = OsString::from(cluster.bin_dir());
    if let Some(rest) = env::var_os("PATH") {
        path.push(":");
        path.push(rest);
    }
    let (program, args) = command.split_first().context("no command")?;
    let mut child = Command::new(program)
        .args(args)
        .env("KUBECONFIG", cluster.kubeconfig())
        .env("PATH", path)
        .spawn()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let pid = Pid::from_child(&child);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if stopped.recv_timeout(Duration::from_millis(100)).is_ok() {
            let _ = kill_process(pid, Signal::TERM);
        }
    };
    cluster.stop();
    Ok(code(status.code(), status.signal()))
}

fn code(code: Option<i32>, signal: Option<i32>) -> ExitCode {
    let code = code.unwrap_or_else(|| 128 + signal.unwrap_or_default());
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

fn on_signal(action: impl Fn(i32) + Send + 'static) -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    std::thread::Builder::new().name("signals".into()).spawn(move || signals.forever().for_each(action))?;
    Ok(())
}

fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

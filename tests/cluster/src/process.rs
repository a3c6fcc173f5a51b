//! Child processes that can't outlive us, whatever ends us.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{OnceLock, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// A command whose process the kernel kills when the thread that spawns it ends, where util-linux is there to ask for it.
pub fn bound_to_us(program: impl AsRef<Path>) -> Command {
    static SETPRIV: OnceLock<bool> = OnceLock::new();
    let setpriv = *SETPRIV.get_or_init(|| {
        Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "true"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    });
    if !setpriv {
        return Command::new(program.as_ref());
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program.as_ref());
    command
}

/// The end of a log file, for error messages.
pub fn last_lines(file: &Path, count: usize) -> String {
    let bytes = fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// Spawns from one thread of its own: the kernel's parent-death signal follows the spawning thread, and a test's
/// thread ends long before a cluster shared by several tests does.
pub struct Spawner {
    requests: Option<mpsc::Sender<(Command, mpsc::Sender<std::io::Result<Child>>)>>,
    thread: Option<JoinHandle<()>>,
}

impl Spawner {
    /// Starts the thread.
    pub fn start() -> Result<Self> {
        let (requests, inbox) = mpsc::channel::<(Command, mpsc::Sender<_>)>();
        let thread = std::thread::Builder::new().name("cluster-spawner".into()).spawn(move || {
            for (mut command, reply) in inbox {
                let _ = reply.send(command.spawn());
            }
        })?;
        Ok(Self { requests: Some(requests), thread: Some(thread) })
    }

    /// Spawns a process that ends with us.
    pub fn spawn(&self, command: Command) -> Result<Child> {
        let (reply, answer) = mpsc::channel();
        self.requests.as_ref().context("the cluster is stopped")?.send((command, reply))?;
        Ok(answer.recv()??)
    }
}

impl Drop for Spawner {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One program of the control plane, with its log file.
pub struct Component {
    /// What it is called in messages, and its log file.
    pub name: &'static str,
    program: PathBuf,
    args: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

impl Component {
    /// Not started yet; its log goes to `<name>.log` in `data`.
    pub fn new(name: &'static str, program: PathBuf, args: Vec<String>, data: &Path) -> Self {
        let log = data.join(format!("{name}.log"));
        Self { name, program, args, log, child: None }
    }

    /// Starts the program.
    pub fn start(&mut self, spawner: &Spawner) -> Result<()> {
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = bound_to_us(&self.program);
        command.args(&self.args).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        own_group(&mut command);
        let child = spawner.spawn(command).with_context(|| format!("cannot start {}", self.name))?;
        self.child = Some(child);
        Ok(())
    }

    /// Its process, while it runs as far as we know.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// An error with the end of the log when the program ended by itself.
    pub fn check(&mut self) -> Result<()> {
        let Some(child) = &mut self.child else {
            return Ok(());
        };
        if let Some(status) = child.try_wait()? {
            self.child = None;
            bail!("{} ended ({status}):\n{}", self.name, last_lines(&self.log, 15));
        }
        Ok(())
    }

    /// Kills it and waits for its end.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Fails only for a process that has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Waits for our end on a pipe, then kills what is left and deletes the data folder: this also covers SIGKILL,
/// `process::exit` and clusters in statics, where no destructor runs.
pub(crate) struct Janitor {
    child: Child,
    pids: PathBuf,
}

impl Janitor {
    pub(crate) fn start(data: &Path, delete: bool) -> Result<Self> {
        const SCRIPT: &str = "cat >/dev/null
            for pid in $(cat \"$1/pids\" 2>/dev/null); do kill -9 -- \"-$pid\" 2>/dev/null; done
            if [ \"$2\" = true ]; then sleep 0.2; rm -rf -- \"$1\"; fi";
        let mut command = Command::new("sh");
        command
            .args(["-c", SCRIPT, "torpor-cluster-janitor"])
            .arg(data)
            .arg(delete.to_string())
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        own_group(&mut command);
        Ok(Self { child: command.spawn().context("cannot start sh")?, pids: data.join("pids") })
    }

    pub(crate) fn watch<'a>(&self, components: impl Iterator<Item = &'a Component>) -> Result<()> {
        let mut file = fs::File::create(&self.pids)?;
        for pid in components.filter_map(Component::pid) {
            writeln!(file, "{pid}")?;
        }
        Ok(())
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Ctrl-C in a terminal goes to the whole process group; the control plane must not vanish before who uses it.
#[cfg(unix)]
fn own_group(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    command.process_group(0);
}

/// Polls until `done`; `what` names the thing waited for in the error.
pub fn wait_until(what: &str, limit: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    while !done()? {
        if started.elapsed() > limit {
            bail!("{what}: not ready after {} s", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

//! Namespaces that stand for one machine.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
};

use anyhow::{Context, Result, ensure};
use torpor_cluster::process::{Component, Spawner, bound_to_us, last_lines};

use super::command::{locked, run};

/// Runs as process 1 of the namespaces: sets them up, then waits for the end of its input, which is ours. tini buries
/// the orphans meanwhile.
const INIT: &str = r#"
hostname "$1"
ip link set lo up
echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6
echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6
eval "$2"
echo ready
exec tini -s -- cat
"#;

/// One machine: network, processes, mounts and host name of its own. Everything in it ends when this is dropped.
pub(super) struct Space {
    pub(super) name: String,
    holder: Mutex<Child>,
    init: u32,
}

impl Space {
    /// Makes the namespaces and runs `setup`, lines of shell, in them.
    pub(super) fn start(spawner: &Spawner, name: &str, setup: &str, logs: &Path) -> Result<Self> {
        let log = logs.join(format!("{name}-init.log"));
        let mut command = bound_to_us("unshare");
        command
            .args(["--net", "--pid", "--mount", "--uts", "--fork", "--kill-child=KILL", "--mount-proc", "--"])
            .args(["sh", "-ec", INIT, "torpor-init", name, setup])
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?);
        let mut holder = spawner.spawn(command).context("cannot start unshare")?;
        let mut answer = String::new();
        BufReader::new(holder.stdout.take().context("no standard output")?).read_line(&mut answer)?;
        if answer != "ready\n" {
            let _ = holder.kill();
            let _ = holder.wait();
        }
        ensure!(answer == "ready\n", "cannot make the namespaces of {name}: {}", last_lines(&log, 5));
        let init = child_of(holder.id()).with_context(|| format!("{name} has no process 1"))?;
        Ok(Self { name: name.into(), holder: Mutex::new(holder), init })
    }

    /// Its process 1, as the machine counts it.
    pub(super) fn init(&self) -> u32 {
        self.init
    }

    /// Its file system, as seen from outside.
    pub(super) fn root(&self) -> PathBuf {
        format!("/proc/{}/root", self.init).into()
    }

    /// The namespace of its network, for a thread that wants to listen there.
    pub(super) fn network(&self) -> Result<File> {
        let path = format!("/proc/{}/ns/net", self.init);
        File::open(&path).with_context(|| format!("cannot open {path}"))
    }

    /// A command in it. Its process is a child of nsenter and outlives it, unless it is a [`Space::component`].
    pub(super) fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(self.enter()).arg(program.as_ref());
        command
    }

    /// Runs a program in it to its end and gives what it printed.
    pub(super) fn exec(&self, program: impl AsRef<Path>, args: &[&str]) -> Result<String> {
        run(self.command(program).args(args), "")
    }

    /// A command with its network only; it counts processes as the machine does, so links can be given to other spaces.
    pub(super) fn network_command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args([&format!("--net=/proc/{}/ns/net", self.init), "--", program]);
        command
    }

    /// A program that runs in it until it is stopped or we end.
    pub(super) fn component(&self, name: &'static str, program: &Path, args: &[String], data: &Path) -> Component {
        self.program(name, &[], program, args, data)
    }

    /// Likewise, and its threads go before those of other programs.
    pub(super) fn favoured(&self, name: &'static str, program: &Path, args: &[String], data: &Path) -> Component {
        self.program(name, &["nice", "-n", "-15", "--"], program, args, data)
    }

    fn program(&self, name: &'static str, before: &[&str], program: &Path, args: &[String], data: &Path) -> Component {
        let mut words = self.enter();
        words.extend(before.iter().chain(&["setpriv", "--pdeathsig", "KILL", "--"]).map(ToString::to_string));
        words.push(program.display().to_string());
        words.extend_from_slice(args);
        Component::new(name, "nsenter".into(), words, data)
    }

    /// Ends everything in it, and waits for that.
    pub(super) fn end(&self) {
        let mut holder = locked(&self.holder);
        drop(holder.stdin.take());
        let _ = holder.kill();
        let _ = holder.wait();
        wait_for_end(self.init);
    }

    fn enter(&self) -> Vec<String> {
        let target = self.init.to_string();
        ["--target", &target, "--mount", "--uts", "--net", "--pid", "--"].map(String::from).into()
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.end();
    }
}

/// The kernel kills a process namespace in its own time; data can be deleted and names used again only after that.
pub(super) fn wait_for_end(pid: u32) {
    for _ in 0..1000 {
        if !runs(pid) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// Whether the process is there and not only waiting to be buried.
pub(super) fn runs(pid: u32) -> bool {
    stat(pid).is_some_and(|stat| stat.first().is_none_or(|state| state != "Z"))
}

/// The only child of a process.
pub(super) fn child_of(parent: u32) -> Option<u32> {
    let parent = parent.to_string();
    let pids = fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.into_iter().find(|pid| stat(*pid).is_some_and(|stat| stat.get(1) == Some(&parent)))
}

/// When the process started, in ticks since the machine did: with the pid it names a process for good.
pub(super) fn start_time(pid: u32) -> Option<String> {
    stat(pid)?.get(19).cloned()
}

/// The fields of `/proc/<pid>/stat` from the third, the state, on: the second, the name, may hold anything.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(text.rsplit_once(") ")?.1.split_whitespace().map(String::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_told_apart() {
        let own = std::process::id();
        assert!(runs(own));
        assert!(start_time(own).unwrap().parse::<u64>().is_ok());
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        assert_eq!(stat(child.id()).unwrap()[1], own.to_string());
        child.kill().unwrap();
        wait_for_end(child.id());
        assert!(!runs(child.id()), "a zombie does not run");
        child.wait().unwrap();
    }
}

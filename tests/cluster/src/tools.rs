//! The programs of the control plane: built once from pinned Go modules into a cache folder.

use std::{
    env,
    ffi::OsStr,
    fs::{self, File},
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::process::{bound_to_us, last_lines};

const GO_MOD: &str = include_str!("../tools/go.mod");
const GO_SUM: &str = include_str!("../tools/go.sum");

/// Go modules carry no version stamp of their own; clients and charts ask `/version`, so it must be right.
const LDFLAGS: &str = "-s -w \
    -X k8s.io/component-base/version.gitVersion=v1.37.2 \
    -X k8s.io/component-base/version.gitMajor=1 \
    -X k8s.io/component-base/version.gitMinor=37 \
    -X k8s.io/client-go/pkg/version.gitVersion=v1.37.2 \
    -X helm.sh/helm/v4/internal/version.version=v4.3.1";

const PROGRAMS: [(&str, &str); 7] = [
    ("etcd", "go.etcd.io/etcd/server/v3"),
    ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
    ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
    ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
    ("kwok", "sigs.k8s.io/kwok/cmd/kwok"),
    ("helm", "helm.sh/helm/v4/cmd/helm"),
];

const KWOK_MODULE: &str = "sigs.k8s.io/kwok";
const KWOK_STAGES: [&str; 4] = ["node/fast", "node/heartbeat-with-lease", "pod/fast", "volume/fast"];

const OLDEST_GO: (u32, u32) = (1, 26);
const HOW_TO_GET_GO: &str = "install Go 1.26 or newer (https://go.dev/dl, or golang from Debian's backports)";

/// The built programs and the kwok files, ready to use.
#[derive(Clone, Debug)]
pub struct Tools {
    dir: PathBuf,
}

impl Tools {
    /// The folder of the programs of this version, whether or not they are built yet.
    pub fn dir() -> Result<PathBuf> {
        let hash = fnv1a(&[GO_MOD, GO_SUM, LDFLAGS]);
        Ok(cache_dir()?.join(format!("bin-{hash:016x}")))
    }

    /// Builds what is missing (minutes when Go's caches are cold) and says so on stderr; returns at once otherwise.
    pub fn ensure() -> Result<Self> {
        let dir = Self::dir()?;
        build_once(&dir, |work| build_into(work, &dir))?;
        Ok(Self { dir })
    }

    /// The folder that holds the programs, to put on PATH.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The path of one program, e.g. `kubectl` or `helm`.
    pub fn bin(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn kwok_stages(&self) -> Result<String> {
        Ok(fs::read_to_string(self.dir.join("kwok-stages.yaml"))?)
    }

    pub(crate) fn storage_class(&self) -> PathBuf {
        self.dir.join("storage-class.yaml")
    }
}

/// The folder below which the tools and the state of `torpor-cluster up` live.
pub fn cache_dir() -> Result<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    let base = set("TORPOR_CACHE")
        .or_else(|| set("XDG_CACHE_HOME"))
        .map(PathBuf::from)
        .or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .context("no cache folder: set TORPOR_CACHE, XDG_CACHE_HOME or HOME")?;
    Ok(std::path::absolute(base)?.join("torpor"))
}

/// Fills `dir`, a folder in the cache, unless it is there. Two processes see either nothing or a complete folder: `build`
/// works in one beside it, which is renamed at the end.
pub(crate) fn build_once(dir: &Path, build: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let cache = cache_dir()?;
    fs::create_dir_all(&cache).with_context(|| format!("cannot create the cache folder {}", cache.display()))?;
    let lock = File::create(cache.join("build.lock"))?;
    if lock.try_lock().is_err() {
        eprintln!("another process is building the tools, waiting for it");
        lock.lock()?;
    }
    if dir.is_dir() {
        return Ok(());
    }
    let work = dir.with_extension("partial");
    if work.exists() {
        // Left by a build that was interrupted; we hold the lock, so nobody writes there.
        fs::remove_dir_all(&work)?;
    }
    fs::create_dir_all(&work)?;
    build(&work)?;
    fs::rename(&work, dir)?;
    Ok(())
}

fn build_into(work: &Path, dir: &Path) -> Result<()> {
    require_go()?;
    fs::write(work.join("go.mod"), GO_MOD)?;
    fs::write(work.join("go.sum"), GO_SUM)?;
    let started = Instant::now();
    let total = PROGRAMS.len();
    eprintln!("building {total} tools into {} (once; 6 to 10 minutes on two cores)", dir.display());
    for (number, (name, package)) in (1..).zip(PROGRAMS) {
        let progress = Progress::new(format!("[{number}/{total}] {name}"), started);
        build_one(work, name, package, &progress)?;
        progress.done();
    }
    copy_kwok_files(work)
}

fn build_one(work: &Path, name: &str, package: &str, progress: &Progress) -> Result<()> {
    let log = work.join("build.log");
    let out = File::create(&log)?;
    let mut command =
        go(work, ["build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", LDFLAGS, "-o", name, package]);
    command.stdout(out.try_clone()?).stderr(out);
    let mut child = command.spawn()?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        progress.tick();
        std::thread::sleep(Duration::from_millis(200));
    };
    ensure!(status.success(), "building {name} failed:\n{}", last_lines(&log, 15));
    fs::remove_file(log)?;
    Ok(())
}

/// Starting a cluster must not need Go, so what it needs of kwok's module is copied next to the programs.
fn copy_kwok_files(work: &Path) -> Result<()> {
    let listed = go(work, ["list", "-mod=readonly", "-m", "-f", "{{.Dir}}", KWOK_MODULE]).output()?;
    ensure!(
        listed.status.success(),
        "go cannot find the folder of {KWOK_MODULE}: {}",
        String::from_utf8_lossy(&listed.stderr).trim()
    );
    let module = PathBuf::from(String::from_utf8(listed.stdout)?.trim()).join("kustomize/stage");
    let mut stages = Vec::new();
    for folder in KWOK_STAGES {
        let mut files: Vec<PathBuf> = fs::read_dir(module.join(folder))?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()?;
        files.retain(|file| {
            file.extension() == Some(OsStr::new("yaml"))
                && file.file_name() != Some(OsStr::new("kustomization.yaml"))
                && file.file_name() != Some(OsStr::new("storage-class.yaml"))
        });
        files.sort();
        for file in files {
            stages.push(fs::read_to_string(file)?);
        }
    }
    fs::write(work.join("kwok-stages.yaml"), stages.join("---\n"))?;
    let storage_class = fs::read(module.join("volume/fast/storage-class.yaml"))?;
    fs::write(work.join("storage-class.yaml"), storage_class)?;
    Ok(())
}

/// A `go` command that sees our go.mod only: no workspace, no other toolchain, no cross compilation.
pub(crate) fn go<const N: usize>(work: &Path, args: [&str; N]) -> Command {
    let mut command = bound_to_us("go");
    command
        .args(args)
        .current_dir(work)
        .env("GOTOOLCHAIN", "local")
        .env("GOWORK", "off")
        .env("CGO_ENABLED", "0")
        .env_remove("GOOS")
        .env_remove("GOARCH")
        .stdin(Stdio::null());
    command
}

pub(crate) fn require_go() -> Result<()> {
    let Ok(output) = Command::new("go")
        .args(["env", "GOVERSION"])
        .env("GOTOOLCHAIN", "local")
        .env("GOWORK", "off")
        .current_dir(env::temp_dir())
        .output()
    else {
        bail!("the local cluster is built from Go modules, and there is no go: {HOW_TO_GET_GO}");
    };
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match parse_go_version(&version) {
        Some(found) if found >= OLDEST_GO => Ok(()),
        _ => bail!("{version:?} is too old for the local cluster: {HOW_TO_GET_GO}"),
    }
}

fn parse_go_version(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.strip_prefix("go")?.split(['.', '-', 'r', 'b']);
    let mut next = || parts.next()?.parse().ok();
    Some((next()?, next()?))
}

/// One line a tool: rewritten each second on a terminal, every half minute elsewhere.
struct Progress {
    label: String,
    started: Instant,
    printed: std::cell::Cell<u64>,
}

impl Progress {
    fn new(label: String, started: Instant) -> Self {
        let printed = std::cell::Cell::new(started.elapsed().as_secs());
        let progress = Self { label, started, printed };
        progress.print("building");
        progress
    }

    fn tick(&self) {
        let step = if std::io::stderr().is_terminal() { 1 } else { 30 };
        if self.started.elapsed().as_secs() >= self.printed.get() + step {
            self.print("building");
        }
    }

    fn done(&self) {
        self.print("done");
        if std::io::stderr().is_terminal() {
            eprintln!();
        }
    }

    fn print(&self, what: &str) {
        let seconds = self.started.elapsed().as_secs();
        self.printed.set(seconds);
        let mut stderr = std::io::stderr();
        let line = format!("{} {what}, {seconds} s since the start", self.label);
        // Progress that can't be shown is no reason to stop a build.
        let _ = if stderr.is_terminal() {
            write!(stderr, "\r\x1b[K{line}").and_then(|()| stderr.flush())
        } else {
            writeln!(stderr, "{line}")
        };
    }
}

/// The standard library's hasher may change between Rust releases, which would rebuild everything.
pub(crate) fn fnv1a(parts: &[&str]) -> u64 {
    parts
        .iter()
        .flat_map(|part| part.bytes().chain([0]))
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_versions() {
        assert_eq!(parse_go_version("go1.26.8"), Some((1, 26)));
        assert_eq!(parse_go_version("go1.27rc1"), Some((1, 27)));
        assert_eq!(parse_go_version("devel"), None);
    }

    #[test]
    fn hash_is_the_published_function() {
        assert_eq!(fnv1a(&[]), 0xcbf2_9ce4_8422_2325);
        assert_ne!(fnv1a(&["a", "b"]), fnv1a(&["ab"]));
    }
}

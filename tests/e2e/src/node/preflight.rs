//! What must be there before anything starts; everything that is missing is said at once.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::Result;
use torpor_cluster::cache_dir;

use super::{cgroup, command::run};

/// What the nodes need of Debian; installed where it is missing.
const PACKAGES: [&str; 13] = [
    "conntrack",
    "containernetworking-plugins",
    "gcc",
    "iproute2",
    "iptables",
    "libc6-dev",
    "libseccomp-dev",
    "libseccomp2",
    "mmdebstrap",
    "nftables",
    "pkg-config",
    "tini",
    "util-linux",
];

/// Controllers that limit what a pod takes; the kubelet does not start without them.
const CONTROLLERS: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];

/// Folders that each node replaces by its own, so that nothing of ours may lie there.
const HIDDEN: [&str; 3] = ["/run", "/var/lib", "/var/log"];

/// Each line says one thing that is missing and what to do.
#[derive(Debug)]
pub struct Missing(pub Vec<String>);

impl std::fmt::Display for Missing {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Missing {}

/// What the machine is like.
struct Facts {
    root: bool,
    packages: Packages,
    go: bool,
    cache: Option<std::path::PathBuf>,
    features: Vec<(&'static str, bool)>,
    controllers: Vec<String>,
}

/// The state of [`PACKAGES`].
enum Packages {
    /// No apt-get or dpkg.
    NotDebian,
    /// What is missing, after the attempt to install it.
    Missing(Vec<&'static str>, String),
}

/// Installs missing packages where it may, and fails with [`Missing`] if the machine can't hold the nodes or make their
/// images.
pub fn check() -> Result<()> {
    let root = rustix::process::geteuid().is_root();
    let packages = packages(root)?;
    let facts = Facts {
        root,
        packages,
        go: there("go"),
        cache: cache_dir().ok(),
        features: if root { features() } else { Vec::new() },
        controllers: cgroup::controllers(),
    };
    let missing = report(&facts);
    if missing.is_empty() { Ok(()) } else { Err(Missing(missing).into()) }
}

fn report(facts: &Facts) -> Vec<String> {
    let mut lines = Vec::new();
    if !facts.root {
        lines.push("root: namespaces, links and control groups are made by root; run it with sudo".into());
    }
    match &facts.packages {
        Packages::NotDebian => lines.push(format!(
            "Debian, or a system with its packages: apt-get and dpkg are not there to install {}",
            PACKAGES.join(", ")
        )),
        Packages::Missing(names, why) if !names.is_empty() => {
            let names = names.join(" ");
            let why = why.trim().lines().last().unwrap_or("not root");
            lines.push(format!("packages: {names}; install them with apt-get install {names} ({why})"));
        }
        Packages::Missing(..) => {}
    }
    if !facts.go {
        lines.push(
            "go: the node's programs are built from Go modules; install Go 1.26.6 or newer, see https://go.dev/dl"
                .into(),
        );
    }
    match &facts.cache {
        None => lines.push("a cache folder: set TORPOR_CACHE, XDG_CACHE_HOME or HOME".into()),
        Some(dir) => lines.extend(HIDDEN.iter().filter(|hidden| dir.starts_with(hidden)).map(|hidden| {
            format!(
                "a cache folder outside of {hidden}, which each node has for itself: set TORPOR_CACHE; it is {}",
                dir.display()
            )
        })),
    }
    lines.extend(facts.features.iter().filter(|(_, there)| !there).map(|(name, _)| format!("kernel feature: {name}")));
    for controller in CONTROLLERS.iter().filter(|name| !facts.controllers.iter().any(|there| there == **name)) {
        lines.push(format!(
            "control group controller: {controller}; mount it or enable it on the kernel's command line"
        ));
    }
    lines
}

fn packages(root: bool) -> Result<Packages> {
    if !there("apt-get") || !there("dpkg-query") {
        return Ok(Packages::NotDebian);
    }
    let missing = missing_packages()?;
    if missing.is_empty() || !root {
        return Ok(Packages::Missing(missing, String::new()));
    }
    eprintln!("installing Debian packages: {}", missing.join(" "));
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(["-q", "-o", "DPkg::Lock::Timeout=300"]).args(args).env("DEBIAN_FRONTEND", "noninteractive");
        run(&mut command, "")
    };
    // An old list of packages may do; if not, the installation says so.
    let _ = apt(&["update"]);
    let installed = apt(&[&["install", "-y", "--no-install-recommends"], &missing[..]].concat());
    let why = installed.err().map(|error| format!("{error:#}")).unwrap_or_default();
    Ok(Packages::Missing(missing_packages()?, why))
}

fn missing_packages() -> Result<Vec<&'static str>> {
    // It fails for packages that it has never heard of, and tells of the others all the same.
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat=${Package} ${db:Status-Status}\\n"])
        .args(PACKAGES)
        .stderr(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let installed = |name: &&str| text.lines().any(|line| line == format!("{name} installed"));
    Ok(PACKAGES.into_iter().filter(|name| !installed(name)).collect())
}

/// Tries each thing in namespaces of its own: configuration files of kernels are not everywhere to be read.
fn features() -> Vec<(&'static str, bool)> {
    // Where they are modules, they load; where they are built in, there is nothing to load.
    for module in ["br_netfilter", "nf_tables", "overlay", "veth", "bridge"] {
        let _ = Command::new("modprobe").args(["-q", module]).stderr(Stdio::null()).status();
    }
    let tries = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--pid", "--uts", "--fork", "--", "sh", "-ec", script]);
        run(&mut command, "").is_ok()
    };
    vec![
        ("namespaces (network, mount, pid, uts), which unshare makes", tries("true")),
        ("veth", tries("ip link add name t0 type veth peer name t1")),
        ("bridge", tries("ip link add name t0 type bridge")),
        (
            "nf_tables with nat",
            tries("echo 'table ip t { chain c { type nat hook prerouting priority -100; }; }' | nft -f -"),
        ),
        (
            "nf_tables with fib",
            tries(
                "echo 'table inet t { chain c { type filter hook prerouting priority 0; fib daddr type local drop; }; }' | nft -f -",
            ),
        ),
        ("br_netfilter", Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists()),
        ("overlay", overlay()),
        (
            "user namespaces",
            fs::read_to_string("/proc/sys/user/max_user_namespaces").is_ok_and(|text| text.trim() != "0"),
        ),
    ]
}

fn overlay() -> bool {
    fs::read_to_string("/proc/filesystems").is_ok_and(|text| text.lines().any(|line| line.ends_with("\toverlay")))
}

fn there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        Facts {
            root: true,
            packages: Packages::Missing(Vec::new(), String::new()),
            go: true,
            cache: Some("/root/.cache/torpor".into()),
            features: vec![("veth", true)],
            controllers: CONTROLLERS.map(String::from).into(),
        }
    }

    #[test]
    fn a_good_machine_lacks_nothing() {
        assert_eq!(report(&good()), [""; 0]);
    }

    #[test]
    fn everything_that_is_missing_has_its_line() {
        let facts = Facts {
            root: false,
            packages: Packages::Missing(vec!["tini"], "E: no\nE: Unable to locate package tini".into()),
            go: false,
            cache: Some("/var/lib/ci/.cache".into()),
            features: vec![("veth", false), ("bridge", true)],
            controllers: vec!["cpu".into(), "cpuset".into(), "pids".into()],
        };
        let lines = report(&facts);
        let starts = [
            "root:",
            "packages: tini;",
            "go:",
            "a cache folder outside of /var/lib,",
            "kernel feature: veth",
            "control group controller: memory;",
        ];
        assert_eq!(lines.len(), starts.len(), "{lines:#?}");
        for (line, start) in lines.iter().zip(starts) {
            assert!(line.starts_with(start), "{line:?} does not start with {start:?}");
        }
        assert!(lines[1].ends_with("(E: Unable to locate package tini)"), "{}", lines[1]);
    }

    #[test]
    fn other_systems_are_named() {
        let facts = Facts { packages: Packages::NotDebian, cache: None, ..good() };
        let lines = report(&facts);
        assert!(lines[0].starts_with("Debian, "), "{lines:?}");
        assert!(lines[1].starts_with("a cache folder: "), "{lines:?}");
    }
}

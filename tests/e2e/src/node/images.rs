//! The images that the cluster itself runs: pause, CoreDNS, and a small shell for probes.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use torpor_cluster::{
    build_once, cache_dir, hash,
    oci::{self, Archive, Config},
};

use super::{command::run, programs::Programs};

/// The sandbox of every pod.
pub(super) const PAUSE: &str = "torpor.test/pause:1";
/// The cluster's name server.
pub(super) const COREDNS: &str = "torpor.test/coredns:1";
/// A shell with `wget`, `nc`, `nslookup` and what else busybox has, for pods that probe.
pub const TOOLS: &str = "torpor.test/tools:1";

/// Debian packages of [`TOOLS`]. A static busybox crashes when it looks up a name: glibc loads the parts for that.
const TOOLS_PACKAGES: &str = "busybox,libc6,netcat-openbsd";

/// The archives, made once and kept in the cache.
pub(super) fn build(programs: &Programs) -> Result<Vec<PathBuf>> {
    // Building holds a lock that the writer's own build wants too.
    oci::tool()?;
    let from = |path: &Path| path.display().to_string();
    let key = hash(&[&from(&programs.pause), &from(&programs.coredns), TOOLS_PACKAGES, include_str!("images.rs")]);
    let dir = cache_dir()?.join(format!("node-images-{key:016x}"));
    build_once(&dir, |work| {
        let config = |program: &str, user: &str| Config {
            entrypoint: vec![program.into()],
            user: user.into(),
            ..Config::default()
        };
        one_program(work, "pause", PAUSE, &programs.pause, config("/pause", "65535:65535"))?;
        one_program(work, "coredns", COREDNS, &programs.coredns, config("/coredns", "65532:65532"))?;
        tools(work)
    })?;
    Ok(["pause", "coredns", "tools"].map(|name| dir.join(format!("{name}.oci.tar"))).into())
}

fn one_program(work: &Path, name: &str, image: &str, program: &Path, config: Config) -> Result<()> {
    let root = work.join(name);
    fs::create_dir_all(&root)?;
    fs::copy(program, root.join(name))?;
    archive(work, name, image, config)
}

fn tools(work: &Path) -> Result<()> {
    eprintln!("making the image of tools from Debian packages (once; about half a minute)");
    let root = work.join("tools");
    debian(TOOLS_PACKAGES, &root)?;
    let bin = root.join("bin");
    let applets = run(Command::new(bin.join("busybox")).arg("--list"), "").context("busybox does not start")?;
    for applet in applets.lines().filter(|applet| *applet != "busybox" && !bin.join(applet).exists()) {
        symlink("busybox", bin.join(applet))?;
    }
    let _ = fs::remove_file(bin.join("nc"));
    symlink("nc.openbsd", bin.join("nc"))?;
    fs::create_dir_all(root.join("etc"))?;
    fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")?;
    fs::write(root.join("etc/nsswitch.conf"), "hosts: files dns\n")?;
    fs::create_dir_all(root.join("tmp"))?;
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    let config = Config {
        cmd: vec!["/bin/sh".into()],
        env: vec!["PATH=/usr/sbin:/usr/bin:/sbin:/bin".into()],
        ..Config::default()
    };
    archive(work, "tools", TOOLS, config)
}

/// Unpacks Debian packages and what they depend on into a folder, by the machine's own apt sources.
fn debian(packages: &str, root: &Path) -> Result<()> {
    let release = fs::read_to_string("/etc/os-release")?;
    let suite = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let suite = suite.context("/etc/os-release names no VERSION_CODENAME")?.trim_matches('"');
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--quiet", "--mode=root", "--variant=extract", &format!("--include={packages}")])
        .args(["man", "doc", "locale", "info"].map(|what| format!("--dpkgopt=path-exclude=/usr/share/{what}/*")))
        .arg(suite)
        .arg(root);
    command.args(apt_sources()?);
    run(&mut command, "").map(drop)
}

/// The files that say where packages come from.
fn apt_sources() -> Result<Vec<PathBuf>> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        for entry in entries {
            files.push(entry?.path());
        }
    }
    files.retain(|file| file.is_file() && file.extension().is_some_and(|kind| kind == "list" || kind == "sources"));
    files.sort();
    Ok(files)
}

fn archive(work: &Path, name: &str, image: &str, config: Config) -> Result<()> {
    let layer = work.join(format!("{name}.tar"));
    oci::layer(&work.join(name), &layer, 0)?;
    oci::write(&Archive {
        name: image.into(),
        layers: vec![layer.clone()],
        config,
        out: work.join(format!("{name}.oci.tar")),
        ..Archive::default()
    })?;
    fs::remove_file(layer)?;
    Ok(fs::remove_dir_all(work.join(name))?)
}

//! Debian trees, by the machine's own apt sources.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

/// One suite on every machine: the pinned Python packages are for its Python.
pub(super) const SUITE: &str = "bookworm";

/// What the operator's scripts and probes need of a shell, and the time zones that databases know.
pub(super) const SHELL: [&str; 8] =
    ["base-files", "coreutils", "dash", "findutils", "grep", "netbase", "sed", "tzdata"];

/// Perl's library, which packages want for scripts that do not run.
pub(super) const WITHOUT: [&str; 2] = ["/usr/share/perl/*", "/usr/lib/*/perl/*"];

/// Where pip's own configuration and the machine's certificates stand, here and in a tree that builds.
const OF_MACHINE: [&str; 2] = ["/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt"];

/// A shell, these packages and what they depend on, unpacked into a tar file.
pub(super) fn unpack(packages: &[&str], tar: &Path) -> Result<()> {
    let mut command = tree(&[&SHELL, packages].concat(), "extract", tar)?;
    command.args(WITHOUT.map(|path| format!("--dpkgopt=path-exclude={path}")));
    command.args(["--skip=output/dev", SUITE]).arg(tar).args(apt_sources()?);
    run(command)
}

/// Runs `build.sh` of the folder `sources`, which is `/build` in the tree, and gives the layer that it leaves.
pub(super) fn build(packages: &[&str], sources: &Path, tar: &Path) -> Result<()> {
    let mut command = tree(packages, "apt", tar)?;
    let hook = |text: String| format!("--customize-hook={text}");
    command.arg(hook(format!("copy-in {} /", quoted(sources)?)));
    for file in OF_MACHINE.into_iter().filter(|file| Path::new(file).is_file()) {
        command.arg(hook(format!("upload {file} {file}")));
    }
    command.arg(hook("chroot \"$1\" env --unset=TMPDIR sh /build/build.sh".to_owned()));
    command.arg(hook(format!("download /layer.tar {}", quoted(tar)?)));
    command.args(["--format=null", SUITE, "-"]).args(apt_sources()?);
    run(command)
}

/// The tree itself grows beside the tar file: `/tmp` may be in memory, and some trees are large.
fn tree(packages: &[&str], variant: &str, tar: &Path) -> Result<Command> {
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--quiet", "--mode=root", &format!("--variant={variant}"), &format!("--include={}", packages.join(","))])
        .args(["man", "doc", "locale", "info"].map(|what| format!("--dpkgopt=path-exclude=/usr/share/{what}/*")))
        .env("SOURCE_DATE_EPOCH", "0")
        .env("TMPDIR", tar.parent().context("a layer has a folder")?);
    Ok(command)
}

/// A path as a word of a hook, which a shell takes apart.
fn quoted(path: &Path) -> Result<String> {
    let text = path.to_str().context("the cache folder's name is no text")?;
    Ok(format!("'{}'", text.replace('\'', "'\\''")))
}

/// The machine's sources where they are of this suite; else none, and mmdebstrap takes its own.
fn apt_sources() -> Result<Vec<PathBuf>> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    if !release.lines().any(|line| line == format!("VERSION_CODENAME={SUITE}")) {
        return Ok(Vec::new());
    }
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

fn run(mut command: Command) -> Result<()> {
    let output = command.output().context("cannot start mmdebstrap")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = stderr.lines().collect();
    let end = lines[lines.len().saturating_sub(20)..].join("\n");
    ensure!(output.status.success(), "mmdebstrap: {}:\n{end}", output.status);
    Ok(())
}

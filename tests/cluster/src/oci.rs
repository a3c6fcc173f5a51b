//! Images without a daemon: from folders and tar files to an OCI archive, for Torpor's own image and those of tests.
//!
//! ```no_run
//! use torpor_cluster::oci::{self, Archive, Config};
//!
//! oci::layer("rootfs".as_ref(), "rootfs.tar".as_ref(), 0)?;
//! let digest = oci::write(&Archive {
//!     name: "docker.io/library/postgres:17.11-bookworm".into(),
//!     layers: vec!["rootfs.tar".into()],
//!     config: Config { entrypoint: vec!["/usr/bin/postgres".into()], ..Config::default() },
//!     out: "postgres.oci.tar".into(),
//!     ..Archive::default()
//! })?;
//! println!("ctr --namespace k8s.io images import postgres.oci.tar    # {digest}");
//! # Ok::<(), anyhow::Error>(())
//! ```

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::tools::{build_once, cache_dir, fnv1a, go, require_go};

const MAIN: &str = include_str!("../tools/oci/main.go");
const GO_MOD: &str = include_str!("../tools/oci/go.mod");
const GO_SUM: &str = include_str!("../tools/oci/go.sum");

/// An image with one platform, this machine's, and the archive that it goes into.
#[derive(Clone, Debug, Default)]
pub struct Archive {
    /// Its whole name: registry, repository and tag. containerd imports it under this name.
    pub name: String,
    /// Tar files that are not compressed, the lowest layer first.
    pub layers: Vec<PathBuf>,
    /// What a container of the image runs, and how.
    pub config: Config,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// Whether layers are compressed, as registries like it. The digest then depends on the compressor's version.
    pub gzip: bool,
    /// The archive to write; it appears complete or not at all.
    pub out: PathBuf,
}

/// The `config` object of an OCI image.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Config {
    /// User and group, best as numbers: the kubelet checks `runAsNonRoot` only for those.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// `NAME=value`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// The program and its fixed arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// The arguments that a pod's `args` replace.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Where the program starts.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// What asks it to stop, where that is not SIGTERM.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// Labels, e.g. `org.opencontainers.image.version`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// The program that writes archives; built on the first call, which takes seconds, from the Go module in `tools/oci`.
pub fn tool() -> Result<PathBuf> {
    let dir = cache_dir()?.join(format!("oci-{:016x}", fnv1a(&[MAIN, GO_MOD, GO_SUM])));
    build_once(&dir, |work| {
        require_go()?;
        for (name, content) in [("main.go", MAIN), ("go.mod", GO_MOD), ("go.sum", GO_SUM)] {
            fs::write(work.join(name), content)?;
        }
        let args = ["build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", "oci", "."];
        run(&mut go(work, args), "").map(drop).context("building the writer of images failed")
    })?;
    Ok(dir.join("oci"))
}

/// Writes the archive and gives the digest of its image, `sha256:…`. The same files and settings give the same bytes.
pub fn write(archive: &Archive) -> Result<String> {
    let mut command = Command::new(tool()?);
    command.arg("--name").arg(&archive.name).arg("--out").arg(&archive.out).args(["--config", "-"]);
    command.arg("--created").arg(archive.created.to_string());
    for layer in &archive.layers {
        command.arg("--layer").arg(layer);
    }
    if archive.gzip {
        command.arg("--gzip");
    }
    let digest = run(&mut command, &serde_json::to_string(&archive.config)?)
        .with_context(|| format!("cannot write the image {}", archive.name))?;
    Ok(digest.trim().to_owned())
}

/// Compares everything in the folder of an unpacked archive with the digests it claims, and gives that of the image.
pub fn validate(folder: &Path) -> Result<String> {
    let mut command = Command::new(tool()?);
    command.arg("--validate").arg(folder);
    Ok(run(&mut command, "")?.trim().to_owned())
}

/// Packs a folder as a layer in which everything belongs to root, is writable by its owner only, and was changed at
/// `changed`, in seconds since 1970. Files that belong to others need a tar file made by other means.
pub fn layer(folder: &Path, tar: &Path, changed: u64) -> Result<()> {
    let mut command = Command::new("tar");
    command
        .args(["--create", "--format=gnu", "--sort=name", "--owner=root:0", "--group=root:0", "--numeric-owner"])
        .args(["--mode=u+rw,go-w", &format!("--mtime=@{changed}"), "--hard-dereference"])
        .arg("--file")
        .arg(tar)
        .arg("--directory")
        .arg(folder)
        .arg(".");
    run(&mut command, "").map(drop).with_context(|| format!("cannot pack {}", folder.display()))
}

/// Runs a program to its end with `input`; what it printed, or an error with what it complained about.
fn run(command: &mut Command, input: &str) -> Result<String> {
    let name = command.get_program().to_owned();
    let name = Path::new(&name).file_name().and_then(OsStr::to_str).unwrap_or("program").to_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    // A program that does not want it all says why itself.
    let _ = child.stdin.take().context("no standard input")?.write_all(input.as_bytes());
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8(output.stdout)?)
}

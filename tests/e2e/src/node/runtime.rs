//! containerd, on a node or alone.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use torpor_cluster::process::{Component, Spawner, wait_until};

use super::{images, programs::Programs, space::Space};

/// Its name among the programs of a node.
pub(super) const CONTAINERD: &str = "containerd";
/// Where it is asked, in the node's own `/run`.
pub(super) const SOCKET: &str = "/run/containerd/containerd.sock";
/// Where the node's containers have their bundles, in its own `/run`.
pub(super) const BUNDLES: &str = "run/containerd/io.containerd.runtime.v2.task/k8s.io";
/// Its images and layers, below the folder that is the node's `/var/lib`.
pub(super) const DATA: &str = "containerd";
const START_LIMIT: Duration = Duration::from_secs(60);

/// The lines of setup that give a space the folders which containerd writes to. `lib` becomes its `/var/lib`.
pub(super) fn setup(lib: &Path) -> String {
    format!(
        "mount --make-rshared /\nmount -t tmpfs -o mode=755 torpor-run /run\nmount --bind '{}' /var/lib\n",
        lib.display()
    )
}

/// containerd in a space, not started yet; its configuration is written to `dir`, as is its log.
pub(super) fn component(space: &Space, programs: &Programs, dir: &Path) -> Result<Component> {
    let file = dir.join("containerd.toml");
    std::fs::write(&file, config(dir, &programs.runc()))?;
    let folder = programs.containerd_dir();
    // It looks for its shim on PATH.
    let path = format!("PATH={}:/usr/sbin:/usr/bin:/sbin:/bin", folder.display());
    let program = folder.join("containerd").display().to_string();
    let args = [path, program, "--config".into(), file.display().to_string()];
    Ok(space.component(CONTAINERD, Path::new("env"), &args, dir))
}

/// Starts it and waits until it answers.
pub(super) fn start(component: &mut Component, spawner: &Spawner, space: &Space, programs: &Programs) -> Result<()> {
    component.start(spawner)?;
    wait_until(CONTAINERD, START_LIMIT, || {
        component.check()?;
        Ok(ctr(space, programs, &["version"]).is_ok())
    })
}

/// Asks it by its own client, about what the kubelet sees.
pub(super) fn ctr(space: &Space, programs: &Programs, args: &[&str]) -> Result<String> {
    let client = programs.containerd_dir().join("ctr");
    space.exec(client, &[&["--address", SOCKET, "--namespace", "k8s.io"], args].concat())
}

/// Imports and unpacks the images of an OCI archive, under the names in it.
pub(super) fn import(space: &Space, programs: &Programs, archive: &Path) -> Result<()> {
    let path = archive.to_str().context("the path of an image is not text")?;
    ctr(space, programs, &["images", "import", "--local", "--snapshotter", "overlayfs", path])
        .map(drop)
        .with_context(|| format!("{} cannot import {path}", space.name))
}

fn config(dir: &Path, runc: &Path) -> String {
    let (dir, runc) = (dir.display(), runc.display());
    format!(
        r#"version = 3
root = "/var/lib/{DATA}"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.blockfile", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "{SOCKET}"
[ttrpc]
  address = "{SOCKET}.ttrpc"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{pause}"
[plugins."io.containerd.cri.v1.runtime"]
  # Its profiles would stay in the kernel.
  disable_apparmor = true
  # Without the right to lower scores, containers must not ask for it.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      SystemdCgroup = false
      BinaryName = "{runc}"
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = "{dir}/cni"
[plugins."io.containerd.nri.v1.nri"]
  disable = true
"#,
        pause = images::PAUSE
    )
}

/// Names of the images there.
pub(super) fn images(space: &Space, programs: &Programs) -> Result<Vec<String>> {
    Ok(ctr(space, programs, &["images", "ls", "-q"])?.lines().map(String::from).collect())
}

/// What of an archive tells it from another, without reading gigabytes.
pub(super) fn key(archive: &Path) -> Result<String> {
    let path: PathBuf = std::path::absolute(archive)?;
    let about = std::fs::metadata(&path).with_context(|| format!("there is no image archive {}", path.display()))?;
    let changed = about.modified()?.duration_since(std::time::UNIX_EPOCH)?.as_nanos();
    Ok(format!("{} {} {changed}", path.display(), about.len()))
}

//! The image's files as the root of a file system, and the program in it as a kubelet would start it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use torpor_cluster::Cluster;

use crate::harness::LEASE;
use crate::hibernation::Objects;
use crate::process::{Process, program};

/// As the kubelet writes it for a pod of namespace torpor-system.
const RESOLV_CONF: &str = "search torpor-system.svc.cluster.local svc.cluster.local cluster.local\n\
    nameserver 127.0.0.1\noptions ndots:5\n";
/// Where the program finds what a test has for it.
const DATA: &str = "/run/test";

/// Whom the program trusts.
#[derive(Clone, Copy)]
pub enum Authorities<'a> {
    /// Those of the image.
    Own,
    /// Those of a file that is mounted over the image's.
    Mounted(&'a Path),
    /// Those of a file in the data folder that an environment variable names.
    Named(&'a str),
}

/// The unpacked image.
pub struct Root {
    dir: PathBuf,
}

impl Root {
    /// Unpacks the archive that `TORPOR_IMAGE` names.
    pub fn unpack() -> Result<Self, String> {
        let archive = std::env::var("TORPOR_IMAGE").map_err(|_| "TORPOR_IMAGE names no archive".to_owned())?;
        let dir = std::env::temp_dir().join(format!("torpor-image-{}", std::process::id()));
        let root = Root { dir };
        let layout = root.dir.join("layout");
        untar(Path::new(&archive), &layout)?;
        let index = json(&layout.join("index.json"))?;
        let manifest = json(&blob(&layout, &index["manifests"][0]["digest"]))?;
        untar(&blob(&layout, &manifest["layers"][0]["digest"]), &root.path())?;
        // What a container runtime makes in the image's place, to mount on.
        for folder in ["proc", "run/test"] {
            fs::create_dir_all(root.path().join(folder)).map_err(|error| error.to_string())?;
        }
        fs::write(root.path().join("etc/resolv.conf"), "").map_err(|error| error.to_string())?;
        Ok(root)
    }

    fn path(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// A hibernator that is ready: the image's program, as its user, in its files.
    pub fn hibernator(&self, objects: &Objects, url: &str, authorities: Authorities) -> Result<Process, String> {
        objects.kubectl(&["delete", "lease", "torpor-hibernator", "-n", crate::rights::HOME, "--ignore-not-found"])?;
        let data = objects.cluster.data_dir().join("image");
        let start = data.join("start");
        fs::write(&start, self.script(&data, authorities)).map_err(|error| error.to_string())?;
        fs::set_permissions(&start, Permissions::from_mode(0o755)).map_err(|error| error.to_string())?;
        let key = format!("{DATA}/webhook.key");
        let catalog = format!("{DATA}/catalog.yaml");
        let mut program = program(&objects.cluster, "hibernator");
        if let Authorities::Named(file) = authorities {
            program = program.environment("SSL_CERT_FILE", &format!("{DATA}/{file}"));
        }
        let process = program
            .binary(&start)
            .kubeconfig(&Path::new(DATA).join("kubeconfig"))
            .arguments(&LEASE)
            .arguments(&["--catalog", &catalog, "--webhook-url", url, "--webhook-key-file", &key])
            .arguments(&["--breaker-least", "100"])
            .start()?;
        process.await_ready(Duration::from_secs(60))?;
        Ok(process)
    }

    /// Mounts what a kubelet mounts, makes the rest read-only, and becomes the program.
    fn script(&self, data: &Path, authorities: Authorities) -> String {
        let (root, data) = (self.path().display().to_string(), data.display());
        let own = format!("{root}/etc/ssl/certs/ca-certificates.crt");
        let bundle = match authorities {
            Authorities::Mounted(file) => format!("mount --bind '{}' '{own}'", file.display()),
            Authorities::Own | Authorities::Named(_) => String::new(),
        };
        let inside = format!(
            "mount --bind '{root}' '{root}'
            mount --bind '{data}' '{root}{DATA}'
            mount --bind '{data}/resolv.conf' '{root}/etc/resolv.conf'
            mount -t proc proc '{root}/proc'
            {bundle}
            mount -o remount,bind,ro '{root}'
            mount -o remount,bind,ro '{root}{DATA}'
            if touch '{root}/written' 2>/dev/null; then echo 'the root can be written to' >&2; exit 1; fi
            exec chroot --userspec=65532:65532 --groups= '{root}' /torpor \"$@\""
        );
        format!("#!/bin/sh\nset -e\nexec unshare --mount -- sh -ec {} sh \"$@\"\n", quoted(&inside))
    }
}

/// A folder that the program may read as [`DATA`].
pub fn data(cluster: &Cluster) -> Result<PathBuf, String> {
    let data = cluster.data_dir().join("image");
    fs::create_dir_all(&data).map_err(|error| error.to_string())?;
    fs::write(data.join("resolv.conf"), RESOLV_CONF).map_err(|error| error.to_string())?;
    fs::set_permissions(&data, Permissions::from_mode(0o755)).map_err(|error| error.to_string())?;
    Ok(data)
}

/// The administrator's kubeconfig with another address of the API server.
pub fn kubeconfig(cluster: &Cluster, server: &str) -> Result<(), String> {
    let view = cluster.kubectl(["config", "view", "--raw", "-o", "json"]).map_err(|error| error.to_string())?;
    let mut config: Value = serde_json::from_str(&view).map_err(|error| error.to_string())?;
    config["clusters"][0]["cluster"]["server"] = server.into();
    let file = cluster.data_dir().join("image/kubeconfig");
    fs::write(&file, config.to_string()).map_err(|error| error.to_string())?;
    fs::set_permissions(file, Permissions::from_mode(0o644)).map_err(|error| error.to_string())
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn untar(archive: &Path, into: &Path) -> Result<(), String> {
    fs::create_dir_all(into).map_err(|error| error.to_string())?;
    match Command::new("tar").arg("-xpf").arg(archive).arg("-C").arg(into).status() {
        Ok(status) if status.success() => Ok(()),
        other => Err(format!("tar: {}: {other:?}", archive.display())),
    }
}

fn json(file: &Path) -> Result<Value, String> {
    let bytes = fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
    serde_json::from_slice(&bytes).map_err(|error| error.to_string())
}

fn blob(layout: &Path, digest: &Value) -> PathBuf {
    layout.join("blobs").join(digest.as_str().unwrap_or_default().replace(':', "/"))
}

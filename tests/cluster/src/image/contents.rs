//! The files of the image, and nothing of who wrote them or when.

use std::{
    collections::BTreeMap,
    fs::{self, File, FileTimes, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};

use super::debian::Libraries;

/// Where users of the image and scanners find the bill of materials.
pub(super) const SBOM: &str = "usr/share/doc/torpor/torpor.cdx.json";

const PASSWD: &str =
    "root:x:0:0:root:/nonexistent:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/nonexistent:/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nnonroot:x:65532:\n";
/// The C library has both built in, and looks for any other one as a file that the image does not have.
const NSSWITCH: &str = "passwd: files\ngroup: files\nhosts: files dns\n";

/// What the image is made of.
pub(super) struct Parts<'a> {
    pub(super) binary: &'a Path,
    pub(super) licence: &'a Path,
    pub(super) notices: String,
    pub(super) of_rust: &'a Path,
    pub(super) sbom: String,
    pub(super) debian: &'a Libraries,
}

/// A file, and whether it may be executed.
pub(super) struct Entry {
    bytes: Vec<u8>,
    program: bool,
}

/// Every file of the image by its path, without a slash at the beginning.
pub(super) fn files(parts: &Parts) -> Result<BTreeMap<PathBuf, Entry>> {
    let mut files = BTreeMap::new();
    let mut add = |path: &str, bytes: Vec<u8>, program: bool| {
        let before = files.insert(PathBuf::from(path.trim_start_matches('/')), Entry { bytes, program });
        ensure!(before.is_none(), "the image would have {path} twice");
        Ok(())
    };
    add("torpor", read(parts.binary)?, true)?;
    add("etc/passwd", PASSWD.into(), false)?;
    add("etc/group", GROUP.into(), false)?;
    add("etc/nsswitch.conf", NSSWITCH.into(), false)?;
    add("etc/os-release", parts.debian.os_release.clone().into(), false)?;
    add("etc/ssl/certs/ca-certificates.crt", parts.debian.authorities.clone().into(), false)?;
    add("usr/share/doc/torpor/LICENSE", read(parts.licence)?, false)?;
    add("usr/share/doc/torpor/third-party.txt", parts.notices.clone().into(), false)?;
    add("usr/share/doc/torpor/rust-standard-library.html", read(parts.of_rust)?, false)?;
    add(SBOM, parts.sbom.clone().into(), false)?;
    for package in &parts.debian.packages {
        add(&format!("var/lib/dpkg/status.d/{}", package.name), package.stanza.clone().into(), false)?;
    }
    for (path, from) in &parts.debian.files {
        let program = fs::metadata(from)?.permissions().mode() & 0o111 != 0;
        add(&path.display().to_string(), read(from)?, program)?;
    }
    Ok(files)
}

/// Puts the files into an empty folder, with modes that no umask changes, as if all were written at `epoch`.
pub(super) fn write(files: &BTreeMap<PathBuf, Entry>, root: &Path, epoch: u64) -> Result<()> {
    let empty = fs::read_dir(root).with_context(|| format!("cannot read {}", root.display()))?.next().is_none();
    ensure!(empty, "{} is not empty", root.display());
    for (path, entry) in files {
        let file = root.join(path);
        fs::create_dir_all(file.parent().unwrap_or(root))?;
        fs::write(&file, &entry.bytes).with_context(|| format!("cannot write {}", file.display()))?;
        settle(&file, if entry.program { 0o755 } else { 0o644 }, epoch)?;
    }
    settle_folders(root, epoch)
}

fn settle_folders(folder: &Path, epoch: u64) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            settle_folders(&entry.path(), epoch)?;
        }
    }
    settle(folder, 0o755, epoch)
}

fn settle(path: &Path, mode: u32, epoch: u64) -> Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(epoch);
    File::open(path)?.set_times(FileTimes::new().set_modified(at).set_accessed(at))?;
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

//! Torpor's image: the program, what it needs of Debian, who wrote it all, and nothing else.
//!
//! `Dockerfile` and `make image` call the same [`rootfs`], so they cannot differ in what is inside.

mod check;
mod compile;
mod contents;
mod crates;
mod debian;
mod dockerfile;
mod licences;
mod listing;
mod run;
mod sbom;
mod source;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::oci::{self, Archive, Config};

pub use check::check;
pub use source::Source;

/// Registry and repository of the published image; its tag is the version of the crate.
pub const REPOSITORY: &str = "ghcr.io/torpor-dev/torpor";

/// A user that owns nothing, as a number: the kubelet must see that it is not root.
const USER: &str = "65532:65532";

const HOMEPAGE: &str = "https://github.com/torpor-dev/torpor";

/// What `make image` leaves.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its whole name, e.g. `ghcr.io/torpor-dev/torpor:0.1.0`.
    pub name: String,
    /// The OCI archive; containerd imports it under that name.
    pub archive: PathBuf,
    /// The software bill of materials, CycloneDX JSON; the image has the same file.
    pub sbom: PathBuf,
    /// The digest of the image, `sha256:…`.
    pub digest: String,
}

/// Builds the image from `source` and writes it and its bill of materials into the folder `out`.
pub fn build(source: &Source, out: &Path) -> Result<Image> {
    let work = out.join("work");
    // Left by a run that was interrupted.
    let _ = fs::remove_dir_all(&work);
    let root = work.join("rootfs");
    fs::create_dir_all(&root).with_context(|| format!("cannot create {}", root.display()))?;
    rootfs(source, &root)?;
    let layer = work.join("rootfs.tar");
    oci::layer(&root, &layer, source.epoch)?;
    let image = Image {
        name: format!("{REPOSITORY}:{}", source.version),
        archive: out.join("torpor.oci.tar"),
        sbom: out.join("torpor.sbom.json"),
        digest: String::new(),
    };
    let digest = oci::write(&Archive {
        name: image.name.clone(),
        layers: vec![layer],
        config: config(source)?,
        created: source.epoch,
        gzip: false,
        out: image.archive.clone(),
    })?;
    fs::copy(root.join(contents::SBOM), &image.sbom)?;
    fs::remove_dir_all(&work)?;
    Ok(Image { digest, ..image })
}

/// Builds the program and puts every file of the image into the folder `root`, which must be empty.
pub fn rootfs(source: &Source, root: &Path) -> Result<()> {
    let toolchain = compile::Toolchain::find()?;
    let packages = debian::Packages::find()?;
    let binary = compile::compile(source, &toolchain)?;
    let crates = crates::of_binary(source, &toolchain)?;
    let libraries = packages.libraries(&binary)?;
    let sbom = sbom::make(source, &toolchain, &crates, &libraries)?;
    let files = contents::files(&contents::Parts {
        binary: &binary,
        licence: &source.dir.join("LICENSE"),
        notices: licences::collect(&crates)?,
        of_rust: &toolchain.notices,
        sbom,
        debian: &libraries,
    })?;
    contents::write(&files, root, source.epoch)
}

/// How a container of the image runs, and where it is from.
fn config(source: &Source) -> Result<Config> {
    let label = |name: &str, value: &str| (format!("org.opencontainers.image.{name}"), value.to_owned());
    let labels = BTreeMap::from([
        label("title", "Torpor"),
        label("description", &source.description),
        label("version", &source.version),
        label("revision", &source.revision),
        label("source", HOMEPAGE),
        label("licenses", &source.licence),
        label("created", &source.created()?),
    ]);
    Ok(Config {
        user: USER.to_owned(),
        entrypoint: vec!["/torpor".to_owned()],
        working_dir: "/".to_owned(),
        labels,
        ..Config::default()
    })
}

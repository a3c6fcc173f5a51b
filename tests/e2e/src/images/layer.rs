//! What images are made of.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use torpor_cluster::{GoModule, build_once, cache_dir, hash, oci};

use super::debian;

/// One layer, which several images may share.
#[derive(Clone, Debug)]
pub(super) enum Layer {
    /// A shell, Debian packages and what they depend on, unpacked. Their scripts do not run.
    Debian {
        /// Names the folder in the cache.
        name: &'static str,
        packages: &'static [&'static str],
    },
    /// What a script made, in a Debian tree with these packages.
    Built {
        /// Names the folder in the cache.
        name: &'static str,
        packages: &'static [&'static str],
        /// It leaves `/layer.tar`.
        script: &'static str,
        /// Name below `/build` and text.
        files: &'static [(&'static str, &'static str)],
    },
    /// A program of a Go module.
    Go {
        module: GoModule,
        /// Where it stands in the image.
        path: &'static str,
    },
    /// Files of our own.
    Files(&'static [File]),
}

/// A file, or a folder where there is no text.
#[derive(Clone, Copy, Debug)]
pub(super) struct File {
    pub(super) path: &'static str,
    pub(super) mode: u32,
    pub(super) text: Option<&'static str>,
}

impl Layer {
    /// A hash of everything that decides what is in it. The suite's packages may be newer; that is no other layer.
    pub(super) fn key(&self) -> u64 {
        let itself = format!("{self:?}");
        match self {
            Layer::Debian { .. } => {
                hash(&[&itself, debian::SUITE, &debian::SHELL.join(" "), &debian::WITHOUT.join(" ")])
            }
            _ => hash(&[&itself, debian::SUITE]),
        }
    }

    /// Builds it unless it is in the cache, and gives its tar file.
    pub(super) fn ensure(&self) -> Result<PathBuf> {
        let name = match self {
            Layer::Debian { name, .. } | Layer::Built { name, .. } => name,
            Layer::Go { module, .. } => module.name,
            Layer::Files(_) => "files",
        };
        let dir = cache_dir()?.join(format!("layer-{name}-{:016x}", self.key()));
        let tar = |dir: &Path| dir.join("layer.tar");
        build_once(&dir, |work| match self {
            Layer::Debian { packages, .. } => debian::unpack(packages, &tar(work)),
            Layer::Built { packages, script, files, .. } => {
                let sources = work.join("build");
                fs::create_dir(&sources)?;
                for (name, text) in *files {
                    fs::write(sources.join(name), text)?;
                }
                fs::write(sources.join("build.sh"), script)?;
                debian::build(packages, &sources, &tar(work))?;
                Ok(fs::remove_dir_all(sources)?)
            }
            Layer::Files(files) => with_root(work, |root| files.iter().try_for_each(|file| file.write(root))),
            Layer::Go { module, path } => with_root(work, |root| {
                let program = module.programs.first().context("a module without a program")?;
                let to = root.join(path);
                fs::create_dir_all(to.parent().context("a program stands in a folder")?)?;
                fs::copy(module.build()?.join(program.name), to)?;
                Ok(())
            }),
        })?;
        Ok(tar(&dir))
    }
}

impl File {
    fn write(&self, root: &Path) -> Result<()> {
        let path = root.join(self.path);
        match self.text {
            Some(text) => {
                fs::create_dir_all(path.parent().context("a file stands in a folder")?)?;
                fs::write(&path, text)?;
            }
            None => fs::create_dir_all(&path)?,
        }
        Ok(fs::set_permissions(path, fs::Permissions::from_mode(self.mode))?)
    }
}

/// Packs what `fill` puts into a folder.
fn with_root(work: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let root = work.join("root");
    fs::create_dir(&root)?;
    fill(&root)?;
    oci::layer(&root, &work.join("layer.tar"), 0)?;
    Ok(fs::remove_dir_all(root)?)
}

//! What is built: a folder, and the commit that its image carries.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::run::output;

const CARGO: &str = "install Rust 1.89 or newer, see https://rustup.rs";
const GIT: &str = "install the package git, or set SOURCE_DATE_EPOCH and TORPOR_REVISION";

/// The sources, and what identifies them.
#[derive(Clone, Debug)]
pub struct Source {
    /// The folder of the workspace, absolute.
    pub dir: PathBuf,
    /// Where cargo puts what it builds.
    pub target: PathBuf,
    /// Seconds since 1970 that stand for every time in the image: the commit's.
    pub epoch: u64,
    /// The commit, with `-dirty` behind it when files differ from it.
    pub revision: String,
    /// Version of the crate, and the image's tag.
    pub version: String,
    pub(super) description: String,
    pub(super) licence: String,
}

impl Source {
    /// The sources in a folder. `SOURCE_DATE_EPOCH` and `TORPOR_REVISION` speak for the commit where there is no git
    /// repository, as in the build of a Dockerfile.
    pub fn find(dir: &Path) -> Result<Self> {
        let metadata = output(
            Command::new("cargo").args(["metadata", "--format-version=1", "--no-deps", "--locked"]).current_dir(dir),
            CARGO,
        )?;
        let metadata: Value = serde_json::from_str(&metadata)?;
        let package = metadata["packages"].as_array().into_iter().flatten().find(|package| package["name"] == "torpor");
        let package = package.with_context(|| format!("no crate torpor in {}", dir.display()))?;
        let text = |value: &Value| value.as_str().map(ToOwned::to_owned).context("cargo metadata lacks a field");
        let dir = PathBuf::from(text(&metadata["workspace_root"])?);
        Ok(Self {
            epoch: epoch(&dir)?,
            revision: revision(&dir)?,
            target: PathBuf::from(text(&metadata["target_directory"])?),
            version: text(&package["version"])?,
            description: text(&package["description"])?,
            licence: text(&package["license"])?,
            dir,
        })
    }

    /// The same with another folder for what cargo builds.
    #[must_use]
    pub fn with_target(mut self, target: &Path) -> Self {
        target.clone_into(&mut self.target);
        self
    }

    /// The time of the commit as RFC 3339.
    pub fn created(&self) -> Result<String> {
        let at = format!("--date=@{}", self.epoch);
        let text = output(Command::new("date").args(["--utc", &at, "+%Y-%m-%dT%H:%M:%SZ"]), "install coreutils")?;
        Ok(text.trim().to_owned())
    }
}

fn epoch(dir: &Path) -> Result<u64> {
    let text = match variable("SOURCE_DATE_EPOCH") {
        Some(text) => text,
        None => git(dir, &["log", "-1", "--format=%ct"])?,
    };
    text.trim().parse().with_context(|| format!("SOURCE_DATE_EPOCH is {text:?}, not seconds since 1970"))
}

fn revision(dir: &Path) -> Result<String> {
    if let Some(revision) = variable("TORPOR_REVISION") {
        return Ok(revision);
    }
    let commit = git(dir, &["rev-parse", "HEAD"])?.trim().to_owned();
    let clean = git(dir, &["status", "--porcelain"])?.trim().is_empty();
    Ok(if clean { commit } else { format!("{commit}-dirty") })
}

fn git(dir: &Path, arguments: &[&str]) -> Result<String> {
    let command = &mut Command::new("git");
    output(command.arg("-C").arg(dir).args(arguments), GIT)
        .context("which commit this is: without a git repository set SOURCE_DATE_EPOCH and TORPOR_REVISION")
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

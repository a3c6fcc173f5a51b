//! The crates whose code is in the program.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{compile::Toolchain, run::output, source::Source};

const CARGO: &str = "install Rust 1.89 or newer, see https://rustup.rs";

/// A crate in the program, Torpor itself among them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Crate {
    pub(super) name: String,
    pub(super) version: String,
    /// SPDX expression, as the crate says.
    pub(super) licence: String,
    pub(super) folder: PathBuf,
}

/// Neither what only tests need, nor what only runs while the program is built: build scripts and macros.
pub(super) fn of_binary(source: &Source, toolchain: &Toolchain) -> Result<Vec<Crate>> {
    let tree = output(
        Command::new("cargo")
            .args(["tree", "--locked", "--package", "torpor", "--edges", "normal,no-proc-macro"])
            .args(["--target", &toolchain.host, "--prefix", "none", "--format", "{p}"])
            .current_dir(&source.dir),
        CARGO,
    )?;
    let metadata = output(
        Command::new("cargo")
            .args(["metadata", "--format-version=1", "--locked", "--filter-platform", &toolchain.host])
            .current_dir(&source.dir),
        CARGO,
    )?;
    let known = known(&serde_json::from_str(&metadata)?)?;
    let found = |key: &(String, String)| {
        known.get(key).cloned().with_context(|| format!("cargo metadata lacks {} {}", key.0, key.1))
    };
    names(&tree)?.iter().map(found).collect()
}

fn names(tree: &str) -> Result<BTreeSet<(String, String)>> {
    let name = |line: &str| {
        let mut words = line.split_whitespace();
        let name = words.next()?;
        Some((name.to_owned(), words.next()?.strip_prefix('v')?.to_owned()))
    };
    let lines = tree.lines().filter(|line| !line.is_empty());
    lines.map(|line| name(line).with_context(|| format!("cargo tree printed {line:?}"))).collect()
}

fn known(metadata: &Value) -> Result<BTreeMap<(String, String), Crate>> {
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let text = |package: &Value, field: &str| package[field].as_str().unwrap_or_default().to_owned();
    let entry = |package: &Value| {
        let (name, version) = (text(package, "name"), text(package, "version"));
        let manifest = PathBuf::from(text(package, "manifest_path"));
        let folder = manifest.parent().context("a manifest without a folder")?.to_owned();
        let licence = text(package, "license");
        Ok(((name.clone(), version.clone()), Crate { name, version, licence, folder }))
    };
    packages.iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_are_read() {
        let tree = "torpor v0.1.0 (/src)\nserde v1.0.2\nserde v1.0.2 (*)\n\n";
        let name = |name: &str, version: &str| (name.to_owned(), version.to_owned());
        assert_eq!(names(tree).expect("a tree"), BTreeSet::from([name("torpor", "0.1.0"), name("serde", "1.0.2")]));
        assert!(names("warning: nothing\n").is_err());
    }
}

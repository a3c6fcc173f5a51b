//! What the image has of Debian: the C library and its loader, certificate authorities, and the files that say so.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use super::run::output;

const DEBIAN: &str = "the image takes the C library and certificate authorities from Debian's packages, so it is built on Debian or Ubuntu";
const AUTHORITIES: &str = "ca-certificates";
/// Has /etc/os-release, by which scanners know whose packages these are, and the texts of common licences.
const BASE: &str = "base-files";
const OS_RELEASE: &str = "/usr/lib/os-release";
const COMMON_LICENCES: &str = "/usr/share/common-licenses/";

/// An installed package.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) architecture: String,
    /// What dpkg knows of it, for scanners.
    pub(super) stanza: String,
}

/// dpkg's database on this machine.
pub(super) struct Packages;

/// Files by their path in the image, and the packages that they are of.
pub(super) struct Libraries {
    pub(super) files: BTreeMap<PathBuf, PathBuf>,
    pub(super) authorities: String,
    pub(super) packages: BTreeSet<Package>,
    /// The contents of os-release.
    pub(super) os_release: String,
}

impl Packages {
    pub(super) fn find() -> Result<Self> {
        output(Command::new("dpkg-query").arg("--version"), DEBIAN)?;
        for name in [AUTHORITIES, BASE] {
            package(name).with_context(|| format!("the package {name} is missing: apt-get install {name}"))?;
        }
        Ok(Self)
    }

    /// All that the program needs to run.
    pub(super) fn libraries(&self, binary: &Path) -> Result<Libraries> {
        let needed = needed(&output(Command::new("ldd").arg(binary).env_remove("LD_LIBRARY_PATH"), DEBIAN)?)?;
        let mut names = BTreeSet::from([AUTHORITIES.to_owned(), BASE.to_owned()]);
        let mut used = BTreeSet::from([PathBuf::from(OS_RELEASE)]);
        let mut files = BTreeMap::new();
        for path in needed {
            let (owner, owned) = owner(&path)?;
            names.insert(owner);
            used.insert(owned);
            files.insert(path.clone(), fs::canonicalize(&path)?);
        }
        let certificates = certificates()?;
        used.extend(certificates.iter().cloned());
        for name in &names {
            let copyright = PathBuf::from(format!("/usr/share/doc/{name}/copyright"));
            let text =
                fs::read_to_string(&copyright).with_context(|| format!("cannot read {}", copyright.display()))?;
            for licence in common_licences(&text) {
                let path = Path::new(COMMON_LICENCES).join(licence);
                if path.exists() {
                    files.insert(path.clone(), fs::canonicalize(&path)?);
                }
            }
            files.insert(copyright.clone(), fs::canonicalize(&copyright)?);
        }
        unchanged(&names, &used)?;
        Ok(Libraries {
            files,
            authorities: bundle(&certificates)?,
            packages: names.iter().map(|name| package(name)).collect::<Result<_>>()?,
            os_release: fs::read_to_string(OS_RELEASE)?,
        })
    }
}

/// Only what the package has: an authority that was added to this machine is none for others.
fn certificates() -> Result<Vec<PathBuf>> {
    let listed = output(Command::new("dpkg-query").args(["--listfiles", AUTHORITIES]), DEBIAN)?;
    let mut paths: Vec<PathBuf> = listed
        .lines()
        .filter(|line| line.starts_with("/usr/share/ca-certificates/") && line.ends_with(".crt"))
        .map(PathBuf::from)
        .collect();
    paths.sort();
    ensure!(!paths.is_empty(), "the package {AUTHORITIES} has no certificates");
    Ok(paths)
}

fn bundle(certificates: &[PathBuf]) -> Result<String> {
    let mut bundle = String::new();
    for path in certificates {
        let pem = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        bundle += pem.trim_end();
        bundle += "\n";
    }
    Ok(bundle)
}

/// The libraries in what ldd prints, the loader among them.
fn needed(ldd: &str) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for line in ldd.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("linux-vdso")) {
        ensure!(!line.contains("not found"), "a library of the program is missing: {line}");
        let path = line.split_once("=> ").map_or(line, |(_, path)| path);
        let path = path.split(" (").next().unwrap_or_default();
        ensure!(path.starts_with('/'), "ldd printed {line:?}");
        paths.push(PathBuf::from(path));
    }
    Ok(paths)
}

/// The package that has a file, and the file's name there: since /lib is a link to /usr/lib, one file has two.
fn owner(path: &Path) -> Result<(String, PathBuf)> {
    let other = match path.strip_prefix("/usr") {
        Ok(rest) => Path::new("/").join(rest),
        Err(_) => Path::new("/usr").join(path.strip_prefix("/")?),
    };
    for path in [path.to_owned(), other, fs::canonicalize(path)?] {
        if let Ok(found) = output(Command::new("dpkg-query").arg("--search").arg(&path), DEBIAN) {
            let package = found.split([':', ',']).next().unwrap_or_default();
            return Ok((package.to_owned(), path));
        }
    }
    bail!("{} is of no Debian package, so nobody could say which version the image has", path.display())
}

fn package(name: &str) -> Result<Package> {
    const FIELDS: &str = "${Package}\n${Version}\n${Architecture}\n\
        Package: ${Package}\nStatus: install ok installed\nMaintainer: ${Maintainer}\n\
        Architecture: ${Architecture}\nSource: ${source:Package}\nVersion: ${Version}\nDescription: ${binary:Summary}\n";
    let shown = output(Command::new("dpkg-query").args(["--show", "--showformat", FIELDS, name]), DEBIAN)?;
    let mut parts = shown.splitn(4, '\n').map(ToOwned::to_owned);
    let mut next = || parts.next().with_context(|| format!("dpkg knows too little of {name}"));
    Ok(Package { name: next()?, version: next()?, architecture: next()?, stanza: next()? })
}

/// A library that somebody has patched by hand would go out under Debian's name.
fn unchanged(names: &BTreeSet<String>, used: &BTreeSet<PathBuf>) -> Result<()> {
    let report = output(Command::new("dpkg").arg("--verify").args(names), DEBIAN)?;
    for line in report.lines() {
        let changed = line.split_whitespace().last().unwrap_or_default();
        ensure!(
            !used.contains(Path::new(changed)),
            "{changed} is not as its package has it: apt-get install --reinstall, with the name of the package"
        );
    }
    Ok(())
}

fn common_licences(text: &str) -> BTreeSet<String> {
    let name = |rest: &str| {
        let name: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || "-.".contains(*c)).collect();
        name.trim_end_matches('.').to_owned()
    };
    text.split(COMMON_LICENCES).skip(1).map(name).filter(|name| !name.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_is_read() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let found = needed(text).expect("ldd");
        assert_eq!(found, [Path::new("/lib/x86_64-linux-gnu/libc.so.6"), Path::new("/lib64/ld-linux-x86-64.so.2")]);
        assert!(needed("\tlibz.so.1 => not found\n").is_err());
        assert!(needed("\tstatically linked\n").is_err());
    }

    #[test]
    fn licences_that_are_referred_to_are_found() {
        let text = "see /usr/share/common-licenses/LGPL-2.1.\nor `/usr/share/common-licenses/GPL-3'\n";
        assert_eq!(common_licences(text), BTreeSet::from(["LGPL-2.1".to_owned(), "GPL-3".to_owned()]));
    }
}

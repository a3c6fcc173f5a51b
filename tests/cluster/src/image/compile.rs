//! The program, compiled so that neither the folder nor the user's own settings show in it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::{
    run::{output, shown},
    source::Source,
};

const RUSTUP: &str = "install Rust 1.89 or newer, see https://rustup.rs";

/// The compiler, as far as the image depends on it.
pub(super) struct Toolchain {
    /// E.g. `x86_64-unknown-linux-gnu`.
    pub(super) host: String,
    /// E.g. `rustc 1.95.0 (59807616e 2026-04-14)`.
    pub(super) version: String,
    /// Who wrote the standard library.
    pub(super) notices: PathBuf,
    sysroot: PathBuf,
    commit: String,
}

impl Toolchain {
    pub(super) fn find() -> Result<Self> {
        let verbose = output(Command::new("rustc").arg("-vV"), RUSTUP)?;
        let field = |name: &str| {
            let found = verbose.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            found.map(ToOwned::to_owned).with_context(|| format!("rustc -vV does not tell its {name}"))
        };
        let sysroot = PathBuf::from(output(Command::new("rustc").args(["--print", "sysroot"]), RUSTUP)?.trim());
        let notices = sysroot.join("share/doc/rust/COPYRIGHT-library.html");
        ensure!(
            notices.is_file(),
            "{} is missing, and whoever gets the program must get it too: {RUSTUP}",
            notices.display()
        );
        let version = verbose.lines().next().unwrap_or_default().to_owned();
        Ok(Self { host: field("host")?, commit: field("commit-hash")?, version, notices, sysroot })
    }
}

/// Compiles `torpor`, and gives the path of the program.
pub(super) fn compile(source: &Source, toolchain: &Toolchain) -> Result<PathBuf> {
    let home = cargo_home()?;
    // Where several match, the last one counts; a target folder is often inside the sources.
    let flags = [
        remap(&source.dir, "/torpor"),
        remap(&source.target, "/target"),
        remap(&home, "/cargo"),
        // With rust-src installed, rustc would name the standard library's files by where they are.
        remap(&toolchain.sysroot.join("lib/rustlib/src/rust"), &format!("/rustc/{}", toolchain.commit)),
        // Less by a megabyte; the C library in the image is new enough to read it.
        "-Clink-arg=-Wl,-z,pack-relative-relocs".to_owned(),
    ];
    let c_flags = format!("-ffile-prefix-map={}=/cargo", home.display());
    let mut cargo = Command::new("cargo");
    cargo
        .args(["build", "--locked", "--package", "torpor", "--bin", "torpor", "--profile", "dist"])
        // Named even though it is the default: flags then reach the program only, not what runs while it is built.
        .args(["--target", &toolchain.host])
        .arg("--target-dir")
        .arg(&source.target)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("CFLAGS", c_flags)
        .env("CARGO_INCREMENTAL", "0")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET")
        .current_dir(&source.dir);
    shown(&mut cargo)?;
    let binary = source.target.join(&toolchain.host).join("dist/torpor");
    let bytes = fs::read(&binary).with_context(|| format!("cannot read {}", binary.display()))?;
    for dir in [&source.dir, &source.target, &home, &toolchain.sysroot] {
        ensure!(
            !holds(&bytes, dir),
            "the program holds the path {}, so it could not be built alike elsewhere",
            dir.display()
        );
    }
    Ok(binary)
}

fn remap(from: &Path, to: &str) -> String {
    format!("--remap-path-prefix={}={to}", from.display())
}

fn holds(bytes: &[u8], path: &Path) -> bool {
    let path = path.as_os_str().as_encoded_bytes();
    bytes.windows(path.len()).any(|window| window == path)
}

fn cargo_home() -> Result<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = set("CARGO_HOME").or_else(|| set("HOME").map(|home| home.join(".cargo")));
    home.context("neither CARGO_HOME nor HOME is set")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_in_programs_are_found() {
        assert!(holds(b"\x7fELF../home/me/src/main.rs", Path::new("/home/me")));
        assert!(!holds(b"\x7fELF../torpor/src/main.rs", Path::new("/home/me")));
    }
}

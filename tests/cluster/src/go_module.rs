//! Programs of Go modules that have a go.mod of their own, built once into the cache folder.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};

use crate::tools::{build_once, cache_dir, fnv1a, go, require_go};

/// A go.mod with all that goes with it, and the programs built from it.
#[derive(Clone, Copy, Debug)]
pub struct GoModule {
    /// Names the folder in the cache.
    pub name: &'static str,
    /// Name and text of each file: `go.mod`, `go.sum`, and sources if it has its own.
    pub files: &'static [(&'static str, &'static str)],
    /// What is built from it.
    pub programs: &'static [GoProgram],
}

/// One program of a Go module.
#[derive(Clone, Copy, Debug)]
pub struct GoProgram {
    /// Name of the built file.
    pub name: &'static str,
    /// The package that holds its `main`.
    pub package: &'static str,
    /// What the linker is told besides leaving out debug data, e.g. `-X main.version=1`.
    pub ldflags: &'static str,
    /// Build tags, separated by commas.
    pub tags: &'static str,
    /// Whether it is linked with C libraries; needs gcc.
    pub cgo: bool,
}

impl GoModule {
    /// The folder of its programs, whether or not they are built yet.
    pub fn dir(&self) -> Result<PathBuf> {
        let programs = format!("{:?}", self.programs);
        let texts: Vec<&str> = self.files.iter().flat_map(|(name, text)| [*name, *text]).chain([&*programs]).collect();
        Ok(cache_dir()?.join(format!("{}-{:016x}", self.name, fnv1a(&texts))))
    }

    /// Builds the programs unless they are there, and gives their folder.
    pub fn build(&self) -> Result<PathBuf> {
        let dir = self.dir()?;
        build_once(&dir, |work| {
            require_go()?;
            for (name, text) in self.files {
                fs::write(work.join(name), text)?;
            }
            for program in self.programs {
                eprintln!("building {} into {} (once; about a minute)", program.name, dir.display());
                run(program.command(work)).with_context(|| format!("building {} failed", program.name))?;
            }
            Ok(())
        })?;
        Ok(dir)
    }
}

impl GoProgram {
    fn command(&self, work: &std::path::Path) -> Command {
        let ldflags = format!("-s -w {}", self.ldflags);
        let tags = format!("-tags={}", self.tags);
        let args =
            ["build", "-mod=readonly", "-trimpath", "-buildvcs=false", &tags, "-ldflags", &ldflags, "-o", self.name];
        let mut command = go(work, args);
        command.arg(self.package).env("CGO_ENABLED", if self.cgo { "1" } else { "0" });
        command
    }
}

fn run(mut command: Command) -> Result<()> {
    let output = command.output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = stderr.lines().collect();
    ensure!(output.status.success(), "{}", lines[lines.len().saturating_sub(15)..].join("\n"));
    Ok(())
}

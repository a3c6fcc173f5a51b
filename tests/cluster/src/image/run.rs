//! Other programs, run to their end.

use std::{ffi::OsStr, path::Path, process::Command};

use anyhow::{Context, Result, bail};

/// What the program printed; an error with what it complained about, or with what to install where there is none.
pub(super) fn output(command: &mut Command, package: &str) -> Result<String> {
    let name = name(command);
    // Messages are parsed.
    let output = match command.env("LC_ALL", "C").output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!("{name} is not installed: {package}"),
        Err(error) => return Err(error).with_context(|| format!("cannot start {name}")),
    };
    if !output.status.success() {
        bail!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{name} printed what is not text"))
}

/// Shows what the program prints, and fails as it does.
pub(super) fn shown(command: &mut Command) -> Result<()> {
    let name = name(command);
    let status = command.status().with_context(|| format!("cannot start {name}"))?;
    if !status.success() {
        bail!("{name} failed ({status})");
    }
    Ok(())
}

fn name(command: &Command) -> String {
    Path::new(command.get_program()).file_name().and_then(OsStr::to_str).unwrap_or("a program").to_owned()
}

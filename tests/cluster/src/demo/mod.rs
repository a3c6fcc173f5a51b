//! The parts of `torpor-demo`.
//!
//! `show` is what the user sees. Cluster and operator belong to a process in the background, `serve`, so that they
//! outlive the command; `state` is the folder in the user's cache where the two find each other, from any clone.

pub mod door;
pub mod kubectl;
pub mod parts;
pub mod serve;
pub mod show;
pub mod sleep;
pub mod state;
pub mod tree;

use std::{
    fs,
    io::Write,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// A file that the demo applies: its place in the project and its text.
pub struct Example {
    /// Path from the project's root.
    pub path: &'static str,
    /// What is in it.
    pub yaml: &'static str,
}

macro_rules! example {
    ($path:literal) => {
        Example { path: $path, yaml: include_str!(concat!("../../../../", $path)) }
    };
}

/// The worker pools.
pub const POOLS: Example = example!("examples/pools.yaml");

/// Seconds instead of days until idle tenants sleep.
pub const CATALOG: Example = example!("examples/catalog-demo.yaml");

/// A portal's account and rights.
pub const PORTAL: Example = example!("examples/rbac-portal.yaml");

/// One tenant for each tier: its name and its file.
pub const TENANTS: [(&str, Example); 4] = [
    ("free-bird", example!("examples/tenant-free.yaml")),
    ("alice", example!("examples/tenant-basic.yaml")),
    ("pro-trader", example!("examples/tenant-pro.yaml")),
    ("premium-desk", example!("examples/tenant-premium.yaml")),
];

/// Something that the user gave cannot be used.
#[derive(Debug)]
pub struct BadInput(pub String);

impl std::fmt::Display for BadInput {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for BadInput {}

/// Prints a line. A reader that has had enough, like `head`, must not end the demo halfway.
pub fn say(line: impl std::fmt::Display) {
    let mut stdout = std::io::stdout();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

/// Polls until `attempt` has an answer; after the limit, fails with its last reason, which says of what.
pub fn eventually<T>(limit: Duration, mut attempt: impl FnMut() -> Result<Result<T, String>>) -> Result<T> {
    let started = Instant::now();
    loop {
        match attempt()? {
            Ok(answer) => return Ok(answer),
            Err(reason) if started.elapsed() > limit => bail!("{reason}, for {} s", limit.as_secs()),
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// The end of a log, for an error message.
pub fn tail(file: &Path) -> String {
    let bytes = fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

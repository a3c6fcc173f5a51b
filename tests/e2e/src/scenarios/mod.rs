//! What a real node has to show: each scenario says what it proves, in the order in which they run on one cluster.

mod copies;
mod limits;
mod network;
mod pods;
mod release;
mod rig;
mod sleep;
mod stacks;

use std::{path::PathBuf, time::Instant};

use anyhow::{Result, ensure};

use self::rig::Rig;

/// How the scenarios are run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// OCI archive of Torpor's own image.
    pub image: PathBuf,
    /// Names of scenarios contain this; none means all.
    pub filter: Option<String>,
    /// How many times each tenant is woken to measure it.
    pub wakes: usize,
    /// Where the logs of all programs are copied to at the end.
    pub keep_logs: Option<PathBuf>,
}

type Scenario = fn(&Rig) -> Result<()>;

const SCENARIOS: [(&str, &str, Scenario); 10] = [
    ("stacks", "a basic and a free tenant become Ready; database and Redis run with what the plan says", stacks::run),
    ("pods", "Pod Security, user namespaces, no root, no writable root file system", pods::run),
    ("network", "who reaches whom, by packets", network::run),
    ("stages", "sleep through all stages; every bot stops gracefully, every row stays", sleep::stages),
    ("wakes", "how long it takes to wake", sleep::wakes),
    ("restarts", "kubelet and operator are ended; no bot notices", copies::restarts),
    ("drain", "a drained node's bots stop gracefully and come back once", copies::drain),
    ("partition", "a node is cut off; nobody starts its bots a second time", copies::partition),
    (
        "memory",
        "a bot that takes too much is killed alone; one that is stopped while it starts can still be asked to",
        limits::run,
    ),
    ("release", "helm uninstall and install again; tenants run on", release::run),
];

/// Runs the scenarios. Returns how many passed and failed.
///
/// # Errors
/// When the cluster, or Torpor on it, cannot be brought up.
pub fn run(settings: &Settings) -> Result<(usize, usize)> {
    let began = Instant::now();
    let wanted = |name: &str| settings.filter.as_deref().is_none_or(|filter| name.contains(filter));
    let scenarios: Vec<_> = SCENARIOS.iter().filter(|(name, ..)| wanted(name)).collect();
    ensure!(!scenarios.is_empty(), "no scenario is called {:?}", settings.filter.as_deref().unwrap_or_default());
    let rig = Rig::start(settings)?;
    let mut failed = 0;
    let mut judge = |name: &str, outcome: Result<()>| {
        let seconds = began.elapsed().as_secs();
        match outcome.and_then(|()| rig.check()) {
            Ok(()) => println!("[{seconds:>4} s] {name}: ok"),
            Err(error) => {
                failed += 1;
                println!("[{seconds:>4} s] {name}: FAILED: {error:#}");
                println!("{}", rig.look());
            }
        }
    };
    for (name, what, scenario) in &scenarios {
        println!("[{:>4} s] {name}: {what}", began.elapsed().as_secs());
        judge(name, scenario(&rig));
    }
    println!(
        "[{:>4} s] exchange: over the whole run no order was left open and no bot had two copies",
        began.elapsed().as_secs()
    );
    judge("exchange", rig.exchange_is_content());
    let all = scenarios.len() + 1;
    Ok((all - failed, failed))
}

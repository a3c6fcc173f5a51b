//! All idle tenants at once: the breaker opens, somebody releases it, and whoever is due goes to sleep.
//!
//! The catalogue of examples/catalog-demo.yaml has seconds for days, but tier free keeps its days here, and of the others so many sleep by
//! themselves as are to be due. The pace of the hibernator (60 a minute by default) is
//! raised, because it would be all that is measured.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Error, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};
use torpor_cluster::torpor::HOME;

use crate::audit::{Counts, Tail, agent, answered, seconds};
use crate::bench::Bench;
use crate::memory::{cpu_ms, forget_peak, rss};
use crate::report::Row;
use crate::world::{LONG, QUIET, World, condition, project};

const NAME: &str = "sleep";
const AGENTS: [&str; 2] = [agent::OPERATOR, agent::HIBERNATOR];
/// Tiers of which some sleep: those with the fewest bots of which a Tenant may say whether it does.
const SLEEPERS: [&str; 2] = ["basic", "pro"];

/// Measures. The tenants sleep for good afterwards, so nobody goes on with them.
pub fn run(bench: &mut Bench) -> Result<()> {
    let mut fleet = bench.fleet()?;
    let of = |tier: &'static str| fleet.tenants.iter().filter(move |tenant| tenant.tier == tier);
    let mut due: Vec<String> = SLEEPERS.into_iter().flat_map(of).map(|tenant| tenant.name.clone()).collect();
    let awake = due.split_off(bench.size.due.min(due.len()));
    let catalog = catalog(fleet.world.cluster.data_dir())?.display().to_string();
    fleet.world.patch(&due, &mode("Auto"))?;
    fleet.world.patch(&awake, &mode("Never"))?;
    fleet.world.stop_operator()?;
    fleet.world.start_operator(&["--catalog", &catalog])?;
    fleet.world.await_settled()?;
    let world = &fleet.world;
    let pace = ["--catalog", catalog.as_str(), "--sleeps-per-minute", "1000000"];
    let hibernator = world.program("hibernator").arguments(&pace).start().map_err(Error::msg)?;
    hibernator.await_ready(LONG).map_err(Error::msg)?;
    await_breaker(world)?;
    // Whoever became due after the release would open the breaker once more.
    await_all("due", due.len(), || Ok(hibernator.counter("torpor_tenants_due").map_err(Error::msg)? as usize))?;
    Tail::start(&world.cluster)?.await_silence(&AGENTS, QUIET, LONG)?;
    bench.progress.say(format_args!(
        "sleep: the breaker is open, {} of {} tenants are due",
        due.len(),
        fleet.tenants.len()
    ));
    forget_peak(&hibernator)?;
    forget_peak(world.operator()?)?;
    let cpu = cpu_ms(world.operator()?)?;
    let mut tail = Tail::start(&world.cluster)?;
    let released = Timestamp::now();
    release(world)?;
    await_all("asleep", due.len(), || {
        let deep = |tenant: &&Value| {
            tenant["status"]["hibernation"]["stage"] == "DatabaseOnly"
                && condition(tenant, "Hibernated")["status"] == "True"
        };
        Ok(world.tenants()?.iter().filter(deep).count())
    })?;
    tail.await_silence(&AGENTS, QUIET, LONG)?;

    let scaled = |event: &&torpor_cluster::AuditEvent| event.resource == "statefulsets" && event.subresource.is_empty();
    let first = tail.of(agent::OPERATOR).filter(scaled).filter_map(answered).min().unwrap_or(released);
    let last = tail.of(agent::OPERATOR).filter_map(answered).max().unwrap_or(released);
    let count = due.len() as f64;
    let (operator, keeper) = (Counts::of(tail.of(agent::OPERATOR)), Counts::of(tail.of(agent::HIBERNATOR)));
    let row = |what: &str, value: f64, unit| Row::one(NAME, what, value, unit);
    bench.rows.extend([
        row("tenants that fell asleep", count, ""),
        row("from the release to the first workload that stops", seconds(released, first), "s"),
        row("from there to the last write", seconds(first, last), "s"),
        row("the hibernator's writes per tenant, Events among them", keeper.writes() as f64 / count, ""),
        row("the operator's writes of objects per tenant", (operator.changed + operator.created) as f64 / count, ""),
        row("the operator's deletions per tenant", operator.deleted as f64 / count, ""),
        row("the operator's status writes of the Tenant, per tenant", operator.tenant_status as f64 / count, ""),
        row("all writes of the operator per tenant", operator.writes() as f64 / count, ""),
        row("the operator's reads per tenant", operator.reads as f64 / count, ""),
        row("refused writes", (operator.refused + keeper.refused) as f64, ""),
        row("the operator's processor time per tenant", (cpu_ms(world.operator()?)? - cpu) / count, "ms"),
        row("the operator's peak", rss(world.operator()?)?.peak, "MiB"),
        row("the hibernator's peak", rss(&hibernator)?.peak, "MiB"),
    ]);
    bench
        .progress
        .say(format_args!("sleep: {count} tenants asleep {:.1} s after the release", seconds(released, last)));
    drop(hibernator);
    Ok(())
}

fn mode(mode: &str) -> Value {
    json!({"spec": {"hibernation": {"mode": mode}}})
}

/// Writes the catalogue of the examples with days for tier free, which is always of mode Auto and comes first in it.
fn catalog(dir: &Path) -> Result<PathBuf> {
    let mut text = std::fs::read_to_string(project().join("examples/catalog-demo.yaml"))?;
    for after in ["After: 20s", "After: 30s", "After: 40s"] {
        ensure!(text.contains(after), "the catalogue of the examples has no {after}");
        text = text.replacen(after, &after.replace('s', "d"), 1);
    }
    let path = dir.join("catalog.yaml");
    std::fs::write(&path, text)?;
    Ok(path)
}

/// Looks twice a second until there are so many tenants.
fn await_all(what: &str, wanted: usize, mut count: impl FnMut() -> Result<usize>) -> Result<()> {
    let since = Instant::now();
    loop {
        let found = count()?;
        if found >= wanted {
            return Ok(());
        }
        ensure!(since.elapsed() < LONG, "{found} of {wanted} tenants are {what}");
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn await_breaker(world: &World) -> Result<()> {
    let since = Instant::now();
    let state = ["get", "configmap", "torpor-breaker", "-n", HOME, "-o", "jsonpath={.data.state}"];
    while world.cluster.kubectl(state).unwrap_or_default() != "open" {
        ensure!(since.elapsed() < LONG, "the breaker stays closed");
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// As docs/hibernation.md says.
fn release(world: &World) -> Result<()> {
    let output = Command::new(&world.binary)
        .args(["hibernator", "--release", "--lease-namespace", HOME])
        .env("KUBECONFIG", world.cluster.kubeconfig())
        .output()?;
    ensure!(output.status.success(), "release: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

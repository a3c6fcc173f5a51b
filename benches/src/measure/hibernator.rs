//! What the hibernator costs beside many Tenants, of which nothing is made: no operator runs.

use std::time::{Duration, Instant};

use anyhow::{Error, Result, ensure};
use serde_json::json;
use torpor_cluster::torpor::{HOME, Process};

use crate::bench::Bench;
use crate::memory::{cpu_ms, rss};
use crate::report::Row;
use crate::tenants::block;
use crate::world::{LONG, World};

const NAME: &str = "hibernator";

/// Measures.
pub fn run(bench: &mut Bench) -> Result<()> {
    bench.forget_fleet();
    let world = World::start(&bench.binary, &bench.progress)?;
    let count = bench.size.members;
    let tenants = block("m", count, 0);
    world.create(&tenants)?;
    bench.progress.say(format_args!("hibernator: {count} Tenants exist"));
    let began = Instant::now();
    let mut hibernator = start(&world)?;
    await_writes(&hibernator, count, began)?;
    let decided = began.elapsed().as_secs_f64();
    let first = rss(&hibernator)?;

    // While it is away somebody is suspended: the first decision that the next one has to make.
    hibernator.kill();
    world.cluster.kubectl(["delete", "lease", "torpor-hibernator", "-n", HOME])?;
    let name = tenants[0].name.clone();
    world.patch(std::slice::from_ref(&name), &json!({"spec": {"suspended": true}}))?;
    let began = Instant::now();
    let hibernator = start(&world)?;
    let ready = began.elapsed().as_secs_f64();
    while world.tenant(&name)?["status"]["hibernation"]["decision"]["stage"] != "DatabaseOnly" {
        ensure!(began.elapsed() < LONG, "{name} is suspended and nothing is decided");
        std::thread::sleep(Duration::from_millis(50));
    }
    let suspended = began.elapsed().as_secs_f64();
    let writes = hibernator.counter("torpor_api_writes_total").map_err(Error::msg)?;
    bench.progress.say(format_args!("hibernator: idle for {} s", bench.size.idle.as_secs()));
    std::thread::sleep(Duration::from_secs(5));
    let cpu = cpu_ms(&hibernator)?;
    std::thread::sleep(bench.size.idle);
    let idle = (cpu_ms(&hibernator)? - cpu) * 60.0 / bench.size.idle.as_secs_f64();
    let settled = rss(&hibernator)?;
    let row = |what: &str, value: f64, unit| Row::one(NAME, format!("{count} tenants: {what}"), value, unit);
    bench.rows.extend([
        row("from the start until each has its first decision", decided, "s"),
        row("peak until then", first.peak, "MiB"),
        row("restart until ready", ready, "s"),
        row("restart until the one that changed meanwhile is decided", suspended, "s"),
        row("writes after the restart", writes, ""),
        row("idle, processor time per minute", idle, "ms"),
        row("settled", settled.now, "MiB"),
        row("peak of the restart", settled.peak, "MiB"),
    ]);
    Ok(())
}

fn start(world: &World) -> Result<Process> {
    let hibernator = world.program("hibernator").start().map_err(Error::msg)?;
    hibernator.await_ready(LONG).map_err(Error::msg)?;
    Ok(hibernator)
}

fn await_writes(hibernator: &Process, count: usize, began: Instant) -> Result<()> {
    loop {
        let writes = hibernator.counter("torpor_api_writes_total").map_err(Error::msg)?;
        if writes >= count as f64 {
            return Ok(());
        }
        ensure!(began.elapsed() < LONG, "{writes} writes for {count} tenants");
        std::thread::sleep(Duration::from_millis(100));
    }
}

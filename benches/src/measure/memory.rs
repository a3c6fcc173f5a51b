//! Resident memory of the three programs beside a settled fleet, freshly started, and while every watch lists anew because the
//! API server went away.

use anyhow::{Error, Result};
use torpor_cluster::control_plane::API_SERVER;
use torpor_cluster::torpor::Process;

use crate::audit::{Tail, agent};
use crate::bench::Bench;
use crate::memory::{forget_peak, rss};
use crate::report::{Goal, Row};
use crate::world::{LONG, QUIET, World};

const NAME: &str = "memory";
const AGENTS: [&str; 3] = [agent::OPERATOR, agent::HIBERNATOR, agent::GATEWAY];
/// MiB for the operator at a thousand tenants; what fewer take is no proof, so the goal is told at any number.
const GOAL: f64 = 40.0;

/// Measures.
pub fn run(bench: &mut Bench) -> Result<()> {
    let mut fleet = bench.fleet()?;
    let world = &mut fleet.world;
    let count = fleet.tenants.len();
    let grown = rss(world.operator()?)?;
    world.stop_operator()?;
    let others = start(world)?;
    let world = &*world;
    let programs = programs(world, &others)?;
    settle(world, &programs)?;
    bench.progress.say(format_args!("memory: settled beside {count} tenants"));
    let started = programs.map(|(name, program)| rss(program).map(|rss| (name, rss)));
    for (_, program) in &programs {
        forget_peak(program)?;
    }
    world.cluster.restart_component(API_SERVER)?;
    bench.progress.say("memory: the API server is back");
    settle(world, &programs)?;
    bench.rows.push(Row::one(NAME, format!("operator that made {count} tenants, peak"), grown.peak, "MiB"));
    bench.rows.push(Row::one(NAME, format!("operator that made {count} tenants, settled"), grown.now, "MiB"));
    for (started, (_, program)) in started.into_iter().zip(&programs) {
        let (name, started) = started?;
        let relist = rss(program)?;
        let row = |what: &str, value| {
            let row = Row::one(NAME, format!("{name}, {count} tenants, {what}"), value, "MiB");
            if name == "operator" { row.goal(Goal::AtMost(GOAL)) } else { row }
        };
        bench.rows.extend([
            row("peak of the start", started.peak),
            row("settled", started.now),
            Row::one(NAME, format!("{name}, {count} tenants, of it the program's file"), started.file, "MiB"),
            row("peak of a relist", relist.peak),
            row("settled after it", relist.now),
        ]);
    }
    drop(others);
    bench.keep(fleet);
    Ok(())
}

/// Measures what the three programs take beside so few tenants that they hardly count. No operator runs before or afterwards.
pub fn beside_few(bench: &mut Bench, world: &mut World, count: usize) -> Result<()> {
    let others = start(world)?;
    let programs = programs(world, &others)?;
    settle(world, &programs)?;
    for (name, program) in programs {
        let rss = rss(program)?;
        bench.rows.extend([
            Row::one(NAME, format!("{name}, {count} tenants, peak of the start"), rss.peak, "MiB"),
            Row::one(NAME, format!("{name}, {count} tenants, settled"), rss.now, "MiB"),
        ]);
    }
    world.stop_operator()
}

/// Starts all three, and returns hibernator and gateway.
fn start(world: &mut World) -> Result<[Process; 2]> {
    world.start_operator(&[])?;
    let hibernator = world.program("hibernator").start().map_err(Error::msg)?;
    let gateway = world.program("gateway").arguments(&["--address", "127.0.0.1:0"]).start().map_err(Error::msg)?;
    Ok([hibernator, gateway])
}

fn programs<'a>(world: &'a World, [hibernator, gateway]: &'a [Process; 2]) -> Result<[(&'static str, &'a Process); 3]> {
    Ok([("operator", world.operator()?), ("hibernator", hibernator), ("gateway", gateway)])
}

/// Waits until all are ready and have nothing to do.
fn settle(world: &World, programs: &[(&str, &Process)]) -> Result<()> {
    for (_, program) in programs {
        program.await_ready(LONG).map_err(Error::msg)?;
    }
    Tail::start(&world.cluster)?.await_silence(&AGENTS, QUIET, LONG)
}

//! Resident memory of the three programs beside a settled fleet, freshly started, and while every watch lists anew because the
//! API server went away.

use anyhow::{Error, Result};
use torpor_cluster::control_plane::API_SERVER;
use torpor_cluster::torpor::Process;

use crate::audit::{Tail, agent};
use crate::bench::Bench;
use crate::memory::{forget_peak, rss};
use crate::report::{Goal, Row};
use crate::world::{LONG, QUIET};

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
    world.start_operator(&[])?;
    let hibernator = world.program("hibernator").start().map_err(Error::msg)?;
    let gateway = world.program("gateway").arguments(&["--address", "127.0.0.1:0"]).start().map_err(Error::msg)?;
    let world = &*world;
    let settle = || Tail::start(&world.cluster)?.await_silence(&AGENTS, QUIET, LONG);
    let programs: [(&str, &Process); 3] =
        [("operator", world.operator()?), ("hibernator", &hibernator), ("gateway", &gateway)];
    for (_, program) in &programs {
        program.await_ready(LONG).map_err(Error::msg)?;
    }
    settle()?;
    bench.progress.say(format_args!("memory: settled beside {count} tenants"));
    let started = programs.map(|(name, program)| rss(program).map(|rss| (name, rss)));
    for (_, program) in &programs {
        forget_peak(program)?;
    }
    world.cluster.restart_component(API_SERVER)?;
    bench.progress.say("memory: the API server is back");
    for (_, program) in &programs {
        program.await_ready(LONG).map_err(Error::msg)?;
    }
    settle()?;
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
    drop((hibernator, gateway));
    bench.keep(fleet);
    Ok(())
}

//! An operator that was killed beside settled tenants: how long the next one takes until it has verified each, and what it
//! writes.

use std::time::{Duration, Instant};

use anyhow::{Error, Result, ensure};

use crate::audit::{Counts, Tail, agent};
use crate::bench::Bench;
use crate::report::{Goal, Row};
use crate::world::{LONG, QUIET, World};

const NAME: &str = "restart";

/// Measures.
pub fn run(bench: &mut Bench) -> Result<()> {
    let mut fleet = bench.fleet()?;
    let count = fleet.tenants.len();
    let (mut times, mut writes, mut reads) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..bench.size.restarts {
        let mut tail = Tail::start(&fleet.world.cluster)?;
        times.push(verified_after(&mut fleet.world, count)?);
        tail.await_silence(&[agent::OPERATOR], QUIET, LONG)?;
        let counts = Counts::of(tail.of(agent::OPERATOR));
        writes.push(counts.writes() as f64);
        reads.push(counts.reads as f64);
        bench.progress.say(format_args!(
            "restart {} of {}: {count} tenants verified after {:.2} s, {} writes",
            number + 1,
            bench.size.restarts,
            times[number],
            writes[number]
        ));
    }
    bench.rows.extend([
        Row::of(NAME, format!("from exec until {count} tenants were verified"), &times, "s").goal(Goal::AtMost(5.0)),
        Row::of(NAME, "writes", &writes, "").goal(Goal::AtMost(0.0)),
        Row::of(NAME, "requests that read: lists, reviews, discovery", &reads, ""),
    ]);
    bench.keep(fleet);
    Ok(())
}

/// Kills the operator, starts another one, and tells how many seconds that one took until it had verified so many tenants, each
/// with one fleet.
pub fn verified_after(world: &mut World, count: usize) -> Result<f64> {
    world.kill_operator()?;
    // Its token is asked for here.
    let program = world.program("operator");
    let began = Instant::now();
    world.operator = Some(program.start().map_err(Error::msg)?);
    await_verified(world, count, Duration::from_millis(10))?;
    Ok(began.elapsed().as_secs_f64())
}

/// Waits until an operator that was just started has verified so many tenants, each with one fleet. Passes over what is as wanted
/// ask for nothing, so that no silence tells of their end.
pub fn await_verified(world: &World, count: usize, pause: Duration) -> Result<()> {
    let (operator, began) = (world.operator()?, Instant::now());
    let verified = |kind: &str| passes(&operator.http("/metrics").map(|page| page.1).unwrap_or_default(), kind);
    while verified("Tenant") < count || verified("BotFleet") < count {
        ensure!(began.elapsed() < LONG, "{} of {count} tenants were verified", verified("Tenant"));
        std::thread::sleep(pause);
    }
    Ok(())
}

/// Finished passes over a kind that found all well, as the program itself tells.
fn passes(page: &str, kind: &str) -> usize {
    let done = format!("torpor_reconciles_total{{kind=\"{kind}\",outcome=\"done\"}}");
    let of_kind = |line: &&str| line.starts_with(&done);
    let values = page.lines().filter(of_kind).filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
    values.sum::<f64>() as usize
}

//! What one further tenant costs the operator, at four sizes: processor time to make it, and memory to know it.
//!
//! Tenants are suspended, so that each becomes one pod instead of five or more: the operator's work is the same but for
//! the replicas, and the rest of the machine's is not.

use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use crate::audit::{Tail, agent};
use crate::bench::Bench;
use crate::memory::{cpu_ms, rss};
use crate::report::{Goal, Row};
use crate::stats::{median, slope};
use crate::tenants::{Tenant, alike};
use crate::world::{LONG, QUIET, World};

const NAME: &str = "cost";
const KIB_PER_MIB: f64 = 1024.0;
/// Tenants whose processor time is one sample; made quickly enough that nobody's ten minutes are over.
const SAMPLE: usize = 125;
/// So many samples are taken at each size.
const SAMPLES: usize = 2;
/// The longest that one tenant may take; the API server of two processors takes half of it.
const EACH: Duration = Duration::from_secs(1);

/// Measures.
pub fn run(bench: &mut Bench) -> Result<()> {
    bench.forget_fleet();
    let mut world = World::start(&bench.binary, &bench.progress)?;
    let sizes = bench.size.curve;
    let (least, most) = (sizes[0], sizes[sizes.len() - 1]);
    let all = alike("c", "free", most);
    let (mut made, mut costs, mut fresh) = (0, Vec::new(), Vec::new());
    for &size in sizes {
        // Those before the samples are not counted: while they are made, settled tenants are looked at once in ten minutes,
        // which is a cost of time and not of a tenant. The operator that makes a sample has just been started.
        let part = SAMPLE.min((size - made) / SAMPLES);
        let before = size - SAMPLES * part;
        make(&mut world, &all[made..before])?;
        let (mut samples, mut grown) = (Vec::new(), 0.0);
        for sample in all[before..size].chunks(part) {
            let (cost, peak) = make(&mut world, sample)?;
            samples.push(cost);
            grown = peak;
        }
        world.start_operator(&[])?;
        world.await_settled()?;
        let settled = rss(world.operator()?)?;
        world.stop_operator()?;
        fresh.push(settled);
        bench
            .progress
            .say(format_args!("cost: {samples:.1?} ms of CPU for each of {part} tenants beside {before} and more"));
        costs.push(median(&samples));
        made = size;
        // At once: the last size takes longer than all else, and may fail.
        bench.rows.extend([
            Row::of(NAME, format!("processor time of each of {part} tenants beside {before} and more"), &samples, "ms"),
            Row::one(NAME, format!("operator that made the last of {size}, peak"), grown, "MiB"),
            Row::one(NAME, format!("operator started beside {size}, settled"), settled.now, "MiB"),
            Row::one(NAME, format!("operator started beside {size}, peak"), settled.peak, "MiB"),
        ]);
    }
    let points: Vec<(f64, f64)> = sizes.iter().zip(&fresh).map(|(size, rss)| (*size as f64, rss.now)).collect();
    bench.rows.push(
        Row::one(
            NAME,
            format!("processor time of a tenant, the most of all sizes / up to {least}"),
            costs.iter().copied().fold(0.0, f64::max) / costs[0],
            "",
        )
        .goal(Goal::AtMost(1.1)),
    );
    bench.rows.push(
        Row::one(NAME, "settled memory of each further tenant", slope(&points) * KIB_PER_MIB, "KiB")
            .goal(Goal::AtMost(10.0)),
    );
    Ok(())
}

/// Makes tenants by an operator that is started for it and stopped afterwards. Its processor time for each in ms, and its peak in
/// MiB.
fn make(world: &mut World, part: &[Tenant]) -> Result<(f64, f64)> {
    if part.is_empty() {
        return Ok((0.0, 0.0));
    }
    world.start_operator(&[])?;
    world.await_settled()?;
    let names: Vec<String> = part.iter().map(|tenant| tenant.name.clone()).collect();
    let before = cpu_ms(world.operator()?)?;
    let mut tail = Tail::start(&world.cluster)?;
    world.create_as(part, suspended)?;
    tail.await_silence(&[agent::OPERATOR], QUIET, LONG.max(EACH * u32::try_from(part.len())?))?;
    world.await_condition(&names, "Ready", "True")?;
    tail.await_silence(&[agent::OPERATOR], QUIET, LONG)?;
    let cost = (cpu_ms(world.operator()?)? - before) / part.len() as f64;
    let peak = rss(world.operator()?)?.peak;
    world.stop_operator()?;
    Ok((cost, peak))
}

fn suspended(tenant: &Tenant) -> Value {
    let mut manifest = tenant.manifest();
    manifest["spec"]["suspended"] = true.into();
    manifest
}

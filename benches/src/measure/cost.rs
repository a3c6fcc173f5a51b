//! What one further tenant costs the operator, at several sizes: processor time to make it, and memory to know it.
//!
//! Tenants are suspended, so that each becomes one pod instead of five or more: the operator's work is the same but for
//! the replicas, and the rest of the machine's is not. Those that are not measured are copies of one that it made.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::audit::{Counts, Tail, agent};
use crate::bench::Bench;
use crate::copies::Template;
use crate::measure::restart;
use crate::memory::{cpu_ms, rss};
use crate::report::{Goal, Row};
use crate::stats::slope;
use crate::tenants::{Tenant, alike};
use crate::world::{LONG, QUIET, World};

const NAME: &str = "cost";
const KIB_PER_MIB: f64 = 1024.0;
const TIER: &str = "free";
/// So many samples are taken at each size.
const SAMPLES: usize = 2;
/// The longest that one tenant may take; the API server of two processors takes half of it.
const EACH: Duration = Duration::from_secs(1);
/// How long an operator is watched that has nothing to do.
const IDLE: Duration = Duration::from_secs(15);
/// Who else acts on what appears.
const CONTROLLERS: [&str; 3] = ["kube-controller-manager", "kube-scheduler", "kwok"];

/// Measures.
pub fn run(bench: &mut Bench) -> Result<()> {
    bench.forget_fleet();
    let mut world = World::start_readable(&bench.binary, &bench.progress)?;
    let sizes = bench.size.curve;
    let (least, most) = (sizes[0], sizes[sizes.len() - 1]);
    let mut template = template(&mut world)?;
    let all = alike(NAME, TIER, bench.size.most);
    let (mut made, mut costs, mut fresh, mut writes) = (0, Vec::new(), Vec::new(), 0);
    for &size in sizes {
        let part = bench.size.curve_sample.min((size - made) / SAMPLES);
        let before = size - SAMPLES * part;
        copy(&world, &mut template, &all[made..before], before)?;
        bench.progress.say(format_args!("cost: {before} tenants are there, {} of them by copying", before - made));
        writes += writes_of_a_start(&mut world)?;
        let (mut samples, mut grown) = (Vec::new(), 0.0);
        for sample in all[before..size].chunks(part) {
            let (cost, peak) = make(&mut world, sample)?;
            samples.push(cost);
            grown = peak;
        }
        fresh.push((size as f64, settled(&mut world, bench, size)?));
        bench
            .progress
            .say(format_args!("cost: {samples:.1?} ms of CPU for each of {part} tenants beside {before} and more"));
        costs.extend(samples.iter().map(|cost| (size as f64, *cost)));
        made = size;
        // At once: the last size takes longer than all else, and may fail.
        bench.rows.extend([
            Row::of(NAME, format!("processor time of each of {part} tenants beside {before} and more"), &samples, "ms"),
            Row::one(NAME, format!("operator that made the last of {size}, peak"), grown, "MiB"),
        ]);
    }
    copy(&world, &mut template, &all[made..], bench.size.most)?;
    fresh.push((bench.size.most as f64, settled(&mut world, bench, bench.size.most)?));
    // By the line through all samples: the most of several figures that scatter is more than each of them.
    let (least, most) = (least as f64, most as f64);
    bench.rows.extend([
        Row::one(
            NAME,
            format!("processor time of a tenant beside {most} / beside {least}, by the line through all samples"),
            line(&costs, most) / line(&costs, least),
            "",
        )
        .goal(Goal::AtMost(1.1)),
        Row::one(NAME, "settled memory of each further tenant", slope(&fresh) * KIB_PER_MIB, "KiB")
            .goal(Goal::AtMost(10.0)),
        Row::one(NAME, "writes of operators that were started beside copies", writes as f64, "")
            .goal(Goal::AtMost(0.0)),
    ]);
    Ok(())
}

/// What an operator takes that was started beside so many tenants, in MiB.
fn settled(world: &mut World, bench: &mut Bench, size: usize) -> Result<f64> {
    started(world)?;
    let settled = rss(world.operator()?)?;
    world.stop_operator()?;
    bench.rows.extend([
        Row::one(NAME, format!("operator started beside {size}, settled"), settled.now, "MiB"),
        Row::one(NAME, format!("operator started beside {size}, peak"), settled.peak, "MiB"),
    ]);
    Ok(settled.now)
}

/// A tenant that the operator makes, to be copied.
fn template(world: &mut World) -> Result<Template> {
    let tenant = Tenant { name: format!("{NAME}-template"), ..alike(NAME, TIER, 1).remove(0) };
    let mut tail = Tail::start(&world.cluster)?.with_bodies();
    make(world, std::slice::from_ref(&tenant))?;
    tail.await_silence(&CONTROLLERS, QUIET, LONG)?;
    Template::take(world, &tenant.name, &tail.events)
}

/// Copies until so many are there besides the template, and everybody has heard of them. The garbage collector may ask for their owners,
/// twenty a second, for minutes longer: it looks ten times a second at those that it has not heard of yet.
fn copy(world: &World, template: &mut Template, tenants: &[Tenant], count: usize) -> Result<()> {
    let names: Vec<String> = tenants.iter().map(|tenant| tenant.name.clone()).collect();
    let mut tail = Tail::start(&world.cluster)?;
    template.put(world, &names)?;
    let since = Instant::now();
    loop {
        let known = world.tenants()?.len();
        if known == count + 1 {
            break;
        }
        ensure!(since.elapsed() < LONG, "{known} tenants instead of {count} and the template");
        std::thread::sleep(Duration::from_secs(1));
    }
    tail.await_no_writes(&CONTROLLERS, QUIET, LONG)
}

/// What an operator writes that finds all of it as wanted.
fn writes_of_a_start(world: &mut World) -> Result<usize> {
    let mut tail = Tail::start(&world.cluster)?;
    started(world)?;
    world.stop_operator()?;
    tail.pull()?;
    // How many tenants a pool serves is told anew.
    let about_tenants = tail.of(agent::OPERATOR).filter(|event| event.resource != "workerpools");
    Ok(Counts::of(about_tenants).writes())
}

/// Starts an operator and waits until it has looked at every tenant.
fn started(world: &mut World) -> Result<()> {
    let count = world.tenants()?.len();
    world.start_operator(&[])?;
    restart::await_verified(world, count, Duration::from_millis(200))?;
    world.await_settled()
}

/// The value at `x` of the line through these points.
fn line(points: &[(f64, f64)], x: f64) -> f64 {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    mean(|point| point.1) + slope(points) * (x - mean(|point| point.0))
}

/// Makes tenants by an operator that is started for it and stopped afterwards. Its processor time for each in ms, without what it takes
/// for those that are there, and its peak in MiB.
fn make(world: &mut World, part: &[Tenant]) -> Result<(f64, f64)> {
    if part.is_empty() {
        return Ok((0.0, 0.0));
    }
    started(world)?;
    let names: Vec<String> = part.iter().map(|tenant| tenant.name.clone()).collect();
    let upkeep = idle(world)?;
    let (before, since) = (cpu_ms(world.operator()?)?, Instant::now());
    let mut tail = Tail::start(&world.cluster)?;
    world.create_as(part, suspended)?;
    tail.await_silence(&[agent::OPERATOR], QUIET, LONG.max(EACH * u32::try_from(part.len())?))?;
    world.await_condition(&names, "Ready", "True")?;
    tail.await_silence(&[agent::OPERATOR], QUIET, LONG)?;
    let spent = cpu_ms(world.operator()?)? - before - upkeep * since.elapsed().as_secs_f64();
    let cost = spent / part.len() as f64;
    let peak = rss(world.operator()?)?.peak;
    world.stop_operator()?;
    Ok((cost, peak))
}

/// Processor time in ms that settled tenants take each second: each is looked at once in ten minutes.
fn idle(world: &World) -> Result<f64> {
    let (before, since) = (cpu_ms(world.operator()?)?, Instant::now());
    std::thread::sleep(IDLE);
    Ok((cpu_ms(world.operator()?)? - before) / since.elapsed().as_secs_f64())
}

fn suspended(tenant: &Tenant) -> Value {
    let mut manifest = tenant.manifest();
    manifest["spec"]["suspended"] = true.into();
    manifest
}

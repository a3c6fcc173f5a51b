//! A hundred tenants at once.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::json;
use torpor_cluster::{NodeCapacity, Options};

use crate::alone::{MANAGED, Rig, is_write, tenants};

const TENANTS: usize = 100;
/// 60 + 25·3 + 12·10 + 3·50 bots and four services each.
const PODS: usize = 405 + 4 * TENANTS;
/// On two cores it takes a minute or two, most of it the API server's and the scheduler's.
const LIMIT: Duration = Duration::from_secs(900);
/// Passes over pools, each of which looks at all tenants. Four for each tenant that comes, one for each pool, one for the
/// status that one of them gets; and as many for nodes and what pods leave of them.
const POOL_PASSES: f64 = 700.0;
/// Fleets of one tenant.
const FLEETS: usize = 20;
/// Passes over them until all are settled.
const FLEET_PASSES: f64 = 1_000.0;
/// Debug builds of the operator included.
const MEMORY_KIB: u64 = 256 * 1024;

fn tier(number: usize) -> &'static str {
    match number {
        0..60 => "free",
        60..85 => "basic",
        85..97 => "pro",
        _ => "premium",
    }
}

/// All become Ready without one line of level ERROR; what that took is printed.
pub fn hundred_tenants_at_once() -> Result<(), String> {
    let capacity = NodeCapacity { pods: 1_000, ..NodeCapacity::default() };
    let mut rig = Rig::start(Options { capacity, ..Options::default() })?;
    let start = rig.mark()?;
    let began = Instant::now();
    rig.apply(&tenants(TENANTS, tier))?;
    rig.await_tenants(TENANTS, LIMIT)?;
    let took = began.elapsed();
    let pods = rig.pods(MANAGED)?.len();
    if pods != PODS {
        return Err(format!("{pods} pods run, expected {PODS}"));
    }
    rig.await_silence()?;

    let asked = rig.requests(start)?;
    let (writes, reads): (Vec<_>, Vec<_>) = asked.iter().partition(|event| is_write(event));
    let reads = reads.iter().filter(|event| event.verb != "watch").count();
    let events = writes.iter().filter(|event| event.resource == "events").count();
    let status = writes.iter().filter(|event| event.subresource == "status").count();
    let of_tenants = writes.iter().filter(|event| event.subresource == "status" && event.resource == "tenants").count();
    let made: BTreeSet<_> = writes
        .iter()
        .filter(|event| event.code == 201 && event.resource != "events")
        .map(|event| (&event.resource, &event.namespace, &event.name))
        .collect();
    let failed = writes.iter().filter(|event| event.code >= 400).count();
    let memory = rig.operator.peak_kib()?;
    let settled = rig.operator.rss_kib()?;
    let seconds = rig.operator.cpu_seconds()?;
    let mib = |kib: u64| f64::from(u32::try_from(kib).unwrap_or(u32::MAX)) / 1024.0;
    let pool_passes = rig.operator.counter(r#"torpor_reconciles_total{kind="WorkerPool""#)?;
    let log = rig.operator.log_text();
    let lines = |level: &str| log.lines().filter(|line| line.split_whitespace().nth(1) == Some(level)).count();
    let each = |count: usize| format!("{}.{}", count / TENANTS, count * 10 / TENANTS % 10);
    println!(
        "scale: {TENANTS} tenants, {pods} pods Ready in {:.1} s; operator: {:.1} MiB at its peak, {:.1} MiB settled, \
         {seconds:.1} s of processor time, {pool_passes} passes over pools, per tenant {} objects made, {} writes ({} status, of which {} of the Tenant, \
         {} events), {} reads; {failed} writes refused, {} WARN and {} ERROR lines",
        took.as_secs_f64(),
        mib(memory),
        mib(settled),
        each(made.len()),
        each(writes.len()),
        each(status),
        each(of_tenants),
        each(events),
        each(reads),
        lines("WARN"),
        lines("ERROR"),
    );
    if lines("ERROR") > 0 || log.contains("panicked") {
        let errors: Vec<_> = log.lines().filter(|line| line.contains(" ERROR ") || line.contains("panicked")).collect();
        return Err(errors[..errors.len().min(10)].join("\n"));
    }
    let put_back = rig.operator.counter("torpor_objects_put_back_total")?;
    if put_back > 0.0 {
        return Err(format!("{put_back} objects were put back, and nobody had changed any"));
    }
    if pool_passes > POOL_PASSES {
        return Err(format!(
            "{pool_passes} passes over pools for {TENANTS} tenants: they follow more than their coming"
        ));
    }
    if memory > MEMORY_KIB {
        return Err(format!("the operator took {memory} KiB, {MEMORY_KIB} are thought to be enough"));
    }
    many_fleets(&rig)?;
    rig.operator.terminate().map(drop)
}

/// Passes over the fleets of one tenant grow with their number, not with its square: a fleet's status is nothing to its siblings.
fn many_fleets(rig: &Rig) -> Result<(), String> {
    let passes = || rig.operator.counter(r#"torpor_reconciles_total{kind="BotFleet""#);
    let before = passes()?;
    let strategy = json!({"kind": "script", "config": "script_file_name: simple_pmm_example.py\n"});
    let fleet = |number: usize| json!({"name": format!("f-{number}"), "replicas": 1, "strategy": strategy});
    let fleets: Vec<_> = (0..FLEETS).map(fleet).collect();
    let tenant = json!({"apiVersion": "torpor.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": "many"},
        "spec": {"tier": "premium", "fleets": fleets}});
    rig.apply(&tenant.to_string())?;
    rig.await_tenants(TENANTS + 1, LIMIT)?;
    rig.await_silence()?;
    let made = passes()? - before;
    println!("scale: {made} passes over the {FLEETS} fleets of one tenant");
    if made > FLEET_PASSES {
        return Err(format!("{made} passes over {FLEETS} fleets: they follow each other's status"));
    }
    Ok(())
}

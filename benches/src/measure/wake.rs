//! Wakes through the gateway: tenants that sleep among many that do not, one after the other and at once.

use std::time::{Duration, Instant};

use anyhow::{Error, Result, ensure};
use jiff::Timestamp;
use serde_json::Value;
use torpor_cluster::AuditEvent;

use crate::audit::{Tail, agent, answered, is_write, seconds};
use crate::bench::{Bench, Fleet};
use crate::door::Door;
use crate::memory::{forget_peak, rss};
use crate::report::{Goal, Row};
use crate::stats::percentile;
use crate::world::{LONG, QUIET, condition};

const NAME: &str = "wake";

/// Measures.
pub fn run(bench: &mut Bench) -> Result<()> {
    let fleet = bench.fleet()?;
    let door = Door::open(&fleet.world)?;
    // All of one tier, so that they differ in nothing but their place among the others.
    let free = fleet.tenants.iter().filter(|tenant| tenant.tier == "free" && !tenant.name.starts_with("sample"));
    let names: Vec<String> = free.map(|tenant| tenant.name.clone()).collect();
    let single = &names[..bench.size.wakes.min(names.len())];
    let burst = &names[..bench.size.burst.min(names.len())];
    forget_peak(fleet.world.operator()?)?;

    asleep(&fleet, &door, single)?;
    bench.progress.say(format_args!("wake: {} tenants sleep; each is woken by itself", single.len()));
    let mut tail = Tail::start(&fleet.world.cluster)?;
    let mut asked = Vec::new();
    for name in single {
        asked.push((name.clone(), door.post(name, "activity")?));
        let since = Instant::now();
        while !is_awake(&fleet.world.tenant(name)?) {
            ensure!(since.elapsed() < LONG, "{name} does not wake");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    tail.await_silence(&[agent::OPERATOR], QUIET, LONG)?;
    report(bench, "single", &tail, &asked, &[("first", 99.0, 300.0), ("last", 99.0, 300.0)])?;

    asleep(&fleet, &door, burst)?;
    bench.progress.say(format_args!("wake: {} tenants sleep; all are woken at once", burst.len()));
    let mut tail = Tail::start(&fleet.world.cluster)?;
    let asked: Result<Vec<(String, Timestamp)>> = std::thread::scope(|scope| {
        let door = &door;
        let calls: Vec<_> =
            burst.iter().map(|name| scope.spawn(move || Ok((name.clone(), door.post(name, "activity")?)))).collect();
        calls.into_iter().map(|call| call.join().map_err(|_| Error::msg("a request panicked"))?).collect()
    });
    let asked = asked?;
    fleet.world.await_condition(burst, "Hibernated", "False")?;
    fleet.world.await_condition(burst, "Ready", "True")?;
    tail.await_silence(&[agent::OPERATOR], QUIET, LONG)?;
    let what = format!("burst of {}", burst.len());
    report(bench, &what, &tail, &asked, &[("first", 90.0, 1_000.0)])?;
    bench.rows.push(Row::one(NAME, "requests that the gateway answered with 503 meanwhile", door.busy() as f64, ""));
    bench.rows.push(Row::one(
        NAME,
        "operator's peak while tenants slept and woke",
        rss(fleet.world.operator()?)?.peak,
        "MiB",
    ));
    bench.rows.push(Row::one(NAME, "gateway's peak", rss(&door.process)?.peak, "MiB"));
    drop(door);
    bench.keep(fleet);
    Ok(())
}

fn asleep(fleet: &Fleet, door: &Door, names: &[String]) -> Result<()> {
    for name in names {
        door.post(name, "sleep")?;
    }
    fleet.world.await_condition(names, "Hibernated", "True")?;
    fleet.world.await_settled()
}

fn is_awake(tenant: &Value) -> bool {
    condition(tenant, "Hibernated")["status"] == "False" && condition(tenant, "Ready")["status"] == "True"
}

/// One wake by the audit log, in milliseconds from the request.
struct Wake {
    first: f64,
    own: f64,
    last: f64,
    pods: f64,
    status: f64,
}

impl Wake {
    /// `first`: the operator's first write about the tenant. `last`: its last write to a workload that starts something,
    /// which waits for the database's pod. `own`: the operator's share of that, from each thing that it waited for (the
    /// request, a controller's word that a workload is ready) to the write that followed. `pods`: kwok's last pod. `status`: the operator's last status of the Tenant.
    fn find(events: &[AuditEvent], tenant: &str, asked: Timestamp) -> Option<Self> {
        let space = format!("tenant-{tenant}");
        let after = |event: &&AuditEvent| event.code < 400 && answered(event).is_some_and(|at| at > asked);
        let of_tenant = |event: &AuditEvent| event.resource == "tenants" && event.name == tenant;
        let about = events.iter().filter(|event| event.namespace == space || of_tenant(event)).filter(after);
        let about: Vec<&AuditEvent> = about.collect();
        let ours =
            || about.iter().copied().filter(|event| event.user_agent.starts_with(agent::OPERATOR) && is_write(event));
        let workload = |event: &&AuditEvent| {
            matches!(event.resource.as_str(), "statefulsets" | "deployments") && event.subresource.is_empty()
        };
        let pod = |event: &&&AuditEvent| event.user == "kwok" && event.resource == "pods" && event.verb == "patch";
        let since = |at: Timestamp| seconds(asked, at) * 1_000.0;
        let (mut known, mut own) = (asked, 0.0);
        for event in about.iter().filter(|event| event.resource == "statefulsets" || event.resource == "deployments") {
            let at = answered(event)?;
            if workload(event) && event.user_agent.starts_with(agent::OPERATOR) {
                own += seconds(known, at).max(0.0) * 1_000.0;
            }
            known = at;
        }
        Some(Wake {
            own,
            first: since(ours().filter_map(answered).min()?),
            last: since(ours().filter(workload).filter_map(answered).max()?),
            pods: since(about.iter().filter(pod).filter_map(|event| answered(event)).max()?),
            status: since(ours().filter(|event| of_tenant(event)).filter_map(answered).max()?),
        })
    }
}

fn report(
    bench: &mut Bench,
    what: &str,
    tail: &Tail,
    asked: &[(String, Timestamp)],
    goals: &[(&str, f64, f64)],
) -> Result<()> {
    let wakes: Vec<Wake> = asked.iter().filter_map(|(name, at)| Wake::find(&tail.events, name, *at)).collect();
    ensure!(wakes.len() == asked.len(), "{} of {} wakes are in the audit log", wakes.len(), asked.len());
    type Read = fn(&Wake) -> f64;
    let columns: [(&str, &str, Read); 5] = [
        ("first", "request to first write", |wake| wake.first),
        ("own", "the operator's share until its last write, waiting for pods apart", |wake| wake.own),
        ("last", "request to last write that starts something", |wake| wake.last),
        ("pods", "request to the last pod Ready", |wake| wake.pods),
        ("status", "request to the status that says so", |wake| wake.status),
    ];
    for (key, title, read) in columns {
        let samples: Vec<f64> = wakes.iter().map(read).collect();
        for percent in [50.0, 90.0, 99.0] {
            let mut row = Row::one(NAME, format!("{what}: {title}, p{percent}"), percentile(&samples, percent), "ms");
            row.samples = samples.len();
            if let Some((_, _, most)) = goals.iter().find(|goal| goal.0 == key && goal.1 == percent) {
                row = row.goal(Goal::AtMost(*most));
            }
            bench.rows.push(row);
        }
    }
    let first: Vec<f64> = wakes.iter().map(|wake| wake.first).collect();
    bench.progress.say(format_args!("wake: {what}: first write p50 {:.0} ms", percentile(&first, 50.0)));
    Ok(())
}

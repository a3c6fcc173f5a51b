//! Measurements of sleep and wake, printed for people. They run only when asked for: `make bench`.
//!
//! Nothing here fails because of a time; what is printed belongs to the machine that it was measured on.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use torpor::api::Tenant;
use torpor_cluster::{AuditEvent, Options};

use crate::alone::{Rig, is_write, items};
use crate::harness::{condition, eventually};
use crate::hibernation::Objects;
use crate::many::{client, create_tenants};
use crate::process::Process;
use crate::tenants::{ensure, fleet, same, tenant};

const LONG: Duration = Duration::from_secs(900);

/// Value of a counter, summed over its labels.
fn counter(process: &Process, name: &str) -> Result<f64, String> {
    let (_, page) = process.http("/metrics")?;
    let values = page.lines().filter(|line| line.starts_with(name)).filter_map(|line| line.rsplit(' ').next());
    Ok(values.filter_map(|value| value.parse::<f64>().ok()).sum())
}

fn mebibytes(kib: u64) -> f64 {
    f64::from(u32::try_from(kib).unwrap_or(u32::MAX)) / 1024.0
}

/// Ten thousand Tenants, of which nothing is made: what the hibernator costs.
pub fn ten_thousand_tenants() -> Result<(), String> {
    const COUNT: usize = 10_000;
    let objects = Objects::start()?;
    let tier = |number: usize| match number % 100 {
        0..60 => "free",
        60..85 => "basic",
        85..97 => "pro",
        _ => "premium",
    };
    create_tenants(
        &objects.cluster,
        (0..COUNT).map(|number| tenant(&format!("t-{number}"), json!({"tier": tier(number)}))),
    )?;
    let began = Instant::now();
    let mut hibernator = objects.hibernator(&[])?;
    eventually(LONG, || {
        let writes = counter(&hibernator, "torpor_api_writes_total")?;
        ensure(writes >= 10_000.0, || format!("{writes} writes"))
    })?;
    println!(
        "bench: {COUNT} tenants: each has its first decision {:.1} s after the start; peak {:.1} MiB",
        began.elapsed().as_secs_f64(),
        mebibytes(hibernator.peak_kib()?)
    );

    // While it is away somebody is suspended: the first decision that a restarted one has to make.
    hibernator.kill();
    objects.kubectl(&["patch", "tenant", "t-0", "--type=merge", "-p", r#"{"spec":{"suspended":true}}"#])?;
    let began = Instant::now();
    let hibernator = objects.hibernator(&[])?;
    let ready = began.elapsed().as_secs_f64();
    eventually(LONG, || {
        let stage = crate::hibernation::stage_of(&objects.get(&["tenant", "t-0"])?);
        same("stage", &stage, &"DatabaseOnly".to_owned())
    })?;
    println!(
        "bench: {COUNT} tenants: after a restart ready in {ready:.1} s, the first decision in {:.1} s, {} writes in all",
        began.elapsed().as_secs_f64(),
        counter(&hibernator, "torpor_api_writes_total")?
    );
    std::thread::sleep(Duration::from_secs(10));
    let (cpu, window) = (hibernator.cpu_seconds()?, Duration::from_secs(60));
    std::thread::sleep(window);
    println!(
        "bench: {COUNT} tenants: idle for {} s: {:.0} ms of CPU; {:.1} MiB resident, {:.1} MiB at its peak",
        window.as_secs(),
        (hibernator.cpu_seconds()? - cpu) * 1_000.0,
        mebibytes(hibernator.rss_kib()?),
        mebibytes(hibernator.peak_kib()?)
    );
    Ok(())
}

/// Single wakes and a burst among 500 settled tenants, 100 of which sleep.
pub fn wakes_among_500() -> Result<(), String> {
    let mut rig = Rig::start(Options { nodes_per_pool: 8, ..Options::default() })?;
    let names: Vec<String> = (0..500).map(|number| format!("t-{number}")).collect();
    let spec = json!({"tier": "free", "fleets": [fleet("makers", 1)]});
    let began = Instant::now();
    for part in names.chunks(100) {
        create_tenants(&rig.cluster, part.iter().map(|name| tenant(name, spec.clone())))?;
        await_all(&rig, part, "Ready", LONG)?;
    }
    println!("bench: 500 tenants are Ready after {:.0} s", began.elapsed().as_secs_f64());
    let sleepers = &names[..100];
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|error| error.to_string())?;
    let admin = runtime.block_on(client(&rig.cluster))?;
    let together = |key: &'static str| {
        let calls = sleepers.iter().map(|name| annotate(admin.clone(), name, key));
        runtime.block_on(futures::future::try_join_all(calls)).map(drop)
    };

    let began = Instant::now();
    together("torpor.dev/sleep-requested-at")?;
    await_all(&rig, sleepers, "Hibernated", LONG)?;
    println!("bench: a hundred of them are asleep after {:.0} s", began.elapsed().as_secs_f64());
    eventually(LONG, || rig.await_silence())?;
    let start = rig.mark()?;
    for name in sleepers {
        runtime.block_on(annotate(admin.clone(), name, "torpor.dev/last-activity"))?;
        eventually(LONG, || is_awake(&rig, name))?;
    }
    report("single wakes", &rig.audit(start)?, sleepers);

    together("torpor.dev/sleep-requested-at")?;
    await_all(&rig, sleepers, "Hibernated", LONG)?;
    eventually(LONG, || rig.await_silence())?;
    let start = rig.mark()?;
    together("torpor.dev/last-activity")?;
    await_awake(&rig, sleepers)?;
    report("a burst of 100", &rig.audit(start)?, sleepers);
    println!("bench: the operator's peak: {:.1} MiB", mebibytes(rig.operator.peak_kib()?));
    rig.operator.terminate().map(drop)
}

async fn annotate(admin: Client, name: &str, key: &str) -> Result<(), String> {
    let api: Api<DynamicObject> = Api::all_with(admin, &ApiResource::erase::<Tenant>(&()));
    let change = json!({"metadata": {"annotations": {key: Timestamp::now().to_string()}}});
    let changed = api.patch(name, &PatchParams::default(), &Patch::Merge(&change)).await;
    changed.map(drop).map_err(|error| format!("{name}: {error}"))
}

fn is_awake(rig: &Rig, name: &str) -> Result<(), String> {
    let found = rig.get(&["tenant", name])?;
    let awake = condition(&found, "Hibernated")["reason"] == "Awake" && condition(&found, "Ready")["status"] == "True";
    ensure(awake, || format!("{name}: {}", condition(&found, "Ready")))
}

fn await_awake(rig: &Rig, names: &[String]) -> Result<(), String> {
    names.iter().try_for_each(|name| eventually(LONG, || is_awake(rig, name)))
}

/// Waits until a condition holds for all of these.
fn await_all(rig: &Rig, names: &[String], type_: &str, limit: Duration) -> Result<(), String> {
    eventually(limit, || {
        let all = rig.get(&["tenants"])?;
        let holds = |tenant: &&Value| {
            let name = tenant["metadata"]["name"].as_str().unwrap_or_default();
            names.iter().any(|known| known == name) && condition(tenant, type_)["status"] == "True"
        };
        let count = items(&all).filter(holds).count();
        std::thread::sleep(Duration::from_millis(500));
        ensure(count == names.len(), || format!("{count} of {} are {type_}", names.len()))
    })
}

/// One wake by the audit log, in milliseconds.
struct Wake {
    /// From the activity's write to the first write of the operator about this tenant.
    begun: f64,
    /// From the activity's write to the first write of the operator to a workload, which waits for no pod.
    first: f64,
    /// The operator's share of the whole: from each thing that it waited for to the write that followed.
    own: f64,
    /// To the last write that scales something up.
    last: f64,
}

fn wake(name: &str, events: &[AuditEvent]) -> Option<Wake> {
    let time = |event: &AuditEvent| event.stage_timestamp.parse::<Timestamp>().ok();
    let space = format!("tenant-{name}");
    let done = |event: &&AuditEvent| event.stage == "ResponseComplete" && event.code < 400;
    let login = events.iter().filter(done).find(|event| {
        event.resource == "tenants" && event.name == name && event.verb == "patch" && event.subresource.is_empty()
    })?;
    let workload = |event: &AuditEvent| matches!(event.resource.as_str(), "statefulsets" | "deployments");
    let ours = |event: &AuditEvent| event.user_agent.starts_with("torpor-operator/");
    let mut known = time(login)?;
    let (mut first, mut last, mut own) = (None, known, 0.0);
    for event in events.iter().filter(done).filter(|event| event.namespace == space) {
        let at = time(event)?;
        if ours(event) && workload(event) && event.subresource.is_empty() && event.verb == "patch" {
            own += at.duration_since(known).as_millis_f64();
            first = first.or(Some(at));
            last = at;
            known = at;
        } else if workload(event) && event.subresource == "status" {
            // What a controller tells of its workload is what the operator waits for next.
            known = at;
        }
    }
    let since = |at: Timestamp| at.duration_since(time(login).unwrap_or(at)).as_millis_f64();
    let about = |event: &&AuditEvent| event.namespace == space || event.resource == "tenants" && event.name == name;
    let mut writes = events.iter().filter(done).filter(about).filter(|event| ours(event) && is_write(event));
    let begun = writes.find_map(|event| time(event).filter(|at| Some(*at) > time(login)))?;
    Some(Wake { begun: since(begun), first: since(first?), own, last: since(last) })
}

fn report(what: &str, events: &[AuditEvent], names: &[String]) {
    let wakes: BTreeMap<&String, Wake> =
        names.iter().filter_map(|name| wake(name, events).map(|wake| (name, wake))).collect();
    let column = |title: &str, read: fn(&Wake) -> f64| {
        let mut all: Vec<f64> = wakes.values().map(read).collect();
        all.sort_by(f64::total_cmp);
        let at = |percent: usize| all.get((all.len() * percent / 100).min(all.len().saturating_sub(1)));
        let text = |percent| at(percent).map_or("none".to_owned(), |value| format!("{value:.0} ms"));
        println!("bench: {what}: {title}: p50 {}, p90 {}, p99 {}", text(50), text(90), text(99));
    };
    println!("bench: {what}: {} of {} wakes found in the audit log", wakes.len(), names.len());
    column("login to the operator's first write about the tenant", |wake| wake.begun);
    column("login to the first scale-up write", |wake| wake.first);
    column("the operator's share, waiting for pods apart", |wake| wake.own);
    column("login to the last scale-up write", |wake| wake.last);
}

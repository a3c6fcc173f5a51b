//! Measurements of sleep and wake, printed for people. They run only when asked for: `make bench`.
//!
//! Nothing here fails because of a time; what is printed belongs to the machine that it was measured on.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};
use torpor_cluster::{AuditEvent, Options};

use crate::alone::{Rig, is_write, items};
use crate::gateway::{self, Door};
use crate::harness::{condition, eventually};
use crate::hibernation::Objects;
use crate::many::create_tenants;
use crate::tenants::{ensure, fleet, same, tenant};

const LONG: Duration = Duration::from_secs(900);

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
        let writes = hibernator.counter("torpor_api_writes_total")?;
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
        hibernator.counter("torpor_api_writes_total")?
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

/// Single logins and a burst among 500 settled tenants, 100 of which sleep; each is a request to a gateway.
pub fn wakes_among_500() -> Result<(), String> {
    let mut rig = Rig::start(Options { nodes_per_pool: 8, ..Options::default() })?;
    let door = Door::open(&rig.cluster, &[])?;
    let portal = gateway::token(&rig.cluster, "portal", "backend")?;
    let names: Vec<String> = (0..500).map(|number| format!("t-{number}")).collect();
    let spec = json!({"tier": "free", "fleets": [fleet("makers", 1)]});
    let began = Instant::now();
    for part in names.chunks(100) {
        create_tenants(&rig.cluster, part.iter().map(|name| tenant(name, spec.clone())))?;
        await_all(&rig, part, "Ready", LONG)?;
    }
    println!("bench: 500 tenants are Ready after {:.0} s", began.elapsed().as_secs_f64());
    let sleepers = &names[..100];
    let ask = |name: &String, what: &str, status: u16| -> Result<Timestamp, String> {
        let at = Timestamp::now();
        door.call(&portal, "POST", &format!("/v1/tenants/{name}/{what}"))?.is(status)?;
        Ok(at)
    };
    let together = |what: &str, status: u16| -> Result<Vec<Timestamp>, String> {
        std::thread::scope(|scope| {
            let calls: Vec<_> = sleepers.iter().map(|name| scope.spawn(move || ask(name, what, status))).collect();
            calls.into_iter().map(|call| call.join().map_err(|_| "a request panicked".to_owned())?).collect()
        })
    };

    let began = Instant::now();
    together("sleep", 202)?;
    await_all(&rig, sleepers, "Hibernated", LONG)?;
    println!("bench: a hundred of them are asleep after {:.0} s", began.elapsed().as_secs_f64());
    eventually(LONG, || rig.await_silence())?;
    let start = rig.mark()?;
    let mut asked = Vec::new();
    for name in sleepers {
        asked.push(ask(name, "activity", 204)?);
        eventually(LONG, || is_awake(&rig, name))?;
    }
    report("single wakes", &rig.audit(start)?, sleepers.iter().zip(asked));

    together("sleep", 202)?;
    await_all(&rig, sleepers, "Hibernated", LONG)?;
    eventually(LONG, || rig.await_silence())?;
    let start = rig.mark()?;
    let asked = together("activity", 204)?;
    await_awake(&rig, sleepers)?;
    report("a burst of 100", &rig.audit(start)?, sleepers.iter().zip(asked));
    println!("bench: the operator's peak: {:.1} MiB", mebibytes(rig.operator.peak_kib()?));
    println!("bench: the gateway's peak: {:.1} MiB", mebibytes(door.process.peak_kib()?));
    rig.operator.terminate().map(drop)
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
    /// From the portal's request to the gateway's write of it.
    written: f64,
    /// From there to the first write of the operator about this tenant.
    begun: f64,
    /// From there to the first write of the operator to a workload, which waits for no pod.
    first: f64,
    /// The operator's share of the whole: from each thing that it waited for to the write that followed.
    own: f64,
    /// From there to the last write that scales something up.
    last: f64,
    /// From the portal's request to the status that says that all is ready.
    ready: f64,
}

fn wake(name: &str, asked: Timestamp, events: &[AuditEvent]) -> Option<Wake> {
    let time = |event: &AuditEvent| event.stage_timestamp.parse::<Timestamp>().ok();
    let space = format!("tenant-{name}");
    let done = |event: &&AuditEvent| event.stage == "ResponseComplete" && event.code < 400;
    let of_tenant = |event: &&AuditEvent| event.resource == "tenants" && event.name == name && event.verb == "patch";
    let by_gateway = |event: &&AuditEvent| event.user_agent.starts_with("torpor-gateway/");
    let login = time(events.iter().filter(done).filter(of_tenant).find(by_gateway)?)?;
    let workload = |event: &AuditEvent| matches!(event.resource.as_str(), "statefulsets" | "deployments");
    let ours = |event: &AuditEvent| event.user_agent.starts_with("torpor-operator/");
    let mut known = login;
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
    let since = |at: Timestamp| at.duration_since(login).as_millis_f64();
    let about = |event: &&AuditEvent| event.namespace == space || of_tenant(event);
    let writes = || events.iter().filter(done).filter(about).filter(|event| ours(event) && is_write(event));
    let begun = writes().find_map(|event| time(event).filter(|at| *at > login))?;
    let ready = writes().filter(of_tenant).filter_map(time).max()?;
    Some(Wake {
        written: login.duration_since(asked).as_millis_f64(),
        begun: since(begun),
        first: since(first?),
        own,
        last: since(last),
        ready: ready.duration_since(asked).as_millis_f64(),
    })
}

fn report<'a>(what: &str, events: &[AuditEvent], asked: impl Iterator<Item = (&'a String, Timestamp)>) {
    let asked: Vec<_> = asked.collect();
    let wakes: Vec<Wake> = asked.iter().filter_map(|(name, asked)| wake(name, *asked, events)).collect();
    let column = |title: &str, read: fn(&Wake) -> f64| {
        let mut all: Vec<f64> = wakes.iter().map(read).collect();
        all.sort_by(f64::total_cmp);
        let at = |percent: usize| all.get((all.len() * percent / 100).min(all.len().saturating_sub(1)));
        let text = |percent| at(percent).map_or("none".to_owned(), |value| format!("{value:.0} ms"));
        println!("bench: {what}: {title}: p50 {}, p90 {}, p99 {}", text(50), text(90), text(99));
    };
    println!("bench: {what}: {} of {} wakes found in the audit log", wakes.len(), asked.len());
    column("request to the gateway's write", |wake| wake.written);
    column("from there to the operator's first write about the tenant", |wake| wake.begun);
    column("from there to the first scale-up write", |wake| wake.first);
    column("the operator's share, waiting for pods apart", |wake| wake.own);
    column("from there to the last scale-up write", |wake| wake.last);
    column("request to the first scale-up write", |wake| wake.written + wake.first);
    column("request to the last scale-up write", |wake| wake.written + wake.last);
    column("request to the status that says Ready", |wake| wake.ready);
}

/// A thousand reports of activity a second for a minute, of one tenant and of a thousand.
pub fn thousand_logins_a_second() -> Result<(), String> {
    const COUNT: usize = 1_000;
    const MINUTE: Duration = Duration::from_secs(60);
    let objects = Objects::start()?;
    let spec = json!({"tier": "free"});
    create_tenants(&objects.cluster, (0..COUNT).map(|number| tenant(&format!("t-{number}"), spec.clone())))?;
    // So that the first report of each is news: five minutes after its creation, or once it was put to sleep.
    let door = Door::open(&objects.cluster, &[])?;
    let portal = gateway::token(&objects.cluster, "portal", "backend")?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|error| error.to_string())?;
    for tenants in [1, COUNT] {
        for number in 0..tenants {
            door.call(&portal, "POST", &format!("/v1/tenants/t-{number}/sleep"))?.is(202)?;
        }
        let (before, written) = (door.process.rss_kib()?, door.process.counter("torpor_api_writes_total")?);
        let mut took = runtime.block_on(load(&door.address, &portal, tenants, 1_000, MINUTE / 4))?;
        let early = door.process.rss_kib()?;
        took.extend(runtime.block_on(load(&door.address, &portal, tenants, 1_000, MINUTE * 3 / 4))?);
        took.sort_unstable();
        let at = |permille: usize| took[(took.len() * permille / 1_000).min(took.len() - 1)].as_secs_f64() * 1_000.0;
        println!(
            "bench: {} reports of activity of {tenants} tenants in {} s: p50 {:.1} ms, p99 {:.1} ms, p99.9 {:.1} ms; {} writes; {:.1} MiB before, {:.1} MiB after a quarter of it, {:.1} MiB at the end",
            took.len(),
            MINUTE.as_secs(),
            at(500),
            at(990),
            at(999),
            door.process.counter("torpor_api_writes_total")? - written,
            mebibytes(before),
            mebibytes(early),
            mebibytes(door.process.rss_kib()?)
        );
    }
    Ok(())
}

/// Sends so many requests a second at even distances, whether or not earlier ones were answered, and times each from
/// the moment it was due.
async fn load(
    address: &str,
    token: &str,
    tenants: usize,
    per_second: u32,
    for_: Duration,
) -> Result<Vec<Duration>, String> {
    let client = reqwest::Client::builder().no_proxy().build().map_err(|error| error.to_string())?;
    let mut due = tokio::time::interval(Duration::from_secs(1) / per_second);
    let mut requests = tokio::task::JoinSet::new();
    let end = Instant::now() + for_;
    for number in 0.. {
        if Instant::now() >= end {
            break;
        }
        let due = due.tick().await;
        let url = format!("http://{address}/v1/tenants/t-{}/activity", number % tenants);
        let request = client.post(url).bearer_auth(token);
        requests.spawn(async move {
            let answer = request.send().await.map_err(|error| error.to_string())?;
            ensure(answer.status() == 204, || format!("the gateway answered {}", answer.status()))?;
            Ok::<_, String>(due.elapsed())
        });
    }
    requests.join_all().await.into_iter().collect()
}

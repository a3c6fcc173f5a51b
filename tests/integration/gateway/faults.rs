//! Replicas die, the API server goes away: no login is lost, nobody hangs.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Door, accounts, time, token};
use crate::harness::eventually;
use crate::hibernation::Objects;
use crate::many::create_tenants;
use crate::tenants::{ensure, same, tenant};

/// Long enough for a replica to come back while others are asked.
const PATIENCE: Duration = Duration::from_secs(60);

/// Three replicas, one of which is killed every second, under logins of sixty tenants: each is answered at last, and
/// written once it was answered. A listener connects again and hears the login that came meanwhile.
pub fn killed_replicas_lose_no_login() -> Result<(), String> {
    const TENANTS: usize = 60;
    const KILLS: usize = 6;
    let objects = Objects::start()?;
    accounts(&objects.cluster)?;
    let names: Vec<String> = (0..TENANTS).map(|number| format!("t-{number}")).collect();
    create_tenants(&objects.cluster, names.iter().map(|name| tenant(name, json!({"tier": "basic"}))))?;
    let portal = token(&objects.cluster, "portal", "backend")?;
    let doors = (0..3).map(|_| Door::open(&objects.cluster, &[])).collect::<Result<Vec<_>, _>>()?;
    for name in &names {
        eventually(PATIENCE, || doors[0].call(&portal, "POST", &format!("/v1/tenants/{name}/sleep"))?.is(202))?;
    }
    let addresses: Vec<String> = doors.iter().map(|door| door.address.clone()).collect();
    let doors = Mutex::new(doors);
    let (next, repeated, over) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let through = |name: &String| {
        // The contract with portals: whoever got no answer, or 503, asks again, and load balancers send it elsewhere.
        eventually(PATIENCE, || {
            let door = &addresses[next.fetch_add(1, Ordering::Relaxed) % addresses.len()];
            let answered = Door::at(door).call(&portal, "POST", &format!("/v1/tenants/{name}/activity"));
            answered.and_then(|answer| answer.is(204)).inspect_err(|_| {
                repeated.fetch_add(1, Ordering::Relaxed);
            })
        })
    };
    let heard = std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            for number in 0..KILLS {
                std::thread::sleep(Duration::from_millis(300));
                let mut doors = doors.lock().map_err(|error| error.to_string())?;
                doors[number % 3].kill();
                // Its Service goes on sending people there until the next probe.
                std::thread::sleep(Duration::from_millis(700));
                doors[number % 3].reopen()?;
            }
            over.store(true, Ordering::SeqCst);
            Ok::<_, String>(())
        });
        let listener = scope.spawn(|| listen(&addresses, &portal, &names[TENANTS - 1]));
        let logins: Vec<_> = names
            .chunks(TENANTS / 4)
            .map(|part| {
                let through = &through;
                scope.spawn(move || {
                    for name in part {
                        std::thread::sleep(Duration::from_millis(400));
                        through(name)?;
                    }
                    Ok::<_, String>(())
                })
            })
            .collect();
        for login in logins {
            login.join().map_err(|_| "a portal panicked".to_owned())??;
        }
        killer.join().map_err(|_| "the killer panicked".to_owned())??;
        listener.join().map_err(|_| "the listener panicked".to_owned())?
    })?;
    ensure(over.load(Ordering::SeqCst), || "nothing was killed".to_owned())?;
    ensure(repeated.load(Ordering::Relaxed) > 0, || "nobody met a replica that was gone".to_owned())?;
    let mut lost = Vec::new();
    for tenant in objects.tenants()? {
        let status = &tenant["status"];
        if time(&status["lastActivityTime"]) <= time(&status["requests"]["sleepRequestedAt"]) {
            lost.push(format!("{}: {status}", tenant["metadata"]["name"]));
        }
    }
    same("lost logins", &lost, &vec![])?;
    println!(
        "gateway: {TENANTS} logins while replicas were killed {KILLS} times: none lost, {} requests repeated; a listener connected {heard} times",
        repeated.load(Ordering::Relaxed)
    );
    Ok(())
}

/// Listens, at whatever replica answers, until it hears that the tenant is to be awake; tells how often it connected.
fn listen(addresses: &[String], portal: &str, name: &str) -> Result<usize, String> {
    let began = Instant::now();
    for connection in 1.. {
        let door = Door::at(&addresses[connection % addresses.len()]);
        if let Ok(mut events) = door.listen(portal, &format!("/v1/tenants/{name}/events")) {
            while let Ok(Some((_, told))) = events.next() {
                if told["wanted"] == "Active" {
                    return Ok(connection);
                }
            }
        }
        ensure(began.elapsed() < PATIENCE, || "the listener never heard of the login".to_owned())?;
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(0)
}

/// Without an API server the answer is 503 with a time to come again, at once; with it back all works, without a restart.
pub fn an_absent_api_server_is_told_at_once() -> Result<(), String> {
    let objects = Objects::start()?;
    let door = Door::open(&objects.cluster, &[])?;
    create_tenants(&objects.cluster, [tenant("alice", json!({"tier": "basic"}))])?;
    let portal = token(&objects.cluster, "portal", "backend")?;
    eventually(PATIENCE, || door.call(&portal, "POST", "/v1/tenants/alice/sleep")?.is(202))?;
    objects.cluster.kill_component("kube-apiserver").map_err(|error| format!("{error:#}"))?;
    let deadline = Instant::now() + Duration::from_secs(15);
    let mut longest = Duration::ZERO;
    while Instant::now() < deadline {
        let began = Instant::now();
        let answered = door.call(&portal, "POST", "/v1/tenants/alice/wake")?.is(503)?;
        longest = longest.max(began.elapsed());
        ensure(!answered.header("retry-after").is_empty(), || format!("{answered:?}"))?;
        std::thread::sleep(Duration::from_millis(500));
    }
    ensure(longest < Duration::from_secs(2), || format!("an answer took {longest:?}"))?;
    door.ask("GET", "/healthz", &[])?.is(200)?;
    objects.cluster.restart_component("kube-apiserver").map_err(|error| format!("{error:#}"))?;
    let back = Instant::now();
    eventually(PATIENCE, || door.call(&portal, "POST", "/v1/tenants/alice/wake")?.is(202))?;
    println!(
        "gateway: 503 after {longest:?} at most; it wakes again {:.1} s after the API server is back",
        back.elapsed().as_secs_f64()
    );
    Ok(())
}

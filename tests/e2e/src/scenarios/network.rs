//! Who reaches whom, tried from within tenants' own containers, and counted where the packets would arrive.
//!
//! The NetworkPolicies are enforced by `netpol`, this project's own reading of the specification.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::rig::{BASIC, FREE, HOME, Rig, namespace, text};

/// Tries to connect to each `[host, port]` of its argument, many at a time, and prints those that answered in any way:
/// by a connection or by a refusal, which is a packet that came back, too.
const PROBE: &str = r#"
import asyncio, json, sys
async def one(host, port, room):
    async with room:
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), 2)
            writer.close()
            return [host, port, "connected"]
        except ConnectionRefusedError:
            return [host, port, "refused"]
        except (asyncio.TimeoutError, OSError) as error:
            return None
async def main():
    room = asyncio.Semaphore(1100)
    found = await asyncio.gather(*(one(h, p, room) for h, p in json.loads(sys.argv[1])))
    print(json.dumps([x for x in found if x]))
asyncio.run(main())
"#;

/// Ports that are tried on a neighbour: all that a part of a stack listens on, and the first thousand.
fn ports() -> Vec<u16> {
    (1..=1024).chain([5432, 6379, 8000, 8080, 8090, 8501, 9187, 10_250, 6443, 15_888]).collect()
}

/// What answered a bot.
fn reached(rig: &Rig, tenant: &str, targets: &[(String, u16)]) -> Result<Vec<Value>> {
    let answer = rig.cluster.exec_in_pod(
        &namespace(tenant),
        "bots-makers-0",
        Some("bot"),
        &["python3", "-c", PROBE, &json!(targets).to_string()],
    )?;
    Ok(serde_json::from_str(&answer)?)
}

fn addresses(rig: &Rig, tenant: &str) -> Result<Vec<(String, String)>> {
    let mut all = Vec::new();
    for pod in rig.list("pods", tenant)? {
        all.push((text(&pod["metadata"]["name"]), text(&pod["status"]["podIP"])));
    }
    for service in rig.list("services", tenant)?.iter().filter(|service| service["spec"]["clusterIP"] != "None") {
        all.push((text(&service["metadata"]["name"]), text(&service["spec"]["clusterIP"])));
    }
    ensure!(all.len() >= 6, "{tenant} has only {all:?}");
    Ok(all)
}

pub fn run(rig: &Rig) -> Result<()> {
    for tenant in [BASIC, FREE] {
        rig.await_awake(tenant)?;
    }
    let drops = rig.cluster.guard_drops()?;
    let before = rig.forbidden.arrivals()?.len();
    for (from, to) in [(BASIC, FREE), (FREE, BASIC)] {
        allowed(rig, from)?;
        let mut tried = 0;
        for (name, address) in addresses(rig, to)? {
            let targets: Vec<_> = ports().into_iter().map(|port| (address.clone(), port)).collect();
            tried += targets.len();
            let found = reached(rig, from, &targets)?;
            ensure!(found.is_empty(), "a bot of {from} reaches {name} of {to}: {found:?}");
        }
        tried += forbidden(rig, from)?;
        println!(
            "         {from}: its bot reaches database, Redis, names and the internet; {tried} other addresses and ports do not answer"
        );
    }
    let arrived: Vec<_> = rig.forbidden.arrivals()?.into_iter().skip(before).collect();
    ensure!(arrived.is_empty(), "packets arrived at metadata or private addresses: {arrived:?}");
    ensure!(rig.cluster.guard_drops()? == drops, "packets wanted to leave the machine");
    Ok(())
}

/// What a bot must reach, or the rest would prove nothing.
fn allowed(rig: &Rig, tenant: &str) -> Result<()> {
    let wanted = [("postgres", 5432), ("redis", 6379), ("exchange.torpor.test", 8000), ("203.0.113.10", 80)];
    let targets: Vec<_> = wanted.iter().map(|(host, port)| ((*host).to_owned(), *port)).collect();
    let found = reached(rig, tenant, &targets)?;
    let connected = found.iter().filter(|one| one[2] == "connected").count();
    ensure!(connected == wanted.len(), "a bot of {tenant} reaches only {found:?}");
    Ok(())
}

/// The API server, the nodes, Torpor's own programs, metadata and private addresses. Returns how many were tried.
fn forbidden(rig: &Rig, tenant: &str) -> Result<usize> {
    let mut targets: Vec<(String, u16)> = vec![("kubernetes.default.svc".into(), 443)];
    let api = rig.get(&["endpoints", "kubernetes", "-n", "default"])?;
    targets.push((text(&api["subsets"][0]["addresses"][0]["ip"]), 6443));
    let endpoint = api["subsets"][0]["ports"][0]["port"].as_u64().and_then(|port| port.try_into().ok());
    targets.push((targets[1].0.clone(), endpoint.unwrap_or(6443)));
    for worker in rig.cluster.workers() {
        targets.extend([22, 80, 443, 10_250, 10_255, 10_256, 30_000].map(|port| (worker.address().to_string(), port)));
    }
    for pod in rig.get(&["pods", "-n", HOME])?["items"].as_array().into_iter().flatten() {
        targets.extend([8080, 8090].map(|port| (text(&pod["status"]["podIP"]), port)));
    }
    let worlds = rig.forbidden.addresses().iter().map(Ipv4Addr::to_string);
    targets.extend(worlds.flat_map(|address| [53, 80, 443].map(|port| (address.clone(), port))));
    // Its own dashboard and exporter are none of a bot's business either.
    targets.extend([("dashboard".to_owned(), 8501)]);
    let found = reached(rig, tenant, &targets)?;
    ensure!(found.is_empty(), "a bot of {tenant} reaches {found:?}");
    Ok(targets.len())
}

//! Pods, their volumes, their network.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::lab::{EXCHANGE, INTERNET, Lab, METADATA, NEIGHBOUR, pod};

/// A volume for one pod alone belongs to the pod's group, keeps its data, and works with users of the pod's own.
pub(super) fn volume(lab: &Lab) -> Result<()> {
    lab.apply(&json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data", "namespace": "a"},
        "spec": {"accessModes": ["ReadWriteOncePod"], "resources": {"requests": {"storage": "10Mi"}}},
    }))?;
    let mut writer = pod("a", "writer", lab.node(0), "date >>/data/log; exec sleep 100000");
    // The scheduler chooses where the volume is made.
    writer["spec"].as_object_mut().context("a pod has a spec")?.remove("nodeName");
    writer["spec"]["hostUsers"] = json!(false);
    writer["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    writer["spec"]["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]);
    for lines in ["1", "2"] {
        lab.apply(&writer)?;
        lab.wait_ready("a", "writer")?;
        let seen =
            lab.sh("a", "writer", "wc -l </data/log; stat -c %g /data; id -u; cut -c11-20 /proc/self/uid_map")?;
        let seen: Vec<&str> = seen.split_whitespace().collect();
        let [log, group, user, outside] = seen[..] else { anyhow::bail!("unexpected: {seen:?}") };
        ensure!(log == lines, "{log} lines in the volume, not {lines}");
        ensure!((group, user) == ("2345", "1234"), "the volume belongs to group {group}, the user is {user}");
        ensure!(outside != "0", "the pod has the machine's users");
        lab.cluster.kubectl(["delete", "pod", "writer", "-n", "a"])?;
    }
    lab.cluster.kubectl(["delete", "pvc", "data", "-n", "a"]).map(drop)
}

/// From a pod to a Service by name, to a pod of the other node, and to itself through its Service.
pub(super) fn services(lab: &Lab) -> Result<()> {
    lab.passes("server.b.svc.cluster.local/")?;
    lab.passes("server.b/")?;
    lab.sh("b", "server", "timeout 5 wget -qO- http://server.b/").context("a pod does not reach itself")?;
    let unknown = lab.sh("a", "client", "timeout 5 nslookup nobody.example.com");
    ensure!(unknown.is_err(), "a name outside of the cluster is resolved");
    Ok(())
}

/// Without policies every world is reached, by name or by address, and has the asker in its records.
pub(super) fn worlds(lab: &Lab) -> Result<()> {
    let client = lab.address("a", "client")?;
    lab.passes(&format!("{EXCHANGE}/"))?;
    lab.passes(&format!("{METADATA}/latest/meta-data"))?;
    lab.passes(&format!("{NEIGHBOUR}/"))?;
    for world in [&lab.internet, &lab.metadata, &lab.neighbour] {
        let connections = world.connections();
        ensure!(connections.iter().any(|one| one.from == client), "{} has {connections:?}", world.name());
    }
    ensure!(lab.internet.connections()[0].to.ip() == INTERNET, "the internet was reached under another address");
    // Nothing listens there, and it is noticed all the same.
    let _ = lab.sh(
        "a",
        "client",
        &format!("timeout 1 wget -qO- http://{NEIGHBOUR}:5432/; echo x | timeout 1 nc -u {NEIGHBOUR} 53"),
    );
    let arrivals = lab.neighbour.arrivals()?;
    for (protocol, port) in [("tcp", 80), ("tcp", 5432), ("udp", 53)] {
        let seen = arrivals.iter().any(|one| (one.from, &*one.protocol, one.port) == (client, protocol, Some(port)));
        ensure!(seen, "no {protocol} packet to port {port} in {arrivals:?}");
    }
    Ok(())
}

/// Addresses that no world has lead nowhere, as does this machine.
pub(super) fn guard(lab: &Lab) -> Result<()> {
    let before = lab.cluster.guard_drops()?;
    for address in ["198.51.100.1", "10.245.0.2", "8.8.8.8"] {
        lab.blocked(&format!("{address}/"))?;
        let after = lab.cluster.guard_drops()?;
        ensure!(after > before, "the guard has not seen the packets to {address}");
    }
    Ok(())
}

/// A container that takes too much is killed and started again; its neighbours are not.
pub(super) fn memory(lab: &Lab) -> Result<()> {
    let greedy = "sleep 1; exec tail -c 500000000 /dev/zero";
    lab.apply(&pod("a", "greedy", lab.node(0), greedy))?;
    let started = Instant::now();
    loop {
        let pod = lab.get(&["-n", "a", "pod", "greedy"])?;
        let state = &pod["status"]["containerStatuses"][0];
        let reasons = [&state["state"], &state["lastState"]].map(|state| state["terminated"]["reason"].as_str());
        if reasons.contains(&Some("OOMKilled")) {
            break;
        }
        ensure!(started.elapsed() < Duration::from_secs(40), "not killed: {state}");
        std::thread::sleep(Duration::from_millis(200));
    }
    let client = lab.get(&["-n", "a", "pod", "client"])?;
    ensure!(client["status"]["containerStatuses"][0]["restartCount"] == 0, "a neighbour was restarted");
    lab.cluster.kubectl(["delete", "pod", "greedy", "-n", "a"]).map(drop)
}

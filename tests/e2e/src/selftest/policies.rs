//! NetworkPolicies, by packets: what is closed, and what stays open.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::lab::{INTERNET, Lab, METADATA, NEIGHBOUR, pod};

/// What selects every pod and allows nothing.
fn deny(direction: &str) -> Value {
    json!({"podSelector": {}, "policyTypes": [direction]})
}

/// A pod that tries to connect as its first act is heard by nobody.
pub(super) fn new_pod(lab: &Lab) -> Result<()> {
    lab.policy("a", "deny", deny("Egress"))?;
    let script = format!("for i in 1 2 3; do timeout 1 wget -qO- http://{INTERNET}/ ; done; exec sleep 100000");
    lab.apply(&pod("a", "hasty", lab.node(0), &script))?;
    lab.wait_ready("a", "hasty")?;
    let hasty = lab.address("a", "hasty")?;
    std::thread::sleep(Duration::from_secs(4));
    let arrivals = lab.internet.arrivals()?;
    ensure!(arrivals.iter().all(|one| one.from != hasty), "the new pod was heard: {arrivals:?}");
    lab.no_policies()?;
    // The same pod is heard once it may speak: the silence was the policy's.
    lab.sh(
        "a",
        "hasty",
        &format!("for i in 1 2 3 4 5; do timeout 2 wget -qO- http://{INTERNET}/ && exit; done; exit 1"),
    )?;
    ensure!(lab.internet.arrivals()?.iter().any(|one| one.from == hasty), "the record of packets is blind");
    lab.cluster.kubectl(["delete", "pod", "hasty", "-n", "a"]).map(drop)
}

/// Nobody gets in but the node, and the pod itself.
pub(super) fn deny_ingress(lab: &Lab) -> Result<()> {
    lab.passes("server.b/")?;
    lab.policy("b", "deny", deny("Ingress"))?;
    let address = lab.address("b", "server")?;
    lab.blocked("server.b/")?;
    lab.blocked(&format!("{address}:8080/"))?;
    lab.sh("b", "server", "timeout 5 wget -qO- http://server.b/")?;
    // Long enough for three probes to fail, if they did.
    std::thread::sleep(Duration::from_secs(5));
    let server = lab.get(&["-n", "b", "pod", "server"])?;
    let ready = server["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|one| one["type"] == "Ready" && one["status"] == "True");
    ensure!(ready, "the node's probes are blocked: {}", server["status"]["conditions"]);
    Ok(())
}

/// With the denial still there: the named port opens for the right pods of the right namespace, and only that.
pub(super) fn allow_ingress(lab: &Lab) -> Result<()> {
    let from = |namespace: &str, app: &str| {
        json!({
            "podSelector": {"matchLabels": {"app": "server"}},
            "ingress": [{
                "from": [{
                    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                    "podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": [app, "other"]}]},
                }],
                "ports": [{"port": "web"}],
            }],
        })
    };
    lab.policy("b", "allow", from("b", "client"))?;
    lab.blocked("server.b/")?;
    lab.policy("b", "allow", from("a", "client"))?;
    lab.passes("server.b/")?;
    let address = lab.address("b", "server")?;
    let other_port = lab.sh("a", "client", &format!("echo x | timeout 2 nc -w 1 {address} 9000"));
    ensure!(other_port.is_err(), "another port is open too");
    let started = Instant::now();
    lab.cluster.kubectl(["label", "pod", "client", "-n", "a", "app=stranger", "--overwrite"])?;
    lab.blocked("server.b/")?;
    println!("        a label's change was felt within {:.1} s", started.elapsed().as_secs_f32() - 2.0);
    lab.cluster.kubectl(["label", "pod", "client", "-n", "a", "app=client", "--overwrite"])?;
    lab.passes("server.b/")?;
    lab.no_policies()
}

/// Addresses without private ranges, as bots have them: the internet is open; metadata, neighbours, pods, the API
/// server, the nodes and the name server are not.
pub(super) fn egress_blocks(lab: &Lab) -> Result<()> {
    let address = lab.address("b", "server")?;
    lab.passes(&format!("{NEIGHBOUR}/"))?;
    lab.policy(
        "a",
        "internet",
        json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [{"ipBlock": {
            "cidr": "0.0.0.0/0", "except": ["10.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"],
        }}]}]}),
    )?;
    lab.blocked(&format!("{NEIGHBOUR}/"))?;
    let before = (lab.metadata.arrivals()?, lab.neighbour.arrivals()?);
    let kubelet = format!("{}:10250/", lab.cluster.workers()[0].address());
    let pod = format!("{address}:8080/");
    let neighbour = format!("{NEIGHBOUR}/");
    let metadata = format!("{METADATA}/");
    for closed in [&*metadata, &*neighbour, &*pod, "10.245.0.10:6443/", "10.246.0.1:443/", &*kubelet, "server.b/"] {
        lab.blocked(closed)?;
    }
    ensure!((lab.metadata.arrivals()?, lab.neighbour.arrivals()?) == before, "a packet arrived");
    lab.passes(&format!("{INTERNET}/"))?;
    lab.no_policies()?;
    lab.passes(&pod)
}

/// A range of ports, UDP and TCP, by pods of a namespace.
pub(super) fn egress_ports(lab: &Lab) -> Result<()> {
    let namespace = |name: &str| json!([{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}]);
    let spec = |first: u16, last: u16| {
        json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [
            {"to": namespace("kube-system"), "ports": [{"port": 53, "protocol": "UDP"}]},
            {"to": namespace("b"), "ports": [{"port": first, "endPort": last}]},
        ]})
    };
    lab.policy("a", "ports", spec(8081, 8090))?;
    lab.blocked("server.b/")?;
    lab.sh("a", "client", "timeout 5 nslookup server.b.svc.cluster.local")?;
    lab.policy("a", "ports", spec(8000, 8090))?;
    lab.passes("server.b/")?;
    lab.blocked(&format!("{INTERNET}/"))?;
    lab.policy(
        "a",
        "ports",
        json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [
            {"to": namespace("kube-system"), "ports": [{"port": 53, "protocol": "TCP"}]},
        ]}),
    )?;
    std::thread::sleep(Duration::from_secs(1));
    let asked = lab.sh("a", "client", "timeout 3 nslookup server.b.svc.cluster.local");
    ensure!(asked.is_err(), "names are resolved over UDP, which only TCP may");
    lab.no_policies()
}

/// A connection that was there before goes on; a new one is refused.
pub(super) fn established(lab: &Lab) -> Result<()> {
    let address = lab.address("b", "server")?;
    let talk = format!("(while sleep 0.2; do echo x || exit; done | nc {address} 9000) >/dev/null 2>&1 &");
    let heard = || -> Result<u64> { Ok(lab.sh("b", "server", "wc -c </tmp/heard")?.trim().parse()?) };
    let silent = heard()?;
    lab.sh("a", "client", &talk)?;
    std::thread::sleep(Duration::from_secs(1));
    ensure!(heard()? > silent, "the server hears nothing");
    lab.policy("b", "deny", deny("Ingress"))?;
    lab.blocked(&format!("{address}:8080/"))?;
    let before = heard()?;
    std::thread::sleep(Duration::from_secs(2));
    let after = heard()?;
    ensure!(after > before, "the connection stands still at {after} bytes");
    lab.no_policies()
}

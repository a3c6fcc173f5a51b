//! Clusters with policies of all kinds, made from a number: the same number gives the same cluster.

use std::{collections::BTreeMap, net::Ipv4Addr};

use serde_json::{Value, json};
use torpor_e2e::netpol::{NamedPort, Pod, Protocol, View};

/// Pods, policies, and connections to judge.
pub struct Cluster {
    /// Ours.
    pub view: View,
    /// New connections.
    pub packets: Vec<Packet>,
}

/// A new connection.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    /// Sender.
    pub from: Ipv4Addr,
    /// Receiver.
    pub to: Ipv4Addr,
    /// Protocol.
    pub protocol: Protocol,
    /// The receiver's port.
    pub port: u16,
}

const NAMESPACES: [(&str, &[&str]); 3] = [("a", &["team=one"]), ("b", &["team=two", "env=live"]), ("c", &[])];
const LABELS: [&str; 6] = ["app=x", "app=y", "app=z", "tier=front", "tier=back", "env=live"];
const PORTS: [(Protocol, &str, u16, &str); 6] = [
    (Protocol::Tcp, "TCP", 80, "http"),
    (Protocol::Tcp, "TCP", 8080, "web"),
    (Protocol::Tcp, "TCP", 9090, "metrics"),
    (Protocol::Udp, "UDP", 53, "dns"),
    (Protocol::Udp, "UDP", 8080, "web-udp"),
    (Protocol::Sctp, "SCTP", 80, "web"),
];
const OUTSIDE: [&str; 4] = ["203.0.113.10", "192.168.1.1", "10.9.0.1", "169.254.169.254"];
const BLOCKS: [(&str, &[&str]); 5] = [
    ("0.0.0.0/0", &["10.0.0.0/8", "192.168.0.0/16"]),
    ("10.0.0.0/8", &["10.0.0.0/30"]),
    ("10.0.0.2/31", &[]),
    ("203.0.113.10/32", &[]),
    ("0.0.0.0/0", &["203.0.113.0/25", "203.0.113.0/24"]),
];

/// Knuth's linear congruential generator: good enough to mix, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or(0) % sides
    }

    fn one_of<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.roll(items.len())]
    }

    fn list(&mut self, most: usize, mut make: impl FnMut(&mut Self) -> Value) -> Value {
        (0..self.roll(most + 1)).map(|_| make(self)).collect()
    }

    fn selector(&mut self) -> Value {
        let label = *self.one_of(&LABELS);
        let (key, value) = label.split_once('=').unwrap_or((label, ""));
        let other = self.one_of(&["x", "front", "two"]);
        match self.roll(6) {
            0 => json!({}),
            1 | 2 => json!({"matchLabels": {key: value}}),
            3 => json!({"matchExpressions": [{"key": key, "operator": "In", "values": [value, other]}]}),
            4 => not_in(key, value),
            _ => {
                let operator = self.one_of(&["Exists", "DoesNotExist"]);
                json!({"matchExpressions": [{"key": key, "operator": operator}]})
            }
        }
    }

    fn namespace_selector(&mut self) -> Value {
        match self.roll(4) {
            0 => json!({}),
            1 => json!({"matchLabels": {"team": "one"}}),
            2 => not_in("team", "one"),
            _ => json!({"matchExpressions": [{"key": "env", "operator": "Exists"}]}),
        }
    }

    fn peer(&mut self) -> Value {
        match self.roll(4) {
            0 => json!({"podSelector": self.selector()}),
            1 => json!({"namespaceSelector": self.namespace_selector()}),
            2 => json!({"podSelector": self.selector(), "namespaceSelector": self.namespace_selector()}),
            _ => {
                let (cidr, except) = self.one_of(&BLOCKS);
                json!({"ipBlock": {"cidr": cidr, "except": except}})
            }
        }
    }

    fn port(&mut self) -> Value {
        let (_, protocol, number, name) = *self.one_of(&PORTS);
        match self.roll(5) {
            0 => json!({"protocol": protocol}),
            1 => json!({"protocol": protocol, "port": number - 1, "endPort": number + 10}),
            2 => json!({"protocol": protocol, "port": name}),
            3 => json!({"port": number}),
            _ => json!({"protocol": protocol, "port": number}),
        }
    }

    fn policy(&mut self, number: usize) -> Value {
        let types = *self.one_of(&[&["Ingress"][..], &["Egress"], &["Ingress", "Egress"]]);
        let (namespace, _) = *self.one_of(&NAMESPACES);
        let mut spec = json!({"podSelector": self.selector(), "policyTypes": types});
        for (kind, rules, peers) in [("Ingress", "ingress", "from"), ("Egress", "egress", "to")] {
            if types.contains(&kind) {
                spec[rules] =
                    self.list(3, |dice| json!({peers: dice.list(2, Self::peer), "ports": dice.list(2, Self::port)}));
            }
        }
        json!({"metadata": {"name": format!("p{number}"), "namespace": namespace}, "spec": spec})
    }
}

/// cyclonus v0.5.6 takes `NotIn` to ask for the key too, which Kubernetes' own library does not; so here the key is asked
/// for.
fn not_in(key: &str, value: &str) -> Value {
    let there = json!({"key": key, "operator": "Exists"});
    json!({"matchExpressions": [{"key": key, "operator": "NotIn", "values": [value]}, there]})
}

fn labels(texts: &[&str]) -> BTreeMap<String, String> {
    let pairs = texts.iter().filter_map(|text| text.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// The cluster with that number.
pub fn cluster(number: u64) -> Cluster {
    let mut dice = Dice(number);
    let mut view = View {
        namespaces: NAMESPACES.iter().map(|(name, texts)| ((*name).to_owned(), labels(texts))).collect(),
        ..View::default()
    };
    for last in 1..=8 {
        let texts: Vec<&str> = (0..dice.roll(3)).map(|_| *dice.one_of(&LABELS)).collect();
        let ports = PORTS.iter().filter(|_| dice.roll(2) == 0);
        let ports = ports.map(|(protocol, _, number, name)| NamedPort {
            name: (*name).into(),
            protocol: *protocol,
            number: *number,
        });
        let ports = ports.collect();
        let (namespace, _) = dice.one_of(&NAMESPACES);
        let pod = Pod {
            namespace: (*namespace).into(),
            name: format!("pod{last}"),
            labels: labels(&texts),
            node: super::NODE.into(),
            ports,
        };
        view.pods.insert(Ipv4Addr::new(10, 0, 0, last), pod);
    }
    let policies: Vec<Value> = (0..=dice.roll(4)).map(|number| dice.policy(number)).collect();
    view.policies = serde_json::from_value(policies.into()).expect("policies");
    let outside = OUTSIDE.iter().filter_map(|text| text.parse().ok());
    let ends: Vec<Ipv4Addr> = view.pods.keys().copied().chain(outside).collect();
    let pairs = ends.iter().flat_map(|from| ends.iter().map(move |to| (*from, *to)));
    // A pod reaches itself whatever the policies say, which others leave open.
    let pairs = pairs.filter(|(from, to)| from != to);
    let packets = pairs.flat_map(|(from, to)| {
        PORTS.iter().map(move |(protocol, _, port, _)| Packet { from, to, protocol: *protocol, port: *port })
    });
    Cluster { packets: packets.collect(), view }
}

impl Cluster {
    /// For the program that reads policies in another way.
    pub fn question(&self) -> Value {
        let packets: Vec<Value> = self.packets.iter().map(|packet| self.packet(*packet)).collect();
        json!({"Policies": self.view.policies, "Packets": packets})
    }

    fn packet(&self, packet: Packet) -> Value {
        let receiver = self.view.pods.get(&packet.to);
        let name = receiver.and_then(|pod| {
            let port = pod.ports.iter().find(|port| (port.protocol, port.number) == (packet.protocol, packet.port));
            port.map(|port| port.name.clone())
        });
        json!({
            "From": self.end(packet.from), "To": self.end(packet.to),
            "Protocol": packet.protocol.as_str().to_uppercase(), "Port": packet.port, "PortName": name.unwrap_or_default(),
        })
    }

    fn end(&self, address: Ipv4Addr) -> Value {
        match self.view.pods.get(&address) {
            None => json!({"Address": address}),
            Some(pod) => json!({
                "Address": address, "Namespace": pod.namespace, "Labels": pod.labels,
                "NamespaceLabels": self.view.namespaces[&pod.namespace],
            }),
        }
    }
}

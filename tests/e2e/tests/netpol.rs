//! What policies mean: cases that the specification names, and thousands of others in which we agree with cyclonus,
//! whose reading of the specification is not ours.

mod random;

use std::{
    collections::BTreeMap,
    io::Write,
    net::Ipv4Addr,
    process::{Command, Stdio},
};

use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::{Value, json};
use torpor_cluster::{GoModule, GoProgram};
use torpor_e2e::netpol::{NamedPort, Pod, Protocol, Rules, View, compile, render};

const NODE: &str = "node";

fn address(text: &str) -> Ipv4Addr {
    text.parse().expect("an address")
}

fn labels(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split_whitespace().filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn pod(namespace: &str, name: &str, labelled: &str) -> Pod {
    let port = |name: &str, protocol, number| NamedPort { name: name.into(), protocol, number };
    Pod {
        namespace: namespace.into(),
        name: name.into(),
        labels: labels(labelled),
        node: NODE.into(),
        ports: vec![port("web", Protocol::Tcp, 8080), port("dns", Protocol::Udp, 53)],
    }
}

/// Namespaces `a` and `b`: a client in each, a server in `b`.
fn rules(policies: Value) -> Rules {
    let policies: Vec<NetworkPolicy> = serde_json::from_value(policies).expect("policies");
    let pods = [
        ("10.0.0.1", pod("a", "client", "app=client")),
        ("10.0.0.2", pod("b", "client", "app=client tier=front")),
        ("10.0.0.3", pod("b", "server", "app=server")),
    ];
    let view = View {
        pods: pods.into_iter().map(|(text, pod)| (address(text), pod)).collect(),
        namespaces: [("a".into(), labels("team=one")), ("b".into(), labels("team=two"))].into(),
        policies,
    };
    compile(&view, NODE)
}

fn policy(namespace: &str, spec: Value) -> Value {
    json!({"metadata": {"name": "policy", "namespace": namespace}, "spec": spec})
}

const CLIENT_A: &str = "10.0.0.1";
const CLIENT_B: &str = "10.0.0.2";
const SERVER: &str = "10.0.0.3";
const OUTSIDE: &str = "203.0.113.10";

fn passes(rules: &Rules, from: &str, to: &str, protocol: Protocol, port: u16) -> bool {
    let (from, to) = (address(from), address(to));
    rules.ingress_allows(from, to, protocol, port) && rules.egress_allows(from, to, protocol, port)
}

fn tcp(rules: &Rules, from: &str, to: &str, port: u16) -> bool {
    passes(rules, from, to, Protocol::Tcp, port)
}

#[test]
fn without_policies_everything_passes() {
    let rules = rules(json!([]));
    assert!(tcp(&rules, CLIENT_A, SERVER, 1) && tcp(&rules, OUTSIDE, SERVER, 1) && tcp(&rules, SERVER, OUTSIDE, 1));
}

#[test]
fn a_policy_without_rules_closes_its_direction_only() {
    let rules = rules(json!([policy("b", json!({"podSelector": {}, "policyTypes": ["Ingress"]}))]));
    assert!(!tcp(&rules, CLIENT_B, SERVER, 8080) && !tcp(&rules, OUTSIDE, SERVER, 8080));
    assert!(tcp(&rules, SERVER, CLIENT_A, 8080) && tcp(&rules, SERVER, OUTSIDE, 8080));
    assert!(tcp(&rules, SERVER, SERVER, 8080), "a pod reaches itself");
}

#[test]
fn types_follow_from_the_rules_where_they_are_not_named() {
    let ingress = rules(json!([policy("b", json!({"podSelector": {}}))]));
    assert!(!tcp(&ingress, CLIENT_A, SERVER, 1) && tcp(&ingress, SERVER, OUTSIDE, 1));
    let both = rules(json!([policy("b", json!({"podSelector": {}, "egress": []}))]));
    assert!(!tcp(&both, CLIENT_A, SERVER, 1) && !tcp(&both, SERVER, OUTSIDE, 1));
}

#[test]
fn a_selector_of_pods_alone_means_the_policys_namespace() {
    let peer = |peer: Value| rules(json!([policy("b", json!({"podSelector": {}, "ingress": [{"from": [peer]}]}))]));
    let clients = peer(json!({"podSelector": {"matchLabels": {"app": "client"}}}));
    assert!(tcp(&clients, CLIENT_B, SERVER, 1) && !tcp(&clients, CLIENT_A, SERVER, 1));
    let everywhere = peer(json!({"podSelector": {"matchLabels": {"app": "client"}}, "namespaceSelector": {}}));
    assert!(tcp(&everywhere, CLIENT_A, SERVER, 1) && !tcp(&everywhere, OUTSIDE, SERVER, 1));
    let team = peer(json!({"namespaceSelector": {"matchExpressions": [
        {"key": "team", "operator": "NotIn", "values": ["two"]}, {"key": "team", "operator": "Exists"},
    ]}}));
    assert!(tcp(&team, CLIENT_A, SERVER, 1) && !tcp(&team, CLIENT_B, SERVER, 1));
}

#[test]
fn who_lacks_a_label_has_none_of_its_values() {
    let others = json!({"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["front"]}]});
    let rules = rules(json!([policy("b", json!({"podSelector": others}))]));
    assert!(!tcp(&rules, CLIENT_A, SERVER, 1) && tcp(&rules, CLIENT_A, CLIENT_B, 1));
}

#[test]
fn policies_add_up() {
    let one = policy("b", json!({"podSelector": {}, "policyTypes": ["Ingress"]}));
    let two = policy("b", json!({"podSelector": {"matchLabels": {"app": "server"}}, "ingress": [{}]}));
    let rules = rules(json!([one, two]));
    assert!(tcp(&rules, OUTSIDE, SERVER, 1) && !tcp(&rules, OUTSIDE, CLIENT_B, 1));
}

#[test]
fn ports_are_those_of_the_receiver() {
    let ports = |ports: Value| {
        rules(json!([policy("a", json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"ports": ports}]}))]))
    };
    let named = ports(json!([{"port": "web"}]));
    assert!(tcp(&named, CLIENT_A, SERVER, 8080) && !tcp(&named, CLIENT_A, SERVER, 8081));
    assert!(!tcp(&named, CLIENT_A, OUTSIDE, 8080), "a host has no names for ports");
    let range = ports(json!([{"port": 8000, "endPort": 8090}]));
    assert!(tcp(&range, CLIENT_A, OUTSIDE, 8090) && !tcp(&range, CLIENT_A, OUTSIDE, 8091));
    assert!(!passes(&range, CLIENT_A, OUTSIDE, Protocol::Udp, 8000), "TCP is meant where no protocol is named");
    let protocol = ports(json!([{"protocol": "SCTP"}, {"protocol": "UDP", "port": "dns"}]));
    assert!(passes(&protocol, CLIENT_A, OUTSIDE, Protocol::Sctp, 7) && !tcp(&protocol, CLIENT_A, OUTSIDE, 7));
    assert!(passes(&protocol, CLIENT_A, SERVER, Protocol::Udp, 53) && !tcp(&protocol, CLIENT_A, SERVER, 53));
}

#[test]
fn addresses_are_meant_whoever_has_them() {
    let block = |cidr: &str, except: Value| {
        let peer = json!({"ipBlock": {"cidr": cidr, "except": except}});
        rules(json!([policy("a", json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [peer]}]}))]))
    };
    let internet = block("0.0.0.0/0", json!(["10.0.0.0/8", "10.0.0.0/16", "169.254.0.0/16"]));
    assert!(tcp(&internet, CLIENT_A, OUTSIDE, 1));
    assert!(!tcp(&internet, CLIENT_A, SERVER, 1) && !tcp(&internet, CLIENT_A, "169.254.169.254", 80));
    let pods = block("10.0.0.0/30", json!(null));
    assert!(tcp(&pods, CLIENT_A, SERVER, 1) && !tcp(&pods, CLIENT_A, "10.0.0.4", 1));
    let peer = json!({"ipBlock": {"cidr": "10.0.0.0/29"}});
    let named =
        json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [peer], "ports": [{"port": "web"}]}]});
    let named = rules(json!([policy("a", named)]));
    assert!(tcp(&named, CLIENT_A, SERVER, 8080), "a pod in the range has its names for ports");
    assert!(!tcp(&named, CLIENT_A, SERVER, 80) && !tcp(&named, CLIENT_A, "10.0.0.4", 8080));
    let sixth = block("2001:db8::/32", json!(null));
    assert!(!tcp(&sixth, CLIENT_A, OUTSIDE, 1), "a range of the other family means none of ours");
}

#[test]
fn only_the_nodes_own_pods_are_enforced() {
    let mut view = View::default();
    view.pods.insert(address("10.0.1.1"), Pod { node: "other".into(), ..pod("b", "far", "") });
    view.policies = serde_json::from_value(json!([policy("b", json!({"podSelector": {}}))])).expect("policies");
    assert_eq!(compile(&view, NODE), Rules::default());
}

#[test]
fn the_table_drops_strangers_and_lets_answers_pass() {
    let table = render(
        &rules(json!([policy("b", json!({"podSelector": {}, "ingress": [{"ports": [{"port": "web"}]}]}))])),
        "10.0.0.0/24",
    );
    let first = "    ct state established,related accept\n    ip saddr 10.0.0.0/24 ip saddr != { 10.0.0.1, 10.0.0.2, 10.0.0.3 } counter drop\n";
    assert_eq!(table.matches(first).count(), 2, "{table}");
    let chain = "  chain ingress_10_0_0_3 {\n    ip saddr 10.0.0.3 return\n    tcp dport 8080-8080 return\n    counter drop\n  }\n";
    assert!(table.contains(&chain.replace("8080-8080", "8080")), "{table}");
    let empty = render(&Rules::default(), "10.0.0.0/24");
    assert!(empty.contains("    ip saddr 10.0.0.0/24 counter drop\n"), "{empty}");
}

/// cyclonus' matcher behind a small program.
const VERDICTS: GoModule = GoModule {
    name: "node-verdicts",
    files: &[
        ("go.mod", include_str!("../../cluster/tools/node/verdicts/go.mod")),
        ("go.sum", include_str!("../../cluster/tools/node/verdicts/go.sum")),
        ("main.go", include_str!("../../cluster/tools/node/verdicts/main.go")),
    ],
    programs: &[GoProgram { name: "verdicts", package: ".", ldflags: "", tags: "", cgo: false }],
};

#[test]
fn an_independent_reading_comes_to_the_same_verdicts() {
    const CLUSTERS: u64 = 200;
    let program = VERDICTS.build().expect("cyclonus builds").join("verdicts");
    let clusters: Vec<random::Cluster> = (0..CLUSTERS).map(random::cluster).collect();
    let questions: String = clusters.iter().map(|cluster| format!("{}\n", cluster.question())).collect();
    let mut child =
        Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the program starts");
    let mut stdin = child.stdin.take().expect("its input");
    let writer = std::thread::spawn(move || stdin.write_all(questions.as_bytes()));
    let output = child.wait_with_output().expect("its output");
    writer.join().expect("no panic").expect("it reads everything");
    assert!(output.status.success());
    let answers = String::from_utf8(output.stdout).expect("text");
    let (mut open, mut closed) = (0, 0);
    let mut answered = 0;
    for (cluster, answer) in clusters.iter().zip(answers.lines()) {
        let theirs: Vec<[bool; 2]> = serde_json::from_str(answer).expect("verdicts");
        let rules = compile(&cluster.view, NODE);
        assert_eq!(theirs.len(), cluster.packets.len());
        for (packet, theirs) in cluster.packets.iter().zip(theirs) {
            let ours = [
                rules.ingress_allows(packet.from, packet.to, packet.protocol, packet.port),
                rules.egress_allows(packet.from, packet.to, packet.protocol, packet.port),
            ];
            let (from, to) = (cluster.view.pods.get(&packet.from), cluster.view.pods.get(&packet.to));
            let policies = || serde_json::to_string(&cluster.view.policies).unwrap_or_default();
            assert_eq!(ours, theirs, "[ingress, egress] of {packet:?}, from {from:?} to {to:?}, with {}", policies());
            if ours == [true, true] { open += 1 } else { closed += 1 }
        }
        answered += 1;
    }
    assert_eq!(answered, CLUSTERS);
    println!("{open} connections pass and {closed} do not, by both readings");
    // Neither verdict is so rare that the agreement would mean little.
    assert!(open > 10_000 && closed > 10_000, "{open} open, {closed} closed");
}

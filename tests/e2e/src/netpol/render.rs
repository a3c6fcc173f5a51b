//! From what each pod may do to one nftables table.

use std::{collections::BTreeMap, fmt::Write, net::Ipv4Addr};

use super::{Allow, Isolation, Peers, Ports, Rules};

/// The table of policies in a node's network.
pub const TABLE: &str = "torpor_netpol";

/// The whole table, to be applied at once. `pods` is the range of the node's pods.
pub fn render(rules: &Rules, pods: &str) -> String {
    let mut text = format!("table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n");
    for (direction, isolated) in [("ingress", &rules.ingress), ("egress", &rules.egress)] {
        for (address, isolation) in isolated {
            chain(&mut text, direction, *address, isolation);
        }
    }
    // Answers first: an established connection stays. Then what no known pod can have sent or asked for. A packet
    // between two pods of the node meets both chains.
    let strangers = ["saddr", "daddr"].map(|end| stranger(end, pods, &rules.known)).concat();
    let egress = jumps("saddr", "egress", &rules.egress);
    let ingress = jumps("daddr", "ingress", &rules.ingress);
    let from_strangers = stranger("saddr", pods, &rules.known);
    let _ = write!(
        text,
        "  chain forward {{
    type filter hook forward priority -5; policy accept;
    ct state established,related accept
{strangers}{egress}{ingress}  }}
  chain input {{
    type filter hook input priority -5; policy accept;
    ct state established,related accept
{from_strangers}{egress}  }}
}}
"
    );
    text
}

fn name(direction: &str, address: Ipv4Addr) -> String {
    format!("{direction}_{}", address.to_string().replace('.', "_"))
}

fn chain(text: &mut String, direction: &str, pod: Ipv4Addr, isolation: &Isolation) {
    let end = if direction == "ingress" { "saddr" } else { "daddr" };
    let _ = writeln!(text, "  chain {} {{", name(direction, pod));
    // A pod always reaches itself, also through a Service.
    let _ = writeln!(text, "    ip {end} {pod} return");
    for Allow { peers, ports } in &isolation.allow {
        let words = [peer(end, peers), port(ports), "return".into()];
        let words: Vec<String> = words.into_iter().filter(|word| !word.is_empty()).collect();
        let _ = writeln!(text, "    {}", words.join(" "));
    }
    let _ = writeln!(text, "    counter drop\n  }}");
}

fn peer(end: &str, peers: &Peers) -> String {
    match peers {
        Peers::Any => String::new(),
        Peers::Pods(addresses) => format!("ip {end} {}", set(addresses)),
        Peers::Block { cidr, except } => {
            // One match each: the parts of a set must not overlap, and those of a policy may.
            let except: String = except.iter().map(|cidr| format!(" ip {end} != {cidr}")).collect();
            format!("ip {end} {cidr}{except}")
        }
    }
}

fn port(ports: &Ports) -> String {
    match ports {
        Ports::All => String::new(),
        Ports::Protocol(protocol) => format!("meta l4proto {}", protocol.as_str()),
        Ports::Range(protocol, first, last) if first == last => format!("{} dport {first}", protocol.as_str()),
        Ports::Range(protocol, first, last) => format!("{} dport {first}-{last}", protocol.as_str()),
    }
}

fn jumps(end: &str, direction: &str, isolated: &BTreeMap<Ipv4Addr, Isolation>) -> String {
    if isolated.is_empty() {
        return String::new();
    }
    let jumps: Vec<String> =
        isolated.keys().map(|address| format!("{address} : jump {}", name(direction, *address))).collect();
    format!("    ip {end} vmap {{ {} }}\n", jumps.join(", "))
}

fn stranger(end: &str, pods: &str, known: &[Ipv4Addr]) -> String {
    let but = if known.is_empty() { String::new() } else { format!(" ip {end} != {}", set(known)) };
    format!("    ip {end} {pods}{but} counter drop\n")
}

fn set(addresses: &[Ipv4Addr]) -> String {
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    format!("{{ {} }}", addresses.join(", "))
}

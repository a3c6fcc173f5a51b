//! What the rules say about one new connection; for those who compare them with others' reading of the policies.

use std::{collections::BTreeMap, net::Ipv4Addr};

use super::{Allow, Isolation, Ports, Protocol, Rules};

impl Rules {
    /// Whether the receiver may be spoken to.
    pub fn ingress_allows(&self, from: Ipv4Addr, to: Ipv4Addr, protocol: Protocol, port: u16) -> bool {
        allows(&self.ingress, to, from, protocol, port)
    }

    /// Whether the sender may speak.
    pub fn egress_allows(&self, from: Ipv4Addr, to: Ipv4Addr, protocol: Protocol, port: u16) -> bool {
        allows(&self.egress, from, to, protocol, port)
    }
}

fn allows(
    isolated: &BTreeMap<Ipv4Addr, Isolation>,
    pod: Ipv4Addr,
    peer: Ipv4Addr,
    protocol: Protocol,
    port: u16,
) -> bool {
    let allowed = |isolation: &Isolation| isolation.allow.iter().any(|allow| matches(allow, peer, protocol, port));
    pod == peer || isolated.get(&pod).is_none_or(allowed)
}

fn matches(allow: &Allow, peer: Ipv4Addr, protocol: Protocol, port: u16) -> bool {
    let ports = match allow.ports {
        Ports::All => true,
        Ports::Protocol(allowed) => allowed == protocol,
        Ports::Range(allowed, first, last) => allowed == protocol && (first..=last).contains(&port),
    };
    allow.peers.include(peer) && ports
}

//! From policies to what each pod may do.

use std::{collections::BTreeMap, net::Ipv4Addr};

use k8s_openapi::{
    api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use kube::core::{Selector, SelectorExt};

use super::{Pod, View};

/// What an isolated pod may do in one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Isolation {
    /// Anything that matches one of these passes.
    pub allow: Vec<Allow>,
}

/// Traffic that passes: with any of these peers, on any of these ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allow {
    /// The other end.
    pub peers: Peers,
    /// Ports of the receiving end.
    pub ports: Ports,
}

/// The other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peers {
    /// Everybody.
    Any,
    /// Pods, by their addresses.
    Pods(Vec<Ipv4Addr>),
    /// A range without some of its parts, as CIDRs.
    Block {
        /// The range.
        cidr: String,
        /// What is not meant of it.
        except: Vec<String>,
    },
}

impl Peers {
    /// Whether the address is meant.
    pub fn include(&self, address: Ipv4Addr) -> bool {
        match self {
            Self::Any => true,
            Self::Pods(addresses) => addresses.contains(&address),
            Self::Block { cidr, except } => within(cidr, address) && !except.iter().any(|cidr| within(cidr, address)),
        }
    }
}

/// Ports of the receiving end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// Every port of every protocol, and protocols without ports.
    All,
    /// Every port of a protocol.
    Protocol(Protocol),
    /// Ports from the first to the last.
    Range(Protocol, u16, u16),
}

/// Protocols that policies know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// From its name in the API; TCP if there is none, nothing if we don't know it.
    pub fn parse(name: Option<&str>) -> Option<Self> {
        match name {
            None | Some("TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some("SCTP") => Some(Self::Sctp),
            Some(_) => None,
        }
    }

    /// Its name in nftables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// Isolated pods of a node by direction; a pod that is not there is not isolated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Addresses of all of the node's pods.
    pub known: Vec<Ipv4Addr>,
    /// Isolated for what it receives.
    pub ingress: BTreeMap<Ipv4Addr, Isolation>,
    /// Isolated for what it sends.
    pub egress: BTreeMap<Ipv4Addr, Isolation>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

/// What the pods of a node may do.
pub fn compile(view: &View, node: &str) -> Rules {
    let mut rules = Rules::default();
    for (address, pod) in view.pods.iter().filter(|(_, pod)| pod.node == node) {
        rules.known.push(*address);
        for policy in &view.policies {
            let Some(spec) = selecting(policy, pod) else { continue };
            let namespace = pod.namespace.as_str();
            if names(spec, Direction::Ingress) {
                let isolation = rules.ingress.entry(*address).or_default();
                for rule in spec.ingress.iter().flatten() {
                    allow(
                        view,
                        namespace,
                        Some(pod),
                        rule.from.as_deref(),
                        rule.ports.as_deref(),
                        &mut isolation.allow,
                    );
                }
            }
            if names(spec, Direction::Egress) {
                let isolation = rules.egress.entry(*address).or_default();
                for rule in spec.egress.iter().flatten() {
                    allow(view, namespace, None, rule.to.as_deref(), rule.ports.as_deref(), &mut isolation.allow);
                }
            }
        }
    }
    rules
}

/// The policy's rules if it selects the pod.
fn selecting<'a>(policy: &'a NetworkPolicy, pod: &Pod) -> Option<&'a NetworkPolicySpec> {
    let spec = policy.spec.as_ref()?;
    let same_namespace = policy.metadata.namespace.as_ref() == Some(&pod.namespace);
    let selected = spec.pod_selector.as_ref().is_none_or(|selector| matches(selector, &pod.labels));
    (same_namespace && selected).then_some(spec)
}

fn names(spec: &NetworkPolicySpec, direction: Direction) -> bool {
    match (&spec.policy_types, direction) {
        (Some(types), Direction::Ingress) => types.iter().any(|name| name == "Ingress"),
        (Some(types), Direction::Egress) => types.iter().any(|name| name == "Egress"),
        (None, Direction::Ingress) => true,
        (None, Direction::Egress) => spec.egress.is_some(),
    }
}

/// Adds what one rule allows. `receiver` is the selected pod of an ingress rule; of an egress rule each peer is one.
fn allow(
    view: &View,
    namespace: &str,
    receiver: Option<&Pod>,
    peers: Option<&[NetworkPolicyPeer]>,
    ports: Option<&[NetworkPolicyPort]>,
    allowed: &mut Vec<Allow>,
) {
    let (named, numbered): (Vec<_>, Vec<_>) = ports.unwrap_or_default().iter().partition(|port| is_named(port));
    let mut ends: Vec<Peers> = match peers.unwrap_or_default() {
        [] => vec![Peers::Any],
        peers => peers.iter().filter_map(|peer| end(view, namespace, peer)).collect(),
    };
    ends.retain(|end| !matches!(end, Peers::Pods(pods) if pods.is_empty()));
    if ports.is_none_or(<[_]>::is_empty) {
        allowed.extend(ends.into_iter().map(|peers| Allow { peers, ports: Ports::All }));
        return;
    }
    let numbered: Vec<Ports> = numbered.into_iter().filter_map(number).collect();
    for peers in &ends {
        allowed.extend(numbered.iter().map(|ports| Allow { peers: peers.clone(), ports: ports.clone() }));
    }
    for port in named {
        match receiver {
            Some(pod) => {
                for ports in resolve(port, pod) {
                    allowed.extend(ends.iter().map(|peers| Allow { peers: peers.clone(), ports: ports.clone() }));
                }
            }
            // Each receiver has its own number for the name; what is not a pod has no names.
            None => {
                for (address, pod) in view.pods.iter().filter(|(at, _)| ends.iter().any(|end| end.include(**at))) {
                    let peers = Peers::Pods(vec![*address]);
                    allowed.extend(resolve(port, pod).map(|ports| Allow { peers: peers.clone(), ports }));
                }
            }
        }
    }
}

fn end(view: &View, namespace: &str, peer: &NetworkPolicyPeer) -> Option<Peers> {
    match &peer.ip_block {
        Some(block) => range(block),
        None => Some(Peers::Pods(pods(view, namespace, peer))),
    }
}

fn is_named(port: &NetworkPolicyPort) -> bool {
    matches!(port.port, Some(IntOrString::String(_)))
}

fn number(port: &NetworkPolicyPort) -> Option<Ports> {
    let protocol = Protocol::parse(port.protocol.as_deref())?;
    match &port.port {
        None => Some(Ports::Protocol(protocol)),
        Some(IntOrString::Int(first)) => {
            let first = u16::try_from(*first).ok()?;
            let last = port.end_port.map_or(Some(first), |last| u16::try_from(last).ok())?;
            Some(Ports::Range(protocol, first, last))
        }
        Some(IntOrString::String(_)) => None,
    }
}

/// What the receiving pod calls by the port's name.
fn resolve<'a>(port: &'a NetworkPolicyPort, pod: &'a Pod) -> impl Iterator<Item = Ports> + 'a {
    let protocol = Protocol::parse(port.protocol.as_deref());
    let wanted = match &port.port {
        Some(IntOrString::String(name)) => Some(name),
        _ => None,
    };
    let meant = pod.ports.iter().filter(move |port| Some(port.protocol) == protocol && Some(&port.name) == wanted);
    meant.map(|port| Ports::Range(port.protocol, port.number, port.number))
}

fn pods(view: &View, namespace: &str, peer: &NetworkPolicyPeer) -> Vec<Ipv4Addr> {
    let in_namespace = |pod: &Pod| match &peer.namespace_selector {
        None => pod.namespace == namespace,
        // A namespace that we have not heard of yet has no labels that could be matched.
        Some(selector) => view.namespaces.get(&pod.namespace).is_some_and(|labels| matches(selector, labels)),
    };
    let selected = |pod: &Pod| peer.pod_selector.as_ref().is_none_or(|selector| matches(selector, &pod.labels));
    view.pods.iter().filter(|(_, pod)| in_namespace(pod) && selected(pod)).map(|(address, _)| *address).collect()
}

fn range(block: &IPBlock) -> Option<Peers> {
    let is_v4 = |cidr: &&String| cidr.split_once('/').is_some_and(|(address, _)| address.parse::<Ipv4Addr>().is_ok());
    is_v4(&&block.cidr).then(|| Peers::Block {
        cidr: block.cidr.clone(),
        except: block.except.iter().flatten().filter(is_v4).cloned().collect(),
    })
}

/// A selector that says something we don't understand selects nothing.
fn matches(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    Selector::try_from(selector.clone()).is_ok_and(|selector| selector.matches(labels))
}

fn within(cidr: &str, address: Ipv4Addr) -> bool {
    let Some((base, length)) = cidr.split_once('/') else {
        return false;
    };
    let (Ok(base), Ok(length @ 0..=32)) = (base.parse::<Ipv4Addr>(), length.parse::<u32>()) else {
        return false;
    };
    // A shift by the whole width is what a length of zero means.
    let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
    base.to_bits() & mask == address.to_bits() & mask
}

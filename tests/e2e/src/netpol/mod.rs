//! NetworkPolicies (networking.k8s.io/v1) enforced on the packets of one node, by nftables.
//!
//! **This is our own reading of the specification**, made because no published enforcer can be built from a Go module
//! here; results that rest on it say so. The rules, as we read them:
//!
//! - A pod is isolated in a direction as soon as one policy of its namespace selects it and names that direction. Then
//!   what any such policy allows passes, and nothing else. Directions are independent: a connection between two pods
//!   needs the leave of the sender's egress and of the receiver's ingress. Answers need none.
//! - A policy without `policyTypes` is for ingress, and for egress too if it has egress rules.
//! - A peer with selectors means pods: of the policy's own namespace unless it has a `namespaceSelector`. A peer with an
//!   `ipBlock` means addresses, whoever has them. A rule without peers means everybody.
//! - A port without a number means all ports of its protocol, TCP if it names none; a named port means what the
//!   *receiving* pod calls so. A rule without ports means all traffic.
//! - The node reaches its own pods always (probes), and a pod reaches itself. A pod reaches its node, the API server and
//!   other hosts only as its egress policies allow: they are addresses like others.
//! - What counts is the packet after a Service's address was replaced by a pod's.
//! - Pods on the network of their host are hosts.
//! - A connection that is established stays so when a policy appears.
//!
//! One thing is stricter than the specification: packets from or to a pod address of the node that no known pod has are
//! dropped, so a new pod says nothing before its policies are in force.
//!
//! Each node enforces the egress of its own pods and the ingress of its own pods; IPv4 only, as the cluster is.

mod compile;
mod render;
mod verdict;
mod view;

pub use compile::{Allow, Isolation, Peers, Ports, Protocol, Rules, compile};
pub use render::{TABLE, render};
pub use view::{NamedPort, Pod, View, is_live};

/// The user as whom the API server knows the enforcer.
pub const USER: &str = "torpor-netpol";

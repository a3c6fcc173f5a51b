//! The part of the cluster's state that policies speak of.

use std::{collections::BTreeMap, net::Ipv4Addr};

use k8s_openapi::api::{core::v1 as core, networking::v1::NetworkPolicy};

use super::Protocol;

/// All pods with an address, all namespaces with their labels, all policies.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Pods by address.
    pub pods: BTreeMap<Ipv4Addr, Pod>,
    /// Labels by namespace.
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
    /// Policies of all namespaces.
    pub policies: Vec<NetworkPolicy>,
}

/// What policies can say about a pod.
#[derive(Clone, Debug, Default)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its node.
    pub node: String,
    /// Ports that have names.
    pub ports: Vec<NamedPort>,
}

/// A port that a pod has a name for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPort {
    /// The name.
    pub name: String,
    /// The protocol.
    pub protocol: Protocol,
    /// The number.
    pub number: u16,
}

impl View {
    /// The same from objects of the API. An address belongs to the youngest of the pods that claim it: the others have
    /// lost it, which the API server is about to hear.
    pub fn new<'a>(
        pods: impl Iterator<Item = &'a core::Pod>,
        namespaces: impl Iterator<Item = &'a core::Namespace>,
        policies: impl Iterator<Item = &'a NetworkPolicy>,
    ) -> Self {
        let mut pods: Vec<&core::Pod> = pods.filter(|pod| is_live(pod)).collect();
        pods.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
        let name = |meta: &Option<String>| meta.clone().unwrap_or_default();
        let mut policies: Vec<NetworkPolicy> = policies.cloned().collect();
        policies.sort_by_key(|policy| (name(&policy.metadata.namespace), name(&policy.metadata.name)));
        Self {
            pods: pods.into_iter().filter_map(|pod| Some((address(pod)?, Pod::from(pod)))).collect(),
            namespaces: namespaces
                .map(|namespace| {
                    (name(&namespace.metadata.name), namespace.metadata.labels.clone().unwrap_or_default())
                })
                .collect(),
            policies,
        }
    }
}

/// Whether the pod has an address of its own in use.
pub fn is_live(pod: &core::Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let host_network = pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or_default();
    !host_network && !matches!(phase, Some("Succeeded" | "Failed")) && address(pod).is_some()
}

fn address(pod: &core::Pod) -> Option<Ipv4Addr> {
    pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()
}

impl From<&core::Pod> for Pod {
    fn from(pod: &core::Pod) -> Self {
        let spec = pod.spec.clone().unwrap_or_default();
        // Among init containers only those that keep running can listen.
        let init = spec.init_containers.into_iter().flatten().filter(|container| container.restart_policy.is_some());
        let ports = spec.containers.into_iter().chain(init).flat_map(|container| container.ports.unwrap_or_default());
        Self {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            node: spec.node_name.unwrap_or_default(),
            ports: ports
                .filter_map(|port| {
                    Some(NamedPort {
                        name: port.name?,
                        protocol: Protocol::parse(port.protocol.as_deref())?,
                        number: u16::try_from(port.container_port).ok()?,
                    })
                })
                .collect(),
        }
    }
}

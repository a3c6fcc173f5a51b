//! The frames around pods: `StatefulSets`, Deployments, Services.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentSpec, DeploymentStrategy, StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy,
    StatefulSetSpec, StatefulSetUpdateStrategy,
};
use k8s_openapi::api::core::v1::{ContainerPort, Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::pod::{self, Pod};
use super::scope::Scope;
use crate::domain::names::Component;
use crate::domain::quantity::Bytes;

/// Old revisions that Kubernetes keeps: just the one before. Each is an object of its own.
const REVISIONS: i32 = 1;

/// A `StatefulSet` around one part's pods.
pub(super) struct Workload<'a> {
    pub name: &'a str,
    /// Service that gives the pods their names.
    pub service: &'a str,
    pub replicas: i32,
    /// Size of the volume of each pod.
    pub claim: Option<Bytes>,
    /// Hash of what warrants a restart, for the operator to compare with that of the pods.
    pub restart_hash: &'a str,
}

impl Workload<'_> {
    pub fn stateful_set(self, scope: &Scope, pod: Pod) -> StatefulSet {
        let component = pod.component;
        let mut metadata = scope.owned(self.name, component);
        metadata.annotations = Some(pod::restart_annotation(self.restart_hash));
        StatefulSet {
            metadata,
            spec: Some(StatefulSetSpec {
                // Claims are data: no deletion and no smaller number of replicas removes them. Who
                // wants them gone says so in the Tenant's deletionPolicy.
                persistent_volume_claim_retention_policy: Some(StatefulSetPersistentVolumeClaimRetentionPolicy {
                    when_deleted: Some("Retain".to_owned()),
                    when_scaled: Some("Retain".to_owned()),
                }),
                // Bots do not wait for each other; with one replica the order is the same.
                pod_management_policy: Some("Parallel".to_owned()),
                replicas: Some(self.replicas),
                revision_history_limit: Some(REVISIONS),
                selector: scope.selector(component),
                service_name: Some(self.service.to_owned()),
                template: scope.template(pod),
                // Kubernetes would replace pods at every difference of the template, be it a label or a
                // setting of a newer operator. The operator replaces them itself, one at a time, and
                // only those whose restart hash differs.
                update_strategy: Some(StatefulSetUpdateStrategy {
                    type_: Some("OnDelete".to_owned()),
                    rolling_update: None,
                }),
                volume_claim_templates: self.claim.map(|storage| vec![scope.claim(component, storage)]),
                ..StatefulSetSpec::default()
            }),
            status: None,
        }
    }
}

/// A Deployment of one pod. `Recreate` because quota and licences know of one pod, not of two.
pub(super) fn deployment(scope: &Scope, name: &str, replicas: i32, pod: Pod) -> Deployment {
    let component = pod.component;
    Deployment {
        metadata: scope.owned(name, component),
        spec: Some(DeploymentSpec {
            replicas: Some(replicas),
            revision_history_limit: Some(REVISIONS),
            selector: scope.selector(component),
            strategy: Some(DeploymentStrategy { type_: Some("Recreate".to_owned()), rolling_update: None }),
            template: scope.template(pod),
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

/// A stable address for one part, with one port of that name.
pub(super) fn cluster_service(scope: &Scope, name: &str, component: Component, port: &str, number: i32) -> Service {
    Service {
        metadata: scope.owned(name, component),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            selector: Some(scope.identity(component)),
            ports: Some(vec![ServicePort {
                name: Some(port.to_owned()),
                port: number,
                protocol: Some("TCP".to_owned()),
                target_port: Some(IntOrString::String(port.to_owned())),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// The Service that gives bots their names. It has no port, because nothing connects to a bot, and
/// lists bots that are not ready, too, so that a name means a pod.
pub(super) fn headless_service(scope: &Scope, name: &str, component: Component) -> Service {
    Service {
        metadata: scope.owned(name, component),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            publish_not_ready_addresses: Some(true),
            selector: Some(scope.identity(component)),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// A port of a container, with a name for Services and probes.
pub(super) fn container_port(name: &str, number: i32) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: number,
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }
}

/// Text for a map of an object.
pub(super) fn texts<const N: usize>(entries: [(&str, &str); N]) -> BTreeMap<String, String> {
    entries.map(|(key, text)| (key.to_owned(), text.to_owned())).into()
}

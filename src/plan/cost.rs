//! What planned objects ask of the scheduler.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::Child;
use crate::domain::quantity::{Bytes, Cpu, Size};

/// Sum of what the pods of these objects request, by the workloads' replicas. Pass the objects of a
/// tenant and those of its fleets together for the whole of it.
pub fn cost(children: &[Child]) -> Size {
    children.iter().filter_map(pods).map(|(replicas, pod)| requests(pod) * i64::from(replicas)).sum()
}

/// Replicas and pod of a workload.
pub fn pods(child: &Child) -> Option<(i32, &PodSpec)> {
    let (replicas, template) = match child {
        Child::StatefulSet(object) => object.spec.as_ref().map(|spec| (spec.replicas, &spec.template))?,
        Child::Deployment(object) => object.spec.as_ref().map(|spec| (spec.replicas, &spec.template))?,
        Child::Namespace(_)
        | Child::ServiceAccount(_)
        | Child::NetworkPolicy(_)
        | Child::ResourceQuota(_)
        | Child::LimitRange(_)
        | Child::Secret(_)
        | Child::ConfigMap(_)
        | Child::Service(_)
        | Child::Ingress(_)
        | Child::PodDisruptionBudget(_)
        | Child::BotFleet(_) => return None,
    };
    Some((replicas.unwrap_or(1), template.spec.as_ref()?))
}

/// What the scheduler counts: all containers, or the largest init container if that is more.
fn requests(pod: &PodSpec) -> Size {
    let running: Size = pod.containers.iter().map(request).sum();
    pod.init_containers
        .iter()
        .flatten()
        .map(request)
        .fold(running, |most, init| Size { cpu: most.cpu.max(init.cpu), memory: most.memory.max(init.memory) })
}

/// What a container may use; what it does not say is 0.
pub fn limit(container: &Container) -> Size {
    let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
    limits.map(size).unwrap_or_default()
}

fn request(container: &Container) -> Size {
    let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    requests.map(size).unwrap_or_default()
}

/// The size that a map of quantities says; what it does not say is 0.
pub(super) fn size(quantities: &BTreeMap<String, Quantity>) -> Size {
    let text = |key: &str| quantities.get(key).map_or("0", |quantity| quantity.0.as_str());
    Size { cpu: Cpu::parse(text("cpu")).unwrap_or_default(), memory: Bytes::parse(text("memory")).unwrap_or_default() }
}

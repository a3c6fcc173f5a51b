//! What a tenant may use in sum, and what one container may.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{LimitRange, LimitRangeItem, LimitRangeSpec, ResourceQuota, ResourceQuotaSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::Child;
use super::pod::{quantities, service_requests};
use super::scope::Scope;
use crate::domain::names::Component;
use crate::domain::quantity::{Bytes, Cpu, Size};
use crate::validate::ValidatedTenant;

/// Name of both objects.
const NAME: &str = "tenant";
/// Pods besides bots: database, Redis, dashboard, exporter and one backup job.
const SERVICE_PODS: i64 = 5;
/// Volumes besides those of bots: database and Redis.
const SERVICE_VOLUMES: i64 = 2;
/// Volumes for each bot: its own, and those kept of fleets that were deleted or made smaller. Kept
/// volumes are listed in the Tenant's status; this bounds them.
const VOLUMES_PER_BOT: i64 = 4;
/// Limits of a container that names none, such as one a person starts to look around.
const DEFAULT_LIMITS: Size = Size { cpu: Cpu(100), memory: Bytes::mi(128) };

pub(super) fn plan(scope: &Scope, tenant: &ValidatedTenant) -> Vec<Child> {
    vec![Child::ResourceQuota(quota(scope, tenant)), Child::LimitRange(limit_range(scope, tenant))]
}

/// Services, all bots and a backup job, exactly. Nothing else needs more for a moment: `StatefulSets` replace pods in
/// place, and Deployments end the old pod before they start the new one.
///
/// CPU limits are counted only where starting pods get no more than their own. A quota is charged for each attempt to
/// raise a running pod's limit, and again where the attempt meets a conflict, but gets nothing back when the limit is
/// lowered: only once a pod of the namespace has gone, or all quotas are counted anew every five minutes
/// (`resource-quota-sync-period` of kube-controller-manager; kubernetes#127132 mended this for requests). Whatever the
/// room, the last bots of a waking tenant could be refused for so long. What it may take at most is bounded by the number
/// of pods and the largest limit of a container, and what nodes set aside for it by `requests`.
fn quota(scope: &Scope, tenant: &ValidatedTenant) -> ResourceQuota {
    let bots = i64::from(tenant.plan.max_bots);
    let limits = tenant.plan.total + tenant.bot * bots + tenant.backup_job;
    let requests =
        service_requests(tenant.plan.total) + tenant.bot_request * bots + service_requests(tenant.backup_job);
    let cpu_limits = (tenant.start_cpu == Cpu(0)).then(|| ("limits.cpu", limits.cpu.to_string()));
    let hard: BTreeMap<String, Quantity> = [
        ("limits.memory", limits.memory.to_string()),
        ("requests.cpu", requests.cpu.to_string()),
        ("requests.memory", requests.memory.to_string()),
        ("pods", (SERVICE_PODS + bots).to_string()),
        ("persistentvolumeclaims", (SERVICE_VOLUMES + VOLUMES_PER_BOT * bots).to_string()),
    ]
    .into_iter()
    .chain(cpu_limits)
    .map(|(key, value)| (key.to_owned(), Quantity(value)))
    .collect();
    ResourceQuota {
        metadata: scope.owned(NAME, Component::Tenant),
        spec: Some(ResourceQuotaSpec { hard: Some(hard), ..ResourceQuotaSpec::default() }),
        status: None,
    }
}

/// The quota with room for what `now` allows, too: pods that are to become smaller go one at a time, and the next one only starts beside
/// all those that are as large as before. What `now` does not count is not counted yet.
pub fn roomy(wanted: &ResourceQuota, now: &ResourceQuotaSpec) -> ResourceQuota {
    let mut roomy = wanted.clone();
    let hard = roomy.spec.get_or_insert_default().hard.get_or_insert_default();
    hard.retain(|key, most| {
        let Some(now) = now.hard.as_ref().and_then(|hard| hard.get(key)) else { return false };
        // CPU is the only one with a finer unit than one; as such they can all be compared.
        let count = |quantity: &Quantity| Cpu::parse(&quantity.0).unwrap_or_default();
        if count(now) > count(most) {
            most.clone_from(now);
        }
        true
    });
    roomy
}

/// The quota refuses pods that do not say what they need, so those get a small default. One
/// container may take as much as the larger of all services and all bots, which is what the
/// largest overrides add up to, or what it may have while it starts.
fn limit_range(scope: &Scope, tenant: &ValidatedTenant) -> LimitRange {
    let services = tenant.plan.total;
    let bots = tenant.bot * i64::from(tenant.plan.max_bots);
    let most = Size { cpu: services.cpu.max(bots.cpu).max(tenant.start_cpu), memory: services.memory.max(bots.memory) };
    let item = LimitRangeItem {
        type_: "Container".to_owned(),
        default: Some(quantities(DEFAULT_LIMITS)),
        default_request: Some(quantities(service_requests(DEFAULT_LIMITS))),
        max: Some(quantities(most)),
        ..LimitRangeItem::default()
    };
    LimitRange { metadata: scope.owned(NAME, Component::Tenant), spec: Some(LimitRangeSpec { limits: vec![item] }) }
}

//! Every name, label and annotation that Torpor writes or reads, in one place.

use std::collections::BTreeMap;

use crate::api::Tier;

/// Field manager of the operator. Renaming it would orphan every field it owns.
pub const OPERATOR: &str = "torpor-operator";
/// Field manager of the hibernator.
pub const HIBERNATOR: &str = "torpor-hibernator";
/// Field manager of the gateway.
pub const GATEWAY: &str = "torpor-gateway";

/// Finalizer of Tenant and `BotFleet`.
pub const FINALIZER: &str = "torpor.dev/finalizer";

/// Labels.
pub mod label {
    /// Tenant that an object belongs to.
    pub const TENANT: &str = "torpor.dev/tenant";
    /// Tier of the tenant.
    pub const TIER: &str = "torpor.dev/tier";
    /// Pool that a node belongs to.
    pub const POOL: &str = "torpor.dev/pool";
    /// Fleet that a bot belongs to.
    pub const FLEET: &str = "torpor.dev/fleet";
    /// Kubernetes' recommended label for the program's name.
    pub const NAME: &str = "app.kubernetes.io/name";
    /// Kubernetes' recommended label for the instance of the program.
    pub const INSTANCE: &str = "app.kubernetes.io/instance";
    /// Kubernetes' recommended label for the part that an object plays.
    pub const COMPONENT: &str = "app.kubernetes.io/component";
    /// Kubernetes' recommended label for the application as a whole.
    pub const PART_OF: &str = "app.kubernetes.io/part-of";
    /// Kubernetes' recommended label for the tool that manages an object.
    pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
    /// Value of [`MANAGED_BY`] and [`PART_OF`] on everything Torpor makes.
    pub const TORPOR: &str = "torpor";
    /// Selector of everything Torpor manages.
    pub const MANAGED_SELECTOR: &str = "app.kubernetes.io/managed-by=torpor";
}

/// Annotations.
pub mod annotation {
    /// Hash of an object as the operator last applied it.
    pub const APPLIED_HASH: &str = "torpor.dev/applied-hash";
    /// Hash, on a workload and on its pod template, of what warrants a restart of the pod.
    pub const RESTART_HASH: &str = "torpor.dev/restart-hash";
    /// Activity told by a portal, RFC 3339.
    pub const LAST_ACTIVITY: &str = "torpor.dev/last-activity";
    /// A wish to wake, RFC 3339.
    pub const WAKE_REQUESTED_AT: &str = "torpor.dev/wake-requested-at";
    /// A wish to sleep, RFC 3339.
    pub const SLEEP_REQUESTED_AT: &str = "torpor.dev/sleep-requested-at";
    /// Those that tell of a user's activity or wish.
    pub const ACTIVITY: [&str; 3] = [LAST_ACTIVITY, WAKE_REQUESTED_AT, SLEEP_REQUESTED_AT];
    /// A user's answer to the question whether the tenant may sleep; the one answer is `approved`.
    pub const HIBERNATE: &str = "torpor.dev/hibernate";
    /// On the breaker's ConfigMap: sleep is held by hand as long as it is there; its value says why.
    pub const BREAKER_HOLD: &str = "torpor.dev/hold";
    /// On the breaker's ConfigMap: the opening (its `since`) that somebody has looked at and released.
    pub const BREAKER_RELEASE: &str = "torpor.dev/release";
    /// Host name of a dashboard.
    pub const HOST: &str = "torpor.dev/host";
    /// On a node: the pool on whose behalf the operator put label or taint there.
    pub const NODE_POOL: &str = "torpor.dev/managed-pool";
    /// On a pod: autoscalers must not move it.
    pub const SAFE_TO_EVICT: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict";
}

/// Part of a tenant's stack that an object serves; the value of `app.kubernetes.io/component`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Component {
    /// Namespace, policies, quota: what all parts stand on.
    Tenant,
    /// `PostgreSQL`.
    Database,
    /// Redis.
    Redis,
    /// Dashboard.
    Dashboard,
    /// Metrics exporter.
    Monitoring,
    /// Bots.
    Bot,
}

impl Component {
    /// Every part.
    pub const ALL: [Component; 6] = [
        Component::Tenant,
        Component::Database,
        Component::Redis,
        Component::Dashboard,
        Component::Monitoring,
        Component::Bot,
    ];

    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Component::Tenant => "tenant",
            Component::Database => "database",
            Component::Redis => "redis",
            Component::Dashboard => "dashboard",
            Component::Monitoring => "monitoring",
            Component::Bot => "bot",
        }
    }

    /// The part of this label value.
    pub fn named(value: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|component| component.as_str() == value)
    }

    /// The program that the part runs; the value of `app.kubernetes.io/name`.
    pub const fn program(self) -> &'static str {
        match self {
            Component::Tenant => "torpor",
            Component::Database => "postgresql",
            Component::Redis => "redis",
            Component::Dashboard => "hummingbot-dashboard",
            Component::Monitoring => "postgres-exporter",
            Component::Bot => "hummingbot",
        }
    }
}

/// Namespace of a tenant.
pub fn namespace(tenant: &str) -> String {
    format!("tenant-{tenant}")
}

/// Tenant of a namespace, if the namespace has the form of one.
pub fn tenant_of_namespace(namespace: &str) -> Option<&str> {
    namespace.strip_prefix("tenant-")
}

/// Whether a namespace with these labels is this tenant's, and Torpor's to manage.
pub fn is_home(labels: Option<&BTreeMap<String, String>>, tenant: &str) -> bool {
    is_labelled(labels, label::TENANT, tenant) && is_managed(labels)
}

/// Whether an object with these labels is Torpor's to manage.
pub fn is_managed(labels: Option<&BTreeMap<String, String>>) -> bool {
    is_labelled(labels, label::MANAGED_BY, label::TORPOR)
}

fn is_labelled(labels: Option<&BTreeMap<String, String>>, key: &str, value: &str) -> bool {
    labels.and_then(|labels| labels.get(key)).is_some_and(|found| found == value)
}

/// `NetworkPolicy` of all pods of a tenant, which forbids what the others do not allow.
pub const ISOLATION: &str = "default";
/// `StatefulSet`, Service and `ConfigMap` of the database.
pub const DATABASE: &str = "postgres";
/// `StatefulSet`, Service and `ConfigMap` of Redis.
pub const REDIS: &str = "redis";
/// Deployment and Service of the dashboard.
pub const DASHBOARD: &str = "dashboard";
/// Deployment of the metrics exporter.
pub const MONITORING: &str = "monitoring";
/// Headless Service of all bots of a tenant.
pub const BOTS: &str = "bots";
/// Claim template of every `StatefulSet`'s volume.
pub const DATA_CLAIM: &str = "data";
/// Volume of a bot's pod with the exchange credentials of its fleet.
pub const KEYS_VOLUME: &str = "exchange";
/// Generated Secret of a tenant.
pub const SECRET: &str = "torpor-generated";
/// `ServiceAccount` of all pods of a tenant; it has no token and no rights.
pub const SERVICE_ACCOUNT: &str = "tenant";

/// What the names of a workload's claims are but for the ordinal of their pod, and a claim's name where `of` is a pod's.
pub fn claim(of: &str) -> String {
    format!("{DATA_CLAIM}-{of}")
}

/// `StatefulSet` and `ConfigMap` of a fleet. The prefix keeps it apart from `postgres` and `redis`.
pub fn fleet_workload(fleet: &str) -> String {
    format!("bots-{fleet}")
}

/// The fleet whose workload has this name.
pub fn fleet_of_workload(name: &str) -> Option<&str> {
    name.strip_prefix(BOTS)?.strip_prefix('-')
}

/// Whether a workload of this name is a fleet's.
pub fn is_fleet_workload(name: &str) -> bool {
    fleet_of_workload(name).is_some()
}

/// Labels that select the pods of one part. They never change during the life of a workload.
pub fn selector(tenant: &str, component: Component) -> BTreeMap<String, String> {
    [(label::TENANT, tenant), (label::COMPONENT, component.as_str())]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// Value of [`label::INSTANCE`]. Argo CD may take that label for the name of the Application that an object belongs to, and
/// would delete a namespace or a volume that it does not find in that Application's repository. No Application's name has
/// an underscore.
pub fn instance(tenant: &str) -> String {
    format!("torpor_{tenant}")
}

/// Labels of every object of a tenant. Those of pods are the same, so that one selector finds all.
pub fn labels(tenant: &str, tier: Tier, component: Component) -> BTreeMap<String, String> {
    let mut labels = selector(tenant, component);
    let instance = instance(tenant);
    for (key, value) in [
        (label::NAME, component.program()),
        (label::INSTANCE, &*instance),
        (label::PART_OF, label::TORPOR),
        (label::MANAGED_BY, label::TORPOR),
        (label::TIER, tier.as_str()),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{bot_fleet::MAX_FLEET_NAME, tenant::MAX_TENANT_NAME};

    #[test]
    fn longest_names_stay_legal() {
        let tenant = "t".repeat(MAX_TENANT_NAME);
        assert!(namespace(&tenant).len() <= 63);
        let workload = fleet_workload(&"f".repeat(MAX_FLEET_NAME));
        // Pods carry `controller-revision-hash: <workload>-<10 characters>` as a label's value.
        assert!(workload.len() + 11 <= 63);
        assert_eq!(tenant_of_namespace(&namespace("alice")), Some("alice"));
    }
}

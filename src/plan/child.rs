//! The kinds of objects that Torpor makes for a tenant, and one object of any of them.

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, LimitRange, Namespace, ResourceQuota, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::{Ingress, NetworkPolicy};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::ApiResource;
use serde::Serialize;
use serde_json::Value;

use crate::api::BotFleet;

/// Kind of a child, in the order in which children are applied: what pods stand on comes before pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChildKind {
    /// The tenant's namespace.
    Namespace,
    /// Identity of the pods, without a token.
    ServiceAccount,
    /// What may talk to what.
    NetworkPolicy,
    /// What the namespace may use in sum.
    ResourceQuota,
    /// What one container may use.
    LimitRange,
    /// Generated passwords; created once and never read.
    Secret,
    /// Configuration files.
    ConfigMap,
    /// Stable addresses.
    Service,
    /// The way in from outside of the cluster.
    Ingress,
    /// How many pods a node drain may take at a time.
    PodDisruptionBudget,
    /// Database, Redis, bots.
    StatefulSet,
    /// Dashboard, exporter.
    Deployment,
    /// Fleets written inside a Tenant.
    BotFleet,
}

impl ChildKind {
    /// Every kind, in apply order.
    pub const ALL: [ChildKind; 13] = [
        ChildKind::Namespace,
        ChildKind::ServiceAccount,
        ChildKind::NetworkPolicy,
        ChildKind::ResourceQuota,
        ChildKind::LimitRange,
        ChildKind::Secret,
        ChildKind::ConfigMap,
        ChildKind::Service,
        ChildKind::Ingress,
        ChildKind::PodDisruptionBudget,
        ChildKind::StatefulSet,
        ChildKind::Deployment,
        ChildKind::BotFleet,
    ];

    /// The kind's name; also the value of the metric label `kind`.
    pub const fn as_str(self) -> &'static str {
        match self {
            ChildKind::Namespace => "Namespace",
            ChildKind::ServiceAccount => "ServiceAccount",
            ChildKind::NetworkPolicy => "NetworkPolicy",
            ChildKind::ResourceQuota => "ResourceQuota",
            ChildKind::LimitRange => "LimitRange",
            ChildKind::Secret => "Secret",
            ChildKind::ConfigMap => "ConfigMap",
            ChildKind::Service => "Service",
            ChildKind::Ingress => "Ingress",
            ChildKind::PodDisruptionBudget => "PodDisruptionBudget",
            ChildKind::StatefulSet => "StatefulSet",
            ChildKind::Deployment => "Deployment",
            ChildKind::BotFleet => "BotFleet",
        }
    }

    /// Group, version, kind and plural, for requests.
    pub fn resource(self) -> ApiResource {
        match self {
            ChildKind::Namespace => ApiResource::erase::<Namespace>(&()),
            ChildKind::ServiceAccount => ApiResource::erase::<ServiceAccount>(&()),
            ChildKind::NetworkPolicy => ApiResource::erase::<NetworkPolicy>(&()),
            ChildKind::ResourceQuota => ApiResource::erase::<ResourceQuota>(&()),
            ChildKind::LimitRange => ApiResource::erase::<LimitRange>(&()),
            ChildKind::Secret => ApiResource::erase::<Secret>(&()),
            ChildKind::ConfigMap => ApiResource::erase::<ConfigMap>(&()),
            ChildKind::Service => ApiResource::erase::<Service>(&()),
            ChildKind::Ingress => ApiResource::erase::<Ingress>(&()),
            ChildKind::PodDisruptionBudget => ApiResource::erase::<PodDisruptionBudget>(&()),
            ChildKind::StatefulSet => ApiResource::erase::<StatefulSet>(&()),
            ChildKind::Deployment => ApiResource::erase::<Deployment>(&()),
            ChildKind::BotFleet => ApiResource::erase::<BotFleet>(&()),
        }
    }
}

/// One object that the operator wants to exist.
#[derive(Clone, Debug, PartialEq)]
pub enum Child {
    /// See [`ChildKind::Namespace`].
    Namespace(Namespace),
    /// See [`ChildKind::ServiceAccount`].
    ServiceAccount(ServiceAccount),
    /// See [`ChildKind::NetworkPolicy`].
    NetworkPolicy(NetworkPolicy),
    /// See [`ChildKind::ResourceQuota`].
    ResourceQuota(ResourceQuota),
    /// See [`ChildKind::LimitRange`].
    LimitRange(LimitRange),
    /// See [`ChildKind::Secret`]. Without values: they are made when it is created.
    Secret(Secret),
    /// See [`ChildKind::ConfigMap`].
    ConfigMap(ConfigMap),
    /// See [`ChildKind::Service`].
    Service(Service),
    /// See [`ChildKind::Ingress`].
    Ingress(Ingress),
    /// See [`ChildKind::PodDisruptionBudget`].
    PodDisruptionBudget(PodDisruptionBudget),
    /// See [`ChildKind::StatefulSet`]. Boxed: it is by far the largest.
    StatefulSet(Box<StatefulSet>),
    /// See [`ChildKind::Deployment`].
    Deployment(Box<Deployment>),
    /// See [`ChildKind::BotFleet`].
    BotFleet(Box<BotFleet>),
}

impl Child {
    /// Its kind.
    pub fn kind(&self) -> ChildKind {
        match self {
            Child::Namespace(_) => ChildKind::Namespace,
            Child::ServiceAccount(_) => ChildKind::ServiceAccount,
            Child::NetworkPolicy(_) => ChildKind::NetworkPolicy,
            Child::ResourceQuota(_) => ChildKind::ResourceQuota,
            Child::LimitRange(_) => ChildKind::LimitRange,
            Child::Secret(_) => ChildKind::Secret,
            Child::ConfigMap(_) => ChildKind::ConfigMap,
            Child::Service(_) => ChildKind::Service,
            Child::Ingress(_) => ChildKind::Ingress,
            Child::PodDisruptionBudget(_) => ChildKind::PodDisruptionBudget,
            Child::StatefulSet(_) => ChildKind::StatefulSet,
            Child::Deployment(_) => ChildKind::Deployment,
            Child::BotFleet(_) => ChildKind::BotFleet,
        }
    }

    /// Its metadata.
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Child::Namespace(object) => &object.metadata,
            Child::ServiceAccount(object) => &object.metadata,
            Child::NetworkPolicy(object) => &object.metadata,
            Child::ResourceQuota(object) => &object.metadata,
            Child::LimitRange(object) => &object.metadata,
            Child::Secret(object) => &object.metadata,
            Child::ConfigMap(object) => &object.metadata,
            Child::Service(object) => &object.metadata,
            Child::Ingress(object) => &object.metadata,
            Child::PodDisruptionBudget(object) => &object.metadata,
            Child::StatefulSet(object) => &object.metadata,
            Child::Deployment(object) => &object.metadata,
            Child::BotFleet(object) => &object.metadata,
        }
    }

    /// Its name; every child has one.
    pub fn name(&self) -> &str {
        self.metadata().name.as_deref().unwrap_or_default()
    }

    /// The object as it is sent and printed, with apiVersion and kind.
    pub fn to_value(&self) -> Value {
        match self {
            Child::Namespace(object) => value(object),
            Child::ServiceAccount(object) => value(object),
            Child::NetworkPolicy(object) => value(object),
            Child::ResourceQuota(object) => value(object),
            Child::LimitRange(object) => value(object),
            Child::Secret(object) => value(object),
            Child::ConfigMap(object) => value(object),
            Child::Service(object) => value(object),
            Child::Ingress(object) => value(object),
            Child::PodDisruptionBudget(object) => value(object),
            Child::StatefulSet(object) => value(object),
            Child::Deployment(object) => value(object),
            Child::BotFleet(object) => value(object),
        }
    }
}

/// Types made for JSON always serialise to it.
fn value<T: Serialize>(object: &T) -> Value {
    serde_json::to_value(object).unwrap_or(Value::Null)
}

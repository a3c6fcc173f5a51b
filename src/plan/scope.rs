//! What all objects of one owner share: names, labels, owner reference.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::Resource;
use serde_json::{Value, json};

use super::Settings;
use crate::api::{BotFleet, Tenant, Tier};
use crate::domain::names::{self, Component, label};
use crate::validate::{FleetContext, ValidatedFleet, ValidatedTenant};

/// The surroundings in which a part of the stack is planned.
pub(super) struct Scope<'a> {
    pub context: FleetContext,
    pub settings: &'a Settings,
    owner: Option<OwnerReference>,
    fleet: Option<&'a str>,
}

impl<'a> Scope<'a> {
    /// Objects that belong to a Tenant.
    pub fn of_tenant(tenant: &ValidatedTenant, settings: &'a Settings) -> Self {
        let owner = tenant.uid.as_deref().map(|uid| owner::<Tenant>(&tenant.name, uid));
        Scope { context: tenant.fleet_context(), settings, owner, fleet: None }
    }

    /// Objects that belong to a `BotFleet`.
    pub fn of_fleet(fleet: &'a ValidatedFleet, settings: &'a Settings) -> Self {
        let owner = fleet.uid.as_deref().map(|uid| owner::<BotFleet>(&fleet.name, uid));
        Scope { context: fleet.context.clone(), settings, owner, fleet: Some(&fleet.name) }
    }

    pub fn tenant(&self) -> &str {
        &self.context.tenant
    }

    pub fn namespace(&self) -> &str {
        &self.context.namespace
    }

    pub fn tier(&self) -> Tier {
        self.context.tier
    }

    /// What the tier says of where and how urgently pods run, for restart hashes. Without the list of pools: a pool
    /// that joins a tier should move nobody.
    pub fn placement(&self) -> Value {
        json!({"tier": self.tier(), "priorityClass": self.context.priority_class})
    }

    /// Metadata of an object that goes with its owner.
    pub fn owned(&self, name: &str, component: Component) -> ObjectMeta {
        let owner_references = self.owner.clone().map(|owner| vec![owner]);
        ObjectMeta { owner_references, ..self.kept(name, component) }
    }

    /// Metadata of an object that outlives its owner: no deletion of a Tenant, a CRD or a Helm
    /// release can have it collected.
    pub fn kept(&self, name: &str, component: Component) -> ObjectMeta {
        ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(self.namespace().to_owned()),
            labels: Some(self.labels(component)),
            ..ObjectMeta::default()
        }
    }

    /// Labels of objects and pods.
    pub fn labels(&self, component: Component) -> BTreeMap<String, String> {
        self.with_fleet(names::labels(self.tenant(), self.tier(), component))
    }

    /// Labels that tell this part's pods from all others. Immutable where they are used, and for
    /// that reason without the tier.
    pub fn identity(&self, component: Component) -> BTreeMap<String, String> {
        self.with_fleet(names::selector(self.tenant(), component))
    }

    /// Selector of this part's pods.
    pub fn selector(&self, component: Component) -> LabelSelector {
        LabelSelector { match_labels: Some(self.identity(component)), ..LabelSelector::default() }
    }

    fn with_fleet(&self, mut labels: BTreeMap<String, String>) -> BTreeMap<String, String> {
        if let Some(fleet) = self.fleet {
            labels.insert(label::FLEET.to_owned(), fleet.to_owned());
        }
        labels
    }
}

/// A controlling owner. It does not block its own deletion: a deletion never waits for children.
fn owner<K: Resource<DynamicType = ()>>(name: &str, uid: &str) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
        controller: Some(true),
        block_owner_deletion: None,
    }
}

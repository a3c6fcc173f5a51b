//! The few reads of a pass: what a spec refers to, and what a deletion depends on.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, ResourceQuota, ResourceQuotaSpec};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ApiResource, ListParams, Object};
use kube::client::Body;
use kube::{Api, Client};

use super::error::ClusterError;
use super::index::Entry;
use super::pods::{self, PodSpec, PodStatus};
use crate::api::bot_fleet::ConfigMapRef;
use crate::api::{BotFleet, Tenant};
use crate::domain::names;

/// What a reference to a `ConfigMap` key led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Referenced {
    /// The text.
    Found(String),
    /// Nothing; the sentence says what is missing.
    Missing(String),
}

/// A list of the object of this name: asked as the watch asks, which needs no right of its own.
pub(super) fn named(name: &str) -> ListParams {
    ListParams::default().fields(&format!("metadata.name={name}"))
}

/// Reads objects by name.
#[derive(Clone)]
pub struct Reader {
    client: Client,
}

impl Reader {
    /// A reader over this client.
    pub fn new(client: Client) -> Self {
        Reader { client }
    }

    /// The text under a key of a `ConfigMap`.
    ///
    /// # Errors
    /// [`ClusterError`] when the API server answers neither with it nor that it does not exist.
    pub async fn config(&self, namespace: &str, reference: &ConfigMapRef) -> Result<Referenced, ClusterError> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let what = format!("ConfigMap {namespace}/{}", reference.name);
        let found = api.get_opt(&reference.name).await.map_err(|error| ClusterError::of(&what, &error))?;
        Ok(match found {
            None => Referenced::Missing(format!("{what} does not exist; create it with the key {}", reference.key)),
            // Nobody would be told of its changes.
            Some(map) if names::is_managed(map.metadata.labels.as_ref()) => {
                Referenced::Missing(format!("{what} is Torpor's own; name one of yours"))
            }
            Some(map) => match map.data.unwrap_or_default().remove(&reference.key) {
                Some(text) => Referenced::Found(text),
                None => Referenced::Missing(format!("{what} has no key {}; add it", reference.key)),
            },
        })
    }

    /// What the `ResourceQuota` of this name allows now. `None` when it has gone.
    ///
    /// # Errors
    /// [`ClusterError`] when that cannot be told.
    pub async fn quota(&self, namespace: &str, name: &str) -> Result<Option<ResourceQuotaSpec>, ClusterError> {
        let api: Api<ResourceQuota> = Api::namespaced(self.client.clone(), namespace);
        let found = api.list(&named(name)).await;
        let found = found.map_err(|error| ClusterError::of(&format!("ResourceQuota {namespace}/{name}"), &error))?;
        Ok(found.items.into_iter().next().and_then(|quota| quota.spec))
    }

    /// The time of the API server, by the header `Date` of its answer; whole seconds.
    ///
    /// # Errors
    /// [`ClusterError`] when it does not answer, or without a time.
    pub async fn time(&self) -> Result<Timestamp, ClusterError> {
        let what = "time of the API server";
        let unknown = |reason: String| ClusterError::Transient { what: what.to_owned(), reason };
        let request = http::Request::get("/version").body(Body::empty()).map_err(|error| unknown(error.to_string()))?;
        let answer = self.client.send(request).await.map_err(|error| ClusterError::of(what, &error))?;
        // One who stands between answers with a clock of its own.
        if !answer.status().is_success() {
            return Err(unknown(format!("it answered {}", answer.status())));
        }
        let date = answer.headers().get(http::header::DATE).and_then(|date| date.to_str().ok());
        let date = date.ok_or_else(|| unknown("its answer has no Date".to_owned()))?;
        let zoned = jiff::fmt::rfc2822::parse(date).map_err(|error| unknown(error.to_string()))?;
        Ok(zoned.timestamp())
    }

    /// A Tenant as it is now, not as the watch last showed it. `None` when it has gone.
    ///
    /// # Errors
    /// [`ClusterError`] when the API server answers neither with it nor that it does not exist.
    pub async fn tenant(&self, name: &str) -> Result<Option<Tenant>, ClusterError> {
        let api: Api<Tenant> = Api::all(self.client.clone());
        api.get_opt(name).await.map_err(|error| ClusterError::of(&format!("Tenant {name}"), &error))
    }

    /// The metadata of a `BotFleet` as it is now, not as the watch last showed it. `None` when it has gone.
    ///
    /// # Errors
    /// [`ClusterError`] when that cannot be told.
    pub async fn fleet(&self, namespace: &str, name: &str) -> Result<Option<ObjectMeta>, ClusterError> {
        let api: Api<BotFleet> = Api::namespaced(self.client.clone(), namespace);
        let found = api.list_metadata(&named(name)).await;
        let found = found.map_err(|error| ClusterError::of(&format!("BotFleet {namespace}/{name}"), &error))?;
        Ok(found.items.into_iter().next().map(|fleet| fleet.metadata))
    }

    /// All pods of a namespace as they are now, not as the watch last showed them, and also those that have lost the labels by
    /// which it would.
    ///
    /// # Errors
    /// [`ClusterError`] when that cannot be told.
    pub async fn pods(&self, namespace: &str) -> Result<Vec<Entry>, ClusterError> {
        let resource = ApiResource::erase::<Pod>(&());
        let api: Api<Object<PodSpec, PodStatus>> = Api::namespaced_with(self.client.clone(), namespace, &resource);
        let found = api.list(&ListParams::default()).await;
        let found = found.map_err(|error| ClusterError::of(&format!("pods of {namespace}"), &error))?;
        Ok(found.iter().filter_map(pods::entry).collect())
    }

    /// Whether the namespace of this tenant is its own now. `None` where there is none.
    ///
    /// # Errors
    /// [`ClusterError`] when that cannot be told.
    pub async fn owns_namespace(&self, tenant: &str) -> Result<Option<bool>, ClusterError> {
        let (api, name): (Api<Namespace>, _) = (Api::all(self.client.clone()), names::namespace(tenant));
        let what = format!("Namespace {name}");
        let found = api.get_metadata_opt(&name).await.map_err(|error| ClusterError::of(&what, &error))?;
        Ok(found.map(|namespace| names::is_home(namespace.metadata.labels.as_ref(), tenant)))
    }

    /// Whether a `CustomResourceDefinition` is there to stay. While it is being deleted, its objects' deletion
    /// is a side effect and must not cost anybody's data.
    ///
    /// # Errors
    /// [`ClusterError`] when that cannot be told.
    pub async fn definition_stays(&self, name: &str) -> Result<bool, ClusterError> {
        let api: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        let what = format!("CustomResourceDefinition {name}");
        let found = api.get_metadata_opt(name).await.map_err(|error| ClusterError::of(&what, &error))?;
        Ok(found.is_some_and(|definition| definition.metadata.deletion_timestamp.is_none()))
    }
}

//! Where the breaker outlives the hibernator: a ConfigMap. Whoever may patch it may hold and release.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, ObjectReference};
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

use super::error::ClusterError;
use crate::domain::names::{HIBERNATOR, annotation, label};
use crate::leader::LeaderGuard;

/// Name of the ConfigMap.
pub const NAME: &str = "torpor-breaker";

/// Reads and writes the breaker's ConfigMap.
#[derive(Clone)]
pub struct BreakerStore {
    api: Api<ConfigMap>,
    namespace: String,
}

/// What the ConfigMap says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// Its resource version as a number; 0 where it is none.
    pub version: u64,
    /// What the hibernator saved.
    pub data: BTreeMap<String, String>,
    /// Somebody's words why sleep is held by hand.
    pub hold: Option<String>,
    /// The opening that somebody released.
    pub release: Option<String>,
}

impl Stored {
    /// Reads an object.
    pub fn of(object: &ConfigMap) -> Self {
        let annotated = |key: &str| object.annotations().get(key).cloned();
        Stored {
            version: object.resource_version().and_then(|version| version.parse().ok()).unwrap_or_default(),
            data: object.data.clone().unwrap_or_default(),
            hold: annotated(annotation::BREAKER_HOLD),
            release: annotated(annotation::BREAKER_RELEASE),
        }
    }
}

impl BreakerStore {
    /// The breaker of a namespace.
    pub fn new(client: Client, namespace: &str) -> Self {
        BreakerStore { api: Api::namespaced(client, namespace), namespace: namespace.to_owned() }
    }

    fn what(&self) -> String {
        format!("ConfigMap {}/{NAME}", self.namespace)
    }

    /// What Events about the breaker are about.
    pub fn reference(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("ConfigMap".to_owned()),
            name: Some(NAME.to_owned()),
            namespace: Some(self.namespace.clone()),
            ..ObjectReference::default()
        }
    }

    /// What it says; `None` while there is none.
    ///
    /// # Errors
    /// [`ClusterError`], classified.
    pub async fn load(&self) -> Result<Option<Stored>, ClusterError> {
        let found = self.api.get_opt(NAME).await.map_err(|error| ClusterError::of(&self.what(), &error))?;
        Ok(found.as_ref().map(Stored::of))
    }

    /// Saves the hibernator's part; annotations stay as they are.
    ///
    /// # Errors
    /// [`ClusterError`], classified.
    pub async fn save(&self, data: &BTreeMap<String, String>, leader: &LeaderGuard) -> Result<(), ClusterError> {
        if !leader.is_valid() {
            return Err(ClusterError::NotLeading);
        }
        let labels = json!({label::PART_OF: label::TORPOR, label::NAME: HIBERNATOR});
        let body = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME, "labels": labels}, "data": data,
        });
        let params = PatchParams::apply(HIBERNATOR).force();
        let answer = self.api.patch(NAME, &params, &Patch::Apply(&body)).await;
        answer.map(drop).map_err(|error| ClusterError::of(&self.what(), &error))
    }

    /// Holds it open by hand with these words, as a person does.
    ///
    /// # Errors
    /// [`ClusterError`], classified.
    pub async fn hold(&self, words: &str) -> Result<(), ClusterError> {
        self.annotate(json!({annotation::BREAKER_HOLD: words})).await
    }

    /// Lets go of a hold by hand, and releases this opening if there is one, as a person does.
    ///
    /// # Errors
    /// [`ClusterError`], classified.
    pub async fn release(&self, opening: Option<&str>) -> Result<(), ClusterError> {
        let mut annotations = json!({annotation::BREAKER_HOLD: Value::Null});
        if let Some(opening) = opening {
            annotations[annotation::BREAKER_RELEASE] = opening.into();
        }
        self.annotate(annotations).await
    }

    async fn annotate(&self, annotations: Value) -> Result<(), ClusterError> {
        let body = json!({"metadata": {"annotations": annotations}});
        let answer = self.api.patch(NAME, &PatchParams::default(), &Patch::Merge(&body)).await;
        answer.map(drop).map_err(|error| ClusterError::of(&self.what(), &error))
    }

    /// For a watch of this one object, and the field selector that makes it one.
    pub fn watched(&self) -> (Api<ConfigMap>, watcher::Config) {
        (self.api.clone(), watcher::Config::default().fields(&format!("metadata.name={NAME}")))
    }
}

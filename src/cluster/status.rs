//! The one way by which Torpor's own resources are written: status, and the finalizer. Never a spec.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use serde::Serialize;
use serde_json::{Value, json};

use super::error::ClusterError;
use crate::api::{BotFleet, Tenant, WorkerPool};
use crate::domain::names::FINALIZER;
use crate::leader::LeaderGuard;
use crate::metrics::Metrics;

/// A kind of resource that users write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    /// `Tenant`.
    Tenant,
    /// `BotFleet`.
    BotFleet,
    /// `WorkerPool`.
    WorkerPool,
}

impl Own {
    /// The kind's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Own::Tenant => "Tenant",
            Own::BotFleet => "BotFleet",
            Own::WorkerPool => "WorkerPool",
        }
    }

    fn resource(self) -> ApiResource {
        match self {
            Own::Tenant => ApiResource::erase::<Tenant>(&()),
            Own::BotFleet => ApiResource::erase::<BotFleet>(&()),
            Own::WorkerPool => ApiResource::erase::<WorkerPool>(&()),
        }
    }
}

/// Somebody waits for a merge.
const PATIENCE: Duration = Duration::from_secs(3);

/// What became of a merge.
#[derive(Debug)]
pub enum Merged {
    /// The Tenant as it is now.
    Written(Box<Tenant>),
    /// It has changed since it was read; nothing was written.
    Changed,
    /// It is not there any more.
    Gone,
}

/// Field manager of what is said about objects that cannot be read.
const UNREAD: &str = "torpor-operator-unread";

/// Writes status and finalizers of Torpor's own resources.
#[derive(Clone)]
pub struct StatusWriter {
    manager: &'static str,
    client: Client,
    metrics: Metrics,
    leader: LeaderGuard,
}

impl StatusWriter {
    /// A writer over this client, which owns what it writes as this field manager.
    pub fn new(manager: &'static str, client: Client, metrics: Metrics, leader: LeaderGuard) -> Self {
        StatusWriter { manager, client, metrics, leader }
    }

    /// The same writer under a name that owns only what is told of objects that cannot be read.
    #[must_use]
    pub fn of_the_unread(&self) -> Self {
        StatusWriter { manager: UNREAD, ..self.clone() }
    }

    fn api(&self, kind: Own, namespace: Option<&str>) -> Result<Api<DynamicObject>, ClusterError> {
        if !self.leader.is_valid() {
            return Err(ClusterError::NotLeading);
        }
        Ok(match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &kind.resource()),
            None => Api::all_with(self.client.clone(), &kind.resource()),
        })
    }

    /// Writes this manager's part of the status; fields of other managers stay theirs.
    /// Returns the object's new resource version; `None` when the object has gone meanwhile.
    ///
    /// # Errors
    /// [`ClusterError`], classified; a conflict is transient, be it with other writers or with another object of the name.
    pub async fn write(
        &self,
        kind: Own,
        metadata: &ObjectMeta,
        status: &impl Serialize,
    ) -> Result<Option<String>, ClusterError> {
        self.apply(kind, &ObjectMeta { resource_version: None, ..metadata.clone() }, status).await
    }

    /// The same, but only if the object is still at the resource version that was read.
    /// Returns `None` also when it has changed meanwhile.
    ///
    /// # Errors
    /// [`ClusterError`], classified.
    pub async fn write_unchanged(
        &self,
        kind: Own,
        metadata: &ObjectMeta,
        status: &impl Serialize,
    ) -> Result<Option<String>, ClusterError> {
        self.apply(kind, metadata, status).await
    }

    /// Merges single fields into a Tenant's status, but only if it is still at the resource version that was read: who
    /// else writes them may have written something newer meanwhile.
    ///
    /// # Errors
    /// [`ClusterError`], classified; silence for longer than 3 s is transient, and may have written all the same.
    pub async fn merge_unchanged(&self, metadata: &ObjectMeta, status: &Value) -> Result<Merged, ClusterError> {
        if !self.leader.is_valid() {
            return Err(ClusterError::NotLeading);
        }
        let name = metadata.name.as_deref().unwrap_or_default();
        let what = format!("status of Tenant {name}");
        let body = json!({
            "metadata": {"uid": metadata.uid, "resourceVersion": metadata.resource_version},
            "status": status,
        });
        let params = PatchParams { field_manager: Some(self.manager.to_owned()), ..PatchParams::default() };
        let api: Api<Tenant> = Api::all(self.client.clone());
        let answer = tokio::time::timeout(PATIENCE, api.patch_status(name, &params, &Patch::Merge(&body))).await;
        self.metrics.api_write("status", Own::Tenant.as_str());
        match answer {
            Ok(Ok(tenant)) => Ok(Merged::Written(Box::new(tenant))),
            Ok(Err(error)) if ClusterError::is_not_found(&error) => Ok(Merged::Gone),
            Ok(Err(error)) if ClusterError::is_conflict(&error) => Ok(Merged::Changed),
            Ok(Err(error)) => Err(ClusterError::of(&what, &error)),
            Err(_) => Err(ClusterError::Transient { what, reason: format!("no answer in {PATIENCE:?}") }),
        }
    }

    async fn apply(
        &self,
        kind: Own,
        metadata: &ObjectMeta,
        status: &impl Serialize,
    ) -> Result<Option<String>, ClusterError> {
        let name = metadata.name.as_deref().unwrap_or_default();
        let resource = kind.resource();
        // The uid keeps the status from landing on a new object of the same name.
        let mut body = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"name": name, "uid": metadata.uid},
            "status": status,
        });
        if let Some(version) = &metadata.resource_version {
            body["metadata"]["resourceVersion"] = version.as_str().into();
        }
        let api = self.api(kind, metadata.namespace.as_deref())?;
        let answer = api.patch_status(name, &PatchParams::apply(self.manager).force(), &Patch::Apply(&body)).await;
        self.metrics.api_write("status", kind.as_str());
        match answer {
            Ok(object) => Ok(object.metadata.resource_version),
            Err(error) => {
                let what = format!("status of {} {name}", kind.as_str());
                not_applied(&what, metadata.resource_version.is_some(), &error).map_or(Ok(None), Err)
            }
        }
    }

    /// Adds the finalizer.
    ///
    /// # Errors
    /// [`ClusterError`], classified; a conflict with a newer version of the object is transient.
    pub async fn add_finalizer(&self, kind: Own, metadata: &ObjectMeta) -> Result<(), ClusterError> {
        let mut finalizers = metadata.finalizers.clone().unwrap_or_default();
        finalizers.push(FINALIZER.to_owned());
        self.set_finalizers(kind, metadata, &finalizers).await
    }

    /// Removes the finalizer, after which the object goes.
    ///
    /// # Errors
    /// [`ClusterError`], classified; a conflict with a newer version of the object is transient.
    pub async fn remove_finalizer(&self, kind: Own, metadata: &ObjectMeta) -> Result<(), ClusterError> {
        let mut finalizers = metadata.finalizers.clone().unwrap_or_default();
        finalizers.retain(|finalizer| finalizer != FINALIZER);
        self.set_finalizers(kind, metadata, &finalizers).await
    }

    async fn set_finalizers(
        &self,
        kind: Own,
        metadata: &ObjectMeta,
        finalizers: &[String],
    ) -> Result<(), ClusterError> {
        let name = metadata.name.as_deref().unwrap_or_default();
        // The list is replaced as a whole, so it must be the list that was read.
        let body = json!({"metadata": {
            "uid": metadata.uid, "resourceVersion": metadata.resource_version, "finalizers": finalizers,
        }});
        let params = PatchParams { field_manager: Some(self.manager.to_owned()), ..PatchParams::default() };
        let api = self.api(kind, metadata.namespace.as_deref())?;
        let answer = api.patch_metadata(name, &params, &Patch::Merge(&body)).await;
        self.metrics.api_write("patch", kind.as_str());
        match answer {
            Ok(_) => Ok(()),
            Err(error) if ClusterError::is_not_found(&error) => Ok(()),
            Err(error) => Err(ClusterError::of(&format!("finalizer of {} {name}", kind.as_str()), &error)),
        }
    }
}

/// What it means that a status was not applied; `None` where the object has gone, or has changed since the version that was named. Where
/// none was named, a conflict is one that the API server itself has met too often, and no watch need tell of anything.
fn not_applied(what: &str, versioned: bool, error: &kube::Error) -> Option<ClusterError> {
    let settled = ClusterError::is_not_found(error) || versioned && ClusterError::is_conflict(error);
    (!settled).then(|| ClusterError::of(what, error))
}

/// Whether the finalizer is on the object.
pub fn has_finalizer(metadata: &ObjectMeta) -> bool {
    metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn a_conflict_over_no_version_is_tried_again() {
        let answer = |code, reason: &str| kube::Error::Api(Status::failure("no", reason).with_code(code).boxed());
        let conflict = answer(409, "Conflict");
        assert!(matches!(not_applied("it", false, &conflict), Some(ClusterError::Failed { .. })));
        assert_eq!(not_applied("it", true, &conflict), None, "it has changed, and the watch tells");
        assert_eq!(not_applied("it", false, &answer(404, "NotFound")), None);
    }
}

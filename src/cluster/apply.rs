//! The one way by which children come into the cluster and leave it.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Namespace, PersistentVolumeClaim, Pod, Secret};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{
    DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy,
};
use kube::core::ApiResource;
use kube::core::response::StatusCause;
use kube::{Api, Client, Resource};
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::ClusterError;
use super::index::{Asked, ChildIndex, Difference, Entry, Facts, Slot};
use super::listed::Listed;
use super::pods::WorkloadSpec;
use super::read::named;
use crate::domain::names::{self, DATABASE, OPERATOR, annotation, label};
use crate::domain::quantity::Cpu;
use crate::leader::LeaderGuard;
use crate::metrics::Metrics;
use crate::plan::{Child, ChildKind, hash, secret_values};

/// What became of one child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It was as wanted; no request was made.
    Unchanged,
    /// It did not exist.
    Created,
    /// It differed and was applied again.
    Updated,
}

/// Writes children, skipping what is as wanted.
#[derive(Clone)]
pub struct Applier {
    client: Client,
    index: Arc<ChildIndex>,
    listed: Arc<Listed>,
    metrics: Metrics,
    leader: LeaderGuard,
}

impl Applier {
    /// An applier over this client, which consults and feeds this index.
    pub fn new(
        client: Client,
        index: Arc<ChildIndex>,
        listed: Arc<Listed>,
        metrics: Metrics,
        leader: LeaderGuard,
    ) -> Self {
        Applier { client, index, listed, metrics, leader }
    }

    /// Whether this process may write into a tenant's namespace, and knows what is wanted there.
    async fn may_write(&self, namespace: &str) -> Result<(), ClusterError> {
        self.listed.confirm(namespace).await?;
        // Asked last: to look may have taken long.
        if self.leader.is_valid() { Ok(()) } else { Err(ClusterError::NotLeading) }
    }

    fn api(&self, kind: ChildKind, namespace: &str) -> Api<DynamicObject> {
        match kind {
            ChildKind::Namespace => Api::all_with(self.client.clone(), &kind.resource()),
            _ => Api::namespaced_with(self.client.clone(), namespace, &kind.resource()),
        }
    }

    /// The hashes of what there is and of what is wanted, where this child exists as another plan wanted it. One that somebody has changed
    /// since is not meant.
    pub fn another_plan(&self, child: &Child, namespace: &str) -> Option<[String; 2]> {
        let (_, wanted) = as_applied(child);
        let found = self.index.get(Slot::Child(child.kind()), namespace, child.name())?.applied_hash?;
        (found != wanted).then_some([found, wanted])
    }

    /// Makes one child as wanted: no request when it is, one server-side apply when it is not.
    ///
    /// # Errors
    /// [`ClusterError`], classified.
    pub async fn ensure(&self, child: &Child, namespace: &str) -> Result<Applied, ClusterError> {
        if let Child::Secret(secret) = child {
            return self.ensure_secret(secret, namespace).await;
        }
        let (kind, name) = (child.kind(), child.name());
        let (wanted, hash) = as_applied(child);
        let what = format!("{} {namespace}/{name}", kind.as_str());
        if let Child::Namespace(home) = child
            && self.index.get(Slot::Child(kind), namespace, name).is_some_and(|found| found.tenant != tenant_of(home))
        {
            return Err(ClusterError::NotOwned { what: format!("Namespace {name}") });
        }
        let difference = self.index.compare(kind, namespace, name, &hash, &wanted);
        let applied = match difference {
            Difference::Same => return Ok(Applied::Unchanged),
            Difference::Leaving => {
                return Err(ClusterError::Waiting { what, reason: "it is being deleted".to_owned() });
            }
            Difference::Missing if kind == ChildKind::Namespace => {
                return self.create_namespace(&wanted, namespace).await;
            }
            Difference::Missing => Applied::Created,
            Difference::Differs | Difference::Edited => Applied::Updated,
        };
        let claims_differ = |error: &kube::Error| kind == ChildKind::StatefulSet && only_claims_differ(error);
        let mut answer = self.apply(kind, namespace, name, &wanted).await?;
        if let Err(error) = &answer
            && !claims_differ(error)
            && is_invalid(error)
            && self.overwrite(kind, namespace, name, &wanted).await?
        {
            answer = self.apply(kind, namespace, name, &wanted).await?;
        }
        match answer {
            Ok(()) => {
                if difference == Difference::Edited {
                    self.metrics.put_back(kind.as_str());
                    tracing::info!(%what, "somebody had changed what is wanted here; it was put back");
                }
                Ok(applied)
            }
            Err(error) if claims_differ(&error) => Err(ClusterError::ClaimsDiffer { what }),
            Err(error) => Err(ClusterError::of(&what, &error)),
        }
    }

    async fn apply(
        &self,
        kind: ChildKind,
        namespace: &str,
        name: &str,
        wanted: &Value,
    ) -> Result<Result<(), kube::Error>, ClusterError> {
        self.may_write(namespace).await?;
        let params = PatchParams::apply(OPERATOR).force();
        let answer = self.api(kind, namespace).patch_metadata(name, &params, &Patch::Apply(wanted)).await;
        self.metrics.api_write("apply", kind.as_str());
        // The answer is metadata only; what was asked for is what its spec says now.
        let asked = match kind {
            ChildKind::StatefulSet | ChildKind::Deployment => WorkloadSpec::deserialize(&wanted["spec"]).ok(),
            ChildKind::Namespace
            | ChildKind::ServiceAccount
            | ChildKind::NetworkPolicy
            | ChildKind::ResourceQuota
            | ChildKind::LimitRange
            | ChildKind::Secret
            | ChildKind::ConfigMap
            | ChildKind::Service
            | ChildKind::Ingress
            | ChildKind::PodDisruptionBudget
            | ChildKind::BotFleet => None,
        };
        let asked = asked.map(|spec| spec.asked()).unwrap_or_default();
        Ok(answer.map(|object| self.remember(Slot::Child(kind), &object.metadata, asked)))
    }

    /// Makes a fleet's spec what is planned, without what others have set besides: an apply leaves what it does not name.
    ///
    /// # Errors
    /// [`ClusterError`], classified.
    pub async fn take_back(&self, namespace: &str, name: &str, spec: &Value) -> Result<(), ClusterError> {
        let kind = ChildKind::BotFleet;
        let api = self.api(kind, namespace);
        let answer = self.merge(&api, kind.as_str(), namespace, name, &json!({ "spec": spec })).await?;
        answer.map_err(|error| ClusterError::of(&format!("BotFleet {namespace}/{name}"), &error))
    }

    /// Sets the fields that are named, and leaves all others.
    async fn merge(
        &self,
        api: &Api<DynamicObject>,
        kind: &'static str,
        namespace: &str,
        name: &str,
        fields: &Value,
    ) -> Result<Result<(), kube::Error>, ClusterError> {
        self.may_write(namespace).await?;
        let params = PatchParams { field_manager: Some(OPERATOR.to_owned()), ..PatchParams::default() };
        let answer = api.patch_metadata(name, &params, &Patch::Merge(fields)).await;
        self.metrics.api_write("patch", kind);
        Ok(answer.map(drop))
    }

    /// Puts whole lists back. An apply leaves what others added to a list, and that may contradict what is wanted,
    /// such as a second port of one name; a merge replaces the list. So it leaves a field that only another value of its neighbour
    /// may have, which the API server fills in. `false` when the API server refuses that, too.
    async fn overwrite(
        &self,
        kind: ChildKind,
        namespace: &str,
        name: &str,
        wanted: &Value,
    ) -> Result<bool, ClusterError> {
        let mut contents = wanted.clone();
        if let Some(fields) = contents.as_object_mut() {
            fields.remove("metadata");
        }
        match kind {
            ChildKind::StatefulSet => {
                contents["spec"]["updateStrategy"]["rollingUpdate"] = Value::Null;
                // They cannot change, and those that differ are another matter.
                contents["spec"].as_object_mut().map(|spec| spec.remove("volumeClaimTemplates"));
            }
            ChildKind::Deployment => contents["spec"]["strategy"]["rollingUpdate"] = Value::Null,
            ChildKind::PodDisruptionBudget => contents["spec"]["minAvailable"] = Value::Null,
            _ => {}
        }
        let answer = self.merge(&self.api(kind, namespace), kind.as_str(), namespace, name, &contents).await?;
        Ok(answer.is_ok())
    }

    fn remember(
        &self,
        slot: Slot,
        metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
        asked: Asked,
    ) {
        if let Some(entry) = Entry::read(slot, metadata, Facts::None) {
            self.index.answered(entry.asking(asked));
        }
    }

    /// A namespace is created and never taken over by an apply: one that exists without the tenant's label
    /// belongs to somebody else. The index knows only labelled ones.
    async fn create_namespace(&self, wanted: &Value, name: &str) -> Result<Applied, ClusterError> {
        let what = format!("Namespace {name}");
        let refused =
            |error: serde_json::Error| ClusterError::Refused { what: what.clone(), reason: error.to_string() };
        let object: Namespace = serde_json::from_value(wanted.clone()).map_err(refused)?;
        let api: Api<Namespace> = Api::all(self.client.clone());
        let params = PostParams { field_manager: Some(OPERATOR.to_owned()), ..PostParams::default() };
        self.may_write(name).await?;
        let answer = api.create(&params, &object).await;
        self.metrics.api_write("create", "Namespace");
        match answer {
            Ok(created) => {
                // What a watch that is behind still shows of its predecessor's has gone with that.
                self.index.forget_namespace(name);
                self.remember(Slot::Child(ChildKind::Namespace), created.meta(), Asked::default());
                Ok(Applied::Created)
            }
            Err(error) if ClusterError::is_there(&error) => {
                let existing = api.get_metadata(name).await.map_err(|error| ClusterError::of(&what, &error))?;
                if tenant_of(&object).is_some_and(|tenant| names::is_home(existing.metadata.labels.as_ref(), &tenant)) {
                    let reason = "it exists already and the watch has not shown it yet".to_owned();
                    self.remember(Slot::Child(ChildKind::Namespace), &existing.metadata, Asked::default());
                    Err(ClusterError::Failed { what, reason })
                } else {
                    Err(ClusterError::NotOwned { what })
                }
            }
            Err(error) => Err(ClusterError::of(&what, &error)),
        }
    }

    /// The generated Secret is created once. It is neither read nor watched, so an existing one shows as 409.
    /// While the database has a `StatefulSet` the Secret was made before it, and no request is needed.
    async fn ensure_secret(&self, template: &Secret, namespace: &str) -> Result<Applied, ClusterError> {
        let database = Slot::Child(ChildKind::StatefulSet);
        if self.index.get(database, namespace, DATABASE).is_some() {
            return Ok(Applied::Unchanged);
        }
        let name = template.metadata.name.clone().unwrap_or_default();
        let what = format!("Secret {namespace}/{name}");
        let mut secret = template.clone();
        secret.string_data = Some(generate(&what)?);
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let params = PostParams { field_manager: Some(OPERATOR.to_owned()), ..PostParams::default() };
        self.may_write(namespace).await?;
        let answer = api.create(&params, &secret).await;
        self.metrics.api_write("create", "Secret");
        match answer {
            Ok(_) => Ok(Applied::Created),
            Err(error) if ClusterError::is_there(&error) => Ok(Applied::Unchanged),
            Err(error) => Err(ClusterError::of(&what, &error)),
        }
    }

    /// Whether a Secret exists, asked without the right to read Secrets: a dry-run create of the same name
    /// answers 409 when it does, and stores nothing when it does not.
    ///
    /// # Errors
    /// [`ClusterError`] when the API server answers neither.
    pub async fn secret_exists(&self, namespace: &str, name: &str) -> Result<bool, ClusterError> {
        let mut probe = Secret::default();
        probe.metadata.name = Some(name.to_owned());
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let params = PostParams { dry_run: true, field_manager: Some(OPERATOR.to_owned()) };
        match api.create(&params, &probe).await {
            Ok(_) => Ok(false),
            Err(error) if ClusterError::is_there(&error) => Ok(true),
            Err(error) => Err(ClusterError::of(&format!("Secret {namespace}/{name}"), &error)),
        }
    }

    /// Scales a `StatefulSet` or Deployment down to so many pods, gracefully, whatever else could be said of it. One that has
    /// no more is left alone.
    ///
    /// # Errors
    /// [`ClusterError`], classified.
    pub async fn scale_down(
        &self,
        kind: ChildKind,
        namespace: &str,
        name: &str,
        replicas: i32,
    ) -> Result<(), ClusterError> {
        let running = self.index.get(Slot::Child(kind), namespace, name);
        if running.is_none_or(|entry| entry.desired.is_some_and(|desired| desired <= replicas)) {
            return Ok(());
        }
        self.may_write(namespace).await?;
        let patch = json!({"spec": {"replicas": replicas}});
        let params = PatchParams { field_manager: Some(OPERATOR.to_owned()), ..PatchParams::default() };
        let answer = self.api(kind, namespace).patch_scale(name, &params, &Patch::Merge(&patch)).await;
        self.metrics.api_write("scale", kind.as_str());
        let what = format!("{} {namespace}/{name}", kind.as_str());
        answer.map(|_| ()).map_err(|error| ClusterError::of(&what, &error))
    }

    /// Changes the CPU limit of a running pod's container, without a restart and only if the pod is the one that was seen.
    ///
    /// # Errors
    /// [`ClusterError::Refused`] where the namespace's quota has no room.
    pub async fn resize_pod(&self, pod: &Entry, container: &str, limit: Cpu) -> Result<(), ClusterError> {
        self.may_write(&pod.namespace).await?;
        let resource = ApiResource::erase::<Pod>(&());
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &pod.namespace, &resource);
        let containers = json!([{"name": container, "resources": {"limits": {"cpu": limit.to_string()}}}]);
        let patch = json!({"metadata": {"uid": pod.uid}, "spec": {"containers": containers}});
        let params = PatchParams { field_manager: Some(OPERATOR.to_owned()), ..PatchParams::default() };
        let answer = api.patch_subresource("resize", &pod.name, &params, &Patch::Strategic(&patch)).await;
        self.metrics.api_write("resize", "Pod");
        match answer {
            // The watch tells, with all else that happened to the pod: taken from here, that would be news to nobody.
            Ok(_) => Ok(()),
            Err(error) if ClusterError::is_not_found(&error) => Ok(()),
            Err(error) => Err(ClusterError::of(&format!("Pod {}/{}", pod.namespace, pod.name), &error)),
        }
    }

    /// Deletes a `StatefulSet` and leaves its pods running; the next pass creates it anew around them.
    ///
    /// # Errors
    /// [`ClusterError`], classified.
    pub async fn release_statefulset(&self, namespace: &str, name: &str) -> Result<(), ClusterError> {
        match self.index.get(Slot::Child(ChildKind::StatefulSet), namespace, name) {
            Some(entry) => self.delete_with(&entry, PropagationPolicy::Orphan, None).await,
            None => Ok(()),
        }
    }

    /// Names of a namespace's volume claims, and the sizes that they ask for.
    ///
    /// # Errors
    /// [`ClusterError`], classified.
    pub async fn claim_sizes(&self, namespace: &str) -> Result<Vec<(String, Quantity)>, ClusterError> {
        let what = format!("PersistentVolumeClaims of {namespace}");
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        let found = api.list(&ListParams::default()).await.map_err(|error| ClusterError::of(&what, &error))?;
        let size = |claim: PersistentVolumeClaim| {
            let asked = claim.spec?.resources?.requests?.remove("storage")?;
            Some((claim.metadata.name?, asked))
        };
        Ok(found.items.into_iter().filter_map(size).collect())
    }

    /// Asks that a volume claim be larger.
    ///
    /// # Errors
    /// [`ClusterError::Refused`] when the `StorageClass` does not allow it, or the claim has no volume yet.
    pub async fn grow_volume(&self, namespace: &str, name: &str, storage: &Quantity) -> Result<(), ClusterError> {
        let resource = ApiResource::erase::<PersistentVolumeClaim>(&());
        let api = Api::namespaced_with(self.client.clone(), namespace, &resource);
        let fields = json!({"spec": {"resources": {"requests": {"storage": storage}}}});
        let answer = self.merge(&api, "PersistentVolumeClaim", namespace, name, &fields).await?;
        answer.map_err(|error| ClusterError::of(&format!("PersistentVolumeClaim {namespace}/{name}"), &error))
    }

    /// Makes a `StatefulSet` as wanted but for its claim templates, which stay as they are: for one whose volumes cannot have the
    /// size that is wanted. Its hash is that of what was applied, so the next pass tries the whole again.
    ///
    /// # Errors
    /// [`ClusterError`], classified.
    pub async fn ensure_but_claims(&self, wanted: &StatefulSet, namespace: &str) -> Result<(), ClusterError> {
        let name = wanted.metadata.name.clone().unwrap_or_default();
        let what = format!("StatefulSet {namespace}/{name}");
        let api: Api<StatefulSet> = Api::namespaced(self.client.clone(), namespace);
        let live = api.get(&name).await.map_err(|error| ClusterError::of(&what, &error))?;
        let mut wanted = wanted.clone();
        if let (Some(spec), Some(live)) = (&mut wanted.spec, live.spec) {
            spec.volume_claim_templates = live.volume_claim_templates;
            spec.volume_claim_templates.iter_mut().flatten().for_each(|claim| claim.status = None);
        }
        match self.ensure(&Child::StatefulSet(Box::new(wanted)), namespace).await {
            // It has been changed since it was read; the watch tells.
            Err(ClusterError::ClaimsDiffer { what }) => {
                Err(ClusterError::Failed { what, reason: "it changed meanwhile".to_owned() })
            }
            other => other.map(|_| ()),
        }
    }

    /// Deletes one object, gracefully and only if it is still the one that was seen. Gone already is fine.
    ///
    /// # Errors
    /// [`ClusterError`], classified.
    pub async fn delete(&self, entry: &Entry) -> Result<(), ClusterError> {
        self.delete_with(entry, PropagationPolicy::Background, None).await
    }

    /// Deletes one pod that is replaced by another, with the seconds that the new one will have to stop, where those of the old one are
    /// fewer: they may be what was too short. What it was made with it keeps, for it may need as much.
    ///
    /// # Errors
    /// [`ClusterError`], classified.
    pub async fn delete_replaced(&self, pod: &Entry, grace_seconds: Option<u32>) -> Result<(), ClusterError> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let found = api.list(&named(&pod.name)).await;
        let found = found.map_err(|error| ClusterError::of(&format!("Pod {}/{}", pod.namespace, pod.name), &error))?;
        let own = found.items.first().and_then(|pod| pod.spec.as_ref()?.termination_grace_period_seconds);
        let longer = grace_seconds.filter(|&wanted| own.is_some_and(|own| own < i64::from(wanted)));
        self.delete_with(pod, PropagationPolicy::Background, longer).await
    }

    async fn delete_with(
        &self,
        entry: &Entry,
        propagation: PropagationPolicy,
        grace_period_seconds: Option<u32>,
    ) -> Result<(), ClusterError> {
        if entry.deleting {
            return Ok(());
        }
        self.may_write(&entry.namespace).await?;
        let (name, resource) = match entry.slot {
            Slot::Child(kind) => (kind.as_str(), kind.resource()),
            Slot::Pod => ("Pod", ApiResource::erase::<Pod>(&())),
            Slot::Volume => ("PersistentVolumeClaim", ApiResource::erase::<PersistentVolumeClaim>(&())),
        };
        let api: Api<DynamicObject> = match entry.slot {
            Slot::Child(ChildKind::Namespace) => Api::all_with(self.client.clone(), &resource),
            Slot::Child(_) | Slot::Pod | Slot::Volume => {
                Api::namespaced_with(self.client.clone(), &entry.namespace, &resource)
            }
        };
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: Some(entry.uid.clone()), resource_version: None }),
            propagation_policy: Some(propagation),
            grace_period_seconds,
            ..DeleteParams::default()
        };
        let answer = api.delete(&entry.name, &params).await;
        self.metrics.api_write("delete", name);
        match answer {
            Ok(_) => {
                // Or another bot would be taken down beside it until the watch has told.
                if entry.slot == Slot::Pod {
                    self.index.leaves(entry);
                }
                Ok(())
            }
            // Another object of that name is a conflict, and looked at when the watch has told of it.
            Err(error) if ClusterError::is_not_found(&error) => Ok(()),
            Err(error) => Err(ClusterError::of(&format!("{name} {}/{}", entry.namespace, entry.name), &error)),
        }
    }
}

fn tenant_of(namespace: &Namespace) -> Option<String> {
    namespace.metadata.labels.as_ref().and_then(|labels| labels.get(label::TENANT)).cloned()
}

/// A child as it is sent, and its hash, which it carries.
fn as_applied(child: &Child) -> (Value, String) {
    let mut wanted = child.to_value();
    let hash = hash::of(&wanted);
    set_annotation(&mut wanted, annotation::APPLIED_HASH, &hash);
    (wanted, hash)
}

fn set_annotation(object: &mut Value, key: &str, value: &str) {
    object["metadata"]["annotations"][key] = Value::String(value.to_owned());
}

fn is_invalid(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_invalid())
}

/// Whether the API server refused nothing but a change of immutable `StatefulSet` fields, of which only the
/// claims' size ever changes. Up to 1.36 it names no field, from 1.37 on the claim templates.
fn only_claims_differ(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let causes = status.details.as_ref().map(|details| details.causes.as_slice()).unwrap_or_default();
    let names_claims = |cause: &StatusCause| cause.field.starts_with("spec.volumeClaimTemplates");
    let forbids = |cause: &StatusCause| cause.message.contains("updates to statefulset spec for fields other than");
    status.is_invalid() && !causes.is_empty() && causes.iter().all(|cause| names_claims(cause) || forbids(cause))
}

/// A password of 32 random hexadecimal characters (128 bits).
fn password() -> Result<String, getrandom::Error> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The contents of a new generated Secret.
fn generate(what: &str) -> Result<BTreeMap<String, String>, ClusterError> {
    let mut failure = None;
    let values = secret_values(|| password().map_err(|error| failure = Some(error)).unwrap_or_default());
    match failure {
        None => Ok(values),
        Some(error) => {
            Err(ClusterError::Transient { what: what.to_owned(), reason: format!("no random numbers: {error}") })
        }
    }
}

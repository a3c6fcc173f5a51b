//! Kubernetes Events, published when an outcome changes and never a reason to fail a pass.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1 as stored;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client};

use super::error::ClusterError;
use super::status::Own;
use crate::api::{GROUP, VERSION};
use crate::leader::LeaderGuard;
use crate::metrics::Metrics;

/// The API server refuses longer notes.
const NOTE_LENGTH: usize = 1_000;

/// Events about cluster-scoped objects go there.
const NAMESPACE: &str = "default";

/// An Event that is published once, whatever happens to the process that publishes it.
#[derive(Clone, Copy, Debug)]
pub struct Once<'a> {
    /// Names the Event: a second one of the same name is none.
    pub id: &'a str,
    /// When it happened.
    pub at: Timestamp,
    /// One word for programs.
    pub reason: &'static str,
    /// A sentence for people.
    pub note: &'a str,
}

/// Publishes Events about Torpor's own resources.
#[derive(Clone)]
pub struct Events {
    component: &'static str,
    client: Client,
    recorder: Recorder,
    metrics: Metrics,
    leader: LeaderGuard,
}

impl Events {
    /// A publisher over this client.
    pub fn new(component: &'static str, client: Client, metrics: Metrics, leader: LeaderGuard) -> Self {
        let recorder = Recorder::new(client.clone(), Reporter::from(component));
        Events { component, client, recorder, metrics, leader }
    }

    /// Publishes one Event. A failure is logged and forgotten.
    pub async fn publish(&self, kind: Own, object: &ObjectMeta, type_: EventType, reason: &'static str, note: &str) {
        if !self.leader.is_valid() {
            return;
        }
        self.publish_about(&reference(kind, object), type_, reason, note).await;
    }

    /// Publishes one Event about any object. A failure is logged and forgotten.
    pub async fn publish_about(&self, about: &ObjectReference, type_: EventType, reason: &'static str, note: &str) {
        if !self.leader.is_valid() {
            return;
        }
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note.chars().take(NOTE_LENGTH).collect()),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        self.metrics.event_published(reason);
        if let Err(error) = self.recorder.publish(&event, about).await {
            tracing::warn!(%error, reason, "event was not published");
        }
    }
    /// Publishes an Event about a cluster-scoped object, once and for all: its name is made of `once.id`, so that a
    /// process that was killed right after publishing it, and its successor, do not publish it again.
    ///
    /// # Errors
    /// [`ClusterError`], classified. An Event that is there already is no error.
    pub async fn publish_once(&self, kind: Own, object: &ObjectMeta, once: Once<'_>) -> Result<(), ClusterError> {
        if !self.leader.is_valid() {
            return Err(ClusterError::NotLeading);
        }
        let name = object.name.as_deref().unwrap_or_default();
        let event = stored::Event {
            metadata: ObjectMeta {
                name: Some(format!("{name}.{}", crate::plan::hash::of(&once.id.into()))),
                namespace: Some(NAMESPACE.to_owned()),
                ..ObjectMeta::default()
            },
            event_time: Some(MicroTime(once.at)),
            type_: Some("Warning".to_owned()),
            reason: Some(once.reason.to_owned()),
            action: Some("Warn".to_owned()),
            note: Some(once.note.chars().take(NOTE_LENGTH).collect()),
            regarding: Some(reference(kind, object)),
            reporting_controller: Some(self.component.to_owned()),
            reporting_instance: Some(self.component.to_owned()),
            ..stored::Event::default()
        };
        let api: Api<stored::Event> = Api::namespaced(self.client.clone(), NAMESPACE);
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => {
                self.metrics.event_published(once.reason);
                Ok(())
            }
            Err(error) if ClusterError::is_conflict(&error) => Ok(()),
            Err(error) => Err(ClusterError::of(&format!("Event {} of {name}", once.reason), &error)),
        }
    }
}

fn reference(kind: Own, object: &ObjectMeta) -> ObjectReference {
    ObjectReference {
        api_version: Some(format!("{GROUP}/{VERSION}")),
        kind: Some(kind.as_str().to_owned()),
        name: object.name.clone(),
        namespace: object.namespace.clone(),
        uid: object.uid.clone(),
        ..ObjectReference::default()
    }
}

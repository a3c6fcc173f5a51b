//! Kubernetes Events, published when an outcome changes and never a reason to fail a pass.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};

use super::status::Own;
use crate::api::{GROUP, VERSION};
use crate::domain::names::OPERATOR;
use crate::leader::LeaderGuard;
use crate::metrics::Metrics;

/// The API server refuses longer notes.
const NOTE_LENGTH: usize = 1_000;

/// Publishes Events about Torpor's own resources.
#[derive(Clone)]
pub struct Events {
    recorder: Recorder,
    metrics: Metrics,
    leader: LeaderGuard,
}

impl Events {
    /// A publisher over this client.
    pub fn new(client: Client, metrics: Metrics, leader: LeaderGuard) -> Self {
        Events { recorder: Recorder::new(client, Reporter::from(OPERATOR)), metrics, leader }
    }

    /// Publishes one Event. A failure is logged and forgotten.
    pub async fn publish(&self, kind: Own, object: &ObjectMeta, type_: EventType, reason: &'static str, note: &str) {
        if !self.leader.is_valid() {
            return;
        }
        let reference = ObjectReference {
            api_version: Some(format!("{GROUP}/{VERSION}")),
            kind: Some(kind.as_str().to_owned()),
            name: object.name.clone(),
            namespace: object.namespace.clone(),
            uid: object.uid.clone(),
            ..ObjectReference::default()
        };
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note.chars().take(NOTE_LENGTH).collect()),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        self.metrics.event_published(reason);
        if let Err(error) = self.recorder.publish(&event, &reference).await {
            tracing::warn!(%error, reason, "event was not published");
        }
    }
}

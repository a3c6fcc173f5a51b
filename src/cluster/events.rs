//! Kubernetes Events, published when an outcome changes and never a reason to fail a pass, or to make it wait.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1 as stored;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client};
use tokio::sync::{mpsc, oneshot};

use super::error::{ClusterError, within};
use super::status::Own;
use crate::api::{GROUP, VERSION};
use crate::leader::LeaderGuard;
use crate::metrics::Metrics;

/// Bytes of a note. The API server refuses more than 1024.
const NOTE_LENGTH: usize = 1_000;

/// Events about cluster-scoped objects go there.
const NAMESPACE: &str = "default";

/// So many wait at most. One that finds no place is counted and forgotten: status and log tell the same.
const WAITING: usize = 1_000;

/// The recorder counts repetitions, and for that it remembers what it published, over a kilobyte each. It starts anew after so
/// many, or after [`QUIET`]; a repetition across that is an Event of its own.
const REMEMBERED: u32 = 256;

/// A repetition that comes after so long a pause is news again.
const QUIET: Duration = Duration::from_secs(60);

/// An Event that takes longer is lost: others wait behind it.
const PATIENCE: Duration = Duration::from_secs(8);

/// How long a process that ends waits for the Events that are on their way.
const LAST: Duration = Duration::from_secs(1);

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

/// What waits for its turn.
enum Waiting {
    Event(Box<ObjectReference>, Event, &'static str),
    /// Answered when all before it are published.
    Flush(oneshot::Sender<()>),
}

/// Publishes Events about Torpor's own resources, one after the other beside the passes.
#[derive(Clone)]
pub struct Events {
    component: &'static str,
    client: Client,
    waiting: mpsc::Sender<Waiting>,
    metrics: Metrics,
    leader: LeaderGuard,
}

impl Events {
    /// A publisher over this client. Its task ends with the last clone.
    pub fn new(component: &'static str, client: Client, metrics: Metrics, leader: LeaderGuard) -> Self {
        let (waiting, queue) = mpsc::channel(WAITING);
        tokio::spawn(publish(component, client.clone(), queue, metrics.clone(), leader.clone()));
        Events { component, client, waiting, metrics, leader }
    }

    /// Publishes one Event soon. A failure is logged, counted and forgotten.
    pub fn publish(&self, kind: Own, object: &ObjectMeta, type_: EventType, reason: &'static str, note: &str) {
        self.publish_about(reference(kind, object), type_, reason, note);
    }

    /// Publishes one Event about any object soon. A failure is logged, counted and forgotten.
    pub fn publish_about(&self, about: ObjectReference, type_: EventType, reason: &'static str, note: &str) {
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(cut(note)),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        if self.waiting.try_send(Waiting::Event(Box::new(about), event, reason)).is_err() {
            self.metrics.event_lost(reason);
            tracing::debug!(reason, "too many events wait, this one was not published");
        }
    }

    /// Waits until what was published before is with the API server, for a second at most.
    pub async fn flush(&self) {
        let (done, published) = oneshot::channel();
        let flushed = async {
            if self.waiting.send(Waiting::Flush(done)).await.is_ok() {
                let _ = published.await;
            }
        };
        let _ = tokio::time::timeout(LAST, flushed).await;
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
            note: Some(cut(once.note)),
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
            Err(error) if ClusterError::is_there(&error) => Ok(()),
            Err(error) => Err(ClusterError::of(&format!("Event {} of {name}", once.reason), &error)),
        }
    }
}

async fn publish(
    component: &'static str,
    client: Client,
    mut queue: mpsc::Receiver<Waiting>,
    metrics: Metrics,
    leader: LeaderGuard,
) {
    let anew = || (Recorder::new(client.clone(), Reporter::from(component)), 0);
    let (mut recorder, mut published) = anew();
    loop {
        let next = if let Ok(next) = tokio::time::timeout(QUIET, queue.recv()).await {
            next
        } else {
            (recorder, published) = anew();
            queue.recv().await
        };
        if published >= REMEMBERED {
            (recorder, published) = anew();
        }
        match next {
            Some(Waiting::Event(about, event, reason)) if leader.is_valid() => {
                published += 1;
                let what = format!("Event {reason}");
                let answer =
                    async { recorder.publish(&event, &about).await.map_err(|error| ClusterError::of(&what, &error)) };
                match within(PATIENCE, &what, answer).await {
                    Ok(()) => metrics.event_published(reason),
                    Err(error) => {
                        metrics.event_lost(reason);
                        tracing::warn!(%error, reason, "event was not published");
                    }
                }
            }
            Some(Waiting::Event(_, _, reason)) => metrics.event_lost(reason),
            Some(Waiting::Flush(done)) => {
                let _ = done.send(());
            }
            None => return,
        }
    }
}

fn cut(note: &str) -> String {
    let mut end = note.len().min(NOTE_LENGTH);
    while !note.is_char_boundary(end) {
        end -= 1;
    }
    note[..end].to_owned()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_cut_between_characters() {
        assert_eq!(cut("short"), "short");
        // Three bytes each, and a thousand is no multiple of three.
        assert_eq!(cut(&"界".repeat(600)).len(), 999);
    }
}

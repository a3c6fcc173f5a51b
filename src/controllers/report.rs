//! How a pass ends: status, Event, metrics and the time of the next pass, all from its outcome.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::controller::Action;

use super::context::{Context, Key, Written};
use super::outcome::{Outcome, SHOWN_AFTER};
use crate::api::conditions::READY;
use crate::cluster::status::Own;
use crate::status::find;
use crate::status::own::Status;

/// How a pass ended.
#[derive(Debug)]
pub struct Turn {
    /// When the next one is due.
    pub action: Action,
    /// The outcome's name as a metric label.
    pub outcome: &'static str,
}

impl Turn {
    /// The turn of an outcome after so many failures in a row.
    pub fn of(outcome: &Outcome, failures: u32) -> Self {
        Turn { action: outcome.next(failures), outcome: outcome.label() }
    }
}

/// The status that a pass starts from: what the watch shows, or what an earlier pass wrote and it does not show yet.
pub fn current<S: Status>(context: &Context, kind: Own, metadata: &ObjectMeta, shown: Option<&S>) -> S {
    let key = key(kind, metadata);
    let version = metadata.resource_version.as_deref().unwrap_or_default();
    context
        .memory
        .unseen(&key, version)
        .and_then(|written| serde_json::from_value(written.status).ok())
        .or_else(|| shown.cloned())
        .unwrap_or_default()
}

/// Ends a pass. `new` computes the operator's part of the status from the outcome; it is written if it differs.
pub async fn finish<S: Status>(
    context: &Context,
    kind: Own,
    metadata: &ObjectMeta,
    old: &S,
    outcome: Outcome,
    new: impl FnOnce(&Outcome) -> S,
) -> Turn {
    let key = key(kind, metadata);
    let failures = if let Outcome::Transient(_) = outcome {
        context.memory.failed(&key)
    } else {
        context.memory.succeeded(&key);
        0
    };
    context.metrics.set_in_backoff(kind.as_str(), context.memory.failing(kind.as_str()));
    if let Outcome::Transient(message) = &outcome {
        tracing::warn!(
            kind = key.kind,
            namespace = key.namespace,
            name = key.name,
            failures,
            "{message}; trying again"
        );
        if failures < SHOWN_AFTER {
            return Turn::of(&outcome, failures);
        }
    }
    if matches!(outcome, Outcome::Again) {
        return Turn::of(&outcome, failures);
    }
    let status = new(&outcome);
    if old.own() == status.own() {
        return Turn::of(&outcome, failures);
    }
    let told = ready_reason(&status) != ready_reason(old);
    match context.status.write(kind, metadata, &status).await {
        Ok(Some(_)) => {
            let merged = serde_json::to_value(status.over(old)).unwrap_or_default();
            let from = metadata.resource_version.clone().unwrap_or_default();
            context.memory.wrote(&key, Written { from, status: merged });
        }
        Ok(None) => return Turn::of(&outcome, failures),
        Err(error) => {
            tracing::warn!(kind = key.kind, name = key.name, %error, "status was not written; trying again");
            return Turn::of(&Outcome::Transient(error.to_string()), context.memory.failed(&key));
        }
    }
    if told && let Some(ready) = find(status.conditions(), READY) {
        let verdicts = outcome.verdicts();
        let reason = verdicts.map_or(READY, |verdicts| verdicts.ready.reason);
        tracing::info!(kind = key.kind, namespace = key.namespace, name = key.name, reason, "{}", ready.message);
        context.events.publish(kind, metadata, outcome.event_type(), reason, &ready.message).await;
    }
    Turn::of(&outcome, failures)
}

fn key(kind: Own, metadata: &ObjectMeta) -> Key {
    Key::new(kind, metadata.namespace.as_deref(), metadata.name.as_deref().unwrap_or_default())
}

fn ready_reason<S: Status>(status: &S) -> Option<(String, crate::api::ConditionStatus)> {
    find(status.conditions(), READY).map(|ready| (ready.reason.clone(), ready.status))
}

//! Objects that the API server stores and this version cannot read. They get a Stalled condition and an Event,
//! and stop neither their watch nor other objects. What runs is left as it is.

use kube::core::error_boundary::InvalidObject;

use super::context::{Context, Key};
use super::outcome::Outcome;
use super::report::Turn;
use super::{removal, report};
use crate::api::{BotFleetStatus, DeletionPolicy, TenantStatus, WorkerPoolStatus};
use crate::cluster::status::Own;
use crate::status::{self, Seen};

fn told(invalid: &InvalidObject) -> Outcome {
    Outcome::Undecodable(format!(
        "the stored object cannot be read: {}; correct it, what runs is left as it is",
        invalid.error
    ))
}

/// Runs the pass over an object unless this version of it has been reported. A report that was not written is
/// made again by the next pass.
async fn once(context: &Context, kind: Own, invalid: &InvalidObject, pass: impl Future<Output = Turn>) -> Turn {
    let metadata = &invalid.metadata;
    let key = Key::new(kind, metadata.namespace.as_deref(), metadata.name.as_deref().unwrap_or_default());
    let version = (metadata.uid.clone().unwrap_or_default(), metadata.generation.unwrap_or_default());
    if metadata.deletion_timestamp.is_none() && context.memory.was_told(&key, &version) {
        return Turn::again();
    }
    let turn = pass.await;
    if turn.outcome == told(invalid).label() {
        context.memory.tell(&key, version);
    }
    turn
}

fn seen(context: &Context, invalid: &InvalidObject) -> Seen {
    Seen { generation: invalid.metadata.generation.unwrap_or_default(), now: context.clock.now() }
}

/// A Tenant. When it is deleted its policy is unknown, so its data stays.
pub async fn tenant(context: &Context, invalid: &InvalidObject) -> Turn {
    once(context, Own::Tenant, invalid, async {
        let old: TenantStatus = report::current(context, Own::Tenant, &invalid.metadata, None);
        let outcome = if invalid.metadata.deletion_timestamp.is_some() {
            removal::tenant(context, &invalid.metadata, DeletionPolicy::Retain).await
        } else {
            told(invalid)
        };
        let seen = seen(context, invalid);
        report::finish(context, Own::Tenant, &invalid.metadata, &old, (outcome, None), |outcome| TenantStatus {
            observed_generation: outcome.is_final().then_some(seen.generation),
            conditions: outcome
                .verdicts()
                .map(|v| status::conditions(&old.conditions, v, None, seen))
                .unwrap_or_default(),
            ..TenantStatus::default()
        })
        .await
    })
    .await
}

/// A `BotFleet`.
pub async fn fleet(context: &Context, invalid: &InvalidObject) -> Turn {
    once(context, Own::BotFleet, invalid, async {
        let old: BotFleetStatus = report::current(context, Own::BotFleet, &invalid.metadata, None);
        let outcome = if invalid.metadata.deletion_timestamp.is_some() {
            removal::fleet(context, &invalid.metadata).await
        } else {
            told(invalid)
        };
        let seen = seen(context, invalid);
        report::finish(context, Own::BotFleet, &invalid.metadata, &old, (outcome, None), |outcome| BotFleetStatus {
            observed_generation: outcome.is_final().then_some(seen.generation),
            conditions: outcome
                .verdicts()
                .map(|v| status::conditions(&old.conditions, v, None, seen))
                .unwrap_or_default(),
            ..BotFleetStatus::default()
        })
        .await
    })
    .await
}

/// A `WorkerPool`.
pub async fn pool(context: &Context, invalid: &InvalidObject) -> Turn {
    once(context, Own::WorkerPool, invalid, async {
        let old: WorkerPoolStatus = report::current(context, Own::WorkerPool, &invalid.metadata, None);
        let seen = seen(context, invalid);
        report::finish(context, Own::WorkerPool, &invalid.metadata, &old, (told(invalid), None), |outcome| {
            WorkerPoolStatus {
                observed_generation: outcome.is_final().then_some(seen.generation),
                conditions: outcome
                    .verdicts()
                    .map(|v| status::conditions(&old.conditions, v, None, seen))
                    .unwrap_or_default(),
                ..WorkerPoolStatus::default()
            }
        })
        .await
    })
    .await
}

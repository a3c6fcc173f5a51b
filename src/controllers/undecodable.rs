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

/// Whether this version of the object has not been reported yet.
fn is_news(context: &Context, kind: Own, invalid: &InvalidObject) -> bool {
    let metadata = &invalid.metadata;
    let key = Key::new(kind, metadata.namespace.as_deref(), metadata.name.as_deref().unwrap_or_default());
    let uid = metadata.uid.as_deref().unwrap_or_default();
    metadata.deletion_timestamp.is_some() || context.memory.tell(&key, uid, metadata.generation.unwrap_or_default())
}

fn seen(context: &Context, invalid: &InvalidObject) -> Seen {
    Seen { generation: invalid.metadata.generation.unwrap_or_default(), now: context.clock.now() }
}

/// A Tenant. When it is deleted its policy is unknown, so its data stays.
pub async fn tenant(context: &Context, invalid: &InvalidObject) -> Turn {
    if !is_news(context, Own::Tenant, invalid) {
        return Turn::of(&Outcome::Again, 0);
    }
    let old: TenantStatus = report::current(context, Own::Tenant, &invalid.metadata, None);
    let outcome = if invalid.metadata.deletion_timestamp.is_some() {
        removal::tenant(context, &invalid.metadata, DeletionPolicy::Retain).await
    } else {
        told(invalid)
    };
    let seen = seen(context, invalid);
    report::finish(context, Own::Tenant, &invalid.metadata, &old, outcome, |outcome| TenantStatus {
        observed_generation: outcome.is_final().then_some(seen.generation),
        conditions: outcome.verdicts().map(|v| status::conditions(&old.conditions, v, None, seen)).unwrap_or_default(),
        ..TenantStatus::default()
    })
    .await
}

/// A `BotFleet`.
pub async fn fleet(context: &Context, invalid: &InvalidObject) -> Turn {
    if !is_news(context, Own::BotFleet, invalid) {
        return Turn::of(&Outcome::Again, 0);
    }
    let old: BotFleetStatus = report::current(context, Own::BotFleet, &invalid.metadata, None);
    let outcome = if invalid.metadata.deletion_timestamp.is_some() {
        removal::fleet(context, &invalid.metadata).await
    } else {
        told(invalid)
    };
    let seen = seen(context, invalid);
    report::finish(context, Own::BotFleet, &invalid.metadata, &old, outcome, |outcome| BotFleetStatus {
        observed_generation: outcome.is_final().then_some(seen.generation),
        conditions: outcome.verdicts().map(|v| status::conditions(&old.conditions, v, None, seen)).unwrap_or_default(),
        ..BotFleetStatus::default()
    })
    .await
}

/// A `WorkerPool`.
pub async fn pool(context: &Context, invalid: &InvalidObject) -> Turn {
    if !is_news(context, Own::WorkerPool, invalid) {
        return Turn::of(&Outcome::Again, 0);
    }
    let old: WorkerPoolStatus = report::current(context, Own::WorkerPool, &invalid.metadata, None);
    let seen = seen(context, invalid);
    report::finish(context, Own::WorkerPool, &invalid.metadata, &old, told(invalid), |outcome| WorkerPoolStatus {
        observed_generation: outcome.is_final().then_some(seen.generation),
        conditions: outcome.verdicts().map(|v| status::conditions(&old.conditions, v, None, seen)).unwrap_or_default(),
        ..WorkerPoolStatus::default()
    })
    .await
}

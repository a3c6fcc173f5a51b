//! The custom resources a user writes and reads, with their conditions and reasons.
//!
//! This room holds types only. Doc comments of fields become the descriptions that
//! `kubectl explain` shows, so they are written for the user of the resource.

pub mod bot_fleet;
pub mod common;
pub mod conditions;
pub mod crds;
pub mod reference;
pub mod tenant;
pub mod worker_pool;

pub use bot_fleet::{BotFleet, BotFleetSpec, BotFleetStatus, Strategy, StrategyKind};
pub use common::{Resources, Tier};
pub use conditions::{Condition, ConditionStatus};
pub use tenant::{DeletionPolicy, HibernationMode, Tenant, TenantSpec, TenantStatus};
pub use worker_pool::{WorkerPool, WorkerPoolSpec, WorkerPoolStatus};

/// API group of every custom resource.
pub const GROUP: &str = "torpor.dev";
/// The one served and stored version.
pub const VERSION: &str = "v1alpha1";

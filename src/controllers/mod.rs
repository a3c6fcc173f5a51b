//! One controller for each of Torpor's resources: a pass each, and the loop that runs them.

pub mod bot_fleet;
pub mod census;
pub mod children;
pub mod context;
pub mod feeds;
pub mod fleet_views;
pub mod hibernation;
pub mod outcome;
pub mod places;
pub mod recheck;
pub mod removal;
pub mod report;
pub mod rollout;
pub mod run;
pub mod sight;
pub mod starting;
pub mod steps;
pub mod stops;
pub mod tenant;
pub mod tenant_status;
pub mod triggers;
pub mod undecodable;
pub mod volumes;
pub mod wake_parts;
pub mod worker_pool;
pub mod workloads;

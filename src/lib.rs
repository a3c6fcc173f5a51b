//! Torpor runs the whole stack of every tenant of a trading-bot service on Kubernetes, puts idle tenants
//! to sleep in stages, and wakes them.
//!
//! # Rooms
//!
//! | room | what it does | may see |
//! |---|---|---|
//! | [`api`] | custom resources, conditions, reasons | nothing |
//! | [`domain`] | names, quantities, tier catalogue, stages | nothing |
//! | [`validate`] | what a user wrote → values that can be planned, or all problems | nothing |
//! | [`plan`] | values and the parts that are up → ordered, typed objects | nothing |
//! | [`hibernation`] | policy, activity, time → stage, warnings, breaker; who is next | nothing |
//! | [`placement`] | pools and nodes → members, disputes, marks | nothing |
//! | [`status`] | old status, observations, outcome → new status | the time, passed in |
//! | [`cluster`] | watches, index, apply, delete, status writes, events | the kube client |
//! | [`controllers`] | one pass for each resource, and the loop that runs them | the context |
//! | [`gateway`] | portals' requests → Tenant status; the page on which users wait | the cluster room |
//! | [`http`] | servers with their limits; probes and metrics | the context |
//! | [`webhook`] | one signed warning, sent to a receiver outside of the cluster | an HTTP client |
//! | [`cli`] | flags, files, start | environment, files |
//!
//! The flow of one Tenant: decode (guarded) → dereference → validate → plan → apply → prune → replace pods →
//! observe → status. `ARCHITECTURE.md` says where to add things.

pub mod api;
#[allow(clippy::disallowed_types, clippy::disallowed_methods)]
pub mod cli;
pub mod clock;
#[allow(clippy::disallowed_types)]
pub mod cluster;
pub mod controllers;
pub mod domain;
pub mod gateway;
pub mod hibernation;
pub mod http;
pub mod leader;
pub mod metrics;
pub mod placement;
pub mod plan;
pub mod status;
pub mod telemetry;
pub mod validate;
pub mod webhook;

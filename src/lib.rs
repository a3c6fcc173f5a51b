//! Torpor runs the stack of every tenant of a trading-bot service on Kubernetes.
pub mod api;
pub mod cli;
pub mod domain;
pub mod plan;
pub mod validate;

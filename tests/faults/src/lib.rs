//! Faults between one Torpor process and the API server, and judgement from outside of what became of the cluster.
//!
//! Nothing here links the operator: it runs as a process that is given the address of a [`proxy`] as its API server. The proxy
//! sees every request and every frame of a watch and does to them what a [`plan`] says. What the cluster holds afterwards is
//! read past the proxy ([`api`]) and judged by the [`oracle`]s.

pub mod api;
pub mod broken_watch;
pub mod canonical;
pub mod deciders;
pub mod disasters;
pub mod door;
pub mod faults;
pub mod hostile;
pub mod kwok;
pub mod leaders;
pub mod matrix;
pub mod observer;
pub mod oracle;
pub mod plan;
pub mod probes;
pub mod proxy;
pub mod record;
pub mod refused;
pub mod relay;
pub mod report;
pub mod request;
pub mod rig;
pub mod soak;
pub mod trial;
pub mod watches;
pub mod workflow;

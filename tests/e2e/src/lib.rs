//! Torpor end to end: a Kubernetes with real kubelets, containers and packets on one machine.
//!
//! [`node::Cluster`] brings it up and takes it down; [`netpol`] is what enforces NetworkPolicies on its nodes. Needs
//! root on Debian or a relative of it.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod exchange;
pub mod images;
pub mod netpol;
pub mod node;
pub mod selftest;

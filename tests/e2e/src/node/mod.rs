//! A Kubernetes of two nodes on one machine, each node in namespaces of its own.
//!
//! Every machine of the cluster is a set of kernel namespaces (network, processes, mounts, host name): the control
//! plane, each node, the router between them, and each "outside world" that a test makes. A node has its own `/run`,
//! `/var/lib` and `/var/log`, so containerd and the kubelet run as on a machine of their own. Whatever ends us, the
//! kernel ends those namespaces with everything in them: containers, mounts, links, packet filters.
//!
//! The router knows no way off the machine, and its guard drops and counts what a pod would send there.

mod addons;
mod cgroup;
mod cluster;
mod command;
mod control;
mod images;
mod network;
mod preflight;
mod programs;
mod runtime;
mod space;
mod state;
mod store;
mod worker;
mod world;

pub use cluster::{Cluster, Options, build};
pub use images::TOOLS as TOOLS_IMAGE;
pub use preflight::{Missing, check as check_machine};
pub use state::{clean, home, run_dir};
pub use worker::{Container, Worker};
pub use world::{Arrival, Connection, World};

//! A real Kubernetes control plane on this machine, for tests, demo and benches.
//!
//! etcd, kube-apiserver, kube-controller-manager, kube-scheduler and kwok run as plain processes on loopback ports;
//! kwok plays the nodes, so pods become Running without a container. The programs are built from the Go modules
//! pinned in `tools/go.mod`, once, into the user's cache folder.
//!
//! ```no_run
//! use torpor_cluster::{Cluster, Options};
//!
//! let cluster = Cluster::connect_or_start(Options::default())?;
//! println!("{}", cluster.kubectl(["get", "nodes"])?);
//! # Ok::<(), anyhow::Error>(())
//! ```

mod audit;
mod cluster;
pub mod control_plane;
mod go_module;
pub mod image;
pub mod kstatus;
mod kubectl;
pub mod oci;
mod options;
pub mod pki;
pub mod process;
mod tools;
pub mod torpor;

pub use audit::{AuditEvent, AuditLog, AuditMark};
pub use cluster::{Cluster, KUBECONFIG_ENV, Refused};
pub use go_module::{GoModule, GoProgram};
pub use kubectl::Kubectl;
pub use options::{NodeCapacity, NodeSpec, Options, POOL_LABEL, POOLS};
pub use tools::{Tools, build_once, cache_dir, fnv1a as hash};

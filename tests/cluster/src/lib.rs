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
mod control_plane;
pub mod kstatus;
mod options;
mod pki;
mod process;
mod tools;

pub use audit::{AuditEvent, AuditLog, AuditMark};
pub use cluster::{Cluster, KUBECONFIG_ENV, Refused};
pub use options::{NodeCapacity, NodeSpec, Options, POOL_LABEL, POOLS};
pub use tools::{Tools, cache_dir};

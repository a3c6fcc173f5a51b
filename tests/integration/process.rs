//! The binary under test as processes of its own.

use torpor_cluster::Cluster;

pub use torpor_cluster::torpor::{Process, Program};

/// The binary under test.
pub const TORPOR: &str = env!("CARGO_BIN_EXE_torpor");

/// A subcommand of the binary under test under the account that the chart gives it.
pub fn program(cluster: &Cluster, subcommand: &str) -> Program {
    Program::new(TORPOR.as_ref(), cluster, subcommand)
}

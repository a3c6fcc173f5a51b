//! The mock exchange as a program, to run in the network namespace that plays the internet.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Result;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use torpor_e2e::exchange::{market::Rules, server};

/// A mock exchange that keeps a record of what bots did
#[derive(Parser)]
struct Args {
    /// Where it listens
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// File for the record, one JSON object a line; it must not exist yet
    #[arg(long, value_name = "FILE")]
    record: PathBuf,
    /// Seconds that a silent bot keeps its lock
    #[arg(long, default_value_t = 15, value_name = "SECONDS")]
    lease: u64,
    /// Seconds that an order is open before it may be filled
    #[arg(long, default_value_t = 3, value_name = "SECONDS")]
    fill_after: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    let rules = Rules { lease: Duration::from_secs(args.lease), fill_after: Duration::from_secs(args.fill_after) };
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    };
    server::serve(args.listen, &args.record, rules, stop).await
}

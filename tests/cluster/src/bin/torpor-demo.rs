//! `torpor-demo`: what `make demo` and `make demo-stop` run. It shows four tenants being served by a real operator
//! on a local cluster, puts one to sleep and wakes it, and leaves everything running to look at.

#[path = "../demo/mod.rs"]
mod demo;
#[path = "../signals.rs"]
mod signals;

use std::process::ExitCode;

use clap::{Parser, Subcommand, error::ErrorKind};
use torpor_cluster::Refused;

use demo::{serve, show, state};

/// Shows Torpor on a local cluster; without a subcommand it starts the demo.
#[derive(Parser)]
#[command(name = "torpor-demo", version)]
struct Cli {
    #[command(subcommand)]
    command: Option<Action>,
}

#[derive(Subcommand)]
enum Action {
    /// Stop what the demo left running
    Stop,
    #[command(hide = true)]
    Serve,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            let text = error.to_string();
            if asked {
                print!("{text}");
                return ExitCode::SUCCESS;
            }
            eprintln!("{}", text.lines().next().unwrap_or_default());
            return ExitCode::from(2);
        }
    };
    let result = match cli.command {
        None => show::run(),
        Some(Action::Stop) => state::stop(),
        // Whoever started it tells of its failure.
        Some(Action::Serve) => return serve::run().map_or_else(|error| code(&error), |()| ExitCode::SUCCESS),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            code(&error)
        }
    }
}

fn code(error: &anyhow::Error) -> ExitCode {
    if error.is::<Refused>() || error.is::<demo::BadInput>() { ExitCode::from(2) } else { ExitCode::FAILURE }
}

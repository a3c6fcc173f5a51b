//! Parses arguments, dispatches, and turns the result into an exit code.

use std::process::ExitCode;

use clap::Parser;
use torpor::cli::{self, Cli};

fn main() -> ExitCode {
    match cli::run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("torpor: {failure}");
            ExitCode::from(failure.code)
        }
    }
}

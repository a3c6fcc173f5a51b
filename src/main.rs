//! Parses arguments, dispatches, and turns the result into an exit code.

use std::process::ExitCode;

use clap::Parser;
use torpor::cli::{self, Cli};

/// Pages of lists come and go between what stays. The C library's allocator keeps twice what is in use for that.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match cli::run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("torpor: {failure}");
            ExitCode::from(failure.code)
        }
    }
}

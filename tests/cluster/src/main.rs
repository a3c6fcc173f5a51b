//! `torpor-cluster`: a local Kubernetes for Torpor's tests, demo and benches, from the command line.

mod daemon;
mod run;
mod signals;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Args, Parser, Subcommand, error::ErrorKind};
use torpor_cluster::{Refused, Tools};

/// A real Kubernetes control plane on this machine, with nodes that kwok plays.
#[derive(Parser)]
#[command(name = "torpor-cluster", version)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Build the programs into the cache folder; once, minutes
    Build,
    /// Print the folder of the built programs
    BinDir,
    /// Start a cluster in the background
    Up(UpArgs),
    /// Stop the cluster that `up` started
    Down,
    /// Start a cluster (or use the one of TORPOR_KUBECONFIG), run a command with KUBECONFIG and PATH set, stop it
    Run {
        /// The command and its arguments
        #[arg(required = true, last = true)]
        command: Vec<OsString>,
    },
    #[command(hide = true)]
    Serve(UpArgs),
}

/// How the cluster of `up` is made.
#[derive(Args)]
struct UpArgs {
    /// Keep data and logs in this folder, which must be absent or empty
    #[arg(long, value_name = "DIR", value_parser = empty_folder)]
    keep_dir: Option<PathBuf>,
    /// Nodes for each of the four worker pools
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = nodes)]
    nodes_per_pool: usize,
}

fn empty_folder(text: &str) -> Result<PathBuf, String> {
    let dir = PathBuf::from(text);
    let entries = std::fs::read_dir(&dir).map(|entries| entries.take(1).count());
    match entries {
        _ if text.is_empty() => Err("an empty path".into()),
        Ok(1..) => Err("the folder is not empty".into()),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.to_string()),
        _ => Ok(dir),
    }
}

fn nodes(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number <= 500 => Ok(number),
        _ => Err("a number from 0 to 500 is needed".into()),
    }
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    match execute(cli.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            if error.is::<Refused>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

/// clap explains itself over many lines; one says it.
fn refuse(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            print!("{error}");
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            eprintln!("error: what to do is missing: build, bin-dir, up, down or run (see --help)");
            ExitCode::from(2)
        }
        _ => {
            let text = error.to_string();
            let lines = text.lines().take_while(|line| !line.is_empty());
            let line = lines.map(str::trim).collect::<Vec<_>>().join(" ");
            eprintln!("{line}");
            ExitCode::from(2)
        }
    }
}

fn execute(command: Action) -> Result<ExitCode> {
    match command {
        Action::Build => println!("{}", Tools::ensure()?.path().display()),
        Action::BinDir => println!("{}", Tools::dir()?.display()),
        Action::Up(args) => daemon::up(&args)?,
        Action::Serve(args) => daemon::serve(&args)?,
        Action::Down => daemon::down()?,
        Action::Run { command } => return run::run(&command),
    }
    Ok(ExitCode::SUCCESS)
}

//! `torpor-e2e`: a Kubernetes with real nodes on this machine, from the command line.

mod daemon;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use anyhow::{Result, anyhow};
use clap::{Args, Parser, Subcommand};
use torpor_e2e::{
    node::{self, Cluster, Missing, Options},
    scenarios, selftest,
};

/// A Kubernetes with real kubelets, containers and packets on this machine. Needs root on Debian or a relative of it.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Start the cluster in the background
    Up(UpArgs),
    /// Stop the cluster that `up` started, and clear away what a killed one left
    Down,
    /// Start the cluster, run a command with KUBECONFIG and PATH set, stop it
    Run {
        #[command(flatten)]
        up: UpArgs,
        /// The command and its arguments
        #[arg(required = true, last = true)]
        command: Vec<OsString>,
    },
    /// Install Torpor on such a cluster and show what it does there
    Test(TestArgs),
    /// Start the cluster, show that it is what scenarios take it for, stop it
    SelfTest(UpArgs),
    /// Build the images of what tenants run, and print the names of their archives
    Images,
    /// Build all that the other commands would build, images included, and start nothing
    Build,
    #[command(hide = true)]
    Serve(UpArgs),
}

/// What is shown.
#[derive(Args)]
struct TestArgs {
    /// OCI archive of Torpor's own image, as `make image` writes it
    #[arg(long, value_name = "FILE")]
    image: PathBuf,
    /// How many times each tenant is woken to measure it
    #[arg(long, value_name = "N", default_value_t = 10)]
    wakes: usize,
    /// Copy the logs of all programs there at the end
    #[arg(long, value_name = "DIR")]
    keep_logs: Option<PathBuf>,
    /// Only scenarios whose name contains this
    filter: Option<String>,
}

impl TestArgs {
    fn run(self) -> Result<ExitCode> {
        let settings = scenarios::Settings {
            image: std::path::absolute(self.image)?,
            filter: self.filter,
            wakes: self.wakes,
            keep_logs: self.keep_logs.map(std::path::absolute).transpose()?,
        };
        let (passed, failed) = scenarios::run(&settings)?;
        println!("{passed} passed, {failed} failed");
        Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// How the cluster is made.
#[derive(Args)]
struct UpArgs {
    /// Number of nodes
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: u8,
    /// Copy the logs of all programs there at the end
    #[arg(long, value_name = "DIR")]
    keep_logs: Option<PathBuf>,
    /// OCI archives to import on every node
    #[arg(long = "image", value_name = "FILE")]
    images: Vec<PathBuf>,
}

impl UpArgs {
    fn options(&self) -> Result<Options> {
        let images = self.images.iter().map(std::path::absolute).collect::<Result<_, _>>()?;
        let keep_logs = self.keep_logs.as_ref().map(std::path::absolute).transpose()?;
        Ok(Options { nodes: self.nodes, images, keep_logs, ..Options::default() })
    }
}

fn self_test(options: Options) -> Result<ExitCode> {
    let cluster = Cluster::start(selftest::options(options))?;
    selftest::run(&cluster)?;
    Ok(ExitCode::SUCCESS)
}

fn images() -> Result<ExitCode> {
    for archive in torpor_e2e::images::ensure(|line| eprintln!("{line}"))? {
        println!("{}", archive.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn build() -> Result<ExitCode> {
    // Before both would install what is missing.
    node::check_machine()?;
    // Parts of either keep one processor only.
    let (nodes, images) = std::thread::scope(|scope| {
        let nodes = scope.spawn(node::build);
        let images = images();
        (nodes.join(), images)
    });
    nodes.map_err(|_| anyhow!("the builder of nodes panicked"))??;
    images
}

/// The exit code when the machine lacks something.
const MISSING: u8 = 3;

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Action::Up(_) => daemon::up(),
        Action::Serve(args) => args.options().and_then(daemon::serve),
        Action::Down => daemon::down(),
        Action::Test(args) => args.run(),
        Action::Images => images(),
        Action::Build => build(),
        Action::SelfTest(args) => args.options().and_then(self_test),
        Action::Run { up, command } => up.options().and_then(|options| daemon::run(options, &command)),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            let missing = error.downcast_ref::<Missing>();
            match missing {
                Some(missing) => missing.0.iter().for_each(|line| eprintln!("missing: {line}")),
                None => eprintln!("error: {error:#}"),
            }
            if missing.is_some() { ExitCode::from(MISSING) } else { ExitCode::FAILURE }
        }
    }
}

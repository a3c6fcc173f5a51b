//! The subcommands of `torpor`, one file each. The only room that reads environment and files.

pub mod check;
pub mod crds;
pub mod gateway;
pub mod hibernator;
pub mod operator;
pub mod process;
pub mod render;

use clap::{Parser, Subcommand};

use crate::plan::Settings;

/// Runs the trading stack of every tenant on Kubernetes and puts idle tenants to sleep.
#[derive(Debug, Parser)]
#[command(name = "torpor", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the operator: turn Tenants, BotFleets and WorkerPools into what they ask for.
    Operator(operator::OperatorArgs),
    /// Run the hibernator: decide when idle tenants sleep, and warn their users.
    Hibernator(hibernator::HibernatorArgs),
    /// Run the gateway: take logins, wake tenants, show users how far it is.
    Gateway(gateway::GatewayArgs),
    /// Ask addresses whether they are well, one line each; what `helm test` runs.
    Check(check::CheckArgs),
    /// Print the CustomResourceDefinitions, or write them into a folder.
    Crds(crds::CrdsArgs),
    /// Check Tenant files and print the objects they become, without a cluster.
    Render(render::RenderArgs),
}

/// A failure to be told in one line, with the exit code it ends the process with.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Place and remedy.
    pub message: String,
    /// 2 for bad input, 1 for everything else.
    pub code: u8,
}

impl Failure {
    /// Something the user gave is wrong.
    pub fn input(message: impl std::fmt::Display) -> Self {
        Failure { message: message.to_string(), code: 2 }
    }

    /// Something went wrong that is not the input's fault.
    pub fn run(message: impl std::fmt::Display) -> Self {
        Failure { message: message.to_string(), code: 1 }
    }
}

/// Runs a subcommand.
///
/// # Errors
/// [`Failure`], one line.
pub fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Operator(args) => operator::run(args),
        Command::Hibernator(args) => hibernator::run(args),
        Command::Gateway(args) => gateway::run(args),
        Command::Check(args) => check::run(args),
        Command::Crds(args) => crds::run(&args),
        Command::Render(args) => {
            let text = args.run(&Settings::default()).map_err(Failure::input)?;
            write(&text)
        }
    }
}

/// Writes to standard output. A reader that has enough, like `head`, is no failure.
fn write(text: &str) -> Result<(), Failure> {
    use std::io::{ErrorKind, Write};
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Failure::run(format!("standard output: {error}"))),
        _ => Ok(()),
    }
}

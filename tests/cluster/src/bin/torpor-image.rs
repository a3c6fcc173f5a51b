//! `torpor-image`: Torpor's container image without a Docker daemon, from the command line.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};
use torpor_cluster::image::{self, Source};

/// Builds Torpor's image from the sources in the folder where it is started.
#[derive(Parser)]
#[command(name = "torpor-image", version)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Write torpor.oci.tar and torpor.sbom.json
    Build {
        /// The folder to write into; target/image by default
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Put the files of the image into a folder, as the Dockerfile does
    Rootfs {
        /// An empty folder
        dir: PathBuf,
    },
    /// Build the commit twice, look at the result and leave it in target/image; minutes
    Check,
}

fn main() -> ExitCode {
    match execute(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Action) -> Result<()> {
    let source = Source::find(&std::env::current_dir()?)?;
    let usual = source.dir.join("target/image");
    match command {
        Action::Build { out } => {
            let image = image::build(&source, &out.unwrap_or(usual))?;
            println!("{} {}\n{}\n{}", image.name, image.digest, image.archive.display(), image.sbom.display());
        }
        Action::Rootfs { dir } => {
            std::fs::create_dir_all(&dir)?;
            image::rootfs(&source, &std::path::absolute(dir)?)?;
        }
        Action::Check => {
            let image = image::check(&source, &usual)?;
            println!("{}", image.archive.display());
        }
    }
    Ok(())
}

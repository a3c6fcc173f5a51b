//! `torpor-bench`: measures, prints a table, writes JSON.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use jiff::Timestamp;
use torpor_bench::bench::{Bench, FULL, QUICK, Size};
use torpor_bench::measure::{ALL, Measurement};
use torpor_bench::report::{Machine, Report, Row};
use torpor_bench::world::project;

/// Measures Torpor on a local control plane.
#[derive(Parser)]
struct Arguments {
    /// `quick` (the default) or `full`, and measurements by name; without a name those that are done in about 8 or 40 minutes.
    words: Vec<String>,
    /// The binary under test. Default: torpor beside this program.
    #[arg(long)]
    torpor: Option<PathBuf>,
    /// The folder of the JSON document.
    #[arg(long)]
    out: Option<PathBuf>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let (mut size, mut names) = (QUICK, Vec::new());
    for word in &arguments.words {
        match word.as_str() {
            "quick" => size = QUICK,
            "full" => size = FULL,
            name if ALL.iter().any(|known| known.name == name) => names.push(name),
            unknown => {
                eprintln!("no measurement {unknown}; there are (after quick or full):");
                for Measurement { name, about, .. } in &ALL {
                    eprintln!("  {name:<9} {about}");
                }
                return Ok(ExitCode::from(2));
            }
        }
    }
    run(&arguments, size, &names)
}

fn run(arguments: &Arguments, size: Size, names: &[&str]) -> Result<ExitCode> {
    let beside = std::env::current_exe()?.parent().context("this program has no folder")?.to_owned();
    let began = Timestamp::now();
    let binary = arguments.torpor.clone().unwrap_or_else(|| beside.join("torpor"));
    let mut bench = Bench::new(size, binary, beside.join("torpor-replay"));
    let words: Vec<&str> = std::iter::once(size.name).chain(names.iter().copied()).collect();
    let out = arguments.out.clone().unwrap_or_else(|| project().join("target/bench"));
    let mut report =
        Report { size: size.name.to_owned(), began: began.to_string(), machine: Machine::here(), rows: Vec::new() };
    let mut failed = 0;
    let wanted = |one: &&Measurement| match names {
        [] => !size.by_name_only.contains(&one.name),
        names => names.contains(&one.name),
    };
    for Measurement { name, about, run, .. } in ALL.iter().filter(wanted) {
        bench.progress.say(format_args!("{name}: {about}"));
        let began = Instant::now();
        // What was measured before is told all the same.
        if let Err(error) = run(&mut bench) {
            bench.progress.say(format_args!("{name} FAILED: {error:#}"));
            failed += 1;
        }
        bench.rows.push(Row::one("took", *name, began.elapsed().as_secs_f64() / 60.0, "min"));
        report.rows.clone_from(&bench.rows);
        // So that a run that is stopped has not been for nothing.
        report.write(&out, &words.join("-"))?;
    }
    bench.forget_fleet();
    println!("{report}");
    println!("written to {}", out.display());
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

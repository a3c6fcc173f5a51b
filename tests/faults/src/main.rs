//! `torpor-chaos`: faults at every request of the operator, from the command line.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use serde_json::json;
use torpor_faults::matrix::{self, Courses, Settings};
use torpor_faults::report::{self, Row};
use torpor_faults::rig;
use torpor_faults::{broken_watch, deciders, disasters, faults, hostile, leaders, soak};

/// Kills Torpor, and lies to it, at each of its requests, and compares what becomes of the cluster.
#[derive(Parser)]
#[command(name = "torpor-chaos", version)]
struct Cli {
    /// What to do. Default: everything that an hour, or --minutes, is enough for
    #[command(subcommand)]
    part: Option<Part>,
    /// Only workflows whose name contains this, or one of these, separated by commas
    #[arg(long, global = true)]
    only: Option<String>,
    /// So many trials in all, instead of every one
    #[arg(long, global = true, value_name = "N")]
    sample: Option<usize>,
    /// Chooses the sample; a run can be repeated by it. Default: by chance
    #[arg(long, global = true)]
    seed: Option<u64>,
    /// Clusters beside each other
    #[arg(long, global = true, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    lanes: u8,
    /// After so many minutes nothing is begun any more; what was left out is told
    #[arg(long, global = true, value_name = "N")]
    minutes: Option<u64>,
    /// Pairs of kills for each of create and wake
    #[arg(long, global = true, default_value_t = 0, value_name = "N")]
    pairs: usize,
    /// The binary under test. Default: the one beside this
    #[arg(long, global = true)]
    torpor: Option<PathBuf>,
    /// Where the results are written as JSON
    #[arg(long, global = true, default_value = "target/chaos")]
    out: PathBuf,
}

#[derive(Clone, Copy, Subcommand)]
enum Part {
    /// The process is killed before, during and after each of its writes
    Crash,
    /// Each write meets each kind of error
    Errors,
    /// Each kind of write is refused for as long as a workflow takes
    Refused,
    /// etcd, API server, controller manager and scheduler are killed at each write
    World,
    /// Old lists after each write, late watches, changes that are never told
    Stale,
    /// Two API servers, one of which is behind
    Servers,
    /// etcd set back, the API server away for minutes, clocks that jump, a full disk
    Disasters,
    /// Each watch is broken in each way
    Watches,
    /// The leader is stopped past its lease at writes, and goes on
    Leaders,
    /// Hibernator and gateway are killed before, during and after each of their writes, or answered with an error
    Deciders,
    /// Objects whose fields hold anything
    Hostile,
    /// Changes and errors for half an hour, or --minutes: what the process holds must not grow
    Soak,
}

impl Part {
    fn title(self) -> (&'static str, &'static str) {
        match self {
            Self::Crash => ("crash", "killed at each write"),
            Self::Errors => ("errors", "errors at each write"),
            Self::Refused => ("refused", "each write refused for good"),
            Self::World => ("world", "what Torpor stands on is killed at each write"),
            Self::Stale => ("stale", "what was is taken for what is"),
            Self::Servers => ("servers", "two API servers, one behind"),
            Self::Disasters => ("disasters", "what befalls the whole cluster"),
            Self::Watches => ("watches", "each watch broken"),
            Self::Leaders => ("leaders", "stopped past the lease"),
            Self::Deciders => ("deciders", "hibernator and gateway, a fault at each write"),
            Self::Hostile => ("hostile", "fields that hold anything"),
            Self::Soak => ("soak", "changes and errors for a long time"),
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(violations) => {
            eprintln!("{violations} violations");
            ExitCode::from(1)
        }
        Err(error) => {
            eprintln!("torpor-chaos: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// What a run of everything consists of: a part, how many minutes it may take of 60, and how many cases that is enough for.
const EVERYTHING: [(Part, u64, Option<usize>); 12] = [
    (Part::Crash, 11, Some(250)),
    (Part::Errors, 6, Some(260)),
    (Part::Refused, 5, Some(75)),
    (Part::World, 4, Some(50)),
    (Part::Stale, 4, Some(50)),
    (Part::Servers, 3, Some(25)),
    (Part::Leaders, 3, Some(4)),
    (Part::Watches, 5, None),
    (Part::Disasters, 5, None),
    (Part::Deciders, 4, Some(40)),
    (Part::Hostile, 4, None),
    (Part::Soak, 2, None),
];
/// Clusters beside each other in such a run. Most of the time is spent on waiting.
const LANES: usize = 3;
/// Pairs of kills of each workflow that has some, in such a run.
const PAIRS: usize = 6;
/// Minutes of a run of everything where none are given.
const HOUR: u64 = 60;

fn run(cli: Cli) -> Result<usize> {
    let (beside, root) = rig::places()?;
    let seed = cli.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let after = |minutes: u64| Instant::now() + Duration::from_secs(60 * minutes);
    let settings = Settings {
        torpor: cli.torpor.unwrap_or(beside),
        root,
        lanes: cli.lanes.into(),
        only: cli.only,
        sample: cli.sample,
        seed,
        pairs: cli.pairs,
        end: cli.minutes.map(after),
        courses: Courses::default(),
    };
    println!("seed {seed}");
    if let Some(part) = cli.part {
        return one(part, &settings, &cli.out);
    }
    ensure!(settings.only.is_none() && settings.sample.is_none(), "--only and --sample need a part, such as crash");
    let (began, minutes) = (Instant::now(), cli.minutes.unwrap_or(HOUR));
    let (mut violations, mut took) = (0, Vec::new());
    for (number, (part, share, sample)) in (0..).zip(EVERYTHING) {
        // By one seed each part would leave out the same workflows where its time is up.
        let seed = seed.wrapping_add(number);
        println!("{}, seed {seed}", part.title().0);
        let sample = sample.map(|sample| (sample * usize::try_from(minutes).unwrap_or(1)).div_ceil(60));
        // The API server that is away for ten minutes, with 300 tenants, is a run of its own.
        let only = matches!(part, Part::Disasters).then(|| "restored,clocks,disk".to_owned());
        let end = Some(Instant::now() + Duration::from_secs(share * minutes));
        let lanes = settings.lanes.max(LANES);
        let pairs = settings.pairs.max(PAIRS);
        let part_began = Instant::now();
        violations += one(part, &Settings { sample, only, seed, end, lanes, pairs, ..settings.clone() }, &cli.out)?;
        took.push(format!("{} {:.1}", part.title().0, part_began.elapsed().as_secs_f64() / 60.0));
    }
    println!("{:.1} min: {}", began.elapsed().as_secs_f64() / 60.0, took.join(", "));
    Ok(violations)
}

/// Runs one part, prints what was found and writes it.
fn one(part: Part, settings: &Settings, out: &Path) -> Result<usize> {
    let (name, title) = part.title();
    let mut measured = json!([]);
    let rows: Vec<Row> = match part {
        Part::Crash => matrix::run(settings, &faults::kills().into())?,
        Part::Errors => matrix::run(settings, &faults::errors())?,
        Part::Refused => matrix::run(settings, &faults::refusals())?,
        Part::World => matrix::run(settings, &faults::components().into())?,
        Part::Stale => matrix::run(settings, &faults::stale())?,
        Part::Servers => matrix::run(settings, &faults::servers())?,
        Part::Disasters => runtime()?.block_on(disasters::run(settings))?,
        Part::Watches => {
            let (rows, found) = runtime()?.block_on(broken_watch::run(settings))?;
            measured = json!(found);
            rows
        }
        Part::Hostile => {
            let (rows, found) = runtime()?.block_on(hostile::run(settings))?;
            measured = json!(found);
            rows
        }
        Part::Soak => {
            let (rows, found) = runtime()?.block_on(soak::run(settings))?;
            measured = json!(found);
            rows
        }
        Part::Leaders => runtime()?.block_on(leaders::run(settings))?,
        Part::Deciders => runtime()?.block_on(deciders::run(settings))?,
    };
    print!("{}", report::table(title, &rows));
    let violations = rows.iter().map(|row| row.violations.len()).sum();
    std::fs::create_dir_all(out)?;
    let file = out.join(format!("{name}.json"));
    let result =
        json!({"part": name, "seed": settings.seed, "sample": settings.sample, "rows": rows, "measured": measured});
    std::fs::write(&file, serde_json::to_vec_pretty(&result)?).with_context(|| file.display().to_string())?;
    // What has met nothing has shown nothing. The parts after it are run all the same.
    if violations == 0 && rows.iter().all(|row| row.met == 0) {
        println!("VIOLATION: {name}: no fault has met anything");
        return Ok(1);
    }
    Ok(violations)
}

//! The least that an operator for the same tenants takes when it is written with controller-runtime (`benches/twin`): memory, and
//! the time until each tenant has had a pass in which nothing was to be done; against the operator's, in rounds.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use torpor_cluster::process::bound_to_us;
use torpor_cluster::{GoModule, GoProgram};

use super::restart::verified_after;
use crate::bench::Bench;
use crate::memory::{Rss, of_pid, rss};
use crate::report::Row;
use crate::world::{LONG, World};

const NAME: &str = "twin";
/// The twin gives back what its start took five seconds after it has verified all.
const SETTLES: Duration = Duration::from_secs(10);
/// What it keeps of an object, from the library's default to what one that thinks of memory does.
const MODES: [&str; 3] = ["whole", "stripped", "metadata"];

const MODULE: GoModule = GoModule {
    name: "bench-twin",
    files: &[
        ("main.go", include_str!("../../twin/main.go")),
        ("types.go", include_str!("../../twin/types.go")),
        ("go.mod", include_str!("../../twin/go.mod")),
        ("go.sum", include_str!("../../twin/go.sum")),
    ],
    programs: &[GoProgram { name: "twin", package: ".", ldflags: "", tags: "", cgo: false }],
};

/// What one start of one program showed.
#[derive(Default)]
struct Starts {
    seconds: Vec<f64>,
    settled: Vec<f64>,
    peak: Vec<f64>,
}

impl Starts {
    fn add(&mut self, seconds: f64, memory: Rss) {
        self.seconds.push(seconds);
        self.settled.push(memory.now);
        self.peak.push(memory.peak);
    }

    fn rows(&self, who: &str, count: usize) -> [Row; 3] {
        [
            Row::of(NAME, format!("{who}, from exec until {count} tenants were verified"), &self.seconds, "s"),
            Row::of(NAME, format!("{who}, {count} tenants, settled"), &self.settled, "MiB"),
            Row::of(NAME, format!("{who}, {count} tenants, peak of the start"), &self.peak, "MiB"),
        ]
    }
}

/// Measures.
pub fn run(bench: &mut Bench) -> Result<()> {
    let program = MODULE.build()?.join("twin");
    let mut fleet = bench.fleet()?;
    let count = fleet.tenants.len();
    let (mut ours, mut theirs) = (Starts::default(), MODES.map(|_| Starts::default()));
    let rounds = bench.size.twin_rounds;
    for round in 0..rounds {
        // So that all of them have, on average, the same place.
        let mut order: Vec<Option<usize>> = std::iter::once(None).chain((0..MODES.len()).map(Some)).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for turn in order {
            match turn {
                None => {
                    let seconds = verified_after(&mut fleet.world, count)?;
                    fleet.world.await_settled()?;
                    ours.add(seconds, rss(fleet.world.operator()?)?);
                }
                Some(mode) => {
                    let mut twin = Twin::start(&program, &fleet.world, MODES[mode], count)?;
                    let seconds = twin.verified(count)?;
                    std::thread::sleep(SETTLES);
                    theirs[mode].add(seconds, of_pid(twin.child.id())?);
                }
            }
        }
        bench.progress.say(format_args!("twin, round {} of {rounds}", round + 1));
    }
    bench.rows.extend(ours.rows("operator", count));
    for (mode, theirs) in MODES.into_iter().zip(&theirs) {
        let ratios = |ours: &[f64], theirs: &[f64]| ours.iter().zip(theirs).map(|(o, t)| t / o).collect::<Vec<_>>();
        bench.rows.extend(theirs.rows(&format!("controller-runtime, {mode}"), count));
        bench.rows.extend([
            Row::of(
                NAME,
                format!("settled, controller-runtime, {mode} / operator"),
                &ratios(&ours.settled, &theirs.settled),
                "",
            ),
            Row::of(
                NAME,
                format!("verified, controller-runtime, {mode} / operator"),
                &ratios(&ours.seconds, &theirs.seconds),
                "",
            ),
        ]);
    }
    bench.keep(fleet);
    Ok(())
}

/// The other program, while it runs.
struct Twin {
    child: Child,
    began: Instant,
}

impl Twin {
    fn start(program: &Path, world: &World, mode: &str, count: usize) -> Result<Self> {
        let log = std::fs::File::create(world.cluster.data_dir().join(format!("twin-{mode}.log")))?;
        let began = Instant::now();
        let child = bound_to_us(program)
            .arg("--kubeconfig")
            .arg(world.cluster.kubeconfig())
            .args(["--mode", mode, "--tenants", &count.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("twin")?;
        Ok(Self { child, began })
    }

    /// Waits until every tenant has had a pass, and tells how many seconds that took since the start.
    fn verified(&mut self, count: usize) -> Result<f64> {
        let output = self.child.stdout.take().context("no output")?;
        let (tell, told) = channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let read = BufReader::new(output).read_line(&mut line).map(|_| line);
            // Nobody listens after the limit.
            let _ = tell.send(read);
        });
        let line = told.recv_timeout(LONG).context("the twin verifies nothing; its log tells more")??;
        let seconds = self.began.elapsed().as_secs_f64();
        ensure!(line == format!("verified {count}\n"), "the twin says {line:?} of {count} tenants; its log tells more");
        Ok(seconds)
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

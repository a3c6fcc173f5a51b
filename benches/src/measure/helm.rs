//! The same tenant as a release of Helm: creation, an upgrade that changes nothing, and one that changes an image's tag, so
//! many processes at a time as a pipeline would run; against the operator on the same cluster, in blocks that alternate.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Error, Result, ensure};
use jiff::Timestamp;
use serde_json::json;
use torpor_cluster::AuditEvent;

use super::creation::{operator_block, record};
use super::restart::verified_after;
use crate::audit::{Tail, agent, answered, is_write, seconds};
use crate::bench::Bench;
use crate::chart;
use crate::memory::{peak_until_end, rss};
use crate::report::{Goal, Row};
use crate::stats::{Side, abba};
use crate::tenants::{Tenant, alike, samples};
use crate::world::{LONG, QUIET, World};

const NAME: &str = "helm";
/// Processes of Helm at a time: with more, two processors only switch more often.
const AT_ONCE: usize = 8;
const TIER: &str = "basic";
const GOAL: Goal = Goal::AtLeast(10.0);

/// Seconds per tenant of one block, for each thing that is compared.
#[derive(Default)]
struct Times {
    creation: Vec<f64>,
    nothing: Vec<f64>,
    tag: Vec<f64>,
}

/// Measures.
pub fn run(bench: &mut Bench) -> Result<()> {
    bench.forget_fleet();
    let mut world = World::start(&bench.binary, &bench.progress)?;
    let samples: Vec<Tenant> = samples("sample").into_iter().filter(|tenant| tenant.tier == TIER).collect();
    let recording = record(&mut world, &samples)?.pop().context("no recording")?.1;
    let helm = Helm::new(&world)?;
    let objects = chart::write(&helm.chart, &recording)?;
    let (mut ours, mut theirs, mut peaks) = (Times::default(), Times::default(), Vec::new());
    let mut tenants = samples.len();
    for (number, (pair, side)) in abba(bench.size.helm_pairs).into_iter().enumerate() {
        let prefix = if side == Side::A { "o" } else { "h" };
        let part = alike(&format!("{prefix}{pair}"), TIER, bench.size.helm_block);
        let (who, times) = match side {
            Side::A => {
                tenants += part.len();
                by_operator(&mut world, &part, tenants, &mut ours)?;
                ("operator", &ours)
            }
            Side::B => {
                by_helm(&world, &helm, &part, &mut theirs, &mut peaks)?;
                ("helm", &theirs)
            }
        };
        let last = |times: &[f64]| times.last().copied().unwrap_or(f64::NAN) * 1_000.0;
        bench.progress.say(format_args!(
            "helm, block {} of {}: {who}: {} tenants, each {:.0} ms to make, {:.0} ms to find as wanted, {:.0} ms for a tag",
            number + 1,
            2 * bench.size.helm_pairs,
            part.len(),
            last(&times.creation),
            last(&times.nothing),
            last(&times.tag),
        ));
    }
    let operator = rss(world.operator()?)?.peak;
    let columns: [(&str, &[f64], &[f64]); 3] = [
        ("creation", &ours.creation, &theirs.creation),
        ("a pass that changes nothing", &ours.nothing, &theirs.nothing),
        ("a new tag of the dashboard", &ours.tag, &theirs.tag),
    ];
    for (what, ours, theirs) in columns {
        let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| theirs / ours).collect();
        let ms = |times: &[f64]| times.iter().map(|time| time * 1_000.0).collect::<Vec<_>>();
        bench.rows.extend([
            Row::of(NAME, format!("{what}, helm / operator"), &ratios, "").goal(GOAL),
            Row::of(NAME, format!("{what}, operator, per tenant"), &ms(ours), "ms"),
            Row::of(NAME, format!("{what}, helm, per tenant"), &ms(theirs), "ms"),
        ]);
    }
    bench.rows.extend([
        Row::one(NAME, "objects of a release", objects as f64, ""),
        Row::of(NAME, "peak of one helm process", &peaks, "MiB"),
        Row::one(NAME, format!("peak of the operator with {tenants} tenants"), operator, "MiB"),
    ]);
    Ok(())
}

fn by_operator(world: &mut World, part: &[Tenant], all: usize, times: &mut Times) -> Result<()> {
    let each = part.len() as f64;
    let block = operator_block(world, part)?;
    times.creation.push(block.block.issue / each);
    // It looks at all of its tenants, not at this block alone.
    times.nothing.push(verified_after(world, all)? / all as f64);
    world.await_settled()?;
    let names: Vec<String> = part.iter().map(|tenant| tenant.name.clone()).collect();
    let mut tail = Tail::start(&world.cluster)?;
    let began = Timestamp::now();
    world.patch(&names, &json!({"spec": {"dashboard": {"image": "hummingbot/dashboard:next"}}}))?;
    tail.await_silence(&[agent::OPERATOR], QUIET, LONG)?;
    let dashboards: Vec<Timestamp> = tail
        .of(agent::OPERATOR)
        .filter(|event| event.name == "dashboard" && event.resource == "deployments")
        .filter_map(answered)
        .collect();
    ensure!(dashboards.len() == part.len(), "{} dashboards of {} were changed", dashboards.len(), part.len());
    times.tag.push(seconds(began, *dashboards.iter().max().context("no dashboard")?) / each);
    world.await_condition(&names, "Ready", "True")
}

fn by_helm(world: &World, helm: &Helm, part: &[Tenant], times: &mut Times, peaks: &mut Vec<f64>) -> Result<()> {
    let each = part.len() as f64;
    let mut tail = Tail::start(&world.cluster)?;
    times.creation.push(helm.run_all(world, part, &["install", "--create-namespace"], peaks)? / each);
    tail.await_pods(part.iter().map(Tenant::pods).sum(), LONG)?;
    times.nothing.push(helm.run_all(world, part, &["upgrade"], peaks)? / each);
    times.tag.push(helm.run_all(world, part, &["upgrade", "--set", "tag=next"], peaks)? / each);
    Ok(())
}

/// The program and where it keeps things.
struct Helm {
    program: PathBuf,
    kubeconfig: PathBuf,
    home: PathBuf,
    chart: PathBuf,
}

impl Helm {
    fn new(world: &World) -> Result<Self> {
        let home = world.cluster.data_dir().join("helm");
        std::fs::create_dir_all(&home)?;
        Ok(Helm {
            program: world.cluster.bin("helm"),
            kubeconfig: world.cluster.kubeconfig().into(),
            chart: home.join("chart"),
            home,
        })
    }

    /// Runs Helm once for each tenant, and tells how many seconds passed until the last write of the last one.
    fn run_all(&self, world: &World, part: &[Tenant], arguments: &[&str], peaks: &mut Vec<f64>) -> Result<f64> {
        let mut tail = Tail::start(&world.cluster)?;
        let (next, began) = (AtomicUsize::new(0), Timestamp::now());
        let since = Instant::now();
        let found: Result<Vec<Vec<f64>>> = std::thread::scope(|scope| {
            let lanes: Vec<_> = (0..AT_ONCE)
                .map(|_| {
                    scope.spawn(|| {
                        let mut peaks = Vec::new();
                        while let Some(tenant) = part.get(next.fetch_add(1, Ordering::Relaxed)) {
                            peaks.push(self.run_one(&tenant.name, arguments)?);
                        }
                        Ok(peaks)
                    })
                })
                .collect();
            lanes.into_iter().map(|lane| lane.join().map_err(|_| Error::msg("a lane panicked"))?).collect()
        });
        peaks.extend(found?.into_iter().flatten());
        let took = since.elapsed().as_secs_f64();
        // The log may lag behind the last answer.
        std::thread::sleep(QUIET);
        tail.pull()?;
        let helm = |event: &&AuditEvent| event.user_agent.to_lowercase().starts_with(agent::HELM) && is_write(event);
        let last = tail.events.iter().filter(helm).filter_map(answered).max();
        let agents: BTreeSet<&str> = tail.events.iter().map(|event| event.user_agent.as_str()).collect();
        let last = last.with_context(|| format!("helm wrote nothing; there were {agents:?}"))?;
        let until = seconds(began, last);
        ensure!(until <= took, "helm's last write came after its end");
        Ok(until)
    }

    fn run_one(&self, tenant: &str, arguments: &[&str]) -> Result<f64> {
        let log = self.home.join(format!("{tenant}.log"));
        let file = std::fs::File::create(&log)?;
        let (command, rest) = arguments.split_first().context("no command")?;
        let mut child = Command::new(&self.program)
            .args([command, tenant])
            .arg(&self.chart)
            .args(rest)
            .args(["--namespace", &format!("tenant-{tenant}")])
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HELM_CACHE_HOME", self.home.join("cache"))
            .env("HELM_CONFIG_HOME", self.home.join("config"))
            .env("HELM_DATA_HOME", self.home.join("data"))
            .env("KUBECACHEDIR", self.home.join("discovery"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .context("helm")?;
        let (status, peak) = peak_until_end(&mut child)?;
        ensure!(status.success(), "helm {command} {tenant}: {}", read(&log));
        Ok(peak)
    }
}

fn read(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap_or_default().trim().to_owned()
}

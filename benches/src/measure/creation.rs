//! How fast tenants are made: the operator (A) against a blind replayer (B) of what the operator sent; and what the operator
//! wrote for them.
//!
//! A: the operator is stopped (SIGSTOP) while the Tenants are created, and continued. B: no operator runs, the Tenants are
//! created, and the replayer is told to go. Both times end with the last object's creation in the audit log.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Error, Result, ensure};
use jiff::Timestamp;
use serde_json::Value;
use torpor_cluster::torpor;

use crate::audit::{Counts, Tail, Waiting, agent, answered, is_creation, seconds, waiting};
use crate::bench::{Bench, Fleet};
use crate::memory;
use crate::report::{Goal, Row};
use crate::requests::Recording;
use crate::stats::{Side, abba, median};
use crate::tenants::{Tenant, block, samples};
use crate::world::{LONG, QUIET, World};

const NAME: &str = "creation";
const WRITES: &str = "writes";

/// What was listed may be old: for a minute after a start the operator looks once at each new tenant before it writes.
const FRESH: Duration = Duration::from_secs(61);
/// So many tenants are enough to count what is the same for each.
const FEW: usize = 10;

/// One block of tenants.
pub struct Block {
    /// Seconds until the last object was created.
    pub issue: f64,
    /// Seconds until the last pod was Ready.
    pods_ready: f64,
    /// Objects that were created.
    objects: usize,
    /// How the sender used the time until the last object.
    waiting: Waiting,
}

/// A block by the operator, with what only the operator does.
pub struct OperatorBlock {
    /// What both sides have.
    pub block: Block,
    counts: Counts,
    /// Seconds until every Tenant said that it is Ready.
    tenants_ready: f64,
    cpu_ms: f64,
}

/// Measures, and keeps the tenants for others.
pub fn run(bench: &mut Bench) -> Result<()> {
    let mut world = World::start(&bench.binary, &bench.progress)?;
    let mut tenants = samples("sample");
    let recordings = record(&mut world, &tenants)?;
    let (mut by_operator, mut by_replay, mut rewritten) = (Vec::new(), Vec::new(), 0);
    for (number, (pair, side)) in abba(bench.size.pairs).into_iter().enumerate() {
        let part = block(&format!("{}{pair}", if side == Side::A { "a" } else { "b" }), bench.size.block, pair);
        let bots: usize = part.iter().map(|tenant| tenant.bots).sum();
        let what = format!("creation, block {} of {}", number + 1, 2 * bench.size.pairs);
        let block = match side {
            Side::A => {
                rewritten += start(&mut world)?;
                by_operator.push(operator_block(&world, &part)?);
                &by_operator[by_operator.len() - 1].block
            }
            Side::B => {
                world.stop_operator()?;
                by_replay.push(replay_block(bench, &world, &part, &recordings)?);
                &by_replay[by_replay.len() - 1]
            }
        };
        let who = if side == Side::A { "operator" } else { "replayer" };
        bench.progress.say(format_args!(
            "{what}: {who}: {} tenants, {bots} bots, {} objects in {:.2} s, pods Ready after {:.1} s",
            part.len(),
            block.objects,
            block.issue,
            block.pods_ready
        ));
        tenants.extend(part);
        // The replayer's block has ended, and no operator runs.
        if number == 1 {
            super::memory::beside_few(bench, &mut world, tenants.len())?;
        }
    }
    rewritten += start(&mut world)?;
    bench.progress.say("creation: a few more, by an operator that has run for more than a minute");
    std::thread::sleep(FRESH);
    let few = block("late", bench.size.block.min(FEW), 0);
    let late = operator_block(&world, &few)?;
    tenants.extend(few);
    report(bench, &by_operator, &by_replay, (rewritten, &late.counts))?;
    let fleet = Fleet { world, tenants };
    fleet.world.await_condition(&fleet.names(), "Ready", "True")?;
    bench.keep(fleet);
    Ok(())
}

/// Lets the operator make one tenant of each tier, and takes down what it sent.
pub fn record(world: &mut World, samples: &[Tenant]) -> Result<Vec<(Tenant, Recording)>> {
    world.start_operator(&[])?;
    let mut tail = Tail::start(&world.cluster)?.with_bodies();
    world.create(samples)?;
    tail.await_pods(samples.iter().map(Tenant::pods).sum(), LONG)?;
    tail.await_silence(&[agent::OPERATOR], QUIET, LONG)?;
    samples.iter().map(|tenant| Ok((tenant.clone(), Recording::find(&tail.events, &tenant.name)?))).collect()
}

/// Starts the operator if none runs and waits until it has nothing to do. Tells how many objects that it found it wrote anew:
/// if the replayer's tenants are what the operator would have made, none.
fn start(world: &mut World) -> Result<usize> {
    if world.operator.is_some() {
        return Ok(0);
    }
    let mut tail = Tail::start(&world.cluster)?;
    world.start_operator(&[])?;
    tail.await_silence(&[agent::OPERATOR], QUIET, LONG)?;
    let counts = Counts::of(tail.of(agent::OPERATOR));
    Ok(counts.created + counts.changed + counts.deleted)
}

/// Lets the operator make these tenants.
pub fn operator_block(world: &World, tenants: &[Tenant]) -> Result<OperatorBlock> {
    let operator = world.operator()?;
    let names: Vec<String> = tenants.iter().map(|tenant| tenant.name.clone()).collect();
    world.await_settled()?;
    operator.signal("STOP").map_err(Error::msg)?;
    let mut tail = Tail::start(&world.cluster)?;
    world.create(tenants)?;
    let cpu = memory::cpu_ms(operator)?;
    let go = Timestamp::now();
    operator.signal("CONT").map_err(Error::msg)?;
    tail.await_pods(pods(tenants), LONG)?;
    world.await_condition(&names, "Ready", "True")?;
    tail.await_silence(&[agent::OPERATOR], QUIET, LONG)?;
    let status = tail.of(agent::OPERATOR).filter(|event| event.resource == "tenants" && event.subresource == "status");
    let told = status.filter_map(answered).max().context("no Tenant has a status")?;
    Ok(OperatorBlock {
        block: evaluate(&tail, agent::OPERATOR, go)?,
        counts: Counts::of(tail.of(agent::OPERATOR)),
        tenants_ready: seconds(go, told),
        cpu_ms: memory::cpu_ms(operator)? - cpu,
    })
}

fn replay_block(bench: &Bench, world: &World, tenants: &[Tenant], recordings: &[(Tenant, Recording)]) -> Result<Block> {
    let uids = world.create(tenants)?;
    let requests = tenants.iter().zip(&uids).map(|(tenant, uid)| {
        let known = recordings.iter().find(|(sample, _)| sample.tier == tenant.tier);
        known.with_context(|| format!("no recording of tier {}", tenant.tier))?.1.for_tenant(&tenant.name, uid)
    });
    let requests: Vec<Recording> = requests.collect::<Result<_>>()?;
    let file = world.cluster.data_dir().join("replay.json");
    std::fs::write(&file, serde_json::to_vec(&requests)?)?;
    let account = torpor::account(&world.cluster, "operator").map_err(Error::msg)?;
    let mut child = Command::new(&bench.replayer)
        .arg(&file)
        .env("KUBECONFIG", account)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", bench.replayer.display()))?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    let mut lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
    ensure!(lines.next().transpose()?.as_deref() == Some("ready"), "the replayer did not get ready");
    let mut tail = Tail::start(&world.cluster)?;
    let go = Timestamp::now();
    writeln!(stdin, "go")?;
    let result = lines.next().transpose()?.context("the replayer said nothing")?;
    child.wait()?;
    let result: Value = serde_json::from_str(&result)?;
    ensure!(result["failed"] == 0, "the replayer failed: {result}");
    tail.await_pods(pods(tenants), LONG)?;
    let block = evaluate(&tail, agent::REPLAY, go)?;
    let wanted: usize = requests.iter().map(Recording::objects).sum();
    ensure!(block.objects == wanted, "the replayer made {} objects of {wanted}", block.objects);
    Ok(block)
}

fn pods(tenants: &[Tenant]) -> usize {
    tenants.iter().map(Tenant::pods).sum()
}

fn evaluate(tail: &Tail, agent: &str, go: Timestamp) -> Result<Block> {
    let made: Vec<Timestamp> = tail.of(agent).filter(|event| is_creation(event)).filter_map(answered).collect();
    let last = *made.iter().max().context("no object was created")?;
    let kwok = tail.events.iter().filter(|event| event.user == "kwok" && event.resource == "pods");
    let ready = kwok.filter_map(answered).max().context("no pod is Ready")?;
    Ok(Block {
        issue: seconds(go, last),
        pods_ready: seconds(go, ready),
        objects: made.len(),
        waiting: waiting(tail.of(agent), go, last),
    })
}

/// `later`: how many objects a started operator wrote anew, and what one that has run for a while did for a few more tenants.
fn report(bench: &mut Bench, operator: &[OperatorBlock], replay: &[Block], later: (usize, &Counts)) -> Result<()> {
    let (rewritten, late) = later;
    let size = bench.size.block;
    let of = |read: &dyn Fn(&OperatorBlock) -> f64| operator.iter().map(read).collect::<Vec<_>>();
    let of_replay = |read: &dyn Fn(&Block) -> f64| replay.iter().map(read).collect::<Vec<_>>();
    for (one, other) in operator.iter().zip(replay) {
        ensure!(one.block.objects == other.objects, "{} objects against {}", one.block.objects, other.objects);
    }
    let ratios: Vec<f64> = operator.iter().zip(replay).map(|(a, b)| b.issue / a.block.issue).collect();
    let row = |what: &str, samples: &[f64], unit| Row::of(NAME, what, samples, unit);
    let rows = [
        row("issue time, replayer / operator", &ratios, "").goal(Goal::AtLeast(0.95)),
        row(&format!("issue time of {size} tenants, operator"), &of(&|a| a.block.issue), "s"),
        row(&format!("issue time of {size} tenants, replayer"), &of_replay(&|b| b.issue), "s"),
        row("objects a second, operator", &of(&|a| a.block.objects as f64 / a.block.issue), "/s"),
        row("objects a second, replayer", &of_replay(&|b| b.objects as f64 / b.issue), "/s"),
        row(&format!("until all pods of {size} tenants are Ready, operator"), &of(&|a| a.block.pods_ready), "s"),
        row(&format!("until all pods of {size} tenants are Ready, replayer"), &of_replay(&|b| b.pods_ready), "s"),
        row(&format!("until {size} Tenants say Ready"), &of(&|a| a.tenants_ready), "s"),
        row("time with a request at the API server, operator", &of(&|a| a.block.waiting.share * 100.0), "%"),
        row("time with a request at the API server, replayer", &of_replay(&|b| b.waiting.share * 100.0), "%"),
        row("requests at the API server at once, operator", &of(&|a| a.block.waiting.at_once), ""),
        row("requests at the API server at once, replayer", &of_replay(&|b| b.waiting.at_once), ""),
        row("processor time of the operator per tenant", &of(&|a| a.cpu_ms / size as f64), "ms"),
        Row::one(NAME, "replayed objects that the operator wrote again", rewritten as f64, "").goal(Goal::AtMost(0.0)),
    ];
    bench.rows.extend(rows);

    let per_tenant = |read: fn(&Counts) -> usize| of(&|a| read(&a.counts) as f64 / size as f64);
    let amplification =
        of(&|a| (a.counts.created + a.counts.changed + a.counts.deleted) as f64 / a.counts.created as f64);
    let writes = |what: &str, samples: &[f64]| Row::of(WRITES, what, samples, "");
    let status = per_tenant(|counts| counts.tenant_status);
    let rows = [
        writes("writes of objects / objects needed", &amplification).goal(Goal::AtMost(1.0)),
        writes("objects per tenant", &per_tenant(|counts| counts.created)),
        writes("status writes of the Tenant, per tenant", &status).goal(Goal::AtMost(3.0)),
        writes("status writes of its BotFleet, per tenant", &per_tenant(|counts| counts.other_status)),
        writes("finalizers, per tenant", &per_tenant(|counts| counts.finalizers)),
        writes("Events, per tenant", &per_tenant(|counts| counts.events)),
        writes("all writes, per tenant", &per_tenant(Counts::writes)),
        writes("reads, per tenant, the operator having just been started", &per_tenant(|counts| counts.reads)),
        Row::one(WRITES, "reads in all, later than a minute after its start", late.reads as f64, "")
            .goal(Goal::AtMost(0.0)),
        writes("refused writes, per tenant", &per_tenant(|counts| counts.refused)).goal(Goal::AtMost(0.0)),
    ];
    bench.rows.extend(rows);
    bench.progress.say(format_args!("creation: ratio {:.3}", median(&ratios)));
    Ok(())
}

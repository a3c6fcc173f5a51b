//! A thousand reports of activity a second to one gateway, of one tenant and of many: how long each takes, and what is
//! written.

use std::time::{Duration, Instant};

use anyhow::{Error, Result, ensure};

use crate::bench::Bench;
use crate::door::Door;
use crate::memory::rss;
use crate::report::Row;
use crate::stats::percentile;
use crate::tenants::alike;
use crate::world::{World, http_client};

const NAME: &str = "logins";
const TENANTS: usize = 1_000;
const PER_SECOND: u32 = 1_000;

/// Measures.
pub fn run(bench: &mut Bench) -> Result<()> {
    bench.forget_fleet();
    let world = World::start(&bench.binary, &bench.progress)?;
    world.create(&alike("t", "free", TENANTS))?;
    let door = Door::open(&world)?;
    for tenants in [1, TENANTS] {
        // So that the first report of each is news: a tenant that was made a moment ago counts as used.
        for number in 0..tenants {
            door.post(&format!("t-{number}"), "sleep")?;
        }
        bench.progress.say(format_args!("logins: {PER_SECOND} a second of {tenants} tenants"));
        let written = || door.process.counter("torpor_api_writes_total").map_err(Error::msg);
        let (before, memory) = (written()?, rss(&door.process)?.now);
        let (took, refused) = world.block_on(load(&door, tenants, bench.size.logins))?;
        let row = |what: &str, value: f64, unit| Row {
            samples: took.len(),
            ..Row::one(NAME, format!("of {tenants} tenants: {what}"), value, unit)
        };
        bench.rows.extend([
            row("p50", percentile(&took, 50.0), "ms"),
            row("p99", percentile(&took, 99.0), "ms"),
            row("p99.9", percentile(&took, 99.9), "ms"),
            row("answered", took.len() as f64, ""),
            row("refused as too many (503)", refused as f64, ""),
            row("writes", written()? - before, ""),
            row("the gateway before", memory, "MiB"),
            row("the gateway afterwards", rss(&door.process)?.now, "MiB"),
        ]);
    }
    Ok(())
}

/// Sends requests at even distances, whether or not earlier ones were answered, and times each from the moment it was due,
/// in milliseconds. Also tells how many were refused because the gateway had too many at once.
async fn load(door: &Door, tenants: usize, length: Duration) -> Result<(Vec<f64>, usize)> {
    // Nothing is encrypted here, but the client wants to know how it would be. Fails only where that is known already.
    let client = http_client()?;
    let mut due = tokio::time::interval(Duration::from_secs(1) / PER_SECOND);
    let mut requests = tokio::task::JoinSet::new();
    let end = Instant::now() + length;
    for number in 0.. {
        if Instant::now() >= end {
            break;
        }
        let due = due.tick().await;
        let url = format!("http://{}/v1/tenants/t-{}/activity", door.address, number % tenants);
        let request = client.post(url).bearer_auth(&door.token);
        requests.spawn(async move {
            let answer = request.send().await?;
            let refused = answer.status() == 503;
            ensure!(refused || answer.status() == 204, "the gateway answered {}", answer.status());
            Ok((!refused).then(|| due.elapsed().as_secs_f64() * 1_000.0))
        });
    }
    let answers: Vec<Option<f64>> = requests.join_all().await.into_iter().collect::<Result<_>>()?;
    let refused = answers.iter().filter(|answer| answer.is_none()).count();
    Ok((answers.into_iter().flatten().collect(), refused))
}

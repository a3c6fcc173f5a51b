//! Sleep through all stages, and how long it takes to wake.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{
    rig::{BASIC, FREE, Rig, Times, eventually, namespace, text},
    stacks::{row_is_there, shared_buffers_are_as_planned},
};
use crate::exchange::judge::{self, Run};

const STEP: Duration = Duration::from_secs(120);
/// Tenants sleep for days. A database that has just started with its least CPU is still busy with that.
const SETTLED: Duration = Duration::from_secs(10);

/// Copies of a tenant's bots that the exchange has seen.
pub fn copies(rig: &Rig, tenant: &str) -> Result<Vec<Run>> {
    let runs = judge::runs(&rig.record()?);
    Ok(runs.into_iter().filter(|run| run.bot.starts_with(&format!("{}-", namespace(tenant)))).collect())
}

/// Every copy of the tenant's bots has stopped in good order.
pub fn all_stopped_gracefully(rig: &Rig, tenant: &str) -> Result<()> {
    let copies = copies(rig, tenant)?;
    ensure!(!copies.is_empty(), "no bot of {tenant} has ever traded");
    let wrong: Vec<&Run> = copies.iter().filter(|run| run.locked.is_some() && !run.was_graceful()).collect();
    ensure!(wrong.is_empty(), "did not stop in good order: {wrong:#?}");
    Ok(())
}

fn memory_limit(rig: &Rig, tenant: &str) -> Result<String> {
    let pod = rig.get(&["pod", "postgres-0", "-n", &namespace(tenant)])?;
    Ok(text(&pod["spec"]["containers"][0]["resources"]["limits"]["memory"]))
}

fn parts(rig: &Rig, tenant: &str) -> Result<Vec<String>> {
    let pods = rig.list("pods", tenant)?;
    let mut parts: Vec<String> =
        pods.iter().map(|pod| text(&pod["metadata"]["labels"]["app.kubernetes.io/component"])).collect();
    parts.sort();
    parts.dedup();
    Ok(parts)
}

/// The user is seen: idle time starts anew. The gateway writes activity of who is awake every few minutes only, which
/// is too seldom for stages of seconds.
fn log_in(rig: &Rig, tenant: &str) -> Result<()> {
    let now = super::rig::timestamp()?;
    rig.cluster
        .kubectl(["annotate", "--overwrite", "tenant", tenant, &format!("torpor.dev/last-activity={now}")])
        .map(drop)
}

pub fn stages(rig: &Rig) -> Result<()> {
    for tenant in [BASIC, FREE] {
        rig.await_awake(tenant)?;
        log_in(rig, tenant)?;
    }
    let asleep = rig.install(Some(&Times([50, 75, 100]))).and_then(|()| {
        fall_asleep(rig)?;
        // Counted now: with the usual times nobody is idle for long enough, and both may wake before they are asked to.
        Ok([copies(rig, BASIC)?.len(), copies(rig, FREE)?.len()])
    });
    rig.install(None)?;
    for tenant in [BASIC, FREE] {
        rig.portal(tenant, "wake")?;
    }
    for (tenant, before) in [BASIC, FREE].into_iter().zip(asleep?) {
        rig.await_awake(tenant)?;
        row_is_there(rig, tenant)?;
        // A bot is ready a moment before its first tick.
        eventually(Duration::from_secs(30), || {
            let now = copies(rig, tenant)?.len();
            ensure!(now == before + 1, "{tenant} had {before} copies of its bot, and {now} after it woke");
            Ok(())
        })?;
    }
    Ok(())
}

/// Stage by stage: what is left, how bots stopped, and the database at its least.
fn fall_asleep(rig: &Rig) -> Result<()> {
    for tenant in [BASIC, FREE] {
        log_in(rig, tenant)?;
    }
    let full = memory_limit(rig, BASIC)?;
    for (stage, left) in [
        ("BotsStopped", &["dashboard", "database", "monitoring", "redis"][..]),
        ("ServicesStopped", &["database", "monitoring"]),
        ("DatabaseOnly", &["database"]),
    ] {
        for tenant in [BASIC, FREE] {
            rig.await_stage(tenant, stage, STEP)?;
            let found = parts(rig, tenant)?;
            ensure!(found == left, "{tenant} at {stage} has pods of {found:?}");
            all_stopped_gracefully(rig, tenant)?;
        }
        println!("         both tenants at {stage}");
    }
    for tenant in [BASIC, FREE] {
        let least = memory_limit(rig, tenant)?;
        ensure!(least == "128Mi", "the sleeping database of {tenant} may take {least}, awake {full}");
        let buffers = shared_buffers_are_as_planned(rig, tenant)?;
        row_is_there(rig, tenant)?;
        println!(
            "         {tenant}: the database sleeps with {least} and shared_buffers {buffers}, and the row is there"
        );
    }
    Ok(())
}

/// Puts both tenants to sleep by hand and wakes one after the other by a login, again and again. How long that takes is printed and not
/// judged: it depends on what else the machine does.
pub fn wakes(rig: &Rig) -> Result<()> {
    let mut took = [Vec::new(), Vec::new()];
    for _ in 0..rig.wakes {
        for tenant in [BASIC, FREE] {
            rig.await_awake(tenant)?;
            trades(rig, tenant)?;
        }
        for tenant in [BASIC, FREE] {
            rig.portal(tenant, "sleep")?;
        }
        for tenant in [BASIC, FREE] {
            rig.await_stage(tenant, "DatabaseOnly", STEP)?;
        }
        std::thread::sleep(SETTLED);
        for (tenant, took) in [BASIC, FREE].into_iter().zip(&mut took) {
            let token = rig.portal_token()?;
            let began = Instant::now();
            rig.portal_with(&token, tenant, "wake")?;
            until_ready(rig, tenant)?;
            took.push(began.elapsed().as_secs_f64());
        }
    }
    for (tenant, took) in [BASIC, FREE].into_iter().zip(&mut took) {
        all_but_the_last_stopped(rig, tenant)?;
        took.sort_by(f64::total_cmp);
        let (median, max) = (took[took.len() / 2], took[took.len() - 1]);
        println!(
            "         {tenant}: {} wake-ups, all ready after {median:.1} s (median) and {max:.1} s (max)",
            took.len()
        );
    }
    Ok(())
}

/// Waits until the tenant is ready, and awake, by one watch: to ask again and again would cost processor time that the
/// tenant needs.
fn until_ready(rig: &Rig, tenant: &str) -> Result<()> {
    let ready = r#"--for=jsonpath={.status.conditions[?(@.type=="Ready")].reason}=Ready"#;
    let limit = format!("--timeout={}s", STEP.as_secs());
    let waited = rig.cluster.kubectl(["wait", &format!("tenant/{tenant}"), ready, &limit]);
    match waited {
        Ok(_) => Ok(()),
        Err(error) => {
            Err(error.context(format!("{tenant} is not awake: {}", rig.get(&["tenant", tenant])?["status"]["wake"])))
        }
    }
}

/// A bot is ready a moment before its first tick; one that is stopped then never traded.
fn trades(rig: &Rig, tenant: &str) -> Result<()> {
    eventually(STEP, || {
        let trading = copies(rig, tenant)?.iter().filter(|run| run.locked.is_some() && run.end.is_none()).count();
        ensure!(trading == 1, "{trading} copies of the bot of {tenant} trade");
        Ok(())
    })
}

fn all_but_the_last_stopped(rig: &Rig, tenant: &str) -> Result<()> {
    trades(rig, tenant)?;
    let copies = copies(rig, tenant)?;
    let ended: Vec<&Run> = copies.iter().filter(|run| run.end.is_some()).collect();
    let wrong: Vec<&&Run> = ended.iter().filter(|run| !run.was_graceful()).collect();
    let count = ended.len();
    ensure!(count >= rig.wakes && wrong.is_empty(), "of {count} copies these did not stop in good order: {wrong:#?}");
    Ok(())
}

//! At most one copy of each bot, whatever ends or is cut off. The exchange is the judge: it sees every copy that trades.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    rig::{BASIC, FREE, HOME, Rig, eventually, namespace, text},
    sleep::copies,
    stacks::row_is_there,
};
use crate::exchange::judge::{self, Violation};

const LIMIT: Duration = Duration::from_secs(180);

/// Name, uid and restarts of a tenant's pods.
pub fn pods(rig: &Rig, tenant: &str) -> Result<Vec<(String, String, u64)>> {
    let mut pods: Vec<_> = rig
        .list("pods", tenant)?
        .iter()
        .map(|pod| {
            let restarts = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
            let restarts = restarts.filter_map(|status| status["restartCount"].as_u64()).sum();
            (text(&pod["metadata"]["name"]), text(&pod["metadata"]["uid"]), restarts)
        })
        .collect();
    pods.sort();
    Ok(pods)
}

fn no_bot_had_two_copies(rig: &Rig) -> Result<()> {
    let twice = |one: &Violation| matches!(one, Violation::TwoCopies { .. } | Violation::TwoHolders { .. });
    let found: Vec<_> = judge::violations(&rig.record()?).into_iter().filter(twice).collect();
    ensure!(found.is_empty(), "{found:#?}");
    Ok(())
}

/// Node of a tenant's bot.
fn node(rig: &Rig, tenant: &str) -> Result<String> {
    Ok(text(&rig.get(&["pod", "bots-makers-0", "-n", &namespace(tenant)])?["spec"]["nodeName"]))
}

/// The bot has placed orders since so many entries of the record ago.
fn trades_on(rig: &Rig, tenant: &str, since: usize) -> Result<()> {
    let bot = format!("{}-", namespace(tenant));
    eventually(Duration::from_secs(60), || {
        let entries = rig.record()?;
        let alive =
            entries[since.min(entries.len())..].iter().any(|one| one.bot.starts_with(&bot) && one.event.is_activity());
        ensure!(alive, "no bot of {tenant} has shown a sign of life");
        Ok(())
    })
}

/// The kubelet restarts, and the operator is killed without warning: tenants' pods stay as they are.
pub fn restarts(rig: &Rig) -> Result<()> {
    for tenant in [BASIC, FREE] {
        rig.await_awake(tenant)?;
    }
    let before = [pods(rig, BASIC)?, pods(rig, FREE)?];
    for worker in rig.cluster.workers() {
        worker.restart_kubelet()?;
    }
    let killed = rig
        .cluster
        .workers()
        .iter()
        .filter_map(|worker| worker.containers().ok())
        .flatten()
        .filter(|one| one.namespace == HOME && one.name == "operator")
        .filter_map(|one| one.pid)
        .filter_map(|pid| std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().ok())
        .count();
    ensure!(killed > 0, "no operator was found to kill");
    let since = rig.record()?.len();
    eventually(LIMIT, || {
        let pods = rig.get(&["pods", "-n", HOME, "-l", "app.kubernetes.io/component=operator"])?;
        let again = |pod: &Value| {
            let status = &pod["status"]["containerStatuses"][0];
            status["restartCount"].as_u64() > Some(0) && status["ready"] == true
        };
        ensure!(
            pods["items"].as_array().into_iter().flatten().any(again),
            "the operator is not back: {}",
            pods["items"]
        );
        Ok(())
    })?;
    for (tenant, before) in [BASIC, FREE].iter().zip(&before) {
        rig.await_awake(tenant)?;
        trades_on(rig, tenant, since)?;
        let after = pods(rig, tenant)?;
        ensure!(after == *before, "pods of {tenant} changed from {before:?} to {after:?}");
    }
    no_bot_had_two_copies(rig)
}

/// Drain: the bot goes gracefully, waits for its volume's node, and comes back once.
pub fn drain(rig: &Rig) -> Result<()> {
    rig.await_awake(BASIC)?;
    let (node, before) = (node(rig, BASIC)?, copies(rig, BASIC)?.len());
    let drained = closed(rig, &node, before);
    rig.cluster.uncordon(&node)?;
    drained?;
    // The operator may have been on that node, too: what the status says is old until another one leads.
    eventually(LIMIT, || row_is_there(rig, BASIC))?;
    rig.await_awake(BASIC)?;
    eventually(LIMIT, || {
        let now = copies(rig, BASIC)?.len();
        ensure!(now == before + 1, "{now} copies, {before} before the drain");
        Ok(())
    })?;
    no_bot_had_two_copies(rig)
}

fn closed(rig: &Rig, node: &str, before: usize) -> Result<()> {
    rig.cluster.drain(node, LIMIT)?;
    let after = copies(rig, BASIC)?;
    ensure!(
        after.len() == before && after.iter().all(|run| run.locked.is_none() || run.was_graceful()),
        "after the drain: {after:#?}"
    );
    std::thread::sleep(Duration::from_secs(5));
    ensure!(copies(rig, BASIC)?.len() == before, "a bot was started while the node of its volume was closed");
    Ok(())
}

/// A kubelet is cut off until its pods are given up. The bot there trades on, and nobody starts it a second time before it
/// has stopped.
pub fn partition(rig: &Rig) -> Result<()> {
    rig.await_awake(BASIC)?;
    trades_on(rig, BASIC, rig.record()?.len())?;
    let node = node(rig, BASIC)?;
    let before = copies(rig, BASIC)?.len();
    let worker = rig.cluster.worker(&node)?;
    let since = rig.record()?.len();
    worker.partition()?;
    let outcome = cut_off(rig, &node, since, before);
    worker.heal()?;
    outcome?;
    eventually(LIMIT, || {
        let found = rig.get(&["node", &node])?;
        let ready = super::rig::condition(&found, "Ready");
        ensure!(ready["status"] == "True", "node {node}: {ready}");
        Ok(())
    })?;
    eventually(LIMIT, || {
        let given_up = rig.list("pods", BASIC)?.iter().any(|pod| pod["metadata"]["deletionTimestamp"].is_string());
        ensure!(!given_up, "pods of {BASIC} are still being deleted");
        Ok(())
    })?;
    rig.await_awake(BASIC)?;
    let after = copies(rig, BASIC)?;
    let (last, ended) = after.split_last().context("no copies")?;
    ensure!(
        ended.iter().all(|run| run.locked.is_none() || run.was_graceful()),
        "did not stop in good order: {ended:#?}"
    );
    println!(
        "         after the cut the bot of {BASIC} is {}",
        if after.len() == before { "still the same" } else { &last.instance }
    );
    row_is_there(rig, BASIC)?;
    no_bot_had_two_copies(rig)
}

fn cut_off(rig: &Rig, node: &str, since: usize, before: usize) -> Result<()> {
    let given_up = |pod: &Value| pod["metadata"]["deletionTimestamp"].is_string();
    eventually(LIMIT, || {
        let pods = rig.list("pods", BASIC)?;
        ensure!(pods.iter().any(given_up), "node {node} is cut off and none of its pods is given up");
        Ok(())
    })?;
    // Long enough for anybody who would start another.
    std::thread::sleep(Duration::from_secs(20));
    let entries = rig.record()?.len();
    trades_on(rig, BASIC, entries)?;
    ensure!(entries > since, "the exchange has seen nothing since the cut");
    let now = copies(rig, BASIC)?.len();
    ensure!(now == before, "{now} copies while the node is cut off, {before} before");
    let status = rig.get(&["tenant", BASIC])?;
    let ready = super::rig::condition(&status, "Ready");
    ensure!(ready["status"] == "False", "{BASIC} is Ready although its node is cut off: {ready}");
    println!("         cut off: {}", text(&ready["message"]));
    Ok(())
}

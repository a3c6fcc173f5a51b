//! A bot that takes more memory than it may, and one that is stopped while it starts.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{
    copies::pods,
    rig::{BASIC, Rig, eventually, namespace, strategy, tenant, text},
    sleep::copies,
};

/// The fleet whose bot takes too much; its orders stay open, which nobody can help.
pub const HOG: &str = "hog";
const TENANT: &str = "carol";
const LIMIT: Duration = Duration::from_secs(240);
/// Seconds that the late bot takes to start, and those that a bot has to stop. It has been told to for longer than those when it has
/// started.
const START: u64 = 125;
const GRACE: u64 = 120;

fn late(rig: &Rig) -> Result<Value> {
    rig.get(&["pod", "bots-late-0", "-n", &namespace(TENANT)])
}

fn killed(pod: &Value) -> Option<u64> {
    let status = &pod["status"]["containerStatuses"][0];
    let by = |state: &str| status[state]["terminated"]["reason"] == "OOMKilled";
    (by("lastState") || by("state")).then(|| status["restartCount"].as_u64().unwrap_or_default())
}

pub fn run(rig: &Rig) -> Result<()> {
    rig.await_awake(BASIC)?;
    let neighbours = pods(rig, BASIC)?;
    let fleet = |name: &str, more: &str| json!({"name": name, "replicas": 1, "strategy": {"kind": "script", "config": strategy(more)}});
    let fleets =
        [fleet("calm", ""), fleet(HOG, "allocate_mib_per_tick: 32"), fleet("late", &format!("start_seconds: {START}"))];
    rig.apply(&tenant(TENANT, "basic", &fleets))?;
    eventually(LIMIT, || {
        let status = &late(rig)?["status"];
        ensure!(!status["containerStatuses"][0]["state"]["running"].is_null(), "the late bot does not run: {status}");
        Ok(())
    })?;
    // It stops while the other one is looked at.
    rig.apply(&tenant(TENANT, "basic", &fleets[..2]))?;
    let asked = eventually(Duration::from_secs(30), || {
        ensure!(late(rig)?["metadata"]["deletionTimestamp"].is_string(), "nobody stops the late bot");
        // The exchange hears of each bot at each of its ticks.
        Ok(rig.record()?.last().map_or(0, |entry| entry.at))
    })?;
    let calm = |rig: &Rig| -> Result<(String, u64)> {
        let found = pods(rig, TENANT)?.into_iter().find(|(name, ..)| name == "bots-calm-0");
        found.map(|(_, uid, restarts)| (uid, restarts)).ok_or_else(|| anyhow::anyhow!("no bot is calm"))
    };
    let hog = || rig.get(&["pod", &format!("bots-{HOG}-0"), "-n", &namespace(TENANT)]);
    let restarts = eventually(LIMIT, || {
        let pod = hog()?;
        killed(&pod).ok_or_else(|| anyhow::anyhow!("not killed: {}", pod["status"]["containerStatuses"]))
    })?;
    let before = calm(rig)?;
    eventually(LIMIT, || {
        let pod = hog()?;
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"];
        let more = killed(&pod).is_some_and(|now| now > restarts);
        ensure!(
            more || waiting == "CrashLoopBackOff",
            "not started again, with a pause: {}",
            pod["status"]["containerStatuses"]
        );
        Ok(())
    })?;
    let told = eventually(Duration::from_secs(60), || {
        let fleet = rig.get(&["botfleet", HOG, "-n", &namespace(TENANT)])?;
        let ready = super::rig::condition(&fleet, "Ready");
        ensure!(ready["status"] == "False" && text(&ready["message"]).contains("OOMKilled"), "the fleet says {ready}");
        Ok(text(&ready["message"]))
    })?;
    println!("         the fleet says: {told}");
    let after = calm(rig)?;
    ensure!(before == after && after.1 == 0, "the calm bot changed from {before:?} to {after:?}");
    let others = pods(rig, BASIC)?;
    ensure!(others == neighbours, "pods of {BASIC} changed from {neighbours:?} to {others:?}");

    eventually(Duration::from_secs(GRACE + 600), || {
        let left = rig.list("pods", TENANT)?;
        let left = left.iter().any(|pod| pod["metadata"]["name"] == "bots-late-0");
        ensure!(!left, "the late bot is still there");
        Ok(())
    })?;
    let runs: Vec<_> = copies(rig, TENANT)?.into_iter().filter(|run| run.instance.contains("bots-late")).collect();
    let stopping = runs.first().and_then(|run| run.stopping).map(|moment| moment.at.saturating_sub(asked) / 1000);
    let in_order = runs.len() == 1 && (runs[0].locked.is_none() || runs[0].was_graceful());
    ensure!(
        in_order && stopping.is_some_and(|seconds| seconds > GRACE),
        "the late bot did not stop in good order, {stopping:?} s after it was asked to: {runs:#?}"
    );
    println!(
        "         a bot that took {START} s to start, and had {GRACE} s to stop, stopped in good order {stopping:?} s later"
    );
    rig.cluster.kubectl(["delete", "tenant", TENANT, "--timeout=180s"]).map(drop)
}

//! A bot that takes more memory than it may.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{
    copies::pods,
    rig::{BASIC, Rig, eventually, namespace, strategy, tenant, text},
};

/// The fleet whose bot takes too much; its orders stay open, which nobody can help.
pub const HOG: &str = "hog";
const TENANT: &str = "carol";
const LIMIT: Duration = Duration::from_secs(240);

fn killed(pod: &Value) -> Option<u64> {
    let status = &pod["status"]["containerStatuses"][0];
    let by = |state: &str| status[state]["terminated"]["reason"] == "OOMKilled";
    (by("lastState") || by("state")).then(|| status["restartCount"].as_u64().unwrap_or_default())
}

pub fn run(rig: &Rig) -> Result<()> {
    rig.await_awake(BASIC)?;
    let neighbours = pods(rig, BASIC)?;
    let fleet = |name: &str, mebibytes: u32| json!({"name": name, "replicas": 1, "strategy": {"kind": "script", "config": strategy(mebibytes)}});
    rig.apply(&tenant(TENANT, "basic", &[fleet("calm", 0), fleet(HOG, 32)]))?;
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
    rig.cluster.kubectl(["delete", "tenant", TENANT, "--timeout=180s"]).map(drop)
}

//! Objects that the API server stores and the operator cannot read: the schema of a newer version, for example.

use std::time::{Duration, Instant};

use serde_json::Value;
use torpor_cluster::Options;

use crate::alone::{Rig, items, tenants};
use crate::harness::{condition, events, eventually};

/// Five seconds on an idle machine, and room for a busy one.
const SOON: Duration = Duration::from_secs(25);
const LIMIT: Duration = Duration::from_secs(60);

/// They are told of within seconds, and neither hold up others nor lose what runs; corrected they recover, and
/// deleted they go and leave their data.
pub fn unreadable_objects_stop_nobody() -> Result<(), String> {
    let rig = Rig::start(Options::default())?;
    rig.apply(&tenants(3, |_| "basic"))?;
    rig.await_tenants(3, Duration::from_secs(90))?;
    loosen(&rig)?;
    let before = running(&rig)?;
    pools_keep_what_they_have(&rig)?;

    let known = |tenant: Value| (tenant["status"]["hibernation"].clone(), tenant["status"]["bots"].clone());
    let told = known(rig.get(&["tenant/basic-1"])?);

    // One is made unreadable, one comes so, and a fleet.
    let gold = tenants(4, |_| "free").split("---\n").last().unwrap_or_default().replacen("\"free\"", "\"gold\"", 1);
    let began = Instant::now();
    eventually(LIMIT, || rig.apply(&gold))?;
    set(&rig, "tenant/basic-1", r#"{"spec":{"tier":"gold"}}"#)?;
    rig.apply(ODD_FLEET)?;
    for object in ["tenant/free-3", "tenant/basic-1"] {
        stalled(&rig, &[object], began)?;
    }
    stalled(&rig, &["-n", "tenant-basic-2", "botfleet/odd"], began)?;

    let odd = known(rig.get(&["tenant/basic-1"])?);
    if odd != told {
        return Err(format!("what was known of an unreadable tenant is gone: {told:?} and then {odd:?}"));
    }
    others_are_served(&rig)?;
    let now = running(&rig)?;
    if now != before {
        return Err(format!("pods of an unreadable tenant were touched: {before:?} and then {now:?}"));
    }

    set(&rig, "tenant/basic-1", r#"{"spec":{"tier":"basic"}}"#)?;
    set(&rig, "tenant/free-3", r#"{"spec":{"tier":"free"}}"#)?;
    rig.kubectl(&[
        "patch",
        "-n",
        "tenant-basic-2",
        "bf/odd",
        "--type=merge",
        "-p",
        r#"{"spec":{"strategy":{"kind":"script"}}}"#,
    ])?;
    rig.await_tenants(4, LIMIT)?;
    if running(&rig)? != before {
        return Err("pods of a corrected tenant were restarted".to_owned());
    }

    set(&rig, "tenant/basic-1", r#"{"spec":{"tier":"gold","deletionPolicy":"Delete"}}"#)?;
    stalled(&rig, &["tenant/basic-1"], Instant::now())?;
    let start = rig.mark()?;
    rig.kubectl(&["delete", "tenant", "basic-1", "--timeout=60s"])?;
    let status =
        rig.writes(start)?.iter().filter(|event| event.name == "basic-1" && event.subresource == "status").count();
    let left = rig.get(&["-n", "tenant-basic-1", "pods,persistentvolumeclaims,secrets"])?;
    let of = |kind: &str| items(&left).filter(|object| object["kind"] == kind).count();
    let found = (of("Pod"), of("PersistentVolumeClaim"), of("Secret"));
    if found != (0, 4, 1) {
        return Err(format!("an unreadable tenant left {found:?} pods, volumes and Secrets, expected (0, 4, 1)"));
    }
    println!("undecodable: {status} status writes while an unreadable tenant was deleted");
    if status > 10 {
        return Err(format!("{status} status writes for one deletion"));
    }
    let logs = rig.logs();
    if logs.contains("panicked") { Err(logs) } else { Ok(()) }
}

const ODD_FLEET: &str = "
apiVersion: torpor.dev/v1alpha1
kind: BotFleet
metadata: {name: odd, namespace: tenant-basic-2}
spec: {replicas: 0, strategy: {kind: odd, config: 'script_file_name: simple_pmm_example.py'}}
";

/// What stands on the node of a dedicated pool that cannot be read stays there, and so does its PriorityClass.
fn pools_keep_what_they_have(rig: &Rig) -> Result<(), String> {
    let kept = || -> Result<_, String> {
        let node = rig.get(&["node/worker-premium-0"])?;
        let class = rig.get(&["priorityclass/torpor-critical"])?;
        Ok((node["spec"]["taints"].clone(), node["metadata"]["annotations"].clone(), class["metadata"]["uid"].clone()))
    };
    let before = kept()?;
    if before.0.is_null() {
        return Err("the node of the dedicated pool has no taint".to_owned());
    }
    set(rig, "workerpool/worker-premium", r#"{"spec":{"tiers":["premium","gold"]}}"#)?;
    stalled(rig, &["workerpool/worker-premium"], Instant::now())?;
    // Any change of a node makes the operator look at all of them.
    rig.kubectl(&["label", "node/worker-low-0", "look=again"])?;
    std::thread::sleep(Duration::from_secs(2));
    let now = kept()?;
    set(rig, "workerpool/worker-premium", r#"{"spec":{"tiers":["premium"]}}"#)?;
    if now == before { Ok(()) } else { Err(format!("{before:?} of an unreadable pool became {now:?}")) }
}

/// Lets the API server take a tier and a kind of strategy that nobody knows.
fn loosen(rig: &Rig) -> Result<(), String> {
    let schema = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties";
    let odd = [
        ("tenants", "tier", "gold"),
        ("botfleets", "strategy/properties/kind", "odd"),
        ("workerpools", "tiers/items", "gold"),
    ];
    for (crd, field, value) in odd {
        let patch = format!(r#"[{{"op":"add","path":"{schema}/{field}/enum/-","value":"{value}"}}]"#);
        rig.kubectl(&["patch", "crd", &format!("{crd}.torpor.dev"), "--type=json", "-p", &patch])?;
    }
    Ok(())
}

/// The API server takes a moment to use a changed schema.
fn set(rig: &Rig, object: &str, patch: &str) -> Result<(), String> {
    eventually(LIMIT, || rig.kubectl(&["patch", object, "--type=merge", "-p", patch])).map(drop)
}

/// Waits for the condition Stalled and for an Event, both with reason Undecodable.
fn stalled(rig: &Rig, object: &[&str], since: Instant) -> Result<(), String> {
    let found = eventually(SOON, || {
        let found = rig.get(object)?;
        let told = condition(&found, "Stalled");
        let right = told["status"] == "True" && told["reason"] == "Undecodable";
        if right && condition(&found, "Ready")["status"] == "False" {
            Ok(found)
        } else {
            Err(format!("{object:?}: {told}"))
        }
    })?;
    eventually(SOON, || {
        let told = events(&rig.cluster, &found, "Undecodable")?;
        if told.is_empty() { Err(format!("{object:?} has no Event of reason Undecodable")) } else { Ok(()) }
    })?;
    println!("undecodable: {} was told after {:.1} s", object[object.len() - 1], since.elapsed().as_secs_f64());
    Ok(())
}

/// A change of another tenant is handled, and what somebody deletes there comes back.
fn others_are_served(rig: &Rig) -> Result<(), String> {
    rig.kubectl(&["delete", "service", "redis", "-n", "tenant-basic-0"])?;
    eventually(SOON, || rig.kubectl(&["get", "service", "redis", "-n", "tenant-basic-0"]))?;
    rig.kubectl(&["patch", "tenant/basic-0", "--type=merge", "-p", r#"{"spec":{"displayName":"Zero"}}"#])?;
    eventually(SOON, || {
        let tenant = rig.get(&["tenant/basic-0"])?;
        let handled = tenant["status"]["observedGeneration"] == tenant["metadata"]["generation"];
        if handled && condition(&tenant, "Ready")["status"] == "True" {
            Ok(())
        } else {
            Err(tenant["status"].to_string())
        }
    })
}

/// Names and uids of the pods of the tenant that becomes unreadable.
fn running(rig: &Rig) -> Result<Vec<(Value, Value)>, String> {
    let pods = rig.get(&["pods", "-n", "tenant-basic-1"])?;
    let found: Vec<_> =
        items(&pods).map(|pod| (pod["metadata"]["name"].clone(), pod["metadata"]["uid"].clone())).collect();
    if found.len() == 7 { Ok(found) } else { Err(format!("{} pods of basic-1 run, expected 7", found.len())) }
}

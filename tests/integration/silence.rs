//! Settled means silent: nothing is asked, nothing is written, and no pod restarts because the operator does.

use std::collections::BTreeMap;
use std::time::Duration;

use torpor_cluster::Options;

use crate::alone::{MANAGED, Rig, is_write, none, tenants};
use crate::harness::{condition, eventually};
use crate::process::TORPOR;

/// How long nothing may be said.
const WINDOW: Duration = Duration::from_secs(30);
/// How long a restarted operator may take to find out that nothing is to do: every pass has run many times over.
const AFTER_START: Duration = Duration::from_secs(5);
/// How long pods have for a restart that must not come.
const AFTER_CHANGE: Duration = Duration::from_secs(5);
const START: Duration = Duration::from_secs(90);

/// Tenants of every tier, one with exchange keys and one with its configuration in a ConfigMap, are settled; then
/// the operator neither reads nor writes. Restarted, in good order or by kill -9, it writes nothing.
pub fn settled_means_silent() -> Result<(), String> {
    let mut rig = Rig::start(Options::default())?;
    for file in ["free", "basic", "pro", "premium"] {
        rig.kubectl(&["apply", "-f", &format!("examples/tenant-{file}.yaml")])?;
    }
    for file in ["examples/fleet-credentials.yaml", "examples/fleet-configmap.yaml"] {
        eventually(Duration::from_secs(60), || rig.kubectl(&["apply", "-f", file]))?;
    }
    rig.await_tenants(6, Duration::from_secs(120))?;
    rig.await_silence()?;

    let start = rig.mark()?;
    let busy = rig.operator.cpu_seconds()?;
    std::thread::sleep(WINDOW);
    let busy = rig.operator.cpu_seconds()? - busy;
    let asked = rig.requests(start)?;
    let (reopened, others): (Vec<_>, Vec<_>) = asked.into_iter().partition(|event| event.verb == "watch");
    println!(
        "silence: {} s without a request, {} watch events, {busy:.2} s of processor time",
        WINDOW.as_secs(),
        reopened.len()
    );
    none("a settled operator asked", &others)?;

    let start = rig.mark()?;
    let code = rig.operator.terminate()?;
    if code != Some(0) {
        return Err(format!("asked to stop, the operator ended with {code:?}:\n{}", rig.operator.log_text()));
    }
    rig.restart()?;
    std::thread::sleep(AFTER_START);
    none("after a restart the operator wrote", &rig.writes(start)?)?;

    let start = rig.mark()?;
    rig.restart()?;
    std::thread::sleep(AFTER_START);
    none("after kill -9 the operator wrote", &rig.writes(start)?)?;
    let reads = rig.requests(start)?.iter().filter(|event| !is_write(event) && event.verb != "watch").count();
    println!("silence: a restart reads {reads} times");

    // It was silent because nothing was to do, not because it does nothing.
    rig.kubectl(&["patch", "tenant", "free-bird", "--type=merge", "-p", r#"{"spec":{"suspended":true}}"#])?;
    eventually(Duration::from_secs(90), || {
        let tenant = rig.get(&["tenant", "free-bird"])?;
        let asleep = condition(&tenant, "Hibernated");
        if asleep["status"] == "True" { Ok(()) } else { Err(format!("suspended, and Hibernated is {asleep}")) }
    })
}

/// Twenty tenants with bots run. Labels and annotations on all of them, the operator's own program, and a setting
/// that shapes pods all change: no pod restarts for the first two, and no bot or database for the third.
pub fn changes_restart_no_pod() -> Result<(), String> {
    let mut rig = Rig::start(Options::default())?;
    rig.apply(&tenants(20, |_| "basic"))?;
    rig.await_tenants(20, Duration::from_secs(120))?;
    rig.await_silence()?;
    let before = rig.pods(MANAGED)?;
    if before.len() != 20 * 7 {
        return Err(format!("{} pods run, expected 140", before.len()));
    }

    let start = rig.mark()?;
    rig.kubectl(&["label", "tenants", "--all", "team=quants"])?;
    rig.kubectl(&["annotate", "tenants", "--all", "example.com/note=changed"])?;
    std::thread::sleep(AFTER_CHANGE);
    let written = rig.writes(start)?;
    same_pods("labels and annotations", &rig, &before, MANAGED)?;
    none("for labels and annotations of Tenants the operator wrote", &written)?;

    rig.operator.terminate()?;
    let copy = rig.cluster.data_dir().join("torpor-next");
    std::fs::copy(TORPOR, &copy).map_err(|error| error.to_string())?;
    let start = rig.mark()?;
    rig.replace(&copy, &[])?;
    rig.operator.await_ready(START)?;
    std::thread::sleep(AFTER_CHANGE);
    same_pods("another program", &rig, &before, MANAGED)?;
    none("another program of the operator wrote", &rig.writes(start)?)?;

    rig.operator.terminate()?;
    let start = rig.mark()?;
    rig.replace(TORPOR.as_ref(), &["--user-namespaces", "off"])?;
    rig.operator.await_ready(START)?;
    rig.await_silence()?;
    let written = rig.writes(start)?;
    let templates = written.iter().filter(|event| event.resource == "statefulsets").count();
    if templates < 60 {
        return Err(format!("the setting should change 60 StatefulSets, {templates} were written"));
    }
    for part in ["bot", "database", "redis"] {
        let selector = format!("{MANAGED},app.kubernetes.io/component={part}");
        same_pods("a setting of the operator", &rig, &before, &selector)?;
    }
    rig.await_tenants(20, Duration::from_secs(90))?;
    println!("silence: 140 pods of 20 tenants kept; a changed pod setting rewrote {templates} StatefulSets");
    Ok(())
}

fn same_pods(why: &str, rig: &Rig, before: &BTreeMap<String, String>, selector: &str) -> Result<(), String> {
    let now = rig.pods(selector)?;
    let other: Vec<_> = now.iter().filter(|(name, uid)| before.get(*name) != Some(*uid)).collect();
    if other.is_empty() && !now.is_empty() {
        Ok(())
    } else {
        Err(format!("{why}: {} of {} pods were restarted: {other:?}", other.len(), now.len()))
    }
}

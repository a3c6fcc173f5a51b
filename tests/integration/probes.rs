//! What the probe port tells, and an API server that goes and comes back.

use std::time::{Duration, Instant};

use torpor_cluster::{Cluster, Options};

use crate::alone::{Rig, none, tenants};
use crate::harness::{condition, eventually};
use crate::process::program;

/// The longest pause of a watch between two tries, 4 s, and what a busy machine needs for the rest.
const RECOVERY: Duration = Duration::from_secs(20);

/// Watches of the operator.
const KINDS: usize = 19;

/// Without its CustomResourceDefinitions the operator lives, names what it waits for, and goes on when they come.
pub fn readiness_names_what_is_missing() -> Result<(), String> {
    let cluster = Cluster::connect_or_start(Options::default()).map_err(|error| format!("{error:#}"))?;
    let kubectl = |arguments: &[&str]| cluster.kubectl(arguments).map_err(|error| format!("{error:#}"));
    crate::rights::install(&cluster)?;
    // Every flag is an environment variable as well.
    let operator = program(&cluster, "operator").environment("TORPOR_LEASE_SECONDS", "60").start()?;
    let own = "waiting for BotFleet\nwaiting for Tenant\nwaiting for WorkerPool\n";
    eventually(Duration::from_secs(60), || match operator.http("/readyz")? {
        (503, text) if text == own => Ok(()),
        (code, text) => Err(format!("/readyz {code}: {text}")),
    })?;
    let (code, text) = operator.http("/livez")?;
    if code != 200 {
        return Err(format!("/livez {code}: {text}"));
    }
    kubectl(&["apply", "--server-side", "-f", "crds/"])?;
    let began = Instant::now();
    operator.await_ready(RECOVERY)?;
    println!("probes: ready {:.1} s after the CustomResourceDefinitions came", began.elapsed().as_secs_f64());

    kubectl(&["apply", "-f", "examples/pools.yaml", "-f", "examples/tenant-basic.yaml"])?;
    kubectl(&["wait", "--for=condition=Ready", "tenant/alice", "--timeout=60s"])?;
    let (code, text) = operator.http("/metrics")?;
    if code != 200 {
        return Err(format!("/metrics {code}"));
    }
    only_torpor(&text)
}

/// Every name starts with `torpor_`, and no label holds the name of a tenant or of its namespace.
fn only_torpor(metrics: &str) -> Result<(), String> {
    let mut series = 0;
    for line in metrics.lines().filter(|line| *line != "# EOF") {
        let name = line.strip_prefix("# ").and_then(|rest| rest.split(' ').nth(1)).unwrap_or(line);
        if !name.starts_with("torpor_") || line.contains("alice") {
            return Err(format!("/metrics has the line {line:?}"));
        }
        series += usize::from(!line.starts_with('#'));
    }
    println!("probes: {series} series of metrics");
    if series < 10 || !metrics.contains("kind=\"Tenant\"") { Err(metrics.to_owned()) } else { Ok(()) }
}

/// The API server goes and comes back: the settled operator stays, says what it does not see, writes nothing, and works
/// again. Programs that are started meanwhile wait for it, so that no kubelet keeps them away for minutes afterwards.
pub fn api_server_restart_changes_nothing() -> Result<(), String> {
    let mut rig = Rig::start(Options::default())?;
    rig.apply(&tenants(4, |number| ["free", "basic", "free", "basic"][number]))?;
    rig.await_tenants(4, Duration::from_secs(90))?;
    rig.await_silence()?;
    let start = rig.mark()?;
    let (gateway, hibernator) = (program(&rig.cluster, "gateway"), program(&rig.cluster, "hibernator"));
    rig.cluster.kill_component("kube-apiserver").map_err(|error| format!("{error:#}"))?;
    eventually(Duration::from_secs(5), || match rig.operator.http("/readyz")? {
        (503, text) if text.lines().count() >= KINDS => Ok(()),
        (code, text) => Err(format!("without an API server /readyz is {code}: {text}")),
    })?;
    let (gateway, mut stopped) = (gateway.start()?, hibernator.start()?);
    for waits in [&gateway, &stopped] {
        eventually(Duration::from_secs(5), || match waits.http("/readyz")? {
            (503, text) if text.contains("waiting for the API server\n") => Ok(()),
            (code, text) => Err(format!("started without an API server, and /readyz is {code}: {text}")),
        })?;
    }
    match stopped.terminate()? {
        Some(0) => {}
        code => return Err(format!("asked to stop while it waited, it ended with {code:?}: {}", stopped.log_text())),
    }
    rig.cluster.restart_component("kube-apiserver").map_err(|error| format!("{error:#}"))?;
    let began = Instant::now();
    rig.operator.await_ready(RECOVERY)?;
    gateway.await_ready(RECOVERY)?;
    println!("probes: ready {:.1} s after the API server came back", began.elapsed().as_secs_f64());
    let began = Instant::now();
    rig.kubectl(&["patch", "tenant/free-0", "--type=merge", "-p", r#"{"spec":{"suspended":true}}"#])?;
    eventually(RECOVERY, || {
        let tenant = rig.get(&["tenant/free-0"])?;
        let sleep = condition(&tenant, "Hibernated");
        if sleep["status"] == "True" { Ok(()) } else { Err(format!("suspended, and Hibernated is {sleep}")) }
    })?;
    println!("probes: and a change was served {:.1} s later", began.elapsed().as_secs_f64());
    rig.await_silence()?;
    let own = |event: &&torpor_cluster::AuditEvent| event.namespace == "tenant-free-0" || event.name == "free-0";
    let events = |event: &&torpor_cluster::AuditEvent| event.resource == "events";
    let written = rig.writes(start)?;
    let others: Vec<_> = written.iter().filter(|event| !own(event) && !events(event)).cloned().collect();
    none("for other tenants the operator wrote", &others)?;
    let log = rig.operator.log_text();
    let errors = log.lines().filter(|line| line.contains(" ERROR ") || line.contains("panicked")).count();
    println!("probes: {} WARN lines over the restart", log.lines().filter(|line| line.contains(" WARN ")).count());
    if errors > 0 {
        return Err(log);
    }
    rig.operator.terminate().map(drop)
}

//! Settled means silent: nothing is asked, nothing is written, and no pod restarts because the operator does.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use torpor_cluster::{AuditEvent, AuditMark, Cluster, Options};

use crate::Ctx;
use crate::harness::{TORPOR, condition, eventually};
use crate::leader::Process;

/// How long nothing may be said.
const WINDOW: Duration = Duration::from_secs(45);
/// How long a restarted operator may take to find out that nothing is to do: every pass has run many times over.
const AFTER_START: Duration = Duration::from_secs(8);
/// How long pods have for a restart that must not come.
const AFTER_CHANGE: Duration = Duration::from_secs(8);

/// Tenants of every tier, one with exchange keys and one with its configuration in a ConfigMap, are settled; then
/// the operator neither reads nor writes. Restarted, in good order or by kill -9, it writes nothing.
pub fn settled_means_silent() -> Result<(), String> {
    let mut ctx = Ctx::with(Options::default(), &[])?;
    ctx.apply_file("examples/pools.yaml")?;
    for file in ["free", "basic", "pro", "premium"] {
        ctx.apply_file(&format!("examples/tenant-{file}.yaml"))?;
    }
    for file in ["examples/fleet-credentials.yaml", "examples/fleet-configmap.yaml"] {
        eventually(Duration::from_secs(20), || ctx.apply_file(file))?;
    }
    await_all_ready(&ctx, 6, Duration::from_secs(120))?;
    await_silence(&ctx.cluster)?;

    let start = mark(&ctx.cluster)?;
    std::thread::sleep(WINDOW);
    let asked = requests(&ctx.cluster, start)?;
    let (reopened, others): (Vec<_>, Vec<_>) = asked.into_iter().partition(|event| event.verb == "watch");
    println!("silence: {} s without a request, {} watch events", WINDOW.as_secs(), reopened.len());
    none("a settled operator asked", &others)?;

    let start = mark(&ctx.cluster)?;
    let code = ctx.operator.terminate()?;
    if code != Some(0) {
        return Err(format!("asked to stop, the operator ended with {code:?}:\n{}", ctx.operator.log_text()));
    }
    restart(&mut ctx)?;
    none("after a restart the operator wrote", &writes(&ctx.cluster, start)?)?;

    let start = mark(&ctx.cluster)?;
    ctx.operator.kill();
    restart(&mut ctx)?;
    none("after kill -9 the operator wrote", &writes(&ctx.cluster, start)?)?;
    println!("silence: restarts read {} times", reads(&ctx.cluster, start)?.len());

    // It was silent because nothing was to do, not because it does nothing.
    ctx.kubectl(&["patch", "tenant", "free-bird", "--type=merge", "-p", r#"{"spec":{"suspended":true}}"#])?;
    ctx.await_condition(&["tenant", "free-bird"], "Hibernated", "True", Duration::from_secs(30)).map(drop)
}

fn restart(ctx: &mut Ctx) -> Result<(), String> {
    ctx.operator.restart()?;
    ctx.operator.await_ready()?;
    std::thread::sleep(AFTER_START);
    Ok(())
}

/// Twenty tenants with bots run. Labels and annotations on all of them, the operator's own program, and a setting
/// that shapes pods all change: no pod restarts for the first two, and no bot or database for the third.
pub fn changes_restart_no_pod() -> Result<(), String> {
    let mut ctx = Ctx::with(Options::default(), &[])?;
    ctx.apply_file("examples/pools.yaml")?;
    ctx.apply(&tenants(20, |_| "basic"))?;
    await_all_ready(&ctx, 20, Duration::from_secs(120))?;
    await_silence(&ctx.cluster)?;
    let before = pods(&ctx, "app.kubernetes.io/managed-by=torpor")?;
    if before.len() != 20 * 7 {
        return Err(format!("{} pods run, expected 140", before.len()));
    }

    let start = mark(&ctx.cluster)?;
    ctx.kubectl(&["label", "tenants", "--all", "team=quants"])?;
    ctx.kubectl(&["annotate", "tenants", "--all", "example.com/note=changed"])?;
    std::thread::sleep(AFTER_CHANGE);
    let written = writes(&ctx.cluster, start)?;
    same_pods("labels and annotations", &ctx, &before, "app.kubernetes.io/managed-by=torpor")?;
    none("for labels and annotations of Tenants the operator wrote", &written)?;

    ctx.operator.terminate()?;
    let copy = ctx.cluster.data_dir().join("torpor-next");
    std::fs::copy(TORPOR, &copy).map_err(|error| error.to_string())?;
    let start = mark(&ctx.cluster)?;
    let mut next = Process::start(&copy, ctx.cluster.kubeconfig(), ctx.cluster.data_dir(), &[])?;
    next.await_ready(Duration::from_secs(30))?;
    std::thread::sleep(AFTER_CHANGE);
    same_pods("another program", &ctx, &before, "app.kubernetes.io/managed-by=torpor")?;
    none("another program of the operator wrote", &writes(&ctx.cluster, start)?)?;
    next.terminate()?;

    let start = mark(&ctx.cluster)?;
    let arguments = ["--user-namespaces", "off"];
    let mut other = Process::start(TORPOR.as_ref(), ctx.cluster.kubeconfig(), ctx.cluster.data_dir(), &arguments)?;
    other.await_ready(Duration::from_secs(30))?;
    await_silence(&ctx.cluster)?;
    let written = writes(&ctx.cluster, start)?;
    let templates = written.iter().filter(|event| event.resource == "statefulsets").count();
    if templates < 60 {
        return Err(format!("the setting should change 60 StatefulSets, {templates} were written"));
    }
    for part in ["bot", "database", "redis"] {
        let selector = format!("app.kubernetes.io/managed-by=torpor,app.kubernetes.io/component={part}");
        same_pods("a setting of the operator", &ctx, &before, &selector)?;
    }
    await_all_ready(&ctx, 20, Duration::from_secs(30))?;
    println!("silence: 140 pods of 20 tenants kept; a changed pod setting rewrote {templates} StatefulSets");
    other.terminate().map(drop)
}

fn same_pods(why: &str, ctx: &Ctx, before: &BTreeMap<String, String>, selector: &str) -> Result<(), String> {
    let now = pods(ctx, selector)?;
    let other: Vec<_> = now.iter().filter(|(name, uid)| before.get(*name) != Some(*uid)).collect();
    if other.is_empty() && !now.is_empty() {
        Ok(())
    } else {
        Err(format!("{why}: {} of {} pods were restarted: {other:?}", other.len(), now.len()))
    }
}

/// uids of pods by namespace and name.
pub fn pods(ctx: &Ctx, selector: &str) -> Result<BTreeMap<String, String>, String> {
    let found = ctx.get(&["pods", "-A", "-l", selector])?;
    Ok(items(&found).map(|pod| (place(pod), text(&pod["metadata"]["uid"]))).collect())
}

/// The objects of a list.
pub fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

/// Namespace and name of an object.
pub fn place(object: &Value) -> String {
    format!("{}/{}", text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// YAML of this many tenants with as many bots as their tier allows, in one fleet.
pub fn tenants(count: usize, tier: impl Fn(usize) -> &'static str) -> String {
    (0..count).fold(String::new(), |mut text, number| {
        let tier = tier(number);
        let bots = match tier {
            "free" => 1,
            "basic" => 3,
            "pro" => 10,
            _ => 50,
        };
        let strategy = json!({"kind": "script", "config": "script_file_name: simple_pmm_example.py\n"});
        let tenant = json!({
            "apiVersion": "torpor.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": format!("{tier}-{number}")},
            "spec": {"tier": tier, "fleets": [{"name": "makers", "replicas": bots, "strategy": strategy}]},
        });
        text.push_str(&format!("---\n{tenant}\n"));
        text
    })
}

/// Waits until so many tenants exist and all of them are Ready.
pub fn await_all_ready(ctx: &Ctx, count: usize, limit: Duration) -> Result<(), String> {
    eventually(limit, || {
        let all = ctx.get(&["tenants"])?;
        let waiting: Vec<String> = items(&all)
            .filter(|tenant| condition(tenant, "Ready")["status"] != "True")
            .map(|tenant| format!("{}: {}", place(tenant), condition(tenant, "Ready")["message"]))
            .collect();
        let found = items(&all).count();
        if found == count && waiting.is_empty() {
            return Ok(());
        }
        // Each look starts a process, which on two cores is felt.
        std::thread::sleep(Duration::from_millis(500));
        Err(format!("{} of {found} tenants are not Ready, first {:?}", waiting.len(), waiting.first()))
    })
}

/// Waits until the operator has said nothing for three seconds.
pub fn await_silence(cluster: &Cluster) -> Result<(), String> {
    eventually(Duration::from_secs(60), || {
        let start = mark(cluster)?;
        std::thread::sleep(Duration::from_secs(3));
        none("still busy", &requests(cluster, start)?)
    })
}

/// The present end of the audit log.
pub fn mark(cluster: &Cluster) -> Result<AuditMark, String> {
    cluster.audit().ok_or(NO_AUDIT)?.mark().map_err(|error| format!("{error:#}"))
}

const NO_AUDIT: &str = "this test reads the audit log of a cluster of its own; unset TORPOR_KUBECONFIG";

/// Everything since a mark, whoever asked.
pub fn audit(cluster: &Cluster, start: AuditMark) -> Result<Vec<AuditEvent>, String> {
    cluster.audit().ok_or(NO_AUDIT)?.since(start).map_err(|error| format!("{error:#}"))
}

/// The operator's requests since a mark, the Lease's apart.
pub fn requests(cluster: &Cluster, start: AuditMark) -> Result<Vec<AuditEvent>, String> {
    let mut events = audit(cluster, start)?;
    events.retain(|event| event.user_agent.starts_with("torpor-operator/") && event.resource != "leases");
    Ok(events)
}

/// The operator's requests since a mark that can change something, dry runs included.
pub fn writes(cluster: &Cluster, start: AuditMark) -> Result<Vec<AuditEvent>, String> {
    let mut events = requests(cluster, start)?;
    events.retain(|event| !matches!(event.verb.as_str(), "get" | "list" | "watch"));
    Ok(events)
}

/// The operator's single reads and listings since a mark.
pub fn reads(cluster: &Cluster, start: AuditMark) -> Result<Vec<AuditEvent>, String> {
    let mut events = requests(cluster, start)?;
    events.retain(|event| matches!(event.verb.as_str(), "get" | "list"));
    Ok(events)
}

/// An error that shows the first of the events, if there are any.
pub fn none(what: &str, events: &[AuditEvent]) -> Result<(), String> {
    if events.is_empty() {
        return Ok(());
    }
    let shown: Vec<String> =
        events.iter().take(12).map(|event| format!("{} {} {}", event.verb, event.code, event.request_uri)).collect();
    Err(format!("{what} {} times: {}", events.len(), shown.join("; ")))
}

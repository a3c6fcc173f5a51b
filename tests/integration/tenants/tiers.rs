//! The four tiers, from their examples.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use torpor::api::tenant::{DASHBOARD_IMAGE, DATABASE_IMAGE, REDIS_IMAGE};
use torpor::domain::quantity::{Bytes, Cpu};
use torpor_cluster::AuditMark;

use super::{
    apply, brief, documents, ensure, equal_rendered, id, is_bot, list, mark, objects, render, same, text, writes,
};
use crate::Ctx;
use crate::harness::condition;

struct Row {
    tier: &'static str,
    pool: &'static str,
    class: (&'static str, i64),
    bots: usize,
    cpu: i64,
    mebibytes: i64,
}

const ROWS: [Row; 4] = [
    Row { tier: "free", pool: "worker-low", class: ("torpor-low", 1_000), bots: 1, cpu: 500, mebibytes: 512 },
    Row { tier: "basic", pool: "worker-mid", class: ("torpor-medium", 10_000), bots: 3, cpu: 1_000, mebibytes: 1_024 },
    Row { tier: "pro", pool: "worker-high", class: ("torpor-high", 100_000), bots: 10, cpu: 2_000, mebibytes: 2_048 },
    Row {
        tier: "premium",
        pool: "worker-premium",
        class: ("torpor-critical", 1_000_000),
        bots: 50,
        cpu: 4_000,
        mebibytes: 4_096,
    },
];

/// The example of each tier becomes a whole stack in its place and of its size.
pub fn four_tiers_run(ctx: &Ctx) -> Result<(), String> {
    let mark = mark(ctx)?;
    let mut tenants = Vec::new();
    for row in &ROWS {
        let path = format!("{}/examples/tenant-{}.yaml", env!("CARGO_MANIFEST_DIR"), row.tier);
        let example = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
        let mut tenant = documents(&example)?.remove(0);
        tenant["metadata"]["name"] = json!(format!("tiers-{}", row.tier));
        apply(ctx, &tenant)?;
        tenants.push(tenant);
    }
    let mut failures = Vec::new();
    for (row, tenant) in ROWS.iter().zip(&tenants) {
        if let Err(failure) = stack_is_as_promised(ctx, row, tenant, mark) {
            failures.push(format!("{}: {failure}", row.tier));
        }
    }
    ensure(failures.is_empty(), || failures.join("\n"))
}

fn stack_is_as_promised(ctx: &Ctx, row: &Row, tenant: &Value, mark: AuditMark) -> Result<(), String> {
    let name = text(&tenant["metadata"]["name"]);
    // What a new version has as its default is not theirs.
    let stored = ctx.get(&["tenant", &name])?;
    let images = ["database", "redis", "dashboard"].map(|part| stored["spec"][part]["image"].clone());
    same("stored images", &images, &[DATABASE_IMAGE, REDIS_IMAGE, DASHBOARD_IMAGE].map(|image| json!(image)))?;
    let namespace = format!("tenant-{name}");
    let live = ctx.await_ready(&name)?;
    let pods = list(ctx, "pods", &namespace)?;
    pods_stand_in_their_pool(ctx, row, &pods)?;
    services_sum_to_the_row(row, &pods)?;
    bots_have_volumes(ctx, row, &pods, &namespace)?;
    status_is_told(row, &live, &pods)?;
    columns_are_filled(ctx, row, &name)?;

    let objects = objects(ctx, &namespace)?;
    let fleets = tenant["spec"]["fleets"].as_array().map_or(0, Vec::len);
    ensure(fleets > 2 || objects.len() <= 30, || format!("{} objects", objects.len()))?;
    equal_rendered(&render(tenant, &[])?, &objects)?;

    let events = list(ctx, "events", &namespace)?;
    let refused = events.iter().filter(|event| event["reason"] == "FailedCreate").map(|event| text(&event["message"]));
    // Fifty pods at once have the API server count their quota again and again, which is no refusal.
    let refused: Vec<String> = refused.filter(|message| !message.contains("the object has been modified")).collect();
    ensure(refused.is_empty(), || format!("pods were refused: {refused:?}"))?;
    let home = ctx.get(&["namespace", &namespace])?;
    same("Pod Security", &home["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], &json!("restricted"))?;
    let on_home: Vec<String> = writes(ctx, mark)?
        .iter()
        .filter(|event| event.resource == "namespaces" && event.name == namespace)
        .map(brief)
        .collect();
    same("writes on the namespace", &on_home, &vec![format!("create namespaces/ /{namespace} 201")])
}

fn pods_stand_in_their_pool(ctx: &Ctx, row: &Row, pods: &[Value]) -> Result<(), String> {
    same("pods", &pods.len(), &(row.bots + 4))?;
    let nodes = ctx.get(&["nodes", "-l", &format!("torpor.dev/pool={}", row.pool)])?;
    let nodes: Vec<String> =
        nodes["items"].as_array().into_iter().flatten().map(|node| text(&node["metadata"]["name"])).collect();
    for pod in pods {
        same(&id(pod), &pod["status"]["phase"], &json!("Running"))?;
        same(&id(pod), &pod["spec"]["priorityClassName"], &json!(row.class.0))?;
        same(&id(pod), &pod["spec"]["priority"], &json!(row.class.1))?;
        let node = text(&pod["spec"]["nodeName"]);
        ensure(nodes.contains(&node), || format!("{} runs on {node}, pool {} has {nodes:?}", id(pod), row.pool))?;
    }
    Ok(())
}

/// Sums over containers: CPU in millicores and memory in bytes.
fn sum(pods: &[&Value], what: &str) -> Result<(i64, i64), String> {
    let mut sum = (0, 0);
    for container in pods.iter().flat_map(|pod| pod["spec"]["containers"].as_array().into_iter().flatten()) {
        let amounts = &container["resources"][what];
        sum.0 += Cpu::parse(amounts["cpu"].as_str().unwrap_or_default()).map_err(|error| error.to_string())?.0;
        sum.1 += Bytes::parse(amounts["memory"].as_str().unwrap_or_default()).map_err(|error| error.to_string())?.0;
    }
    Ok(sum)
}

fn services_sum_to_the_row(row: &Row, pods: &[Value]) -> Result<(), String> {
    let services: Vec<&Value> = pods.iter().filter(|pod| !is_bot(pod)).collect();
    same("limits of the services", &sum(&services, "limits")?, &(row.cpu, row.mebibytes << 20))?;
    same("requests of the services", &sum(&services, "requests")?, &(row.cpu / 2, row.mebibytes << 20))?;
    for bot in pods.iter().filter(|pod| is_bot(pod)) {
        same(&id(bot), &sum(&[bot], "limits")?, &(200, 512 << 20))?;
        same(&id(bot), &sum(&[bot], "requests")?, &(100, 256 << 20))?;
    }
    Ok(())
}

fn bots_have_volumes(ctx: &Ctx, row: &Row, pods: &[Value], namespace: &str) -> Result<(), String> {
    let claims = list(ctx, "pvc", namespace)?;
    let bots: Vec<&Value> = pods.iter().filter(|pod| is_bot(pod)).collect();
    same("bots", &bots.len(), &row.bots)?;
    let mut used = BTreeSet::new();
    for bot in bots {
        let volumes = bot["spec"]["volumes"].as_array().into_iter().flatten();
        let names: Vec<String> = volumes
            .filter_map(|volume| volume["persistentVolumeClaim"]["claimName"].as_str())
            .map(String::from)
            .collect();
        same(&id(bot), &names, &vec![format!("data-{}", text(&bot["metadata"]["name"]))])?;
        used.extend(names);
    }
    for name in &used {
        let claim = claims.iter().find(|claim| claim["metadata"]["name"] == **name).ok_or("a claim is missing")?;
        same(name, &claim["status"]["phase"], &json!("Bound"))?;
        same(name, &claim["spec"]["accessModes"], &json!(["ReadWriteOncePod"]))?;
        same(name, &claim["spec"]["resources"]["requests"]["storage"], &json!("500Mi"))?;
        ensure(claim["metadata"]["ownerReferences"].is_null(), || format!("{name} has an owner"))?;
    }
    same("volumes of bots", &used.len(), &row.bots)?;
    same("volumes", &claims.len(), &(row.bots + 1))
}

fn status_is_told(row: &Row, tenant: &Value, pods: &[Value]) -> Result<(), String> {
    let status = &tenant["status"];
    same("observedGeneration", &status["observedGeneration"], &tenant["metadata"]["generation"])?;
    for (type_, wanted, reason, message) in [
        ("Ready", "True", "Ready", "everything is ready"),
        ("Reconciling", "False", "Settled", "nothing left to do"),
        ("Stalled", "False", "NotStalled", "nothing prevents progress"),
        ("Hibernated", "False", "Awake", "awake"),
    ] {
        let told = condition(tenant, type_);
        let told = [&told["status"], &told["reason"], &told["message"]].map(text);
        same(type_, &told, &[wanted, reason, message].map(str::to_owned))?;
    }
    same("bots", &status["bots"], &json!({"desired": row.bots, "ready": row.bots}))?;
    same("pools", &status["placement"]["pools"], &json!([row.pool]))?;
    same("stage", &status["hibernation"]["stage"], &json!("Active"))?;
    same("namespace", &status["namespace"], &json!(format!("tenant-{}", text(&tenant["metadata"]["name"]))))?;
    let told = (Cpu::parse(&text(&status["cost"]["cpu"])), Bytes::parse(&text(&status["cost"]["memory"])));
    let (Ok(cpu), Ok(memory)) = told else { return Err(format!("cost: {}", status["cost"])) };
    same("cost", &(cpu.0, memory.0), &sum(&pods.iter().collect::<Vec<_>>(), "requests")?)
}

fn columns_are_filled(ctx: &Ctx, row: &Row, name: &str) -> Result<(), String> {
    let table = ctx.kubectl(&["get", "tenant", name, "--no-headers"])?;
    let columns: Vec<&str> = table.split_whitespace().take(5).collect();
    same("columns", &columns, &vec![name, row.tier, "Active", "True", &row.bots.to_string()])
}

//! Every example does on a cluster what its comment says.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};

use super::{all, name_of, yaml_files};
use crate::Ctx;
use crate::harness::eventually;
use crate::tenants::{SOON, apply, await_reason, await_reason_within, documents, ensure, list, same, text};

/// Examples that other tests run: the four tiers in `tenants::tiers`, pools in `pools`, accounts and the way in from outside
/// in `gateway`.
const ELSEWHERE: [&str; 9] = [
    "catalog-demo.yaml",
    "pool-eks-selector.yaml",
    "pools.yaml",
    "ingress-gateway.yaml",
    "rbac-portal.yaml",
    "tenant-basic.yaml",
    "tenant-free.yaml",
    "tenant-premium.yaml",
    "tenant-pro.yaml",
];

/// What of an example is to be seen besides its Tenant being Ready.
type Check = fn(&Ctx, &str) -> Result<(), String>;

/// Every example is reconciled: Ready, or the state that its comment names.
pub fn examples_are_reconciled(ctx: &Ctx) -> Result<(), String> {
    let mut examples = Vec::new();
    for file in yaml_files("examples")? {
        let name = name_of(&file);
        if !ELSEWHERE.contains(&name.as_str()) {
            let text = fs::read_to_string(&file).map_err(|error| error.to_string())?;
            examples.push((name, renamed(documents(&text)?)?));
        }
    }
    for (name, documents) in &examples {
        apply(ctx, &documents[0]).map_err(|error| format!("{name}: {error}"))?;
    }
    all(examples.iter().map(|(name, documents)| (name.clone(), reconciled(ctx, name, documents))))
}

/// The documents, the Tenant first, under a name of this test's own.
fn renamed(mut documents: Vec<Value>) -> Result<Vec<Value>, String> {
    same("kind of the first document", &text(&documents[0]["kind"]), &"Tenant".to_owned())?;
    let name = format!("ex-{}", text(&documents[0]["metadata"]["name"]));
    documents[0]["metadata"]["name"] = json!(name);
    for other in &mut documents[1..] {
        other["metadata"]["namespace"] = json!(format!("tenant-{name}"));
    }
    Ok(documents)
}

fn reconciled(ctx: &Ctx, file: &str, documents: &[Value]) -> Result<(), String> {
    let name = text(&documents[0]["metadata"]["name"]);
    let namespace = format!("tenant-{name}");
    let tenant = ["tenant", &name];
    eventually(SOON, || ctx.get(&["namespace", &namespace]).map(drop))?;
    let missing = match file {
        "fleet-configmap.yaml" => Some(format!("ConfigMap {namespace}/makers-config does not exist")),
        "fleet-credentials.yaml" => Some(format!("Secret {namespace}/exchange-keys does not exist")),
        _ => None,
    };
    if let Some(missing) = missing {
        let message = await_reason(ctx, &["bf", "makers", "-n", &namespace], "Ready", "False", "Waiting")?;
        ensure(message.starts_with(&missing), || message)?;
        eventually(SOON, || {
            let message = await_reason(ctx, &tenant, "Ready", "False", "Progressing")?;
            ensure(message.contains(&missing), || message)
        })?;
    }
    for other in &documents[1..] {
        apply(ctx, other)?;
    }
    let reason = if file == "tenant-suspended.yaml" { "Asleep" } else { "Ready" };
    await_reason_within(ctx, Duration::from_secs(60), &tenant, "Ready", "True", reason)?;
    let check: Option<Check> = match file {
        "fleet-paused.yaml" => Some(paused),
        "fleet-standalone.yaml" => Some(standalone),
        "fleet-xrpl-grace.yaml" => Some(grace),
        "tenant-dashboard-host.yaml" => Some(host),
        "tenant-database.yaml" => Some(database),
        "tenant-redis-storage.yaml" => Some(redis),
        "tenant-suspended.yaml" => Some(suspended),
        _ => None,
    };
    check.map_or(Ok(()), |check| check(ctx, &namespace))
}

fn pods(ctx: &Ctx, namespace: &str) -> Result<Vec<String>, String> {
    Ok(list(ctx, "pods", namespace)?.iter().map(|pod| text(&pod["metadata"]["name"])).collect())
}

fn paused(ctx: &Ctx, namespace: &str) -> Result<(), String> {
    await_reason(ctx, &["bf", "resting", "-n", namespace], "Ready", "True", "Paused")?;
    let bots: Vec<String> = pods(ctx, namespace)?.into_iter().filter(|name| name.starts_with("bots-")).collect();
    same("bots", &bots, &vec!["bots-playing-0".to_owned()])
}

fn standalone(ctx: &Ctx, namespace: &str) -> Result<(), String> {
    let bots = |wanted: i64| {
        eventually(Duration::from_secs(20), || {
            let fleet = ctx.get(&["bf", "scouts", "-n", namespace])?;
            same("ready bots", &fleet["status"]["readyReplicas"], &json!(wanted))
        })
    };
    bots(3)?;
    ctx.kubectl(&["scale", "botfleet/scouts", "-n", namespace, "--replicas=5"])?;
    bots(5)
}

fn grace(ctx: &Ctx, namespace: &str) -> Result<(), String> {
    let bot = ctx.get(&["pod", "bots-xrpl-makers-0", "-n", namespace])?;
    // And ten minutes in which it may still be starting.
    same("seconds", &bot["spec"]["terminationGracePeriodSeconds"], &json!(1260))
}

fn host(ctx: &Ctx, namespace: &str) -> Result<(), String> {
    let service = ctx.get(&["service", "dashboard", "-n", namespace])?;
    same("host", &service["metadata"]["annotations"]["torpor.dev/host"], &json!("storefront.bots.example.com"))
}

fn database(ctx: &Ctx, namespace: &str) -> Result<(), String> {
    let pod = ctx.get(&["pod", "postgres-0", "-n", namespace])?;
    let container = &pod["spec"]["containers"][0];
    same("image", &container["image"], &json!("postgres:17.11-bookworm"))?;
    same("limits", &container["resources"]["limits"], &json!({"cpu": "1", "memory": "1Gi"}))?;
    let claim = ctx.get(&["pvc", "data-postgres-0", "-n", namespace])?;
    same("volume", &claim["spec"]["resources"]["requests"]["storage"], &json!("20Gi"))
}

fn redis(ctx: &Ctx, namespace: &str) -> Result<(), String> {
    let claim = ctx.get(&["pvc", "data-redis-0", "-n", namespace])?;
    same("volume", &claim["status"]["phase"], &json!("Bound"))
}

fn suspended(ctx: &Ctx, namespace: &str) -> Result<(), String> {
    same("pods", &pods(ctx, namespace)?, &vec!["postgres-0".to_owned()])
}

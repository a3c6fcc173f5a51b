//! A life that leads Tenants, BotFleets and WorkerPools through all their states at once, within a minute.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use torpor_cluster::{NodeSpec, Options};

use super::Witness;
use crate::Ctx;
use crate::harness::{LEASE, bare, condition, eventually};
use crate::hibernation::catalog;
use crate::process::{Process, program};
use crate::tenants::{apply, ensure, fleet, list, patch, same, tenant};

/// Long enough to be late with a grace period of a second.
const BOT_STOPS: Duration = Duration::from_secs(10);
const READY: Duration = Duration::from_secs(60);

/// Free tenants fall asleep while it runs, pro ones are asked; all others stay.
const TIERS: [(&str, &str, [&str; 3]); 2] =
    [("free", "Auto", ["12s", "20s", "28s"]), ("pro", "Prompt", ["12s", "20s", "28s"])];

/// Tenants that are Ready before anything is done to them.
const SETTLED: [&str; 6] = ["payer", "grower", "hooked", "tardy", "leaver", "many"];

/// A cluster whose API server takes a tier and a kind of strategy that nobody knows, an operator and a hibernator.
pub fn start() -> Result<(Ctx, Process), String> {
    let unlabelled = NodeSpec::new("fast-0").label("disk", "fast");
    let options = Options { graceful_stop: Some(BOT_STOPS), extra_nodes: vec![unlabelled], ..Options::default() };
    let cluster = bare(options)?;
    let enums = [
        ("tenants", "tier", "gold"),
        ("botfleets", "strategy/properties/kind", "odd"),
        ("workerpools", "tiers/items", "gold"),
    ];
    for (crd, field, value) in enums {
        let path = format!("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/{field}/enum/-");
        let loosen = json!([{"op": "add", "path": path, "value": value}]).to_string();
        let arguments = ["patch", "crd", &format!("{crd}.torpor.dev"), "--type=json", "-p", &loosen];
        cluster.kubectl(arguments).map_err(|error| format!("{error:#}"))?;
    }
    let catalog = catalog(&cluster, "health", &TIERS)?;
    let program = |name: &str| program(&cluster, name).arguments(&LEASE).arguments(&["--catalog", &catalog]);
    let operator = program("operator").start()?;
    let hibernator = program("hibernator").start()?;
    operator.await_ready(READY)?;
    hibernator.await_ready(READY)?;
    Ok((Ctx { operator, cluster }, hibernator))
}

/// Does everything that somebody must do for all states to come, and waits until they have.
pub fn run(ctx: &Ctx, witness: &Witness) -> Result<(), String> {
    let began = Instant::now();
    pools(ctx)?;
    let basic = |fleets: Value| json!({"tier": "basic", "fleets": fleets});
    let mut idle = fleet("idle", 1);
    idle["paused"] = json!(true);
    let mut referring = fleet("referring", 1);
    referring["strategy"] = json!({"kind": "script", "configMapRef": {"name": "nowhere", "key": "a.yml"}});
    ctx.kubectl(&["create", "namespace", "tenant-foreign"])?;
    let tenants = [
        // Without bots, whose stop takes longer than the next stage is away.
        ("sleeper", json!({"tier": "free"})),
        ("asked", json!({"tier": "pro"})),
        ("foreign", basic(json!([]))),
        ("beyond", json!({"tier": "free", "database": {"resources": {"memory": "512Mi"}}})),
        ("poolless", json!({"tier": "premium"})),
        ("payer", basic(json!([fleet("a", 1)]))),
        ("grower", basic(json!([fleet("a", 1)]))),
        ("hooked", basic(json!([fleet("a", 1)]))),
        ("tardy", basic(json!([fleet("a", 1)]))),
        ("leaver", basic(json!([fleet("a", 1)]))),
        ("many", basic(json!([fleet("a", 3), idle]))),
        ("waits", basic(json!([referring]))),
    ];
    for (name, spec) in &tenants {
        by_git(ctx, &tenant(name, spec.clone()), &[])?;
    }
    // The API server takes a moment to use a changed schema.
    eventually(READY, || apply(ctx, &tenant("golden", json!({"tier": "gold"}))))?;
    for name in SETTLED {
        ctx.await_condition(&["tenant", name], "Ready", "True", READY)?;
    }
    troubles(ctx)?;
    patch(ctx, &["tenant", "payer"], &json!({"spec": {"suspended": true}}))?;
    ctx.kubectl(&["delete", "tenant", "leaver", "--wait=false"])?;
    annotate(ctx, "tardy", "sleep-requested-at")?;
    eventually(READY, || {
        let pods = list(ctx, "pods", "tenant-tardy")?;
        let stopping = pods.iter().any(|pod| !pod["metadata"]["deletionTimestamp"].is_null());
        ensure(stopping, || "no bot of tardy stops".to_owned())
    })?;
    ctx.kubectl(&["delete", "pod", "bots-a-0", "-n", "tenant-tardy", "--grace-period=1", "--wait=false"])?;
    patch(ctx, &["tenant", "beyond"], &json!({"spec": {"displayName": "no better"}}))?;
    hook(ctx)?;

    witness.await_states(|seen| {
        let first = [
            "tenant-asleep-database-only-suspended",
            "tenant-asleep-database-only",
            "tenant-stop-overdue",
            "bot-fleet-over-tier",
        ];
        first.into_iter().filter(|name| !seen.contains(*name)).map(str::to_owned).collect()
    })?;
    nothing_drifts(ctx, &tenants)?;
    ctx.kubectl(&["delete", "botfleet", "surplus", "-n", "tenant-many", "--timeout=30s"])?;
    patch(ctx, &["tenant", "payer"], &json!({"spec": {"suspended": false}}))?;
    ctx.await_condition(&["tenant", "sleeper"], "Hibernated", "True", READY)?;
    eventually(READY, || {
        let stage = ctx.get(&["tenant", "sleeper"])?["status"]["hibernation"]["stage"].clone();
        same("stage of sleeper", &stage, &json!("DatabaseOnly"))
    })?;
    annotate(ctx, "sleeper", "last-activity")?;
    witness.await_all()?;
    println!("health: every state was there after {:.0} s", began.elapsed().as_secs_f64());
    nothing_drifts(ctx, &tenants)
}

/// Applies as a GitOps tool does: server-side, by the one field manager of that tool.
fn by_git(ctx: &Ctx, object: &Value, more: &[&str]) -> Result<String, String> {
    let manager = ["apply", "--server-side", "--force-conflicts", "--field-manager=argocd-controller", "-f", "-"];
    ctx.kubectl_stdin(&[&manager[..], more].concat(), &object.to_string())
}

/// What is in Git is what is there, whatever the operator did: applied once more nothing would change.
fn nothing_drifts(ctx: &Ctx, tenants: &[(&str, Value)]) -> Result<(), String> {
    let touched = ["payer", "grower", "hooked", "beyond", "leaver"];
    for (name, spec) in tenants.iter().filter(|(name, _)| !touched.contains(name)) {
        let live = ctx.get(&["tenant", name])?;
        let answer = by_git(ctx, &tenant(name, spec.clone()), &["--dry-run=server", "-o", "json"])?;
        let predicted: Value = serde_json::from_str(&answer).map_err(|error| format!("{error}: {answer}"))?;
        for field in ["labels", "annotations", "generation"] {
            same(&format!("{field} of {name}"), &live["metadata"][field], &predicted["metadata"][field])?;
        }
        same(&format!("spec of {name}"), &live["spec"], &predicted["spec"])?;
        same(&format!("generation of {name}"), &live["metadata"]["generation"], &json!(1))?;
    }
    Ok(())
}

/// The default pools less one; then one without nodes, two that contradict each other, and one that nobody can read.
fn pools(ctx: &Ctx) -> Result<(), String> {
    for pool in super::states::documents("examples/gitops/pools/pools.yaml") {
        if pool["metadata"]["name"] != "worker-premium" {
            by_git(ctx, &pool, &[])?;
        }
    }
    let pool = |name: &str, tier: &str, label: Value, class: &str, value: i32| {
        json!({
            "apiVersion": "torpor.dev/v1alpha1", "kind": "WorkerPool", "metadata": {"name": name},
            "spec": {"tiers": [tier], "nodeSelector": label, "priority": {"class": class, "value": value}},
        })
    };
    apply(ctx, &pool("empty", "pro", json!({"disk": "none"}), "torpor-high", 100_000))?;
    apply(ctx, &pool("marking", "pro", json!({"disk": "fast"}), "torpor-high", 100_000))?;
    apply(ctx, &pool("one", "pro", json!({"disk": "one"}), "contested", 1))?;
    apply(ctx, &pool("other", "pro", json!({"disk": "other"}), "contested", 2))?;
    eventually(READY, || apply(ctx, &pool("golden", "gold", json!({"disk": "gold"}), "torpor-high", 100_000)))?;
    ctx.await_condition(&["workerpool", "worker-low"], "Ready", "True", READY)?;
    patch(ctx, &["workerpool", "worker-low"], &json!({"spec": {"maxTenantsPerNode": 150}}))
}

/// Fleets of their own that cannot be, or not whole; a volume that cannot grow; a spec that changes.
fn troubles(ctx: &Ctx) -> Result<(), String> {
    let own = |name: &str, spec: Value| {
        let metadata = json!({"name": name, "namespace": "tenant-many"});
        json!({"apiVersion": "torpor.dev/v1alpha1", "kind": "BotFleet", "metadata": metadata, "spec": spec})
    };
    let strategy = |kind: &str, config: &str| json!({"kind": kind, "config": config});
    let good = strategy("script", "script_file_name: a.py\n");
    apply(ctx, &own("surplus", json!({"replicas": 1, "strategy": good})))?;
    apply(ctx, &own("wrong", json!({"replicas": 0, "strategy": strategy("script", "no_script: x\n")})))?;
    eventually(READY, || {
        apply(ctx, &own("odd", json!({"replicas": 0, "strategy": strategy("odd", "script_file_name: a.py\n")})))
    })?;
    let mut large = fleet("a", 1);
    large["storage"] = json!("1Gi");
    patch(ctx, &["tenant", "grower"], &json!({"spec": {"fleets": [large]}}))
}

/// From now on the API server cannot take a change of hooked's ConfigMaps: each try fails and may succeed the next time. First
/// only the fleet has one to change, then the Tenant itself.
fn hook(ctx: &Ctx) -> Result<(), String> {
    let webhook = json!({
        "name": "nobody.torpor.test", "clientConfig": {"url": "https://127.0.0.1:9/"}, "failurePolicy": "Fail",
        "timeoutSeconds": 1, "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "namespaceSelector": {"matchLabels": {"torpor.dev/tenant": "hooked"}},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"], "operations": ["*"]}],
    });
    let hook = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "nobody"}, "webhooks": [webhook],
    });
    apply(ctx, &hook)?;
    // The API server takes a moment to ask it.
    eventually(READY, || {
        let refused = ctx.kubectl(&["create", "configmap", "probe", "-n", "tenant-hooked", "--dry-run=server"]);
        ensure(refused.is_err_and(|error| error.contains("nobody.torpor.test")), || "not asked yet".to_owned())
    })?;
    let mut changed = fleet("a", 1);
    changed["strategy"]["config"] = json!("script_file_name: b.py\n");
    patch(ctx, &["tenant", "hooked"], &json!({"spec": {"fleets": [changed]}}))?;
    eventually(READY, || {
        let found = ctx.get(&["botfleet", "a", "-n", "tenant-hooked"])?;
        same("reason of hooked's fleet", &condition(&found, "Ready")["reason"], &json!("Retrying"))
    })?;
    patch(ctx, &["tenant", "hooked"], &json!({"spec": {"database": {"resources": {"memory": "256Mi"}}}}))
}

fn annotate(ctx: &Ctx, name: &str, key: &str) -> Result<(), String> {
    let now = format!("torpor.dev/{key}={}", jiff::Timestamp::now());
    ctx.kubectl(&["annotate", "--overwrite", "tenant", name, &now]).map(drop)
}

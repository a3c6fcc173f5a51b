//! Worker pools: marks on nodes, PriorityClasses, disputes, status, and tiers that no pool serves.

use std::time::Duration;

use serde_json::{Value, json};
use torpor_cluster::Options;

use crate::Ctx;
use crate::harness::{condition, eventually};
use crate::refused::{forbid, permit};
use crate::tenants::{
    SOON, apply, await_reason, await_reason_within, brief, ensure, fleet, list, mark, patch, same, tenant, text, uids,
    writes,
};

const LABEL: &str = "torpor.dev/pool";

/// A pool that serves a tier of which there is no tenant here.
fn pool(name: &str, selector: Value, class: &str, value: i64) -> Value {
    json!({"apiVersion": "torpor.dev/v1alpha1", "kind": "WorkerPool", "metadata": {"name": name},
        "spec": {"tiers": ["premium"], "nodeSelector": selector, "priority": {"class": class, "value": value}}})
}

/// A node that kwok plays.
fn node(ctx: &Ctx, name: &str, labels: Value) -> Result<(), String> {
    let mut labels = labels;
    labels["kubernetes.io/hostname"] = json!(name);
    let size = json!({"cpu": "8", "memory": "16Gi", "pods": "110"});
    let metadata = json!({"name": name, "labels": labels, "annotations": {"kwok.x-k8s.io/node": "fake"}});
    let status = json!({"capacity": size, "allocatable": size});
    apply(ctx, &json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "status": status}))
}

fn label(ctx: &Ctx, node: &str) -> Result<String, String> {
    Ok(text(&ctx.get(&["node", node])?["metadata"]["labels"][LABEL]))
}

/// Taints of ours on a node, as `value:effect`.
fn taints(ctx: &Ctx, node: &str) -> Result<Vec<String>, String> {
    let found = ctx.get(&["node", node])?;
    let taints = found["spec"]["taints"].as_array().into_iter().flatten();
    let own = taints.filter(|taint| taint["key"] == LABEL);
    Ok(own.map(|taint| format!("{}:{}", text(&taint["value"]), text(&taint["effect"]))).collect())
}

fn marked(ctx: &Ctx, node: &str, pool: &str, dedicated: bool) -> Result<(), String> {
    eventually(SOON, || {
        same(node, &label(ctx, node)?, &pool.to_owned())?;
        let wanted = if dedicated { vec![format!("{pool}:NoSchedule")] } else { Vec::new() };
        same(node, &taints(ctx, node)?, &wanted)
    })
}

/// The status of a pool once its nodes are counted so.
fn counted(ctx: &Ctx, pool: &str, nodes: i64) -> Result<Value, String> {
    eventually(SOON, || {
        let status = ctx.get(&["wp", pool])?["status"].clone();
        same(pool, &status["nodes"], &json!({"total": nodes, "ready": nodes}))?;
        Ok(status)
    })
}

type Step = (&'static str, fn(&Ctx) -> Result<(), String>);

/// All of it on one cluster of its own: a pool that serves a tier changes where that tier's tenants may run, and
/// other tests' tenants must not notice.
pub fn pools_keep_nodes_and_classes() -> Result<(), String> {
    let options = Options { nodes_per_pool: 1, ..Options::default() };
    let ctx = Ctx::with(options, &[])?;
    let steps: [Step; 8] = [
        ("a tier without a pool", tiers_without_a_pool_wait),
        ("counts", tenants_and_nodes_are_counted),
        ("default pools", default_pools_adopt_their_nodes),
        ("marks", nodes_are_marked_and_freed),
        ("disputes", disputed_nodes_are_left_alone),
        ("classes", classes_are_replaced_or_left_alone),
        ("a refused class", a_refused_class_takes_none_away),
        ("another pool for a tier", another_pool_disturbs_no_bot),
    ];
    for (what, step) in steps {
        step(&ctx).map_err(|error| format!("{what}: {error}"))?;
    }
    Ok(())
}

/// No pool: the Tenant waits and says for what; it recovers when the pool comes.
fn tiers_without_a_pool_wait(ctx: &Ctx) -> Result<(), String> {
    apply(ctx, &tenant("homeless", json!({"tier": "basic", "fleets": [fleet("a", 2)]})))?;
    let message = await_reason(ctx, &["tenant", "homeless"], "Ready", "False", "Waiting")?;
    let wanted = "no ready WorkerPool serves tier basic; create one with spec.tiers containing basic and spec.priority.class torpor-medium";
    ensure(message.starts_with(wanted), || message)?;
    await_reason(ctx, &["bf", "a", "-n", "tenant-homeless"], "Ready", "False", "Waiting")?;
    eventually(SOON, || ctx.get(&["netpol", "default", "-n", "tenant-homeless"]).map(drop))?;
    same("workloads", &list(ctx, "statefulsets,deployments", "tenant-homeless")?.len(), &0)?;
    ctx.apply_file("examples/pools.yaml")?;
    ctx.await_ready("homeless")?;
    // The last pool of its tier goes: the Tenant says so, and its pods stay.
    ctx.kubectl(&["delete", "workerpool", "worker-mid"])?;
    patch(ctx, &["tenant", "homeless"], &json!({"spec": {"displayName": "another pass"}}))?;
    let message = await_reason(ctx, &["tenant", "homeless"], "Ready", "False", "Waiting")?;
    ensure(message.starts_with(wanted), || message)?;
    same("workloads", &list(ctx, "statefulsets,deployments", "tenant-homeless")?.len(), &5)?;
    ctx.apply_file("examples/pools.yaml")?;
    ctx.await_ready("homeless").map(drop)
}

/// Status of a pool: nodes, what they offer, tenants it serves, also when they change tier.
fn tenants_and_nodes_are_counted(ctx: &Ctx) -> Result<(), String> {
    let status = counted(ctx, "worker-mid", 1)?;
    same("allocatable", &status["allocatable"], &json!({"cpu": "64", "memory": "256Gi", "pods": 500}))?;
    let tenants = |basic: i64, pro: i64| {
        eventually(SOON, || {
            let count = |pool: &str| Ok::<_, String>(ctx.get(&["wp", pool])?["status"]["tenants"].clone());
            same("basic, pro", &(count("worker-mid")?, count("worker-high")?), &(json!(basic), json!(pro)))
        })
    };
    tenants(1, 0)?;
    patch(ctx, &["tenant", "homeless"], &json!({"spec": {"tier": "pro"}}))?;
    tenants(0, 1)?;
    patch(ctx, &["tenant", "homeless"], &json!({"spec": {"tier": "basic"}}))?;
    tenants(1, 0)?;
    ctx.kubectl(&["cordon", "worker-high-0"])?;
    await_reason(ctx, &["wp", "worker-high"], "Ready", "False", "Waiting")?;
    same("nodes", &ctx.get(&["wp", "worker-high"])?["status"]["nodes"], &json!({"total": 1, "ready": 0}))?;
    ctx.kubectl(&["uncordon", "worker-high-0"])?;
    counted(ctx, "worker-high", 1).map(drop)
}

/// Nodes that carry the label already keep it; only the dedicated pool puts something on its node.
fn default_pools_adopt_their_nodes(ctx: &Ctx) -> Result<(), String> {
    marked(ctx, "worker-premium-0", "worker-premium", true)?;
    let low = ctx.get(&["node", "worker-low-0"])?;
    same("mark on worker-low-0", &low["metadata"]["annotations"].get("torpor.dev/managed-pool"), &None)?;
    ctx.kubectl(&["delete", "wp", "worker-premium", "--timeout=5s"])?;
    marked(ctx, "worker-premium-0", "worker-premium", false)?;
    eventually(SOON, || {
        ensure(ctx.get(&["priorityclass", "torpor-critical"]).is_err(), || "the class is still there".to_owned())
    })?;
    ctx.apply_file("examples/pools.yaml")?;
    marked(ctx, "worker-premium-0", "worker-premium", true)?;
    let class = eventually(SOON, || ctx.get(&["priorityclass", "torpor-critical"]))?;
    same("value", &class["value"], &json!(1_000_000))
}

/// Any selector: nodes get label and taint while they match, and are left as they were found.
fn nodes_are_marked_and_freed(ctx: &Ctx) -> Result<(), String> {
    for (name, group) in [("marked-0", "marked"), ("marked-1", "marked"), ("marked-not", "other")] {
        node(ctx, name, json!({"test/group": group}))?;
    }
    ctx.kubectl(&["taint", "node", "marked-1", "theirs=x:NoSchedule"])?;
    // Kubernetes notes with its own taints when it put them there.
    ctx.kubectl(&["cordon", "marked-1"])?;
    let kept = |ctx: &Ctx| -> Result<Vec<Value>, String> {
        let mut taints = ctx.get(&["node", "marked-1"])?["spec"]["taints"].as_array().cloned().unwrap_or_default();
        taints.retain(|taint| taint["key"] != LABEL);
        Ok(taints)
    };
    let theirs = eventually(SOON, || {
        let taints = kept(ctx)?;
        let dated = taints.iter().any(|taint| taint["timeAdded"].is_string());
        ensure(taints.len() == 2 && dated, || format!("{taints:?}"))?;
        Ok(taints)
    })?;
    let mut pool = pool("marking", json!({"test/group": "marked"}), "test-marking", 77);
    pool["spec"]["dedicated"] = json!(true);
    apply(ctx, &pool)?;
    marked(ctx, "marked-0", "marking", true)?;
    marked(ctx, "marked-1", "marking", true)?;
    same("taints of others", &kept(ctx)?, &theirs)?;
    ctx.kubectl(&["uncordon", "marked-1"])?;
    same("marked-not", &label(ctx, "marked-not")?, &String::new())?;
    let status = counted(ctx, "marking", 2)?;
    same("allocatable", &status["allocatable"], &json!({"cpu": "16", "memory": "32Gi", "pods": 220}))?;
    await_reason(ctx, &["wp", "marking"], "Ready", "True", "Ready")?;

    ctx.kubectl(&["label", "--overwrite", "node", "marked-0", "test/group=other"])?;
    marked(ctx, "marked-0", "", false)?;
    ctx.kubectl(&["label", "--overwrite", "node", "marked-not", "test/group=marked"])?;
    marked(ctx, "marked-not", "marking", true)?;
    counted(ctx, "marking", 2)?;
    patch(ctx, &["wp", "marking"], &json!({"spec": {"dedicated": false}}))?;
    marked(ctx, "marked-1", "marking", false)?;
    ctx.kubectl(&["label", "node", "marked-1", "torpor.dev/pool-"])?;
    marked(ctx, "marked-1", "marking", false)?;
    // A kubelet that restarts would kill what runs there and needs the label.
    let metadata =
        json!({"name": "stays", "namespace": "default", "labels": {"app.kubernetes.io/managed-by": "torpor"}});
    let spec = json!({"nodeName": "marked-not", "containers": [{"name": "a", "image": "a"}]});
    apply(ctx, &json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}))?;
    eventually(SOON, || {
        let pod = ctx.get(&["pod", "stays", "-n", "default"])?;
        same("phase", &pod["status"]["phase"], &json!("Running"))
    })?;
    ctx.kubectl(&["delete", "wp", "marking", "--timeout=5s"])?;
    for name in ["marked-0", "marked-1", "marked-not"] {
        if name == "marked-not" {
            same("label of a node in use", &label(ctx, name)?, &"marking".to_owned())?;
            ctx.kubectl(&["delete", "pod", "stays", "-n", "default", "--force", "--grace-period=0"])?;
            eventually(Duration::from_secs(30), || same(name, &label(ctx, name)?, &String::new()))?;
        }
        marked(ctx, name, "", false)?;
        let left = ctx.get(&["node", name])?;
        same(name, &left["metadata"]["annotations"].get("torpor.dev/managed-pool"), &None)?;
    }
    let theirs = ctx.get(&["node", "marked-1"])?;
    same("their taint", &theirs["spec"]["taints"][0]["key"], &json!("theirs"))
}

/// A node that two pools claim, or that others have labelled, is explained to all and touched by nobody.
fn disputed_nodes_are_left_alone(ctx: &Ctx) -> Result<(), String> {
    let mark = mark(ctx)?;
    for (name, key) in [("left", "test/left"), ("right", "test/right")] {
        let mut pool = pool(name, json!({key: "1"}), "test-dispute", 5);
        pool["spec"]["dedicated"] = json!(name == "left");
        apply(ctx, &pool)?;
    }
    for name in ["left", "right"] {
        await_reason(ctx, &["wp", name], "Ready", "False", "Waiting")?;
    }
    node(ctx, "disputed", json!({"test/left": "1", "test/right": "1"}))?;
    for name in ["left", "right"] {
        let message = eventually(SOON, || await_reason(ctx, &["wp", name], "Stalled", "True", "NotOwned"))?;
        same(name, &message.as_str(), &"node disputed is claimed by left and right; let one selector match")?;
        same(name, &ctx.get(&["wp", name])?["status"]["nodes"], &json!({"total": 0, "ready": 0}))?;
    }
    let touched: Vec<String> = writes(ctx, mark)?.iter().filter(|event| event.name == "disputed").map(brief).collect();
    ensure(touched.is_empty(), || format!("{touched:?}"))?;
    ctx.kubectl(&["label", "node", "disputed", "test/right-"])?;
    marked(ctx, "disputed", "left", true)?;
    await_reason(ctx, &["wp", "left"], "Ready", "True", "Ready")?;
    await_reason(ctx, &["wp", "right"], "Ready", "False", "Waiting")?;

    node(ctx, "theirs", json!({"test/right": "1", LABEL: "somebody"}))?;
    let message = await_reason(ctx, &["wp", "right"], "Stalled", "True", "NotOwned")?;
    ensure(message.starts_with("node theirs carries torpor.dev/pool=somebody, set by somebody else"), || message)?;
    same("label", &label(ctx, "theirs")?, &"somebody".to_owned())?;
    ctx.kubectl(&["delete", "wp", "left", "right", "--timeout=5s"])?;
    marked(ctx, "disputed", "", false)?;
    same("label", &label(ctx, "theirs")?, &"somebody".to_owned())
}

/// Another value replaces a class of our own; one of others is used if it says the same, and never touched.
fn classes_are_replaced_or_left_alone(ctx: &Ctx) -> Result<(), String> {
    let class = |name: &str| ctx.get(&["priorityclass", name]);
    let before = uids(&list(ctx, "pods", "tenant-homeless")?);
    patch(ctx, &["wp", "worker-mid"], &json!({"spec": {"priority": {"value": 12_345}}}))?;
    eventually(SOON, || same("value", &class("torpor-medium")?["value"], &json!(12_345)))?;
    eventually(SOON, || {
        let pool = ctx.get(&["wp", "worker-mid"])?;
        same("observedGeneration", &pool["status"]["observedGeneration"], &pool["metadata"]["generation"])?;
        same("Ready", &condition(&pool, "Ready")["status"], &json!("True"))
    })?;
    same("pods", &uids(&list(ctx, "pods", "tenant-homeless")?), &before)?;

    ctx.kubectl(&["create", "priorityclass", "test-foreign", "--value=5"])?;
    let foreign = text(&class("test-foreign")?["metadata"]["uid"]);
    apply(ctx, &pool("foreign", json!({"test/group": "nobody"}), "test-foreign", 6))?;
    let message = await_reason(ctx, &["wp", "foreign"], "Stalled", "True", "NotOwned")?;
    ensure(message.starts_with("PriorityClass test-foreign exists with another value"), || message)?;
    patch(ctx, &["wp", "foreign"], &json!({"spec": {"priority": {"value": 5}}}))?;
    await_reason(ctx, &["wp", "foreign"], "Ready", "False", "Waiting")?;
    apply(ctx, &pool("rival", json!({"test/group": "nobody-else"}), "test-foreign", 7))?;
    for (name, other) in [("foreign", "rival"), ("rival", "foreign")] {
        let message = await_reason(ctx, &["wp", name], "Stalled", "True", "NotOwned")?;
        ensure(message.starts_with(&format!("WorkerPool {other} gives PriorityClass test-foreign another")), || {
            message
        })?;
    }
    ctx.kubectl(&["delete", "wp", "foreign", "rival", "--timeout=5s"])?;
    std::thread::sleep(Duration::from_secs(1));
    same("foreign class", &text(&class("test-foreign")?["metadata"]["uid"]), &foreign)
}

/// A class whose successor is refused stays, and so do the pods that name it and their tenants.
fn a_refused_class_takes_none_away(ctx: &Ctx) -> Result<(), String> {
    let class = ["priorityclass", "torpor-medium"];
    let before = text(&ctx.get(&class)?["metadata"]["uid"]);
    let constraints = json!({"resourceRules": [{"apiGroups": ["scheduling.k8s.io"], "apiVersions": ["*"],
        "operations": ["CREATE"], "resources": ["priorityclasses"]}]});
    let attempt = ["create", "priorityclass", "test-refused", "--value=5", "--dry-run=server"];
    forbid(ctx, "no-classes", &constraints, &attempt)?;
    patch(ctx, &["wp", "worker-mid"], &json!({"spec": {"priority": {"value": 23_456}}}))?;
    await_reason(ctx, &["wp", "worker-mid"], "Stalled", "True", "Refused")?;
    same("class", &text(&ctx.get(&class)?["metadata"]["uid"]), &before)?;
    // A pass of the tenant finds its pool all the same.
    patch(ctx, &["tenant", "homeless"], &json!({"spec": {"displayName": "while it is refused"}}))?;
    eventually(SOON, || {
        let tenant = ctx.get(&["tenant", "homeless"])?;
        same("observedGeneration", &tenant["status"]["observedGeneration"], &tenant["metadata"]["generation"])?;
        same("Ready", &condition(&tenant, "Ready")["status"], &json!("True"))
    })?;
    permit(ctx, "no-classes", &attempt)?;
    patch(ctx, &["wp", "worker-mid"], &json!({"spec": {"priority": {"value": 34_567}}}))?;
    eventually(SOON, || same("value", &ctx.get(&class)?["value"], &json!(34_567)))
}

/// The example of any selector: its nodes are found when they come, and bots and databases stay where they are.
fn another_pool_disturbs_no_bot(ctx: &Ctx) -> Result<(), String> {
    patch(ctx, &["wp", "worker-mid"], &json!({"spec": {"priority": {"value": 10_000}}}))?;
    ctx.await_ready("homeless")?;
    let stateful = |ctx: &Ctx| -> Result<_, String> {
        let mut pods = list(ctx, "pods", "tenant-homeless")?;
        pods.retain(|pod| pod["metadata"]["ownerReferences"][0]["kind"] == "StatefulSet");
        Ok(uids(&pods))
    };
    let before = stateful(ctx)?;
    ctx.apply_file("examples/pool-eks-selector.yaml")?;
    let message = await_reason(ctx, &["wp", "eks-basic"], "Ready", "False", "Waiting")?;
    ensure(
        message.starts_with("0 nodes match eks.amazonaws.com/nodegroup=torpor-basic,kubernetes.io/arch=amd64"),
        || message,
    )?;
    node(ctx, "eks-0", json!({"eks.amazonaws.com/nodegroup": "torpor-basic", "kubernetes.io/arch": "amd64"}))?;
    marked(ctx, "eks-0", "eks-basic", false)?;
    await_reason(ctx, &["wp", "eks-basic"], "Ready", "True", "Ready")?;
    eventually(SOON, || {
        let pools = ctx.get(&["tenant", "homeless"])?["status"]["placement"]["pools"].clone();
        same("pools", &pools, &json!(["eks-basic", "worker-mid"]))
    })?;
    await_reason_within(ctx, Duration::from_secs(90), &["tenant", "homeless"], "Ready", "True", "Ready")?;
    same("bots, database, redis", &stateful(ctx)?, &before)
}

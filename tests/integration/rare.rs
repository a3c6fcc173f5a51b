//! What the operator does seldom, and needs rights for: surplus objects of any kind, hosts, fleets that stop without a plan.

use serde_json::{Value, json};

use crate::Ctx;
use crate::harness::{condition, eventually};
use crate::tenants::{SOON, apply, ensure, fleet, list, mark, patch, same, tenant, text, writes};

/// An object that is controlled by the Tenant and that no plan wants goes, of whatever kind it is. An earlier version of the
/// operator may have made any of them.
pub fn surplus_of_every_kind_goes(ctx: &Ctx) -> Result<(), String> {
    let (name, namespace) = ("surplus", "tenant-surplus");
    apply(ctx, &tenant(name, json!({"tier": "free"})))?;
    let owner = ctx.await_ready(name)?;
    let reference = json!({
        "apiVersion": "torpor.dev/v1alpha1", "kind": "Tenant", "name": name, "uid": owner["metadata"]["uid"],
        "controller": true,
    });
    let labels = json!({"app.kubernetes.io/managed-by": "torpor", "torpor.dev/tenant": name});
    let selector = json!({"matchLabels": {"of": "nobody"}});
    let metadata = json!({"labels": {"of": "nobody"}});
    let template =
        json!({"metadata": metadata, "spec": {"containers": [{"name": "main", "image": "example.com/app"}]}});
    let workload = json!({"replicas": 0, "serviceName": "none", "selector": selector, "template": template});
    let deployment = json!({"replicas": 0, "selector": selector, "template": template});
    let backend = json!({"service": {"name": "none", "port": {"number": 1}}});
    let kinds: [(&str, &str, &str, Value); 10] = [
        ("v1", "ServiceAccount", "serviceaccounts", Value::Null),
        ("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies", json!({"podSelector": selector})),
        ("v1", "ResourceQuota", "resourcequotas", json!({"hard": {"pods": "50"}})),
        ("v1", "LimitRange", "limitranges", json!({"limits": []})),
        ("v1", "ConfigMap", "configmaps", Value::Null),
        ("v1", "Service", "services", json!({"ports": [{"port": 1}]})),
        ("networking.k8s.io/v1", "Ingress", "ingresses", json!({"defaultBackend": backend})),
        ("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets", json!({"selector": selector})),
        ("apps/v1", "StatefulSet", "statefulsets", workload),
        ("apps/v1", "Deployment", "deployments", deployment),
    ];
    for (version, kind, _, spec) in &kinds {
        let metadata =
            json!({"name": "surplus", "namespace": namespace, "labels": labels, "ownerReferences": [reference]});
        let mut object = json!({"apiVersion": version, "kind": kind, "metadata": metadata});
        if !spec.is_null() {
            object["spec"] = spec.clone();
        }
        apply(ctx, &object)?;
    }
    for (.., plural, _) in &kinds {
        eventually(SOON, || {
            let left = list(ctx, plural, namespace)?.iter().any(|object| object["metadata"]["name"] == "surplus");
            ensure(!left, || format!("{plural}/surplus is still there"))
        })?;
    }
    Ok(())
}

/// A dashboard with a host has an Ingress of the operator's class, which follows the host and goes with it.
pub fn hosts_have_an_ingress(ctx: &Ctx) -> Result<(), String> {
    let (name, namespace) = ("hosted", "tenant-hosted");
    apply(ctx, &tenant(name, json!({"tier": "free", "dashboard": {"host": "one.example.com"}})))?;
    let has = |host: &str| {
        eventually(SOON, || {
            let ingress = ctx.get(&["ingress", "dashboard", "-n", namespace])?;
            same("class", &text(&ingress["spec"]["ingressClassName"]), &"traefik".to_owned())?;
            same("host", &text(&ingress["spec"]["rules"][0]["host"]), &host.to_owned())
        })
    };
    has("one.example.com")?;
    patch(ctx, &["tenant", name], &json!({"spec": {"dashboard": {"host": "two.example.com"}}}))?;
    has("two.example.com")?;
    patch(ctx, &["tenant", name], &json!({"spec": {"dashboard": {"host": null}}}))?;
    eventually(SOON, || same("Ingresses", &list(ctx, "ingresses", namespace)?.len(), &0))
}

/// A fleet whose configuration has gone cannot be planned; its bots stop for the night all the same.
pub fn fleets_without_a_plan_sleep(ctx: &Ctx) -> Result<(), String> {
    let (name, namespace) = ("unplanned", "tenant-unplanned");
    apply(ctx, &tenant(name, json!({"tier": "basic"})))?;
    ctx.await_ready(name)?;
    let config = ["configmap", "mine", "-n", namespace];
    ctx.kubectl(&[&["create"], &config[..], &["--from-literal=config.yml=script_file_name: a.py"]].concat())?;
    let mut reader = fleet("reader", 1);
    reader["strategy"] = json!({"kind": "script", "configMapRef": {"name": "mine"}});
    patch(ctx, &["tenant", name], &json!({"spec": {"fleets": [reader]}}))?;
    let awake = |_: &Value| -> Result<(), String> {
        let pods = list(ctx, "pods", namespace)?;
        let bots = pods.iter().filter(|pod| text(&pod["metadata"]["name"]).starts_with("bots-reader-"));
        same("bots", &bots.count(), &1)
    };
    eventually(SOON, || awake(&Value::Null))?;
    ctx.await_ready(name)?;
    ctx.kubectl(&[&["delete"], &config[..]].concat())?;
    eventually(SOON, || {
        let fleet = ctx.get(&["botfleet", "reader", "-n", namespace])?;
        let ready = condition(&fleet, "Ready");
        ensure(ready["status"] == "False", || format!("the fleet has no configuration and is {ready}"))
    })?;
    // Awake, it keeps what runs.
    awake(&Value::Null)?;
    let start = mark(ctx)?;
    let now = format!("torpor.dev/sleep-requested-at={}", jiff::Timestamp::now());
    ctx.kubectl(&["annotate", "tenant", name, &now])?;
    ctx.await_condition(&["tenant", name], "Hibernated", "True", std::time::Duration::from_secs(60))?;
    let left: Vec<String> = list(ctx, "pods", namespace)?.iter().map(|pod| text(&pod["metadata"]["name"])).collect();
    same("pods", &left, &vec!["postgres-0".to_owned()])?;
    let scaled = writes(ctx, start)?.iter().any(|event| event.namespace == namespace && event.subresource == "scale");
    ensure(scaled, || "the bots went, and not because their StatefulSet was scaled down".to_owned())
}

//! A place that belongs to somebody else, and specs that refer to what is not there.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    SOON, apply, await_reason, await_reason_within, brief, ensure, fleet, list, mark, patch, same, tenant, writes,
};
use crate::Ctx;
use crate::harness::eventually;

/// A namespace that others made is not touched: the Tenant says why, and can be deleted.
pub fn foreign_namespaces_stay_untouched(ctx: &Ctx) -> Result<(), String> {
    // One without labels, one that only looks like Torpor's, and one of another tenant.
    let managed = json!({"app.kubernetes.io/managed-by": "torpor"});
    let others = json!({"app.kubernetes.io/managed-by": "torpor", "torpor.dev/tenant": "somebody-else"});
    for (name, labels) in [("foreign-plain", json!({})), ("foreign-managed", managed), ("foreign-other", others)] {
        untouched(ctx, name, &labels).map_err(|error| format!("{name}: {error}"))?;
    }
    Ok(())
}

fn untouched(ctx: &Ctx, name: &str, labels: &Value) -> Result<(), String> {
    let namespace = format!("tenant-{name}");
    let metadata = json!({"name": namespace, "labels": labels});
    apply(ctx, &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}))?;
    let before = ctx.get(&["namespace", &namespace])?;
    let mark = mark(ctx)?;
    apply(ctx, &tenant(name, json!({"tier": "basic", "fleets": [fleet("a", 1)], "deletionPolicy": "Delete"})))?;
    let message = await_reason(ctx, &["tenant", name], "Stalled", "True", "NotOwned")?;
    ensure(message.contains(&namespace) && message.contains("was not touched"), || message)?;
    await_reason(ctx, &["tenant", name], "Ready", "False", "NotOwned")?;
    ctx.kubectl(&["delete", "tenant", name, "--timeout=10s"])?;

    for event in writes(ctx, mark)? {
        let there = event.namespace == namespace || (event.resource == "namespaces" && event.name == namespace);
        let refused = event.verb == "create" && event.code == 409;
        ensure(!there || refused, || format!("the operator wrote: {}", brief(&event)))?;
    }
    let after = ctx.get(&["namespace", &namespace])?;
    same("resource version", &after["metadata"]["resourceVersion"], &before["metadata"]["resourceVersion"])?;
    same("objects", &list(ctx, "all,secrets,botfleets,pvc", &namespace)?.len(), &0)
}

/// A fleet waits for its ConfigMap and its Secret, says so, and goes on when they appear.
pub fn missing_references_are_awaited(ctx: &Ctx) -> Result<(), String> {
    let mut reader = fleet("reader", 1);
    reader["strategy"] = json!({"kind": "script", "configMapRef": {"name": "mine", "key": "a.yml"}});
    let mut holder = fleet("holder", 1);
    holder["credentialsSecret"] = json!("keys");
    apply(ctx, &tenant("refers", json!({"tier": "basic", "fleets": [reader, holder]})))?;
    let namespace = "tenant-refers";
    let at = |kind: &'static str, name: &'static str| [kind, name, "-n", namespace];
    eventually(SOON, || ctx.get(&["namespace", namespace]).map(drop))?;

    let message = await_reason(ctx, &at("bf", "reader"), "Ready", "False", "Waiting")?;
    same("message", &message.as_str(), &"ConfigMap tenant-refers/mine does not exist; create it with the key a.yml")?;
    let message = await_reason(ctx, &at("bf", "holder"), "Ready", "False", "Waiting")?;
    ensure(message.starts_with("Secret tenant-refers/keys does not exist; create it"), || message)?;
    let message = eventually(SOON, || {
        let message = await_reason(ctx, &["tenant", "refers"], "Ready", "False", "Progressing")?;
        let told = message.contains("fleet reader: ConfigMap") && message.contains("fleet holder: Secret");
        ensure(told, || message.clone()).map(|()| message)
    })?;
    same("workloads", &list(ctx, "statefulsets", namespace)?.len(), &2)
        .map_err(|error| format!("{error}; {message}"))?;

    ctx.kubectl(&["create", "configmap", "mine", "-n", namespace, "--from-literal=b.yml=x"])?;
    eventually(SOON, || {
        let message = await_reason(ctx, &at("bf", "reader"), "Ready", "False", "Waiting")?;
        ensure(message == "ConfigMap tenant-refers/mine has no key a.yml; add it", || message)
    })?;
    patch(ctx, &at("configmap", "mine"), &json!({"data": {"a.yml": "script_file_name: a.py\n"}}))?;
    await_reason_within(ctx, Duration::from_secs(60), &at("bf", "reader"), "Ready", "True", "Ready")?;
    // Secrets are not watched, so nothing but the next look finds it: by now nothing else happens here.
    std::thread::sleep(Duration::from_secs(1));
    ctx.kubectl(&["create", "secret", "generic", "keys", "-n", namespace, "--from-literal=HBOT_PASSWORD=x"])?;
    eventually(SOON, || ctx.get(&at("statefulset", "bots-holder")).map(drop))?;
    await_reason_within(ctx, Duration::from_secs(60), &["tenant", "refers"], "Ready", "True", "Ready").map(drop)
}

/// A spec beyond its tier is Stalled with every problem in words, and recovers by an edit.
pub fn specs_beyond_the_tier_are_stalled(ctx: &Ctx) -> Result<(), String> {
    let spec = json!({"tier": "free", "database": {"resources": {"memory": "512Mi"}}, "fleets": [fleet("a", 1)]});
    apply(ctx, &tenant("beyond", spec))?;
    let message = await_reason(ctx, &["tenant", "beyond"], "Stalled", "True", "InvalidSpec")?;
    ensure(message.contains("ask for") && message.contains("tier free has cpu 500m"), || message)?;
    let told = ctx.get(&["tenant", "beyond"])?;
    same("observedGeneration", &told["status"]["observedGeneration"], &json!(1))?;
    ensure(ctx.get(&["namespace", "tenant-beyond"]).is_err(), || "a namespace was made all the same".to_owned())?;
    patch(ctx, &["tenant", "beyond"], &json!({"spec": {"database": null}}))?;
    ctx.await_ready("beyond")?;

    // Of one that runs nothing is taken away, and the rest of the cluster is not held up.
    let before = super::uids(&list(ctx, "pods", "tenant-beyond")?);
    patch(
        ctx,
        &["tenant", "beyond"],
        &json!({"spec": {"fleets": [{"name": "a", "replicas": 1,
        "strategy": {"kind": "script", "config": "no_script: x\n"}}]}}),
    )?;
    let message = await_reason(ctx, &["tenant", "beyond"], "Stalled", "True", "InvalidSpec")?;
    ensure(message.starts_with("fleet a: spec.strategy: the configuration has no key"), || message)?;
    same("pods", &super::uids(&list(ctx, "pods", "tenant-beyond")?), &before)?;
    patch(ctx, &["tenant", "beyond"], &json!({"spec": {"fleets": [fleet("a", 1)]}}))?;
    await_reason_within(ctx, Duration::from_secs(60), &["tenant", "beyond"], "Ready", "True", "Ready")?;
    same("pods", &super::uids(&list(ctx, "pods", "tenant-beyond")?), &before)
}

/// A BotFleet outside of a tenant's namespace waits and says where it belongs.
pub fn fleets_need_a_tenant(ctx: &Ctx) -> Result<(), String> {
    let mark = mark(ctx)?;
    for (namespace, name) in [("tenantless", "stray"), ("tenant-nobody-yet", "early")] {
        ctx.kubectl(&["create", "namespace", namespace])?;
        let spec = json!({"replicas": 1, "strategy": fleet("x", 1)["strategy"]});
        let metadata = json!({"name": name, "namespace": namespace});
        apply(
            ctx,
            &json!({"apiVersion": "torpor.dev/v1alpha1", "kind": "BotFleet", "metadata": metadata, "spec": spec}),
        )?;
        let message = await_reason(ctx, &["bf", name, "-n", namespace], "Ready", "False", "Waiting")?;
        ensure(message.contains(&format!("namespace {namespace} belongs to no Tenant")), || message)?;
        ctx.kubectl(&["delete", "bf", name, "-n", namespace, "--timeout=5s"])?;
        ctx.kubectl(&["delete", "namespace", namespace, "--wait=false"])?;
    }
    let made: Vec<String> = writes(ctx, mark)?
        .iter()
        .filter(|event| matches!(event.namespace.as_str(), "tenantless" | "tenant-nobody-yet"))
        .filter(|event| !matches!(event.resource.as_str(), "botfleets" | "events"))
        .map(brief)
        .collect();
    ensure(made.is_empty(), || format!("{made:?}"))
}

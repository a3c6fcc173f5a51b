//! The status as Flux and Argo CD read it.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    Watch, apply, await_reason, await_reason_within, ensure, fleet, is_ready, list, patch, same, tenant, text,
};
use crate::Ctx;
use crate::harness::{condition, eventually};

/// kstatus' generic rules (sigs.k8s.io/cli-utils/pkg/kstatus), in the order in which it applies them.
fn kstatus(object: &Value) -> &'static str {
    if !object["metadata"]["deletionTimestamp"].is_null() {
        return "Terminating";
    }
    if let Some(seen) = object["status"]["observedGeneration"].as_i64()
        && Some(seen) != object["metadata"]["generation"].as_i64()
    {
        return "InProgress";
    }
    let holds = |type_: &str| condition(object, type_)["status"] == "True";
    if holds("Reconciling") {
        return "InProgress";
    }
    if holds("Stalled") {
        return "Failed";
    }
    match condition(object, "Ready")["status"].as_str() {
        Some("True") | None => "Current",
        Some(_) => "InProgress",
    }
}

/// Over a tenant's life: Current only when every pod is ready at that generation, Failed exactly when Stalled.
pub fn kstatus_is_honest(ctx: &Ctx) -> Result<(), String> {
    let namespace = "tenant-honest";
    let tenants = Watch::start(ctx, &["tenants", "--field-selector=metadata.name=honest"])?;
    let fleets = Watch::start(ctx, &["botfleets", "-A", "--field-selector=metadata.namespace=tenant-honest"])?;
    let spec = |replicas: i32| json!({"spec": {"fleets": [fleet("a", replicas)]}});
    apply(ctx, &tenant("honest", json!({"tier": "basic", "fleets": [fleet("a", 2)]})))?;
    current(ctx, 6)?;
    patch(ctx, &["tenant", "honest"], &spec(3))?;
    current(ctx, 7)?;
    patch(ctx, &["tenant", "honest"], &json!({"spec": {"dashboard": {"image": "hummingbot/dashboard:other"}}}))?;
    current(ctx, 7)?;
    let image = list(ctx, "pods", namespace)?;
    let image = image.iter().find(|pod| text(&pod["metadata"]["name"]).starts_with("dashboard-"));
    let image = image.map(|pod| text(&pod["spec"]["containers"][0]["image"]));
    same("dashboard at Current", &image, &Some("hummingbot/dashboard:other".to_owned()))?;
    patch(ctx, &["tenant", "honest"], &json!({"spec": {"redis": {"resources": {"memory": "1000Mi"}}}}))?;
    await_reason(ctx, &["tenant", "honest"], "Stalled", "True", "InvalidSpec")?;
    patch(ctx, &["tenant", "honest"], &json!({"spec": {"redis": null}}))?;
    current(ctx, 7)?;
    patch(ctx, &["tenant", "honest"], &spec(1))?;
    current(ctx, 5)?;
    let limit = Duration::from_secs(60);
    patch(ctx, &["tenant", "honest"], &json!({"spec": {"suspended": true}}))?;
    await_reason_within(ctx, limit, &["tenant", "honest"], "Ready", "True", "Asleep")?;

    for (watch, what) in [(&tenants, "Tenant"), (&fleets, "BotFleet")] {
        let told: Vec<Value> = watch.events().into_iter().map(|(_, event)| event["object"].clone()).collect();
        let failed = told.iter().filter(|object| kstatus(object) == "Failed").count();
        ensure(told.len() > 5, || format!("{what}: {} events only", told.len()))?;
        ensure((what == "Tenant") == (failed > 0), || format!("{what}: {failed} times Failed"))?;
        for object in &told {
            let state = kstatus(object);
            let stalled = condition(object, "Stalled")["status"] == "True";
            let at_generation = object["status"]["observedGeneration"] == object["metadata"]["generation"];
            same(&format!("{what} {object}"), &(state == "Failed"), &(stalled && at_generation))?;
            let ready = condition(object, "Ready");
            let of_generation = ready["observedGeneration"] == object["metadata"]["generation"];
            ensure(state != "Current" || (ready["status"] == "True" && of_generation), || {
                format!("{what} Current without being Ready: {object}")
            })?;
        }
    }
    Ok(())
}

/// Waits until kstatus says Current, and looks at once whether the pods are as many as they should be, and ready.
fn current(ctx: &Ctx, pods: usize) -> Result<(), String> {
    eventually(Duration::from_secs(60), || {
        let state = ctx.get(&["tenant", "honest"])?;
        ensure(kstatus(&state) == "Current", || state["status"].to_string())
    })?;
    let found = list(ctx, "pods", "tenant-honest")?;
    let settled = found.iter().filter(|pod| is_ready(pod) && pod["metadata"]["deletionTimestamp"].is_null()).count();
    same("ready pods at Current", &(settled, found.len()), &(pods, pods))
}

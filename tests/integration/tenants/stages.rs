//! Sleep and wake, as far as the operator alone decides: suspension, sleep requests, activity.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    Watch, apply, await_reason, await_reason_within, ensure, equal_rendered, fleet, is_bot, list, mark, objects, patch,
    render, same, tenant, text, uids, writes,
};
use crate::Ctx;
use crate::harness::{condition, eventually};

const LIMIT: Duration = Duration::from_secs(90);

/// Asleep at DatabaseOnly: exactly what is rendered for that stage, one small pod, the volumes as before.
fn asleep(ctx: &Ctx, tenant: &Value) -> Result<(), String> {
    let name = text(&tenant["metadata"]["name"]);
    let namespace = format!("tenant-{name}");
    await_reason_within(ctx, LIMIT, &["tenant", &name], "Ready", "True", "Asleep")?;
    let live = ctx.get(&["tenant", &name])?;
    same("Hibernated", &text(&condition(&live, "Hibernated")["status"]), &"True".to_owned())?;
    same("stage", &live["status"]["hibernation"]["stage"], &json!("DatabaseOnly"))?;
    same("bots", &live["status"]["bots"], &json!({"desired": 0, "ready": 0}))?;
    same("observedGeneration", &live["status"]["observedGeneration"], &live["metadata"]["generation"])?;
    equal_rendered(&render(tenant, &["--stage", "DatabaseOnly"])?, &objects(ctx, &namespace)?)?;
    let pods = list(ctx, "pods", &namespace)?;
    let names: Vec<String> = pods.iter().map(|pod| text(&pod["metadata"]["name"])).collect();
    same("pods", &names, &vec!["postgres-0".to_owned()])?;
    let limits = &pods[0]["spec"]["containers"][0]["resources"]["limits"];
    same("database", limits, &json!({"cpu": "50m", "memory": "128Mi"}))
}

/// Suspension stops bots first, then services, then shrinks the database; lifting it brings all back.
pub fn suspended_tenants_sleep(ctx: &Ctx) -> Result<(), String> {
    let namespace = "tenant-unpaid-bill";
    let mut payer = tenant("unpaid-bill", json!({"tier": "pro", "fleets": [fleet("a", 2), fleet("b", 1)]}));
    apply(ctx, &payer)?;
    ctx.await_ready("unpaid-bill")?;
    let volumes = uids(&list(ctx, "pvc", namespace)?);
    let watch = Watch::pods(ctx, namespace)?;
    let mark = mark(ctx)?;
    patch(ctx, &["tenant", "unpaid-bill"], &json!({"spec": {"suspended": true}}))?;
    payer["spec"]["suspended"] = json!(true);
    asleep(ctx, &payer)?;
    same("volumes", &uids(&list(ctx, "pvc", namespace)?), &volumes)?;

    // The order, from one stream of pod events.
    let events = watch.events();
    let stopping = |event: &Value| !event["object"]["metadata"]["deletionTimestamp"].is_null();
    let position = |wanted: &dyn Fn(&Value) -> bool| events.iter().position(|(_, event)| wanted(event));
    let last_bot = events.iter().rposition(|(_, event)| event["type"] == "DELETED" && is_bot(&event["object"]));
    let of = |event: &Value, component: &str| {
        event["object"]["metadata"]["labels"]["app.kubernetes.io/component"] == component
    };
    let service = position(&|event| stopping(event) && (of(event, "redis") || of(event, "dashboard")));
    let database = position(&|event| stopping(event) && of(event, "database"));
    ensure(last_bot.is_some() && last_bot < service && service < database, || {
        format!("last bot {last_bot:?}, first service {service:?}, database {database:?}")
    })?;
    // The operator wrote nothing to the services before: their first write came after that of both fleets.
    let writes = writes(ctx, mark)?;
    let first = |name: &str| {
        writes
            .iter()
            .position(|event| event.namespace == namespace && event.name == name && event.subresource.is_empty())
    };
    let bots = first("bots-a").max(first("bots-b"));
    for service in ["redis", "dashboard", "postgres", "monitoring"] {
        ensure(bots.is_some() && first(service) > bots, || format!("{service} was written at {:?}", first(service)))?;
    }

    patch(ctx, &["tenant", "unpaid-bill"], &json!({"spec": {"suspended": false}}))?;
    await_reason_within(ctx, LIMIT, &["tenant", "unpaid-bill"], "Ready", "True", "Ready")?;
    await_reason(ctx, &["tenant", "unpaid-bill"], "Hibernated", "False", "Awake")?;
    same("pods", &list(ctx, "pods", namespace)?.len(), &7)?;
    same("volumes", &uids(&list(ctx, "pvc", namespace)?), &volumes)
}

/// A sleep request holds until newer activity; a wish to wake is activity, too.
pub fn sleep_requests_hold_until_activity(ctx: &Ctx) -> Result<(), String> {
    let spec = json!({"tier": "basic", "fleets": [fleet("a", 1)]});
    let sleeper = tenant("light-sleeper", spec);
    apply(ctx, &sleeper)?;
    ctx.await_ready("light-sleeper")?;
    let volumes = uids(&list(ctx, "pvc", "tenant-light-sleeper")?);
    let annotate = |key: &str, time: &str| {
        ctx.kubectl(&["annotate", "--overwrite", "tenant", "light-sleeper", &format!("torpor.dev/{key}={time}")])
    };
    // Times in the future, so that they are newer than the object itself.
    for (wake, sleep_at, wake_at) in [
        ("last-activity", "2101-01-01T00:00:00Z", "2102-01-01T00:00:00Z"),
        ("wake-requested-at", "2103-01-01T00:00:00Z", "2104-01-01T00:00:00Z"),
    ] {
        annotate("sleep-requested-at", sleep_at)?;
        asleep(ctx, &sleeper).map_err(|error| format!("{sleep_at}: {error}"))?;
        // Activity as old as the request, or unreadable, changes nothing a user would notice for good.
        annotate(wake, wake_at)?;
        await_reason_within(ctx, LIMIT, &["tenant", "light-sleeper"], "Ready", "True", "Ready")
            .map_err(|error| format!("{wake}: {error}"))?;
        same("volumes", &uids(&list(ctx, "pvc", "tenant-light-sleeper")?), &volumes)?;
    }
    Ok(())
}

/// Activity in the middle of going to sleep: nothing further goes down, and everything comes back.
pub fn activity_wins_half_way(ctx: &Ctx) -> Result<(), String> {
    apply(ctx, &tenant("restless", json!({"tier": "basic", "fleets": [fleet("a", 3)]})))?;
    ctx.await_ready("restless")?;
    let services = |ctx: &Ctx| -> Result<_, String> {
        let pods = list(ctx, "pods", "tenant-restless")?;
        Ok(uids(&pods.into_iter().filter(|pod| !is_bot(pod)).collect::<Vec<_>>()))
    };
    let before = services(ctx)?;
    let annotate = |key: &str, time: &str| {
        ctx.kubectl(&["annotate", "--overwrite", "tenant", "restless", &format!("torpor.dev/{key}={time}")])
    };
    annotate("sleep-requested-at", "2101-01-01T00:00:00Z")?;
    // Bots take a second to stop; the first sign of it is early enough.
    eventually(Duration::from_secs(25), || {
        let pods = list(ctx, "pods", "tenant-restless")?;
        let stopping = pods.iter().any(|pod| !pod["metadata"]["deletionTimestamp"].is_null());
        ensure(stopping, || "no bot stops".to_owned())
    })?;
    annotate("wake-requested-at", "2102-01-01T00:00:00Z")?;
    await_reason_within(ctx, LIMIT, &["tenant", "restless"], "Ready", "True", "Ready")?;
    same("services", &services(ctx)?, &before)
}

//! Portals report logins, wake tenants, put them to sleep, and hear how far they are.

use serde_json::{Value, json};

use super::{Door, await_state, time, token};
use crate::Ctx;
use crate::harness::eventually;
use crate::tenants::{SOON, ensure, fleet, same, tenant};

/// A tenant's life by the gateway alone: asleep by request, woken by a login, told step by step.
pub fn a_login_wakes_and_is_told(ctx: &Ctx) -> Result<(), String> {
    let door = Door::open(&ctx.cluster, &[])?;
    let portal = token(&ctx.cluster, "portal", "backend")?;
    let name = "gateway-login";
    ctx.apply(&tenant(name, json!({"tier": "basic", "fleets": [fleet("makers", 2)]})).to_string())?;
    ctx.await_ready(name)?;
    let at = |rest: &str| format!("/v1/tenants/{name}{rest}");
    await_state(&door, &portal, name, "Awake")?;
    let before = ctx.get(&["tenant", name])?;
    door.call(&portal, "POST", &at("/activity"))?.is(204)?;
    let after = ctx.get(&["tenant", name])?;
    let unchanged = before["metadata"]["resourceVersion"] == after["metadata"]["resourceVersion"];
    ensure(unchanged, || "a login of a tenant that was made a moment ago is no news".to_owned())?;
    ensure(door.process.counter("torpor_activity_total")? > 0.0, || "the login was not counted".to_owned())?;

    let told = door.call(&portal, "POST", &at("/sleep"))?.is(202)?.json()?;
    same("state", &told["state"], &json!("GoingToSleep"))?;
    let asleep = await_state(&door, &portal, name, "Asleep")?;
    same("stage", &asleep["stage"], &json!("DatabaseOnly"))?;
    let version = ctx.get(&["tenant", name])?["metadata"]["resourceVersion"].clone();
    door.call(&portal, "POST", &at("/sleep"))?.is(202)?;
    same("an unneeded write", &ctx.get(&["tenant", name])?["metadata"]["resourceVersion"], &version)?;

    let mut events = door.listen(&portal, &at("/events"))?;
    let (kind, first) = events.next()?.ok_or("no event")?;
    same("first event", &(kind.as_str(), first["state"].clone()), &("progress", json!("Asleep")))?;
    door.call(&portal, "POST", &at("/activity"))?.is(204)?;
    let mut steps = Vec::new();
    let mut last = Value::Null;
    while let Some((kind, told)) = events.next()? {
        if let Some(step) = told["step"].as_str().filter(|step| steps.last().is_none_or(|last| last != step)) {
            steps.push(step.to_owned());
        }
        last = json!({"kind": kind, "state": told["state"], "ready": told["dashboardReady"]});
    }
    same("last event", &last, &json!({"kind": "awake", "state": "Awake", "ready": true}))?;
    let order = ["postgres", "redis", "monitoring", "dashboard", "bots"];
    let places: Vec<usize> = steps.iter().filter_map(|step| order.iter().position(|part| part == step)).collect();
    let rising = places.windows(2).all(|pair| pair[0] < pair[1]);
    ensure(rising && places.contains(&0) && places.contains(&3), || format!("steps {steps:?}"))?;

    let woken = door.call(&portal, "POST", &at("/wake"))?.is(200)?.json()?;
    same("state", &woken["progress"]["state"], &json!("Awake"))?;
    // Somebody has woken here, so there is a history to tell from.
    door.call(&portal, "POST", &at("/sleep"))?.is(202)?;
    await_state(&door, &portal, name, "Asleep")?;
    eventually(SOON, || {
        let asleep = door.call(&portal, "GET", &at(""))?.json()?;
        ensure(asleep["estimatedSeconds"].as_i64().is_some_and(|left| left > 0), || asleep.to_string())
    })?;
    let waking = door.call(&portal, "POST", &at("/wake"))?.is(202)?;
    same("Location", &waking.header("location").to_owned(), &at(""))?;
    ensure(waking.header("retry-after").parse::<u32>().is_ok_and(|wait| wait > 0), || format!("{waking:?}"))?;
    same("state", &waking.json()?["progress"]["state"], &json!("Waking"))?;
    await_state(&door, &portal, name, "Awake")?;
    door.call(&portal, "POST", &at("/hibernation/approve"))?.is(204)?;
    let status = ctx.get(&["tenant", name])?["status"].clone();
    ensure(status["requests"]["hibernationApprovedAt"].is_string(), || status.to_string())?;

    ctx.kubectl(&["patch", "tenant", name, "--type=merge", "-p", r#"{"spec":{"suspended":true}}"#])?;
    await_state(&door, &portal, name, "Suspended")?;
    let refused = door.call(&portal, "POST", &at("/wake"))?.is(409)?;
    ensure(refused.body.contains("suspended"), || refused.body.clone())?;
    door.call(&portal, "POST", &at("/activity"))?.is(204)?;
    ctx.kubectl(&["delete", "tenant", name, "--wait=false"])?;
    eventually(SOON, || door.call(&portal, "GET", &at(""))?.is(404).map(drop))
}

/// Sleep is asked for through one replica and a login comes through another at the same moment; a tenant that was made
/// a moment ago is known; nothing that was answered is lost.
pub fn replicas_agree_on_who_is_awake(ctx: &Ctx) -> Result<(), String> {
    let (one, other) = (Door::open(&ctx.cluster, &[])?, Door::open(&ctx.cluster, &[])?);
    let portal = token(&ctx.cluster, "portal", "backend")?;
    let name = "gateway-replicas";
    let at = |rest: &str| format!("/v1/tenants/{name}{rest}");
    // The account's rights are known from here on.
    eventually(SOON, || one.call(&portal, "POST", &at("/wake"))?.is(404))?;
    eventually(SOON, || other.call(&portal, "POST", &at("/wake"))?.is(404))?;
    ctx.apply(&tenant(name, json!({"tier": "basic", "fleets": [fleet("makers", 1)]})).to_string())?;
    one.call(&portal, "POST", &at("/wake"))?.is(202)?;
    other.call(&portal, "POST", &at("/activity"))?.is(204)?;
    await_state(&one, &portal, name, "Awake")?;
    for _ in 0..5 {
        one.call(&portal, "POST", &at("/sleep"))?.is(202)?;
        other.call(&portal, "POST", &at("/activity"))?.is(204)?;
        eventually(SOON, || {
            let status = ctx.get(&["tenant", name])?["status"].clone();
            let (seen, asked) = (time(&status["lastActivityTime"]), time(&status["requests"]["sleepRequestedAt"]));
            ensure(seen > asked, || format!("the login was lost: {status}"))
        })?;
    }
    await_state(&other, &portal, name, "Awake").map(drop)
}

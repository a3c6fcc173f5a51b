//! Warnings by webhook: signed, once, and nobody sleeps unwarned, whatever the receiver does.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Objects, catalog, stage_of};
use crate::harness::{condition, eventually};
use crate::many::create_tenants;
use crate::receiver::{Behaviour, Receiver, Request};
use crate::tenants::{ensure, same, tenant};

const KEY: &[u8] = b"a key of more than sixteen bytes";
const SOON: Duration = Duration::from_secs(60);
/// How long a bad receiver is watched; its tenants would be asleep three times over.
const WINDOW: Duration = Duration::from_secs(12);

/// Identity of an event, by header and by body.
fn id(request: &Request) -> Result<String, String> {
    let body: Value = serde_json::from_str(&request.body).map_err(|error| format!("{error}: {}", request.body))?;
    let id = body["id"].as_str().unwrap_or_default().to_owned();
    same("webhook-id", &request.header("webhook-id"), &id.as_str())?;
    Ok(id)
}

fn body(request: &Request) -> Value {
    serde_json::from_str(&request.body).unwrap_or_default()
}

/// One tenant after another meets a receiver that is slow, refuses, closes, fails or points elsewhere. None of them
/// sleeps; once the receiver takes the warning each sleeps at the moment that was announced. Another tenant, warned
/// before, sleeps and wakes meanwhile.
pub fn nobody_sleeps_unwarned() -> Result<(), String> {
    let objects = Objects::start()?;
    let mut receiver = Receiver::start()?;
    let elsewhere = Receiver::start()?;
    let key = objects.cluster.data_dir().join("webhook.key");
    std::fs::write(&key, [KEY, b"\n"].concat()).map_err(|error| error.to_string())?;
    let times = [("free", "Auto", ["4s", "600s", "1200s"]), ("basic", "Auto", ["16s", "600s", "1200s"])];
    let catalog = catalog(&objects.cluster, "webhooks", &times)?;
    let url = format!("{}/hook", receiver.url());
    let hibernator = objects.hibernator(&[
        "--catalog",
        &catalog,
        "--webhook-url",
        &url,
        "--webhook-key-file",
        &key.display().to_string(),
        "--webhook-timeout-seconds",
        "2",
        "--breaker-least",
        "100",
    ])?;

    let warned = |tenant: &str, requests: &[Request]| requests.iter().any(|request| body(request)["subject"] == tenant);
    create_tenants(&objects.cluster, [tenant("other", json!({"tier": "basic"}))])?;
    eventually(SOON, || ensure(warned("other", &receiver.requests()), || "the other tenant is not warned".to_owned()))?;
    let bad: [(&str, Option<Behaviour>); 5] = [
        ("slow", Some(Behaviour::SlowFor("\"subject\":\"slow\"", Duration::from_secs(30)))),
        ("refuses", None),
        ("closes", Some(Behaviour::Close)),
        ("fails", Some(Behaviour::Status(500))),
        ("redirects", Some(Behaviour::Redirect(format!("{}/hook", elsewhere.url())))),
    ];
    for (name, behaviour) in bad {
        match behaviour {
            Some(behaviour) => receiver.behave(behaviour)?,
            None => receiver.refuse(),
        }
        let began = Timestamp::now();
        create_tenants(&objects.cluster, [tenant(name, json!({"tier": "free"}))])?;
        if name == "slow" {
            create_tenants(&objects.cluster, [tenant("beside", json!({"tier": "free"}))])?;
        }
        std::thread::sleep(WINDOW);
        let seen = objects.get(&["tenant", name])?;
        same(&format!("stage of {name} while its receiver is bad"), &stage_of(&seen), &"Active".to_owned())?;
        let held = condition(&seen, "SleepHeld");
        ensure(held["reason"] == "AwaitingWarning", || format!("{name}: {held}; {}", hibernator.log_text()))?;
        if name == "slow" {
            let beside = stage_of(&objects.get(&["tenant", "beside"])?);
            same("warned beside the slow one", &beside, &"BotsStopped".to_owned())?;
            // Meanwhile the other one falls asleep in its time, and wakes.
            eventually(SOON, || {
                same("other", &stage_of(&objects.get(&["tenant", "other"])?), &"BotsStopped".to_owned())
            })?;
            let now = format!("torpor.dev/last-activity={}", Timestamp::now());
            objects.kubectl(&["annotate", "tenant", "other", &now])?;
            eventually(SOON, || same("other", &stage_of(&objects.get(&["tenant", "other"])?), &"Active".to_owned()))?;
        }
        receiver.behave(Behaviour::Ok200)?;
        let asleep = eventually(SOON, || {
            let seen = objects.get(&["tenant", name])?;
            ensure(stage_of(&seen) == "BotsStopped", || format!("{name}: {}", seen["status"]["hibernation"]))?;
            Ok(seen)
        })?;
        same(&format!("conditions of {name}"), condition(&asleep, "WarningFailed"), &Value::Null)?;
        let of_tenant: Vec<Request> =
            receiver.requests().into_iter().filter(|request| body(request)["subject"] == name).collect();
        let ids: Result<BTreeSet<String>, String> = of_tenant.iter().map(id).collect();
        same(&format!("ids of {name} in {} deliveries", of_tenant.len()), &ids?.len(), &1)?;
        for request in &of_tenant {
            request.verify(KEY)?;
        }
        println!(
            "webhooks: {name}: {} tries in {} s",
            of_tenant.len(),
            Timestamp::now().duration_since(began).as_secs()
        );
    }
    same("requests at the place that was pointed to", &elsewhere.requests().len(), &0)?;
    let event = receiver.requests().into_iter().find(|r| body(r)["subject"] == "fails").map(|r| body(&r));
    let event = event.unwrap_or_default();
    for (field, value) in [
        ("specversion", json!("1.0")),
        ("type", json!("dev.torpor.tenant.sleep.warning")),
        ("datacontenttype", json!("application/json")),
    ] {
        same(field, &event[field], &value)?;
    }
    same("stage of the event", &event["data"]["stage"], &json!("BotsStopped"))?;
    same("Events of one deadline", &objects.events_about("fails", "SleepWarning")?, &1)?;
    let log = hibernator.log_text();
    ensure(!log.contains("sixteen bytes"), || "the key is in the log".to_owned())
}

/// A receiver that never takes a warning is given up after the documented time; the condition says so, and the Event
/// stands for the warning.
pub fn a_dead_receiver_is_given_up() -> Result<(), String> {
    let objects = Objects::start()?;
    let mut receiver = Receiver::start()?;
    receiver.behave(Behaviour::Status(500))?;
    let key = objects.cluster.data_dir().join("webhook.key");
    std::fs::write(&key, KEY).map_err(|error| error.to_string())?;
    let catalog = catalog(&objects.cluster, "give-up", &[("free", "Auto", ["4s", "600s", "1200s"])])?;
    let key = key.display().to_string();
    let url = receiver.url();
    let arguments =
        ["--catalog", &catalog, "--webhook-url", &url, "--webhook-key-file", &key, "--webhook-give-up", "6s"];
    let _hibernator = objects.hibernator(&arguments)?;
    create_tenants(&objects.cluster, [tenant("a", json!({"tier": "free"}))])?;
    let asleep = eventually(SOON, || {
        let seen = objects.get(&["tenant", "a"])?;
        ensure(stage_of(&seen) == "BotsStopped", || seen["status"].to_string())?;
        Ok(seen)
    })?;
    let failed = condition(&asleep, "WarningFailed");
    let message = failed["message"].as_str().unwrap_or_default();
    ensure(failed["status"] == "True" && message.contains("not tried any more"), || failed.to_string())?;
    ensure(receiver.requests().len() > 1, || "it was tried once only".to_owned())?;
    same("Events", &objects.events_about("a", "SleepWarning")?, &1)
}

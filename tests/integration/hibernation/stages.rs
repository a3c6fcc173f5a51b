//! Operator and hibernator together: tenants fall asleep in stages, wake, and end alike whatever was killed meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};
use torpor_cluster::Options;

use super::catalog;
use crate::alone::{Rig, is_write, items};
use crate::harness::{condition, events, eventually};
use crate::process::Process;
use crate::receiver::Receiver;
use crate::rights::HOME;
use crate::tenants::{ensure, fleet, same, tenant};

const START: Duration = Duration::from_secs(60);
const LIMIT: Duration = Duration::from_secs(120);
const DOWN: [&str; 4] = ["Active", "BotsStopped", "ServicesStopped", "DatabaseOnly"];

/// Free and basic sleep by themselves, pro asks, premium never sleeps.
const TIERS: [(&str, &str, [&str; 3]); 4] = [
    ("free", "Auto", ["20s", "30s", "40s"]),
    ("basic", "Auto", ["20s", "30s", "40s"]),
    ("pro", "Prompt", ["20s", "30s", "40s"]),
    ("premium", "Never", ["20s", "30s", "40s"]),
];

/// A rig whose operator and hibernator use one catalogue; bots take a second to stop.
fn start(tiers: &[(&str, &str, [&str; 3])]) -> Result<(Rig, Vec<String>), String> {
    let options = Options { graceful_stop: Some(Duration::from_secs(1)), ..Options::default() };
    let mut rig = Rig::start(options)?;
    let catalog = catalog(&rig.cluster, "short", tiers)?;
    let arguments = vec!["--catalog".to_owned(), catalog];
    rig.replace(crate::process::TORPOR.as_ref(), &refs(&arguments))?;
    rig.operator.await_ready(START)?;
    Ok((rig, arguments))
}

fn refs(texts: &[String]) -> Vec<&str> {
    texts.iter().map(String::as_str).collect()
}

fn hibernator(rig: &Rig, arguments: &[String]) -> Result<Process, String> {
    rig.kubectl(&["delete", "lease", "torpor-hibernator", "-n", HOME, "--ignore-not-found"])?;
    let process = rig.program("hibernator").arguments(&refs(arguments)).start()?;
    process.await_ready(START)?;
    Ok(process)
}

fn apply(rig: &Rig, name: &str, tier: &str) -> Result<(), String> {
    rig.apply(&tenant(name, json!({"tier": tier, "fleets": [fleet("makers", 1)]})).to_string()).map(drop)
}

fn log_in(rig: &Rig, name: &str) -> Result<(), String> {
    let now = format!("torpor.dev/last-activity={}", Timestamp::now());
    rig.kubectl(&["annotate", "--overwrite", "tenant", name, &now]).map(drop)
}

/// The stage that the stack is at.
fn reached(tenant: &Value) -> String {
    tenant["status"]["hibernation"]["stage"].as_str().unwrap_or("none").to_owned()
}

fn await_stage(rig: &Rig, name: &str, stage: &str) -> Result<Value, String> {
    eventually(LIMIT, || {
        let found = rig.get(&["tenant", name])?;
        let ready = condition(&found, "Ready");
        let there = reached(&found) == stage && ready["status"] == "True";
        ensure(there, || format!("{name} is not at {stage}: {} {ready}", found["status"]["hibernation"]))?;
        Ok(found)
    })
}

/// Ready replicas of a tenant's workloads.
fn ready(rig: &Rig, name: &str) -> Result<BTreeMap<String, i64>, String> {
    let found = rig.get(&["statefulsets,deployments", "-n", &format!("tenant-{name}")])?;
    let one = |object: &Value| {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        (name, object["status"]["readyReplicas"].as_i64().unwrap_or_default())
    };
    Ok(items(&found).map(one).collect())
}

fn volumes(rig: &Rig, name: &str) -> Result<BTreeMap<String, String>, String> {
    let found = rig.get(&["persistentvolumeclaims", "-n", &format!("tenant-{name}")])?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(items(&found).map(|claim| (text(&claim["metadata"]["name"]), text(&claim["metadata"]["uid"]))).collect())
}

/// What a tenant's user was told in the present idle period.
fn notices(rig: &Rig, name: &str, reason: &str) -> Result<Vec<String>, String> {
    let tenant = rig.get(&["tenant", name])?;
    let since = tenant["status"]["hibernation"]["decision"]["basedOn"].as_str().unwrap_or_default();
    // Notices tell whole seconds.
    let since = since.get(..19).ok_or_else(|| format!("{name} has no decision"))?.to_owned();
    let told = events(&rig.cluster, &tenant, reason)?;
    let mut notes: Vec<String> = told.iter().filter_map(|event| event["message"].as_str()).map(str::to_owned).collect();
    notes.retain(|note| note.contains(&since));
    Ok(notes)
}

/// Four tenants live through a whole idle period under the rights of the example; one is woken, one agrees, one is woken
/// while no hibernator runs. Nobody ever writes a spec, and no volume changes.
pub fn four_tiers_sleep_and_wake() -> Result<(), String> {
    let (rig, arguments) = start(&TIERS)?;
    let mut hibernator = hibernator(&rig, &arguments)?;
    let names = ["free", "basic", "pro", "premium"];
    for name in names {
        apply(&rig, name, name)?;
    }
    rig.await_tenants(4, LIMIT)?;
    let before: Vec<_> = names.into_iter().map(|name| volumes(&rig, name)).collect::<Result<_, _>>()?;
    let start = rig.mark()?;
    for name in names {
        log_in(&rig, name)?;
    }
    for name in names {
        await_stage(&rig, name, "Active")?;
    }

    let began = Instant::now();
    let mut seen: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    eventually(LIMIT, || {
        let found = rig.get(&["tenants"])?;
        for name in names {
            let tenant = items(&found).find(|tenant| tenant["metadata"]["name"] == name).ok_or("it is gone")?;
            let (stage, stages) = (reached(tenant), seen.entry(name).or_default());
            if stages.last() != Some(&stage) {
                println!("stages: {:5.1} s {name} {stage}", began.elapsed().as_secs_f64());
                stages.push(stage);
            }
        }
        let last = |name| seen.get(name).and_then(|stages| stages.last()).map(String::as_str);
        ensure(last("free") == Some(DOWN[3]) && last("basic") == Some(DOWN[3]), || format!("{seen:?}"))
    })?;
    for (name, stages) in [("free", &DOWN[..]), ("basic", &DOWN[..]), ("pro", &DOWN[..1]), ("premium", &DOWN[..1])] {
        same(&format!("stages of {name}"), &seen[name], &stages.iter().map(|stage| (*stage).to_owned()).collect())?;
    }
    let pro = rig.get(&["tenant", "pro"])?;
    same("pro is asked", &condition(&pro, "SleepHeld")["reason"], &json!("AwaitingApproval"))?;
    same("premium is not", condition(&rig.get(&["tenant", "premium"])?, "SleepHeld"), &Value::Null)?;
    for (name, reason, count) in
        [("free", "SleepWarning", 3), ("basic", "SleepWarning", 3), ("pro", "SleepQuestion", 1)]
    {
        same(&format!("{reason} of {name}"), &notices(&rig, name, reason)?.len(), &count)?;
    }

    what_cannot_be_read_is_told(&rig, "premium")?;
    rig.kubectl(&["annotate", "tenant", "pro", "torpor.dev/hibernate=approved"])?;
    await_stage(&rig, "pro", "DatabaseOnly")?;
    log_in(&rig, "free")?;
    await_stage(&rig, "free", "Active")?;
    hibernator.kill();
    log_in(&rig, "basic")?;
    let awake = await_stage(&rig, "basic", "Active")?;
    ensure(awake["status"]["wake"]["seconds"].is_i64(), || awake["status"].to_string())?;
    for (name, claims) in names.into_iter().zip(&before) {
        same(&format!("volumes of {name}"), &volumes(&rig, name)?, claims)?;
        same(&format!("generation of {name}"), &rig.get(&["tenant", name])?["metadata"]["generation"], &json!(1))?;
    }
    let put_back = rig.operator.counter("torpor_objects_put_back_total")?;
    ensure(put_back == 0.0, || format!("{put_back} objects were put back, and nobody had changed any"))?;
    let asked = rig.requests_of("torpor-hibernator", start)?;
    for event in asked.iter().filter(|event| is_write(event)) {
        let own = match event.resource.as_str() {
            "tenants" => event.subresource == "status",
            "events" => true,
            "leases" => event.name == "torpor-hibernator" || event.verb == "create",
            "configmaps" => event.name == "torpor-breaker",
            _ => false,
        };
        // A decision is about the version that it was made of, and another writer may have been faster.
        let was_late = event.resource == "tenants" && event.code == 409;
        ensure(own && (event.code < 400 || was_late), || format!("the hibernator wrote {event:?}"))?;
    }
    Ok(())
}

/// An annotation that holds no time is told by a condition and an Event for as long as it is there.
fn what_cannot_be_read_is_told(rig: &Rig, name: &str) -> Result<(), String> {
    let told = |reason: Value| {
        eventually(LIMIT, || {
            let condition = condition(&rig.get(&["tenant", name])?, "ActivityInvalid").clone();
            same(&format!("ActivityInvalid of {name}"), &condition["reason"], &reason)
        })
    };
    rig.kubectl(&["annotate", "--overwrite", "tenant", name, "torpor.dev/last-activity=yesterday"])?;
    told(json!("Malformed"))?;
    eventually(LIMIT, || {
        let events = events(&rig.cluster, &rig.get(&["tenant", name])?, "ActivityInvalid")?;
        same(&format!("Events about {name}"), &events.len(), &1)
    })?;
    log_in(rig, name)?;
    told(Value::Null)
}

/// The operator is away while tenants become due, log in and are suspended. When it is back, one look puts everything right.
pub fn an_operator_that_was_away_catches_up() -> Result<(), String> {
    let tiers = [("free", "Auto", ["12s", "14s", "16s"]), ("basic", "Auto", ["12s", "14s", "16s"])];
    let (mut rig, arguments) = start(&tiers)?;
    for name in ["sleeps", "wakes"] {
        apply(&rig, name, "free")?;
    }
    apply(&rig, "stays", "premium")?;
    rig.await_tenants(3, LIMIT)?;
    let running = hibernator(&rig, &arguments)?;
    await_stage(&rig, "wakes", "DatabaseOnly")?;
    await_stage(&rig, "sleeps", "DatabaseOnly")?;
    log_in(&rig, "sleeps")?;
    await_stage(&rig, "sleeps", "Active")?;
    rig.operator.kill();
    // How its Lease is waited for is shown elsewhere.
    rig.kubectl(&["delete", "lease", "torpor-operator", "-n", HOME])?;
    rig.kubectl(&["patch", "tenant", "stays", "--type=merge", "-p", r#"{"spec":{"suspended":true}}"#])?;
    eventually(LIMIT, || {
        let decided = super::stage_of(&rig.get(&["tenant", "sleeps"])?);
        same("decided while the operator is away", &decided, &"DatabaseOnly".to_owned())
    })?;
    drop(running);
    log_in(&rig, "wakes")?;
    rig.replace(crate::process::TORPOR.as_ref(), &refs(&arguments))?;
    rig.operator.await_ready(START)?;
    await_stage(&rig, "sleeps", "DatabaseOnly")?;
    await_stage(&rig, "stays", "DatabaseOnly")?;
    await_stage(&rig, "wakes", "Active")?;
    let all = |name: &str, count: i64| {
        let found = ready(&rig, name)?;
        same(&format!("ready pods of {name}: {found:?}"), &found.values().sum::<i64>(), &count)
    };
    all("sleeps", 1)?;
    all("stays", 1)?;
    all("wakes", 5)
}

/// Ids of what a receiver was sent about a tenant's last idle period.
fn delivered(receiver: &Receiver, name: &str) -> BTreeSet<String> {
    let bodies =
        receiver.requests().into_iter().filter_map(|request| serde_json::from_str::<Value>(&request.body).ok());
    let about = bodies.filter(|body| body["subject"] == name);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let sent: Vec<_> = about.map(|body| (text(&body["data"]["idleSince"]), text(&body["id"]))).collect();
    let last = sent.iter().map(|(since, _)| since.clone()).max();
    sent.into_iter().filter(|(since, _)| Some(since) == last.as_ref()).map(|(_, id)| id).collect()
}

/// Operator and hibernator are killed again and again on the way down and up. The end is the same, and each deadline had
/// one warning: one Event, and one id at the receiver, however often it was sent.
pub fn kills_end_alike() -> Result<(), String> {
    let (mut rig, arguments) = start(&TIERS)?;
    let receiver = Receiver::start()?;
    let key = rig.cluster.data_dir().join("webhook.key");
    std::fs::write(&key, "a key of more than sixteen bytes").map_err(|error| error.to_string())?;
    let hook = ["--webhook-url".to_owned(), receiver.url(), "--webhook-key-file".to_owned(), key.display().to_string()];
    let telling = [&arguments[..], &hook].concat();
    let mut running = hibernator(&rig, &telling)?;
    apply(&rig, "free", "free")?;
    apply(&rig, "basic", "basic")?;
    rig.await_tenants(2, LIMIT)?;
    let claims = [volumes(&rig, "free")?, volumes(&rig, "basic")?];
    for name in ["free", "basic"] {
        log_in(&rig, name)?;
        await_stage(&rig, name, "Active")?;
    }
    // Each kill finds the two at another step; 1.7 s is no divisor of any deadline.
    let mut kills = 0;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(55) {
        std::thread::sleep(Duration::from_millis(1_700));
        if kills % 2 == 0 {
            rig.replace(crate::process::TORPOR.as_ref(), &refs(&arguments))?;
        } else {
            running.kill();
            running = hibernator(&rig, &telling)?;
        }
        kills += 1;
    }
    for name in ["free", "basic"] {
        await_stage(&rig, name, "DatabaseOnly")?;
        same(&format!("pods of {name}"), &ready(&rig, name)?.values().sum::<i64>(), &1)?;
    }
    for (name, claims) in ["free", "basic"].into_iter().zip(&claims) {
        same(&format!("volumes of {name}"), &volumes(&rig, name)?, claims)?;
        let notes = notices(&rig, name, "SleepWarning")?;
        same(&format!("warnings of {name}: {notes:?}"), &notes.len(), &3)?;
        let ids = delivered(&receiver, name);
        same(&format!("ids at the receiver: {ids:?}"), &ids.len(), &3)?;
    }
    println!("kills: {kills} of operator and hibernator in turn");
    log_in(&rig, "free")?;
    await_stage(&rig, "free", "Active").map(drop)
}

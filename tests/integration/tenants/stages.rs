//! Sleep and wake: suspension, sleep requests, decisions, activity.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::timeline::Timeline;
use super::{
    Watch, apply, await_reason, await_reason_within, ensure, equal_rendered, fleet, is_bot, list, mark, objects, patch,
    render, same, tenant, text, uids, writes,
};
use crate::Ctx;
use crate::harness::{condition, eventually};

const LIMIT: Duration = Duration::from_secs(120);

/// Asleep at a stage: exactly what is rendered for it, and what the status says.
fn asleep_at(ctx: &Ctx, tenant: &Value, stage: &str) -> Result<(), String> {
    let name = text(&tenant["metadata"]["name"]);
    let live = eventually(LIMIT, || {
        let live = ctx.get(&["tenant", &name])?;
        let there = live["status"]["hibernation"]["stage"] == stage && condition(&live, "Ready")["reason"] == "Asleep";
        ensure(there, || format!("{name} should sleep at {stage}: {}", live["status"])).map(|()| live)
    })?;
    same("Ready", &condition(&live, "Ready")["status"], &json!("True"))?;
    same("Hibernated", &condition(&live, "Hibernated")["status"], &json!("True"))?;
    same("bots", &live["status"]["bots"], &json!({"desired": 0, "ready": 0}))?;
    same("observedGeneration", &live["status"]["observedGeneration"], &live["metadata"]["generation"])?;
    let rendered = render(tenant, &["--stage", stage])?;
    equal_rendered(&rendered, &objects(ctx, &format!("tenant-{name}"))?).map_err(|error| format!("{stage}: {error}"))
}

/// Asleep at DatabaseOnly: one small pod is left.
pub fn asleep(ctx: &Ctx, tenant: &Value) -> Result<(), String> {
    asleep_at(ctx, tenant, "DatabaseOnly")?;
    let pods = list(ctx, "pods", &format!("tenant-{}", text(&tenant["metadata"]["name"])))?;
    let names: Vec<String> = pods.iter().map(|pod| text(&pod["metadata"]["name"])).collect();
    same("pods", &names, &vec!["postgres-0".to_owned()])?;
    let limits = &pods[0]["spec"]["containers"][0]["resources"]["limits"];
    same("database", limits, &json!({"cpu": "50m", "memory": "128Mi"}))
}

/// Awake again in full; the wake is told with its time.
fn awake(ctx: &Ctx, tenant: &Value) -> Result<(), String> {
    let name = text(&tenant["metadata"]["name"]);
    let live = eventually(LIMIT, || {
        let live = ctx.get(&["tenant", &name])?;
        let told = ["Ready", "Hibernated"].map(|type_| text(&condition(&live, type_)["reason"]));
        ensure(told == ["Ready", "Awake"], || format!("{name} should be awake: {}", live["status"])).map(|()| live)
    })?;
    same("stage", &live["status"]["hibernation"]["stage"], &json!("Active"))?;
    let wake = &live["status"]["wake"];
    ensure(wake["requestedAt"].is_string() && wake["readyAt"].is_string() && wake["seconds"].is_i64(), || {
        format!("wake: {wake}")
    })?;
    let namespace = format!("tenant-{name}");
    equal_rendered(&render(tenant, &[])?, &objects(ctx, &namespace)?)?;
    eventually(LIMIT, || limits_are_their_own(ctx, &namespace))
}

/// Every pod may use what its workload says and no more, whatever it was given to start with.
fn limits_are_their_own(ctx: &Ctx, namespace: &str) -> Result<(), String> {
    let part = |object: &Value| {
        let labels = &object["metadata"]["labels"];
        (text(&labels["app.kubernetes.io/component"]), text(&labels["torpor.dev/fleet"]))
    };
    let limit = |pod: &Value| text(&pod["spec"]["containers"][0]["resources"]["limits"]["cpu"]);
    let workloads = [list(ctx, "statefulsets", namespace)?, list(ctx, "deployments", namespace)?].concat();
    let own: BTreeMap<_, _> = workloads.iter().map(|set| (part(set), limit(&set["spec"]["template"]))).collect();
    for pod in list(ctx, "pods", namespace)? {
        same(&text(&pod["metadata"]["name"]), &Some(&limit(&pod)), &own.get(&part(&pod)))?;
    }
    Ok(())
}

/// A quota of somebody else's leaves no room for starting pods: they start with their own limits, and the tenant is awake as
/// if nothing had been refused.
pub fn a_refused_resize_stops_nobody(ctx: &Ctx) -> Result<(), String> {
    let (name, namespace) = ("no-room", "tenant-no-room");
    apply(ctx, &tenant(name, json!({"tier": "free", "fleets": [fleet("a", 1)]})))?;
    ctx.await_ready(name)?;
    patch(ctx, &["tenant", name], &json!({"spec": {"suspended": true}}))?;
    await_reason_within(ctx, LIMIT, &["tenant", name], "Ready", "True", "Asleep")?;
    // What its services and its bot may use, and nothing for a pod that starts.
    let spec = json!({"hard": {"limits.cpu": "700m"}});
    let metadata = json!({"name": "of-somebody-else", "namespace": namespace});
    apply(ctx, &json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": metadata, "spec": spec}))?;
    eventually(LIMIT, || {
        let quota = ctx.get(&["resourcequota", "of-somebody-else", "-n", namespace])?;
        ensure(quota["status"]["used"]["limits.cpu"].is_string(), || format!("it does not count: {quota}"))
    })?;
    let start = mark(ctx)?;
    patch(ctx, &["tenant", name], &json!({"spec": {"suspended": false}}))?;
    await_reason_within(ctx, LIMIT, &["tenant", name], "Ready", "True", "Ready")?;
    let mut asked = writes(ctx, start)?;
    asked.retain(|event| event.subresource == "resize" && event.namespace == namespace);
    ensure(!asked.is_empty() && asked.iter().all(|event| event.code == 403), || format!("resizes: {asked:?}"))?;
    same("pods with more CPU", &helped(ctx, namespace)?, &0)
}

/// The tenant's own quota refuses nothing that a wake lends, and keeps no bot waiting until it is counted anew.
pub fn the_quota_lends_to_every_bot(ctx: &Ctx) -> Result<(), String> {
    let (name, namespace) = ("lenders", "tenant-lenders");
    apply(ctx, &tenant(name, json!({"tier": "pro", "suspended": true, "fleets": [fleet("a", 8)]})))?;
    await_reason_within(ctx, LIMIT, &["tenant", name], "Ready", "True", "Asleep")?;
    let start = mark(ctx)?;
    patch(ctx, &["tenant", name], &json!({"spec": {"suspended": false}}))?;
    await_reason_within(ctx, LIMIT, &["tenant", name], "Ready", "True", "Ready")?;
    ensure(helped(ctx, namespace)? > 0, || "no pod had more CPU to start with".to_owned())?;
    let mut asked = writes(ctx, start)?;
    asked.retain(|event| event.subresource == "resize" && event.namespace == namespace);
    ensure(asked.iter().all(|event| event.code < 300), || format!("resizes: {asked:?}"))
}

/// How many pods of a tenant the operator has given more CPU to start with.
fn helped(ctx: &Ctx, namespace: &str) -> Result<usize, String> {
    let pods = ctx.kubectl(&["get", "pods", "-n", namespace, "-o", "json", "--show-managed-fields"])?;
    let pods: Value = serde_json::from_str(&pods).map_err(|error| error.to_string())?;
    let resized = |pod: &&Value| {
        let fields = pod["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
        fields.iter().any(|by| by["manager"] == "torpor-operator" && by["subresource"] == "resize")
    };
    Ok(pods["items"].as_array().into_iter().flatten().filter(resized).count())
}

/// Decides as the hibernator does, on the newest activity.
fn decide(ctx: &Ctx, name: &str, stage: &str) -> Result<(), String> {
    let live = ctx.get(&["tenant", name])?;
    let activity = &live["metadata"]["annotations"]["torpor.dev/last-activity"];
    let resumed = &live["status"]["hibernation"]["resumedAt"];
    let newest = [activity, resumed, &live["metadata"]["creationTimestamp"]].into_iter().map(text).max();
    let decision = json!({"status": {"hibernation": {"decision": {"stage": stage, "basedOn": newest}}}});
    let decision = decision.to_string();
    ctx.kubectl(&["patch", "tenant", name, "--subresource=status", "--type=merge", "-p", &decision]).map(drop)
}

fn login(ctx: &Ctx, name: &str, time: &str) -> Result<(), String> {
    ctx.kubectl(&["annotate", "--overwrite", "tenant", name, &format!("torpor.dev/last-activity={time}")]).map(drop)
}

/// What a Tenant's events told, each change once.
fn told(watch: &Watch, read: impl Fn(&Value) -> String) -> Vec<String> {
    let mut told: Vec<String> = watch.events().iter().map(|(_, event)| read(&event["object"])).collect();
    told.dedup();
    told
}

/// The operator's readings of a Tenant since a mark.
fn reads(ctx: &Ctx, mark: torpor_cluster::AuditMark, name: &str) -> Result<usize, String> {
    std::thread::sleep(Duration::from_millis(300));
    let events = ctx.cluster.audit().ok_or("no audit log")?.since(mark).map_err(|error| format!("{error:#}"))?;
    let read = events.iter().filter(|event| {
        event.user_agent.starts_with("torpor-operator/")
            && (event.verb.as_str(), event.resource.as_str(), event.name.as_str()) == ("get", "tenants", name)
            && event.stage == "ResponseComplete"
    });
    Ok(read.count())
}

/// Suspension takes parts down one after the other and reads the Tenant before each; lifting it brings them back in the
/// opposite order, whatever was decided meanwhile.
pub fn suspended_tenants_sleep(ctx: &Ctx) -> Result<(), String> {
    let (name, namespace) = ("unpaid-bill", "tenant-unpaid-bill");
    let mut payer = tenant(name, json!({"tier": "pro", "fleets": [fleet("a", 2), fleet("b", 1)]}));
    apply(ctx, &payer)?;
    ctx.await_ready(name)?;
    same("pods of a new tenant with more CPU", &helped(ctx, namespace)?, &0)?;
    let volumes = uids(&list(ctx, "pvc", namespace)?);
    let timeline = Timeline::start(ctx, namespace)?;
    let tenants = Watch::shown(ctx, &["tenants", "--field-selector=metadata.name=unpaid-bill"], 1)?;
    let start = (mark(ctx)?, timeline.events().len());
    patch(ctx, &["tenant", name], &json!({"spec": {"suspended": true}}))?;
    payer["spec"]["suspended"] = json!(true);
    asleep(ctx, &payer)?;
    same("volumes", &uids(&list(ctx, "pvc", namespace)?), &volumes)?;
    for service in ["redis", "dashboard"] {
        let stops = format!("{service}=0");
        let gone = format!("{service} gone");
        timeline.in_order(start.1, &["bot gone", &stops, &gone, "monitoring=0"])?;
    }
    timeline.in_order(start.1, &["monitoring gone", "postgres resized", "database gone", "database ready"])?;
    for fleet in ["bots-a=0", "bots-b=0"] {
        timeline.in_order(start.1, &[fleet, "redis=0"])?;
    }
    // Two fleets, the services, the exporter, the database, and its pod.
    let found = reads(ctx, start.0, name)?;
    ensure(found >= 6, || format!("{found} readings before 6 steps"))?;
    let suspended = ctx.get(&["tenant", name])?["status"]["hibernation"].clone();
    ensure(suspended["suspendedSince"].is_string() && suspended["resumedAt"].is_null(), || suspended.to_string())?;

    decide(ctx, name, "DatabaseOnly")?;
    let start = (mark(ctx)?, timeline.events().len());
    patch(ctx, &["tenant", name], &json!({"spec": {"suspended": false}}))?;
    payer["spec"]["suspended"] = json!(false);
    awake(ctx, &payer)?;
    let resumed = ctx.get(&["tenant", name])?["status"]["hibernation"].clone();
    ensure(resumed["suspendedSince"].is_null() && resumed["resumedAt"].is_string(), || resumed.to_string())?;
    let up = ["postgres resized", "database ready", "redis=1", "redis ready", "dashboard=1"];
    timeline.in_order(start.1, &up)?;
    for fleet in ["bots-a=2", "bots-b=1"] {
        timeline.in_order(start.1, &["dashboard=1", fleet, "bot ready"])?;
    }
    timeline.in_order(start.1, &["database ready", "monitoring=1"])?;
    same("readings on the way up", &reads(ctx, start.0, name)?, &0)?;
    same("pods", &list(ctx, "pods", namespace)?.len(), &7)?;
    ensure(helped(ctx, namespace)? > 0, || "no starting pod of a waking tenant got more CPU".to_owned())?;
    same("volumes", &uids(&list(ctx, "pvc", namespace)?), &volumes)?;

    let stages = told(&tenants, |tenant| text(&tenant["status"]["hibernation"]["stage"]));
    let down = ["Active", "BotsStopped", "ServicesStopped", "DatabaseOnly"].map(str::to_owned);
    ensure(stages.starts_with(&down) && stages.ends_with(&["BotsStopped".to_owned(), "Active".to_owned()]), || {
        format!("{stages:?}")
    })?;
    let sleeping = told(&tenants, |tenant| text(&condition(tenant, "Hibernated")["reason"]));
    same(
        "Hibernated",
        &sleeping,
        &["Awake", "GoingToSleep", "Asleep", "WakingUp", "Awake"].map(str::to_owned).to_vec(),
    )?;
    let ready = told(&tenants, |tenant| text(&condition(tenant, "Ready")["reason"]));
    same("Ready", &ready, &["Ready", "GoingToSleep", "Asleep", "WakingUp", "Ready"].map(str::to_owned).to_vec())?;
    let (_, metrics) = ctx.operator.http("/metrics")?;
    let wakes = metrics.lines().find_map(|line| line.strip_prefix("torpor_wake_seconds_count "));
    ensure(wakes.is_some_and(|count| count != "0"), || "no wake was counted".to_owned())
}

/// Every tier at every stage that is decided, deeper and lighter, is what is rendered for it; volumes stay.
pub fn decisions_are_enacted(ctx: &Ctx) -> Result<(), String> {
    let tiers = ["free", "basic", "pro", "premium"];
    let name = |tier: &str| format!("decided-{tier}");
    let tenants: BTreeMap<&str, Value> = tiers
        .into_iter()
        .map(|tier| (tier, tenant(&name(tier), json!({"tier": tier, "fleets": [fleet("a", 1)]}))))
        .collect();
    for tenant in tenants.values() {
        apply(ctx, tenant)?;
    }
    let mut volumes = BTreeMap::new();
    for tier in tiers {
        ctx.await_ready(&name(tier))?;
        volumes.insert(tier, uids(&list(ctx, "pvc", &format!("tenant-{}", name(tier)))?));
    }
    for stage in ["BotsStopped", "ServicesStopped", "DatabaseOnly", "ServicesStopped", "DatabaseOnly", "BotsStopped"] {
        for tier in tiers {
            decide(ctx, &name(tier), stage)?;
        }
        for (tier, tenant) in &tenants {
            asleep_at(ctx, tenant, stage).map_err(|error| format!("{tier}: {error}"))?;
        }
    }
    for tier in tiers {
        login(ctx, &name(tier), "2101-01-01T00:00:00Z")?;
    }
    for (tier, tenant) in &tenants {
        awake(ctx, tenant).map_err(|error| format!("{tier}: {error}"))?;
        same(tier, &uids(&list(ctx, "pvc", &format!("tenant-{}", name(tier)))?), &volumes[tier])?;
    }
    Ok(())
}

/// A login at any moment of the descent turns it round: everything runs again, with the volumes it had.
pub fn activity_wins_at_every_step(ctx: &Ctx) -> Result<(), String> {
    let delays = [0, 500, 1_000, 1_500, 2_000, 2_600, 3_300];
    let name = |delay: u64| format!("turned-{delay}");
    let tenant = |delay| tenant(&name(delay), json!({"tier": "basic", "fleets": [fleet("a", 2)]}));
    for delay in delays {
        apply(ctx, &tenant(delay))?;
    }
    for delay in delays {
        ctx.await_ready(&name(delay))?;
    }
    let turn = &|delay: u64| -> Result<String, String> {
        let namespace = format!("tenant-{}", name(delay));
        let volumes = uids(&list(ctx, "pvc", &namespace)?);
        decide(ctx, &name(delay), "DatabaseOnly")?;
        std::thread::sleep(Duration::from_millis(delay));
        login(ctx, &name(delay), "2101-01-01T00:00:00Z")?;
        let met = ctx.get(&["tenant", &name(delay)])?;
        // One that was met before its first pass never left.
        let left = eventually(LIMIT, || {
            let live = ctx.get(&["tenant", &name(delay)])?;
            let settled = ["Ready", "Hibernated"].map(|type_| text(&condition(&live, type_)["reason"]));
            ensure(settled == ["Ready", "Awake"], || live["status"].to_string())?;
            Ok(live["status"]["wake"].is_object())
        })?;
        if left {
            awake(ctx, &tenant(delay))?;
        }
        same("pods", &list(ctx, "pods", &namespace)?.len(), &6)?;
        same("volumes", &uids(&list(ctx, "pvc", &namespace)?), &volumes)?;
        Ok(format!("{delay} ms: {} at {}", left, met["status"]["hibernation"]["stage"]))
    };
    let mut failures = Vec::new();
    std::thread::scope(|scope| {
        let turns: Vec<_> = delays.iter().map(|delay| scope.spawn(move || turn(*delay))).collect();
        for turn in turns {
            match turn.join() {
                Ok(Ok(met)) => println!("turned round after {met}"),
                Ok(Err(failure)) => failures.push(failure),
                Err(_) => failures.push("panicked".to_owned()),
            }
        }
    });
    ensure(failures.is_empty(), || failures.join("\n"))
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
    for wake in ["last-activity", "wake-requested-at"] {
        annotate("sleep-requested-at", &jiff::Timestamp::now().to_string())?;
        asleep(ctx, &sleeper)?;
        // Activity as old as the request, or unreadable, changes nothing a user would notice for good.
        annotate(wake, &jiff::Timestamp::now().to_string())?;
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
    annotate("sleep-requested-at", &jiff::Timestamp::now().to_string())?;
    // Bots take a second to stop; the first sign of it is early enough.
    eventually(Duration::from_secs(25), || {
        let pods = list(ctx, "pods", "tenant-restless")?;
        let stopping = pods.iter().any(|pod| !pod["metadata"]["deletionTimestamp"].is_null());
        ensure(stopping, || "no bot stops".to_owned())
    })?;
    annotate("wake-requested-at", &jiff::Timestamp::now().to_string())?;
    await_reason(ctx, &["tenant", "restless"], "Hibernated", "False", "WakingUp")?;
    await_reason_within(ctx, LIMIT, &["tenant", "restless"], "Ready", "True", "Ready")?;
    await_reason(ctx, &["tenant", "restless"], "Hibernated", "False", "Awake")?;
    same("services", &services(ctx)?, &before)
}

//! Sleep and wake that do not get on: whoever looks is told what is awaited, and nothing is forced or stopped. And Events that
//! do not get on, for which nobody waits.

use std::net::TcpListener;
use std::time::Duration;

use serde_json::{Value, json};
use torpor_cluster::{AuditMark, Options};

use crate::Ctx;
use crate::harness::{condition, eventually};
use crate::tenants::{
    Watch, apply, await_reason, await_reason_within, ensure, fleet, is_bot, list, mark, same, tenant, text, uids,
    writes,
};

/// Slow enough to be looked at while it lasts.
const BOT_STOPS: Duration = Duration::from_secs(15);
const LIMIT: Duration = Duration::from_secs(90);

fn annotate(ctx: &Ctx, name: &str, key: &str, time: &str) -> Result<(), String> {
    ctx.kubectl(&["annotate", "--overwrite", "tenant", name, &format!("torpor.dev/{key}={time}")]).map(drop)
}

/// A bot that is still there after its grace period is named by Tenant, fleet and Event, in time and although nothing
/// changes; then sleep goes on.
pub fn late_bots_are_named() -> Result<(), String> {
    let ctx = Ctx::with(Options { graceful_stop: Some(BOT_STOPS), ..Options::default() }, &[])?;
    ctx.apply_file("examples/pools.yaml")?;
    let (name, namespace) = ("tardy", "tenant-tardy");
    apply(&ctx, &tenant(name, json!({"tier": "basic", "fleets": [fleet("a", 2)]})))?;
    ctx.await_ready(name)?;
    let tenants = Watch::start(&ctx, &["tenants"])?;
    let start = mark(&ctx)?;
    annotate(&ctx, name, "sleep-requested-at", &jiff::Timestamp::now().to_string())?;
    eventually(LIMIT, || {
        let pods = list(&ctx, "pods", namespace)?;
        let stopping = pods.iter().filter(|pod| !pod["metadata"]["deletionTimestamp"].is_null()).count();
        same("stopping bots", &stopping, &2)
    })?;
    let grace = ["delete", "pod", "bots-a-0", "-n", namespace, "--grace-period=1", "--wait=false"];
    ctx.kubectl(&grace)?;
    let object = ["tenant", name];
    let message = await_reason(&ctx, &object, "Reconciling", "True", "StopOverdue")?;
    ensure(message.starts_with("pod bots-a-0 should have stopped by "), || message)?;
    await_reason(&ctx, &["bf", "a", "-n", namespace], "Ready", "False", "StopOverdue")?;
    let pod = ctx.get(&["pod", "bots-a-0", "-n", namespace])?;
    let due = seconds(&pod["metadata"]["deletionTimestamp"])?;
    let told = tenants.events().into_iter().find_map(|(_, event)| {
        let ready = condition(&event["object"], "Ready").clone();
        (ready["reason"] == "StopOverdue").then_some(event["object"].clone())
    });
    let told = told.ok_or("the watch did not show it")?;
    same("stage", &told["status"]["hibernation"]["stage"], &json!("Active"))?;
    let warned = eventually(LIMIT, || {
        let events = list(&ctx, "events", "default")?;
        let warned = events.iter().find(|event| {
            event["reason"] == "StopOverdue" && event["type"] == "Warning" && event["regarding"]["kind"] != "BotFleet"
        });
        warned.cloned().ok_or_else(|| format!("no Warning: {events:?}"))
    })?;
    let at = [&warned["eventTime"], &warned["firstTimestamp"]].into_iter().find_map(|time| seconds(time).ok());
    let late = at.ok_or("the Event has no time")? - due;
    ensure((2..=7).contains(&late), || format!("told {late} s after the grace period"))?;

    await_reason_within(&ctx, LIMIT, &object, "Ready", "True", "Asleep")?;
    let deleted: Vec<String> = writes(&ctx, start)?
        .iter()
        .filter(|event| event.resource == "pods" && event.name.starts_with("bots-"))
        .map(|event| event.request_uri.clone())
        .collect();
    ensure(deleted.is_empty(), || format!("the operator deleted bots: {deleted:?}"))?;
    services_went_last(&ctx, start, namespace)
}

/// By the audit log, nothing of dashboard and Redis was written before the last bot had gone.
fn services_went_last(ctx: &Ctx, start: AuditMark, namespace: &str) -> Result<(), String> {
    let log = ctx.cluster.audit().ok_or("this test reads the audit log of a cluster of its own")?;
    let events = log.since(start).map_err(|error| format!("{error:#}"))?;
    let here = || events.iter().filter(|event| event.namespace == namespace && event.code < 300);
    let bots = here().filter(|event| event.user == "kwok" && event.verb == "delete" && event.name.starts_with("bots-"));
    let gone: Vec<_> = bots.map(|event| event.stage_timestamp.clone()).collect();
    same("bots that went", &gone.len(), &2)?;
    let touched = writes(ctx, start)?
        .into_iter()
        .filter(|event| event.namespace == namespace && ["dashboard", "redis"].contains(&event.name.as_str()));
    let touched: Vec<_> = touched.map(|event| event.stage_timestamp).collect();
    ensure(touched.len() >= 2 && touched.iter().min() > gone.iter().max(), || {
        format!("dashboard or Redis written at {touched:?}, bots gone at {gone:?}")
    })
}

/// Whole seconds of a time.
fn seconds(time: &Value) -> Result<i64, String> {
    text(time).parse::<jiff::Timestamp>().map(jiff::Timestamp::as_second).map_err(|error| format!("{time}: {error}"))
}

fn replicas(ctx: &Ctx, namespace: &str) -> Result<Vec<(String, i64)>, String> {
    let workloads = list(ctx, "statefulsets,deployments", namespace)?;
    let asks = |object: &Value| (text(&object["metadata"]["name"]), object["spec"]["replicas"].as_i64().unwrap_or(-1));
    let mut all: Vec<_> = workloads.iter().map(asks).collect();
    all.sort();
    Ok(all)
}

/// Without room for its pods a waking tenant says which part waits for which, and why; an awake one loses pods and has
/// nothing scaled down for that.
pub fn full_nodes_stop_nobody() -> Result<(), String> {
    let ctx = Ctx::with(Options::default(), &[])?;
    ctx.apply_file("examples/pools.yaml")?;
    for name in ["stuck", "robbed"] {
        apply(&ctx, &tenant(name, json!({"tier": "basic", "fleets": [fleet("a", 2)]})))?;
    }
    ctx.await_ready("robbed")?;
    ctx.await_ready("stuck")?;
    annotate(&ctx, "stuck", "sleep-requested-at", &jiff::Timestamp::now().to_string())?;
    await_reason_within(&ctx, LIMIT, &["tenant", "stuck"], "Ready", "True", "Asleep")?;
    let bots = |ctx: &Ctx| -> Result<_, String> {
        Ok(uids(&list(ctx, "pods", "tenant-robbed")?.into_iter().filter(is_bot).collect::<Vec<_>>()))
    };
    let (running, kept) = (replicas(&ctx, "tenant-robbed")?, bots(&ctx)?);
    let nodes = ["-l", "kubernetes.io/os=linux"];
    ctx.kubectl(&[&["cordon"][..], &nodes].concat())?;

    let start = mark(&ctx)?;
    for part in ["database", "redis", "dashboard"] {
        let part = format!("app.kubernetes.io/component={part}");
        ctx.kubectl(&["delete", "pods", "-n", "tenant-robbed", "-l", &part, "--force", "--grace-period=0"])?;
    }
    let message = await_reason(&ctx, &["tenant", "robbed"], "Ready", "False", "Progressing")?;
    ensure(message.contains("/1 ready") || message.contains("is being"), || message)?;
    annotate(&ctx, "stuck", "wake-requested-at", "2102-01-01T00:00:00Z")?;
    eventually(LIMIT, || {
        let message = await_reason(&ctx, &["tenant", "stuck"], "Ready", "False", "WakingUp")?;
        let told = message.contains("redis waits for postgres; postgres 0/1 ready (postgres-0: Unschedulable");
        ensure(told, || message)
    })?;
    let message = await_reason(&ctx, &["bf", "a", "-n", "tenant-stuck"], "Ready", "False", "WakingUp")?;
    same("fleet", &message.as_str(), &"bots wait for postgres")?;
    let wake = ctx.get(&["tenant", "stuck"])?["status"]["wake"].clone();
    ensure(wake["requestedAt"].is_string() && wake["readyAt"].is_null(), || wake.to_string())?;
    std::thread::sleep(Duration::from_secs(3));
    same("workloads of the awake tenant", &replicas(&ctx, "tenant-robbed")?, &running)?;
    same("its bots", &bots(&ctx)?, &kept)?;
    let on_robbed: Vec<String> = writes(&ctx, start)?
        .iter()
        .filter(|event| {
            event.namespace == "tenant-robbed" && event.resource != "events" && event.subresource.is_empty()
        })
        .map(crate::tenants::brief)
        .collect();
    ensure(on_robbed.is_empty(), || format!("{on_robbed:?}"))?;

    ctx.kubectl(&[&["uncordon"][..], &nodes].concat())?;
    for name in ["stuck", "robbed"] {
        await_reason_within(&ctx, LIMIT, &["tenant", name], "Ready", "True", "Ready")?;
        await_reason(&ctx, &["tenant", name], "Hibernated", "False", "Awake")?;
    }
    let wake = ctx.get(&["tenant", "robbed"])?["status"]["wake"].clone();
    ensure(wake.is_null(), || format!("a tenant that never slept woke: {wake}"))
}

/// While the API server does not answer any Event, because a webhook is silent, a tenant is made and put to sleep all the same.
/// What was to be told is told later.
pub fn silent_events_hold_up_nobody() -> Result<(), String> {
    let ctx = Ctx::with(Options::default(), &[])?;
    ctx.apply_file("examples/pools.yaml")?;
    // Takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    let address = silent.local_addr().map_err(|error| error.to_string())?;
    let webhook = json!({
        "name": "silent.torpor.test", "clientConfig": {"url": format!("https://{address}/")}, "failurePolicy": "Ignore",
        "timeoutSeconds": 30, "sideEffects": "None", "admissionReviewVersions": ["v1"], "matchPolicy": "Exact",
        "matchConditions": [{"name": "torpor", "expression": "request.userInfo.username.endsWith(':torpor-operator')"}],
        "rules": [{"apiGroups": ["events.k8s.io"], "apiVersions": ["v1"], "resources": ["events"], "operations": ["*"]}],
    });
    let hook = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "silent"}, "webhooks": [webhook],
    });
    apply(&ctx, &hook)?;
    let name = "untold";
    let tell = |suspended: bool| {
        apply(&ctx, &tenant(name, json!({"tier": "basic", "suspended": suspended, "fleets": [fleet("a", 1)]})))
    };
    // The API server takes a moment to ask the webhook; the first tenant is the probe.
    apply(&ctx, &tenant("probe", json!({"tier": "free", "fleets": [fleet("a", 1)]})))?;
    silent.set_nonblocking(true).map_err(|error| error.to_string())?;
    eventually(LIMIT, || silent.accept().map(drop).map_err(|error| format!("the webhook is not asked: {error}")))?;

    let start = mark(&ctx)?;
    tell(false)?;
    ctx.await_ready(name)?;
    tell(true)?;
    await_reason_within(&ctx, LIMIT, &["tenant", name], "Ready", "True", "Asleep")?;
    let events = |ctx: &Ctx| -> Result<usize, String> {
        Ok(writes(ctx, start)?.iter().filter(|event| event.resource == "events").count())
    };
    let (told, all) = (events(&ctx)?, writes(&ctx, start)?.len());
    ensure(told <= 2 && all >= 30, || format!("{told} Events of {all} writes were answered meanwhile"))?;

    ctx.kubectl(&["delete", "validatingwebhookconfiguration", "silent"])?;
    eventually(LIMIT, || {
        let events = list(&ctx, "events", "default")?;
        let of = |event: &Value| event["reason"] == "Asleep" && event.to_string().contains(name);
        ensure(events.iter().any(of), || "not told yet".to_owned())
    })
}

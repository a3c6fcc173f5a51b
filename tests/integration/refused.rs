//! What the API server refuses keeps nobody from stopping, sleeping or waking.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::Ctx;
use crate::harness::{condition, eventually};
use crate::tenants::{apply, await_reason_within, ensure, fleet, list, mark, patch, same, tenant, text, writes};

const LIMIT: Duration = Duration::from_secs(120);
const NAME: &str = "forbidden";
const NAMESPACE: &str = "tenant-forbidden";

/// A policy of somebody else's that refuses these operations in the tenant's namespace. It is in force when this returns:
/// `attempt` is refused by it.
fn refuse(ctx: &Ctx, name: &str, rule: Value, attempt: &[&str]) -> Result<(), String> {
    let constraints = json!({
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}}, "resourceRules": [rule],
    });
    forbid(ctx, name, &constraints, attempt)
}

/// The same of what matches these constraints, anywhere.
pub fn forbid(ctx: &Ctx, name: &str, constraints: &Value, attempt: &[&str]) -> Result<(), String> {
    let rules = json!([{"expression": "false", "message": "frozen by somebody"}]);
    let object = |kind: &str, spec: Value| json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    let policy = json!({"failurePolicy": "Fail", "matchConstraints": constraints, "validations": rules});
    apply(ctx, &object("ValidatingAdmissionPolicy", policy))?;
    apply(
        ctx,
        &object("ValidatingAdmissionPolicyBinding", json!({"policyName": name, "validationActions": ["Deny"]})),
    )?;
    eventually(LIMIT, || match ctx.kubectl(attempt) {
        Err(refusal) if refusal.contains("frozen by somebody") => Ok(()),
        other => Err(format!("{name} is not in force: {other:?}")),
    })
}

/// The policy is gone, and `attempt` goes through: a pass that came before would be refused once more, and wait a minute.
pub fn permit(ctx: &Ctx, name: &str, attempt: &[&str]) -> Result<(), String> {
    ctx.kubectl(&["delete", "validatingadmissionpolicybinding,validatingadmissionpolicy", name])?;
    eventually(LIMIT, || ctx.kubectl(attempt).map(drop))
}

/// Pods that each workload asks for.
fn asked(ctx: &Ctx, namespace: &str) -> Result<BTreeMap<String, Value>, String> {
    let workloads = [list(ctx, "statefulsets", namespace)?, list(ctx, "deployments", namespace)?].concat();
    Ok(workloads.iter().map(|one| (text(&one["metadata"]["name"]), one["spec"]["replicas"].clone())).collect())
}

fn told(ctx: &Ctx, what: &str) -> Result<(), String> {
    eventually(LIMIT, || {
        let tenant = ctx.get(&["tenant", NAME])?;
        let stalled = condition(&tenant, "Stalled");
        let message = text(&stalled["message"]);
        ensure(stalled["reason"] == "Refused" && message.contains(what), || format!("no word of {what}: {stalled}"))
    })
}

/// Every change of a tenant's workloads is refused: suspended, it stops all the same and says what is refused. Then a Service, the
/// dashboard and the end of a fleet are refused: the tenant wakes all the same, its database at full size again. Then a Service cannot end.
pub fn refused_objects_stop_nobody(ctx: &Ctx) -> Result<(), String> {
    let both = [fleet("a", 2), fleet("b", 1)];
    apply(ctx, &tenant(NAME, json!({"tier": "basic", "fleets": both})))?;
    ctx.await_ready(NAME)?;
    let workloads = json!({"apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["statefulsets", "deployments"], "operations": ["UPDATE"]});
    let touch = ["label", "statefulset", "redis", "-n", NAMESPACE, "--dry-run=server", "touched=yes"];
    refuse(ctx, "frozen-workloads", workloads, &touch)?;
    patch(ctx, &["tenant", NAME], &json!({"spec": {"suspended": true}}))?;
    let names = [("bots-a", 0), ("bots-b", 0), ("dashboard", 0), ("monitoring", 0), ("postgres", 1), ("redis", 0)];
    let stopped: BTreeMap<String, Value> = names.map(|(name, count)| (name.to_owned(), json!(count))).into();
    eventually(LIMIT, || same("pods asked for", &asked(ctx, NAMESPACE)?, &stopped))?;
    told(ctx, "StatefulSet tenant-forbidden/")?;
    permit(ctx, "frozen-workloads", &touch)?;
    ctx.kubectl(&["annotate", "tenant", NAME, "look=again"])?;
    await_reason_within(ctx, LIMIT, &["tenant", NAME], "Ready", "True", "Asleep")?;

    let services =
        json!({"apiGroups": [""], "apiVersions": ["v1"], "resources": ["services"], "operations": ["CREATE"]});
    let make = ["create", "service", "clusterip", "mine", "-n", NAMESPACE, "--tcp=80", "--dry-run=server"];
    refuse(ctx, "frozen-services", services, &make)?;
    ctx.kubectl(&["delete", "service", "dashboard", "-n", NAMESPACE])?;
    told(ctx, "Service tenant-forbidden/dashboard")?;
    let deployments =
        json!({"apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"], "operations": ["UPDATE"]});
    let touch = ["label", "deployment", "dashboard", "-n", NAMESPACE, "--dry-run=server", "touched=yes"];
    refuse(ctx, "frozen-dashboard", deployments, &touch)?;
    let (ends, end) = end_of_a_fleet();
    refuse(ctx, "frozen-fleets", ends.clone(), &end)?;
    patch(ctx, &["tenant", NAME], &json!({"spec": {"suspended": false, "fleets": [fleet("a", 2)]}}))?;
    eventually(LIMIT, || {
        let ready = |set: &Value| (text(&set["metadata"]["name"]), set["status"]["readyReplicas"].clone());
        let found: BTreeMap<_, _> = list(ctx, "statefulsets", NAMESPACE)?.iter().map(ready).collect();
        let wanted = [("bots-a", 2), ("bots-b", 1), ("postgres", 1), ("redis", 1)];
        let wanted = wanted.map(|(name, n)| (name.to_owned(), json!(n)));
        same("ready", &found, &wanted.into())
    })?;
    told(ctx, "Service tenant-forbidden/dashboard")?;
    permit(ctx, "frozen-services", &make)?;
    permit(ctx, "frozen-dashboard", &touch)?;
    permit(ctx, "frozen-fleets", &end)?;
    ctx.kubectl(&["annotate", "--overwrite", "tenant", NAME, "look=once-more"])?;
    await_reason_within(ctx, LIMIT, &["tenant", NAME], "Ready", "True", "Ready")?;

    // What cannot end because of somebody's finalizer holds up nothing after it.
    let keep = |finalizers: Value| {
        patch(ctx, &["service", "redis", "-n", NAMESPACE], &json!({"metadata": {"finalizers": finalizers}}))
    };
    keep(json!(["example.com/keep"]))?;
    ctx.kubectl(&["delete", "service", "redis", "-n", NAMESPACE, "--wait=false"])?;
    patch(ctx, &["tenant", NAME], &json!({"spec": {"dashboard": {"image": "hummingbot/dashboard:other"}}}))?;
    eventually(LIMIT, || {
        let dashboard = ctx.get(&["deployment", "dashboard", "-n", NAMESPACE])?;
        let image = &dashboard["spec"]["template"]["spec"]["containers"][0]["image"];
        same("image", &text(image), &"hummingbot/dashboard:other".to_owned())
    })?;
    eventually(LIMIT, || {
        let ready = condition(&ctx.get(&["tenant", NAME])?, "Ready").clone();
        let named = text(&ready["message"]).contains("Service tenant-forbidden/redis");
        ensure(ready["reason"] == "Waiting" && named, || format!("no word of what is awaited: {ready}"))
    })?;
    keep(Value::Null)?;
    await_reason_within(ctx, LIMIT, &["tenant", NAME], "Ready", "True", "Ready")?;

    // Of a Tenant that is deleted all bots stop, whichever fleet cannot be.
    patch(ctx, &["tenant", NAME], &json!({"spec": {"fleets": both}}))?;
    await_reason_within(ctx, LIMIT, &["botfleet", "b", "-n", NAMESPACE], "Ready", "True", "Ready")?;
    refuse(ctx, "frozen-fleets", ends, &end)?;
    ctx.kubectl(&["delete", "tenant", NAME, "--wait=false"])?;
    eventually(LIMIT, || {
        let asked = asked(ctx, NAMESPACE)?;
        let none = json!(0);
        same("bots asked for", &[asked.get("bots-a"), asked.get("bots-b")], &[Some(&none), Some(&none)])
    })?;
    permit(ctx, "frozen-fleets", &end)?;
    // It looks again after a minute, unless it has gone already.
    let _ = ctx.kubectl(&["annotate", "--overwrite", "tenant", NAME, "look=at-the-end"]);

    let secrets = json!({"apiGroups": [""], "apiVersions": ["v1"], "resources": ["secrets"], "operations": ["CREATE"]});
    let make = ["create", "secret", "generic", "mine", "-n", NAMESPACE, "--dry-run=server"];
    nothing_starts_without(ctx, secrets, &make, "Secret tenant-forbidden/torpor-generated")?;
    // An Ingress is what kubectl can make without a file.
    let both = ["networkpolicies", "ingresses"];
    let policies =
        json!({"apiGroups": ["networking.k8s.io"], "apiVersions": ["v1"], "resources": both, "operations": ["CREATE"]});
    let make = ["create", "ingress", "mine", "-n", NAMESPACE, "--rule=a.example.com/*=mine:80", "--dry-run=server"];
    nothing_starts_without(ctx, policies, &make, "NetworkPolicy tenant-forbidden/")
}

/// Nobody may make Secrets any more, which is how it is asked whether there is one: bots that had their keys wake with them. A fleet of
/// which that is not known says so, and its Tenant's wake is not told as one after which everything was ready.
pub fn keys_that_cannot_be_asked_for_keep_no_bot_asleep(ctx: &Ctx) -> Result<(), String> {
    let (name, namespace) = ("keyholder", "tenant-keyholder");
    let with_keys = |name: &str, keys: &str| {
        let mut fleet = fleet(name, 1);
        fleet["credentialsSecret"] = json!(keys);
        fleet
    };
    let make = |keys: &'static str| ["create", "secret", "generic", keys, "-n", namespace, "--from-literal=a=b"];
    let known = with_keys("known", "keys");
    apply(ctx, &tenant(name, json!({"tier": "basic", "fleets": [known]})))?;
    eventually(LIMIT, || ctx.get(&["namespace", namespace]).map(drop))?;
    ctx.kubectl(&make("keys"))?;
    ctx.await_ready(name)?;
    let secrets = json!({"apiGroups": [""], "apiVersions": ["v1"], "resources": ["secrets"], "operations": ["CREATE"]});
    let here = json!({"matchLabels": {"kubernetes.io/metadata.name": namespace}});
    let rules = json!({"namespaceSelector": here, "resourceRules": [secrets]});
    forbid(ctx, "frozen-keys", &rules, &[&make("others")[..], &["--dry-run=server"]].concat())?;
    let asleep = |spec: Value| {
        patch(ctx, &["tenant", name], &json!({"spec": spec}))?;
        await_reason_within(ctx, LIMIT, &["tenant", name], "Ready", "True", "Asleep").map(drop)
    };
    asleep(json!({"suspended": true}))?;
    patch(ctx, &["tenant", name], &json!({"spec": {"suspended": false}}))?;
    await_reason_within(ctx, LIMIT, &["tenant", name], "Ready", "True", "Ready")?;
    ensure(!ctx.get(&["tenant", name])?["status"]["wake"]["readyAt"].is_null(), || "no word of the wake".to_owned())?;

    asleep(json!({"suspended": true, "fleets": [known, with_keys("new", "others")]}))?;
    patch(ctx, &["tenant", name], &json!({"spec": {"suspended": false}}))?;
    await_reason_within(ctx, LIMIT, &["tenant", name], "Hibernated", "False", "Awake")?;
    eventually(LIMIT, || {
        let tenant = ctx.get(&["tenant", name])?;
        let stalled = condition(&tenant, "Stalled");
        let named = text(&stalled["message"]).contains("Secret tenant-keyholder/others");
        ensure(stalled["reason"] == "Refused" && named, || format!("no word of the keys: {stalled}"))?;
        ensure(tenant["status"]["wake"].is_null(), || format!("not everything is ready: {}", tenant["status"]["wake"]))
    })?;
    same("bots asked for", &asked(ctx, namespace)?.get("bots-known").cloned(), &Some(json!(1)))?;
    ctx.kubectl(&["delete", "validatingadmissionpolicybinding,validatingadmissionpolicy", "frozen-keys"]).map(drop)
}

/// While a webhook of somebody else's does not answer, a Service of a tenant cannot be made. The tenant stops and wakes all the
/// same, and says what is tried again.
pub fn a_failing_webhook_holds_up_nobody(ctx: &Ctx) -> Result<(), String> {
    let (name, namespace) = ("unanswered", "tenant-unanswered");
    apply(ctx, &tenant(name, json!({"tier": "basic", "fleets": [fleet("a", 1)]})))?;
    ctx.await_ready(name)?;
    // Nobody listens there.
    ask_for_services(ctx, "away", namespace, ("https://127.0.0.1:1/", 1))?;
    ctx.kubectl(&["delete", "service", "redis", "-n", namespace])?;
    for (suspended, running) in [(true, 0), (false, 1)] {
        patch(ctx, &["tenant", name], &json!({"spec": {"suspended": suspended}}))?;
        eventually(LIMIT, || {
            let names = ["bots-a", "dashboard", "monitoring", "postgres", "redis"];
            let wanted = names.map(|name| (name.to_owned(), json!(if name == "postgres" { 1 } else { running })));
            same("pods asked for", &asked(ctx, namespace)?, &wanted.into())
        })?;
        eventually(LIMIT, || {
            let ready = condition(&ctx.get(&["tenant", name])?, "Ready").clone();
            let named = text(&ready["message"]).contains("Service tenant-unanswered/redis");
            ensure(ready["reason"] == "Retrying" && named, || format!("no word of what is tried again: {ready}"))
        })?;
    }
    ask_no_more(ctx, "away", namespace)?;
    ctx.kubectl(&["annotate", "tenant", name, "look=again"])?;
    await_reason_within(ctx, LIMIT, &["tenant", name], "Ready", "True", "Ready").map(drop)
}

/// A webhook takes every question and answers none, so that each Service that cannot be made costs its time. Once two have, no further
/// one is tried in that pass, and the tenant's bots stop.
pub fn a_silent_webhook_holds_up_no_stop(ctx: &Ctx) -> Result<(), String> {
    let (name, namespace) = ("unheard", "tenant-unheard");
    apply(ctx, &tenant(name, json!({"tier": "basic", "fleets": [fleet("a", 1)]})))?;
    ctx.await_ready(name)?;
    let silent = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    let address = silent.local_addr().map_err(|error| error.to_string())?;
    // Two are more than the twenty seconds after which a pass goes on to what is to stop.
    ask_for_services(ctx, "silent", namespace, (&format!("https://{address}/"), 11))?;
    let start = mark(ctx)?;
    // In the order in which they are made.
    ctx.kubectl(&["delete", "service", "postgres", "redis", "dashboard", "bots", "-n", namespace])?;
    patch(ctx, &["tenant", name], &json!({"spec": {"suspended": true}}))?;
    // One that is under way may have to end before.
    eventually(Duration::from_secs(20), || same("bots", &asked(ctx, namespace)?.get("bots-a"), &Some(&json!(0))))?;
    eventually(LIMIT, || same("dashboard", &asked(ctx, namespace)?.get("dashboard"), &Some(&json!(0))))?;
    let tried =
        writes(ctx, start)?.into_iter().filter(|write| write.namespace == namespace && write.resource == "services");
    let tried: BTreeSet<String> = tried.map(|write| write.name).collect();
    same("Services that were tried", &tried, &["postgres", "redis"].map(str::to_owned).into())?;
    ask_no_more(ctx, "silent", namespace)?;
    ctx.kubectl(&["annotate", "tenant", name, "look=again"])?;
    await_reason_within(ctx, LIMIT, &["tenant", name], "Ready", "True", "Asleep").map(drop)
}

/// What shows whether a webhook is asked.
fn service(namespace: &str) -> [&str; 8] {
    ["create", "service", "clusterip", "mine", "-n", namespace, "--tcp=80", "--dry-run=server"]
}

/// Has the API server ask a webhook before any Service is made in a namespace, for so many seconds. It does when this returns.
fn ask_for_services(ctx: &Ctx, name: &str, namespace: &str, (url, seconds): (&str, u32)) -> Result<(), String> {
    let webhook = json!({
        "name": format!("{name}.torpor.test"), "clientConfig": {"url": url}, "failurePolicy": "Fail",
        "timeoutSeconds": seconds, "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["services"], "operations": ["CREATE"]}],
    });
    let hook = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": name}, "webhooks": [webhook],
    });
    apply(ctx, &hook)?;
    eventually(LIMIT, || match ctx.kubectl(&service(namespace)) {
        Err(failure) if failure.contains("failed calling webhook") => Ok(()),
        other => Err(format!("the webhook is not asked: {other:?}")),
    })
}

fn ask_no_more(ctx: &Ctx, name: &str, namespace: &str) -> Result<(), String> {
    ctx.kubectl(&["delete", "validatingwebhookconfiguration", name])?;
    eventually(LIMIT, || ctx.kubectl(&service(namespace)).map(drop))
}

/// The rule that keeps fleets from ending, and an attempt at it.
fn end_of_a_fleet() -> (Value, [&'static str; 7]) {
    let fleets = json!({"apiGroups": ["torpor.dev"], "apiVersions": ["v1alpha1"], "resources": ["botfleets"], "operations": ["DELETE"]});
    (fleets, ["delete", "botfleet", "b", "-n", NAMESPACE, "--ignore-not-found", "--dry-run=server"])
}

/// A new Tenant to which this is refused says so for as long as it is, and starts nothing before.
fn nothing_starts_without(ctx: &Ctx, rule: Value, make: &[&str], what: &str) -> Result<(), String> {
    ctx.kubectl(&["delete", "tenant", NAME, "--ignore-not-found", "--timeout=60s"])?;
    // What another test of these policies may have left.
    ctx.kubectl(&["delete", "networkpolicies", "--all", "-n", NAMESPACE])?;
    refuse(ctx, "frozen-beginning", rule, make)?;
    apply(ctx, &tenant(NAME, json!({"tier": "basic", "fleets": [fleet("a", 1)]})))?;
    for _ in 0..2 {
        told(ctx, what)?;
        ctx.kubectl(&["annotate", "--overwrite", "tenant", NAME, &format!("look={}", Timestamp::now())])?;
    }
    if what.starts_with("NetworkPolicy") {
        // Nor does a fleet of the user's own, which no pass over the Tenant makes.
        let mut spec = fleet("own", 1);
        spec.as_object_mut().and_then(|spec| spec.remove("name"));
        let metadata = json!({"name": "own", "namespace": NAMESPACE});
        apply(
            ctx,
            &json!({"apiVersion": "torpor.dev/v1alpha1", "kind": "BotFleet", "metadata": metadata, "spec": spec}),
        )?;
        let own = ["botfleet", "own", "-n", NAMESPACE];
        let waits = await_reason_within(ctx, LIMIT, &own, "Ready", "False", "Waiting")?;
        ensure(waits.contains("NetworkPolicy"), || waits)?;
    }
    same("workloads", &asked(ctx, NAMESPACE)?, &BTreeMap::new())?;
    permit(ctx, "frozen-beginning", make)?;
    ctx.kubectl(&["annotate", "--overwrite", "tenant", NAME, "look=at-last"])?;
    await_reason_within(ctx, LIMIT, &["tenant", NAME], "Ready", "True", "Ready").map(drop)
}

//! Fleets of a user's own, which stand in no Tenant: what they wait for, and what becomes of them with their Tenant.

use std::time::Duration;

use serde_json::{Value, json};

use crate::Ctx;
use crate::harness::{condition, eventually};
use crate::refused;
use crate::tenants::{apply, await_reason_within, ensure, fleet, list, patch, same, tenant, text};

const LIMIT: Duration = Duration::from_secs(120);

fn own(ctx: &Ctx, namespace: &str, name: &str, more: Value) -> Result<(), String> {
    let mut spec = fleet(name, 1);
    let (Value::Object(fields), Value::Object(more)) = (&mut spec, more) else { return Err("no objects".to_owned()) };
    fields.remove("name");
    fields.extend(more);
    let metadata = json!({"name": name, "namespace": namespace});
    apply(ctx, &json!({"apiVersion": "torpor.dev/v1alpha1", "kind": "BotFleet", "metadata": metadata, "spec": spec}))
}

fn asked(ctx: &Ctx, namespace: &str, workload: &str) -> Result<Value, String> {
    Ok(ctx.get(&["statefulset", workload, "-n", namespace])?["spec"]["replicas"].clone())
}

/// A fleet that never had its configuration sleeps and its Tenant is asleep; one that was made meanwhile says at the wake which Secret
/// it waits for.
pub fn what_waits_sleeps_and_waits_again(ctx: &Ctx) -> Result<(), String> {
    let (name, namespace) = ("patient", "tenant-patient");
    apply(ctx, &tenant(name, json!({"tier": "basic"})))?;
    ctx.await_ready(name)?;
    let reference = json!({"kind": "script", "configMapRef": {"name": "never"}});
    own(ctx, namespace, "unread", json!({"strategy": reference}))?;
    let unread = ["botfleet", "unread", "-n", namespace];
    await_reason_within(ctx, LIMIT, &unread, "Ready", "False", "Waiting")?;
    let suspend = |suspended: bool| patch(ctx, &["tenant", name], &json!({"spec": {"suspended": suspended}}));
    suspend(true)?;
    await_reason_within(ctx, LIMIT, &["tenant", name], "Ready", "True", "Asleep")?;
    await_reason_within(ctx, LIMIT, &unread, "Ready", "True", "Asleep")?;

    own(ctx, namespace, "keyless", json!({"credentialsSecret": "missing"}))?;
    let keyless = ["botfleet", "keyless", "-n", namespace];
    await_reason_within(ctx, LIMIT, &keyless, "Ready", "True", "Asleep")?;
    suspend(false)?;
    let waits = await_reason_within(ctx, LIMIT, &keyless, "Ready", "False", "Waiting")?;
    ensure(waits.contains("Secret tenant-patient/missing"), || waits)?;
    await_reason_within(ctx, LIMIT, &unread, "Ready", "False", "Waiting")?;
    await_reason_within(ctx, LIMIT, &unread, "Hibernated", "False", "WakingUp").map(drop)
}

/// More fleets than any tenant has bots are not looked after, and say so, until there are fewer.
pub fn two_hundred_fleets_are_looked_after(ctx: &Ctx) -> Result<(), String> {
    const MOST: usize = 200;
    let (name, namespace) = ("overfull", "tenant-overfull");
    apply(ctx, &tenant(name, json!({"tier": "basic"})))?;
    ctx.await_ready(name)?;
    // Invalid, so that they cost the cluster next to nothing.
    let crowd = |number: usize| {
        let spec = json!({"replicas": 1, "strategy": {"kind": "script", "config": "a: b\n"}});
        let metadata = json!({"name": format!("crowd-{number:03}"), "namespace": namespace});
        json!({"apiVersion": "torpor.dev/v1alpha1", "kind": "BotFleet", "metadata": metadata, "spec": spec})
    };
    apply(ctx, &json!({"apiVersion": "v1", "kind": "List", "items": (0..MOST).map(crowd).collect::<Vec<_>>()}))?;
    // Fleets of one second go by name.
    apply(ctx, &crowd(999))?;
    let says = |fleet: &str, words: &str| {
        let fleet = ["botfleet", fleet, "-n", namespace];
        eventually(LIMIT, || {
            let message = await_reason_within(ctx, LIMIT, &fleet, "Stalled", "True", "InvalidSpec")?;
            ensure(message.contains(words), || message)
        })
    };
    says("crowd-999", "has 200 older BotFleets")?;
    says("crowd-199", "has no key script_file_name")?;
    ctx.kubectl(&["delete", "botfleet", "crowd-001", "-n", namespace, "--timeout=60s"])?;
    says("crowd-999", "has no key script_file_name")?;
    ctx.kubectl(&["delete", "tenant", name, "--wait=false"]).map(drop)
}

/// Bots of a Tenant that became invalid stop when they are asked to, and a fleet that somebody's finalizer keeps holds up no deletion.
pub fn bots_stop_whatever_becomes_of_their_tenant(ctx: &Ctx) -> Result<(), String> {
    let (name, namespace) = ("stuck", "tenant-stuck");
    apply(ctx, &tenant(name, json!({"tier": "basic"})))?;
    ctx.await_ready(name)?;
    own(ctx, namespace, "own", json!({}))?;
    let own = ["botfleet", "own", "-n", namespace];
    await_reason_within(ctx, LIMIT, &own, "Ready", "True", "Ready")?;
    patch(ctx, &["tenant", name], &json!({"spec": {"redis": {"resources": {"memory": "60Gi"}}}}))?;
    await_reason_within(ctx, LIMIT, &["tenant", name], "Stalled", "True", "InvalidSpec")?;
    ctx.kubectl(&[&["scale", "--replicas=0"], &own[..]].concat())?;
    eventually(LIMIT, || same("bots asked for", &asked(ctx, namespace, "bots-own")?, &json!(0)))?;

    patch(ctx, &own, &json!({"metadata": {"finalizers": ["example.com/keep", "torpor.dev/finalizer"]}}))?;
    ctx.kubectl(&["delete", "tenant", name, "--timeout=90s"])?;
    let kept = ctx.get(&own)?;
    let deleted = !kept["metadata"]["deletionTimestamp"].is_null();
    ensure(deleted, || format!("the fleet was not deleted: {}", kept["metadata"]))?;
    patch(ctx, &own, &json!({"metadata": {"finalizers": null}}))
}

/// A fleet that stands in its Tenant and is deleted comes back, and goes on with its data, whatever the Tenant says of data.
pub fn a_fleet_that_comes_back_keeps_its_data(ctx: &Ctx) -> Result<(), String> {
    let (name, namespace) = ("returning", "tenant-returning");
    apply(ctx, &tenant(name, json!({"tier": "basic", "deletionPolicy": "Delete", "fleets": [fleet("makers", 1)]})))?;
    ctx.await_ready(name)?;
    let uid = |what: &[&str]| Ok::<_, String>(text(&ctx.get(what)?["metadata"]["uid"]));
    let makers = ["botfleet", "makers", "-n", namespace];
    let volume = ["pvc", "data-bots-makers-0", "-n", namespace];
    let (fleet_before, data) = (uid(&makers)?, uid(&volume)?);
    ctx.kubectl(&[&["delete", "--wait=false"], &makers[..]].concat())?;
    eventually(LIMIT, || ensure(uid(&makers)? != fleet_before, || "it is still the old one".to_owned()))?;
    await_reason_within(ctx, LIMIT, &makers, "Ready", "True", "Ready")?;
    same("volume", &uid(&volume)?, &data)?;

    // One that is not asked for any more takes its data with it.
    patch(ctx, &["tenant", name], &json!({"spec": {"fleets": null}}))?;
    eventually(LIMIT, || {
        let volumes = list(ctx, "pvc", namespace)?;
        let left = volumes.iter().filter(|volume| text(&volume["metadata"]["name"]).contains("makers"));
        same("volumes of its bots", &left.count(), &0)
    })
}

/// Fewer bots than its Tenant asks for, which only the fleet says, cost no volume: the Tenant's word is put back.
pub fn a_scaled_fleet_keeps_the_data_of_its_tenants_bots(ctx: &Ctx) -> Result<(), String> {
    let (name, namespace) = ("scaled", "tenant-scaled");
    apply(ctx, &tenant(name, json!({"tier": "basic", "deletionPolicy": "Delete", "fleets": [fleet("makers", 2)]})))?;
    ctx.await_ready(name)?;
    let makers = ["botfleet", "makers", "-n", namespace];
    let volume = || -> Result<Value, String> {
        let volume = ctx.get(&["pvc", "data-bots-makers-1", "-n", namespace])?;
        ensure(volume["metadata"]["deletionTimestamp"].is_null(), || "its volume is being deleted".to_owned())?;
        Ok(volume["metadata"]["uid"].clone())
    };
    let data = volume()?;
    let suspend = |suspended: bool| patch(ctx, &["tenant", name], &json!({"spec": {"suspended": suspended}}));
    suspend(true)?;
    await_reason_within(ctx, LIMIT, &["tenant", name], "Ready", "True", "Asleep")?;
    // While it cannot be put back, the fleet alone asks for one.
    let rule = json!({"apiGroups": ["torpor.dev"], "apiVersions": ["*"], "resources": ["botfleets"], "operations": ["UPDATE"]});
    let here = json!({"matchLabels": {"kubernetes.io/metadata.name": namespace}});
    let touch = [&["annotate", "--dry-run=server"], &makers[..], &["touched=yes"]].concat();
    refused::forbid(ctx, "frozen-scaled", &json!({"namespaceSelector": here, "resourceRules": [rule]}), &touch)?;
    ctx.kubectl(&[&["scale", "--replicas=1"], &makers[..]].concat())?;
    eventually(LIMIT, || {
        let fleet = ctx.get(&makers)?;
        same("handled", &fleet["status"]["observedGeneration"], &fleet["metadata"]["generation"])
    })?;
    eventually(LIMIT, || {
        let told = condition(&ctx.get(&["tenant", name])?, "Stalled").clone();
        ensure(told["reason"] == "Refused", || format!("no word of the fleet: {told}"))
    })?;
    same("its volume", &volume()?, &data)?;
    refused::permit(ctx, "frozen-scaled", &touch)?;
    suspend(false)?;
    await_reason_within(ctx, LIMIT, &["tenant", name], "Ready", "True", "Ready")?;
    same("bots asked for", &asked(ctx, namespace, "bots-makers")?, &json!(2))?;
    same("its volume", &volume()?, &data)
}

/// Somebody's finalizer keeps a workload that is on its way out, whose controller does nothing for it any more: its bots stop all the same.
pub fn bots_of_a_workload_that_is_kept_stop(ctx: &Ctx) -> Result<(), String> {
    let (name, namespace) = ("kept", "tenant-kept");
    apply(ctx, &tenant(name, json!({"tier": "basic"})))?;
    ctx.await_ready(name)?;
    for fleet in ["gone", "stays"] {
        own(ctx, namespace, fleet, json!({}))?;
        await_reason_within(ctx, LIMIT, &["botfleet", fleet, "-n", namespace], "Ready", "True", "Ready")?;
        let keep = json!({"metadata": {"finalizers": ["example.com/keep"]}});
        patch(ctx, &["statefulset", &format!("bots-{fleet}"), "-n", namespace], &keep)?;
    }
    let left = |fleet: &str| {
        eventually(LIMIT, || {
            let pods = list(ctx, "pods", namespace)?;
            let bots = pods.iter().filter(|pod| pod["metadata"]["labels"]["torpor.dev/fleet"] == fleet);
            same("bots left", &bots.count(), &0)
        })
    };
    ctx.kubectl(&["delete", "botfleet", "gone", "-n", namespace, "--wait=false"])?;
    left("gone")?;
    ctx.kubectl(&["delete", "statefulset", "bots-stays", "-n", namespace, "--wait=false"])?;
    patch(ctx, &["tenant", name], &json!({"spec": {"suspended": true}}))?;
    left("stays")?;
    // All else sleeps meanwhile.
    eventually(LIMIT, || {
        let redis = ctx.get(&["statefulset", "redis", "-n", namespace])?;
        same("pods of Redis asked for", &redis["spec"]["replicas"], &json!(0))
    })?;
    for fleet in ["gone", "stays"] {
        let set = format!("bots-{fleet}");
        patch(ctx, &["statefulset", &set, "-n", namespace], &json!({"metadata": {"finalizers": null}}))?;
    }
    eventually(LIMIT, || {
        ensure(ctx.get(&["botfleet", "gone", "-n", namespace]).is_err(), || "fleet gone is still there".to_owned())
    })?;
    await_reason_within(ctx, LIMIT, &["tenant", name], "Ready", "True", "Asleep").map(drop)
}

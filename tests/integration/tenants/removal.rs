//! Deletion of Tenants: bots first and gracefully, data only where the Tenant says so, and never without an end.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{
    SOON, Watch, apply, await_reason, await_reason_within, ensure, fleet, id, is_bot, list, patch, same, tenant, text,
    uids, writes,
};
use crate::Ctx;
use crate::harness::eventually;

/// Position and event of what a watch heard of pods that matter.
fn heard<'a>(events: &'a [(Instant, Value)], type_: &str, of_bots: bool) -> Vec<(usize, &'a Value)> {
    let of_type = events.iter().enumerate().filter(|(_, (_, event))| event["type"] == type_);
    of_type.map(|(at, (_, event))| (at, &event["object"])).filter(|(_, pod)| is_bot(pod) == of_bots).collect()
}

/// Every bot was asked to stop with its full grace, and gone before anything else was asked to stop.
fn bots_went_first(events: &[(Instant, Value)], bots: usize) -> Result<(), String> {
    let deleted = heard(events, "DELETED", true);
    same("bots that went", &deleted.len(), &bots)?;
    let asked = |pod: &Value| !pod["metadata"]["deletionTimestamp"].is_null();
    for (_, pod) in &deleted {
        // Only the first of a pod's events tells what it was asked for; its node ends it with 0 seconds left.
        let mut own = heard(events, "MODIFIED", true).into_iter().filter(|(_, other)| id(other) == id(pod));
        let grace =
            own.find(|(_, pod)| asked(pod)).and_then(|(_, pod)| pod["metadata"]["deletionGracePeriodSeconds"].as_i64());
        ensure(grace.is_some_and(|grace| grace >= 120), || format!("{} was given {grace:?} seconds", id(pod)))?;
    }
    let last_bot = deleted.iter().map(|(at, _)| *at).max();
    let services = heard(events, "MODIFIED", false).into_iter().filter(|(_, pod)| asked(pod));
    let first_service = services.chain(heard(events, "DELETED", false)).map(|(at, _)| at).min();
    ensure(first_service.is_none() || last_bot < first_service, || {
        format!("event {first_service:?} ended a service, event {last_bot:?} the last bot")
    })
}

/// Who deletes in the foreground, as Argo CD does where it prunes, has the garbage collector take at once whatever the Tenant owns. Bots take
/// their time, and are kept apart for as long.
pub fn bots_stop_in_isolation_however_their_tenant_goes(ctx: &Ctx) -> Result<(), String> {
    let (name, namespace) = ("pruned", "tenant-pruned");
    apply(ctx, &tenant(name, json!({"tier": "basic", "fleets": [fleet("a", 3)]})))?;
    ctx.await_ready(name)?;
    let (pods, policies) =
        (Watch::existing(ctx, "pods", namespace)?, Watch::existing(ctx, "networkpolicies", namespace)?);
    ctx.kubectl(&["delete", "tenant", name, "--cascade=foreground", "--timeout=60s"])?;
    let opened = eventually(SOON, || {
        let events = policies.events();
        let deleted: Vec<Instant> =
            events.iter().filter(|(_, event)| event["type"] == "DELETED").map(|(at, _)| *at).collect();
        ensure(deleted.len() >= 5, || format!("{} policies have gone", deleted.len()))?;
        Ok(deleted.into_iter().min())
    })?;
    let bots: Vec<Instant> = pods
        .events()
        .iter()
        .filter(|(_, event)| event["type"] == "DELETED" && is_bot(&event["object"]))
        .map(|(at, _)| *at)
        .collect();
    same("bots that went", &bots.len(), &3)?;
    ensure(bots.iter().max() < opened.as_ref(), || {
        format!("the last bot went at {:?}, the first policy at {opened:?}", bots.iter().max())
    })
}

/// Retain keeps namespace, volumes and Secret, and a new Tenant of that name takes them over.
pub fn retained_data_is_taken_over(ctx: &Ctx) -> Result<(), String> {
    let namespace = "tenant-keeper";
    let keeper = tenant("keeper", json!({"tier": "pro", "fleets": [fleet("a", 2), fleet("b", 1)]}));
    apply(ctx, &keeper)?;
    ctx.await_ready("keeper")?;
    ctx.kubectl(&["create", "configmap", "notes", "-n", namespace, "--from-literal=a=b"])?;
    let kept = || -> Result<_, String> {
        let mut kept = list(ctx, "pvc,secrets", namespace)?;
        kept.push(ctx.get(&["namespace", namespace])?);
        kept.push(ctx.get(&["configmap", "notes", "-n", namespace])?);
        Ok(kept)
    };
    let before = kept()?;
    same("volumes, Secret, namespace, notes", &before.len(), &(4 + 1 + 2))?;
    let watch = Watch::existing(ctx, "pods", namespace)?;
    let mark = super::mark(ctx)?;

    ctx.kubectl(&["delete", "tenant", "keeper", "--timeout=30s"])?;
    eventually(SOON, || same("pods", &list(ctx, "pods", namespace)?.len(), &0))?;
    bots_went_first(&watch.events(), 3)?;
    let deletions: Vec<_> = writes(ctx, mark)?.into_iter().filter(|event| event.namespace == namespace).collect();
    let at = |resource: &str| deletions.iter().position(|event| event.verb == "delete" && event.resource == resource);
    let services = deletions.iter().position(|event| event.verb == "delete" && event.name == "redis");
    ensure(at("botfleets") < services && at("botfleets").is_some(), || "fleets must be deleted first".to_owned())?;
    same("deleted volumes", &at("persistentvolumeclaims"), &None)?;
    same("what is kept", &uids(&kept()?), &uids(&before))?;
    // What had an owner goes with it, and what keeps tenants apart.
    let rest = "statefulsets,deployments,services,networkpolicies,resourcequotas,poddisruptionbudgets,botfleets";
    eventually(Duration::from_secs(90), || same("what is left", &uids(&list(ctx, rest, namespace)?), &[].into()))?;

    apply(ctx, &keeper)?;
    ctx.await_ready("keeper")?;
    same("what is taken over", &uids(&kept()?), &uids(&before))?;
    let version = |objects: &[Value]| {
        let secret = objects.iter().find(|object| id(object) == "Secret/torpor-generated");
        secret.map(|secret| text(&secret["metadata"]["resourceVersion"]))
    };
    same("version of the Secret", &version(&kept()?), &version(&before))
}

/// Delete removes everything, soon after the last bot has ended.
pub fn delete_removes_everything(ctx: &Ctx) -> Result<(), String> {
    let namespace = "tenant-goner";
    let spec = json!({"tier": "basic", "deletionPolicy": "Delete", "fleets": [fleet("a", 3)]});
    apply(ctx, &tenant("goner", spec))?;
    ctx.await_ready("goner")?;
    let watch = Watch::existing(ctx, "pods", namespace)?;
    ctx.kubectl(&["delete", "tenant", "goner", "--wait=false"])?;
    eventually(Duration::from_secs(90), || {
        let gone = ctx.get(&["namespace", namespace]).is_err() && ctx.get(&["tenant", "goner"]).is_err();
        ensure(gone, || "the namespace or the Tenant still exists".to_owned())
    })?;
    let gone = Instant::now();
    let events = watch.events();
    bots_went_first(&events, 3)?;
    let last = heard(&events, "DELETED", true).last().map(|(at, _)| events[*at].0).ok_or("no bot ended")?;
    let took = gone.duration_since(last);
    // Ten seconds on an idle machine.
    println!("the namespace went {took:?} after the last bot");
    ensure(took <= Duration::from_secs(40), || format!("the namespace went {took:?} after the last bot"))?;
    let volumes = ctx.get(&["pv"])?;
    let left = volumes["items"].as_array().into_iter().flatten();
    let left: Vec<String> =
        left.filter(|volume| volume["spec"]["claimRef"]["namespace"] == namespace).map(id).collect();
    // Where the cluster makes volumes, its own reclaim policy deletes them; here nobody does.
    ensure(left.len() <= 4, || format!("{left:?}"))
}

/// Whatever state a Tenant is in, its deletion ends.
pub fn deletions_never_hang(ctx: &Ctx) -> Result<(), String> {
    let gone = |name: &str| {
        let limit = Duration::from_secs(60);
        let what = format!("Tenant {name}");
        eventually(limit, || ensure(ctx.get(&["tenant", name]).is_err(), || format!("{what} is still there")))
    };
    let delete = |name: &str| ctx.kubectl(&["delete", "tenant", name, "--wait=false"]);
    let spec = |policy: &str, fleets: Value| json!({"tier": "basic", "deletionPolicy": policy, "fleets": fleets});

    // Deleted the moment it was made.
    apply(ctx, &tenant("hang-new", spec("Delete", json!([fleet("a", 3)]))))?;
    delete("hang-new")?;
    // Waiting for something that never comes.
    let mut waiting = fleet("a", 1);
    waiting["strategy"] = json!({"kind": "v1", "configMapRef": {"name": "never"}});
    apply(ctx, &tenant("hang-waiting", spec("Retain", json!([waiting]))))?;
    // Never valid.
    let mut invalid = spec("Delete", json!([]));
    invalid["redis"] = json!({"resources": {"memory": "900Mi"}});
    apply(ctx, &tenant("hang-invalid", invalid))?;
    await_reason(ctx, &["tenant", "hang-invalid"], "Stalled", "True", "InvalidSpec")?;
    // Valid once, and no more.
    apply(ctx, &tenant("hang-spoilt", spec("Delete", json!([fleet("a", 1)]))))?;
    await_reason_within(ctx, Duration::from_secs(60), &["tenant", "hang-spoilt"], "Ready", "True", "Ready")?;
    patch(ctx, &["tenant", "hang-spoilt"], &json!({"spec": {"redis": {"resources": {"memory": "1000Mi"}}}}))?;
    await_reason(ctx, &["bf", "a", "-n", "tenant-hang-waiting"], "Ready", "False", "Waiting")?;
    for name in ["hang-waiting", "hang-invalid", "hang-spoilt"] {
        delete(name)?;
    }
    for name in ["hang-new", "hang-waiting", "hang-invalid", "hang-spoilt"] {
        gone(name)?;
    }
    bots_without_an_owner(ctx)?;
    delete("hang-orphan")?;
    gone("hang-orphan")?;
    namespace_taken_away(ctx)?;
    delete("hang-bare")?;
    gone("hang-bare")?;
    labels_taken_away(ctx)?;
    gone("hang-nameless")
}

/// Who takes a namespace's labels away and deletes its Tenant is told that bots run on, and what to do; then it ends.
fn labels_taken_away(ctx: &Ctx) -> Result<(), String> {
    let (name, namespace) = ("hang-nameless", "tenant-hang-nameless");
    let bots = || -> Result<_, String> {
        Ok(uids(&list(ctx, "pods", namespace)?.into_iter().filter(is_bot).collect::<Vec<_>>()))
    };
    apply(ctx, &tenant(name, json!({"tier": "basic", "deletionPolicy": "Delete", "fleets": [fleet("a", 1)]})))?;
    ctx.await_ready(name)?;
    let before = bots()?;
    let label = |manager: &str| {
        let managed = format!("app.kubernetes.io/managed-by{manager}");
        ctx.kubectl(&["label", "--overwrite", "namespace", namespace, &managed])
    };
    label("-")?;
    ctx.kubectl(&["delete", "tenant", name, "--wait=false"])?;
    // Of a Tenant that nobody deletes the reason is the same.
    eventually(SOON, || {
        let message = await_reason(ctx, &["tenant", name], "Stalled", "True", "NotOwned")?;
        let told = message.contains("run in namespace tenant-hang-nameless") && message.contains("put them back");
        ensure(told, || message)
    })?;
    same("bots", &bots()?, &before)?;
    label("=torpor").map(drop)
}

/// The `StatefulSet` is taken away from its running bots, and does not come back.
fn bots_without_an_owner(ctx: &Ctx) -> Result<(), String> {
    let namespace = "tenant-hang-orphan";
    let spec = json!({"tier": "basic", "deletionPolicy": "Delete", "fleets": [fleet("a", 2)]});
    apply(ctx, &tenant("hang-orphan", spec))?;
    ctx.await_ready("hang-orphan")?;
    // Their workload does not come back while their Tenant makes no sense.
    patch(ctx, &["tenant", "hang-orphan"], &json!({"spec": {"redis": {"resources": {"memory": "1000Mi"}}}}))?;
    await_reason(ctx, &["bf", "a", "-n", namespace], "Ready", "False", "Waiting")?;
    ctx.kubectl(&["delete", "statefulset", "bots-a", "-n", namespace, "--cascade=orphan"])?;
    eventually(SOON, || {
        let mut bots = list(ctx, "pods", namespace)?;
        bots.retain(|pod| is_bot(pod) && pod["metadata"]["ownerReferences"].is_null());
        same("bots without an owner", &bots.len(), &2)
    })
}

/// Somebody deletes the namespace under a living Tenant: it ends, and comes again.
fn namespace_taken_away(ctx: &Ctx) -> Result<(), String> {
    apply(ctx, &tenant("hang-bare", json!({"tier": "basic", "fleets": [fleet("a", 2)]})))?;
    ctx.await_ready("hang-bare")?;
    let home = ["namespace", "tenant-hang-bare"];
    let before = text(&ctx.get(&home)?["metadata"]["uid"]);
    ctx.kubectl(&["delete", "namespace", "tenant-hang-bare", "--wait=false"])?;
    eventually(Duration::from_secs(90), || {
        let found = ctx.get(&home)?;
        ensure(text(&found["metadata"]["uid"]) != before, || "the old namespace is still there".to_owned())
    })?;
    ctx.await_ready("hang-bare").map(drop)
}

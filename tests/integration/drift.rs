//! What somebody else does to a tenant's objects: changes of owned fields are put back, everything else stays.

use std::time::Duration;

use serde_json::{Value, json};
use torpor_cluster::AuditEvent;

use crate::Ctx;
use crate::harness::eventually;
use crate::tenants::{
    SOON, apply, brief, ensure, equal_rendered, fleet, id, is_bot, list, mark, objects, patch, render, same, tenant,
    uids, writes,
};

/// Changes an object behind the operator's back.
type Hurt<'a> = &'a dyn Fn() -> Result<(), String>;

/// Objects of a namespace that the operator wrote since the mark, its own resources' status and Events apart.
fn written(events: Vec<AuditEvent>, namespace: &str) -> Vec<String> {
    let there = events.into_iter().filter(|event| event.namespace == namespace || event.name == namespace);
    there
        .filter(|event| event.subresource != "status" && event.resource != "events")
        .map(|event| brief(&event))
        .collect()
}

/// Every manual change of an owned field is put back within seconds, and no pod restarts for it.
pub fn owned_fields_are_put_back(ctx: &Ctx) -> Result<(), String> {
    let (name, namespace) = ("drifter", "tenant-drifter");
    let drifter = tenant(name, json!({"tier": "basic", "fleets": [fleet("a", 2)]}));
    apply(ctx, &drifter)?;
    ctx.await_ready(name)?;
    let rendered = render(&drifter, &[])?;
    equal_rendered(&rendered, &objects(ctx, namespace)?)?;
    let bots = |ctx: &Ctx| -> Result<_, String> {
        Ok(uids(&list(ctx, "pods", namespace)?.into_iter().filter(is_bot).collect::<Vec<_>>()))
    };
    let before = bots(ctx)?;
    let at = |object: &'static str| [object, "-n", namespace];
    let hurt: [(&str, Hurt); 17] = [
        ("port of a Service", &|| {
            let ports = json!([{"name": "postgres", "port": 5433, "protocol": "TCP"}]);
            patch(ctx, &at("service/postgres"), &json!({"spec": {"ports": ports}}))
        }),
        ("a key of a ConfigMap", &|| patch(ctx, &at("configmap/redis"), &json!({"data": {"redis.conf": "port 1"}}))),
        ("a ConfigMap's contents as a whole", &|| patch(ctx, &at("configmap/postgres"), &json!({"data": null}))),
        ("kubectl scale", &|| ctx.kubectl(&[&["scale", "--replicas=1"][..], &at("sts/bots-a")].concat()).map(drop)),
        ("kubectl scale of a Deployment", &|| {
            ctx.kubectl(&[&["scale", "--replicas=2"][..], &at("deploy/monitoring")].concat()).map(drop)
        }),
        ("kubectl scale of a fleet inside the Tenant", &|| {
            ctx.kubectl(&[&["scale", "--replicas=1"][..], &at("botfleet/a")].concat()).map(drop)
        }),
        ("a label", &|| ctx.kubectl(&[&["label"][..], &at("svc/redis"), &["torpor.dev/tier-"]].concat()).map(drop)),
        ("the label by which it is found", &|| {
            ctx.kubectl(&[&["label"][..], &at("pdb/bots"), &["app.kubernetes.io/managed-by-"]].concat()).map(drop)
        }),
        ("a deleted NetworkPolicy", &|| {
            ctx.kubectl(&[&["delete"][..], &at("networkpolicy/default")].concat()).map(drop)
        }),
        ("an opened NetworkPolicy", &|| patch(ctx, &at("networkpolicy/stores"), &json!({"spec": {"ingress": [{}]}}))),
        ("a NetworkPolicy opened where it has no rule", &|| {
            patch(ctx, &at("networkpolicy/default"), &json!({"spec": {"ingress": [{}]}}))
        }),
        ("a NetworkPolicy opened the other way", &|| {
            patch(ctx, &at("networkpolicy/stores"), &json!({"spec": {"egress": [{}]}}))
        }),
        ("keys that the Tenant's fleet has not", &|| {
            patch(ctx, &at("botfleet/a"), &json!({"spec": {"credentialsSecret": "theirs"}}))
        }),
        ("another strategy of a Deployment", &|| {
            patch(ctx, &at("deploy/dashboard"), &json!({"spec": {"strategy": {"type": "RollingUpdate"}}}))
        }),
        ("a quota", &|| patch(ctx, &at("quota/tenant"), &json!({"spec": {"hard": {"pods": "999"}}}))),
        ("Pod Security", &|| {
            let labels = json!({"pod-security.kubernetes.io/enforce": "privileged"});
            patch(ctx, &["namespace", namespace], &json!({"metadata": {"labels": labels}}))
        }),
        ("a deleted StatefulSet", &|| {
            ctx.kubectl(&[&["delete", "--cascade=orphan"][..], &at("sts/bots-a")].concat()).map(drop)
        }),
    ];
    for (what, change) in hurt {
        change().map_err(|error| format!("{what}: {error}"))?;
        eventually(SOON, || equal_rendered(&rendered, &objects(ctx, namespace)?))
            .map_err(|error| format!("{what}: {error}"))?;
    }
    for kind in ["Service", "ConfigMap", "NetworkPolicy", "Namespace"] {
        let put_back = ctx.operator.counter(&format!(r#"torpor_objects_put_back_total{{kind="{kind}"}}"#))?;
        ensure(put_back > 0.0, || format!("no {kind} was counted as put back"))?;
    }
    let told = ctx.operator.log_text().lines().any(|line| line.contains("put back") && line.contains("/postgres"));
    ensure(told, || "the log does not say what was put back".to_owned())?;
    let taken = ctx.get(&at("botfleet/a"))?["spec"]["credentialsSecret"].clone();
    same("keys that the Tenant's fleet has not", &taken, &Value::Null)?;
    ctx.await_ready(name)?;
    // Scaling down ended bot 1, and nothing ended bot 0.
    let now = bots(ctx)?;
    same("bot 0", &now.get("Pod/bots-a-0"), &before.get("Pod/bots-a-0"))?;
    same("bots", &now.len(), &2)
}

/// What others add to the operator's objects stays, and is answered by no write.
pub fn foreign_additions_stay(ctx: &Ctx) -> Result<(), String> {
    let (name, namespace) = ("guests", "tenant-guests");
    apply(ctx, &tenant(name, json!({"tier": "basic", "fleets": [fleet("a", 1)]})))?;
    ctx.await_ready(name)?;
    ctx.kubectl(&["create", "configmap", "notes", "-n", namespace, "--from-literal=a=b"])?;
    // The status follows a moment after the last pod.
    std::thread::sleep(Duration::from_secs(1));
    let mark = mark(ctx)?;
    let added = json!({"metadata": {"labels": {"team": "blue"}, "annotations": {"note": "hello"}}});
    let mut touched = vec![vec!["namespace", namespace], vec!["tenant", name]];
    for object in [
        "svc/redis",
        "sts/postgres",
        "deploy/dashboard",
        "cm/bots-a",
        "quota/tenant",
        "netpol/stores",
        "pdb/bots",
        "bf/a",
        "cm/notes",
        "secret/torpor-generated",
        "sa/tenant",
    ] {
        touched.push(vec![object, "-n", namespace]);
    }
    for object in &touched {
        patch(ctx, object, &added)?;
    }
    // A second key in a ConfigMap, and a second port of a Service, belong to who added them.
    patch(ctx, &["cm/redis", "-n", namespace], &json!({"data": {"theirs": "x"}}))?;
    std::thread::sleep(Duration::from_secs(2));
    let answers = written(writes(ctx, mark)?, namespace);
    ensure(answers.is_empty(), || format!("{answers:?}"))?;
    for object in &touched {
        let found = ctx.get(object)?;
        same(&id(&found), &found["metadata"]["labels"]["team"], &json!("blue"))?;
        same(&id(&found), &found["metadata"]["annotations"]["note"], &json!("hello"))?;
    }
    // They stay when the operator changes the object for a reason of its own.
    patch(ctx, &["tenant", name], &json!({"spec": {"tier": "pro"}}))?;
    eventually(SOON, || {
        let service = ctx.get(&["svc/redis", "-n", namespace])?;
        let labels = &service["metadata"]["labels"];
        same("labels", &(&labels["torpor.dev/tier"], &labels["team"]), &(&json!("pro"), &json!("blue")))?;
        same("their key", &ctx.get(&["cm/redis", "-n", namespace])?["data"]["theirs"], &json!("x"))
    })
}

/// What a new spec does not want any more goes, if it is still the object that was seen; nothing else does.
pub fn what_is_not_wanted_goes(ctx: &Ctx) -> Result<(), String> {
    let (name, namespace) = ("tidy", "tenant-tidy");
    let whole = |fleets: Value| tenant(name, json!({"tier": "pro", "fleets": fleets}));
    apply(ctx, &whole(json!([fleet("a", 1), fleet("b", 2)])))?;
    ctx.await_ready(name)?;
    ctx.kubectl(&["create", "configmap", "notes", "-n", namespace, "--from-literal=a=b"])?;
    ctx.kubectl(&["create", "secret", "generic", "keys", "-n", namespace, "--from-literal=a=b"])?;
    let stays = |ctx: &Ctx| -> Result<_, String> {
        let mut objects = list(ctx, "pvc,secrets", namespace)?;
        objects.push(ctx.get(&["cm/notes", "-n", namespace])?);
        objects.extend(list(ctx, "pods", namespace)?.into_iter().filter(|pod| !id(pod).starts_with("Pod/bots-b-")));
        Ok(uids(&objects))
    };
    let before = stays(ctx)?;
    let mark = mark(ctx)?;
    let smaller = whole(json!([fleet("a", 1)]));
    apply(ctx, &smaller)?;
    ctx.await_ready(name)?;
    let mut rendered = render(&smaller, &[])?;
    for (kind, name) in [("ConfigMap", "notes"), ("Secret", "keys")] {
        rendered.push(json!({"kind": kind, "metadata": {"name": name}}));
    }
    // The fleet's ConfigMap is collected by Kubernetes, which learns of new kinds of owners every 30 seconds.
    eventually(Duration::from_secs(90), || equal_rendered(&rendered, &objects(ctx, namespace)?))?;
    same("what stays", &stays(ctx)?, &before)?;
    let deleted: Vec<String> = writes(ctx, mark)?
        .iter()
        .filter(|event| event.namespace == namespace && event.verb == "delete" && event.code == 200)
        .map(|event| format!("{}/{}", event.resource, event.name))
        .collect();
    same("deleted", &deleted, &["botfleets/b", "statefulsets/bots-b"].map(str::to_owned).to_vec())?;

    // An object that only looks like a child belongs to its maker.
    let labels = json!({"app.kubernetes.io/managed-by": "torpor", "torpor.dev/tenant": name});
    let metadata = json!({"name": "lookalike", "namespace": namespace, "labels": labels});
    apply(ctx, &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"a": "b"}}))?;
    patch(ctx, &["tenant", name], &json!({"spec": {"fleets": []}}))?;
    eventually(SOON, || ensure(ctx.get(&["bf/a", "-n", namespace]).is_err(), || "fleet a is still there".to_owned()))?;
    ctx.get(&["cm/lookalike", "-n", namespace]).map(drop)
}

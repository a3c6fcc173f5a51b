//! What somebody can do who has stolen the token of one of Torpor's programs.

pub mod fields;
mod operator;
mod requests;

use http::Request;
use kube::{Client, Error};
use serde_json::json;

use self::requests::{Hostile, OTHER, TENANT};
use crate::Ctx;
use crate::many::client;
use crate::rights::{self, COMPONENTS, HOME};
use crate::tenants::{apply, ensure, fleet, tenant};

/// Each of the three tokens is refused everything of the list, by a right that is missing or by the admission policy. An
/// administrator's dry run shows beforehand that the request itself is sound.
pub fn stolen_tokens_are_worth_little(ctx: &Ctx) -> Result<(), String> {
    targets(ctx)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(async {
        let admin = client(ctx.cluster.kubeconfig()).await?;
        let mut wrong = Vec::new();
        for component in COMPONENTS {
            let account = format!("torpor-{component}");
            let thief = client(&rights::account(&ctx.cluster, component)?).await?;
            let mut all = requests::of_anybody(&account);
            all.extend(match component {
                "operator" => operator::of_the_operator(),
                "hibernator" => requests::of_the_hibernator(),
                _ => requests::of_the_gateway(),
            });
            ensure(all.len() >= 60, || format!("only {} requests for {account}", all.len()))?;
            for hostile in &all {
                if let Err(why) = tried(&admin, &thief, hostile).await {
                    wrong.push(format!("{account}: {}: {} {}: {why}", hostile.what, hostile.method, hostile.path));
                }
            }
            println!("privilege: {account} was refused {} requests", all.len());
        }
        ensure(wrong.is_empty(), || format!("{} of the requests: {wrong:#?}", wrong.len()))
    })
}

/// What the requests are about: a tenant that is served, things of Torpor's and of somebody else's.
fn targets(ctx: &Ctx) -> Result<(), String> {
    apply(ctx, &tenant(TENANT, json!({"tier": "basic", "fleets": [fleet("makers", 1)]})))?;
    let resources = json!({"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"cpu": "100m", "memory": "32Mi"}});
    let container = json!([{"name": "main", "image": "example.com/app", "resources": resources}]);
    let labels = json!({"app": "app"});
    let deployment = |namespace: &str, name: &str| {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": namespace},
            "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": {
                "metadata": {"labels": labels}, "spec": {"containers": container},
            }},
        })
    };
    let of = |kind: &str, namespace: &str, name: &str, rest: serde_json::Value| {
        let mut object = json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": namespace}});
        object.as_object_mut().expect("an object").extend(rest.as_object().cloned().unwrap_or_default());
        object
    };
    let objects = [
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OTHER}}),
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "tenant-lookalike"}}),
        of("Secret", OTHER, "keys", json!({"stringData": {"key": "value"}})),
        of("Secret", HOME, "webhook-key", json!({"stringData": {"key": "value"}})),
        of("ConfigMap", OTHER, "settings", json!({})),
        of("ConfigMap", HOME, "torpor-breaker", json!({})),
        of("ServiceAccount", OTHER, "default", json!({})),
        of("Pod", OTHER, "app", json!({"spec": {"containers": container, "serviceAccountName": "default"}})),
        of(
            "PersistentVolumeClaim",
            OTHER,
            "disk",
            json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}),
        ),
        deployment(OTHER, "app"),
        deployment(HOME, "torpor-operator"),
        json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "theirs"}, "value": 1}),
        json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "theirs", "namespace": OTHER},
        }),
        json!({
            "apiVersion": "torpor.dev/v1alpha1", "kind": "BotFleet", "metadata": {"name": "stray", "namespace": OTHER},
            "spec": {"replicas": 1, "strategy": {"kind": "script", "config": "a: b\n"}},
        }),
    ];
    objects.iter().try_for_each(|object| apply(ctx, object))?;
    ctx.await_ready(TENANT).map(drop)
}

async fn tried(admin: &Client, thief: &Client, hostile: &Hostile) -> Result<(), String> {
    if hostile.provable {
        ask(admin, hostile).await.map_err(|error| format!("not even an administrator can: {error}"))?;
    }
    match ask(thief, hostile).await {
        Ok(answer) => Err(format!("was let through: {}", answer.chars().take(200).collect::<String>())),
        Err(Error::Api(status)) if status.code == 403 => Ok(()),
        Err(Error::Api(status)) if status.code == 422 && status.message.contains("ValidatingAdmissionPolicy") => Ok(()),
        Err(error) => Err(format!("was not refused but failed: {error}")),
    }
}

async fn ask(client: &Client, hostile: &Hostile) -> Result<String, Error> {
    let dry = hostile.provable && hostile.method != "GET";
    let path = if dry { format!("{}?dryRun=All", hostile.path) } else { hostile.path.clone() };
    let content = match hostile.method {
        // A merge would replace the list of containers.
        "PATCH" if hostile.path.ends_with("/resize") => "application/strategic-merge-patch+json",
        "PATCH" => "application/merge-patch+json",
        _ => "application/json",
    };
    let mut request = Request::builder().method(hostile.method).uri(path).header("Content-Type", content);
    if let Some(user) = hostile.impersonates {
        request = request.header("Impersonate-User", user);
    }
    let body = if hostile.body.is_null() { Vec::new() } else { hostile.body.to_string().into_bytes() };
    client.request_text(request.body(body).map_err(Error::HttpError)?).await
}

//! What a tenant can put into its stack by any field of its Tenant: values drawn by the schema, many of them hostile.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use http::Request;
use kube::{Client, Error};
use serde_json::{Map, Value, json};
use torpor::cli::render::{Source, render};
use torpor::domain::catalog::Catalog;
use torpor::plan::Settings;

use crate::Ctx;
use crate::harness::eventually;
use crate::many::client;
use crate::tenants::{SOON, apply, documents, ensure, fleet, same, tenant, text};

const NAME: &str = "fields";
const CASES: usize = 500;
/// So many of them have to be accepted and looked at; the others are refused by the API server or by the operator.
const LOOKED_AT: usize = 100;

/// What somebody would write who wants out of his namespace, his quota or his pods.
const HOSTILE: [&str; 22] = [
    "../../etc/shadow",
    "/var/run/docker.sock",
    "/",
    "tenant-victim/torpor-generated",
    "torpor-generated",
    "kube-system",
    "default-token",
    "kubernetes.io/service-account-token",
    "$(HBOT_PASSWORD)",
    "$(cat /run/secrets/torpor/postgres-password)",
    "`id`",
    "x'; kill -9 1; '",
    "a\nhostPath: {path: /}",
    "a\", \"hostNetwork\": true, \"x\": \"",
    "{{ .Values.secret }}",
    "privileged: true\nsecurityContext: {privileged: true}\n",
    "example.com/tool:1 --privileged",
    "999Ti",
    "-1",
    "1e9",
    "*.example.com",
    "\u{202e}gnp.exe",
];
/// Fields that no schema of Torpor's has, with what they would do if something took them over.
const SMUGGLED: [(&str, &str); 8] = [
    ("hostNetwork", "true"),
    ("serviceAccountName", r#""torpor-operator""#),
    ("tenant", r#""victim""#),
    ("namespace", r#""kube-system""#),
    ("securityContext", r#"{"privileged": true}"#),
    ("volumes", r#"[{"name": "root", "hostPath": {"path": "/"}}]"#),
    ("podTemplate", r#"{"spec": {"hostPID": true}}"#),
    ("automountServiceAccountToken", "true"),
];

/// Whatever stands in a Tenant's fields: what the API server and the operator accept becomes pods that its Pod Security
/// takes, in its own namespace, with its own Secrets, under the quota of its tier.
pub fn no_field_leads_out(ctx: &Ctx) -> Result<(), String> {
    // The tier with the widest limits: what is refused here is refused for what it is and not for its size.
    apply(ctx, &tenant(NAME, json!({"tier": "premium", "fleets": [fleet("makers", 1)]})))?;
    ctx.await_ready(NAME)?;
    let definition = documents(&std::fs::read_to_string("crds/tenants.torpor.dev.yaml").map_err(|e| e.to_string())?)?;
    let schema = &definition[0]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let seed =
        std::env::var("TORPOR_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("fields: TORPOR_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    let looked_at = runtime.block_on(async {
        let admin = client(ctx.cluster.kubeconfig()).await?;
        let mut looked_at = 0;
        for number in 0..CASES {
            let mut spec = drawn(&mut rng, schema);
            spec["tier"] = json!(*rng.choice(&["free", "basic", "pro", "premium"]).unwrap_or(&"free"));
            let object = tenant(&format!("field-{number}"), spec);
            if let Some(stored) = accepted(&admin, &object).await?
                && let Some(objects) = rendered(&stored)?
            {
                looked_at += 1;
                confined(&admin, &stored, &objects).await.map_err(|why| format!("{why}: {stored}"))?;
            }
        }
        Ok::<_, String>(looked_at)
    })?;
    println!("fields: {looked_at} of {CASES} were accepted and looked at");
    ensure(looked_at >= LOOKED_AT, || format!("only {looked_at} Tenants were accepted"))
}

/// A fleet's labels name another tenant; its bots are its own tenant's all the same.
pub fn a_fleet_cannot_name_another_tenant(ctx: &Ctx) -> Result<(), String> {
    let name = "field-fleets";
    let namespace = format!("tenant-{name}");
    apply(ctx, &tenant(name, json!({"tier": "basic"})))?;
    ctx.await_ready(name)?;
    let mut object = json!({
        "apiVersion": "torpor.dev/v1alpha1", "kind": "BotFleet",
        "metadata": {"name": "stray", "namespace": namespace, "labels": {"torpor.dev/tenant": NAME}, "annotations": {"torpor.dev/tenant": NAME}},
        "spec": {"replicas": 1, "strategy": {"kind": "script", "config": "script_file_name: a.py\n"}},
    });
    apply(ctx, &object)?;
    let set = eventually(SOON, || {
        let set = ctx.get(&["statefulset", "bots-stray", "-n", &namespace]);
        set.or_else(|error| Err(format!("{error}; {}", ctx.get(&["botfleet", "stray", "-n", &namespace])?["status"])))
    })?;
    for place in ["/metadata/labels", "/spec/template/metadata/labels", "/spec/selector/matchLabels"] {
        let found = set.pointer(place).map(|labels| text(&labels["torpor.dev/tenant"]));
        same(place, &found, &Some(name.to_owned()))?;
    }
    for field in ["tenant", "tenantRef", "namespace"] {
        object["spec"][field] = json!(NAME);
        let answer = ctx.kubectl_stdin(&["apply", "--validate=strict", "-f", "-"], &object.to_string());
        ensure(answer.as_ref().is_err_and(|error| error.contains("unknown field")), || format!("{field}: {answer:?}"))?;
        object["spec"].as_object_mut().map(|spec| spec.remove(field));
    }
    Ok(())
}

/// A value for a schema: mostly one that may be accepted, else a hostile one.
fn drawn(rng: &mut Rng, schema: &Value) -> Value {
    if let Some(choices) = schema["enum"].as_array() {
        return rng.choice(choices).cloned().unwrap_or_default();
    }
    match schema["type"].as_str() {
        Some("object") => {
            let mut object = Map::new();
            for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                let required =
                    schema["required"].as_array().is_some_and(|names| names.iter().any(|n| n == name.as_str()));
                if required || rng.u8(..) < 100 {
                    object.insert(name.clone(), field(rng, name, property));
                }
            }
            if rng.u8(..) < 40
                && let Some((name, value)) = rng.choice(&SMUGGLED)
            {
                object.insert((*name).to_owned(), serde_json::from_str(value).unwrap_or_default());
            }
            Value::Object(object)
        }
        Some("array") => (0..rng.usize(0..4)).map(|_| drawn(rng, &schema["items"])).collect(),
        Some("boolean") => json!(rng.bool()),
        Some("integer") => {
            json!(*rng.choice(&[0, 1, 1, 1, 2, 3, 120, 600, 50, 200, -1, i64::from(i32::MAX) + 1]).unwrap_or(&1))
        }
        _ => json!(*rng.choice(&HOSTILE).unwrap_or(&"")),
    }
}

/// A value for a field of this name.
fn field(rng: &mut Rng, name: &str, schema: &Value) -> Value {
    let sound: &[&str] = match name {
        "image" => {
            &["postgres:17.1", "redis:7.4", "example.com/bot:version-2.16.0", "hummingbot/hummingbot:version-2.17.0"]
        }
        "cpu" => &["50m", "100m", "200m", "1"],
        "memory" => &["128Mi", "256Mi", "512Mi", "4Gi"],
        "storage" => &["1Gi", "5Gi", "500Mi"],
        "name" => &["a", "b", "makers", "settings"],
        "key" => &["strategy.yml", "config"],
        "host" => &["a.example.com", "b.example.com"],
        "config" => &["script_file_name: a.py\n", "id: b\n"],
        "credentialsSecret" => &["keys", "exchange"],
        "stopBotsAfter" => &["7d", "10d"],
        "stopServicesAfter" => &["14d", "20d"],
        "databaseOnlyAfter" => &["30d", "40d"],
        "displayName" => &["Alice"],
        _ => return drawn(rng, schema),
    };
    let hostile = rng.u8(..) < 40;
    let choices: &[&str] = if hostile { &HOSTILE } else { sound };
    json!(*rng.choice(choices).unwrap_or(&""))
}

/// The object as the API server would store it; `None` where it refuses it.
async fn accepted(admin: &Client, object: &Value) -> Result<Option<Value>, String> {
    match dry_run(admin, "/apis/torpor.dev/v1alpha1/tenants", object).await {
        Ok(stored) => serde_json::from_str(&stored).map(Some).map_err(|error| error.to_string()),
        Err(Error::Api(status)) if [400, 422].contains(&status.code) => Ok(None),
        Err(error) => Err(format!("neither accepted nor refused: {error}: {object}")),
    }
}

async fn dry_run(admin: &Client, path: &str, object: &Value) -> Result<String, Error> {
    let request = Request::post(format!("{path}?dryRun=All")).header("Content-Type", "application/json");
    admin.request_text(request.body(object.to_string().into_bytes()).map_err(Error::HttpError)?).await
}

/// What the operator would make of it; `None` where it would be Stalled.
fn rendered(tenant: &Value) -> Result<Option<Vec<Value>>, String> {
    let name = text(&tenant["metadata"]["name"]);
    let settings = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "settings", "namespace": format!("tenant-{name}")}, "data": {"strategy.yml": "a: b\n", "config": "a: b\n"},
    });
    let source = Source { name: name.clone(), text: format!("{tenant}\n---\n{settings}\n") };
    match render(&[source], None, &Catalog::default(), &Settings::default()) {
        Ok(yaml) => documents(&yaml).map(Some),
        Err(_) => Ok(None),
    }
}

async fn confined(admin: &Client, tenant: &Value, objects: &[Value]) -> Result<(), String> {
    let name = text(&tenant["metadata"]["name"]);
    let tier = text(&tenant["spec"]["tier"]);
    let home = format!("tenant-{name}");
    let plain =
        rendered(&crate::tenants::tenant(&name, json!({"tier": tier})))?.ok_or("a plain Tenant is not rendered")?;
    let of_kind = |objects: &[Value], kind: &str| -> Vec<Value> {
        objects.iter().filter(|object| object["kind"] == kind).map(|object| object["spec"].clone()).collect()
    };
    for kind in ["ResourceQuota", "LimitRange", "NetworkPolicy"] {
        same(kind, &of_kind(objects, kind), &of_kind(&plain, kind))?;
    }
    let credentials: BTreeSet<String> =
        tenant["spec"]["fleets"].as_array().into_iter().flatten().map(|f| text(&f["credentialsSecret"])).collect();
    for object in objects {
        let what = format!("{} {}", text(&object["kind"]), text(&object["metadata"]["name"]));
        let place =
            if object["kind"] == "Namespace" { &object["metadata"]["name"] } else { &object["metadata"]["namespace"] };
        same(&format!("namespace of {what}"), &text(place), &home)?;
        same(&format!("tenant of {what}"), &text(&object["metadata"]["labels"]["torpor.dev/tenant"]), &name)?;
        let template = &object["spec"]["template"]["spec"];
        if template.is_object() {
            let claims = object["spec"]["volumeClaimTemplates"].as_array().into_iter().flatten();
            let claims: Vec<String> = claims.map(|claim| text(&claim["metadata"]["name"])).collect();
            pod(admin, template, &claims, &credentials).await.map_err(|why| format!("{what}: {why}"))?;
        }
    }
    Ok(())
}

/// A pod takes its own Secrets only, has no token, and is let in by the Pod Security level of a tenant's namespace.
async fn pod(
    admin: &Client,
    template: &Value,
    claims: &[String],
    credentials: &BTreeSet<String>,
) -> Result<(), String> {
    same("account", &text(&template["serviceAccountName"]), &"tenant".to_owned())?;
    same("token", &template["automountServiceAccountToken"], &json!(false))?;
    let mut secrets = BTreeSet::new();
    for volume in template["volumes"].as_array().into_iter().flatten() {
        let kinds: BTreeMap<&String, &Value> =
            volume.as_object().into_iter().flatten().filter(|(key, _)| key.as_str() != "name").collect();
        ensure(kinds.keys().all(|kind| ["configMap", "secret", "emptyDir"].contains(&kind.as_str())), || {
            format!("a volume of {kinds:?}")
        })?;
        secrets.extend(volume["secret"]["secretName"].as_str().map(str::to_owned));
    }
    let containers =
        ["containers", "initContainers"].map(|list| template[list].as_array().cloned().unwrap_or_default());
    for env in containers.iter().flatten().flat_map(|container| container["env"].as_array().into_iter().flatten()) {
        secrets.extend(env["valueFrom"]["secretKeyRef"]["name"].as_str().map(str::to_owned));
    }
    let own = |name: &&String| *name != "torpor-generated" && !credentials.contains(*name);
    ensure(!secrets.iter().any(|name| own(&name)), || format!("takes the Secrets {secrets:?}"))?;
    let mut spec = template.clone();
    // A StatefulSet's controller adds the claims to the pods it makes.
    if let Some(volumes) = spec["volumes"].as_array_mut() {
        volumes
            .extend(claims.iter().map(|claim| json!({"name": claim, "persistentVolumeClaim": {"claimName": "claim"}})));
    }
    // It is the tier's, and the tier is another one.
    spec.as_object_mut().map(|spec| spec.remove("priorityClassName"));
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "field"}, "spec": spec});
    match dry_run(admin, &format!("/api/v1/namespaces/tenant-{NAME}/pods"), &pod).await {
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

//! The charts on a real API server: every example is accepted, and releases come and go beside a tenant that notices nothing.

mod release;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use torpor_cluster::Options;

use self::release::{Release, SPACE, free_address};
use crate::Ctx;
use crate::harness::eventually;
use crate::process::{Process, TORPOR};
use crate::tenants::{documents, ensure, list, same, text};

/// Sets of values that are rendered and sent to the API server.
const SETS: [&[&str]; 7] = [
    &[],
    &["examples/eks/values.yaml"],
    &["examples/gke/values.yaml"],
    &["examples/aks/values.yaml"],
    &["tests/charts/values/air-gapped.yaml"],
    &["tests/charts/values/monitoring.yaml"],
    &["tests/charts/values/everything.yaml"],
];
const READY: Duration = Duration::from_secs(120);

/// Each example passes the API server's own checks, without a warning, in a namespace of the Pod Security level
/// `restricted`; monitors and rules those of the Prometheus operator's definitions.
pub fn examples_are_accepted() -> Result<(), String> {
    let release = Release::start(Options { nodes_per_pool: 0, ..Options::default() })?;
    release.helm(&["install", "torpor-crds", "charts/torpor-crds", "--namespace", SPACE])?;
    release.apply(&prometheus_definitions()?)?;
    eventually(READY, || {
        let known = release.kubectl(&["api-resources", "-o", "name"])?;
        let missing = ["prometheusrules.", "servicemonitors.", "podmonitors.", "workerpools."];
        let missing: Vec<_> = missing.into_iter().filter(|name| !known.contains(name)).collect();
        ensure(missing.is_empty(), || format!("not served yet: {missing:?}"))
    })?;
    for files in SETS {
        let values = files.iter().flat_map(|file| ["--values", file]);
        let arguments: Vec<&str> =
            ["template", "torpor", "charts/torpor", "--namespace", SPACE].into_iter().chain(values).collect();
        let rendered = release.helm(&arguments)?;
        let count = documents(&rendered)?.len();
        let accepted = release.dry_run(&rendered).map_err(|error| format!("{files:?}: {error}"))?;
        same(&format!("{files:?}: objects accepted"), &accepted, &count)?;
        println!("install: {files:?}: {count} objects accepted");
    }
    let class = std::fs::read_to_string("examples/eks/storageclass.yaml").map_err(|error| error.to_string())?;
    same("storage classes accepted", &release.dry_run(&class)?, &1)
}

/// The Prometheus operator's definitions, from its Go module.
fn prometheus_definitions() -> Result<String, String> {
    let module = "github.com/prometheus-operator/prometheus-operator";
    let output = Command::new("go")
        .args(["mod", "download", "-json", module])
        .current_dir("tests/charts/monitoring")
        .env("GOTOOLCHAIN", "local")
        .env("GOWORK", "off")
        .output()
        .map_err(|error| format!("go: {error}"))?;
    let told: Value = serde_json::from_slice(&output.stdout).map_err(|error| format!("{error}: {output:?}"))?;
    let folder = PathBuf::from(text(&told["Dir"])).join("example/prometheus-operator-crd");
    let texts = ["podmonitors", "prometheusrules", "servicemonitors"].map(|name| {
        let file = folder.join(format!("monitoring.coreos.com_{name}.yaml"));
        std::fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))
    });
    Ok(texts.into_iter().collect::<Result<Vec<_>, _>>()?.join("\n---\n"))
}

/// Pods of tenants with uid and restarts, and their StatefulSets with uid and generation.
fn tenants_state(ctx: &Ctx) -> Result<BTreeMap<String, String>, String> {
    let mut state = BTreeMap::new();
    let managed = ["-A", "-l", "app.kubernetes.io/managed-by=torpor"];
    for kind in ["pods", "statefulsets"] {
        for object in ctx.get(&[&[kind][..], &managed].concat())?["items"].as_array().into_iter().flatten() {
            let metadata = &object["metadata"];
            let restarts: u64 = object["status"]["containerStatuses"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|container| container["restartCount"].as_u64())
                .sum();
            let generation = if kind == "pods" { &Value::Null } else { &metadata["generation"] };
            let name = format!("{kind} {}/{}", text(&metadata["namespace"]), text(&metadata["name"]));
            state.insert(name, format!("{} {restarts} {generation}", text(&metadata["uid"])));
        }
    }
    Ok(state)
}

/// Tenants are Ready, and nothing of theirs was replaced or changed.
fn unchanged(ctx: &Ctx, what: &str, before: &BTreeMap<String, String>) -> Result<(), String> {
    ctx.await_ready("alice")?;
    // Long enough for a pod that is to be replaced to be gone: bots stop within a second here.
    std::thread::sleep(Duration::from_secs(5));
    ctx.await_ready("alice")?;
    let now = tenants_state(ctx)?;
    let differs: Vec<_> = before.iter().filter(|(name, state)| now.get(*name) != Some(*state)).collect();
    ensure(differs.is_empty() && now.len() == before.len(), || format!("{what}: {differs:?} became {now:#?}"))?;
    println!("install: {what}: {} pods and StatefulSets of the tenant as before", now.len());
    Ok(())
}

/// Namespaces whose pods may reach the tenant's dashboard: an operator setting that is no part of any pod.
fn let_in(ctx: &Ctx) -> Result<String, String> {
    let policies = list(ctx, "networkpolicies", "tenant-alice")?;
    let dashboard =
        policies.iter().find(|policy| policy["metadata"]["name"] == "dashboard").ok_or("no policy dashboard")?;
    let labels = &dashboard["spec"]["ingress"][0]["from"][0]["namespaceSelector"]["matchLabels"];
    Ok(text(&labels["kubernetes.io/metadata.name"]))
}

fn await_let_in(ctx: &Ctx, namespace: &str) -> Result<(), String> {
    eventually(READY, || same("the namespace that is let in", &let_in(ctx)?, &namespace.to_owned()))
}

/// Replaces the operator as a rollout does: the new one stands by until the old one has given its Lease back.
fn roll(release: &Release, ctx: &mut Ctx) -> Result<(), String> {
    let new = release.program(&ctx.cluster, "operator")?.start()?;
    let mut old = std::mem::replace(&mut ctx.operator, new);
    same("exit code of the old operator", &old.terminate()?, &Some(0))?;
    ctx.operator.await_ready(READY)
}

/// From one version to the next and back, with other settings, beside a tenant with bots; then a release that cannot
/// work, then none at all, then a new one. No pod of the tenant is replaced by any of it.
///
/// No chart has been released yet, so both versions are made from this source and differ in version, image tag and values.
pub fn releases_come_and_go() -> Result<(), String> {
    let release = Release::start(Options { graceful_stop: Some(Duration::from_secs(1)), ..Options::default() })?;
    let (old, new) = (release.package("0.1.0")?, release.package("0.1.1")?);
    let old_values = release.values("old", &old_values())?;
    let new_values = release.values("new", &new_values())?;
    let home = ["--namespace", SPACE];
    let wait = ["--wait=legacy", "--timeout", "120s"];

    release.helm(&[&["install", "torpor", &old, "--values", &old_values], &home[..], &wait].concat())?;
    release.manifest_is_there()?;
    let operator = release.program(&release.cluster, "operator")?.start()?;
    let mut ctx = release.with(operator);
    let release = Release::of(&ctx)?;
    ctx.operator.await_ready(READY)?;
    ctx.apply_file("examples/tenant-basic.yaml")?;
    ctx.await_ready("alice")?;
    await_let_in(&ctx, SPACE)?;
    let before = tenants_state(&ctx)?;
    ensure(before.len() >= 7, || format!("too little to look at: {before:#?}"))?;

    // The definitions get a release of their own, which takes over those that the first chart brought.
    let definition = ["get", "crd", "tenants.torpor.dev", "-o", "jsonpath={.metadata.uid}"];
    let uid = ctx.kubectl(&definition)?;
    let refused = release.helm(&[&["install", "torpor-crds", "charts/torpor-crds"], &home[..]].concat());
    let refused = refused.err().ok_or("definitions of others were taken without being asked to")?;
    ensure(refused.contains("cannot be imported into the current release"), || refused.clone())?;
    let take = ["upgrade", "--install", "torpor-crds", "charts/torpor-crds", "--take-ownership", "--force-conflicts"];
    release.helm(&[&take, &home[..]].concat())?;
    same("uid of a definition", &ctx.kubectl(&definition)?, &uid)?;

    release.helm(&[&["upgrade", "torpor", &new, "--values", &new_values], &home[..], &wait].concat())?;
    release.manifest_is_there()?;
    same("the image's tag", &release.tag("operator")?, &"0.1.1".to_owned())?;
    roll(&release, &mut ctx)?;
    await_let_in(&ctx, "traefik")?;
    unchanged(&ctx, "upgraded", &before)?;

    release.helm(&[&["rollback", "torpor", "1"], &home[..], &wait].concat())?;
    same("the image's tag", &release.tag("operator")?, &"0.1.0".to_owned())?;
    roll(&release, &mut ctx)?;
    await_let_in(&ctx, SPACE)?;
    unchanged(&ctx, "rolled back", &before)?;

    restores_what_was_changed(&release, &ctx, &old, &old_values)?;
    unchanged(&ctx, "rights were restored", &before)?;

    refuses_what_cannot_work(&release, &ctx, &new)?;
    unchanged(&ctx, "a release that could not work", &before)?;

    helm_test(&release, &ctx)?;

    // Without Torpor tenants go on, and what they need stays.
    release.helm(&[&["uninstall", "torpor", "--wait"], &home[..]].concat())?;
    same("exit code of the operator", &ctx.operator.terminate()?, &Some(0))?;
    same("Deployments", &list(&ctx, "deployments", SPACE)?.len(), &0)?;
    same("accounts", &list(&ctx, "serviceaccounts", SPACE)?.len(), &1)?;
    let pools = ctx.get(&["workerpools"])?["items"].as_array().map_or(0, Vec::len);
    same("pools that were kept, those of both versions", &pools, &5)?;
    same("state of the tenant without Torpor", &tenants_state(&ctx)?, &before)?;
    release.helm(&[&["uninstall", "torpor-crds"], &home[..]].concat())?;
    same("uid of a definition", &ctx.kubectl(&definition)?, &uid)?;

    // Without `--skip-crds` the chart puts its definitions over those that are there, and the other chart's marks are gone.
    let policy = r"jsonpath={.metadata.annotations.helm\.sh/resource-policy}";
    let policy = ["get", "crd", "tenants.torpor.dev", "-o", policy];
    same("policy of a definition", &ctx.kubectl(&policy)?, &"keep".to_owned())?;
    release.helm(&[&["install", "torpor", &new, "--values", &new_values], &home[..], &wait].concat())?;
    same("uid of a definition", &ctx.kubectl(&definition)?, &uid)?;
    same("policy of a definition", &ctx.kubectl(&policy)?, &String::new())?;
    ctx.operator = release.program(&ctx.cluster, "operator")?.start()?;
    ctx.operator.await_ready(READY)?;
    await_let_in(&ctx, "traefik")?;
    unchanged(&ctx, "installed again", &before)
}

fn pool(name: &str, tier: &str, class: &str, value: i32) -> Value {
    json!({"name": name, "tiers": [tier], "priority": {"class": class, "value": value}})
}

fn old_values() -> Value {
    json!({
        // Outlasts the times in which the API server of a busy machine answers nobody.
        "leaseSeconds": 60,
        "workerPools": [pool("worker-low", "free", "torpor-low", 1000), pool("worker-mid", "basic", "torpor-medium", 10000),
            pool("worker-high", "pro", "torpor-high", 100_000), pool("worker-premium", "premium", "torpor-critical", 1_000_000)],
    })
}

/// Other replicas, other settings of all programs, one more pool, and a catalogue of its own.
fn new_values() -> Value {
    let mut values = old_values();
    let catalog: Value = serde_yaml::from_str(torpor::domain::catalog::BUILT_IN).unwrap_or_default();
    values["catalog"] = catalog;
    values["operator"] = json!({"replicas": 2, "podAnnotations": {"example.com/new": "yes"}});
    values["gateway"] = json!({"replicas": 2, "limits": {"eventStreams": 10}});
    values["hibernator"] = json!({"breaker": {"percent": 25, "feedSilence": "12h"}});
    values["tenants"] =
        json!({"gatewayNamespace": "traefik", "scraperNamespace": "monitoring", "ingressClass": "traefik"});
    if let Some(pools) = values["workerPools"].as_array_mut() {
        pools[1]["maxTenantsPerNode"] = json!(50);
        // For another tier: one more pool for the tenant's own would let its Deployments' pods roll.
        let mut other = pool("worker-other", "pro", "torpor-high", 100_000);
        other["nodeSelector"] = json!({"example.com/other": "nodes"});
        pools.push(other);
    }
    values
}

/// Helm stops at what somebody else has set, and takes it back when it is told to.
fn restores_what_was_changed(release: &Release, ctx: &Ctx, chart: &str, values: &str) -> Result<(), String> {
    let rights = || ctx.kubectl(&["get", "clusterrole", "torpor-gateway", "-o", "jsonpath={.rules}"]);
    let before = rights()?;
    let change = r#"[{"op": "remove", "path": "/rules/0"}]"#;
    ctx.kubectl(&["patch", "clusterrole", "torpor-gateway", "--type=json", "-p", change])?;
    let upgrade = ["upgrade", "torpor", chart, "--values", values, "--namespace", SPACE];
    let refused = release.helm(&upgrade).err().ok_or("what kubectl had set was overwritten unasked")?;
    ensure(refused.contains("conflict occurred while applying object"), || refused.clone())?;
    release.helm(&[&upgrade[..], &["--force-conflicts"]].concat())?;
    same("rights of the gateway", &rights()?, &before)
}

/// A catalogue that contradicts itself ends the new operator at its start, and the old one goes on. A release whose pods
/// do not become ready is taken back by Helm, and its old pods never went.
fn refuses_what_cannot_work(release: &Release, ctx: &Ctx, chart: &str) -> Result<(), String> {
    let home = ["--namespace", SPACE];
    let mut wrong = new_values();
    wrong["catalog"]["tiers"]["basic"]["total"]["memory"] = json!("1025Mi");
    let wrong = release.values("wrong", &wrong)?;
    release.helm(&[&["upgrade", "torpor", chart, "--values", &wrong], &home[..]].concat())?;
    let mut operator = release.program(&ctx.cluster, "operator")?.start()?;
    same("exit code with a wrong catalogue", &operator.exit_code(READY)?, &Some(2))?;
    let log = operator.log_text();
    ensure(log.contains("sum up to") && log.contains("tiers.yaml:"), || log.clone())?;
    ctx.operator.await_ready(READY)?;
    release.helm(&[&["rollback", "torpor"], &home[..], &["--wait=legacy", "--timeout", "120s"]].concat())?;

    let running = release.pods("operator")?;
    let mut nowhere = old_values();
    nowhere["operator"] = json!({"nodeSelector": {"example.com/no": "node"}});
    let nowhere = release.values("nowhere", &nowhere)?;
    let upgrade = ["upgrade", "torpor", chart, "--values", &nowhere];
    let flags = ["--wait=legacy", "--rollback-on-failure", "--timeout", "40s"];
    let failed = release.helm(&[&upgrade, &home[..], &flags].concat());
    let failed = failed.err().ok_or("pods that fit nowhere became ready")?;
    ensure(failed.contains("rolled back"), || failed.clone())?;
    let kept = release.pods("operator")?;
    ensure(running.iter().all(|pod| kept.contains(pod)), || format!("{running:?} became {kept:?}"))?;
    same("the release", &release.status()?, &"deployed".to_owned())?;
    println!("install: refused: {}", log.lines().last().unwrap_or_default());
    Ok(())
}

/// `helm test`, but for kwok, which plays a pod and runs none: its command as rendered, on programs that run with the
/// environment of their Deployments, at the addresses that they have here.
fn helm_test(release: &Release, ctx: &Ctx) -> Result<(), String> {
    let hooks = release.helm(&["get", "hooks", "torpor", "--namespace", SPACE])?;
    let pods = documents(&hooks)?;
    let pod = pods.iter().find(|object| object["kind"] == "Pod").ok_or("no pod for helm test")?;
    let arguments: Vec<String> =
        pod["spec"]["containers"][0]["args"].as_array().into_iter().flatten().map(text).collect();
    let hibernator = release.program(&ctx.cluster, "hibernator")?.start()?;
    let door = free_address()?;
    let gateway = release.program(&ctx.cluster, "gateway")?.arguments(&["--address", &door]).start()?;
    hibernator.await_ready(READY)?;
    gateway.await_ready(READY)?;
    let places = [
        (format!("torpor-operator-metrics.{SPACE}:8080"), ctx.operator.probes().to_owned()),
        (format!("torpor-hibernator-metrics.{SPACE}:8080"), hibernator.probes().to_owned()),
        (format!("torpor-gateway-metrics.{SPACE}:8080"), gateway.probes().to_owned()),
        (format!("torpor-gateway.{SPACE}:8090"), door),
    ];
    for (service, _) in &places {
        ensure(arguments.iter().any(|argument| argument.contains(service.as_str())), || {
            format!("{service} is not asked")
        })?;
    }
    let here: Vec<String> = arguments
        .iter()
        .map(|argument| {
            places.iter().fold(argument.clone(), |text, (service, place)| text.replace(service.as_str(), place))
        })
        .collect();
    let (code, said) = check(&here)?;
    ensure(code == Some(0) && said.lines().filter(|line| line.starts_with("ok ")).count() == 4, || said.clone())?;
    for line in said.lines() {
        println!("install: {line}");
    }
    drop::<Process>(gateway);
    let (code, said) = check(&[&here[..], &["--within".to_owned(), "2s".to_owned()]].concat())?;
    let failed = said.lines().filter(|line| line.starts_with("failed ")).count();
    ensure(code == Some(1) && failed == 2, || format!("without a gateway: {code:?}: {said}"))
}

fn check(arguments: &[String]) -> Result<(Option<i32>, String), String> {
    let output = Command::new(TORPOR).args(arguments).output().map_err(|error| error.to_string())?;
    Ok((output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned()))
}

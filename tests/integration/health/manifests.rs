//! The manifests of examples/gitops in the schemas of Argo CD, Flux and Torpor, on the API server.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use torpor_cluster::kstatus;

use super::states::{documents, objects, root, rules};
use crate::Ctx;
use crate::tenants::{apply, ensure, same, text};

/// Every manifest is accepted by the API server under the definitions of the tool that it is for, without an unknown field;
/// folders and objects that it names are there; and the ConfigMap arrives with a script for each kind.
pub fn manifests_fit_their_tools(ctx: &Ctx) -> Result<(), String> {
    let definitions = kstatus::definitions().map_err(|error| format!("{error:#}"))?;
    let definitions = definitions.display().to_string();
    ctx.kubectl(&["apply", "--server-side", "-f", &definitions])?;
    ctx.kubectl(&["wait", "--for=condition=Established", "--timeout=30s", "-f", &definitions])?;
    for name in ["argocd", "flux-system"] {
        apply(ctx, &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))?;
    }
    let files = files(&root().join("examples/gitops"))?;
    ensure(files.len() >= 14, || format!("{} files only", files.len()))?;
    let all: Vec<Value> = files.iter().flat_map(|file| documents(file)).collect();
    let mut failures = Vec::new();
    for object in &all {
        let checked = accepted(ctx, object).and_then(|()| refers(object, &all));
        failures
            .extend(checked.err().map(|error| format!("{} {}: {error}", object["kind"], object["metadata"]["name"])));
    }
    ensure(failures.is_empty(), || failures.join("\n"))?;
    waves_rise(&all)?;
    charts_fit(ctx, &all)?;
    let mut typo = all.iter().find(|object| object["kind"] == "HelmRelease").cloned().ok_or("no HelmRelease")?;
    typo["spec"]["driftDetektion"] = json!({"mode": "enabled"});
    ensure(accepted(ctx, &typo).is_err(), || "a field that nobody knows was accepted".to_owned())
}

fn accepted(ctx: &Ctx, object: &Value) -> Result<(), String> {
    let mut object = object.clone();
    // The operator makes a tenant's namespace; the schema is the same in any other.
    if text(&object["metadata"]["namespace"]).starts_with("tenant-") {
        object["metadata"]["namespace"] = json!("default");
    }
    let arguments = ["apply", "--server-side", "--dry-run=server", "--validate=strict", "-o", "json", "-f", "-"];
    let answer = ctx.kubectl_stdin(&arguments, &object.to_string())?;
    if object["metadata"]["name"] == "argocd-cm" {
        let stored: Value = serde_json::from_str(&answer).map_err(|error| error.to_string())?;
        same("data of argocd-cm", &stored["data"], &rules().argocd)?;
        for kind in ["Tenant", "BotFleet", "WorkerPool"] {
            let key = format!("resource.customizations.health.torpor.dev_{kind}");
            ensure(stored["data"][&key].is_string(), || format!("no {key}"))?;
        }
    }
    Ok(())
}

/// What an Application, Kustomization or HelmRelease points at exists.
fn refers(object: &Value, all: &[Value]) -> Result<(), String> {
    let spec = &object["spec"];
    let named =
        |kind: &str, name: &Value| all.iter().any(|one| one["kind"] == kind && &one["metadata"]["name"] == name);
    let folder = match text(&object["kind"]).as_str() {
        "Application" => {
            ensure(named("AppProject", &spec["project"]), || format!("there is no AppProject {}", spec["project"]))?;
            &spec["source"]["path"]
        }
        "Kustomization" => {
            let source = &spec["sourceRef"]["name"];
            ensure(named("GitRepository", source), || format!("there is no GitRepository {source}"))?;
            for check in spec["healthChecks"].as_array().into_iter().flatten() {
                ensure(named(&text(&check["kind"]), &check["name"]), || format!("there is no {check}"))?;
            }
            &spec["path"]
        }
        "HelmRelease" => &spec["chart"]["spec"]["chart"],
        _ => return Ok(()),
    };
    let kind = text(&object["kind"]);
    for one in spec["dependsOn"].as_array().into_iter().flatten() {
        ensure(named(&kind, &one["name"]), || format!("it depends on {one}, which is not there"))?;
    }
    let folder = text(folder);
    ensure(root().join(&folder).is_dir(), || format!("there is no folder {folder}"))
}

/// Definitions, chart, pools, tenants, fleets: each Application in a later wave.
fn waves_rise(all: &[Value]) -> Result<(), String> {
    let wave = |name: &str| {
        let found = all.iter().find(|object| object["kind"] == "Application" && object["metadata"]["name"] == name);
        let wave = found.map(|object| text(&object["metadata"]["annotations"]["argocd.argoproj.io/sync-wave"]));
        wave.and_then(|wave| wave.parse::<u32>().ok()).ok_or_else(|| format!("{name} is in no wave"))
    };
    let order = ["torpor-crds", "torpor", "torpor-pools", "torpor-tenants", "torpor-fleets"];
    let waves = order.into_iter().map(wave).collect::<Result<Vec<_>, _>>()?;
    let different: BTreeSet<u32> = waves.iter().copied().collect();
    ensure(waves.is_sorted() && different.len() == waves.len(), || format!("waves {waves:?} of {order:?}"))
}

/// Each chart takes the values that it is given, and Argo CD's project allows all that comes of it.
fn charts_fit(ctx: &Ctx, all: &[Value]) -> Result<(), String> {
    let resources = ctx.kubectl(&["api-resources", "--namespaced=false", "--no-headers"])?;
    let of_cluster: BTreeSet<(String, String)> = resources
        .lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().rev().collect();
            Some((group(words.get(2)?).to_owned(), (*words.first()?).to_owned()))
        })
        .collect();
    let mut installed = 0;
    for object in all {
        let spec = &object["spec"];
        let helm = object["kind"] == "HelmRelease";
        let source = if helm { &spec["chart"]["spec"]["chart"] } else { &spec["source"]["path"] };
        let chart = text(source);
        if !chart.trim_start_matches("./").starts_with("charts/") {
            continue;
        }
        let values = if helm { &spec["values"] } else { &spec["source"]["helm"]["valuesObject"] };
        let name = text(&object["metadata"]["name"]);
        let rendered = render(ctx, &chart, values).map_err(|error| format!("{} {name}: {error}", object["kind"]))?;
        installed += rendered.len();
        let project = all.iter().find(|one| one["kind"] == "AppProject" && one["metadata"]["name"] == spec["project"]);
        let Some(project) = project else { continue };
        if let Some(made) = rendered.iter().find(|made| !allows(project, made, &of_cluster)) {
            let project = &spec["project"];
            return Err(format!("AppProject {project} lets {name} bring no {} {}", made["kind"], made["metadata"]));
        }
    }
    ensure(installed > 20, || format!("the charts made {installed} objects only"))
}

/// Whether an AppProject lets an object of a chart into the cluster.
fn allows(project: &Value, made: &Value, of_cluster: &BTreeSet<(String, String)>) -> bool {
    let list = |field: &str| project["spec"][field].as_array().into_iter().flatten();
    let (group, kind) = (group(&text(&made["apiVersion"])).to_owned(), text(&made["kind"]));
    if of_cluster.contains(&(group.clone(), kind.clone())) {
        return list("clusterResourceWhitelist").any(|one| one["group"] == group && one["kind"] == kind);
    }
    let namespace = made["metadata"]["namespace"].as_str().unwrap_or("torpor-system");
    list("destinations").any(|one| one["namespace"] == namespace)
}

fn group(version: &str) -> &str {
    version.rsplit_once('/').map_or("", |(group, _)| group)
}

fn render(ctx: &Ctx, chart: &str, values: &Value) -> Result<Vec<Value>, String> {
    let file = ctx.cluster.data_dir().join("values.json");
    std::fs::write(&file, if values.is_null() { "{}".to_owned() } else { values.to_string() })
        .map_err(|error| error.to_string())?;
    let output = Command::new(ctx.cluster.bin("helm"))
        .args(["template", "torpor"])
        .arg(root().join(chart))
        .args(["--namespace", "torpor-system", "--kube-version", "1.37.2", "--values"])
        .arg(&file)
        .output()
        .map_err(|error| error.to_string())?;
    ensure(output.status.success(), || String::from_utf8_lossy(&output.stderr).into_owned())?;
    objects(&String::from_utf8_lossy(&output.stdout))
}

/// The YAML files of a folder and those below it, as paths of the project.
fn files(folder: &Path) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))? {
        let path = entry.map_err(|error| error.to_string())?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            let relative = path.strip_prefix(root()).map_err(|error| error.to_string())?;
            found.push(relative.display().to_string());
        }
    }
    found.sort();
    Ok(found)
}

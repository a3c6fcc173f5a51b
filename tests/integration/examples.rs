//! The custom resources as their users meet them: examples, refusals, explanations and columns on a real API server.
//!
//! Every check of this file wants the CustomResourceDefinitions installed, and none a running operator; objects that
//! are stored have names of their own and are deleted again.

mod reconcile;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use torpor::api::crds;
use torpor::domain::catalog::Catalog;

use crate::Ctx;

pub use reconcile::examples_are_reconciled;

/// Widest line that `kubectl get` may print.
const WIDTH: usize = 100;
/// Forty characters, the longest name of a Tenant and of a BotFleet.
const LONG_NAME: &str = "the-longest-name-a-tenant-can-have-today";

/// Every file of `examples/invalid/` is refused with the message that its first line announces.
pub fn invalid_examples_are_refused(ctx: &Ctx) -> Result<(), String> {
    let files = yaml_files("examples/invalid")?;
    if files.len() < 40 {
        return Err(format!("examples/invalid holds {} files only", files.len()));
    }
    every_rule_has_an_example(&files)?;
    all(files.iter().map(|file| (name_of(file), refused(ctx, file))))
}

/// Each CEL rule's message is announced by at least one of the files.
fn every_rule_has_an_example(files: &[PathBuf]) -> Result<(), String> {
    let mut announced = Vec::new();
    for file in files {
        let text = read(file)?;
        let first = text.lines().next().unwrap_or_default();
        announced.extend(first.split_once(": ").map(|(_, message)| message.to_owned()));
    }
    let mut messages = Vec::new();
    for crd in crds::all() {
        let crd = serde_json::to_value(crd).map_err(|error| error.to_string())?;
        rule_messages(&crd, &mut messages);
    }
    messages.sort();
    messages.dedup();
    all(messages.into_iter().map(|message| {
        let shown = announced.iter().any(|text| text.contains(&message) || message.starts_with(text.as_str()));
        (message, if shown { Ok(()) } else { Err("has no file in examples/invalid".into()) })
    }))
}

fn rule_messages(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            let rules = fields.get("x-kubernetes-validations").and_then(Value::as_array);
            found.extend(rules.into_iter().flatten().filter_map(|rule| rule["message"].as_str().map(str::to_owned)));
            fields.values().for_each(|field| rule_messages(field, found));
        }
        Value::Array(items) => items.iter().for_each(|item| rule_messages(item, found)),
        _ => {}
    }
}

fn refused(ctx: &Ctx, file: &Path) -> Result<(), String> {
    let text = read(file)?;
    let first = text.lines().next().unwrap_or_default();
    if let Some(message) = first.strip_prefix("# expect: ") {
        return answers(apply(ctx, &["--dry-run=server"], &text), message);
    }
    let message = first
        .strip_prefix("# expect-update: ")
        .ok_or("the first line is neither `# expect: …` nor `# expect-update: …`")?;
    let (before, after) = text.split_once("\n---\n").ok_or("an update needs two documents separated by `---`")?;
    apply(ctx, &[], before).map_err(|error| format!("the first document must be accepted: {error}"))?;
    let update = answers(apply(ctx, &["--dry-run=server"], after), message);
    delete(ctx, before)?;
    update
}

fn answers(result: Result<String, String>, message: &str) -> Result<(), String> {
    match result {
        Ok(_) => Err(format!("was accepted; expected: {message}")),
        Err(error) if error.contains(message) => Ok(()),
        Err(error) => Err(format!("expected: {message}\n  answered: {error}")),
    }
}

/// Every other file of `examples/` is accepted, and listed in the folder's README.
pub fn examples_are_accepted(ctx: &Ctx) -> Result<(), String> {
    let readme = read(&root().join("examples/README.md"))?;
    all(yaml_files("examples")?.iter().map(|file| (name_of(file), accepted(ctx, file, &readme))))
}

fn accepted(ctx: &Ctx, file: &Path, readme: &str) -> Result<(), String> {
    let name = name_of(file);
    if readme.lines().filter(|line| line.starts_with(&format!("| [{name}]({name}) |"))).count() != 1 {
        return Err("is not listed once in examples/README.md".into());
    }
    let text = read(file)?;
    if !text.starts_with("# ") {
        return Err("does not start with a comment".into());
    }
    if name.starts_with("catalog") {
        return Catalog::parse(&name, &text).map(drop).map_err(|error| error.to_string());
    }
    all(text.split("\n---\n").enumerate().map(|(number, document)| {
        let mut object: Value = match serde_yaml::from_str(document) {
            Ok(object) => object,
            Err(error) => return (format!("document {}", number + 1), Err(error.to_string())),
        };
        // The operator makes a tenant's namespace; the schema is the same in any other.
        if object["metadata"]["namespace"].is_string() {
            object["metadata"]["namespace"] = json!("default");
        }
        let title = format!("document {}", number + 1);
        (title, apply(ctx, &["--dry-run=server"], &object.to_string()).map(drop))
    }))
}

/// `kubectl explain` has a description for every field of every custom resource.
pub fn crds_explain_everything(ctx: &Ctx) -> Result<(), String> {
    let mut objects = Vec::new();
    for crd in crds::all() {
        let schema = crd.spec.versions[0].schema.as_ref().and_then(|s| s.open_api_v3_schema.as_ref());
        let schema = serde_json::to_value(schema).map_err(|error| error.to_string())?;
        for field in ["spec", "status"] {
            let path = format!("{}.{field}", crd.spec.names.kind.to_lowercase());
            kubectl(ctx, &["explain", &path, "--recursive"])?;
            objects_below(&path, &schema["properties"][field], &mut objects);
        }
    }
    if objects.len() < 30 {
        return Err(format!("the walk reached {} objects only", objects.len()));
    }
    all(objects.into_iter().map(|(path, fields)| {
        let explained = kubectl(ctx, &["explain", &path]).and_then(|text| explains(&text, &fields));
        (path, explained)
    }))
}

/// The paths, as `kubectl explain` wants them, of a schema and of all objects below it, with their fields.
fn objects_below(path: &str, schema: &Value, found: &mut Vec<(String, Vec<String>)>) {
    let schema = if schema["items"].is_object() { &schema["items"] } else { schema };
    let Some(fields) = schema["properties"].as_object() else {
        return;
    };
    found.push((path.to_owned(), fields.keys().cloned().collect()));
    for (name, field) in fields {
        objects_below(&format!("{path}.{name}"), field, found);
    }
}

fn explains(text: &str, fields: &[String]) -> Result<(), String> {
    let lines: Vec<&str> = text.lines().collect();
    all(fields.iter().map(|field| {
        let start = lines.iter().position(|line| line.starts_with(&format!("  {field}\t<")));
        let described = start.is_some_and(|start| {
            let rest = &lines[start + 1..];
            let own = rest.iter().take_while(|line| !line.is_empty() && !line.contains('\t'));
            own.filter_map(|line| line.strip_prefix("    "))
                .any(|line| !line.trim().is_empty() && line != "<no description>")
        });
        (field.clone(), if described { Ok(()) } else { Err("has no description".into()) })
    }))
}

/// Columns and names, on a cluster of their own: a stored pool would be one more for the tenants of other tests, and
/// an operator would write the statuses that are looked at here.
pub fn columns_and_names_are_short() -> Result<(), String> {
    let mut ctx = Ctx::with(torpor_cluster::Options { nodes_per_pool: 0, ..Default::default() }, &[])?;
    ctx.operator.kill();
    all([
        ("printer columns".to_owned(), printer_columns_fit(&ctx)),
        ("short names".to_owned(), short_names_and_scale_work(&ctx)),
    ]
    .into_iter())
}

/// Printer columns fit into [`WIDTH`] characters with the longest names and words.
fn printer_columns_fit(ctx: &Ctx) -> Result<(), String> {
    let objects = [
        (
            tenant(LONG_NAME, json!({"tier": "premium"})),
            json!({
                "hibernation": {"stage": "ServicesStopped"}, "bots": {"desired": 50, "ready": 50},
                "namespace": format!("tenant-{LONG_NAME}"), "conditions": [unready("GoingToSleep")],
            }),
        ),
        (
            fleet(LONG_NAME, json!({"replicas": 200})),
            json!({
                "replicas": 200, "readyReplicas": 200, "conditions": [unready("Progressing")],
            }),
        ),
        (
            pool(LONG_NAME, json!({"tiers": ["basic", "premium"]})),
            json!({
                "nodes": {"total": 5000, "ready": 5000}, "tenants": 100_000, "conditions": [unready("Progressing")],
            }),
        ),
    ];
    all(objects.iter().map(|(object, status)| {
        let kind = object["kind"].as_str().unwrap_or_default().to_lowercase();
        let shown = apply(ctx, &[], &object.to_string())
            .and_then(|_| {
                let patch = json!({ "status": status }).to_string();
                let name = format!("{kind}/{LONG_NAME}");
                kubectl(ctx, &["patch", &name, "--subresource=status", "--type=merge", "-p", &patch])
            })
            .and_then(|_| kubectl(ctx, &["get", &kind]))
            .and_then(|table| fits(&table));
        let deleted = delete(ctx, &object.to_string());
        (kind, shown.and(deleted))
    }))
}

fn fits(table: &str) -> Result<(), String> {
    // The object is seconds old, and ages take up to six characters.
    let reserve = "1y180d".len() - "0s".len();
    let line = table.lines().find(|line| line.contains(LONG_NAME)).ok_or("the object is not in the table")?;
    let width = line.trim_end().len() + reserve;
    if width <= WIDTH { Ok(()) } else { Err(format!("{width} characters:\n{table}")) }
}

/// Short names, the category and `/scale` work; `kubectl scale` knows the bounds.
fn short_names_and_scale_work(ctx: &Ctx) -> Result<(), String> {
    let objects = [tenant("short-names", json!({})), fleet("short-names", json!({})), pool("short-names", json!({}))];
    let text = objects.each_ref().map(Value::to_string).join("\n---\n");
    apply(ctx, &[], &text)?;
    let checks = [
        (
            "short names",
            expect(kubectl(ctx, &["get", "tn,bf,wp", "-o", "name"]), &["tenant.", "botfleet.", "workerpool."]),
        ),
        ("category", expect(kubectl(ctx, &["get", "torpor", "-o", "name"]), &["tenant.", "botfleet.", "workerpool."])),
        ("scale", kubectl(ctx, &["scale", "bf/short-names", "--replicas=7"]).map(drop)),
        ("scaled", expect(kubectl(ctx, &["get", "bf/short-names", "-o=jsonpath={.spec.replicas}"]), &["7"])),
        (
            "scale bound",
            answers(kubectl(ctx, &["scale", "bf/short-names", "--replicas=201"]), "less than or equal to 200"),
        ),
        (
            "status of a new object",
            all(["tn", "bf", "wp"]
                .map(|kind| {
                    let name = format!("{kind}/short-names");
                    let seen = kubectl(ctx, &["get", &name, "-o=jsonpath={.status.observedGeneration}"]);
                    (kind.to_owned(), expect(seen, &["-1"]))
                })
                .into_iter()),
        ),
    ];
    let result = all(checks.map(|(name, result)| (name.to_owned(), result)).into_iter());
    result.and(delete(ctx, &text))
}

/// An explicit null is the same as no field, and conditions of two writers merge by their type.
pub fn nulls_and_conditions_merge(ctx: &Ctx) -> Result<(), String> {
    let object = tenant("nulls", json!({"hibernation": null, "database": null, "redis": {"storage": null}}));
    apply(ctx, &[], &object.to_string())?;
    let spec = kubectl(ctx, &["get", "tenant/nulls", "-o=jsonpath={.spec}"]);
    let defaults = expect(spec.clone(), &["\"storage\":\"5Gi\"", "\"image\":\"postgres:"]);
    let dropped = spec.and_then(|text| if text.contains("null") { Err(text) } else { Ok(()) });
    let merged = ["Ready", "Hibernated"].iter().try_for_each(|type_| {
        let mut condition = unready("Progressing");
        condition["type"] = json!(type_);
        let mut written = object.clone();
        written["spec"] = json!({"tier": "basic"});
        written["status"] = json!({ "conditions": [condition] });
        let manager = format!("--field-manager=test-{type_}").to_lowercase();
        let args = ["apply", "--server-side", "--force-conflicts", "--subresource=status", &manager, "-f", "-"];
        stdin(ctx, &args, &written.to_string()).map(drop)
    });
    let both = merged.and_then(|()| {
        expect(
            kubectl(ctx, &["get", "tenant/nulls", "-o=jsonpath={.status.conditions[*].type}"]),
            &["Ready", "Hibernated"],
        )
    });
    let checks = [("defaults", defaults), ("nulls", dropped), ("conditions", both)];
    let result = all(checks.map(|(name, result)| (name.to_owned(), result)).into_iter());
    result.and(delete(ctx, &object.to_string()))
}

fn expect(result: Result<String, String>, parts: &[&str]) -> Result<(), String> {
    let text = result?;
    match parts.iter().find(|part| !text.contains(**part)) {
        None => Ok(()),
        Some(part) => Err(format!("{part:?} is not in {text:?}")),
    }
}

fn tenant(name: &str, spec: Value) -> Value {
    object("Tenant", name, json!({"tier": "basic"}), spec)
}

fn fleet(name: &str, spec: Value) -> Value {
    let mut fleet = object("BotFleet", name, json!({"strategy": {"kind": "v1", "config": "strategy: x"}}), spec);
    fleet["metadata"]["namespace"] = json!("default");
    fleet
}

fn pool(name: &str, spec: Value) -> Value {
    let least = json!({"tiers": ["free"], "nodeSelector": {"no-node": "has-this-label"},
        "priority": {"class": format!("test-{}", name.len()), "value": 1}});
    object("WorkerPool", name, least, spec)
}

fn object(kind: &str, name: &str, mut least: Value, spec: Value) -> Value {
    for (key, value) in spec.as_object().into_iter().flatten() {
        least[key] = value.clone();
    }
    json!({"apiVersion": "torpor.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": least})
}

fn unready(reason: &str) -> Value {
    json!({"type": "Ready", "status": "Unknown", "reason": reason, "message": "A test.",
        "lastTransitionTime": "2026-01-01T00:00:00Z"})
}

/// Every failure of a list of checks, each under its name.
fn all(checks: impl Iterator<Item = (String, Result<(), String>)>) -> Result<(), String> {
    let failures: Vec<String> =
        checks.filter_map(|(name, result)| result.err().map(|error| format!("{name}: {error}"))).collect();
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
}

/// `kubectl apply` of a user: client-side, and strict about unknown fields.
fn apply(ctx: &Ctx, extra: &[&str], text: &str) -> Result<String, String> {
    let mut args = vec!["apply", "--server-side=false", "--validate=strict", "-f", "-"];
    args.extend(extra);
    stdin(ctx, &args, text)
}

fn delete(ctx: &Ctx, text: &str) -> Result<(), String> {
    stdin(ctx, &["delete", "--ignore-not-found", "--wait=false", "-f", "-"], text).map(drop)
}

fn kubectl(ctx: &Ctx, args: &[&str]) -> Result<String, String> {
    ctx.cluster.kubectl(args).map_err(|error| format!("{error:#}"))
}

fn stdin(ctx: &Ctx, args: &[&str], input: &str) -> Result<String, String> {
    ctx.cluster.kubectl_stdin(args, input).map_err(|error| format!("{error:#}"))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn yaml_files(folder: &str) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(root().join(folder)).map_err(|error| format!("{folder}: {error}"))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    Ok(files)
}

fn name_of(file: &Path) -> String {
    file.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn read(file: &Path) -> Result<String, String> {
    fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))
}

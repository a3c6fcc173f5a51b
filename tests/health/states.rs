//! The states that Tenants, BotFleets and WorkerPools can be in, as GitOps tools see them, and what each tool should say.
//!
//! Both the test of recorded versions and the one that watches a live cluster judge by this list.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use torpor_cluster::kstatus::{Rules, Verdict};

/// The health that Argo CD should show. kstatus has another word for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// As it should be: `Current`.
    Healthy,
    /// On its way: `InProgress`, and `Terminating` once it is deleted.
    Progressing,
    /// Somebody must act: `Failed`.
    Degraded,
}

use Health::{Degraded, Healthy, Progressing};

/// Every state with its health. A change that the operator has not seen is a state of its own, and so is a deletion.
pub const STATES: &[(&str, Health)] = &[
    ("tenant-new", Progressing),
    ("tenant-adopted", Progressing),
    ("tenant-progressing", Progressing),
    ("tenant-ready", Healthy),
    ("tenant-ready-held-awaiting-approval", Healthy),
    ("tenant-going-to-sleep", Progressing),
    ("tenant-asleep-bots-stopped", Healthy),
    ("tenant-asleep-services-stopped", Healthy),
    ("tenant-asleep-database-only", Healthy),
    ("tenant-asleep-database-only-suspended", Healthy),
    ("tenant-waking-up", Progressing),
    ("tenant-stop-overdue", Progressing),
    ("tenant-waiting", Progressing),
    ("tenant-retrying", Progressing),
    ("tenant-invalid-spec", Degraded),
    ("tenant-not-owned", Degraded),
    ("tenant-refused", Degraded),
    ("tenant-undecodable", Degraded),
    ("tenant-changed-ready", Progressing),
    ("tenant-changed-asleep-database-only", Progressing),
    ("tenant-changed-invalid-spec", Progressing),
    ("tenant-deleted-ready", Progressing),
    ("tenant-deleted-deleting", Progressing),
    ("bot-fleet-new", Progressing),
    ("bot-fleet-adopted", Progressing),
    ("bot-fleet-progressing", Progressing),
    ("bot-fleet-ready", Healthy),
    ("bot-fleet-over-tier", Healthy),
    ("bot-fleet-paused", Healthy),
    ("bot-fleet-going-to-sleep", Progressing),
    ("bot-fleet-asleep", Healthy),
    ("bot-fleet-waking-up", Progressing),
    ("bot-fleet-stop-overdue", Progressing),
    ("bot-fleet-waiting", Progressing),
    ("bot-fleet-retrying", Progressing),
    ("bot-fleet-invalid-spec", Degraded),
    ("bot-fleet-refused", Degraded),
    ("bot-fleet-undecodable", Degraded),
    ("bot-fleet-changed-ready", Progressing),
    ("bot-fleet-deleted-over-tier", Progressing),
    ("bot-fleet-deleted-deleting", Progressing),
    ("worker-pool-new", Progressing),
    ("worker-pool-ready", Healthy),
    ("worker-pool-waiting", Progressing),
    ("worker-pool-not-owned", Degraded),
    ("worker-pool-undecodable", Degraded),
    ("worker-pool-changed-ready", Progressing),
];

/// The state of one version, named as in [`STATES`]; versions between may have names that are not there.
pub fn state(object: &Value) -> String {
    let ready = condition(object, "Ready");
    let mut words = vec![kebab(text(&object["kind"]))];
    if object["metadata"]["deletionTimestamp"].is_string() {
        words.push("deleted".to_owned());
    } else if ready.is_null() {
        let adopted = object["metadata"]["finalizers"].is_array();
        words.push(if adopted { "adopted" } else { "new" }.to_owned());
    } else if ready["observedGeneration"] != object["metadata"]["generation"] {
        words.push("changed".to_owned());
    }
    words.push(kebab(text(&ready["reason"])));
    if ready["reason"] == "Asleep" {
        words.push(kebab(text(&object["status"]["hibernation"]["stage"])));
        words.extend((object["spec"]["suspended"] == true).then(|| "suspended".to_owned()));
    }
    let held = condition(object, "SleepHeld");
    words.extend((!held.is_null()).then(|| format!("held-{}", kebab(text(&held["reason"])))));
    words.retain(|word| !word.is_empty());
    words.join("-")
}

/// The health that an object should have by its conditions, if its state is not in the list.
pub fn wanted(object: &Value) -> Health {
    let listed = STATES.iter().find(|(name, _)| *name == state(object));
    if let Some((_, health)) = listed {
        return *health;
    }
    let holds = |type_: &str| condition(object, type_)["status"] == "True";
    let handled = object["status"]["observedGeneration"] == object["metadata"]["generation"];
    if object["metadata"]["deletionTimestamp"].is_string() || !handled || holds("Reconciling") {
        Progressing
    } else if holds("Stalled") {
        Degraded
    } else if holds("Ready") {
        Healthy
    } else {
        Progressing
    }
}

/// An error unless the tools say of an object what they should, and so the same.
pub fn check(object: &Value, verdict: &Verdict) -> Result<(), String> {
    let deleted = object["metadata"]["deletionTimestamp"].is_string();
    let (argocd, kstatus) = match wanted(object) {
        Healthy => ("Healthy", "Current"),
        Progressing if deleted => ("Progressing", "Terminating"),
        Progressing => ("Progressing", "InProgress"),
        Degraded => ("Degraded", "Failed"),
    };
    // Tenants must not wait for nodes that come only once there are tenants; see examples/gitops/flux/torpor.yaml.
    let flux = if state(object) == "worker-pool-waiting" { "Current" } else { kstatus };
    let told = (verdict.argocd.status.as_str(), verdict.kstatus.status.as_str(), verdict.flux.status.as_str());
    if told != (argocd, kstatus, flux) {
        return Err(format!(
            "Argo CD, kstatus and Flux say {told:?}, expected {:?}: {object}",
            (argocd, kstatus, flux)
        ));
    }
    let ready = condition(object, "Ready");
    let current = ready["observedGeneration"] == object["metadata"]["generation"];
    let reason = text(&ready["reason"]);
    if !deleted && current && !verdict.argocd.message.starts_with(&format!("{reason}: ")) {
        return Err(format!("Argo CD's message {:?} does not give the reason {reason}", verdict.argocd.message));
    }
    Ok(())
}

/// The rules exactly as they stand in the examples.
pub fn rules() -> Rules {
    let argocd = documents("examples/gitops/argocd/argocd-cm.yaml");
    let flux = documents("examples/gitops/flux/torpor.yaml");
    let expressions = flux.iter().filter_map(|object| object["spec"]["healthCheckExprs"].as_array()).flatten();
    Rules { argocd: argocd[0]["data"].clone(), flux: expressions.cloned().collect() }
}

/// The documents of a YAML file of the project.
pub fn documents(path: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    objects(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The documents of a YAML text, less those that are empty.
pub fn objects(text: &str) -> Result<Vec<Value>, String> {
    let read = serde_yaml::Deserializer::from_str(text).map(Value::deserialize);
    let all: Vec<Value> = read.collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    Ok(all.into_iter().filter(|document| !document.is_null()).collect())
}

/// Where the recorded versions are, one file for each state.
pub fn recorded() -> PathBuf {
    root().join("tests/health/recorded")
}

/// The project's folder.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn condition<'a>(object: &'a Value, type_: &str) -> &'a Value {
    let conditions = object["status"]["conditions"].as_array();
    conditions.and_then(|all| all.iter().find(|condition| condition["type"] == type_)).unwrap_or(&Value::Null)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn kebab(word: &str) -> String {
    let mut kebab = String::new();
    for letter in word.chars() {
        if letter.is_uppercase() && !kebab.is_empty() {
            kebab.push('-');
        }
        kebab.extend(letter.to_lowercase());
    }
    kebab
}

//! What GitOps tools say of Torpor's objects: recorded versions of every state, judged by the tools' own code under the rules of
//! `examples/gitops`. `TORPOR_RECORD_HEALTH=1 cargo test --test integration -- health` records them anew.

#![allow(clippy::disallowed_methods, reason = "a test reads its files")]

#[path = "health/states.rs"]
mod states;

use std::collections::BTreeSet;

use serde_json::{Value, json};
use torpor_cluster::kstatus::{Judge, Rules};

use states::{STATES, check, recorded, rules, state};

/// The recorded version of each state, by the state's name.
fn versions() -> Vec<(String, Value)> {
    let files = std::fs::read_dir(recorded()).expect("the folder of recorded versions can be read");
    let read = files.map(|file| {
        let path = file.expect("its entries can be read").path();
        let name = path.file_stem().and_then(|name| name.to_str()).expect("a name").to_owned();
        let text = std::fs::read_to_string(&path).expect("the version can be read");
        (name, serde_json::from_str(&text).expect("the version is JSON"))
    });
    let mut versions: Vec<_> = read.collect();
    versions.sort_by(|a: &(String, Value), b| a.0.cmp(&b.0));
    versions
}

fn judge(rules: &Rules) -> Judge {
    Judge::start(rules).expect("the judge can be built and started")
}

#[test]
fn every_state_is_recorded() {
    let listed: BTreeSet<String> = STATES.iter().map(|(name, _)| (*name).to_owned()).collect();
    let versions = versions();
    let found: BTreeSet<String> = versions.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(found, listed, "tests/health/recorded and STATES of tests/health/states.rs differ");
    for (name, version) in &versions {
        assert_eq!(&state(version), name, "the file's name is not the state of its version");
    }
}

#[test]
fn every_reason_is_recorded() {
    let text = std::fs::read_to_string(states::root().join("docs/conditions.md")).expect("it can be read");
    let table = text.split("\n## ").find(|part| part.starts_with("Reasons of Ready")).expect("its table");
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let documented: BTreeSet<&str> =
        rows.filter(|(_, rest)| rest.starts_with(" | Re") || rest.starts_with(" | St")).map(|(name, _)| name).collect();
    assert!(documented.len() > 12, "the table was not understood: {documented:?}");
    let versions = versions();
    let conditions = versions.iter().filter_map(|(_, version)| version["status"]["conditions"].as_array()).flatten();
    let seen: BTreeSet<&str> =
        conditions.filter(|one| one["type"] == "Ready").filter_map(|one| one["reason"].as_str()).collect();
    assert_eq!(documented, seen, "reasons of docs/conditions.md and of the recorded versions");
}

#[test]
fn tools_agree_on_every_recorded_version() {
    let mut judge = judge(&rules());
    let mut failures = Vec::new();
    for (name, version) in versions() {
        let verdict = judge.judge(&version).expect("it is judged");
        println!(
            "{name:38} {:12} {:12} {:12} {}",
            verdict.argocd.status, verdict.kstatus.status, verdict.flux.status, verdict.argocd.message
        );
        failures.extend(check(&version, &verdict).err());
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Scripts that are wrong in one way each; every one must be found out by some recorded version.
#[test]
fn wrong_rules_are_found_out() {
    let right = rules();
    let key = "resource.customizations.health.torpor.dev_Tenant";
    let script = right.argocd[key].as_str().expect("a script");
    let mistakes = [
        ("status.observedGeneration ~= obj.metadata.generation", "false"),
        ("holds(\"Reconciling\")", "false"),
        ("holds(\"Stalled\")", "false"),
        ("health(\"Healthy\", found.Ready)", "health(\"Suspended\", found.Ready)"),
        ("health(\"Degraded\", found.Stalled)", "health(\"Progressing\", found.Stalled)"),
        ("condition.reason .. \": \" .. condition.message", "condition.message"),
    ];
    for (part, wrong) in mistakes {
        assert!(script.contains(part), "the script has no {part}");
        let mut rules = right.clone();
        rules.argocd[key] = json!(script.replace(part, wrong));
        assert!(found_out("Tenant", &rules), "no recorded version notices {wrong} in place of {part}");
    }
    for (field, part) in
        [("failed", "'Stalled'"), ("current", "'Waiting'"), ("current", "'True'"), ("current", "'Ready'")]
    {
        let mut rules = right.clone();
        let expression = rules.flux[0][field].as_str().expect("an expression").to_owned();
        assert!(expression.contains(part), "{field} has no {part}");
        rules.flux[0][field] = json!(expression.replace(part, "'x'"));
        assert!(found_out("WorkerPool", &rules), "no recorded version notices that {field} lacks {part}");
    }
}

fn found_out(kind: &str, rules: &Rules) -> bool {
    let mut judge = judge(rules);
    let mut of_kind = versions().into_iter().filter(|(_, version)| version["kind"] == kind);
    of_kind.any(|(_, version)| check(&version, &judge.judge(&version).expect("it is judged")).is_err())
}

#[test]
fn waves_wait_for_applications() {
    let mut judge = judge(&rules());
    let mut health = |status: Value| {
        let application = json!({
            "apiVersion": "argoproj.io/v1alpha1", "kind": "Application",
            "metadata": {"name": "torpor-pools", "namespace": "argocd"}, "spec": {}, "status": status,
        });
        let told = judge.judge(&application).expect("it is judged").argocd;
        (told.status, told.message)
    };
    let expected = |status: &str, message: &str| (status.to_owned(), message.to_owned());
    assert_eq!(health(json!({})), expected("Progressing", ""));
    assert_eq!(health(json!({"health": {}})), expected("Progressing", ""));
    assert_eq!(health(json!({"health": {"status": "Healthy"}})), expected("Healthy", ""));
    assert_eq!(health(json!({"health": {"status": "Degraded", "message": "why"}})), expected("Degraded", "why"));
}

/// The judge has no more to give to scripts than Argo CD has, and says when one does not answer.
#[test]
fn scripts_that_argo_cd_would_not_run_are_refused() {
    for script in ["return {status = 'Fine'}", "return string.rep('x', 2)", "while true do end", "return nil", "hs ="] {
        let mut rules = rules();
        rules.argocd["resource.customizations.health.torpor.dev_Tenant"] = json!(script);
        let tenant = json!({"apiVersion": "torpor.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": "a"}});
        let told = judge(&rules).judge(&tenant);
        assert!(told.is_err(), "{script}: {told:?}");
    }
}

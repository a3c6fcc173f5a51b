//! The charts as Helm renders them, without a cluster; `tests/integration/install` puts them on one.
//!
//! `UPDATE_GOLDEN=1 cargo test --test charts` writes what is generated anew: the recorded renders, the copies of the
//! definitions, and the tables of values in the charts' README files.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a test reads and writes its files")]

mod bad;
mod copies;
mod effects;
mod flags;
mod golden;
mod notes;
mod pods;
mod readme;
mod rules;
mod schema;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde::Deserialize;
use serde_json::Value;
use torpor_cluster::Tools;

/// The charts.
const CHARTS: [&str; 2] = ["torpor", "torpor-crds"];
/// Sets of values that must render, by name: those of examples/, and those of this folder.
const RENDERS: [(&str, &[&str]); 7] = [
    ("default", &[]),
    ("eks", &["examples/eks/values.yaml"]),
    ("gke", &["examples/gke/values.yaml"]),
    ("aks", &["examples/aks/values.yaml"]),
    ("air-gapped", &["tests/charts/values/air-gapped.yaml"]),
    ("monitoring", &["tests/charts/values/monitoring.yaml"]),
    ("everything", &["tests/charts/values/everything.yaml"]),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn updating() -> bool {
    std::env::var_os("UPDATE_GOLDEN").is_some()
}

/// Fails where a generated file is not what it would be now; with `UPDATE_GOLDEN` it is written instead.
fn generated(path: &str, now: &str) {
    let file = root().join(path);
    if updating() {
        std::fs::write(&file, now).unwrap_or_else(|error| panic!("{path}: {error}"));
        return;
    }
    let recorded = std::fs::read_to_string(&file).unwrap_or_default();
    let (mut old, mut new) = (recorded.lines(), now.lines());
    for number in 1.. {
        match (old.next(), new.next()) {
            (None, None) => break,
            (was, is) => {
                assert!(was == is, "{path}:{number}: was {was:?}, is {is:?}; if that is meant, run `make generate`");
            }
        }
    }
    assert!(recorded == now, "{path} differs in its line ends; run `make generate`");
}

/// Helm in the project's folder, with nothing of the user's own.
fn helm(arguments: &[&str]) -> Output {
    let helm = Tools::ensure().expect("helm can be built").bin("helm");
    let home = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("helm");
    Command::new(helm)
        .args(arguments)
        .current_dir(root())
        .env("HELM_CONFIG_HOME", home.join("config"))
        .env("HELM_CACHE_HOME", home.join("cache"))
        .env("HELM_DATA_HOME", home.join("data"))
        .env("KUBECONFIG", "/nonexistent")
        .output()
        .expect("helm starts")
}

/// What Helm prints, or what it complains of.
fn ran(arguments: &[&str]) -> Result<String, String> {
    let output = helm(arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// A chart with files of values, as in the namespace that the documents name.
fn render(chart: &str, values: &[&str]) -> Result<String, String> {
    let chart = format!("charts/{chart}");
    let mut arguments = vec!["template", "torpor", &chart, "--namespace", "torpor-system"];
    arguments.extend(values.iter().flat_map(|file| ["--values", file]));
    ran(&arguments)
}

fn objects(text: &str) -> Vec<Value> {
    let documents =
        serde_yaml::Deserializer::from_str(text).map(|document| Value::deserialize(document).expect("YAML"));
    documents.filter(|document| !document.is_null()).collect()
}

/// The one object of a kind and name.
fn object<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("there is no {kind} {name}"))
}

//! Bad input: one clear line with the place and the reason, exit code 2, and nothing half done.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a test reads and writes its files")]

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const CATALOG: &str = include_str!("../examples/catalog-demo.yaml");
const KUBECONFIG: &str = "
apiVersion: v1
kind: Config
current-context: a
clusters: [{name: a, cluster: {server: 'https://127.0.0.1:1'}}]
contexts: [{name: a, context: {cluster: a, user: a}}]
users: [{name: a, user: {}}]
";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// A file of this test run.
fn file(name: &str, text: &str) -> String {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, text).expect("the file can be written");
    path.display().to_string()
}

fn torpor(arguments: &[&str], kubeconfig: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_torpor"));
    command.args(arguments).current_dir(root()).env("KUBECONFIG", kubeconfig).env_remove("RUST_LOG");
    // In a cluster it would wait for the API server.
    command.env_remove("TORPOR_CATALOG").env_remove("KUBERNETES_SERVICE_HOST").output().expect("torpor starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Lines that a refusal printed, after exit code 2 and an empty standard output.
fn refused(arguments: &[&str], kubeconfig: &str) -> Vec<String> {
    let output = torpor(arguments, kubeconfig);
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {errors}");
    assert_eq!(text(&output.stdout), "", "{arguments:?} printed something although it failed");
    errors.lines().map(str::to_owned).collect()
}

/// The only line of a refusal.
fn line(arguments: &[&str], kubeconfig: &str) -> String {
    let lines = refused(arguments, kubeconfig);
    assert_eq!(lines.len(), 1, "{arguments:?}: {}", lines.join("\n"));
    assert!(lines[0].starts_with("torpor: "), "{arguments:?}: {}", lines[0]);
    lines[0].clone()
}

fn contains(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

#[test]
fn a_bad_catalogue_is_refused_with_line_and_reason() {
    let number = |needle: &str| CATALOG.lines().position(|line| line.contains(needle)).expect(needle) + 1;
    let bots = number("maxBots: 1");
    let cases = [
        ("sum", CATALOG.replacen("memory: 160Mi", "memory: 161Mi", 1), format!(":{}: ", number("total:")), "sum up to"),
        ("quantity", CATALOG.replacen("200m", "2 cores", 1), format!(":{}: ", number("bot:")), "is not a quantity"),
        ("type", CATALOG.replacen("maxBots: 1", "maxBots: one", 1), format!("at line {bots}"), "maxBots"),
        ("key", CATALOG.replacen("maxBots: 1", "maxBotz: 1", 1), format!("at line {bots}"), "maxBotz"),
        ("outermost", format!("{CATALOG}\nbots: {{}}\n"), format!("at line {}", CATALOG.lines().count() + 2), "bots"),
        ("yaml", "tiers: {\n".to_owned(), "at line 2".to_owned(), "while parsing"),
        ("first", "tier: {}\n".to_owned(), "at line 1".to_owned(), "unknown field"),
        ("empty", String::new(), "at line 1".to_owned(), "missing field"),
    ];
    for (name, catalog, place, reason) in cases {
        let path = file(&format!("catalog-{name}.yaml"), &catalog);
        for arguments in [
            vec!["operator", "--catalog", &path],
            vec!["render", "--catalog", &path, "-f", "examples/tenant-basic.yaml"],
        ] {
            contains(&line(&arguments, ""), &[&path, &place, reason]);
        }
    }
    contains(&line(&["operator", "--catalog", "nowhere.yaml"], ""), &["nowhere.yaml", "No such file"]);
    contains(&line(&["operator", "--catalog", "examples"], ""), &["examples: ", "directory"]);
}

#[test]
fn a_bad_flag_is_named() {
    for (arguments, parts) in [
        (["operator", "--probe-address", "here"], ["--probe-address", "'here'"]),
        (["operator", "--lease-seconds", "1"], ["--lease-seconds", "3..=3600"]),
        (["operator", "--user-namespaces", "maybe"], ["--user-namespaces", "'maybe'"]),
        (["operator", "--volume-access", "ReadWriteMany"], ["--volume-access", "'ReadWriteMany'"]),
        (["operator", "--catalogue", "x"], ["--catalogue", "unexpected"]),
        (["render", "--stage", "Asleep"], ["--stage", "one of Active, BotsStopped, ServicesStopped, DatabaseOnly"]),
        (["crds", "--dir", "nowhere"], ["nowhere", "No such file"]),
    ] {
        contains(&refused(&arguments, "")[0], &parts);
    }
    let output = Command::new(env!("CARGO_BIN_EXE_torpor")).arg("operator").env("TORPOR_LEASE_SECONDS", "x").output();
    let output = output.expect("torpor starts");
    assert_eq!(output.status.code(), Some(2));
    contains(&text(&output.stderr), &["--lease-seconds", "'x'"]);
    let output = Command::new(env!("CARGO_BIN_EXE_torpor")).arg("operator").env("RUST_LOG", "=x=").output();
    let output = output.expect("torpor starts");
    assert_eq!(output.status.code(), Some(2));
    contains(&text(&output.stderr), &["RUST_LOG", "=x="]);
}

#[test]
fn a_bad_kubeconfig_is_one_line() {
    let port = "--probe-address=127.0.0.1:0";
    let cases = [
        ("nowhere", "nowhere.kubeconfig".to_owned(), "nowhere.kubeconfig"),
        ("garbage", file("garbage.kubeconfig", "clusters: [\n"), "line 1"),
        ("text", file("text.kubeconfig", "not a kubeconfig\n"), "KUBECONFIG"),
        ("empty", file("empty.kubeconfig", ""), "current context"),
        ("folder", env!("CARGO_TARGET_TMPDIR").to_owned(), "directory"),
        ("context", file("context.kubeconfig", &KUBECONFIG.replace("context: a", "context: b")), "context: b"),
        ("address", file("address.kubeconfig", &KUBECONFIG.replace("https://127.0.0.1:1", "nonsense")), "nonsense"),
        ("unreachable", file("unreachable.kubeconfig", KUBECONFIG), "https://127.0.0.1:1/ does not answer"),
        ("refused", file("refused.kubeconfig", KUBECONFIG), "Connection refused"),
    ];
    for (name, path, part) in cases {
        let message = line(&["operator", port], &path);
        assert!(message.contains(part), "{name}: {part:?} is not in {message:?}");
    }
}

#[test]
fn a_probe_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("an address").to_string();
    let message = line(&["operator", "--probe-address", &address], &file("port.kubeconfig", KUBECONFIG));
    contains(&message, &[&address, "in use"]);
}

fn examples(folder: &str) -> Vec<(String, String)> {
    let files = fs::read_dir(root().join(folder)).expect("the folder can be read");
    let mut files: Vec<PathBuf> = files.map(|file| file.expect("a file").path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    let read = |file: &PathBuf| fs::read_to_string(file).expect("the file can be read");
    let name = |file: &PathBuf| file.strip_prefix(root()).expect("below the root").display().to_string();
    files.iter().map(|file| (name(file), read(file))).collect()
}

#[test]
fn every_valid_example_is_rendered() {
    for (name, text_of_it) in examples("examples") {
        let is = |kind: &str| text_of_it.lines().any(|line| line == format!("kind: {kind}"));
        if name.contains("/rbac-") || name.contains("/ingress-") {
            // Nothing of Torpor's own to render; the integration tests apply it.
            continue;
        }
        if name.contains("/catalog") {
            let output = torpor(&["render", "--catalog", &name, "-f", "examples/tenant-free.yaml"], "");
            assert!(output.status.success(), "{name}: {}", text(&output.stderr));
        } else if is("Tenant") {
            let output = torpor(&["render", "-f", &name], "");
            assert!(output.status.success(), "{name}: {}", text(&output.stderr));
            contains(&text(&output.stdout), &["kind: Namespace", "kind: StatefulSet"]);
            assert_eq!(text(&output.stderr), "", "{name}");
        } else {
            assert!(is("WorkerPool"), "{name} is of no known kind");
            let output = torpor(&["render", "-f", &name, "-f", "examples/tenant-basic.yaml"], "");
            assert!(output.status.success(), "{name}: {}", text(&output.stderr));
        }
    }
}

/// What the API server refuses at creation, `torpor render` refuses without one: file, document, field, reason.
#[test]
fn every_invalid_example_is_refused_without_a_cluster() {
    let mut same_words = 0;
    let mut checked = 0;
    for (name, text_of_it) in examples("examples/invalid") {
        let first = text_of_it.lines().next().unwrap_or_default();
        // Rules on updates need the object of before, which only a cluster has.
        let Some(expected) = first.strip_prefix("# expect: ") else { continue };
        let lines = refused(&["render", "-f", &name], "");
        for line in &lines {
            let (place, reason) = line.split_once("): ").unwrap_or_else(|| panic!("{name}: no object in {line:?}"));
            let place = place.trim_start_matches("torpor: ");
            assert!(place.starts_with(&format!("{name}: document 1 (")), "{name}: no place in {line:?}");
            let field = reason.split([':', ' ']).next().unwrap_or_default();
            // A rule over name and spec together names both in its own words.
            let known = field.starts_with("spec") || field == "metadata.name" || reason.contains(expected);
            let known = known || reason.starts_with("torpor.dev/v1 Tenant is unknown");
            assert!(known, "{name}: no field in {line:?}");
        }
        checked += 1;
        same_words += usize::from(lines.iter().any(|line| line.contains(expected)));
    }
    assert!(checked >= 100, "only {checked} examples were checked");
    println!("{checked} invalid examples refused, {same_words} in the API server's words");
}

#[test]
fn one_bad_document_keeps_everything_from_being_rendered() {
    let good = fs::read_to_string(root().join("examples/tenant-basic.yaml")).expect("an example");
    let path = file("half.yaml", &format!("{good}---\n{}", good.replace("tier: basic", "tier: gold")));
    contains(&line(&["render", "-f", &path], ""), &[&path, "document 2 (Tenant ", "spec.tier"]);
    let path = file("broken.yaml", &format!("{good}---\na: [\n"));
    contains(&line(&["render", "-f", &path], ""), &[&path, "document 2: not YAML"]);
    contains(&line(&["render", "-f", "nowhere.yaml"], ""), &["nowhere.yaml", "No such file"]);
}

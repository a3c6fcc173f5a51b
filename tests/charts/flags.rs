//! Every flag of the three programs can be set by values, and the programs themselves take what is rendered.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use super::{RENDERS, object, objects, render};

const COMPONENTS: [&str; 3] = ["operator", "hibernator", "gateway"];

fn torpor() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_torpor"));
    command.env_clear();
    command
}

/// Environment variables that `--help` names.
fn known(component: &str) -> BTreeSet<String> {
    let help = torpor().args([component, "--help"]).output().expect("torpor starts");
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let names = help.split("[env: ").skip(1).filter_map(|rest| rest.split('=').next());
    let names: BTreeSet<String> = names.map(str::to_owned).collect();
    assert!(names.len() >= 10, "{component} --help names {names:?} only");
    names
}

fn environment(objects: &[Value], component: &str) -> BTreeMap<String, String> {
    let deployment = object(objects, "Deployment", &format!("torpor-{component}"));
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    let variables = container["env"].as_array().expect("variables");
    let pairs = variables.iter().map(|variable| {
        let text = |field: &str| variable[field].as_str().map(str::to_owned);
        (text("name").expect("a name"), text("value").unwrap_or_default())
    });
    let all: BTreeMap<String, String> = pairs.collect();
    assert_eq!(all.len(), variables.len(), "{component} has a variable twice");
    all
}

/// A flag that is new in a program fails this until the chart can set it; so does one that has gone.
#[test]
fn every_flag_can_be_set() {
    let objects = objects(&render("torpor", &["tests/charts/values/everything.yaml"]).expect("it renders"));
    for component in COMPONENTS {
        let set: BTreeSet<String> =
            environment(&objects, component).into_keys().filter(|name| name.starts_with("TORPOR_")).collect();
        assert_eq!(set, known(component), "{component}: what the chart sets, and what the program knows");
    }
}

/// No set of values gives a program a variable that it does not know, or a flag that is not its own.
#[test]
fn nothing_else_is_set() {
    for (name, values) in RENDERS {
        let objects = objects(&render("torpor", values).expect("it renders"));
        for component in COMPONENTS {
            let known = known(component);
            for variable in environment(&objects, component).into_keys().filter(|name| name.starts_with("TORPOR_")) {
                assert!(known.contains(&variable), "{name}: {component} does not know {variable}");
            }
            let deployment = object(&objects, "Deployment", &format!("torpor-{component}"));
            let arguments = &deployment["spec"]["template"]["spec"]["containers"][0]["args"];
            assert_eq!(*arguments, serde_json::json!([component]), "{name}");
        }
    }
}

/// Files of a container, where a test puts them.
fn folder(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("charts").join(name);
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
}

/// Starts a program with the environment of its rendered Deployment. Addresses and paths are the test's own; without a
/// cluster the farthest that it gets is the kubeconfig.
fn started(objects: &[Value], component: &str, name: &str, catalog: Option<&str>) -> Output {
    let folder = folder(&format!("{name}-{component}"));
    let file = |name: &str, text: &str| {
        std::fs::write(folder.join(name), text).expect("a file");
        folder.join(name).display().to_string()
    };
    let mut command = torpor();
    command.arg(component);
    for (variable, value) in environment(objects, component) {
        let value = match variable.as_str() {
            "TORPOR_PROBE_ADDRESS" | "TORPOR_GATEWAY_ADDRESS" => {
                assert!(value.parse::<std::net::SocketAddr>().is_ok(), "{value}");
                "127.0.0.1:0".to_owned()
            }
            "TORPOR_CATALOG" => {
                let rendered = &object(objects, "ConfigMap", "torpor-catalog")["data"];
                let at = Path::new(&value).file_name().and_then(|name| name.to_str()).expect("a name");
                file("tiers.yaml", catalog.or(rendered[at].as_str()).expect("the file that the variable names"))
            }
            "TORPOR_WEBHOOK_KEY_FILE" | "TORPOR_LINK_KEY_FILE" => file("key", "0123456789abcdef0123456789abcdef\n"),
            "TORPOR_WEBHOOK_URL" if value.is_empty() => "https://user:password@example.com/hook".to_owned(),
            "TORPOR_TLS_CERT_FILE" => file("tls.crt", &pair().0),
            "TORPOR_TLS_KEY_FILE" => file("tls.key", &pair().1),
            // Of the image, not of this machine.
            "SSL_CERT_FILE" => continue,
            _ => value,
        };
        command.env(variable, value);
    }
    command.env("KUBECONFIG", folder.join("nowhere")).output().expect("torpor starts")
}

/// A certificate and its key; the same for all, since certificate and key are written one after the other.
fn pair() -> &'static (String, String) {
    static PAIR: std::sync::OnceLock<(String, String)> = std::sync::OnceLock::new();
    PAIR.get_or_init(|| {
        let made = rcgen::generate_simple_self_signed(["torpor-gateway".to_owned()]).expect("a certificate");
        (made.cert.pem(), made.signing_key.serialize_pem())
    })
}

#[test]
fn programs_take_what_is_rendered() {
    for (name, values) in RENDERS {
        let objects = objects(&render("torpor", values).expect("it renders"));
        for component in COMPONENTS {
            let output = started(&objects, component, name, None);
            let errors = String::from_utf8_lossy(&output.stderr);
            let last = errors.lines().last().unwrap_or_default();
            assert!(last.starts_with("torpor: no usable kubeconfig"), "{name}: {component} stopped before: {errors}");
        }
    }
}

/// A catalogue that contradicts itself passes the schema and is refused by the program at its start, with the line; the
/// Deployment's rollout stops there.
#[test]
fn a_bad_catalogue_stops_the_start() {
    let objects = objects(&render("torpor", &["tests/charts/values/everything.yaml"]).expect("it renders"));
    let good = object(&objects, "ConfigMap", "torpor-catalog")["data"]["tiers.yaml"].as_str().expect("a catalogue");
    let bad = good.replacen("memory: 512Mi", "memory: 513Mi", 3);
    assert_ne!(good, bad);
    for component in ["operator", "hibernator"] {
        let output = started(&objects, component, "bad-catalogue", Some(&bad));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{component}: {errors}");
        assert!(errors.contains("tiers.yaml:") && errors.contains("sum up to"), "{component}: {errors}");
    }
}

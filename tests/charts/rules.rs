//! The alerts: they speak of metrics that there are, and fire when they should, as Prometheus' own engine judges.

use std::collections::BTreeSet;
use std::process::Command;

use torpor::metrics;

use super::{object, objects, ran, read, render, root};

#[test]
fn alerts_speak_of_known_metrics() {
    let rules = read("charts/torpor/files/rules.yaml");
    let known: BTreeSet<&str> = metrics::describe().iter().map(|metric| metric.name).collect();
    let words = rules.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let used: BTreeSet<&str> = words.filter(|word| word.starts_with("torpor_")).collect();
    assert!(used.len() >= 8, "{used:?}");
    for metric in used {
        assert!(known.contains(metric.trim_end_matches("_bucket")), "there is no metric {metric}");
    }
}

#[test]
fn each_alert_has_its_section_in_the_runbook() {
    let rules: serde_json::Value = serde_yaml::from_str(&read("charts/torpor/files/rules.yaml")).expect("YAML");
    let runbook = read("docs/alerts.md");
    let alerts = rules["groups"][0]["rules"].as_array().expect("rules");
    assert_eq!(alerts.len(), runbook.lines().filter(|line| line.starts_with("## Torpor")).count());
    for alert in alerts {
        let name = alert["alert"].as_str().expect("a name");
        assert!(runbook.contains(&format!("\n## {name}\n")), "{name} is missing in docs/alerts.md");
        assert_eq!(alert["annotations"]["runbook"], format!("docs/alerts.md#{}", name.to_lowercase()));
    }
}

#[test]
fn the_rules_are_rendered_as_they_stand() {
    let objects = objects(&render("torpor", &["tests/charts/values/monitoring.yaml"]).expect("it renders"));
    let plain: serde_json::Value = serde_yaml::from_str(&read("charts/torpor/files/rules.yaml")).expect("YAML");
    assert_eq!(object(&objects, "PrometheusRule", "torpor")["spec"], plain);
}

/// Nobody is called for a component that is not to run; all other alerts stay.
#[test]
fn a_component_without_replicas_has_no_alerts() {
    let rules = |replicas: &str| {
        let enabled = "monitoring.prometheusRule.enabled=true";
        let arguments = ["template", "torpor", "charts/torpor", "--set", enabled, "--set", replicas];
        let objects = objects(&ran(&arguments).expect("it renders"));
        let spec = &object(&objects, "PrometheusRule", "torpor")["spec"];
        spec["groups"][0]["rules"].as_array().expect("rules").clone()
    };
    let all = rules("hibernator.replicas=1");
    for (component, expected) in [
        ("hibernator", ["TorporHibernatorLeaders", "TorporBreakerOpen", "TorporWarningsFail"].as_slice()),
        ("gateway", ["TorporGatewayDown", "TorporGatewayErrors"].as_slice()),
    ] {
        let left = rules(&format!("{component}.replicas=0"));
        let (kept, gone): (Vec<_>, Vec<_>) = all.iter().partition(|rule| left.contains(rule));
        assert_eq!(kept.len(), left.len(), "{component}: an alert is not as it stands");
        let names: Vec<&str> = gone.iter().filter_map(|rule| rule["alert"].as_str()).collect();
        assert_eq!(names, expected, "{component}");
        let of = format!("component=\"{component}\"");
        assert!(!left.iter().any(|rule| rule["expr"].as_str().is_some_and(|text| text.contains(&of))), "{component}");
    }
}

/// Prometheus' parser and engine are Go modules; the program beside this file runs the rules in them.
#[test]
fn alerts_fire_when_they_should() {
    let output = Command::new("go")
        .args(["test", "-mod=readonly", "-count=1", "-v", "./..."])
        .current_dir(root().join("tests/charts/promql"))
        .env("GOTOOLCHAIN", "local")
        .env("GOWORK", "off")
        .env("CGO_ENABLED", "0")
        .output()
        .expect("go starts; it is needed for the local cluster, too");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    assert!(said.contains("--- PASS: TestAlerts"), "{said}");
}

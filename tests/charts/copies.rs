//! What stands in several places says the same in all of them.

use serde_json::Value;

use super::{CHARTS, generated, objects, read, render, root};

fn definitions() -> Vec<String> {
    let folder = std::fs::read_dir(root().join("crds")).expect("the folder can be read");
    let mut names: Vec<String> = folder.map(|file| file.expect("a file").file_name().display().to_string()).collect();
    names.sort();
    assert_eq!(names.len(), 3, "{names:?}");
    names
}

#[test]
fn both_charts_have_the_definitions() {
    for name in definitions() {
        let text = read(&format!("crds/{name}"));
        for folder in ["charts/torpor/crds", "charts/torpor-crds/files"] {
            generated(&format!("{folder}/{name}"), &text);
        }
    }
    for folder in ["charts/torpor/crds", "charts/torpor-crds/files"] {
        let count = std::fs::read_dir(root().join(folder)).expect("the folder can be read").count();
        assert_eq!(count, 3, "{folder} has definitions that crds/ has not");
    }
}

/// The chart adds labels and annotations, and changes nothing else.
#[test]
fn the_chart_of_definitions_adds_metadata_only() {
    let rendered = objects(&render("torpor-crds", &[]).expect("the chart renders"));
    let plain: Vec<Value> = definitions().iter().flat_map(|name| objects(&read(&format!("crds/{name}")))).collect();
    assert_eq!(rendered.len(), plain.len());
    for (mut rendered, plain) in std::iter::zip(rendered, plain) {
        let metadata = rendered["metadata"].as_object_mut().expect("metadata");
        let annotations = metadata.remove("annotations").expect("annotations");
        assert_eq!(annotations["helm.sh/resource-policy"], "keep");
        assert_eq!(metadata.remove("labels").expect("labels")["app.kubernetes.io/part-of"], "torpor");
        assert_eq!(rendered, plain);
    }
}

#[test]
fn versions_are_those_of_the_program() {
    for chart in CHARTS {
        let chart: Value = serde_yaml::from_str(&read(&format!("charts/{chart}/Chart.yaml"))).expect("YAML");
        for field in ["version", "appVersion"] {
            assert_eq!(chart[field], env!("CARGO_PKG_VERSION"), "{} of chart {}", field, chart["name"]);
        }
    }
}

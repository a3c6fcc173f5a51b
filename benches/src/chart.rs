//! A tenant as a Helm chart: the objects that the operator sent, with the release's name in place of the tenant's and the
//! dashboard's tag as a value.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::requests::Recording;

const DASHBOARD: &str = "hummingbot/dashboard:";
/// The tag that charts are made with.
pub const TAG: &str = "latest";

/// Writes the chart into a folder, and tells how many objects it has.
pub fn write(dir: &Path, recording: &Recording) -> Result<usize> {
    let templates = dir.join("templates");
    std::fs::create_dir_all(&templates)?;
    std::fs::write(dir.join("Chart.yaml"), "apiVersion: v2\nname: tenant\nversion: 0.1.0\n")?;
    std::fs::write(dir.join("values.yaml"), format!("tag: {TAG}\n"))?;
    let own = recording.own.requests.iter();
    let all = own.chain(recording.fleets.values().flat_map(|fleet| &fleet.chain.requests));
    let mut count = 0;
    for request in all {
        // `helm install --create-namespace` makes the namespace; a fleet is what the operator needs to know of bots, and
        // without an operator nothing.
        if matches!(request.body["kind"].as_str(), Some("Namespace" | "BotFleet")) {
            continue;
        }
        let text = template(&request.body, &recording.tenant)?;
        std::fs::write(templates.join(format!("{count:02}.yaml")), text)?;
        count += 1;
    }
    Ok(count)
}

fn template(object: &Value, tenant: &str) -> Result<String> {
    let mut object = object.clone();
    let metadata = object["metadata"].as_object_mut().context("an object without metadata")?;
    for field in ["ownerReferences", "namespace", "annotations"] {
        metadata.remove(field);
    }
    let text = object.to_string();
    ensure!(!text.contains("{{"), "an object that reads like a template: {text}");
    let text = text
        // As Helm marks its own; and the operator leaves alone what is not marked as its.
        .replace("\"app.kubernetes.io/managed-by\":\"torpor\"", "\"app.kubernetes.io/managed-by\":\"Helm\"")
        .replace(&format!("{DASHBOARD}{TAG}"), &format!("{DASHBOARD}{{{{ .Values.tag }}}}"))
        .replace(tenant, "{{ .Release.Name }}");
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_become_templates() {
        let object = json!({"metadata": {"name": "x", "namespace": "tenant-sample", "labels": {"torpor.dev/tenant": "sample",
            "app.kubernetes.io/managed-by": "torpor"}}, "image": "hummingbot/dashboard:latest"});
        let text = template(&object, "sample").unwrap();
        assert!(text.contains("\"torpor.dev/tenant\":\"{{ .Release.Name }}\""), "{text}");
        assert!(text.contains("hummingbot/dashboard:{{ .Values.tag }}"), "{text}");
        assert!(text.contains("Helm") && !text.contains("namespace"), "{text}");
        assert!(template(&json!({"metadata": {}, "data": "{{ x }}"}), "sample").is_err());
    }
}

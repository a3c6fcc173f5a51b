//! `docs/reference.md`: every field of the custom resources, generated from their schemas.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::Value;

use super::crds;

/// The page, from the definitions as they are installed.
pub fn reference() -> String {
    let head = "# Fields of the custom resources

<!-- Generated from src/api by `make generate`; do not edit. -->

The same text as `kubectl explain tenant.spec --recursive`, with types, bounds and defaults. A field without a default and not marked required may be left out.
Rules over more than one field, and what the API server answers, are shown by the files in [examples/invalid](../examples/invalid).
";
    let mut lines = vec![head.to_owned()];
    for crd in crds::all() {
        resource(&mut lines, &crd);
    }
    lines.join("\n")
}

fn resource(lines: &mut Vec<String>, crd: &CustomResourceDefinition) {
    let names = &crd.spec.names;
    let short: Vec<String> = names.short_names.iter().flatten().map(|name| code(name)).collect();
    let scope = match crd.spec.scope.as_str() {
        "Namespaced" => "in a tenant's namespace",
        _ => "cluster-scoped",
    };
    for version in &crd.spec.versions {
        // A schema made of Rust types is always JSON.
        let schema = serde_json::to_value(&version.schema).unwrap_or_default()["openAPIV3Schema"].take();
        let (group, version, short) = (&crd.spec.group, &version.name, short.join(", "));
        lines.push(format!("## {}\n\n{}\n", names.kind, text(&schema)));
        lines.push(format!("`{group}/{version}`, {scope}, short name {short}.\n"));
        lines.push("| Field | Type | Default | Meaning |\n|---|---|---|---|".to_owned());
        for part in ["spec", "status"] {
            rows(lines, part, &schema["properties"][part], false);
        }
        lines.push(String::new());
    }
}

/// The row of one field, and those of the fields below it.
fn rows(lines: &mut Vec<String>, path: &str, schema: &Value, required: bool) {
    let default = match &schema["default"] {
        Value::Null if required => "required".to_owned(),
        // The defaults of an object are those of its fields, which follow.
        Value::Null | Value::Object(_) => String::new(),
        Value::String(word) => code(word),
        value => code(&value.to_string()),
    };
    lines.push(format!("| {} | {} | {default} | {} |", code(path), type_of(schema), text(schema)));
    let (path, object) =
        if schema["items"].is_object() { (format!("{path}[]"), &schema["items"]) } else { (path.to_owned(), schema) };
    let demanded = object["required"].as_array().cloned().unwrap_or_default();
    for (name, field) in object["properties"].as_object().into_iter().flatten() {
        rows(lines, &format!("{path}.{name}"), field, demanded.iter().any(|demanded| demanded == name));
    }
}

fn type_of(schema: &Value) -> String {
    let word = schema["type"].as_str().unwrap_or_default();
    let number = |key: &str| schema[key].as_f64();
    if let Some(values) = schema["enum"].as_array() {
        return values.iter().filter_map(Value::as_str).map(code).collect::<Vec<_>>().join(", ");
    }
    if schema["items"].is_object() {
        let most = number("maxItems").map(|most| format!(", at most {most}")).unwrap_or_default();
        return format!("list of {}{most}", type_of(&schema["items"]));
    }
    if schema["additionalProperties"].is_object() {
        return format!("map of {}", type_of(&schema["additionalProperties"]));
    }
    match (word, number("minimum"), number("maximum"), number("maxLength"), schema["format"].as_str()) {
        ("string", _, _, _, Some("date-time")) => "time, RFC 3339".to_owned(),
        ("string", _, _, Some(longest), _) => format!("string, at most {longest} characters"),
        (_, Some(least), Some(most), _, _) => format!("{word}, {least} to {most}"),
        _ => word.to_owned(),
    }
}

/// A description as one cell of a table.
fn text(schema: &Value) -> String {
    schema["description"].as_str().unwrap_or_default().replace('\n', " ").replace('|', "\\|")
}

fn code(text: &str) -> String {
    format!("`{text}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "compares with a file of the repository")]
    fn the_reference_is_fresh() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference.md");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(file, reference()).expect("docs/reference.md can be written");
        }
        let found = std::fs::read_to_string(file).unwrap_or_default();
        assert_eq!(found, reference(), "docs/reference.md is stale: run `make generate`");
    }

    #[test]
    fn types_and_defaults_are_told() {
        let page = reference();
        for row in [
            "| `spec.tier` | `free`, `basic`, `pro`, `premium` | required |",
            "| `spec.deletionPolicy` | `Retain`, `Delete` | `Retain` |",
            "| `spec.fleets` | list of object, at most 50 |  |",
            "| `spec.fleets[].replicas` | integer, 0 to 200 | `1` |",
            "| `status.lastActivityTime` | time, RFC 3339 |  |",
        ] {
            assert!(page.contains(row), "{row} in\n{page}");
        }
    }
}

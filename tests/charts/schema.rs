//! The schemas of values leave nothing open, and agree with values.yaml, the definitions and each other.

use std::collections::BTreeSet;

use serde_json::Value;

use super::readme::documented;
use super::{CHARTS, read};

/// A chart's values.schema.json.
pub struct Schema {
    root: Value,
}

impl Schema {
    /// Reads it.
    pub fn of(chart: &str) -> Self {
        Schema { root: serde_json::from_str(&read(&format!("charts/{chart}/values.schema.json"))).expect("JSON") }
    }

    /// What a node refers to, with the name of the definition.
    fn resolve<'a>(&'a self, node: &'a Value) -> (Option<&'a str>, &'a Value) {
        match node["$ref"].as_str().and_then(|reference| reference.strip_prefix("#/$defs/")) {
            Some(name) => (Some(name), &self.root["$defs"][name]),
            None => (None, node),
        }
    }

    /// The schema of a value, by its keys.
    fn at(&self, path: &str) -> Option<&Value> {
        path.split('.').try_fold(&self.root, |node, key| self.resolve(node).1["properties"].get(key))
    }

    /// Names and descriptions of what a value's lists and maps hold; each definition once.
    pub fn described_below(&self, path: &str, shown: &mut BTreeSet<String>) -> Vec<(String, String)> {
        let mut rows = Vec::new();
        if let Some(node) = self.at(path) {
            self.rows(path, node, shown, &mut rows);
        }
        rows
    }

    fn rows(&self, path: &str, node: &Value, shown: &mut BTreeSet<String>, rows: &mut Vec<(String, String)>) {
        let (name, node) = self.resolve(node);
        let has_fields = node["properties"].is_object() || node["items"].is_object();
        if has_fields && name.is_some_and(|name| !shown.insert(name.to_owned())) {
            return;
        }
        if node["items"].is_object() {
            self.rows(&format!("{path}[]"), &node["items"], shown, rows);
        }
        for (key, field) in node["properties"].as_object().into_iter().flatten() {
            if let Some(words) = field["description"].as_str() {
                let path = format!("{path}.{key}");
                rows.push((path.clone(), words.to_owned()));
                self.rows(&path, field, shown, rows);
            }
        }
    }

    /// Every node that says what a value must be like, with its place.
    fn nodes(&self) -> Vec<(String, &Value)> {
        let mut nodes = Vec::new();
        collect("", &self.root, &mut nodes);
        nodes
    }
}

fn collect<'a>(place: &str, node: &'a Value, nodes: &mut Vec<(String, &'a Value)>) {
    if node["type"].is_string() || node["type"].is_array() {
        nodes.push((place.to_owned(), node));
    }
    for group in ["properties", "$defs"] {
        for (key, child) in node[group].as_object().into_iter().flatten() {
            collect(&format!("{place}/{group}/{key}"), child, nodes);
        }
    }
    for child in ["items", "additionalProperties", "propertyNames"] {
        if node[child].is_object() {
            collect(&format!("{place}/{child}"), &node[child], nodes);
        }
    }
}

#[test]
fn nothing_is_left_open() {
    for chart in CHARTS {
        let schema = Schema::of(chart);
        let nodes = schema.nodes();
        for (place, node) in &nodes {
            let is = |name: &str| {
                node["type"] == name || node["type"].as_array().is_some_and(|types| types.contains(&name.into()))
            };
            // Helm itself puts `global` there, with whatever a parent chart has in it.
            if is("object") && place != "/properties/global" {
                let rest = &node["additionalProperties"];
                assert!(*rest == false || rest.is_object(), "{chart}{place} takes any key");
                assert!(*rest == false || node["propertyNames"].is_object(), "{chart}{place} takes any key");
            }
            if is("string") {
                let bound = ["enum", "pattern", "maxLength"].iter().any(|bound| !node[*bound].is_null());
                assert!(bound, "{chart}{place} takes any text");
                let pattern = node["pattern"].as_str().unwrap_or("^$");
                assert!(pattern.starts_with('^') && pattern.ends_with('$'), "{chart}{place}: {pattern} matches parts");
            }
            if is("integer") {
                assert!(node["minimum"].is_number() && node["maximum"].is_number(), "{chart}{place} has no bounds");
            }
            if is("array") {
                assert!(node["items"].is_object(), "{chart}{place} takes anything");
            }
        }
        println!("{chart}: {} places of the schema were looked at", nodes.len());
    }
}

#[test]
fn schema_and_values_have_the_same_keys() {
    for chart in CHARTS {
        let schema = Schema::of(chart);
        let known: BTreeSet<String> = documented(chart).into_iter().map(|value| value.path).collect();
        let mut listed = BTreeSet::new();
        leaves("", &schema.root, &schema, &known, &mut listed);
        listed.remove("global");
        assert_eq!(listed, known, "{chart}: values.schema.json and values.yaml differ");
    }
}

fn leaves(path: &str, node: &Value, schema: &Schema, known: &BTreeSet<String>, listed: &mut BTreeSet<String>) {
    let fields = schema.resolve(node).1["properties"].as_object();
    match fields {
        Some(fields) if !known.contains(path) => {
            for (key, field) in fields {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                leaves(&path, field, schema, known, listed);
            }
        }
        _ => drop(listed.insert(path.to_owned())),
    }
}

/// What values.yaml cannot show because it stands in lists and maps that are empty there, the schema describes.
#[test]
fn what_values_cannot_show_is_described() {
    let schema = Schema::of("torpor");
    for value in documented("torpor") {
        let node = schema.at(&value.path).expect("a schema");
        undescribed(&value.path, node, &schema);
    }
}

fn undescribed(path: &str, node: &Value, schema: &Schema) {
    let (_, node) = schema.resolve(node);
    let node = if node["items"].is_object() { schema.resolve(&node["items"]).1 } else { node };
    for (key, field) in node["properties"].as_object().into_iter().flatten() {
        let words = field["description"].as_str().unwrap_or_else(|| panic!("{path}.{key} is not described"));
        if !words.ends_with("as in a pod") {
            undescribed(&format!("{path}.{key}"), field, schema);
        }
    }
}

/// The schema of a pool knows the fields, the bounds and the choices of the definition.
#[test]
fn pools_are_those_of_the_definition() {
    let definition: Value = serde_yaml::from_str(&read("crds/workerpools.torpor.dev.yaml")).expect("YAML");
    let spec = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let schema = Schema::of("torpor");
    same_fields("workerPools[]", &schema.root["$defs"]["workerPool"], spec, &schema, &["name", "preset", "nodeGroup"]);
}

fn same_fields(path: &str, ours: &Value, theirs: &Value, schema: &Schema, own: &[&str]) {
    let (_, ours) = schema.resolve(ours);
    let keys = |node: &Value| -> BTreeSet<String> {
        node["properties"].as_object().into_iter().flat_map(|fields| fields.keys().cloned()).collect()
    };
    let mut listed = keys(ours);
    listed.retain(|key| !own.contains(&key.as_str()));
    assert_eq!(listed, keys(theirs), "{path}: fields differ from the definition's");
    for key in listed {
        let (path, field, other) = (format!("{path}.{key}"), &ours["properties"][&key], &theirs["properties"][&key]);
        for bound in ["minimum", "maximum", "enum"] {
            let number = |value: &Value| value.as_f64().map_or_else(|| value.to_string(), |number| number.to_string());
            assert_eq!(number(&field[bound]), number(&other[bound]), "{path}: {bound}");
        }
        same_fields(&path, field, other, schema, &[]);
    }
}

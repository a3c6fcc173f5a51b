//! The API server's checks without an API server: unknown fields, bounds, CEL rules.

use kube::CustomResourceExt;
use kube::core::cel::Validator;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{Findings, Problem};
use crate::api::crds;

/// Reads a custom resource as the API server would accept it when it is created.
///
/// # Errors
/// Every [`Problem`] of its form or, when it has none, every rule that it breaks.
pub fn document<T>(value: &Value) -> Result<T, Vec<Problem>>
where
    T: CustomResourceExt + DeserializeOwned + Serialize,
{
    let mut findings = Findings::default();
    let schema = schema::<T>();
    let value = without_nulls(value);
    check(&mut findings, "", &schema, &value);
    findings = Findings(findings.finish(Vec::new())?);

    // Reading and writing fills in the defaults, which rules may look at.
    let read: T = serde_json::from_value(value).map_err(|error| vec![Problem(error.to_string())])?;
    let complete = serde_json::to_value(&read).map_err(|error| vec![Problem(error.to_string())])?;
    if let Err(broken) = Validator::new().validate(&schema, &complete, None) {
        for rule in broken.into_vec() {
            let message = rule.message.lines().next().unwrap_or_default().to_owned();
            let field = rule.field_path.trim_start_matches('.');
            if message.starts_with(field) {
                findings.0.push(Problem(message));
            } else {
                findings.add(field, message);
            }
        }
    }
    findings.finish(read)
}

/// The schema that is installed for a kind.
fn schema<T: CustomResourceExt>() -> Value {
    let name = T::crd_name();
    let installed = crds::all().into_iter().find(|crd| crd.metadata.name.as_deref() == Some(name));
    let version = installed.and_then(|crd| crd.spec.versions.into_iter().next());
    let schema = version.and_then(|version| version.schema).and_then(|schema| schema.open_api_v3_schema);
    serde_json::to_value(schema).unwrap_or_default()
}

/// The API server takes an explicit null for an absent field where null is not a value, and no
/// field of these resources has null as a value.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let present = fields.iter().filter(|(_, value)| !value.is_null());
            Value::Object(present.map(|(key, value)| (key.clone(), without_nulls(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(without_nulls).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

fn check(findings: &mut Findings, path: &str, schema: &Value, value: &Value) {
    let kind = schema["type"].as_str().unwrap_or_default();
    if !has_type(value, kind) {
        return findings.add(path, format_args!("must be of type {kind}, is {}", brief(value)));
    }
    if let Some(values) = schema["enum"].as_array().filter(|values| !values.contains(value)) {
        let words: Vec<String> = values.iter().map(brief).collect();
        return findings.add(path, format_args!("{} is not one of {}", brief(value), words.join(", ")));
    }
    match value {
        Value::String(text) => within(findings, path, schema, "Length", "characters", text.chars().count()),
        Value::Number(number) => check_number(findings, path, schema, number.as_f64().unwrap_or_default()),
        Value::Array(items) => check_list(findings, path, schema, items),
        Value::Object(fields) => check_object(findings, path, schema, fields),
        Value::Null | Value::Bool(_) => {}
    }
}

fn has_type(value: &Value, kind: &str) -> bool {
    match kind {
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        // Kubernetes' schemas know of no other word than an absent one, which allows all.
        _ => true,
    }
}

fn check_number(findings: &mut Findings, path: &str, schema: &Value, number: f64) {
    if let Some(least) = schema["minimum"].as_f64().filter(|least| number < *least) {
        findings.add(path, format_args!("{number} is too small, use at least {least}"));
    }
    if let Some(most) = schema["maximum"].as_f64().filter(|most| number > *most) {
        findings.add(path, format_args!("{number} is too large, use at most {most}"));
    }
}

fn check_list(findings: &mut Findings, path: &str, schema: &Value, items: &[Value]) {
    within(findings, path, schema, "Items", "entries", items.len());
    for (index, item) in items.iter().enumerate() {
        check(findings, &format!("{path}[{index}]"), &schema["items"], item);
    }
    let keys: Vec<&str> =
        schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let identity = |item: &Value| match schema["x-kubernetes-list-type"].as_str() {
        Some("map") => keys.iter().map(|key| item[key].clone()).collect(),
        Some("set") => vec![item.clone()],
        _ => vec![],
    };
    for (index, item) in items.iter().enumerate() {
        let own = identity(item);
        if !own.is_empty() && items[..index].iter().any(|earlier| identity(earlier) == own) {
            let words: Vec<String> = own.iter().map(brief).collect();
            findings.add(&format!("{path}[{index}]"), format_args!("{} is there already", words.join(", ")));
        }
    }
}

fn check_object(findings: &mut Findings, path: &str, schema: &Value, fields: &Map<String, Value>) {
    within(findings, path, schema, "Properties", "entries", fields.len());
    let at = |field: &str| if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") };
    for field in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !fields.contains_key(field) {
            findings.add(&at(field), "is missing");
        }
    }
    let known = schema["properties"].as_object();
    let others = &schema["additionalProperties"];
    for (field, value) in fields {
        if let Some(schema) = known.and_then(|known| known.get(field)) {
            check(findings, &at(field), schema, value);
        } else if others.is_object() {
            check(findings, &at(field), others, value);
        } else if let Some(known) = known.filter(|_| !is_kubernetes_own(path, field)) {
            let names: Vec<&str> = known.keys().map(String::as_str).collect();
            findings.add(&at(field), format_args!("is unknown; known here are {}", names.join(", ")));
        }
    }
}

/// Fields that a schema need not list: they are the same in every object.
fn is_kubernetes_own(path: &str, field: &str) -> bool {
    path == "metadata" || (path.is_empty() && matches!(field, "apiVersion" | "kind" | "metadata"))
}

/// Checks `min<what>` and `max<what>`.
fn within(findings: &mut Findings, path: &str, schema: &Value, what: &str, unit: &str, count: usize) {
    let bound = |end: &str| schema[format!("{end}{what}")].as_u64().and_then(|bound| usize::try_from(bound).ok());
    if let Some(least) = bound("min").filter(|least| count < *least) {
        findings.add(path, format_args!("has {count} {unit}, needs at least {least}"));
    }
    if let Some(most) = bound("max").filter(|most| count > *most) {
        findings.add(path, format_args!("has {count} {unit}, at most {most} are allowed"));
    }
}

/// A value in a few words.
fn brief(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a map".to_owned(),
        Value::String(text) if text.chars().count() > 60 => "a long text".to_owned(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::{Tenant, WorkerPool};

    fn tenant(spec: Value) -> Result<Tenant, Vec<Problem>> {
        let head = json!({"apiVersion": "torpor.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": "alice"}});
        let mut value = head;
        value["spec"] = spec;
        document(&value)
    }

    fn refused(spec: Value) -> String {
        let problems = tenant(spec).expect_err("must be refused");
        problems.iter().map(|problem| problem.0.as_str()).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn accepts_what_the_contract_shows() {
        let strategy = json!({"kind": "script", "config": "script_file_name: simple_pmm_example.py\n"});
        let fleet = json!({"name": "makers", "replicas": 3, "strategy": strategy, "credentialsSecret": "alice-keys"});
        let read = tenant(json!({"tier": "basic", "hibernation": {"stopBotsAfter": "10d"}, "fleets": [fleet]}));
        assert_eq!(read.expect("valid").spec.fleets[0].spec.replicas, 3);
        assert!(tenant(json!({"tier": "free", "displayName": null})).is_ok());
    }

    #[test]
    fn names_field_and_reason() {
        assert_eq!(refused(json!({})), "spec.tier: is missing");
        assert_eq!(
            refused(json!({"tier": "gold"})),
            r#"spec.tier: "gold" is not one of "free", "basic", "pro", "premium""#
        );
        assert!(refused(json!({"tier": "pro", "teir": "pro"})).starts_with("spec.teir: is unknown; known here are "));
        assert_eq!(
            refused(json!({"tier": "pro", "suspended": "no"})),
            r#"spec.suspended: must be of type boolean, is "no""#
        );
        assert_eq!(
            refused(json!({"tier": "pro", "displayName": "x".repeat(201)})),
            "spec.displayName: has 201 characters, at most 200 are allowed"
        );
    }

    #[test]
    fn tells_all_problems_of_form_at_once() {
        let strategy = json!({"kind": "script", "config": "a: b"});
        let fleet = json!({"name": "a", "replicas": 201, "strategy": strategy});
        let message = refused(json!({"tier": "basic", "fleets": [fleet, fleet]}));
        assert_eq!(
            message,
            "spec.fleets[0].replicas: 201 is too large, use at most 200\n\
             spec.fleets[1].replicas: 201 is too large, use at most 200\n\
             spec.fleets[1]: \"a\" is there already"
        );
    }

    #[test]
    fn runs_the_rules() {
        let message = refused(json!({"tier": "free", "hibernation": {"mode": "Never"}}));
        assert!(message.contains("hibernation.mode must be Auto for tier free"), "{message}");
    }

    #[test]
    fn bounds_of_maps_hold() {
        let pool = json!({
            "apiVersion": "torpor.dev/v1alpha1", "kind": "WorkerPool", "metadata": {"name": "w"},
            "spec": {"tiers": [], "nodeSelector": {}, "priority": {"class": "low", "value": 1}},
        });
        let problems = document::<WorkerPool>(&pool).expect_err("must be refused");
        assert_eq!(problems.len(), 2, "{problems:?}");
    }
}

//! The `CustomResourceDefinitions` as they are installed.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSON, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;

use super::{BotFleet, Tenant, WorkerPool};

/// Every CustomResourceDefinition, in the order in which they are installed.
pub fn all() -> Vec<CustomResourceDefinition> {
    [Tenant::crd(), BotFleet::crd(), WorkerPool::crd()].into_iter().map(finish).collect()
}

/// A new object shows `observedGeneration: -1`, so that no tool takes it for handled before the operator saw it.
/// No field is nullable, so the API server takes an explicit null for absent and rules never meet one.
fn finish(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let unseen = serde_json::json!(-1);
    for version in &mut crd.spec.versions {
        let Some(schema) = version.schema.as_mut().and_then(|s| s.open_api_v3_schema.as_mut()) else {
            continue;
        };
        forbid_null(schema);
        declare_name(schema);
        let Some(status) = property(schema, "status") else {
            continue;
        };
        if let Some(generation) = property(status, "observedGeneration") {
            generation.default = Some(JSON(unseen.clone()));
        }
        status.default = Some(JSON(serde_json::json!({ "observedGeneration": unseen })));
    }
    crd
}

/// Rules on the name can point at `.metadata.name` only when the schema has that field.
fn declare_name(schema: &mut JSONSchemaProps) {
    let text = |type_: &str| JSONSchemaProps { type_: Some(type_.into()), ..JSONSchemaProps::default() };
    let name = JSONSchemaProps { max_length: Some(253), ..text("string") };
    let metadata = JSONSchemaProps { properties: Some([("name".into(), name)].into()), ..text("object") };
    schema.properties.get_or_insert_default().insert("metadata".into(), metadata);
}

fn forbid_null(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    schema.properties.iter_mut().flat_map(|properties| properties.values_mut()).for_each(forbid_null);
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        forbid_null(items);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        forbid_null(values);
    }
}

fn property<'a>(schema: &'a mut JSONSchemaProps, name: &str) -> Option<&'a mut JSONSchemaProps> {
    schema.properties.as_mut()?.get_mut(name)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Every field of every CustomResourceDefinition, as its path and schema.
    fn fields() -> Vec<(String, Value)> {
        let mut found = Vec::new();
        for crd in all() {
            let schema = crd.spec.versions[0].schema.clone().and_then(|s| s.open_api_v3_schema);
            let schema = serde_json::to_value(schema).expect("a schema is JSON");
            collect(&crd.spec.names.kind, &schema, &mut found);
        }
        // `metadata` is Kubernetes' own; it stands in the schema only for the rules on the name.
        found.retain(|(path, _)| !path.ends_with(".metadata") && !path.ends_with(".metadata.name"));
        found
    }

    fn collect(path: &str, schema: &Value, found: &mut Vec<(String, Value)>) {
        found.push((path.to_owned(), schema.clone()));
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            collect(&format!("{path}.{name}"), field, found);
        }
        for (key, suffix) in [("items", "[]"), ("additionalProperties", "{}")] {
            if schema[key].is_object() {
                collect(&format!("{path}{suffix}"), &schema[key], found);
            }
        }
    }

    fn is_element(path: &str) -> bool {
        path.ends_with("[]") || path.ends_with("{}")
    }

    #[test]
    fn every_field_is_described() {
        let fields = fields();
        assert!(fields.len() > 100, "the walk reached {} fields", fields.len());
        let blank = |schema: &Value| schema["description"].as_str().is_none_or(|text| text.trim().is_empty());
        let missing: Vec<_> =
            fields.iter().filter(|(path, schema)| !is_element(path) && blank(schema)).map(|(path, _)| path).collect();
        assert!(missing.is_empty(), "no description: {missing:?}");
    }

    #[test]
    fn every_field_is_bounded() {
        let has = |schema: &Value, keys: &[&str]| keys.iter().all(|key| !schema[*key].is_null());
        let unbounded: Vec<_> = fields()
            .into_iter()
            .filter(|(path, schema)| {
                let counted = path.contains(".status") && has(schema, &["format"]);
                !match schema["type"].as_str().unwrap_or_default() {
                    "boolean" => true,
                    "string" => ["maxLength", "enum", "format"].iter().any(|key| has(schema, &[key])),
                    "integer" | "number" => counted || has(schema, &["minimum", "maximum"]),
                    "array" => has(schema, &["maxItems", "items", "x-kubernetes-list-type"]),
                    "object" if schema["additionalProperties"].is_object() => has(schema, &["maxProperties"]),
                    "object" => has(schema, &["properties"]),
                    _ => false,
                }
            })
            .map(|(path, schema)| format!("{path}: {schema}"))
            .collect();
        assert!(unbounded.is_empty(), "unbounded: {unbounded:#?}");
    }

    #[test]
    fn every_rule_has_a_message_of_one_line() {
        for (path, schema) in fields() {
            for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
                let message = rule["message"].as_str().unwrap_or_default();
                assert!(!message.is_empty() && !message.contains('\n'), "{path}: {rule}");
            }
        }
    }

    #[test]
    fn nothing_is_nullable_and_conditions_are_maps() {
        for (path, schema) in fields() {
            assert!(schema["nullable"].is_null(), "{path} is nullable");
            if path.ends_with(".conditions") {
                assert_eq!(schema["x-kubernetes-list-type"], "map", "{path}");
                assert_eq!(schema["x-kubernetes-list-map-keys"], json!(["type"]), "{path}");
            }
            if path.ends_with(".status") && path.matches('.').count() == 1 {
                assert_eq!(schema["default"], json!({ "observedGeneration": -1 }), "{path}");
            }
        }
    }

    /// The rule engine of the `cel` feature knows every function that the rules use: a valid object
    /// passes, and a rule's own message answers an invalid one.
    #[test]
    fn rules_run_without_a_cluster() {
        let name = "alice";
        let old = tenant(name, &old_spec());
        assert_eq!(messages(old.validate_cel()), Vec::<String>::new());
        assert_eq!(messages(old.validate_cel_update(&old)), Vec::<String>::new());
        for (patch, message) in [
            (json!({"hibernation": {"stopBotsAfter": "7w"}}), "must be a duration"),
            (
                json!({"hibernation": {"stopBotsAfter": "36h", "databaseOnlyAfter": "1d"}}),
                "databaseOnlyAfter must not be",
            ),
            (
                json!({"hibernation": {"stopBotsAfter": "2d", "stopServicesAfter": "3d", "databaseOnlyAfter": "50h"}}),
                "not be shorter than stopServicesAfter",
            ),
            (json!({"tier": "free", "hibernation": {"mode": "Never"}}), "must be Auto for tier free"),
            (json!({"tier": "free", "hibernation": {"stopBotsAfter": "1d"}}), "cannot be changed for tier free"),
            (json!({"fleets": [fleet("a"), fleet("a")]}), "fleet names must be unique"),
            (json!({"fleets": [fleet("A")]}), "must be a DNS label"),
            (json!({"fleets": [{"name": "a", "strategy": {"kind": "v1"}}]}), "exactly one of config and configMapRef"),
            (
                json!({"fleets": [{"name": "a", "storage": "100Mi", "strategy": {"kind": "v1", "config": "x"}}]}),
                "storage of a fleet cannot shrink",
            ),
            (json!({"database": {"image": "a b:17"}}), "must be an image reference"),
            (json!({"database": {"storage": "5Gb"}}), "must be a size"),
            (json!({"database": {"storage": "1Gi"}}), "database.storage cannot shrink"),
            (json!({"database": {"image": "postgres:16.4-bookworm"}}), "the major version"),
            (json!({"database": {"resources": {"cpu": "0"}}}), "must be CPU cores"),
            (json!({"database": {"resources": {"memory": "512"}}}), "must be memory"),
            (json!({"redis": {"storage": "900Mi"}}), "redis.storage cannot shrink"),
            (json!({"redis": {}}), "redis.storage can only be set or left out"),
            (json!({"dashboard": {"host": "https://x"}}), "must be a host name"),
        ] {
            let mut spec = old_spec();
            for (key, value) in patch.as_object().into_iter().flatten() {
                spec[key] = value.clone();
            }
            let found = messages(tenant(name, &spec).validate_cel_update(&old));
            assert!(found.len() == 1 && found[0].contains(message), "{patch}: {found:?}");
        }
        for name in ["a.b", &"a".repeat(41)] {
            let found = messages(tenant(name, &json!({"tier": "pro"})).validate_cel());
            assert!(found.len() == 1 && found[0].contains("metadata.name must be"), "{name}: {found:?}");
        }
    }

    #[test]
    fn pool_and_fleet_rules_run_without_a_cluster() {
        let pool = |patch: Value| {
            let mut spec = json!({"tiers": ["free"], "nodeSelector": {"torpor.dev/pool": "low"},
                "priority": {"class": "torpor-low", "value": 1000}});
            for (key, value) in patch.as_object().into_iter().flatten() {
                spec[key] = value.clone();
            }
            let object = json!({"apiVersion": "torpor.dev/v1alpha1", "kind": "WorkerPool", "metadata": {"name": "low"}, "spec": spec});
            serde_json::from_value::<WorkerPool>(object).expect("a WorkerPool").validate_cel()
        };
        assert_eq!(messages(pool(json!({"autoscaling": {"min": 1, "max": 1}}))), Vec::<String>::new());
        for (patch, message) in [
            (json!({"autoscaling": {"min": 2, "max": 1}}), "autoscaling.min must not be larger"),
            (json!({"autoscaling": {"min": 1, "max": 1, "window": "soon"}}), "must be a duration"),
            (json!({"priority": {"class": "system-x", "value": 1}}), "must not start with system-"),
            (json!({"nodeSelector": {"a b": "x"}}), "must be label keys"),
            (json!({"nodeSelector": {"a": "x y"}}), "must be label values"),
        ] {
            let found = messages(pool(patch.clone()));
            assert!(found.len() == 1 && found[0].contains(message), "{patch}: {found:?}");
        }
        let fleet = |storage: &str, key: &str| {
            let object = json!({"apiVersion": "torpor.dev/v1alpha1", "kind": "BotFleet", "metadata": {"name": "a"}, "spec":
                {"storage": storage, "strategy": {"kind": "v1", "configMapRef": {"name": "a", "key": key}}}});
            serde_json::from_value::<BotFleet>(object).expect("a BotFleet")
        };
        let old = fleet("1Gi", "config.yml");
        assert_eq!(messages(old.validate_cel_update(&old)), Vec::<String>::new());
        let found = messages(fleet("500Mi", "a/b").validate_cel_update(&old));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.iter().any(|text| text.contains("storage of a fleet cannot shrink")), "{found:?}");
        assert!(found.iter().any(|text| text.contains("must be a ConfigMap key")), "{found:?}");
    }

    fn old_spec() -> Value {
        json!({
            "tier": "pro",
            "hibernation": {"stopBotsAfter": "90m", "stopServicesAfter": "36h", "databaseOnlyAfter": "7d"},
            "fleets": [fleet("a"), fleet("b")],
            "database": {"image": "registry:5000/postgres:17.11-bookworm", "storage": "2Gi"},
            "redis": {"storage": "1Gi"},
            "dashboard": {"host": "alice.bots.example.com"},
        })
    }

    fn fleet(name: &str) -> Value {
        json!({"name": name, "strategy": {"kind": "script", "config": "script_file_name: x.py"}})
    }

    fn tenant(name: &str, spec: &Value) -> Tenant {
        let object =
            json!({"apiVersion": "torpor.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": name}, "spec": spec});
        serde_json::from_value(object).expect("a Tenant")
    }

    fn messages(result: Result<(), kube::core::cel::ValidationErrors>) -> Vec<String> {
        result.err().into_iter().flatten().map(|error| error.to_string()).collect()
    }
}

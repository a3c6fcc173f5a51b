//! Whether an object in the cluster is still as the operator left it, told from its metadata alone.
//!
//! The API server records in `managedFields` which field belongs to whom. A manual change to a field
//! that the operator set moves that field to another manager. So if every field of the wanted object
//! is still the operator's, and the hash of what was last applied is that of the wanted object,
//! nothing needs to be read or written.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use serde_json::{Map, Value};

use crate::domain::names::OPERATOR;

/// The field sets that the operator owns on an object, status apart.
pub fn owned_fields(entries: &[ManagedFieldsEntry]) -> Vec<&Value> {
    entries
        .iter()
        .filter(|entry| entry.manager.as_deref() == Some(OPERATOR))
        .filter(|entry| entry.subresource.as_deref().unwrap_or_default().is_empty())
        .filter_map(|entry| entry.fields_v1.as_ref().map(|fields| &fields.0))
        .collect()
}

/// Whether the owned field sets cover every field of the wanted object.
///
/// Identity (apiVersion, kind, name, namespace) is never listed in field sets and is left out.
pub fn covers(owned: &[&Value], wanted: &Value) -> bool {
    let Some(object) = wanted.as_object() else { return false };
    object.iter().filter(|(key, _)| !matches!(key.as_str(), "apiVersion" | "kind")).all(|(key, value)| {
        if key == "metadata" {
            let identity = ["name", "namespace"];
            let metadata = value.as_object().cloned().unwrap_or_default();
            let rest: Map<String, Value> =
                metadata.into_iter().filter(|(key, _)| !identity.contains(&key.as_str())).collect();
            rest.is_empty() || owned.iter().any(|set| field(set, key).is_some_and(|set| covers_map(set, &rest)))
        } else {
            owned.iter().any(|set| field(set, key).is_some_and(|set| covers_value(set, value)))
        }
    })
}

fn field<'a>(set: &'a Value, key: &str) -> Option<&'a Value> {
    set.get(format!("f:{key}"))
}

/// A set without children stands for the whole value below it: a scalar, or an atomic list or map.
fn is_leaf(set: &Value) -> bool {
    set.as_object().is_none_or(|set| set.keys().all(|key| key == "."))
}

fn covers_value(set: &Value, wanted: &Value) -> bool {
    match wanted {
        Value::Object(map) => is_leaf(set) || covers_map(set, map),
        Value::Array(items) => is_leaf(set) || items.iter().all(|item| covers_item(set, item)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
    }
}

fn covers_map(set: &Value, wanted: &Map<String, Value>) -> bool {
    wanted.iter().all(|(key, value)| field(set, key).is_some_and(|set| covers_value(set, value)))
}

/// Items of associative lists are found by their keys (`k:{…}`), items of sets by value (`v:…`).
fn covers_item(set: &Value, item: &Value) -> bool {
    let Some(set) = set.as_object() else { return false };
    set.iter().any(|(path, below)| {
        if let Some(keys) = path.strip_prefix("k:") {
            let Ok(Value::Object(keys)) = serde_json::from_str(keys) else { return false };
            // A key that the wanted item leaves out was filled with its default by the API server.
            keys.iter().all(|(key, value)| item.get(key).is_none_or(|wanted| wanted == value))
                && keys.keys().any(|key| item.get(key).is_some())
                && covers_value(below, item)
        } else if let Some(value) = path.strip_prefix("v:") {
            serde_json::from_str::<Value>(value).is_ok_and(|value| value == *item)
        } else {
            false
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "postgres", "namespace": "tenant-a", "labels": {"a": "1"}},
            "spec": {"selector": {"x": "y"}, "ports": [{"name": "pg", "port": 5432, "protocol": "TCP"}]},
        })
    }

    fn owned() -> Value {
        json!({
            "f:metadata": {"f:labels": {"f:a": {}}},
            "f:spec": {
                "f:selector": {},
                "f:ports": {"k:{\"port\":5432,\"protocol\":\"TCP\"}": {".": {}, "f:name": {}, "f:port": {}, "f:protocol": {}}},
            },
        })
    }

    #[test]
    fn untouched_object_is_covered() {
        assert!(covers(&[&owned()], &service()));
    }

    #[test]
    fn each_field_taken_by_another_manager_is_noticed() {
        for pointer in [
            "/f:metadata/f:labels/f:a",
            "/f:metadata/f:labels",
            "/f:spec/f:selector",
            "/f:spec/f:ports",
            "/f:spec/f:ports/k:{\"port\":5432,\"protocol\":\"TCP\"}",
            "/f:spec/f:ports/k:{\"port\":5432,\"protocol\":\"TCP\"}/f:name",
        ] {
            let mut fields = owned();
            let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
            let parent = fields.pointer_mut(parent).and_then(Value::as_object_mut).expect(pointer);
            assert!(parent.remove(key).is_some(), "{pointer}");
            let emptied = parent.is_empty();
            // A parent without children would read as one whole value; the API server drops it instead.
            assert!(emptied || !covers(&[&fields], &service()), "{pointer}");
        }
    }

    #[test]
    fn nothing_owned_covers_nothing() {
        assert!(!covers(&[], &service()));
        assert!(!covers(&[&json!({})], &service()));
    }

    #[test]
    fn ownership_may_be_split_between_create_and_apply() {
        let first = json!({"f:metadata": {"f:labels": {"f:a": {}}}});
        let second = json!({"f:spec": owned()["f:spec"].clone()});
        assert!(covers(&[&first, &second], &service()));
    }

    #[test]
    fn sets_and_empty_values() {
        let wanted = json!({"metadata": {"finalizers": ["x"]}, "spec": {"emptyDir": {}, "tiers": ["free"]}});
        let fields = json!({"f:metadata": {"f:finalizers": {".": {}, "v:\"x\"": {}}}, "f:spec": {"f:emptyDir": {}, "f:tiers": {"v:\"free\"": {}}}});
        assert!(covers(&[&fields], &wanted));
        let other = json!({"metadata": {"finalizers": ["y"]}});
        assert!(!covers(&[&fields], &other));
    }
}

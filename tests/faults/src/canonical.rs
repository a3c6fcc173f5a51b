//! Objects without what chance makes of them, so that two runs can be compared.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::request::text;

/// Objects by kind and name.
pub type Objects = BTreeMap<String, Value>;

/// Stands for the name of the tenant or pool that a run is about.
pub const SUBJECT: &str = "$subject";

/// Identities, places, and what the cluster's own controllers fill in.
const CHANCE: [&str; 15] = [
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "managedFields",
    "clusterIP",
    "clusterIPs",
    "nodeName",
    "volumeName",
    "pod-template-hash",
    "controller-revision-hash",
    // kwok makes a claim's volume whether or not the controller manager was there to say who is to.
    "volume.kubernetes.io/storage-provisioner",
    "volume.beta.kubernetes.io/storage-provisioner",
    // They cover uids and times; what else they cover is compared in full.
    "torpor.dev/applied-hash",
    "warnedFor",
    "seconds",
];

/// Brings objects of one subject into their canonical form.
pub fn objects(found: Vec<Value>, subject: &str) -> Objects {
    let mut objects = Objects::new();
    for object in found {
        let object = canonical(object, subject);
        let metadata = &object["metadata"];
        let key = format!("{} {}/{}", text(&object["kind"]), text(&metadata["namespace"]), text(&metadata["name"]));
        // A second one of a random name would hide behind the first.
        let mut count = 1;
        while objects.contains_key(&numbered(&key, count)) {
            count += 1;
        }
        objects.insert(numbered(&key, count), object);
    }
    objects
}

fn numbered(key: &str, count: usize) -> String {
    if count == 1 { key.to_owned() } else { format!("{key} ({count})") }
}

fn canonical(mut object: Value, subject: &str) -> Value {
    match text(&object["kind"]).as_str() {
        "Node" => {
            let metadata = json!({"name": object["metadata"]["name"], "labels": object["metadata"]["labels"],
                "annotations": {"torpor.dev/managed-pool": object["metadata"]["annotations"]["torpor.dev/managed-pool"]}});
            object = json!({"kind": "Node", "metadata": metadata, "spec": {"taints": object["spec"]["taints"]}});
        }
        "Tenant" | "BotFleet" | "WorkerPool" => {}
        // Kubernetes gives one to each namespace, with the certificate of the cluster, and a course may be that of another cluster.
        "ConfigMap" if object["metadata"]["name"] == "kube-root-ca.crt" => object["data"] = Value::Null,
        "Pod" => {
            object["status"] = json!({"phase": object["status"]["phase"]});
            // One that is ready at once is not given more CPU first.
            object["metadata"]["generation"] = Value::Null;
        }
        "Deployment" => {
            object["status"] = Value::Null;
            // Annotations count in it, too, and an apply that was refused may be made in two writes. Pods that are made
            // too often are counted by the audit log.
            object["metadata"]["generation"] = Value::Null;
        }
        "Secret" => {
            let keys: Vec<&String> = object["data"].as_object().into_iter().flat_map(|data| data.keys()).collect();
            object["data"] = json!(keys);
            object["status"] = Value::Null;
        }
        _ => object["status"] = Value::Null,
    }
    if object["metadata"]["ownerReferences"][0]["kind"] == "ReplicaSet" {
        // The Deployment's name is left.
        let name = text(&object["metadata"]["name"]);
        let stem = name.rsplitn(3, '-').last().unwrap_or_default().to_owned();
        object["metadata"]["name"] = stem.into();
        object["metadata"]["generateName"] = Value::Null;
        object["metadata"]["ownerReferences"] = json!("ReplicaSet");
    }
    without_chance(&mut object, subject);
    object
}

fn without_chance(value: &mut Value, subject: &str) {
    match value {
        Value::Object(fields) => {
            fields.retain(|key, value| !CHANCE.contains(&key.as_str()) && !value.is_null());
            fields.values_mut().for_each(|value| without_chance(value, subject));
        }
        Value::Array(values) => values.iter_mut().for_each(|value| without_chance(value, subject)),
        Value::String(text) => {
            if text.parse::<jiff::Timestamp>().is_ok() {
                "(time)".clone_into(text);
            } else if text.contains(subject) {
                *text = text.replace(subject, SUBJECT);
            } else if text.starts_with("kube-api-access-") {
                "kube-api-access".clone_into(text);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Without these fields, each of them part of a part of an object.
pub fn without(mut objects: Objects, fields: &[(&str, &str)]) -> Objects {
    for object in objects.values_mut() {
        for (part, field) in fields {
            object[*part].as_object_mut().map(|part| part.remove(*field));
        }
    }
    objects
}

/// Where two sets of objects differ, in words.
pub fn differences(expected: &Objects, found: &Objects) -> Vec<String> {
    let mut differences = Vec::new();
    for key in expected.keys().chain(found.keys().filter(|key| !expected.contains_key(*key))) {
        match (expected.get(key), found.get(key)) {
            (Some(_), None) => differences.push(format!("{key} is missing")),
            (None, Some(_)) => differences.push(format!("{key} is too many")),
            (old, new) => compare(key, old.unwrap_or(&Value::Null), new.unwrap_or(&Value::Null), &mut differences),
        }
    }
    differences
}

fn compare(path: &str, expected: &Value, found: &Value, differences: &mut Vec<String>) {
    match (expected, found) {
        (Value::Object(old), Value::Object(new)) => {
            for key in old.keys().chain(new.keys().filter(|key| !old.contains_key(*key))) {
                compare(&format!("{path} {key}"), &expected[key], &found[key], differences);
            }
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            for (index, (old, new)) in old.iter().zip(new).enumerate() {
                compare(&format!("{path} {index}"), old, new, differences);
            }
        }
        _ if expected == found => {}
        _ => {
            let short = |value: &Value| value.to_string().chars().take(160).collect::<String>();
            differences.push(format!("{path}: expected {}, found {}", short(expected), short(found)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_is_no_difference_and_all_else_is() {
        let pod = |name: &str, uid: &str, image: &str| {
            json!({"kind": "Pod", "metadata": {"name": format!("{name}-0"), "namespace": format!("tenant-{name}"),
                "uid": uid, "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"image": image}})
        };
        let first = objects(vec![pod("c-1", "u", "i")], "c-1");
        assert_eq!(differences(&first, &objects(vec![pod("c-2", "v", "i")], "c-2")), Vec::<String>::new());
        assert_eq!(differences(&first, &objects(vec![pod("c-2", "v", "j")], "c-2")).len(), 1);
        assert_eq!(differences(&first, &Objects::new()).len(), 1);
        let two = objects(vec![pod("c-1", "u", "i"), pod("c-1", "u", "i")], "c-1");
        assert_eq!(differences(&first, &two), vec!["Pod tenant-$subject/$subject-0 (2) is too many"]);
    }

    #[test]
    fn a_course_may_be_that_of_another_cluster() {
        let map = |name: &str, data: &str| {
            objects(vec![json!({"kind": "ConfigMap", "metadata": {"name": name}, "data": {"ca.crt": data}})], "a")
        };
        assert!(differences(&map("kube-root-ca.crt", "a"), &map("kube-root-ca.crt", "b")).is_empty());
        assert_eq!(differences(&map("postgres", "a"), &map("postgres", "b")).len(), 1);
    }

    #[test]
    fn times_differ_and_generations_count() {
        let tenant = |time: &str, generation: i32| {
            vec![json!({"kind": "Tenant", "metadata": {"name": "a", "generation": generation}, "status": {"at": time}})]
        };
        let first = objects(tenant("2026-01-01T00:00:00Z", 1), "a");
        assert!(differences(&first, &objects(tenant("2026-01-02T00:00:00Z", 1), "a")).is_empty());
        assert_eq!(differences(&first, &objects(tenant("2026-01-02T00:00:00Z", 2), "a")).len(), 1);
    }
}

use super::*;

fn entry(version: &str, hash: &str, owned: Value) -> Entry {
    let metadata: ObjectMeta = serde_json::from_value(json!({
        "name": "redis", "namespace": "tenant-a", "uid": "u1", "resourceVersion": version,
        "annotations": {"torpor.dev/applied-hash": hash},
        "managedFields": [{"manager": "torpor-operator", "operation": "Apply", "fieldsV1": owned}],
    }))
    .expect("metadata");
    Entry::read(Slot::Child(ChildKind::ConfigMap), &metadata, Facts::None).expect("a name")
}

fn compare(index: &ChildIndex, hash: &str) -> Difference {
    let wanted = json!({"metadata": {"name": "redis"}, "data": {"a": "1"}});
    index.compare(ChildKind::ConfigMap, "tenant-a", "redis", hash, &wanted)
}

#[test]
fn unchanged_until_hash_or_ownership_differs() {
    let index = ChildIndex::default();
    assert_eq!(compare(&index, "h"), Difference::Missing);
    let owned = json!({"f:data": {"f:a": {}}});
    assert!(index.watched(entry("5", "h", owned.clone())));
    assert_eq!(compare(&index, "h"), Difference::Same);
    assert_eq!(compare(&index, "other"), Difference::Differs);
    assert!(!index.watched(entry("5", "h", owned.clone())), "the same version again is no news");
    assert!(!index.watched(entry("4", "old", owned.clone())), "an older one must not win");
    assert!(index.watched(entry("6", "h", owned)));
    assert_eq!(compare(&index, "h"), Difference::Same);
    assert!(index.watched(entry("7", "h", json!({"f:other": {}}))));
    assert_eq!(compare(&index, "h"), Difference::Edited, "somebody took data.a");
}

#[test]
fn an_answer_keeps_the_status_and_the_watch_brings_the_newer_one() {
    let slot = Slot::Child(ChildKind::StatefulSet);
    let read = |version: &str, generation: i64, facts: Facts| {
        let metadata: ObjectMeta = serde_json::from_value(json!({
            "name": "redis", "namespace": "tenant-a", "uid": "u1", "resourceVersion": version, "generation": generation,
        }))
        .expect("metadata");
        Entry::read(slot, &metadata, facts).expect("a name")
    };
    let status = |ready: i32| Facts::Workload { observed_generation: 1, replicas: 2, ready };
    let index = ChildIndex::default();
    index.watched(read("5", 1, status(1)));
    index.watched(read("7", 2, Facts::None).asking(Asked { replicas: Some(0), ..Asked::default() }));
    let known = index.get(slot, "tenant-a", "redis").expect("known");
    assert_eq!((known.generation, &known.facts), (2, &status(1)), "not yet seen by its controller");
    assert_eq!(known.desired, Some(0), "what was written is known before the watch shows it");
    assert!(!index.watched(read("6", 1, status(2))), "older than the answer");
    assert!(index.watched(read("7", 2, status(2))), "the answer's version, with the status of that version");
    assert!(!index.watched(read("7", 2, status(2))));
    let known = index.get(slot, "tenant-a", "redis").expect("known");
    assert_eq!((known.facts, known.desired), (status(2), Some(0)));
}

#[test]
fn a_pod_that_was_told_to_stop_is_on_its_way_before_the_watch_says_so() {
    let index = ChildIndex::default();
    let pod = |uid: &str| {
        let metadata = json!({"name": "bots-a-0", "namespace": "tenant-a", "uid": uid, "resourceVersion": "5"});
        Entry::read(Slot::Pod, &serde_json::from_value(metadata).expect("metadata"), Facts::None).expect("a name")
    };
    let leaves = || index.get(Slot::Pod, "tenant-a", "bots-a-0").map(|pod| pod.deleting);
    index.watched(pod("u2"));
    index.leaves(&pod("u1"));
    assert_eq!(leaves(), Some(false), "its predecessor was");
    index.leaves(&pod("u2"));
    assert_eq!(leaves(), Some(true));
}

#[test]
fn a_listing_forgets_only_what_it_could_have_seen() {
    let index = ChildIndex::default();
    let slot = Slot::Child(ChildKind::ConfigMap);
    index.begin_listing(slot);
    index.answered(entry("5", "h", json!({})));
    assert!(index.finish_listing(slot).is_empty(), "written while the listing ran");
    index.begin_listing(slot);
    assert_eq!(index.finish_listing(slot).len(), 1);
    assert!(index.namespace("tenant-a").is_empty());
}

#[test]
fn equal_texts_are_kept_once_and_not_for_ever() {
    let index = ChildIndex::default();
    let named = |number: usize, owner: usize, owned: &Value| {
        let metadata: ObjectMeta = serde_json::from_value(json!({
            "name": format!("c-{number}"), "namespace": "tenant-a", "uid": format!("u{number}"),
            "ownerReferences": [{"apiVersion": "v1", "kind": "K", "name": "o", "uid": format!("o-{owner}"), "controller": true}],
            "managedFields": [{"manager": "torpor-operator", "operation": "Apply", "fieldsV1": owned}],
        }))
        .expect("metadata");
        index.watched(Entry::read(Slot::Child(ChildKind::ConfigMap), &metadata, Facts::None).expect("a name"));
    };
    let of_owner =
        |owner: usize| json!({"f:metadata": {"f:ownerReferences": {format!("k:{{\"uid\":\"o-{owner}\"}}"): {}}}});
    (0..100).for_each(|number| named(number, number, &of_owner(number)));
    let (names, namespace, fields) = (100, 1, 1);
    assert_eq!(index.lock().shared.texts.count(), names + namespace + fields);
    let owners = 100;
    assert_eq!(index.lock().shared.kin.count(), owners);
    // Each is replaced by the next, as of an object that changes all the time.
    (0..10_000).for_each(|number| named(0, 0, &json!({"f:data": {format!("f:{number}"): {}}})));
    assert!(index.lock().shared.texts.count() <= 3 * compact::FEW, "{}", index.lock().shared.texts.count());
}

#[test]
fn what_was_compared_is_kept_as_a_number_and_its_owner_is_looked_at() {
    let index = ChildIndex::default();
    let reference = |uid: &str| json!({"apiVersion": "v1", "kind": "K", "name": "o", "uid": uid, "controller": true});
    let object = |version: &str, owner: &str| -> ObjectMeta {
        serde_json::from_value(json!({
            "name": "redis", "namespace": "tenant-a", "uid": "u1", "resourceVersion": version,
            "annotations": {"torpor.dev/applied-hash": "h"}, "ownerReferences": [reference(owner)],
            "managedFields": [{"manager": "torpor-operator", "operation": "Apply", "fieldsV1":
                {"f:metadata": {"f:ownerReferences": {format!("k:{{\"uid\":\"{owner}\"}}"): {}}}}}],
        }))
        .expect("metadata")
    };
    let upsert = |version, owner| {
        index.watched(
            Entry::read(Slot::Child(ChildKind::ConfigMap), &object(version, owner), Facts::None).expect("a name"),
        )
    };
    let compare = |uid: &str| {
        let wanted = json!({"metadata": {"name": "redis", "ownerReferences": [reference(uid)]}});
        index.compare(ChildKind::ConfigMap, "tenant-a", "redis", "h", &wanted)
    };
    upsert("5", "o-1");
    assert_eq!(compare("o-2"), Difference::Edited, "another owner is wanted");
    let before = index.lock().shared.texts.count();
    assert_eq!(compare("o-1"), Difference::Same);
    assert_eq!(index.lock().shared.texts.count(), before - 1, "nobody needs the text any more");
    upsert("6", "o-1");
    assert_eq!(index.lock().shared.texts.count(), before - 1, "and not when it comes again");
    upsert("7", "o-2");
    assert_eq!(compare("o-1"), Difference::Edited, "somebody gave it another owner");
}

#[test]
fn a_late_deletion_or_answer_spares_the_successor() {
    let index = ChildIndex::default();
    index.watched(entry("5", "h", json!({})));
    let late = || Entry { uid: "u0".to_owned(), ..entry("4", "h", json!({})) };
    index.answered(late());
    assert_eq!(index.namespace("tenant-a")[0].uid, "u1", "of an object that had gone before");
    index.remove(&late());
    assert_eq!(index.namespace("tenant-a").len(), 1);
}

#[test]
fn nodes_are_in_use_while_pods_that_have_not_ended_are_bound_to_them() {
    let index = ChildIndex::default();
    let pod = |version: &str, node: Option<&str>, ended: bool| {
        let metadata: ObjectMeta = serde_json::from_value(json!({
            "name": "redis-0", "namespace": "tenant-a", "uid": "u1", "resourceVersion": version,
        }))
        .expect("metadata");
        let facts = Facts::Pod { ready: !ended, problem: None, ended, starting: false, cpu: None };
        let asked = Asked { node: node.map(str::to_owned), ..Asked::default() };
        Entry::read(Slot::Pod, &metadata, facts).expect("a name").asking(asked)
    };
    index.watched(pod("1", None, false));
    assert!(index.nodes_in_use().is_empty());
    index.watched(pod("2", Some("node-1"), false));
    index.answered(Entry { facts: Facts::None, ..pod("3", None, false) });
    assert!(index.nodes_in_use().contains("node-1"), "an answer tells nothing of it");
    index.watched(pod("4", Some("node-1"), true));
    assert!(index.nodes_in_use().is_empty());
}

#[test]
fn a_new_namespace_is_known_whoever_tells_of_it_first() {
    let index = ChildIndex::default();
    let slot = Slot::Child(ChildKind::Namespace);
    let home = || Entry { slot, name: "tenant-a".to_owned(), ..entry("5", "h", json!({})) };
    index.watched(entry("3", "h", json!({})));
    index.watched(home());
    index.forget_namespace("tenant-a");
    index.answered(home());
    let known = index.namespace("tenant-a");
    assert!(known.len() == 1 && known[0].slot == slot, "{known:?}");
}

#[test]
fn a_late_answer_brings_back_nothing_that_has_gone() {
    let index = ChildIndex::default();
    let known = || index.namespace("tenant-a").len();
    index.watched(entry("4", "h", json!({})));
    index.remove(&entry("6", "h", json!({})));
    index.answered(entry("5", "h", json!({})));
    assert_eq!(known(), 0, "the watch was further than the answer");
    index.answered(entry("7", "h", json!({})));
    assert_eq!(known(), 1, "and here the answer is further than the watch");
    index.answered(entry("3", "h", json!({})));
    assert_eq!(index.namespace("tenant-a")[0].version, 7);
    // A list that is older than what was watched: nobody knows what the watch will show again.
    let slot = Slot::Child(ChildKind::ConfigMap);
    index.begin_listing(slot);
    assert_eq!(index.finish_listing(slot).len(), 1);
    index.answered(entry("5", "h", json!({})));
    assert_eq!(known(), 1);
}

#[test]
fn a_set_has_the_keys_of_its_old_template_until_its_controller_has_seen_the_new_one() {
    let index = ChildIndex::default();
    let slot = Slot::Child(ChildKind::StatefulSet);
    let read = |version: u32, generation: i64, seen: Option<i64>, secret: &str| {
        let metadata: ObjectMeta = serde_json::from_value(json!({
            "name": "bots-a", "namespace": "tenant-a", "uid": "u1", "resourceVersion": version.to_string(), "generation": generation,
        }))
        .expect("metadata");
        let facts = seen.map_or(Facts::None, |observed_generation| Facts::Workload {
            observed_generation,
            replicas: 1,
            ready: 1,
        });
        let asked = Asked { keys: Some(Keys::of(secret)), ..Asked::default() };
        Entry::read(slot, &metadata, facts).expect("a name").asking(asked)
    };
    let keys = || index.get(slot, "tenant-a", "bots-a").and_then(|set| set.keys);
    index.watched(read(5, 1, Some(1), "old"));
    assert_eq!(keys(), Some(Keys::of("old")));
    index.answered(read(6, 2, None, "new"));
    assert_eq!(keys(), Some(Keys::of("old")), "by the answer to the write");
    index.watched(read(6, 2, Some(1), "new"));
    index.watched(read(7, 2, Some(1), "new"));
    assert_eq!(keys(), Some(Keys::of("old")), "by the watch");
    index.watched(read(8, 2, Some(2), "new"));
    assert_eq!(keys(), Some(Keys::of("new")));
    assert_ne!(Keys::of("old"), Keys::of("new"));
}

//! Judgement from outside: what the audit log, the proxy and the observer say of one run.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::Value;
use torpor_cluster::AuditEvent;

use crate::canonical::SUBJECT;
use crate::observer::{self, Seen};
use crate::record::Record;
use crate::request::text;
use crate::workflow::{self, Pods, Workflow};

/// How often each object was made or ended, by what it is, the subject's name apart.
pub type Counts = BTreeMap<String, usize>;

/// Objects that the operator made, Events apart: their names are made up.
pub fn creations(events: &[AuditEvent], subject: &str) -> Counts {
    let mut made = Counts::new();
    for event in events {
        let stored = event.code == 201 && event.stage == "ResponseComplete" && !event.request_uri.contains("dryRun=");
        let own = event.user_agent.starts_with("torpor-operator/") && event.resource != "events";
        if stored && own && event.subresource.is_empty() && is_about(event, subject) {
            *made.entry(place(event, subject)).or_default() += 1;
        }
    }
    made
}

/// Pods that StatefulSets made, and templates that Deployments were given. kwok ends pods by name, now and then a second time, and hits the one that has come since: where
/// nobody else has asked for a pod's end, its successor does not count.
pub fn pods_made(events: &[AuditEvent], subject: &str) -> Counts {
    let mut made = Counts::new();
    // Of the pods that were made: whether somebody has asked for their end.
    let mut asked = BTreeMap::new();
    let of_pods = |event: &&AuditEvent| event.resource == "pods" && event.subresource.is_empty() && event.code < 300;
    let mut pods: Vec<&AuditEvent> = events.iter().filter(of_pods).filter(|event| is_about(event, subject)).collect();
    // The log notes a request when it was answered; a successor may be made before its predecessor's end was.
    pods.sort_by(|a, b| a.received_timestamp.cmp(&b.received_timestamp));
    for event in pods {
        let place = place(event, subject);
        match event.verb.as_str() {
            // Pods of Deployments get their names from the API server, later than the log notes them.
            "create" if event.code == 201 && event.user.ends_with(":statefulset-controller") => {
                *made.entry(place.clone()).or_default() += 1;
                asked.insert(place, false);
            }
            "delete" if event.user != "kwok" => drop(asked.insert(place, true)),
            "delete" if asked.get(&place) == Some(&false) => {
                made.entry(place).and_modify(|count| *count -= 1);
            }
            _ => {}
        }
    }
    // A template that was none of a Deployment's before is a set of its own, named by its hash.
    let is_set = |event: &&AuditEvent| event.resource == "replicasets" && event.verb == "create" && event.code == 201;
    for event in events.iter().filter(is_set).filter(|event| is_about(event, subject)) {
        let deployment = event.name.rsplit_once('-').map_or(event.name.as_str(), |(name, _)| name).to_owned();
        *made.entry(place(&AuditEvent { name: deployment, ..event.clone() }, subject)).or_default() += 1;
    }
    made
}

/// Whether others than the operator ended the longest silence about the subject: then it had waited for them.
pub fn waited_for_others(events: &[AuditEvent], subject: &str) -> bool {
    let written = |event: &&AuditEvent| {
        let changes = !matches!(event.verb.as_str(), "get" | "list" | "watch") && event.code < 300;
        changes && event.resource != "events" && is_about(event, subject)
    };
    let at = |event: &AuditEvent| event.received_timestamp.parse::<Timestamp>().ok();
    let mut writes: Vec<(Timestamp, bool)> = events
        .iter()
        .filter(written)
        .filter_map(|event| Some((at(event)?, event.user_agent.starts_with("torpor-operator/"))))
        .collect();
    writes.sort_unstable();
    let longest = writes.windows(2).max_by_key(|pair| pair[1].0.duration_since(pair[0].0));
    longest.is_some_and(|pair| !pair[1].1)
}

/// Objects that the operator ended, each incarnation once: to ask again for what goes already does nothing.
pub fn deletions(records: &[Record], subject: &str) -> Counts {
    let ended = records.iter().filter(|record| record.request.verb == "delete" && !record.request.is_lease());
    let reached = ended.filter(|record| record.code.is_none_or(|code| code < 300));
    let incarnations: BTreeSet<(String, &str)> = reached
        .map(|record| {
            let request = &record.request;
            let what = format!("{} {}/{}", request.resource, request.namespace, request.name);
            (what.replace(subject, SUBJECT), record.precondition().unwrap_or_default())
        })
        .collect();
    let mut counts = Counts::new();
    for (what, _) in incarnations {
        *counts.entry(what).or_default() += 1;
    }
    counts
}

fn is_about(event: &AuditEvent, subject: &str) -> bool {
    event.namespace.ends_with(subject) || event.name.contains(subject)
}

fn place(event: &AuditEvent, subject: &str) -> String {
    format!("{} {}/{}", event.resource, event.namespace, event.name).replace(subject, SUBJECT)
}

/// An API server that is killed takes with it what it was about to note in its log, and a request whose sender is killed may have
/// no answer there: only what happened too often is proven. That it happened at all, the objects show.
pub fn complete(found: &mut Counts, expected: &Counts) {
    for (key, count) in expected {
        let found = found.entry(key.clone()).or_default();
        *found = (*found).max(*count);
    }
}

/// Where counts differ.
pub fn counts_differ(what: &str, expected: &Counts, found: &Counts) -> Vec<String> {
    let keys: BTreeSet<&String> = expected.keys().chain(found.keys()).collect();
    let count = |counts: &Counts, key: &String| counts.get(key).copied().unwrap_or_default();
    let differ = keys.into_iter().filter(|key| count(expected, key) != count(found, key));
    differ.map(|key| format!("{what} {} times instead of {}: {key}", count(found, key), count(expected, key))).collect()
}

/// The shortest grace that a bot or a database may be planned with, in seconds. A pod that is replaced is stopped with that of its
/// successor.
const LEAST_GRACE: i64 = 120;
/// Likewise of a Redis.
const REDIS_GRACE: i64 = 60;

/// What no request of the operator may be, whatever happens around it.
pub fn requests(records: &[Record], workflow: &Workflow) -> Vec<String> {
    let mut found = Vec::new();
    for record in records {
        let request = &record.request;
        let mut claim = |holds: bool, what: &str| {
            if !holds {
                found.push(format!("{what}: {request}"));
            }
        };
        let deletes = request.verb.starts_with("delete");
        if deletes {
            claim(request.verb == "delete", "deletes whatever there is");
            claim(record.precondition().is_some(), "deletes without uid");
            let grace = &record.body["gracePeriodSeconds"];
            let least = if request.name.starts_with("redis-") { REDIS_GRACE } else { LEAST_GRACE };
            let enough = request.resource == "pods" && grace.as_i64().is_some_and(|grace| grace >= least);
            claim(grace.is_null() || enough, "deletes with a grace of its own");
            claim(request.resource != "secrets", "deletes a Secret");
            claim(
                request.resource != "persistentvolumeclaims" || workflow.drops_volume(&request.name),
                "deletes a volume",
            );
            claim(request.resource != "namespaces" || workflow.drops_data(), "deletes a namespace");
        }
        if request.resource == "secrets" && request.is_write() {
            claim(request.verb == "create" || deletes, "changes a Secret");
        }
        // A fleet that stands inside a Tenant is the operator's to write.
        let users = matches!(request.resource.as_str(), "tenants" | "workerpools")
            || request.resource == "botfleets" && request.name == workflow::OWN;
        if request.is_write() && !deletes && request.subresource.is_empty() && users {
            claim(!writes_spec(&record.body), "writes a spec");
        }
    }
    found
}

/// Workloads that were written with pods although what these are made of was not: their configuration, the passwords, or what keeps others
/// away. Answers that never came count as a write that did not.
pub fn order(records: &[Record]) -> Vec<String> {
    let mut failed: BTreeSet<(&str, &str)> = BTreeSet::new();
    let mut found = Vec::new();
    let mut writes: Vec<&Record> = records.iter().filter(|record| record.request.subresource.is_empty()).collect();
    writes.retain(|record| matches!(record.request.verb.as_str(), "apply" | "create"));
    for record in writes {
        let (resource, name) = (record.request.resource.as_str(), record.request.name.as_str());
        match resource {
            "statefulsets" | "deployments" => {
                let needs = [("configmaps", name), ("secrets", "torpor-generated"), ("networkpolicies", "default")];
                let lacks = needs.into_iter().filter(|need| failed.contains(need)).map(|(_, need)| need);
                let lacks: Vec<&str> = lacks.collect();
                if record.committed() && record.body["spec"]["replicas"].as_i64() > Some(0) && !lacks.is_empty() {
                    found.push(format!("starts pods without {}: {}", lacks.join(" and "), record.request));
                }
            }
            "configmaps" | "secrets" | "networkpolicies" => {
                // Passwords are there already.
                if record.committed() || resource == "secrets" && record.code == Some(409) {
                    failed.remove(&(resource, name));
                } else {
                    failed.insert((resource, name));
                }
            }
            _ => {}
        }
    }
    found
}

fn writes_spec(body: &Value) -> bool {
    match body {
        Value::Array(operations) => operations.iter().any(|operation| text(&operation["path"]).starts_with("/spec")),
        body => !body["spec"].is_null(),
    }
}

/// What nobody may have seen of pods from that moment on: two of one bot; on the way down a workload that goes up; on the way up, when
/// somebody has logged in since, one that goes down.
pub fn pods(history: &[Seen], from: usize, workflow: &Workflow) -> Vec<String> {
    let mut found = observer::doubled(history);
    for (name, before, after) in observer::scalings(history, from) {
        let wrong = match workflow.pods {
            Pods::Stop => after > before,
            Pods::Start => after < before,
            Pods::Any => false,
        };
        if wrong {
            found.push(format!("{name} went from {before} to {after} pods"));
        }
    }
    found
}

/// What the name of a volume follows in [`data`].
const VOLUME: &str = "PersistentVolumeClaim ";

/// uid of each volume and Secret, and the version of each Secret.
pub fn data(objects: &[Value]) -> BTreeMap<String, String> {
    let held = objects.iter().filter(|object| object["kind"] == "PersistentVolumeClaim" || object["kind"] == "Secret");
    held.map(|object| {
        let metadata = &object["metadata"];
        let version = if object["kind"] == "Secret" { text(&metadata["resourceVersion"]) } else { String::new() };
        (
            format!("{} {}", text(&object["kind"]), text(&metadata["name"])),
            format!("{} {version}", text(&metadata["uid"])),
        )
    })
    .collect()
}

/// Data that is not what it was, unless it may go.
pub fn data_lost(
    before: &BTreeMap<String, String>,
    after: &BTreeMap<String, String>,
    workflow: &Workflow,
) -> Vec<String> {
    let may_go =
        |name: &str| workflow.drops_data() || name.strip_prefix(VOLUME).is_some_and(|name| workflow.drops_volume(name));
    let lost = before.iter().filter(|(name, version)| after.get(*name) != Some(version) && !may_go(name));
    lost.map(|(name, version)| format!("{name} was {version}, is {:?}", after.get(name))).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::json;

    use super::*;
    use crate::request::Request;

    fn record(verb: &str, resource: &str, body: Value) -> Record {
        let request = Request {
            verb: verb.into(),
            resource: resource.into(),
            name: "x".into(),
            namespace: "tenant-c-1".into(),
            ..Request::default()
        };
        let at = Instant::now();
        Record { number: 0, at, ended: at, request, body, code: Some(200), delivered: true, second: false }
    }

    #[test]
    fn what_is_forbidden_is_found() {
        let sleep = workflow::ALL.iter().find(|workflow| workflow.name == "sleep").expect("a workflow");
        let uid = json!({"preconditions": {"uid": "u"}});
        let own = |body: Value| {
            let mut own = record("patch", "botfleets", body);
            workflow::OWN.clone_into(&mut own.request.name);
            own
        };
        let bad = [
            record("delete", "pods", json!({})),
            record("delete", "secrets", uid.clone()),
            record("delete", "persistentvolumeclaims", uid.clone()),
            record("deletecollection", "pods", uid.clone()),
            record("delete", "pods", json!({"preconditions": {"uid": "u"}, "gracePeriodSeconds": 0})),
            record("patch", "secrets", json!({})),
            record("patch", "tenants", json!({"spec": {"tier": "pro"}})),
            own(json!([{"op": "replace", "path": "/spec/replicas", "value": 1}])),
            own(json!({"spec": {"replicas": 0}})),
        ];
        for bad in &bad {
            assert_eq!(requests(std::slice::from_ref(bad), sleep).len(), 1, "{bad:?}");
        }
        let good = [
            record("delete", "pods", uid.clone()),
            record("patch", "tenants", json!({"metadata": {"finalizers": []}})),
            record("apply", "botfleets", json!({"spec": {}})),
            own(json!({"metadata": {"finalizers": []}})),
            record("create", "secrets", json!({})),
        ];
        assert_eq!(requests(&good, sleep), Vec::<String>::new());
        let delete = workflow::ALL.iter().find(|workflow| workflow.drops_data()).expect("a workflow");
        assert!(requests(&[record("delete", "persistentvolumeclaims", uid)], delete).is_empty());
    }

    #[test]
    fn what_starts_without_its_configuration_is_found() {
        let write = |resource: &str, code: u16| {
            let mut record = record("apply", resource, json!({"spec": {"replicas": 1}}));
            record.code = Some(code);
            record
        };
        let (config, set) = (|code| write("configmaps", code), |code| write("statefulsets", code));
        assert_eq!(order(&[config(500), set(200)]).len(), 1);
        assert!(order(&[config(500), set(500), config(200), set(200)]).is_empty());
    }

    #[test]
    fn a_pod_that_kwok_ended_unasked_is_not_made_anew() {
        let event = |verb: &str, user: &str| AuditEvent {
            verb: verb.into(),
            user: user.into(),
            resource: "pods".into(),
            namespace: "tenant-c-1".into(),
            name: "redis-0".into(),
            code: if verb == "create" { 201 } else { 200 },
            ..AuditEvent::default()
        };
        let (made, ended) = (event("create", "x:statefulset-controller"), event("delete", "kwok"));
        let asked = event("delete", "operator");
        let count = |events: &[AuditEvent]| pods_made(events, "c-1").into_values().sum::<usize>();
        assert_eq!(count(&[asked.clone(), ended.clone(), made.clone(), ended.clone(), made.clone()]), 1);
        let late = |event: &AuditEvent, at: &str| AuditEvent { received_timestamp: at.into(), ..event.clone() };
        assert_eq!(count(&[late(&asked, "1"), late(&made, "3"), late(&ended, "2")]), 1, "noted late");
        assert_eq!(count(&[made.clone(), asked, ended, made]), 2);
    }

    #[test]
    fn templates_of_deployments_are_counted_and_who_waits_for_others_is_known() {
        let event = |agent: &str, resource: &str, name: &str, second: u8| AuditEvent {
            user_agent: agent.into(),
            verb: "create".into(),
            resource: resource.into(),
            namespace: "tenant-c-1".into(),
            name: name.into(),
            code: 201,
            received_timestamp: format!("2026-01-01T00:00:{second:02}Z"),
            ..AuditEvent::default()
        };
        let sets =
            ["dashboard-7d9c", "dashboard-55f4", "monitoring-1"].map(|name| event("kcm", "replicasets", name, 1));
        assert_eq!(pods_made(&sets, "c-1").into_values().collect::<Vec<_>>(), [2, 1]);
        let (others, own) = (|at| event("kcm", "pods", "x", at), |at| event("torpor-operator/1", "services", "x", at));
        assert!(waited_for_others(&[own(1), others(30), own(33)], "c-1"));
        assert!(
            !waited_for_others(&[others(1), own(30), others(31), own(33)], "c-1"),
            "it was the operator that was stuck"
        );
    }

    #[test]
    fn an_incarnation_ends_once() {
        let deletion = |uid: &str| record("delete", "pods", json!({"preconditions": {"uid": uid}}));
        let counts = deletions(&[deletion("1"), deletion("1"), deletion("2")], "c-1");
        assert_eq!(counts.into_iter().collect::<Vec<_>>(), vec![("pods tenant-$subject/x".to_owned(), 2)]);
    }

    #[test]
    fn counts_and_data_are_compared() {
        let one = Counts::from([("a".to_owned(), 1)]);
        let mut lost = Counts::from([("b".to_owned(), 2)]);
        complete(&mut lost, &one);
        assert_eq!(counts_differ("made", &one, &lost), vec!["made 2 times instead of 0: b"]);
        assert_eq!(counts_differ("made", &one, &Counts::new()), vec!["made 0 times instead of 1: a"]);
        let secret = |version: &str| {
            vec![json!({"kind": "Secret", "metadata": {"name": "s", "uid": "u", "resourceVersion": version}})]
        };
        let lost = |before: &[Value], after: &[Value], of: &str| {
            let workflow = workflow::ALL.iter().find(|workflow| workflow.name == of).expect("a workflow");
            data_lost(&data(before), &data(after), workflow).len()
        };
        assert_eq!(lost(&secret("1"), &secret("2"), "sleep"), 1);
        assert_eq!(lost(&secret("1"), &secret("1"), "sleep"), 0);
        let volume =
            |name: &str| vec![json!({"kind": "PersistentVolumeClaim", "metadata": {"name": name, "uid": "u"}})];
        let (own, other) = (volume("data-bots-own-0"), volume("data-bots-makers-0"));
        assert_eq!((lost(&own, &[], "end-fleet"), lost(&own, &[], "end-fleet-data")), (1, 0));
        assert_eq!((lost(&other, &[], "end-fleet-data"), lost(&other, &[], "delete-data")), (1, 0));
    }
}

//! An operator that dies at any moment, or is not there, and a CustomResourceDefinition that goes: nothing is made
//! twice, nothing is lost, and the end is the same.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use torpor_cluster::{AuditEvent, AuditMark, Options};

use crate::alone::{self, Rig, items, place, tenants};
use crate::harness::eventually;
use crate::process::TORPOR;

/// Objects that the operator makes or that follow from those, by label.
const MANAGED: &str = "namespaces,serviceaccounts,networkpolicies,resourcequotas,limitranges,secrets,configmaps,\
    services,poddisruptionbudgets,statefulsets,deployments,persistentvolumeclaims,pods,botfleets,priorityclasses";
/// What else it writes on.
const OTHERS: &str = "tenants,workerpools,nodes";
const KILLS: usize = 10;
const TENANTS: usize = 20;
const START: Duration = Duration::from_secs(60);

fn tier(number: usize) -> &'static str {
    ["free", "basic", "free", "basic", "pro"][number % 5]
}

/// Killed at ten random moments of creating twenty tenants, the operator arrives where an undisturbed one does,
/// object for object, and has made nothing twice.
pub fn kills_change_nothing() -> Result<(), String> {
    let manifest = tenants(TENANTS, tier);
    let expected = {
        let rig = Rig::start(Options::default())?;
        rig.apply(&manifest)?;
        rig.await_tenants(TENANTS, Duration::from_secs(240))?;
        rig.await_silence()?;
        snapshot(&rig)?
    };

    let mut random = Random::seeded();
    let mut rig = Rig::start(Options::default())?;
    let start = rig.mark()?;
    let documents: Vec<&str> = manifest.split("---\n").filter(|text| !text.is_empty()).collect();
    let mut made = Vec::new();
    for batch in documents.chunks(TENANTS.div_ceil(KILLS)) {
        rig.apply(&batch.join("---\n"))?;
        std::thread::sleep(Duration::from_millis(random.below(1_200)));
        rig.replace(TORPOR.as_ref(), &[])?;
        made.push(creations(&rig.requests(start)?).len());
        rig.operator.await_ready(START)?;
    }
    rig.await_tenants(TENANTS, Duration::from_secs(240))?;
    rig.await_silence()?;
    let events = rig.requests(start)?;
    let creations = creations(&events);
    println!("faults: seed {}, {} objects made, after each kill {made:?}", random.seed, creations.len());
    if made.windows(2).all(|pair| pair[0] == pair[1]) {
        return Err("no kill hit a creation".to_owned());
    }
    let twice: Vec<_> = creations.iter().filter(|(_, count)| **count > 1).collect();
    if !twice.is_empty() {
        return Err(format!("made twice: {twice:?}"));
    }
    let pods = pods_made_twice(&rig, start)?;
    if !pods.is_empty() {
        return Err(format!("pods started twice: {pods:?}"));
    }
    let deleted: Vec<AuditEvent> = events.into_iter().filter(|event| event.verb.starts_with("delete")).collect();
    alone::none("the operator deleted", &deleted)?;
    equal(&expected, &snapshot(&rig)?)
}

/// How often each object was made, Events apart: their names are made up.
fn creations(events: &[AuditEvent]) -> BTreeMap<String, usize> {
    let mut made = BTreeMap::new();
    for event in events {
        let stored = event.code == 201 && !event.request_uri.contains("dryRun=");
        if stored && event.resource != "events" && event.subresource.is_empty() {
            *made.entry(format!("{} {}/{}", event.resource, event.namespace, event.name)).or_default() += 1;
        }
    }
    made
}

/// Pods of StatefulSets that were made more than once.
fn pods_made_twice(rig: &Rig, start: AuditMark) -> Result<Vec<String>, String> {
    let mut made: BTreeMap<String, usize> = BTreeMap::new();
    for event in rig.audit(start)? {
        // Pods of Deployments get their names from the API server, later than the log notes them.
        let named = event.subresource.is_empty() && !event.name.is_empty();
        if event.resource == "pods" && event.verb == "create" && event.code == 201 && named {
            *made.entry(format!("{}/{}", event.namespace, event.name)).or_default() += 1;
        }
    }
    Ok(made.into_iter().filter(|(_, count)| *count > 1).map(|(name, _)| name).collect())
}

/// Every object without what differs between any two clusters.
fn snapshot(rig: &Rig) -> Result<BTreeMap<String, Value>, String> {
    let mut objects = BTreeMap::new();
    let managed = rig.get(&[MANAGED, "-A", "-l", alone::MANAGED])?;
    let others = rig.get(&[OTHERS])?;
    for object in items(&managed).chain(items(&others)) {
        let mut object = object.clone();
        canonical(&mut object);
        // Pods of a Deployment have random names; there is one of each.
        let replica = object["metadata"]["ownerReferences"][0]["kind"] == "ReplicaSet";
        let name = if replica { object["metadata"]["name"].take() } else { Value::Null };
        let name = match name.as_str().and_then(|name| name.rsplit_once('-')) {
            Some((stem, _)) => format!("{}{stem}", place(&object)),
            None => place(&object),
        };
        let key = format!("{} {name}", object["kind"].as_str().unwrap_or_default());
        if objects.insert(key.clone(), object).is_some() {
            return Err(format!("{key} exists twice"));
        }
    }
    Ok(objects)
}

fn canonical(object: &mut Value) {
    let kind = object["kind"].as_str().unwrap_or_default().to_owned();
    let own = matches!(kind.as_str(), "Tenant" | "BotFleet" | "WorkerPool");
    if kind == "Node" {
        let metadata = &object["metadata"];
        let metadata = json!({"name": metadata["name"], "labels": metadata["labels"]});
        let taints = object["spec"]["taints"].clone();
        *object = json!({"kind": "Node", "metadata": metadata, "spec": {"taints": taints}});
        return;
    }
    if !own {
        // The status of other kinds is what their controllers and kwok make of them.
        object["status"] = Value::Null;
    }
    if kind == "Secret" {
        let keys: Vec<String> =
            object["data"].as_object().map(|data| data.keys().cloned().collect()).unwrap_or_default();
        object["data"] = json!(keys);
    }
    without_chance(object);
}

/// Drops identities, times and places.
fn without_chance(value: &mut Value) {
    const CHANCE: [&str; 14] = [
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "managedFields",
        "clusterIP",
        "clusterIPs",
        "nodeName",
        "volumeName",
        "lastTransitionTime",
        "since",
        "pod-template-hash",
        "controller-revision-hash",
        "kubectl.kubernetes.io/last-applied-configuration",
        // It covers the owner's uid; what else it covers is compared in full.
        "torpor.dev/applied-hash",
    ];
    match value {
        Value::Object(fields) => {
            fields.retain(|key, value| !CHANCE.contains(&key.as_str()) && !value.is_null());
            fields.values_mut().for_each(without_chance);
        }
        Value::Array(values) => values.iter_mut().for_each(without_chance),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn equal(expected: &BTreeMap<String, Value>, found: &BTreeMap<String, Value>) -> Result<(), String> {
    let mut differences = Vec::new();
    for key in expected.keys().chain(found.keys().filter(|key| !expected.contains_key(*key))) {
        let side = |objects: &BTreeMap<String, Value>| objects.get(key).cloned().unwrap_or_default();
        compare(key, &side(expected), &side(found), &mut differences);
    }
    println!("faults: {} objects compared", expected.len());
    if differences.is_empty() {
        return Ok(());
    }
    Err(format!("{} differences:\n{}", differences.len(), differences[..differences.len().min(20)].join("\n")))
}

fn compare(path: &str, expected: &Value, found: &Value, differences: &mut Vec<String>) {
    match (expected, found) {
        (Value::Object(old), Value::Object(new)) => {
            for key in old.keys().chain(new.keys().filter(|key| !old.contains_key(*key))) {
                compare(&format!("{path} {key}"), &expected[key], &found[key], differences);
            }
        }
        _ if expected == found => {}
        _ => {
            let short = |value: &Value| value.to_string().chars().take(200).collect::<String>();
            differences.push(format!("{path}: expected {}, found {}", short(expected), short(found)));
        }
    }
}

/// Numbers that differ from run to run and can be had again by their seed.
struct Random {
    seed: u64,
    state: u64,
}

impl Random {
    fn seeded() -> Self {
        let given = std::env::var("TORPOR_TEST_SEED").ok().and_then(|text| text.parse().ok());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| u64::from(time.subsec_nanos()));
        let seed = given.unwrap_or(now);
        Random { seed, state: seed | 1 }
    }

    /// xorshift64
    fn below(&mut self, limit: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % limit
    }
}

/// Deleting the CustomResourceDefinition of Tenants deletes all of them; no volume and no Secret goes with them,
/// whatever their policy says, and bots stop gracefully first. A deletion that nobody was there to see is finished
/// by the next operator.
pub fn deletions_lose_no_data() -> Result<(), String> {
    let options = Options { graceful_stop: Some(Duration::from_secs(3)), ..Options::default() };
    let mut rig = Rig::start(options)?;
    let manifest =
        tenants(4, |_| "basic").replacen("\"tier\":\"basic\"", "\"tier\":\"basic\",\"deletionPolicy\":\"Delete\"", 2);
    if manifest.matches("Delete").count() != 2 {
        return Err(format!("two tenants should say Delete:\n{manifest}"));
    }
    rig.apply(&manifest)?;
    rig.await_tenants(4, Duration::from_secs(180))?;
    let data = data(&rig)?;
    if data.len() < 4 * (4 + 1) {
        return Err(format!("each tenant has four volumes and a Secret, found {data:?}"));
    }

    let start = rig.mark()?;
    rig.kubectl(&["delete", "crd", "tenants.torpor.dev", "--timeout=60s"])?;
    std::thread::sleep(Duration::from_secs(3));
    if self::data(&rig)? != data {
        return Err("volumes or Secrets went with the CustomResourceDefinition".to_owned());
    }
    let pods = rig.get(&["pods", "-A", "-l", alone::MANAGED])?;
    if items(&pods).count() > 0 {
        return Err(format!("{} pods of deleted tenants still run", items(&pods).count()));
    }
    bots_went_first(&rig.audit(start)?)?;

    install(&rig)?;
    rig.apply(&manifest)?;
    rig.await_tenants(4, Duration::from_secs(180))?;
    if self::data(&rig)? != data {
        return Err("the tenants that came back did not take over their volumes and Secrets".to_owned());
    }

    // Two are deleted while nobody is there: one with each policy.
    rig.operator.terminate()?;
    rig.kubectl(&["delete", "tenant", "basic-0", "basic-2", "--wait=false"])?;
    rig.restart()?;
    rig.kubectl(&["wait", "--for=delete", "tenant/basic-0", "tenant/basic-2", "--timeout=40s"])?;
    rig.kubectl(&["wait", "--for=delete", "namespace/tenant-basic-0", "--timeout=20s"])?;
    let left = self::data(&rig)?;
    let expected: BTreeMap<_, _> = data.into_iter().filter(|(name, _)| !name.contains("tenant-basic-0/")).collect();
    if left != expected {
        return Err(format!("expected {expected:?}\nfound {left:?}"));
    }
    let logs = rig.logs();
    if logs.contains("panicked") { Err(logs) } else { Ok(()) }
}

/// uids of volume claims and Secrets in tenants' namespaces.
fn data(rig: &Rig) -> Result<BTreeMap<String, String>, String> {
    let found = rig.get(&["persistentvolumeclaims,secrets", "-A"])?;
    let uid = |object: &Value| object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    Ok(items(&found).map(|object| (format!("{} {}", object["kind"], place(object)), uid(object))).collect())
}

/// In every namespace the services were deleted only when the last bot had gone, and nobody was forced.
fn bots_went_first(events: &[AuditEvent]) -> Result<(), String> {
    let mut checked = 0;
    for number in 0..4 {
        let namespace = format!("tenant-basic-{number}");
        let here = || events.iter().filter(|event| event.namespace == namespace && event.code < 300);
        let bot = |event: &&AuditEvent| event.resource == "pods" && event.name.starts_with("bots-");
        let ended = here().filter(bot).filter(|event| event.verb == "delete" && event.user == "kwok");
        let last = ended.map(|event| event.stage_timestamp.clone()).max();
        let services = here().filter(|event| event.resource == "statefulsets" && !event.name.starts_with("bots-"));
        let first = services.filter(|event| event.verb == "delete").map(|event| event.stage_timestamp.clone()).min();
        match (last, first) {
            (Some(last), Some(first)) if last < first => checked += 1,
            (last, first) => {
                return Err(format!("{namespace}: last bot gone {last:?}, first service deleted {first:?}"));
            }
        }
    }
    println!("faults: in {checked} namespaces every bot had gone before the first service");
    Ok(())
}

fn install(rig: &Rig) -> Result<(), String> {
    eventually(Duration::from_secs(60), || {
        rig.kubectl(&["apply", "--server-side", "-f", "crds/"])?;
        rig.kubectl(&["wait", "--for=condition=Established", "--timeout=20s", "crd/tenants.torpor.dev"]).map(drop)
    })
}

//! A catalogue that changes what runs of all tenants at once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use torpor_cluster::Options;

use crate::alone::{MANAGED, Rig, place, tenants};
use crate::harness::{condition, eventually};
use crate::hibernation::catalog;
use crate::process::TORPOR;
use crate::tenants::{Watch, ensure, fleet, is_bot, is_ready, same, tenant, text};

const START: Duration = Duration::from_secs(60);
const LIMIT: Duration = Duration::from_secs(180);
/// Tenants with one bot each.
const MANY: usize = 11;
/// At most so many tenants have pods replaced at once, where there are fewer than 250.
const AT_ONCE: usize = 5;
/// Fleets of a tenant of tier pro, and their bots: as many as it may have.
const FLEETS: [(&str, i32); 3] = [("a", 8), ("b", 1), ("c", 1)];

/// NetworkPolicies of all tenants are to change, and a webhook is silent: who is to stop finds a place among those that wait for it.
pub fn what_concerns_all_holds_up_nobody_who_is_awaited() -> Result<(), String> {
    // Four rounds of sixteen passes, which the API server gives up after ten seconds each.
    const ALL: usize = 64;
    let mut rig = Rig::start(Options::default())?;
    rig.apply(&tenants(ALL, |_| "free"))?;
    rig.await_tenants(ALL, LIMIT)?;
    // Takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    let address = silent.local_addr().map_err(|error| error.to_string())?;
    let webhook = json!({
        "name": "silent.torpor.test", "clientConfig": {"url": format!("https://{address}/")}, "failurePolicy": "Fail",
        "timeoutSeconds": 30, "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "rules": [{"apiGroups": ["networking.k8s.io"], "apiVersions": ["v1"], "resources": ["networkpolicies"], "operations": ["*"]}],
    });
    let hook = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "silent"}, "webhooks": [webhook],
    });
    rig.apply(&hook.to_string())?;
    // The API server takes a moment to ask it.
    std::thread::sleep(Duration::from_secs(3));
    rig.replace(TORPOR.as_ref(), &["--not-internet", "203.0.113.0/24"])?;
    rig.operator.await_ready(START)?;
    std::thread::sleep(Duration::from_secs(10));
    let stop = ["free-3", "free-9", "free-15", "free-21"];
    for name in stop {
        rig.kubectl(&["patch", "tenant", name, "--type=merge", "-p", r#"{"spec":{"suspended":true}}"#])?;
    }
    eventually(Duration::from_secs(15), || {
        let asked = |name: &str| -> Result<Value, String> {
            Ok(rig.get(&["statefulset", "bots-makers", "-n", &format!("tenant-{name}")])?["spec"]["replicas"].clone())
        };
        let asked = stop.iter().map(|name| asked(name)).collect::<Result<Vec<_>, _>>()?;
        same("bots", &asked, &vec![json!(0); stop.len()])
    })?;
    rig.kubectl(&["delete", "validatingwebhookconfiguration", "silent"]).map(drop)
}

/// Smaller bots: few tenants at a time lose one, a tenant with several fleets one at a time, and one with as many bots as its tier allows
/// starts each of them again although its quota is to become smaller, too. A class that does not exist: nobody loses any.
pub fn catalogues_change_few_tenants_at_a_time() -> Result<(), String> {
    let options = Options { graceful_stop: Some(Duration::from_secs(1)), ..Options::default() };
    let mut rig = Rig::start(options)?;
    rig.apply(&tenants(MANY, |_| "free"))?;
    rig.apply(
        &tenant("many", json!({"tier": "pro", "fleets": FLEETS.map(|(name, bots)| fleet(name, bots))})).to_string(),
    )?;
    rig.await_tenants(MANY + 1, LIMIT)?;
    let before = bots(&rig)?;
    same("bots", &before.len(), &(MANY + 10))?;

    let watch = Watch::of(&rig.cluster, &["pods", "-A"])?;
    eventually(START, || ensure(watch.events().len() >= before.len(), || "the watch has not started".to_owned()))?;
    let edited = |name: &str, from: &str, to: &str| -> Result<String, String> {
        let file = catalog(&rig.cluster, name, &[])?;
        let built_in = std::fs::read_to_string(&file).map_err(|error| error.to_string())?;
        ensure(built_in.contains(from), || format!("the built-in catalogue has no {from}"))?;
        std::fs::write(&file, built_in.replace(from, to)).map_err(|error| error.to_string())?;
        Ok(file)
    };
    let smaller = edited("smaller", "bot: {cpu: 200m, memory: 512Mi}", "bot: {cpu: 150m, memory: 384Mi}")?;
    same("workloads that are to restart", &foretold(&rig, &smaller)?, &(MANY + FLEETS.len()))?;
    let misspelt = edited("misspelt", "priorityClass: torpor-low", "priorityClass: torpor-slow")?;
    rig.replace(TORPOR.as_ref(), &["--catalog", &smaller])?;
    rig.operator.await_ready(START)?;
    eventually(LIMIT, || {
        let now = bots(&rig)?;
        let old = before.iter().filter(|(bot, uid)| now.get(*bot) == Some(*uid)).count();
        ensure(old == 0 && now.len() == before.len(), || format!("{old} bots are as before"))
    })?;
    rig.await_tenants(MANY + 1, LIMIT)?;
    few_at_a_time(&watch)?;
    eventually(START, || {
        let quota = rig.get(&["resourcequota", "tenant", "-n", "tenant-many"])?;
        // Four services with 2 GiB, ten bots, a backup job.
        same("quota", &quota["spec"]["hard"]["limits.memory"], &json!("6Gi"))
    })?;

    let before = rig.pods(MANAGED)?;
    rig.replace(TORPOR.as_ref(), &["--catalog", &misspelt])?;
    rig.operator.await_ready(START)?;
    eventually(START, || {
        let free = rig.get(&["tenant", "free-0"])?;
        let ready = condition(&free, "Ready");
        let names = text(&ready["message"]).contains("spec.priority.class torpor-slow");
        ensure(ready["reason"] == "Waiting" && names, || format!("not told: {ready}"))
    })?;
    let free = |pods: BTreeMap<String, String>| -> BTreeMap<String, String> {
        pods.into_iter().filter(|(pod, _)| pod.starts_with("tenant-free")).collect()
    };
    same("pods of tier free", &free(rig.pods(MANAGED)?), &free(before))
}

/// Whose pods this catalogue would replace, as docs/install.md tells to look.
fn foretold(rig: &Rig, catalog: &str) -> Result<usize, String> {
    let file = rig.cluster.data_dir().join("all.yaml");
    let all = rig.kubectl(&["get", "tenants,botfleets", "-A", "-o", "yaml"])?;
    std::fs::write(&file, all).map_err(|error| error.to_string())?;
    let file = file.display().to_string();
    let hashes = |arguments: &[&str]| -> Result<Vec<String>, String> {
        let output = Command::new(TORPOR).args(["render", "-f", &file]).args(arguments).output();
        let output = output.map_err(|error| error.to_string())?;
        ensure(output.status.success(), || String::from_utf8_lossy(&output.stderr).into_owned())?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text.lines().filter(|line| line.contains("restart-hash")).map(str::to_owned).collect())
    };
    let (old, new) = (hashes(&[])?, hashes(&["--catalog", catalog])?);
    same("hashes", &old.len(), &new.len())?;
    // On the workload and in its template.
    Ok(old.iter().zip(&new).filter(|(old, new)| old != new).count() / 2)
}

/// uids of all bots.
fn bots(rig: &Rig) -> Result<BTreeMap<String, String>, String> {
    rig.pods("app.kubernetes.io/component=bot")
}

/// At every event: bots of at most so many tenants were missing, stopping or not ready, and of each tenant at most one.
fn few_at_a_time(watch: &Watch) -> Result<(), String> {
    let mut down: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut most = 0;
    for (_, event) in watch.events() {
        let pod: &Value = &event["object"];
        if !is_bot(pod) {
            continue;
        }
        let stopping = !pod["metadata"]["deletionTimestamp"].is_null();
        let of_tenant = down.entry(text(&pod["metadata"]["namespace"])).or_default();
        if event["type"] == "DELETED" || stopping || !is_ready(pod) {
            of_tenant.insert(place(pod));
        } else {
            of_tenant.remove(&place(pod));
        }
        ensure(of_tenant.len() <= 1, || format!("bots of one tenant at once: {of_tenant:?}"))?;
        let tenants = down.values().filter(|bots| !bots.is_empty()).count();
        most = most.max(tenants);
        ensure(tenants <= AT_ONCE, || format!("bots of {tenants} tenants at once: {down:?}"))?;
    }
    ensure(most > 1, || "the watch saw no two tenants at once".to_owned())
}

//! What Tenants do on a real cluster, and the means by which all tests look at it.

pub mod foreign;
pub mod removal;
pub mod stages;
pub mod status;
pub mod tiers;
pub mod timeline;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use torpor_cluster::{AuditEvent, AuditMark, Cluster};

use crate::Ctx;
use crate::harness::{condition, eventually};
use crate::process::TORPOR;

/// What an operator must react within: five seconds on an idle machine. Tests run beside each other on two cores,
/// so the limit that fails them is wider; a reaction that never comes fails all the same.
pub const SOON: Duration = Duration::from_secs(25);

/// A Tenant as its user writes it.
pub fn tenant(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "torpor.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": name}, "spec": spec})
}

/// A fleet as it stands inside a Tenant.
pub fn fleet(name: &str, replicas: i32) -> Value {
    json!({"name": name, "replicas": replicas, "strategy": {"kind": "script", "config": "script_file_name: a.py\n"}})
}

/// Applies an object as a user does.
pub fn apply(ctx: &Ctx, object: &Value) -> Result<(), String> {
    ctx.apply(&object.to_string()).map(drop)
}

/// Changes an object by a merge patch.
pub fn patch(ctx: &Ctx, object: &[&str], change: &Value) -> Result<(), String> {
    ctx.kubectl(&[&["patch", "--type=merge", "-p", &change.to_string()], object].concat()).map(drop)
}

/// All objects of kinds (comma-separated) in a namespace.
pub fn list(ctx: &Ctx, kinds: &str, namespace: &str) -> Result<Vec<Value>, String> {
    Ok(ctx.get(&[kinds, "-n", namespace])?["items"].as_array().cloned().unwrap_or_default())
}

/// uids by `Kind/name`.
pub fn uids(objects: &[Value]) -> BTreeMap<String, String> {
    objects.iter().map(|object| (id(object), text(&object["metadata"]["uid"]))).collect()
}

/// `Kind/name` of an object.
pub fn id(object: &Value) -> String {
    format!("{}/{}", text(&object["kind"]), text(&object["metadata"]["name"]))
}

/// A string of JSON, empty where there is none.
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// An error unless the claim holds.
pub fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}

/// Both sides, if they differ.
pub fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: &T, wanted: &T) -> Result<(), String> {
    ensure(found == wanted, || format!("{what}: {found:?}, wanted {wanted:?}"))
}

/// Waits until a condition of a Tenant or BotFleet has this status and reason, and returns its message.
pub fn await_reason(ctx: &Ctx, object: &[&str], type_: &str, status: &str, reason: &str) -> Result<String, String> {
    await_reason_within(ctx, SOON, object, type_, status, reason)
}

/// The same with another limit.
pub fn await_reason_within(
    ctx: &Ctx,
    limit: Duration,
    object: &[&str],
    type_: &str,
    status: &str,
    reason: &str,
) -> Result<String, String> {
    eventually(limit, || {
        let found = ctx.get(object)?;
        let told = condition(&found, type_);
        ensure(told["status"] == status && told["reason"] == reason, || format!("{object:?} {type_}: {told}"))?;
        Ok(text(&told["message"]))
    })
}

/// The present end of the audit log.
pub fn mark(ctx: &Ctx) -> Result<AuditMark, String> {
    let log = ctx.cluster.audit().ok_or("this test reads the audit log of a cluster of its own")?;
    log.mark().map_err(|error| format!("{error:#}"))
}

/// What the operator has written since the mark, in order. The log follows the answers within a moment.
pub fn writes(ctx: &Ctx, mark: AuditMark) -> Result<Vec<AuditEvent>, String> {
    std::thread::sleep(Duration::from_millis(300));
    let log = ctx.cluster.audit().ok_or("this test reads the audit log of a cluster of its own")?;
    let mut events = log.since(mark).map_err(|error| format!("{error:#}"))?;
    events.retain(|event| {
        event.user_agent.starts_with("torpor-operator/")
            && event.stage == "ResponseComplete"
            && !matches!(event.verb.as_str(), "get" | "list" | "watch")
    });
    Ok(events)
}

/// One request in a few words.
pub fn brief(event: &AuditEvent) -> String {
    let AuditEvent { verb, resource, subresource, namespace, name, code, .. } = event;
    format!("{verb} {resource}/{subresource} {namespace}/{name} {code}")
}

/// Everything that a watch says from its start on, with the time at which it was heard.
pub struct Watch {
    child: Child,
    heard: Arc<Mutex<Vec<(Instant, Value)>>>,
}

impl Watch {
    /// Watches objects of a namespace and returns when those that exist have been shown.
    pub fn existing(ctx: &Ctx, kind: &str, namespace: &str) -> Result<Self, String> {
        let known = list(ctx, kind, namespace)?.len();
        Self::shown(ctx, &[kind, "-n", namespace], known)
    }

    /// The same for what `kubectl get` is asked for, of which so many exist.
    pub fn shown(ctx: &Ctx, what: &[&str], known: usize) -> Result<Self, String> {
        let watch = Self::start(ctx, what)?;
        eventually(SOON, || ensure(watch.events().len() >= known, || "the watch has not started".to_owned()))?;
        Ok(watch)
    }

    /// Watches what `kubectl get` is asked for.
    pub fn start(ctx: &Ctx, what: &[&str]) -> Result<Self, String> {
        Self::of(&ctx.cluster, what)
    }

    /// The same on any cluster.
    pub fn of(cluster: &Cluster, what: &[&str]) -> Result<Self, String> {
        let mut child = Command::new(cluster.bin("kubectl"))
            .args(["get", "--watch", "--output-watch-events", "-o", "json"])
            .args(what)
            .env("KUBECONFIG", cluster.kubeconfig())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| error.to_string())?;
        let output = BufReader::new(child.stdout.take().ok_or("no output")?);
        let heard = Arc::new(Mutex::new(Vec::new()));
        let told = heard.clone();
        std::thread::spawn(move || {
            for event in serde_json::Deserializer::from_reader(output).into_iter::<Value>().map_while(Result::ok) {
                told.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), event));
            }
        });
        Ok(Watch { child, heard })
    }

    /// What was heard until now.
    pub fn events(&self) -> Vec<(Instant, Value)> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a pod's Ready condition holds.
pub fn is_ready(pod: &Value) -> bool {
    condition(pod, "Ready")["status"] == "True"
}

/// Whether a pod is a bot's.
pub fn is_bot(object: &Value) -> bool {
    object["metadata"]["labels"]["app.kubernetes.io/component"] == "bot"
}

/// What `torpor render` prints for a Tenant.
pub fn render(tenant: &Value, arguments: &[&str]) -> Result<Vec<Value>, String> {
    let mut child = Command::new(TORPOR)
        .args(["render", "-f", "-"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(tenant.to_string().as_bytes()).map_err(|error| error.to_string())?;
    }
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    documents(&String::from_utf8_lossy(&output.stdout))
}

/// The documents of a YAML text.
pub fn documents(yaml: &str) -> Result<Vec<Value>, String> {
    let documents = serde_yaml::Deserializer::from_str(yaml).map(serde::Deserialize::deserialize);
    documents.collect::<Result<_, _>>().map_err(|error| error.to_string())
}

/// Objects that Kubernetes makes by itself, or that are counted elsewhere.
const AUTOMATIC: [&str; 8] = [
    "Pod",
    "PersistentVolumeClaim",
    "ReplicaSet",
    "ControllerRevision",
    "EndpointSlice",
    "Endpoints",
    "Event",
    "Lease",
];

/// Everything in a tenant's namespace, and the namespace itself, but what Kubernetes makes by itself.
pub fn objects(ctx: &Ctx, namespace: &str) -> Result<Vec<Value>, String> {
    let kinds = ctx.kubectl(&["api-resources", "--namespaced", "--verbs=list", "-o", "name"])?;
    let kinds: Vec<&str> = kinds.lines().filter(|kind| !kind.contains("metrics.k8s.io")).collect();
    let mut found = list(ctx, &kinds.join(","), namespace)?;
    found.retain(|object| {
        let name = text(&object["metadata"]["name"]);
        !AUTOMATIC.contains(&object["kind"].as_str().unwrap_or_default())
            && !matches!(name.as_str(), "default" if object["kind"] == "ServiceAccount")
            && name != "kube-root-ca.crt"
    });
    found.push(ctx.get(&["namespace", namespace])?);
    Ok(found)
}

/// Whether the objects in the cluster are those that were rendered, each with every rendered field.
pub fn equal_rendered(rendered: &[Value], live: &[Value]) -> Result<(), String> {
    let names = |objects: &[Value]| objects.iter().map(id).collect::<BTreeSet<_>>();
    same("objects in the cluster", &names(live), &names(rendered))?;
    let mut differences = Vec::new();
    for wanted in rendered {
        let found = live.iter().find(|object| id(object) == id(wanted)).unwrap_or(&Value::Null);
        let mut wanted = wanted.clone();
        // Contents of Secrets are made when they are first needed, and never shown.
        wanted.as_object_mut().map(|fields| fields.remove("stringData"));
        differing(&id(&wanted), &wanted, found, &mut differences);
    }
    ensure(differences.is_empty(), || differences.join("\n"))
}

fn differing(path: &str, wanted: &Value, found: &Value, differences: &mut Vec<String>) {
    match (wanted, found) {
        (Value::Object(wanted), Value::Object(found)) => {
            for (key, value) in wanted {
                differing(&format!("{path}.{key}"), value, found.get(key).unwrap_or(&Value::Null), differences);
            }
        }
        (Value::Array(wanted), Value::Array(found)) if wanted.len() == found.len() => {
            for (index, value) in wanted.iter().enumerate() {
                differing(&format!("{path}[{index}]"), value, &found[index], differences);
            }
        }
        // The API server stores an empty list or map as none.
        (Value::Array(wanted), Value::Null) if wanted.is_empty() => {}
        (Value::Object(wanted), Value::Null) if wanted.is_empty() => {}
        _ if wanted == found => {}
        _ => differences.push(format!("{path}: {found}, rendered {wanted}")),
    }
}

//! What the hibernator may do under the account that `examples/rbac-hibernator.yaml` gives it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::Ctx;
use crate::harness::eventually;
use crate::tenants::{SOON, ensure, same};

const NAMESPACE: &str = "torpor-system";
const ACCOUNT: &str = "torpor-hibernator";

const EVERYWHERE: [&str; 4] = [
    "get torpor.dev/tenants",
    "list torpor.dev/tenants",
    "watch torpor.dev/tenants",
    "patch torpor.dev/tenants/status",
];
const IN_DEFAULT: [&str; 2] = ["create events.k8s.io/events", "patch events.k8s.io/events"];
const AT_HOME: [&str; 12] = [
    "create coordination.k8s.io/leases",
    "get coordination.k8s.io/leases torpor-hibernator",
    "update coordination.k8s.io/leases torpor-hibernator",
    "patch coordination.k8s.io/leases torpor-hibernator",
    "create /configmaps",
    "get /configmaps torpor-breaker",
    "list /configmaps torpor-breaker",
    "watch /configmaps torpor-breaker",
    "update /configmaps torpor-breaker",
    "patch /configmaps torpor-breaker",
    "create events.k8s.io/events",
    "patch events.k8s.io/events",
];

/// The worst that a program with more rights could do: verb, group, resource, name.
const DENIED: [(&str, &str, &str, &str); 13] = [
    ("get", "", "secrets", "postgres"),
    ("list", "", "secrets", ""),
    ("create", "", "pods", ""),
    ("delete", "", "pods", "bots-makers-0"),
    ("update", "apps", "deployments", "dashboard"),
    ("patch", "apps", "statefulsets", "postgres"),
    ("patch", "torpor.dev", "tenants", "alice"),
    ("update", "torpor.dev", "tenants", "alice"),
    ("delete", "torpor.dev", "tenants", "alice"),
    ("list", "", "configmaps", ""),
    ("get", "", "configmaps", "another"),
    ("patch", "", "configmaps", "another"),
    ("update", "coordination.k8s.io", "leases", "torpor-operator"),
];

/// The account may do exactly what the file says, in every namespace; the API server answers it accordingly.
pub fn the_hibernator_may_only_decide(ctx: &Ctx) -> Result<(), String> {
    ctx.apply_file("examples/rbac-hibernator.yaml")?;
    // Every account may ask a few things, such as what it may do.
    ctx.apply(&format!(
        r#"{{"apiVersion":"v1","kind":"ServiceAccount","metadata":{{"name":"nobody","namespace":"{NAMESPACE}"}}}}"#
    ))?;
    let (hibernator, nobody) = (account(ctx, ACCOUNT)?, account(ctx, "nobody")?);
    for (namespace, more) in [(NAMESPACE, &AT_HOME[..]), ("default", &IN_DEFAULT), ("kube-system", &[])] {
        let wanted: BTreeSet<String> = EVERYWHERE.iter().chain(more).map(|&right| right.to_owned()).collect();
        // The API server takes a moment to know new roles.
        eventually(SOON, || {
            let common = rights(ctx, &nobody, namespace)?;
            let found = rights(ctx, &hibernator, namespace)?.difference(&common).cloned().collect();
            same(namespace, &found, &wanted)
        })?;
    }

    for namespace in [NAMESPACE, "default", "kube-system"] {
        for (verb, group, resource, name) in DENIED {
            let what = json!({
                "namespace": namespace, "verb": verb, "group": group, "resource": resource, "name": name,
            });
            let spec = json!({"resourceAttributes": what});
            let answer = review(ctx, &hibernator, "SelfSubjectAccessReview", &spec)?;
            ensure(answer["allowed"] == false, || format!("{what}: {answer}"))?;
        }
    }
    as_account(ctx, &hibernator, &["get", "tenants"], "")?;
    let watched = "--field-selector=metadata.name=torpor-breaker";
    as_account(ctx, &hibernator, &["get", "configmaps", "-n", NAMESPACE, watched], "")?;
    let refused = as_account(ctx, &hibernator, &["get", "configmaps", "-n", NAMESPACE], "");
    ensure(refused.as_ref().is_err_and(|error| error.contains("Forbidden")), || format!("all ConfigMaps: {refused:?}"))
}

/// A kubeconfig with which one is an account of Torpor's namespace.
pub fn account(ctx: &Ctx, name: &str) -> Result<PathBuf, String> {
    ctx.cluster.kubeconfig_for_service_account(NAMESPACE, name).map_err(|error| format!("{error:#}"))
}

/// Every verb on every resource, with the name it is bound to, if any.
pub fn rights(ctx: &Ctx, kubeconfig: &Path, namespace: &str) -> Result<BTreeSet<String>, String> {
    let answer = review(ctx, kubeconfig, "SelfSubjectRulesReview", &json!({"namespace": namespace}))?;
    ensure(answer["incomplete"] == false, || answer.to_string())?;
    let mut found = BTreeSet::new();
    for rule in answer["resourceRules"].as_array().into_iter().flatten() {
        let texts = |key: &str| -> Vec<String> {
            rule[key].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let names = if rule["resourceNames"].is_array() { texts("resourceNames") } else { vec![String::new()] };
        for verb in texts("verbs") {
            for group in texts("apiGroups") {
                for resource in texts("resources") {
                    found
                        .extend(names.iter().map(|name| format!("{verb} {group}/{resource} {name}").trim().to_owned()));
                }
            }
        }
    }
    Ok(found)
}

/// What the API server thinks of the asking account.
fn review(ctx: &Ctx, kubeconfig: &Path, kind: &str, spec: &Value) -> Result<Value, String> {
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec});
    let text =
        as_account(ctx, kubeconfig, &["create", "--validate=false", "-f", "-", "-o", "json"], &review.to_string())?;
    let mut answer: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
    Ok(answer["status"].take())
}

fn as_account(ctx: &Ctx, kubeconfig: &Path, arguments: &[&str], input: &str) -> Result<String, String> {
    ctx.kubectl_stdin(&[&["--kubeconfig", &kubeconfig.display().to_string()], arguments].concat(), input)
}

//! What the holder of the operator's token in particular would try.

use serde_json::{Value, json};

use super::requests::{
    HOME, Hostile, OTHER, apps, core, delete, home_of_tenant, object, patch, post, privileged, restricted, with,
    workload,
};

/// What the operator in particular may not do: its rights know no namespaces and no fields.
pub fn of_the_operator() -> Vec<Hostile> {
    let mut all = workloads();
    all.extend(elsewhere());
    all
}

/// Workloads where none belong, and pods that could do more than a tenant's.
fn workloads() -> Vec<Hostile> {
    let tenant = home_of_tenant();
    let set = |what, spec: &Value| {
        post(what, apps(&home_of_tenant(), "statefulsets"), workload("StatefulSet", "hostile", spec))
    };
    let volumes = |volume: Value| with(restricted(), json!({"volumes": [volume]}));
    let service =
        |spec: Value| object("Service", "v1", "hostile", json!({"spec": with(json!({"ports": [{"port": 1}]}), spec)}));
    let bot = "pods/bots-makers-0/resize";
    let resources =
        |container: &str, change: &Value| json!({"spec": {"containers": [{"name": container, "resources": change}]}});
    vec![
        post(
            "run a StatefulSet in kube-system",
            apps("kube-system", "statefulsets"),
            workload("StatefulSet", "hostile", &privileged()),
        ),
        post(
            "run a Deployment beside Torpor",
            apps(HOME, "deployments"),
            workload("Deployment", "hostile", &restricted()),
        ),
        set("give a tenant's pod a token", &with(restricted(), json!({"automountServiceAccountToken": true}))),
        set("give a tenant's pod another account", &with(restricted(), json!({"serviceAccountName": "default"}))),
        set("give a tenant's pod a folder of its node", &volumes(json!({"name": "v", "hostPath": {"path": "/"}}))),
        set(
            "give a tenant's pod a token by a volume",
            &volumes(json!({"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}})),
        ),
        set("give a tenant's pod its node's network", &with(restricted(), json!({"hostNetwork": true}))),
        set(
            "put a tenant's pod on a node past the scheduler",
            &with(restricted(), json!({"nodeName": "worker-low-0"})),
        ),
        post("open a tenant to the world", core(&tenant, "services"), service(json!({"type": "LoadBalancer"}))),
        post("take over an address", core(&tenant, "services"), service(json!({"externalIPs": ["192.0.2.1"]}))),
        patch(
            "give a foreign pod more CPU",
            core(OTHER, "pods/app/resize"),
            resources("main", &json!({"limits": {"cpu": "1"}})),
        ),
        patch("give a bot more memory", core(&tenant, bot), resources("bot", &json!({"limits": {"memory": "600Mi"}}))),
        patch("make a bot claim its node", core(&tenant, bot), resources("bot", &json!({"requests": {"cpu": "150m"}}))),
        post("make a Service elsewhere", core(OTHER, "services"), service(json!({}))),
    ]
}

/// Namespaces that are no tenant's, and what is in them.
fn elsewhere() -> Vec<Hostile> {
    let tenant = home_of_tenant();
    let labelled = |name: &str, labels: Value| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
    let managed = json!({"torpor.dev/tenant": "hostile", "app.kubernetes.io/managed-by": "torpor"});
    vec![
        post(
            "make a tenant's namespace without Pod Security",
            "/api/v1/namespaces",
            labelled("tenant-hostile", managed.clone()),
        ),
        post(
            "make a namespace of another name",
            "/api/v1/namespaces",
            labelled("hostile", with(managed, json!({"pod-security.kubernetes.io/enforce": "restricted"}))),
        ),
        patch(
            "lower a tenant's Pod Security",
            format!("/api/v1/namespaces/{tenant}"),
            json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "privileged"}}}),
        ),
        patch(
            "give a tenant's namespace away",
            format!("/api/v1/namespaces/{tenant}"),
            json!({"metadata": {"labels": {"torpor.dev/tenant": "other"}}}),
        ),
        delete("delete a namespace named like a tenant's", "/api/v1/namespaces/tenant-lookalike"),
        patch(
            "change a namespace named like a tenant's",
            "/api/v1/namespaces/tenant-lookalike",
            json!({"metadata": {"labels": {"torpor.dev/tenant": "lookalike", "app.kubernetes.io/managed-by": "torpor", "pod-security.kubernetes.io/enforce": "restricted"}}}),
        ),
        post(
            "write to a namespace named like a tenant's",
            core("tenant-lookalike", "configmaps"),
            object("ConfigMap", "v1", "hostile", json!({})),
        ),
        post(
            "write a ConfigMap beside Torpor",
            core(HOME, "configmaps"),
            object("ConfigMap", "v1", "hostile", json!({})),
        ),
        patch(
            "release the breaker",
            core(HOME, "configmaps/torpor-breaker"),
            json!({"metadata": {"annotations": {"torpor.dev/hold": "hostile"}}}),
        ),
        post("make a Secret elsewhere", core(OTHER, "secrets"), object("Secret", "v1", "hostile", json!({}))),
        post(
            "make a fleet elsewhere",
            format!("/apis/torpor.dev/v1alpha1/namespaces/{OTHER}/botfleets"),
            object(
                "BotFleet",
                "torpor.dev/v1alpha1",
                "hostile",
                json!({"spec": {"replicas": 1, "strategy": {"kind": "script", "config": "a: b\n"}}}),
            ),
        ),
        patch(
            "change a fleet elsewhere",
            format!("/apis/torpor.dev/v1alpha1/namespaces/{OTHER}/botfleets/stray"),
            json!({"spec": {"replicas": 2}}),
        ),
        post(
            "open a foreign namespace's network",
            format!("/apis/networking.k8s.io/v1/namespaces/{OTHER}/networkpolicies"),
            object(
                "NetworkPolicy",
                "networking.k8s.io/v1",
                "hostile",
                json!({"spec": {"podSelector": {}, "ingress": [{}]}}),
            ),
        ),
        post(
            "make another Lease",
            format!("/apis/coordination.k8s.io/v1/namespaces/{HOME}/leases"),
            object("Lease", "coordination.k8s.io/v1", "hostile", json!({"spec": {}})),
        ),
    ]
}

//! What somebody would try who holds the token of one of Torpor's accounts. All of it is asked for as a dry run, so that
//! a request that is let through changes nothing.

use serde_json::{Value, json};

/// Namespace of somebody else, with things of his.
pub const OTHER: &str = "bystander";
/// A tenant that is served.
pub const TENANT: &str = "victim";

/// One request.
pub struct Hostile {
    /// In words.
    pub what: &'static str,
    /// HTTP method.
    pub method: &'static str,
    /// Path and query.
    pub path: String,
    /// Body, if any.
    pub body: Value,
    /// Whom it claims to come from.
    pub impersonates: Option<&'static str>,
    /// Whether an administrator's dry run of it shows that it is a request that could succeed. Streams cannot be tried
    /// without a kubelet.
    pub provable: bool,
}

fn request(method: &'static str, what: &'static str, path: impl Into<String>, body: Value) -> Hostile {
    Hostile { what, method, path: path.into(), body, impersonates: None, provable: true }
}

pub(super) fn get(what: &'static str, path: impl Into<String>) -> Hostile {
    request("GET", what, path, Value::Null)
}

pub(super) fn post(what: &'static str, path: impl Into<String>, body: Value) -> Hostile {
    request("POST", what, path, body)
}

pub(super) fn patch(what: &'static str, path: impl Into<String>, body: Value) -> Hostile {
    request("PATCH", what, path, body)
}

pub(super) fn delete(what: &'static str, path: impl Into<String>) -> Hostile {
    request("DELETE", what, path, Value::Null)
}

fn stream(what: &'static str, method: &'static str, path: impl Into<String>) -> Hostile {
    Hostile { provable: false, ..request(method, what, path, Value::Null) }
}

pub(super) fn core(namespace: &str, rest: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/{rest}")
}

pub(super) fn apps(namespace: &str, rest: &str) -> String {
    format!("/apis/apps/v1/namespaces/{namespace}/{rest}")
}

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1";
pub(super) const HOME: &str = crate::rights::HOME;

pub(super) fn home_of_tenant() -> String {
    format!("tenant-{TENANT}")
}

pub(super) fn object(kind: &str, api_version: &str, name: &str, rest: Value) -> Value {
    let mut object = json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name}});
    if let (Some(fields), Value::Object(more)) = (object.as_object_mut(), rest) {
        fields.extend(more);
    }
    object
}

fn pod(name: &str, spec: Value) -> Value {
    object("Pod", "v1", name, json!({"spec": spec}))
}

pub(super) fn restricted() -> Value {
    json!({
        "automountServiceAccountToken": false,
        "serviceAccountName": "tenant",
        "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{
            "name": "main", "image": "example.com/tool",
            "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
        }],
    })
}

pub(super) fn with(mut spec: Value, changes: Value) -> Value {
    if let (Some(fields), Value::Object(more)) = (spec.as_object_mut(), changes) {
        fields.extend(more);
    }
    spec
}

pub(super) fn privileged() -> Value {
    let container = json!({"name": "main", "image": "example.com/tool", "securityContext": {"privileged": true}});
    json!({"hostPID": true, "hostNetwork": true, "containers": [container]})
}

pub(super) fn workload(kind: &str, name: &str, spec: &Value) -> Value {
    let labels = json!({"hostile": name});
    let template = json!({"metadata": {"labels": labels}, "spec": spec});
    object(kind, "apps/v1", name, json!({"spec": {"selector": {"matchLabels": labels}, "template": template}}))
}

fn everything() -> Value {
    json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}])
}

fn binding(kind: &str, role: &str, account: &str) -> Value {
    let subject = json!({"kind": "ServiceAccount", "name": account, "namespace": HOME});
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role});
    object(kind, "rbac.authorization.k8s.io/v1", "hostile", json!({"subjects": [subject], "roleRef": role}))
}

fn webhook(kind: &str) -> Value {
    let hook = json!({
        "name": "hostile.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": {"url": "https://127.0.0.1:1/"},
    });
    object(kind, "admissionregistration.k8s.io/v1", "hostile", json!({"webhooks": [hook]}))
}

/// What no account of Torpor's may do.
pub fn of_anybody(account: &str) -> Vec<Hostile> {
    let tenant = home_of_tenant();
    let token = || object("TokenRequest", "authentication.k8s.io/v1", "", json!({"metadata": {}, "spec": {}}));
    let secret_token = json!({
        "type": "kubernetes.io/service-account-token",
        "metadata": {"name": "hostile", "annotations": {"kubernetes.io/service-account.name": "default"}},
    });
    let claim = json!({"torpor.dev/tenant": OTHER, "app.kubernetes.io/managed-by": "torpor"});
    let mut all = secrets(&tenant);
    all.extend(rbac(account, &tenant));
    all.extend(machinery());
    all.extend(nodes());
    all.extend(pods(&tenant));
    all.extend([
        post(
            "ask for a token of kube-system",
            core("kube-system", "serviceaccounts/namespace-controller/token"),
            token(),
        ),
        post("ask for a token of the operator", core(HOME, "serviceaccounts/torpor-operator/token"), token()),
        post("ask for a token of a tenant", core(&tenant, "serviceaccounts/tenant/token"), token()),
        post(
            "have a token made as a Secret",
            core("kube-system", "secrets"),
            object("Secret", "v1", "x", secret_token.clone()),
        ),
        post(
            "have a tenant's token made as a Secret",
            core(&tenant, "secrets"),
            object("Secret", "v1", "x", secret_token),
        ),
        patch(
            "claim a foreign namespace",
            format!("/api/v1/namespaces/{OTHER}"),
            json!({"metadata": {"labels": claim}}),
        ),
        patch("claim kube-system", "/api/v1/namespaces/kube-system", json!({"metadata": {"labels": claim}})),
        post("make a namespace", "/api/v1/namespaces", object("Namespace", "v1", "hostile", json!({}))),
        delete("delete a foreign namespace", format!("/api/v1/namespaces/{OTHER}")),
        delete("delete Torpor's namespace", format!("/api/v1/namespaces/{HOME}")),
        patch(
            "change kube-system",
            core("kube-system", "configmaps/extension-apiserver-authentication"),
            json!({"data": {"a": "b"}}),
        ),
        post(
            "write to kube-system",
            core("kube-system", "configmaps"),
            object("ConfigMap", "v1", "hostile", json!({})),
        ),
        patch("change a foreign ConfigMap", core(OTHER, "configmaps/settings"), json!({"data": {"a": "b"}})),
        delete("delete a foreign ConfigMap", core(OTHER, "configmaps/settings")),
        patch("change a foreign Deployment", apps(OTHER, "deployments/app"), json!({"spec": {"replicas": 9}})),
        delete("delete a foreign Deployment", apps(OTHER, "deployments/app")),
        patch(
            "change Torpor's own Deployment",
            apps(HOME, "deployments/torpor-operator"),
            json!({"spec": {"replicas": 9}}),
        ),
        delete("delete a foreign volume claim", core(OTHER, "persistentvolumeclaims/disk")),
        patch(
            "change a tenant's spec",
            format!("/apis/torpor.dev/v1alpha1/tenants/{TENANT}"),
            json!({"spec": {"tier": "premium"}}),
        ),
        post(
            "make a Tenant",
            "/apis/torpor.dev/v1alpha1/tenants",
            crate::tenants::tenant("hostile", json!({"tier": "free"})),
        ),
        delete("delete a Tenant", format!("/apis/torpor.dev/v1alpha1/tenants/{TENANT}")),
        patch(
            "change a pool",
            "/apis/torpor.dev/v1alpha1/workerpools/worker-low",
            json!({"spec": {"maxTenantsPerNode": 1}}),
        ),
        delete("delete a pool", "/apis/torpor.dev/v1alpha1/workerpools/worker-low"),
        patch(
            "take kube-system's lease",
            "/apis/coordination.k8s.io/v1/namespaces/bystander/leases/theirs",
            json!({"spec": {"holderIdentity": "me"}}),
        ),
        post(
            "report on a foreign pod",
            format!("/apis/events.k8s.io/v1/namespaces/{OTHER}/events"),
            event("Pod", "v1", OTHER),
        ),
    ]);
    all
}

fn event(kind: &str, api_version: &str, namespace: &str) -> Value {
    object(
        "Event",
        "events.k8s.io/v1",
        "hostile",
        json!({
            "eventTime": "2026-01-01T00:00:00.000000Z", "type": "Normal", "reason": "Hostile", "action": "Hostile",
            "note": "hostile", "reportingController": "hostile", "reportingInstance": "hostile",
            "regarding": {"kind": kind, "apiVersion": api_version, "name": "app", "namespace": namespace},
        }),
    )
}

fn secrets(tenant: &str) -> Vec<Hostile> {
    vec![
        get("read all Secrets", "/api/v1/secrets"),
        get("watch all Secrets", "/api/v1/secrets?watch=true&timeoutSeconds=1"),
        get("read Secrets of kube-system", core("kube-system", "secrets")),
        get("read Secrets of Torpor", core(HOME, "secrets")),
        get("read Torpor's webhook key", core(HOME, "secrets/webhook-key")),
        get("read Secrets of a tenant", core(tenant, "secrets")),
        get("read a tenant's passwords", core(tenant, "secrets/torpor-generated")),
        get("read a foreign Secret", core(OTHER, "secrets/keys")),
        patch(
            "change a tenant's passwords",
            core(tenant, "secrets/torpor-generated"),
            json!({"stringData": {"a": "b"}}),
        ),
        delete("delete a tenant's passwords", core(tenant, "secrets/torpor-generated")),
        Hostile {
            impersonates: Some("system:kube-controller-manager"),
            ..get("read Secrets as somebody else", "/api/v1/secrets")
        },
    ]
}

fn rbac(account: &str, tenant: &str) -> Vec<Hostile> {
    let role = |kind| object(kind, "rbac.authorization.k8s.io/v1", "hostile", json!({"rules": everything()}));
    let wide = json!({"rules": everything()});
    vec![
        post(
            "bind cluster-admin",
            format!("{RBAC}/clusterrolebindings"),
            binding("ClusterRoleBinding", "cluster-admin", account),
        ),
        post(
            "bind cluster-admin in kube-system",
            format!("{RBAC}/namespaces/kube-system/rolebindings"),
            binding("RoleBinding", "cluster-admin", account),
        ),
        post(
            "bind admin in a tenant's namespace",
            format!("{RBAC}/namespaces/{tenant}/rolebindings"),
            binding("RoleBinding", "admin", account),
        ),
        post("make a ClusterRole", format!("{RBAC}/clusterroles"), role("ClusterRole")),
        post("make a Role", format!("{RBAC}/namespaces/{tenant}/roles"), role("Role")),
        patch("widen its own rights", format!("{RBAC}/clusterroles/{account}"), wide.clone()),
        patch("widen a role of others", format!("{RBAC}/clusterroles/view"), wide),
        patch(
            "bind its own rights to all",
            format!("{RBAC}/clusterrolebindings/{account}"),
            json!({"subjects": [{"kind": "Group", "name": "system:authenticated", "apiGroup": "rbac.authorization.k8s.io"}]}),
        ),
    ]
}

/// Policies, webhooks, definitions and what else the API server itself obeys.
fn machinery() -> Vec<Hostile> {
    let definition = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let request = json!({
        "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"],
        "request": "LS0tLS1CRUdJTg==",
    });
    let class = json!({"value": 1, "globalDefault": true, "description": "hostile"});
    vec![
        patch(
            "loosen the operator's policy",
            format!("{POLICIES}/validatingadmissionpolicies/torpor-operator"),
            json!({"spec": {"failurePolicy": "Ignore"}}),
        ),
        delete("delete the operator's policy", format!("{POLICIES}/validatingadmissionpolicies/torpor-operator")),
        delete("unbind the operator's policy", format!("{POLICIES}/validatingadmissionpolicybindings/torpor-operator")),
        post(
            "make a validating webhook",
            format!("{POLICIES}/validatingwebhookconfigurations"),
            webhook("ValidatingWebhookConfiguration"),
        ),
        post(
            "make a mutating webhook",
            format!("{POLICIES}/mutatingwebhookconfigurations"),
            webhook("MutatingWebhookConfiguration"),
        ),
        patch(
            "change a definition",
            format!("{definition}/tenants.torpor.dev"),
            json!({"spec": {"preserveUnknownFields": false}}),
        ),
        delete("delete a definition, and with it all tenants", format!("{definition}/tenants.torpor.dev")),
        Hostile {
            provable: false,
            ..post(
                "ask for a certificate",
                "/apis/certificates.k8s.io/v1/certificatesigningrequests",
                object("CertificateSigningRequest", "certificates.k8s.io/v1", "hostile", json!({"spec": request})),
            )
        },
        post(
            "make a default PriorityClass",
            "/apis/scheduling.k8s.io/v1/priorityclasses",
            object("PriorityClass", "scheduling.k8s.io/v1", "hostile", class),
        ),
        delete("delete a foreign PriorityClass", "/apis/scheduling.k8s.io/v1/priorityclasses/theirs"),
        post(
            "make a volume of a node's folder",
            "/api/v1/persistentvolumes",
            object(
                "PersistentVolume",
                "v1",
                "hostile",
                json!({"spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/"}}}),
            ),
        ),
        post(
            "make a StorageClass",
            "/apis/storage.k8s.io/v1/storageclasses",
            object("StorageClass", "storage.k8s.io/v1", "hostile", json!({"provisioner": "example.com/none"})),
        ),
        get("read the API server's metrics", "/metrics"),
        get("read whom the API server serves first", "/debug/api_priority_and_fairness/dump_priority_levels"),
    ]
}

fn nodes() -> Vec<Hostile> {
    let node = "/api/v1/nodes/worker-low-0";
    vec![
        stream("read a kubelet through its node", "GET", format!("{node}/proxy/pods")),
        stream("run a command through a node", "POST", format!("{node}/proxy/run/kube-system/x/y?cmd=id")),
        patch("cordon a node", node, json!({"spec": {"unschedulable": true}})),
        patch("label a node", node, json!({"metadata": {"labels": {"kubernetes.io/hostname": "other"}}})),
        patch("note on a node", node, json!({"metadata": {"annotations": {"hostile": "yes"}}})),
        patch(
            "taint a node",
            node,
            json!({"spec": {"taints": [{"key": "hostile", "value": "yes", "effect": "NoExecute"}]}}),
        ),
        patch(
            "drive all pods from a node by the taint of pools",
            node,
            json!({"spec": {"taints": [{"key": "torpor.dev/pool", "value": "hostile", "effect": "NoExecute"}]}}),
        ),
        patch("change a node's status", format!("{node}/status"), json!({"status": {"allocatable": {"cpu": "1"}}})),
        delete("delete a node", node),
    ]
}

fn pods(tenant: &str) -> Vec<Hostile> {
    let daemon = workload("DaemonSet", "hostile", &privileged());
    let eviction = object("Eviction", "policy/v1", "app", json!({}));
    let bots = "pods/bots-makers-0";
    vec![
        post("run a privileged pod in kube-system", core("kube-system", "pods"), pod("hostile", privileged())),
        post(
            "run a privileged pod beside Torpor",
            core(HOME, "pods"),
            pod("hostile", with(privileged(), json!({"serviceAccountName": "torpor-operator"}))),
        ),
        post(
            "run a pod in a foreign namespace",
            core(OTHER, "pods"),
            pod("hostile", with(restricted(), json!({"serviceAccountName": "default"}))),
        ),
        stream("run a pod in a tenant's namespace", "POST", core(tenant, "pods")),
        post("run on every node", apps("kube-system", "daemonsets"), daemon),
        stream("run a command in a bot", "POST", core(tenant, &format!("{bots}/exec?command=id"))),
        stream("attach to a bot", "POST", core(tenant, &format!("{bots}/attach"))),
        stream("reach a bot's ports", "POST", core(tenant, &format!("{bots}/portforward"))),
        stream("reach a bot through the API server", "GET", core(tenant, &format!("{bots}/proxy/"))),
        stream("read a bot's log", "GET", core(tenant, &format!("{bots}/log"))),
        stream("put a container into a bot's pod", "PATCH", core(tenant, &format!("{bots}/ephemeralcontainers"))),
        stream("bind a pod to a node", "POST", core(OTHER, "pods/app/binding")),
        post("evict a foreign pod", core(OTHER, "pods/app/eviction"), eviction),
        delete("delete a foreign pod", core(OTHER, "pods/app")),
        stream("delete all pods of kube-system", "DELETE", core("kube-system", "pods")),
        post(
            "run a job in a foreign namespace",
            format!("/apis/batch/v1/namespaces/{OTHER}/jobs"),
            object(
                "Job",
                "batch/v1",
                "hostile",
                json!({"spec": {"template": {"spec": with(restricted(), json!({"serviceAccountName": "default", "restartPolicy": "Never"}))}}}),
            ),
        ),
    ]
}

fn status(what: &'static str, change: Value) -> Hostile {
    patch(what, format!("/apis/torpor.dev/v1alpha1/tenants/{TENANT}/status"), json!({"status": change}))
}

fn ready() -> Value {
    json!([{"type": "Ready", "status": "False", "reason": "Hostile", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}])
}

/// What the hibernator in particular may not do: its rights know no fields.
pub fn of_the_hibernator() -> Vec<Hostile> {
    vec![
        status("report activity", json!({"lastActivityTime": "2026-01-01T00:00:00Z"})),
        status("ask for sleep as a user", json!({"requests": {"sleepRequestedAt": "2026-01-01T00:00:00Z"}})),
        status("say what stage is reached", json!({"hibernation": {"stage": "DatabaseOnly"}})),
        status("say whether a tenant is ready", json!({"conditions": ready()})),
        status("say where volumes are", json!({"retainedVolumes": ["hostile"]})),
        get("read all ConfigMaps of Torpor", core(HOME, "configmaps")),
        post("make another ConfigMap", core(HOME, "configmaps"), object("ConfigMap", "v1", "hostile", json!({}))),
        post(
            "make another Lease",
            format!("/apis/coordination.k8s.io/v1/namespaces/{HOME}/leases"),
            object("Lease", "coordination.k8s.io/v1", "hostile", json!({"spec": {}})),
        ),
        delete("delete the breaker", core(HOME, "configmaps/torpor-breaker")),
        post("report on a pod", "/apis/events.k8s.io/v1/namespaces/default/events", event("Pod", "v1", "default")),
    ]
}

/// What the gateway in particular may not do.
pub fn of_the_gateway() -> Vec<Hostile> {
    let decision = json!({"stage": "DatabaseOnly", "basedOn": "2026-01-01T00:00:00Z"});
    vec![
        status("decide who sleeps", json!({"hibernation": {"decision": decision}})),
        status("say what stage is reached", json!({"hibernation": {"stage": "DatabaseOnly"}})),
        status("say whether a tenant is ready", json!({"conditions": ready()})),
        status("say when a wake-up was through", json!({"wake": {"seconds": 1}})),
        get("read all ConfigMaps", "/api/v1/configmaps"),
        get("read all pods", "/api/v1/pods"),
        patch(
            "take the operator's Lease",
            format!("/apis/coordination.k8s.io/v1/namespaces/{HOME}/leases/torpor-operator"),
            json!({"spec": {"holderIdentity": "me"}}),
        ),
        patch(
            "release the breaker",
            core(HOME, "configmaps/torpor-breaker"),
            json!({"metadata": {"annotations": {"torpor.dev/hold": "hostile"}}}),
        ),
        post(
            "report on a tenant",
            "/apis/events.k8s.io/v1/namespaces/default/events",
            event("Tenant", "torpor.dev/v1alpha1", ""),
        ),
    ]
}

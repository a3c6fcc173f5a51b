//! What the crate promises, on real clusters.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use torpor_cluster::{Cluster, NodeSpec, Options};

const STATEFUL: &str = r#"
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  replicas: 1
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      nodeSelector: {size: "y"}
      initContainers: [{name: first, image: none}]
      containers:
      - {name: main, image: none, readinessProbe: {tcpSocket: {port: 1}}, volumeMounts: [{name: data, mountPath: /data}]}
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOncePod], resources: {requests: {storage: 1Gi}}}
"#;

fn small(graceful_stop: Option<Duration>) -> Options {
    Options {
        nodes_per_pool: 1,
        extra_nodes: vec![NodeSpec::new("extra").label("size", "y")],
        graceful_stop,
        ..Options::default()
    }
}

fn pod(name: &str, component: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app.kubernetes.io/component: {component}}}}}, \
         spec: {{containers: [{{name: c, image: none}}]}}}}"
    )
}

/// How long a Running pod takes to go.
fn time_to_delete(cluster: &Cluster, name: &str, component: &str) -> Duration {
    cluster.kubectl_stdin(["create", "-f", "-"], &pod(name, component)).unwrap();
    let ready = ["wait", "--for=condition=Ready", "--timeout=30s", "pod", name];
    cluster.kubectl(ready).unwrap();
    let started = Instant::now();
    cluster.kubectl(["delete", "pod", name]).unwrap();
    started.elapsed()
}

#[test]
fn two_clusters_side_by_side() {
    let slow = Duration::from_secs(3);
    let (one, two) = std::thread::scope(|scope| {
        let one = scope.spawn(|| Cluster::start(small(None)).unwrap());
        let two = scope.spawn(|| Cluster::start(small(Some(slow))).unwrap());
        (one.join().unwrap(), two.join().unwrap())
    });

    one.kubectl_stdin(["apply", "-f", "-"], STATEFUL).unwrap();
    one.kubectl(["rollout", "status", "statefulset/db", "--timeout=30s"]).unwrap();
    let nodes = one.kubectl(["get", "nodes", "-o=name"]).unwrap();
    assert_eq!(nodes.lines().count(), 5);
    let none = two.kubectl(["get", "statefulsets", "-o=name"]).unwrap();
    assert_eq!(none, "");

    assert!(time_to_delete(&one, "bot", "bot") < slow);
    assert!(time_to_delete(&two, "bot", "bot") >= slow);
    assert!(time_to_delete(&two, "other", "gateway") < slow);
    let unlabelled =
        "{apiVersion: v1, kind: Pod, metadata: {name: bare}, spec: {containers: [{name: c, image: none}]}}";
    two.kubectl_stdin(["create", "-f", "-"], unlabelled).unwrap();
    two.kubectl(["wait", "--for=condition=Ready", "--timeout=30s", "pod/bare"]).unwrap();
    two.kubectl(["delete", "pod/bare", "--timeout=2s"]).unwrap();

    let data = [one.data_dir().to_owned(), two.data_dir().to_owned()];
    one.stop();
    two.stop();
    assert!(data.iter().all(|dir| !dir.exists()));
}

#[test]
fn users_audit_and_restarts() {
    let cluster = Cluster::start(small(None)).unwrap();
    let audit = cluster.audit().unwrap();
    let mark = audit.mark().unwrap();

    let user = cluster.kubeconfig_for("anna", &["devs", "yes"]).unwrap();
    let as_anna = |args: &[&str]| {
        let output = Command::new(cluster.bin("kubectl")).arg("--kubeconfig").arg(&user).args(args).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let who = as_anna(&["auth", "whoami", "-o=jsonpath={.status.userInfo.groups}"]);
    assert_eq!(who, r#"["devs","yes","system:authenticated"]"#);
    as_anna(&["get", "pods", "-n", "kube-system"]);
    let events = audit.since(mark).unwrap();
    let seen = events.iter().find(|event| event.user == "anna" && event.resource == "pods").unwrap();
    assert_eq!((seen.verb.as_str(), seen.code), ("list", 403));
    assert!(seen.user_agent.starts_with("kubectl/v1.37.2"));

    for name in ["etcd", "kube-apiserver", "kwok"] {
        cluster.kill_component(name).unwrap();
        cluster.restart_component(name).unwrap();
    }
    cluster.kubectl(["get", "nodes"]).unwrap();
    let error = cluster.kill_component("kubelet").unwrap_err().to_string();
    assert!(error.contains("kube-scheduler"), "{error}");
    let error = cluster.kubectl(["get", "nothing"]).unwrap_err().to_string();
    assert!(error.contains("doesn't have a resource type"), "{error}");
}

#[test]
fn failing_component_shows_its_log() {
    let options = Options { service_cidr: "nonsense".into(), ..Options::default() };
    let error = Cluster::start(options).err().unwrap().to_string();
    assert!(error.starts_with("kube-apiserver ended") && error.contains("is not a valid cidr"), "{error}");
}

#[test]
fn kept_data_stays() {
    let dir = std::env::temp_dir().join(format!("torpor-kept-{}", std::process::id()));
    let options = Options { keep_dir: Some(dir.clone()), ..small(None) };
    Cluster::start(options.clone()).unwrap().stop();
    assert!(dir.join("kube-apiserver.log").exists());
    let again = Cluster::start(options).err().unwrap().to_string();
    assert!(again.contains("is not empty"), "{again}");
    fs::remove_dir_all(dir).unwrap();
}

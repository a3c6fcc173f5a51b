//! The pods and worlds that the checks use.

use std::{
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::node::{Cluster, TOOLS_IMAGE, World};

/// A public-looking address, kept for documentation.
pub(super) const INTERNET: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// Its name.
pub(super) const EXCHANGE: &str = "exchange.test";
/// Where clouds hand out a node's credentials.
pub(super) const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// A neighbour in a private range.
pub(super) const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 7);

/// How long a connection that is let through may take: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(15);

/// Namespaces `a` with a client and `b` with a server, each on another node, and the worlds.
pub(super) struct Lab<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) internet: Arc<World>,
    pub(super) metadata: Arc<World>,
    pub(super) neighbour: Arc<World>,
}

impl<'a> Lab<'a> {
    pub(super) fn set_up(cluster: &'a Cluster) -> Result<Self> {
        let lab = Self {
            cluster,
            internet: cluster.world("internet", &[INTERNET])?,
            metadata: cluster.world("metadata", &[METADATA])?,
            neighbour: cluster.world("neighbour", &[NEIGHBOUR])?,
        };
        let [first, second] = [0, 1].map(|index| lab.node(index));
        for name in ["a", "b"] {
            lab.apply(&json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
            }))?;
        }
        lab.apply(&pod("a", "client", first, "exec sleep 100000"))?;
        lab.apply(&pod(
            "b",
            "server",
            second,
            "echo hello >/tmp/index.html; nc -lk 9000 >/tmp/heard & exec httpd -f -p 8080 -h /tmp",
        ))?;
        lab.apply(&json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "server", "namespace": "b"},
            "spec": {"selector": {"app": "server"}, "ports": [{"port": 80, "targetPort": "web"}]},
        }))?;
        lab.wait_ready("a", "client")?;
        lab.wait_ready("b", "server")?;
        Ok(lab)
    }

    /// The name of a node; of the first if there are not so many.
    pub(super) fn node(&self, index: usize) -> &str {
        let workers = self.cluster.workers();
        workers.get(index).unwrap_or(&workers[0]).name()
    }

    pub(super) fn apply(&self, object: &Value) -> Result<()> {
        self.cluster.kubectl_stdin(["apply", "-f", "-"], &object.to_string()).map(drop)
    }

    pub(super) fn get(&self, args: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&self.cluster.kubectl([&["get", "-o=json"], args].concat())?)?)
    }

    pub(super) fn wait_ready(&self, namespace: &str, pod: &str) -> Result<()> {
        let pod = format!("pod/{pod}");
        self.cluster.kubectl(["wait", "-n", namespace, "--for=condition=Ready", &pod, "--timeout=60s"]).map(drop)
    }

    pub(super) fn address(&self, namespace: &str, pod: &str) -> Result<Ipv4Addr> {
        let pod = self.get(&["-n", namespace, "pod", pod])?;
        pod["status"]["podIP"].as_str().context("the pod has no address")?.parse().context("the pod's address")
    }

    pub(super) fn sh(&self, namespace: &str, pod: &str, script: &str) -> Result<String> {
        self.cluster.exec_in_pod(namespace, pod, None, &["sh", "-c", script])
    }

    /// Whether the client gets an answer over HTTP within two seconds.
    fn gets(&self, url: &str) -> bool {
        self.sh("a", "client", &format!("timeout 2 wget -qO- http://{url}")).is_ok()
    }

    /// The client gets an answer, now or soon.
    pub(super) fn passes(&self, url: &str) -> Result<()> {
        let started = Instant::now();
        while !self.gets(url) {
            ensure!(started.elapsed() < PATIENCE, "the client does not reach {url}");
        }
        Ok(())
    }

    /// The client gets no answer. A policy may need a moment, so the first answers do not count.
    pub(super) fn blocked(&self, url: &str) -> Result<()> {
        let started = Instant::now();
        while self.gets(url) {
            ensure!(started.elapsed() < Duration::from_secs(2), "the client still reaches {url}");
        }
        Ok(())
    }

    pub(super) fn policy(&self, namespace: &str, name: &str, spec: Value) -> Result<()> {
        self.apply(&json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": namespace}, "spec": spec,
        }))
    }

    pub(super) fn no_policies(&self) -> Result<()> {
        for namespace in ["a", "b"] {
            self.cluster.kubectl(["delete", "networkpolicy", "--all", "-n", namespace])?;
        }
        Ok(())
    }
}

/// A pod of tools that the restricted standard admits; a shell runs `script`. Its port 8080 is called `web`.
pub(super) fn pod(namespace: &str, name: &str, node: &str, script: &str) -> Value {
    let probe = script.contains("httpd").then(|| json!({"httpGet": {"port": "web", "path": "/"}, "periodSeconds": 1}));
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": false,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 1234, "runAsGroup": 1234, "fsGroup": 2345,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "main", "image": TOOLS_IMAGE, "imagePullPolicy": "Never",
                "command": ["sh", "-c", script],
                "ports": [{"name": "web", "containerPort": 8080}],
                "readinessProbe": probe,
                "resources": {"limits": {"memory": "64Mi"}},
                "securityContext": {
                    "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
            }],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        },
    })
}

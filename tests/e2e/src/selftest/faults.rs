//! What scenarios do to nodes and to the control plane.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::lab::Lab;
use crate::node::{Container, TOOLS_IMAGE};

fn running(lab: &Lab, index: usize) -> Result<Vec<Container>> {
    lab.cluster.worker(lab.node(index))?.containers()
}

/// The same processes run after it, and the node is Ready.
pub(super) fn kubelet_restart(lab: &Lab) -> Result<()> {
    let before = running(lab, 1)?;
    let server = before.iter().find(|one| (&*one.namespace, &*one.pod, &*one.name) == ("b", "server", "main"));
    let server = server.context("the server's container is not listed")?;
    ensure!(server.pid.is_some(), "it has no process: {server:?}");
    lab.cluster.worker(lab.node(1))?.restart_kubelet()?;
    std::thread::sleep(Duration::from_secs(5));
    lab.wait_ready("b", "server")?;
    ensure!(running(lab, 1)? == before, "other containers run: {before:?}");
    Ok(())
}

/// The node becomes NotReady, its pods answer all the while and are not started anew.
pub(super) fn partition(lab: &Lab) -> Result<()> {
    let worker = lab.cluster.worker(lab.node(1))?;
    let before = worker.containers()?;
    worker.partition()?;
    let started = Instant::now();
    let node = format!("node/{}", worker.name());
    let found_out = lab.cluster.kubectl(["wait", &node, "--for=condition=Ready=Unknown", "--timeout=60s"]);
    let answers = lab.passes(&format!("{}:8080/", lab.address("b", "server")?));
    let during = worker.containers()?;
    worker.heal()?;
    found_out?;
    println!("        NotReady after {:.0} s", started.elapsed().as_secs_f32());
    answers?;
    ensure!(during == before, "other containers run: {before:?}, then {during:?}");
    lab.cluster.kubectl(["wait", &node, "--for=condition=Ready", "--timeout=60s"])?;
    ensure!(worker.containers()? == before, "other containers run after it was healed");
    Ok(())
}

/// Without an API server pods go on, and with it again everything does.
pub(super) fn control_plane(lab: &Lab) -> Result<()> {
    let before = running(lab, 1)?;
    lab.cluster.kill_component("kube-apiserver")?;
    ensure!(lab.cluster.kubectl(["get", "--raw=/livez"]).is_err(), "the API server still answers");
    ensure!(running(lab, 1)? == before, "containers ended with the API server");
    lab.cluster.start_component("kube-apiserver")?;
    lab.cluster.wait_for_api_server()?;
    lab.passes("server.b/")
}

/// A drained node's pods start elsewhere.
pub(super) fn drain(lab: &Lab) -> Result<()> {
    // They belong to nobody, and a drain refuses to evict what does not come back.
    lab.cluster.kubectl(["delete", "pod", "client", "-n", "a"])?;
    lab.cluster.kubectl(["delete", "pod", "server", "-n", "b"])?;
    lab.apply(&json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "movable", "namespace": "b"},
        "spec": {
            "selector": {"matchLabels": {"app": "movable"}},
            "template": {"metadata": {"labels": {"app": "movable"}}, "spec": {
                "terminationGracePeriodSeconds": 1,
                "securityContext": {"runAsNonRoot": true, "runAsUser": 1234, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [{
                    "name": "main", "image": TOOLS_IMAGE, "imagePullPolicy": "Never", "command": ["sleep", "100000"],
                    "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                }],
            }},
        },
    }))?;
    let node = || -> Result<String> {
        lab.cluster.kubectl(["rollout", "status", "deployment/movable", "-n", "b", "--timeout=60s"])?;
        let pods = lab.get(&["pods", "-n", "b", "-l", "app=movable"])?;
        let pods = pods["items"].as_array().context("no list")?;
        let pod = pods.iter().find(|pod| pod["metadata"]["deletionTimestamp"].is_null()).context("no pod")?;
        Ok(pod["spec"]["nodeName"].as_str().context("no node")?.to_owned())
    };
    let from = node()?;
    lab.cluster.drain(&from, Duration::from_secs(60))?;
    let to = node()?;
    lab.cluster.uncordon(&from)?;
    ensure!(from != to || lab.cluster.workers().len() == 1, "the pod is still on {from}");
    Ok(())
}

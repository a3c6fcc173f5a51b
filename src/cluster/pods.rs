//! The little that is read of pods, and of the workloads that make them: what passes decide from.

use kube::api::Object;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::index::{Asked, Entry, Facts, Keys, Slot};
use crate::domain::names::KEYS_VOLUME;
use crate::domain::quantity::Cpu;

/// The part of a workload's spec that tells how many pods it wants, and with whose keys. The API server fills in what is left out.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct WorkloadSpec {
    replicas: Option<i32>,
    template: Template,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Template {
    spec: PodSpec,
}

impl WorkloadSpec {
    pub(super) fn asked(&self) -> Asked {
        Asked { replicas: self.replicas, node: None, keys: self.template.spec.keys() }
    }
}

/// The part of a pod's spec that tells where it runs, what it may use, and whose keys it has.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PodSpec {
    node_name: Option<String>,
    containers: Vec<Container>,
    volumes: Vec<Volume>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Volume {
    name: String,
    secret: Option<SecretVolume>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SecretVolume {
    secret_name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Container {
    resources: Resources,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Resources {
    limits: Limits,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Limits {
    cpu: Option<String>,
}

/// The part of a pod's status that tells whether it works and why not.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PodStatus {
    phase: String,
    conditions: Vec<PodCondition>,
    init_container_statuses: Vec<ContainerStatus>,
    container_statuses: Vec<ContainerStatus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct PodCondition {
    #[serde(rename = "type")]
    type_: String,
    status: String,
    reason: String,
    message: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ContainerStatus {
    name: String,
    restart_count: i32,
    resources: Option<IgnoredAny>,
    state: ContainerState,
    last_state: ContainerState,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ContainerState {
    running: Option<IgnoredAny>,
    waiting: Option<Waiting>,
    terminated: Option<Terminated>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Waiting {
    reason: String,
    message: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Terminated {
    reason: String,
    exit_code: i32,
}

/// Longest problem text that is kept of a pod.
const PROBLEM_LENGTH: usize = 200;

impl PodSpec {
    pub(super) fn asked(&self) -> Asked {
        Asked { replicas: None, node: self.node_name.clone(), keys: self.keys() }
    }

    fn keys(&self) -> Option<Keys> {
        let mut volumes = self.volumes.iter().filter(|volume| volume.name == KEYS_VOLUME);
        volumes.find_map(|volume| volume.secret.as_ref()).map(|secret| Keys::of(&secret.secret_name))
    }

    pub(super) fn facts(&self, status: Option<&PodStatus>) -> Facts {
        let limit = self.containers.first().and_then(|container| container.resources.limits.cpu.as_deref());
        let cpu = limit.and_then(|text| Cpu::parse(text).ok());
        let Some(status) = status else {
            return Facts::Pod { ready: false, problem: None, ended: false, starting: false, cpu };
        };
        let ready = status.conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
        let problem = if ready { None } else { container_problem(status).or_else(|| scheduling_problem(status)) };
        let ended = matches!(status.phase.as_str(), "Succeeded" | "Failed");
        let containers = status.init_container_statuses.iter().chain(&status.container_statuses);
        // Only a container that runs, on a node that reports its resources, can be given others: asked for while it is made,
        // the larger limit may reach the container before its pod, and the kernel then refuses to start it.
        let runs = status.container_statuses.iter().any(|one| one.state.running.is_some() && one.resources.is_some());
        let restarts = containers.map(|container| container.restart_count).sum::<i32>();
        let starting = !ready && !ended && runs && restarts == 0;
        let problem = problem.map(|text| text.chars().take(PROBLEM_LENGTH).collect());
        Facts::Pod { ready, problem, ended, starting, cpu }
    }
}

/// A pod as the index keeps it.
pub(super) fn entry(pod: &Object<PodSpec, PodStatus>) -> Option<Entry> {
    let entry = Entry::read(Slot::Pod, &pod.metadata, pod.spec.facts(pod.status.as_ref()))?;
    Some(entry.asking(pod.spec.asked()))
}

fn scheduling_problem(status: &PodStatus) -> Option<String> {
    let condition = status.conditions.iter().find(|c| c.type_ == "PodScheduled" && c.status == "False")?;
    Some(format!("{}: {}", condition.reason, condition.message))
}

/// Waiting reasons of a start that goes its normal way.
const NORMAL: [&str; 2] = ["ContainerCreating", "PodInitializing"];

fn container_problem(status: &PodStatus) -> Option<String> {
    status.init_container_statuses.iter().chain(&status.container_statuses).find_map(|container| {
        let waiting = container.state.waiting.as_ref().filter(|w| !NORMAL.contains(&w.reason.as_str()));
        let terminated = container.state.terminated.as_ref().or(container.last_state.terminated.as_ref());
        let failed = terminated.filter(|t| t.exit_code != 0);
        match (waiting, failed) {
            (None, None) => None,
            (Some(waiting), None) => Some(format!("{}: {} {}", container.name, waiting.reason, waiting.message)),
            (None, Some(end)) => Some(format!("{}: {} (exit code {})", container.name, end.reason, end.exit_code)),
            (Some(waiting), Some(end)) => Some(format!(
                "{}: {} after exit code {} ({})",
                container.name, waiting.reason, end.exit_code, end.reason
            )),
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn problem(status: serde_json::Value) -> Facts {
        let spec = json!({"containers": [{"resources": {"limits": {"cpu": "200m"}}}]});
        let spec: PodSpec = serde_json::from_value(spec).expect("a spec");
        spec.facts(Some(&serde_json::from_value(status).expect("a status")))
    }

    fn facts(ready: bool, problem: Option<&str>, ended: bool, starting: bool) -> Facts {
        Facts::Pod { ready, problem: problem.map(str::to_owned), ended, starting, cpu: Some(Cpu(200)) }
    }

    #[test]
    fn a_pod_says_why_it_is_not_ready() {
        assert_eq!(
            problem(json!({"conditions": [{"type": "Ready", "status": "True"}]})),
            facts(true, None, false, false)
        );
        assert_eq!(
            problem(
                json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/8 nodes"}]})
            ),
            facts(false, Some("Unschedulable: 0/8 nodes"), false, false)
        );
        assert_eq!(
            problem(
                json!({"containerStatuses": [{"name": "bot", "restartCount": 1, "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {"exitCode": 4, "reason": "Error"}}}]})
            ),
            facts(false, Some("bot: CrashLoopBackOff after exit code 4 (Error)"), false, false)
        );
        assert_eq!(
            problem(
                json!({"containerStatuses": [{"name": "bot", "state": {"waiting": {"reason": "ContainerCreating"}}}]})
            ),
            facts(false, None, false, false)
        );
        assert_eq!(problem(json!({"phase": "Failed"})), facts(false, None, true, false));
    }

    #[test]
    fn only_what_runs_for_the_first_time_and_can_be_resized_is_starting() {
        let starting = |container: serde_json::Value| {
            matches!(problem(json!({"containerStatuses": [container]})), Facts::Pod { starting: true, .. })
        };
        let told = json!({"limits": {"cpu": "200m"}});
        assert!(starting(json!({"name": "bot", "state": {"running": {}}, "resources": told})));
        assert!(!starting(json!({"name": "bot", "state": {"running": {}}})), "its node says nothing of resources");
        assert!(!starting(json!({"name": "bot", "state": {"waiting": {}}, "resources": told})), "it is being made");
        let again = json!({"name": "bot", "restartCount": 1, "state": {"running": {}}, "resources": told});
        assert!(!starting(again), "it has ended before");
    }
}

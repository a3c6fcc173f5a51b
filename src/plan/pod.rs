//! What all pods share: security, scheduling, resources, volumes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, ConfigMapVolumeSource, Container, EmptyDirVolumeSource, EnvVar, EnvVarSource, ExecAction,
    KeyToPath, LocalObjectReference, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm,
    ObjectFieldSelector, PersistentVolumeClaim, PersistentVolumeClaimSpec, PodSecurityContext, PodSpec,
    PodTemplateSpec, Probe, ResourceRequirements, SeccompProfile, SecretKeySelector, SecretVolumeSource,
    SecurityContext, Toleration, TopologySpreadConstraint, Volume, VolumeMount, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::scope::Scope;
use super::settings::UserNamespaces;
use crate::domain::names::{self, Component, annotation, label};
use crate::domain::quantity::{Bytes, Cpu, Size};

/// Where the generated Secret's files appear in a container.
pub(super) const SECRETS: &str = "/run/secrets/torpor";
/// Name of the claim template, and of the volume, that holds a workload's data.
pub(super) const DATA: &str = "data";
/// Owner and group may read: the group is the pod's `fsGroup`, so the pod's user reads its files.
const GROUP_READABLE: i32 = 0o440;

/// One part's pod.
pub(super) struct Pod {
    pub component: Component,
    /// User, group and `fsGroup` of all containers.
    pub user: i64,
    /// Seconds between the wish to stop and the kill.
    pub grace_seconds: i64,
    pub init_containers: Vec<Container>,
    pub container: Container,
    pub volumes: Vec<Volume>,
    pub annotations: BTreeMap<String, String>,
}

impl Scope<'_> {
    /// The pod template of one part.
    pub fn template(&self, pod: Pod) -> PodTemplateSpec {
        let settings = self.settings;
        let spread = (pod.component == Component::Bot).then(|| vec![self.spread_over_nodes()]);
        let secrets = &settings.image_pull_secrets;
        let pull_secrets = secrets.iter().map(|name| LocalObjectReference { name: name.clone() }).collect();
        let spec = PodSpec {
            affinity: Some(self.affinity()),
            automount_service_account_token: Some(false),
            containers: vec![pod.container],
            enable_service_links: Some(false),
            host_users: match settings.user_namespaces {
                UserNamespaces::On => Some(false),
                UserNamespaces::Off => None,
            },
            image_pull_secrets: (!secrets.is_empty()).then_some(pull_secrets),
            init_containers: (!pod.init_containers.is_empty()).then_some(pod.init_containers),
            priority_class_name: Some(self.context.priority_class.clone()),
            security_context: Some(PodSecurityContext {
                fs_group: Some(pod.user),
                // A recursive change of ownership at every start takes minutes on a large volume.
                fs_group_change_policy: Some("OnRootMismatch".to_owned()),
                run_as_group: Some(pod.user),
                run_as_non_root: Some(true),
                run_as_user: Some(pod.user),
                seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
                ..PodSecurityContext::default()
            }),
            service_account_name: Some(names::SERVICE_ACCOUNT.to_owned()),
            termination_grace_period_seconds: Some(pod.grace_seconds),
            // The affinity already says which pools; naming them here, too, would only make the
            // template change whenever a pool does.
            tolerations: Some(vec![Toleration {
                key: Some(label::POOL.to_owned()),
                operator: Some("Exists".to_owned()),
                effect: Some("NoSchedule".to_owned()),
                ..Toleration::default()
            }]),
            topology_spread_constraints: spread,
            volumes: (!pod.volumes.is_empty()).then_some(pod.volumes),
            ..PodSpec::default()
        };
        PodTemplateSpec {
            metadata: Some(ObjectMeta {
                labels: Some(self.labels(pod.component)),
                annotations: (!pod.annotations.is_empty()).then_some(pod.annotations),
                ..ObjectMeta::default()
            }),
            spec: Some(spec),
        }
    }

    fn affinity(&self) -> Affinity {
        let pools = NodeSelectorRequirement {
            key: label::POOL.to_owned(),
            operator: "In".to_owned(),
            values: Some(self.context.affinity_pools()),
        };
        let terms = vec![NodeSelectorTerm { match_expressions: Some(vec![pools]), match_fields: None }];
        Affinity {
            node_affinity: Some(NodeAffinity {
                required_during_scheduling_ignored_during_execution: Some(NodeSelector { node_selector_terms: terms }),
                ..NodeAffinity::default()
            }),
            ..Affinity::default()
        }
    }

    /// One lost node should not take all of a tenant's bots; a full pool must not keep any waiting.
    fn spread_over_nodes(&self) -> TopologySpreadConstraint {
        TopologySpreadConstraint {
            max_skew: 1,
            topology_key: "kubernetes.io/hostname".to_owned(),
            when_unsatisfiable: "ScheduleAnyway".to_owned(),
            label_selector: Some(super::network::pods(self.tenant(), &[Component::Bot])),
            ..TopologySpreadConstraint::default()
        }
    }

    /// The claim template of a workload's data. It has no owner: claims outlive workloads. It has
    /// every label but the tier, which may change, as templates of claims cannot.
    pub fn claim(&self, component: Component, storage: Bytes) -> PersistentVolumeClaim {
        let mut labels = self.labels(component);
        labels.remove(label::TIER);
        PersistentVolumeClaim {
            metadata: ObjectMeta { name: Some(DATA.to_owned()), labels: Some(labels), ..ObjectMeta::default() },
            spec: Some(PersistentVolumeClaimSpec {
                access_modes: Some(vec![self.settings.volume_access.as_str().to_owned()]),
                resources: Some(VolumeResourceRequirements {
                    requests: Some([("storage".to_owned(), Quantity(storage.to_string()))].into()),
                    limits: None,
                }),
                storage_class_name: self.settings.storage_class.clone(),
                // The API server's default; written out so that an unchanged object compares equal.
                volume_mode: Some("Filesystem".to_owned()),
                ..PersistentVolumeClaimSpec::default()
            }),
            status: None,
        }
    }
}

/// A container that the Pod Security level `restricted` accepts.
pub(super) fn container(name: &str, image: &str, requests: Size, limits: Size) -> Container {
    Container {
        name: name.to_owned(),
        image: Some(image.to_owned()),
        // For the tag `latest` Kubernetes would ask the registry at every start; a tenant must wake without it.
        image_pull_policy: Some("IfNotPresent".to_owned()),
        resources: Some(ResourceRequirements {
            requests: Some(quantities(requests)),
            limits: Some(quantities(limits)),
            claims: None,
        }),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
            read_only_root_filesystem: Some(true),
            ..SecurityContext::default()
        }),
        ..Container::default()
    }
}

/// A size as Kubernetes writes it.
pub(super) fn quantities(size: Size) -> BTreeMap<String, Quantity> {
    [("cpu".to_owned(), Quantity(size.cpu.to_string())), ("memory".to_owned(), Quantity(size.memory.to_string()))]
        .into()
}

/// Requests of a service with these limits: half of the CPU, because services seldom need theirs at
/// the same time, and all of the memory, because memory cannot be taken back.
pub(super) fn service_requests(limits: Size) -> Size {
    Size { cpu: Cpu(limits.cpu.0 / 2), ..limits }
}

pub(super) fn text_env(name: &str, value: &str) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(value.to_owned()), ..EnvVar::default() }
}

pub(super) fn field_env(name: &str, path: &str) -> EnvVar {
    let field = ObjectFieldSelector { api_version: Some("v1".to_owned()), field_path: path.to_owned() };
    let source = EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() };
    EnvVar { name: name.to_owned(), value_from: Some(source), ..EnvVar::default() }
}

pub(super) fn secret_env(name: &str, secret: &str, key: &str) -> EnvVar {
    let key = SecretKeySelector { name: secret.to_owned(), key: key.to_owned(), optional: None };
    let source = EnvVarSource { secret_key_ref: Some(key), ..EnvVarSource::default() };
    EnvVar { name: name.to_owned(), value_from: Some(source), ..EnvVar::default() }
}

/// A probe that runs a command.
pub(super) fn exec_probe(command: &[&str]) -> Probe {
    Probe { exec: Some(ExecAction { command: Some(strings(command)) }), ..Probe::default() }
}

/// Whether a container has started: asked five times within a second, because all that comes up after it waits for the
/// answer, and the kubelet asks once a second at most. Given up after about as many seconds.
pub(super) fn startup_probe(test: &str, seconds: i32) -> Probe {
    let again = format!("for _ in 1 2 3 4 5; do {test} && exit; sleep 0.2; done; exit 1");
    Probe {
        period_seconds: Some(1),
        timeout_seconds: Some(5),
        failure_threshold: Some(seconds),
        ..exec_probe(&["sh", "-c", &again])
    }
}

pub(super) fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

pub(super) fn mount(volume: &str, path: &str) -> VolumeMount {
    VolumeMount { name: volume.to_owned(), mount_path: path.to_owned(), ..VolumeMount::default() }
}

pub(super) fn read_only_mount(volume: &str, path: &str) -> VolumeMount {
    VolumeMount { read_only: Some(true), ..mount(volume, path) }
}

/// Writable room on the node's disk that goes with the pod.
pub(super) fn scratch(name: &str, limit: Bytes) -> Volume {
    empty_dir(name, limit, None)
}

/// Writable room in memory, counted in the container's memory limit.
pub(super) fn memory(name: &str, limit: Bytes) -> Volume {
    empty_dir(name, limit, Some("Memory".to_owned()))
}

fn empty_dir(name: &str, limit: Bytes, medium: Option<String>) -> Volume {
    let source = EmptyDirVolumeSource { medium, size_limit: Some(Quantity(limit.to_string())) };
    Volume { name: name.to_owned(), empty_dir: Some(source), ..Volume::default() }
}

/// A `ConfigMap`'s files.
pub(super) fn config(name: &str, config_map: &str) -> Volume {
    let source = ConfigMapVolumeSource { name: config_map.to_owned(), ..ConfigMapVolumeSource::default() };
    Volume { name: name.to_owned(), config_map: Some(source), ..Volume::default() }
}

/// All files of a Secret.
pub(super) fn secret(name: &str, secret: &str) -> Volume {
    let source = SecretVolumeSource {
        secret_name: Some(secret.to_owned()),
        default_mode: Some(GROUP_READABLE),
        ..SecretVolumeSource::default()
    };
    Volume { name: name.to_owned(), secret: Some(source), ..Volume::default() }
}

/// Those files of the generated Secret that a part needs, and no others.
pub(super) fn generated_secret(keys: &[&str]) -> Volume {
    let items = keys.iter().map(|key| KeyToPath { key: (*key).to_owned(), path: (*key).to_owned(), mode: None });
    let mut volume = secret("secrets", names::SECRET);
    if let Some(source) = &mut volume.secret {
        source.items = Some(items.collect());
    }
    volume
}

/// The annotation that tells the operator whether a pod must be replaced.
pub(super) fn restart_annotation(hash: &str) -> BTreeMap<String, String> {
    [(annotation::RESTART_HASH.to_owned(), hash.to_owned())].into()
}

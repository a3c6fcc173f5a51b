//! What a cluster is made of: its options, and the objects and kwok stages that follow from them.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

/// The worker pools that get nodes by default.
pub const POOLS: [&str; 4] = ["worker-low", "worker-mid", "worker-high", "worker-premium"];

/// The label of a node that names its pool.
pub const POOL_LABEL: &str = "torpor.dev/pool";

const COMPONENT_LABEL: &str = "app.kubernetes.io/component";
const COMPONENT_BOT: &str = "bot";

/// How a cluster is to be made. `Options::default()` gives two nodes for each of the four pools.
#[derive(Clone, Debug)]
pub struct Options {
    /// Nodes for each of [`POOLS`].
    pub nodes_per_pool: usize,
    /// Size of every node that names no other.
    pub capacity: NodeCapacity,
    /// More nodes, outside the pools unless their labels say so.
    pub extra_nodes: Vec<NodeSpec>,
    /// How long pods labelled as bots take to end once deleted; without it every pod ends at once.
    pub graceful_stop: Option<Duration>,
    /// How long every pod takes to be ready once it is scheduled; without it that is at once.
    pub slow_start: Option<Duration>,
    /// The address that every pod has. Without it pods have none, and Services no endpoints.
    pub pod_address: Option<String>,
    /// Users whose creations and patches are in the audit log with what was sent, Secrets included.
    pub log_bodies_of: Vec<String>,
    /// Another file for the audit log, which [`crate::Cluster::audit`] then does not read.
    pub audit_log: Option<PathBuf>,
    /// Further arguments of the API server; the last of a flag counts.
    pub api_server: Vec<String>,
    /// The range of Service addresses.
    pub service_cidr: String,
    /// A data folder to use and to keep, instead of a temporary one; must be absent or empty.
    pub keep_dir: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes_per_pool: 2,
            capacity: NodeCapacity::default(),
            extra_nodes: Vec::new(),
            graceful_stop: None,
            slow_start: None,
            pod_address: None,
            log_bodies_of: Vec::new(),
            audit_log: None,
            api_server: Vec::new(),
            service_cidr: "10.200.0.0/16".into(),
            keep_dir: None,
        }
    }
}

/// What a node offers to pods.
#[derive(Clone, Debug)]
pub struct NodeCapacity {
    /// CPU quantity.
    pub cpu: String,
    /// Memory quantity.
    pub memory: String,
    /// Number of pods.
    pub pods: u32,
}

impl Default for NodeCapacity {
    fn default() -> Self {
        Self { cpu: "64".into(), memory: "256Gi".into(), pods: 500 }
    }
}

/// One node that kwok plays.
#[derive(Clone, Debug, Default)]
pub struct NodeSpec {
    /// Name of the node.
    pub name: String,
    /// Labels besides the host name.
    pub labels: BTreeMap<String, String>,
    /// Size, if it differs from the cluster's default.
    pub capacity: Option<NodeCapacity>,
}

impl NodeSpec {
    /// A node without any label of its own.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// The same node with one more label.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    pub(crate) fn manifest(&self, default: &NodeCapacity) -> Value {
        let mut labels = self.labels.clone();
        labels.insert("kubernetes.io/hostname".into(), self.name.clone());
        labels.insert("kubernetes.io/os".into(), "linux".into());
        labels.insert("kubernetes.io/arch".into(), "amd64".into());
        let capacity = self.capacity.as_ref().unwrap_or(default);
        let resources = json!({
            "cpu": capacity.cpu,
            "memory": capacity.memory,
            "pods": capacity.pods.to_string(),
        });
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": self.name,
                "labels": labels,
                "annotations": {"kwok.x-k8s.io/node": "fake"},
            },
            "status": {"capacity": resources, "allocatable": resources},
        })
    }
}

impl Options {
    fn nodes(&self) -> impl Iterator<Item = NodeSpec> {
        let pools = POOLS.iter().flat_map(|pool| {
            (0..self.nodes_per_pool).map(move |n| NodeSpec::new(format!("{pool}-{n}")).label(POOL_LABEL, *pool))
        });
        pools.chain(self.extra_nodes.iter().cloned())
    }

    /// All nodes as one `List`, or nothing when there are none.
    pub(crate) fn node_list(&self) -> Option<String> {
        let items: Vec<Value> = self.nodes().map(|node| node.manifest(&self.capacity)).collect();
        (!items.is_empty()).then(|| json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string())
    }

    /// kwok's own pod stages ignore the grace period, so bots get a stage of their own when their end must take time;
    /// and they make pods run and ready in one, so all pods get a stage in between when that must take time.
    pub(crate) fn stages(&self, stock: &str) -> Result<String> {
        let mut stages =
            serde_yaml::Deserializer::from_str(stock).map(Value::deserialize).collect::<Result<Vec<_>, _>>()?;
        of_one_claim(named(&mut stages, "pvc-provision")?)?;
        if let Some(delay) = self.slow_start {
            let ready = named(&mut stages, "pod-ready")?;
            in_template(ready, TELLS_RESOURCES)?;
            let mut runs = ready.clone();
            runs["metadata"]["name"] = "pod-runs".into();
            in_template(&mut runs, UNREADY)?;
            in_phase(ready, "Running")?;
            delayed(ready, delay);
            stages.push(runs);
        }
        if let Some(delay) = self.graceful_stop {
            let delete = named(&mut stages, "pod-delete")?;
            let mut slow = delete.clone();
            slow["metadata"]["name"] = "pod-delete-bot".into();
            delayed(&mut slow, delay);
            match_bots(&mut slow, "In")?;
            match_bots(delete, "NotIn")?;
            stages.push(slow);
        }
        let texts = stages.iter().map(serde_yaml::to_string).collect::<Result<Vec<_>, _>>()?;
        Ok(texts.join("---\n"))
    }
}

/// Containers tell what they may use, as those of a kubelet do: the API server takes a pod that does not for one whose
/// node cannot resize it.
const TELLS_RESOURCES: &[(&str, &str)] =
    &[("  ready: true\n", "  ready: true\n  {{ with .resources }}\n  resources: {{ toJson . }}\n  {{ end }}\n")];
const UNREADY: &[(&str, &str)] = &[
    ("status: \"True\"\n  type: Ready\n", "status: \"False\"\n  type: Ready\n"),
    ("status: \"True\"\n  type: ContainersReady\n", "status: \"False\"\n  type: ContainersReady\n"),
    ("  ready: true\n", "  ready: false\n"),
];

fn in_template(stage: &mut Value, changes: &[(&str, &str)]) -> Result<()> {
    let template = &mut stage["spec"]["next"]["statusTemplate"];
    let mut text = template.as_str().context("a stage of kwok has no template")?.to_owned();
    for (from, to) in changes {
        ensure!(text.contains(from), "a stage of kwok does not say {from:?}");
        text = text.replacen(from, to, 1);
    }
    *template = text.into();
    Ok(())
}

/// kwok binds claims by name: a claim that was deleted and made anew meanwhile would get its predecessor's volume, which
/// goes with the predecessor. With the uid, the API server refuses.
fn of_one_claim(stage: &mut Value) -> Result<()> {
    let steps = stage["spec"]["steps"].as_array_mut().context("kwok's stage pvc-provision has no steps")?;
    let binds = steps.iter_mut().map(|step| &mut step["patch"]).find(|patch| patch["root"] == "spec");
    let binds = binds.context("kwok's stage pvc-provision does not bind")?;
    let text = binds["template"].as_str().context("a patch without a template")?.trim_end().replace('\n', "\n  ");
    // Not in the patch of the metadata before it: kwok leaves out what its old copy of the claim shows as done.
    binds["template"] = format!("metadata:\n  uid: {{{{ .metadata.uid | Quote }}}}\nspec:\n  {text}\n").into();
    binds["root"] = "".into();
    Ok(())
}

/// Makes a stage one for pods in this phase.
fn in_phase(stage: &mut Value, phase: &str) -> Result<()> {
    let expressions = stage["spec"]["selector"]["matchExpressions"].as_array_mut().context("no expressions")?;
    let asked = expressions.iter_mut().find(|asked| asked["key"] == ".status.phase");
    asked.context("kwok's stage pod-ready asks for no phase")?["values"] = json!([phase]);
    Ok(())
}

fn named<'a>(stages: &'a mut [Value], name: &str) -> Result<&'a mut Value> {
    let found = stages.iter_mut().find(|stage| stage["metadata"]["name"] == name);
    found.with_context(|| format!("kwok has no stage {name}"))
}

fn delayed(stage: &mut Value, delay: Duration) {
    stage["spec"]["delay"] = json!({"durationMilliseconds": u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)});
}

fn match_bots(stage: &mut Value, operator: &str) -> Result<()> {
    stage["spec"]["selector"]["matchExpressions"]
        .as_array_mut()
        .context("kwok's stage pod-delete selects by other means than expressions")?
        .push(json!({
            "key": format!(".metadata.labels[\"{COMPONENT_LABEL}\"]"),
            "operator": operator,
            "values": [COMPONENT_BOT],
        }));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STOCK: &str = "metadata:\n  name: other\n---\nmetadata:\n  name: pod-delete\nspec:\n  selector:\n    matchExpressions:\n    - key: a\n      operator: Exists\n  next:\n    delete: true\n";

    const READY: &str = "metadata:\n  name: pod-ready\nspec:\n  selector:\n    matchExpressions:\n    - key: .status.phase\n      operator: In\n      values: [Pending]\n  next:\n    statusTemplate: |\n      conditions:\n      - status: \"True\"\n        type: Ready\n      - status: \"True\"\n        type: ContainersReady\n      containerStatuses:\n      - name: a\n        ready: true\n";

    const CLAIM: &str = "---\nmetadata:\n  name: pvc-provision\nspec:\n  steps:\n  - apply: {}\n  - patch:\n      root: spec\n      template: |\n        volumeName: a\n";

    fn stages(options: &Options, stock: &str) -> Vec<Value> {
        let text = options.stages(&format!("{stock}{CLAIM}")).unwrap();
        serde_yaml::Deserializer::from_str(&text).map(|stage| Value::deserialize(stage).unwrap()).collect()
    }

    #[test]
    fn a_volume_is_of_one_claim() {
        let stages = stages(&Options::default(), STOCK);
        let patch = &stages[2]["spec"]["steps"][1]["patch"];
        assert_eq!(patch["template"], "metadata:\n  uid: {{ .metadata.uid | Quote }}\nspec:\n  volumeName: a\n");
        assert_eq!(patch["root"], "");
        assert!(Options::default().stages(STOCK).is_err(), "a stage that is missing is told");
    }

    #[test]
    fn bots_get_a_slow_stage_and_leave_the_quick_one() {
        let options = Options { graceful_stop: Some(Duration::from_secs(3)), ..Options::default() };
        let stages = stages(&options, STOCK);
        let operator = |n: usize| stages[n]["spec"]["selector"]["matchExpressions"][1]["operator"].as_str().unwrap();
        assert_eq!((operator(1), operator(3)), ("NotIn", "In"));
        assert_eq!(stages[3]["spec"]["delay"]["durationMilliseconds"], 3000);
    }

    #[test]
    fn every_pod_starts_slowly_when_told() {
        let options = Options { slow_start: Some(Duration::from_secs(2)), ..Options::default() };
        let stages = stages(&options, READY);
        assert_eq!(stages[0]["spec"]["delay"]["durationMilliseconds"], 2000);
        let phase = |n: usize| &stages[n]["spec"]["selector"]["matchExpressions"][0]["values"];
        assert_eq!((phase(0), phase(2)), (&json!(["Running"]), &json!(["Pending"])));
        let template = stages[2]["spec"]["next"]["statusTemplate"].as_str().unwrap();
        assert!(template.contains("status: \"False\"\n  type: Ready"), "{template}");
        for stage in [&stages[0], &stages[2]] {
            let template = stage["spec"]["next"]["statusTemplate"].as_str().unwrap();
            assert!(template.contains("resources: {{ toJson . }}"), "{template}");
        }
        assert!(options.stages(STOCK).is_err(), "a stage that is missing is told");
    }

    #[test]
    fn nodes_of_the_pools_and_extra_ones() {
        let options = Options {
            nodes_per_pool: 1,
            extra_nodes: vec![NodeSpec::new("plain").label("a", "y")],
            ..Options::default()
        };
        let list: Value = serde_json::from_str(&options.node_list().unwrap()).unwrap();
        assert_eq!(list["items"].as_array().unwrap().len(), 5);
        assert_eq!(list["items"][0]["metadata"]["labels"][POOL_LABEL], "worker-low");
        assert_eq!(list["items"][4]["metadata"]["labels"]["a"], "y");
    }
}

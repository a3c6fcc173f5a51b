//! What one tenant has become, drawn as a tree.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::Value;

use super::kubectl::Kubectl;

/// Kinds shown in one line each, and the word for them. Secrets are asked for by name only.
const PLAIN: [(&str, &str); 8] = [
    ("Service", "services"),
    ("ConfigMap", "configmaps"),
    ("NetworkPolicy", "networkpolicies"),
    ("PodDisruptionBudget", "poddisruptionbudgets"),
    ("ResourceQuota", "resourcequota"),
    ("LimitRange", "limitrange"),
    ("ServiceAccount", "serviceaccount"),
    ("Secret", "secret"),
];

const QUERY: &str = "statefulsets,deployments,services,configmaps,networkpolicies,poddisruptionbudgets,\
    resourcequotas,limitranges,serviceaccounts,botfleets,pods,persistentvolumeclaims";

/// A line with what stands below it.
struct Node {
    text: String,
    below: Vec<Node>,
}

impl Node {
    fn new(text: impl Into<String>, below: Vec<Node>) -> Self {
        Node { text: text.into(), below }
    }
}

/// The lines of the tree.
pub fn lines(kubectl: &Kubectl, tenant: &str, tier: &str) -> Result<Vec<String>> {
    let namespace = format!("tenant-{tenant}");
    let ours = format!("torpor.dev/tenant={tenant}");
    let found = kubectl.get(&[QUERY, "-n", &namespace, "-l", &ours])?;
    let objects = Objects(found["items"].as_array().cloned().unwrap_or_default());
    let secrets = kubectl.run(&["get", "secrets", "-n", &namespace, "-l", &ours, "-o", "name"])?;
    let secrets: Vec<String> = secrets.lines().filter_map(|line| line.rsplit('/').next()).map(str::to_owned).collect();
    Ok(draw(&Node::new(format!("Tenant {tenant} ({tier})"), vec![objects.tree(&namespace, secrets)])))
}

struct Objects(Vec<Value>);

impl Objects {
    fn of<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.0.iter().filter(move |object| object["kind"] == kind)
    }

    fn tree(&self, namespace: &str, secrets: Vec<String>) -> Node {
        let mut by_kind: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (kind, _) in PLAIN {
            by_kind.insert(kind, self.of(kind).map(name).collect());
        }
        by_kind.insert("Secret", secrets);
        let workloads = |kind, owned_by_fleet: bool| {
            self.of(kind).filter(move |object| label(object, "torpor.dev/fleet").is_some() == owned_by_fleet)
        };
        let mut below: Vec<Node> = workloads("StatefulSet", false)
            .chain(workloads("Deployment", false))
            .map(|set| self.workload(set, 28))
            .collect();
        below.extend(self.of("BotFleet").map(|fleet| {
            let sets = workloads("StatefulSet", true).filter(|set| label(set, "torpor.dev/fleet") == Some(name(fleet)));
            let status = &fleet["status"];
            let ready = status["readyReplicas"].as_i64().unwrap_or(0);
            let text = format!("botfleet {}  {ready}/{} bots ready", name(fleet), status["desiredReplicas"]);
            Node::new(text, sets.map(|set| self.workload(set, 25)).collect())
        }));
        for (kind, word) in PLAIN {
            let names = by_kind.remove(kind).unwrap_or_default();
            if !names.is_empty() {
                below.push(Node::new(format!("{word:<20}  {}", names.join(", ")), Vec::new()));
            }
        }
        Node::new(format!("namespace {namespace}"), below)
    }

    /// `width` is that of the pods' names; deeper ones have less, so that all columns stand below each other.
    fn workload(&self, workload: &Value, width: usize) -> Node {
        let kind = workload["kind"].as_str().unwrap_or_default().to_lowercase();
        let ready = workload["status"]["readyReplicas"].as_i64().unwrap_or(0);
        let text = format!("{kind} {}  {ready}/{} ready", name(workload), workload["spec"]["replicas"]);
        // Both kinds name their pods after themselves; a ReplicaSet stands between a Deployment and its pods.
        let prefix = format!("{}-", name(workload));
        let same = |pod: &&Value| {
            pod["metadata"]["labels"]["app.kubernetes.io/component"]
                == workload["metadata"]["labels"]["app.kubernetes.io/component"]
        };
        let pods = self.of("Pod").filter(same).filter(|pod| name(pod).starts_with(&prefix));
        Node::new(text, pods.map(|pod| Node::new(self.pod(pod, width), Vec::new())).collect())
    }

    fn pod(&self, pod: &Value, width: usize) -> String {
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        let claim = pod["spec"]["volumes"]
            .as_array()
            .and_then(|volumes| volumes.iter().find_map(|v| v["persistentVolumeClaim"]["claimName"].as_str()))
            .and_then(|claim| self.of("PersistentVolumeClaim").find(|object| name(object) == claim));
        let volume = claim.map_or(String::new(), |claim| {
            format!("  volume {} {}", text(&claim["status"]["capacity"]["storage"]), text(&claim["status"]["phase"]))
        });
        format!(
            "{:<width$} {}  {:<12}  {}{volume}",
            name(pod),
            text(&pod["status"]["phase"]),
            text(&pod["spec"]["nodeName"]),
            text(&pod["spec"]["priorityClassName"]),
        )
    }
}

fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

fn label(object: &Value, key: &str) -> Option<String> {
    object["metadata"]["labels"][key].as_str().map(str::to_owned)
}

fn draw(root: &Node) -> Vec<String> {
    let mut lines = vec![root.text.clone()];
    below(root, "", &mut lines);
    lines
}

fn below(node: &Node, indent: &str, lines: &mut Vec<String>) {
    for (number, child) in (1..).zip(&node.below) {
        let last = number == node.below.len();
        lines.push(format!("{indent}{}{}", if last { "└─ " } else { "├─ " }, child.text));
        below(child, &format!("{indent}{}", if last { "   " } else { "│  " }), lines);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_stand_below_their_fleet_with_node_class_and_volume() {
        let labels = |fleet: &str| json!({"app.kubernetes.io/component": "bot", "torpor.dev/fleet": fleet});
        let objects = Objects(vec![
            json!({"kind": "BotFleet", "metadata": {"name": "a"}, "status": {"desiredReplicas": 1, "readyReplicas": 1}}),
            json!({"kind": "StatefulSet", "metadata": {"name": "bots-a", "labels": labels("a")}, "spec": {"replicas": 1}, "status": {"readyReplicas": 1}}),
            json!({"kind": "Pod", "metadata": {"name": "bots-a-0", "labels": labels("a")},
                "spec": {"nodeName": "n", "priorityClassName": "p", "volumes": [{"persistentVolumeClaim": {"claimName": "c"}}]},
                "status": {"phase": "Running"}}),
            json!({"kind": "PersistentVolumeClaim", "metadata": {"name": "c"}, "status": {"phase": "Bound", "capacity": {"storage": "500Mi"}}}),
            json!({"kind": "Service", "metadata": {"name": "bots"}}),
        ]);
        let lines = draw(&objects.tree("tenant-x", vec!["s".to_owned()]));
        let expected = [
            "namespace tenant-x",
            "├─ botfleet a  1/1 bots ready",
            "│  └─ statefulset bots-a  1/1 ready",
            "│     └─ bots-a-0                  Running  n             p  volume 500Mi Bound",
            "├─ services              bots",
            "└─ secret                s",
        ];
        assert_eq!(lines, expected);
    }
}

//! What happened to a tenant's workloads and pods, in the one order that the API server gives to all changes.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Watch, ensure, is_ready, text};
use crate::Ctx;

/// Watches pods and workloads of one namespace.
pub struct Timeline {
    pods: Watch,
    workloads: [Watch; 2],
}

impl Timeline {
    /// Begins, and returns when what exists has been shown.
    pub fn start(ctx: &Ctx, namespace: &str) -> Result<Self, String> {
        let existing = |kind: &str| Watch::existing(ctx, kind, namespace);
        Ok(Timeline { pods: existing("pods")?, workloads: [existing("statefulsets")?, existing("deployments")?] })
    }

    /// Everything until now, in order: `redis=0` when its workload asks for no pod any more, `postgres resized` when
    /// it asks for pods of another kind, `bot ready` and `bot gone` for each pod of that component.
    pub fn events(&self) -> Vec<String> {
        let mut all: Vec<(u64, String)> = Vec::new();
        for watch in &self.workloads {
            let mut known: BTreeMap<String, (Value, Value)> = BTreeMap::new();
            for (_, event) in watch.events() {
                let object = &event["object"];
                let name = text(&object["metadata"]["name"]);
                let now = (
                    object["spec"]["replicas"].clone(),
                    object["metadata"]["annotations"]["torpor.dev/restart-hash"].clone(),
                );
                if let Some(before) = known.insert(name.clone(), now.clone()) {
                    if before.0 != now.0 {
                        all.push((version(object), format!("{name}={}", now.0)));
                    }
                    if before.1 != now.1 {
                        all.push((version(object), format!("{name} resized")));
                    }
                }
            }
        }
        let mut ready: BTreeMap<String, bool> = BTreeMap::new();
        for (_, event) in self.pods.events() {
            let pod = &event["object"];
            let component = text(&pod["metadata"]["labels"]["app.kubernetes.io/component"]);
            if event["type"] == "DELETED" {
                all.push((version(pod), format!("{component} gone")));
            } else if is_ready(pod) && ready.insert(text(&pod["metadata"]["uid"]), true).is_none() {
                all.push((version(pod), format!("{component} ready")));
            }
        }
        all.sort();
        all.into_iter().map(|(_, event)| event).collect()
    }

    /// An error unless each of these has happened since the beginning, and in this order: the last of one before the
    /// first of the next.
    pub fn in_order(&self, since: usize, steps: &[&str]) -> Result<(), String> {
        let all = self.events();
        let events = all.get(since..).unwrap_or_default();
        for pair in steps.windows(2) {
            let last = events.iter().rposition(|event| event == pair[0]);
            let first = events.iter().position(|event| event == pair[1]);
            ensure(last.is_some() && first.is_some() && last < first, || {
                format!("{:?} should come before {:?}: {events:#?}", pair[0], pair[1])
            })?;
        }
        Ok(())
    }
}

fn version(object: &Value) -> u64 {
    text(&object["metadata"]["resourceVersion"]).parse().unwrap_or_default()
}

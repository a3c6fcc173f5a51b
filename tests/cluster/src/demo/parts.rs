//! A tenant's parts in one line, as the demo shows them.

use anyhow::Result;
use serde_json::Value;

use super::kubectl::Kubectl;

/// A tenant's pods by what they are, and what its Tenant says.
#[derive(Default)]
pub struct Parts {
    /// The stage that the stack is at.
    pub stage: String,
    /// Whether everything is as it should be at that stage.
    pub ready: bool,
    /// Whether it sleeps.
    pub hibernated: bool,
    /// What is awaited.
    pub message: String,
    /// Bots that are ready.
    pub bots_ready: usize,
    /// Per component: name, pods that are ready, not ready, and on their way out.
    counts: Vec<(&'static str, [usize; 3])>,
}

const COMPONENTS: [(&str, &str); 5] = [
    ("bot", "bots"),
    ("dashboard", "dashboard"),
    ("redis", "redis"),
    ("monitoring", "exporter"),
    ("database", "postgres"),
];

impl Parts {
    /// Reads a Tenant and its pods.
    pub fn read(kubectl: &Kubectl, tenant: &str) -> Result<Self> {
        let object = kubectl.get(&["tenant", tenant])?;
        let pods = kubectl.get(&["pods", "-n", &format!("tenant-{tenant}")])?;
        let pods = pods["items"].as_array().cloned().unwrap_or_default();
        let count = |component: &str| {
            let mut counts = [0; 3];
            for pod in &pods {
                if pod["metadata"]["labels"]["app.kubernetes.io/component"] == component {
                    let leaving = pod["metadata"]["deletionTimestamp"].is_string();
                    let ready = condition(pod, "Ready")["status"] == "True";
                    counts[if leaving { 2 } else { usize::from(!ready) }] += 1;
                }
            }
            counts
        };
        let counts: Vec<_> = COMPONENTS.iter().map(|(component, word)| (*word, count(component))).collect();
        let is = |type_: &str| condition(&object, type_)["status"] == "True";
        Ok(Parts {
            stage: object["status"]["hibernation"]["stage"].as_str().unwrap_or("unknown").to_owned(),
            ready: is("Ready"),
            hibernated: is("Hibernated"),
            message: condition(&object, "Ready")["message"].as_str().unwrap_or_default().to_owned(),
            bots_ready: counts[0].1[0],
            counts,
        })
    }

    /// All of it in a line.
    pub fn line(&self) -> String {
        let parts: Vec<String> = self
            .counts
            .iter()
            .map(|(word, [ready, starting, leaving])| {
                let mut text = format!("{word} {ready}");
                if *starting > 0 {
                    text += &format!(" (+{starting} starting)");
                }
                if *leaving > 0 {
                    text += &format!(" (+{leaving} stopping)");
                }
                text
            })
            .collect();
        let ready = if self.ready { "Ready" } else { "not Ready" };
        format!("stage {:<15} {ready:<9}  {}", self.stage, parts.join(", "))
    }
}

/// The condition of a type, or null.
pub fn condition<'a>(object: &'a Value, type_: &str) -> &'a Value {
    let conditions = object["status"]["conditions"].as_array();
    conditions.and_then(|all| all.iter().find(|condition| condition["type"] == type_)).unwrap_or(&Value::Null)
}

//! What tests with a cluster of their own share: operators and what runs beside them, the audit log, many tenants.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use torpor_cluster::{AuditEvent, AuditMark, Cluster, Options};

use crate::harness::{LEASE, bare, condition, eventually};
use crate::process::{Process, Program, TORPOR, program};
use crate::rights::HOME;

/// Everything that Torpor makes.
pub const MANAGED: &str = "app.kubernetes.io/managed-by=torpor";

/// A cluster with the default pools and an operator.
pub struct Rig {
    /// Stopped before the cluster.
    pub operator: Process,
    pub cluster: Cluster,
}

impl Rig {
    pub fn start(options: Options) -> Result<Self, String> {
        let cluster = bare(options)?;
        let operator = program(&cluster, "operator").arguments(&LEASE).start()?;
        operator.await_ready(START)?;
        let rig = Rig { operator, cluster };
        rig.kubectl(&["apply", "-f", "examples/pools.yaml"])?;
        Ok(rig)
    }

    /// A program of Torpor's to run on this cluster. Start it for one beside the operator, with the lease that every
    /// program of a rig has: `rig.program("hibernator").start()`.
    pub fn program(&self, subcommand: &str) -> Program {
        program(&self.cluster, subcommand).arguments(&LEASE)
    }

    /// Runs kubectl; the error carries what it printed.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        self.cluster.kubectl(arguments).map_err(|error| format!("{error:#}"))
    }

    pub fn apply(&self, yaml: &str) -> Result<String, String> {
        self.cluster.kubectl_stdin(["apply", "-f", "-"], yaml).map_err(|error| format!("{error:#}"))
    }

    /// Objects as JSON.
    pub fn get(&self, arguments: &[&str]) -> Result<Value, String> {
        let text = self.kubectl(&[&["get", "-o", "json"], arguments].concat())?;
        serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
    }

    /// Starts another operator in place of this one, which has ended or is killed. Does not wait until it is ready.
    pub fn replace(&mut self, program: &Path, arguments: &[&str]) -> Result<(), String> {
        if self.operator.kill() {
            // Its Lease would be waited for; how that goes is shown elsewhere.
            self.kubectl(&["delete", "lease", "torpor-operator", "-n", HOME])?;
        }
        self.operator = self.program("operator").binary(program).arguments(arguments).start()?;
        Ok(())
    }

    /// The same operator again, ready.
    pub fn restart(&mut self) -> Result<(), String> {
        self.replace(TORPOR.as_ref(), &[])?;
        self.operator.await_ready(START)
    }

    /// What all operators of this rig have logged.
    pub fn logs(&self) -> String {
        let files = std::fs::read_dir(self.cluster.data_dir()).into_iter().flatten().flatten();
        let logs = files.filter(|file| file.file_name().to_string_lossy().starts_with("operator-"));
        logs.filter_map(|file| std::fs::read_to_string(file.path()).ok()).collect()
    }

    /// Waits until so many tenants exist and all of them are Ready.
    pub fn await_tenants(&self, count: usize, limit: Duration) -> Result<(), String> {
        let waited = eventually(limit, || {
            let all = self.get(&["tenants"])?;
            let waiting: Vec<String> = items(&all)
                .filter(|tenant| condition(tenant, "Ready")["status"] != "True")
                .map(|tenant| format!("{}: {}", place(tenant), condition(tenant, "Ready")["message"]))
                .collect();
            let found = items(&all).count();
            if found == count && waiting.is_empty() {
                return Ok(());
            }
            // Each look starts a process, which on two cores is felt.
            std::thread::sleep(Duration::from_millis(500));
            Err(format!("{} of {found} tenants are not Ready, first {:?}", waiting.len(), waiting.first()))
        });
        waited.map_err(|error| format!("{error}\n{}", self.troubles()))
    }

    /// Pods that do not run, what Kubernetes' own controllers complain of, and the end of the operator's log.
    fn troubles(&self) -> String {
        let show = |arguments: &[&str]| {
            let text = self.kubectl(arguments).unwrap_or_else(|error| error);
            text.lines().take(15).fold(String::new(), |all, line| all + line + "\n")
        };
        let pods = show(&["get", "pods", "-A", "--field-selector=status.phase!=Running"]);
        let events = show(&["get", "events", "-A", "--field-selector=type=Warning"]);
        let log = self.operator.log_text();
        let lines: Vec<&str> = log.lines().collect();
        format!("{pods}{events}{}", lines[lines.len().saturating_sub(15)..].join("\n"))
    }

    /// uids of pods by namespace and name.
    pub fn pods(&self, selector: &str) -> Result<BTreeMap<String, String>, String> {
        let found = self.get(&["pods", "-A", "-l", selector])?;
        let uid = |pod: &Value| pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        Ok(items(&found).map(|pod| (place(pod), uid(pod))).collect())
    }

    /// Waits until the operator has said nothing for three seconds.
    pub fn await_silence(&self) -> Result<(), String> {
        eventually(Duration::from_secs(60), || {
            let start = self.mark()?;
            std::thread::sleep(Duration::from_secs(3));
            none("still busy", &self.requests(start)?)
        })
    }

    /// The present end of the audit log.
    pub fn mark(&self) -> Result<AuditMark, String> {
        self.cluster.audit().ok_or(NO_AUDIT)?.mark().map_err(|error| format!("{error:#}"))
    }

    /// Everything since a mark, whoever asked.
    pub fn audit(&self, start: AuditMark) -> Result<Vec<AuditEvent>, String> {
        self.cluster.audit().ok_or(NO_AUDIT)?.since(start).map_err(|error| format!("{error:#}"))
    }

    /// The operator's requests since a mark, the Lease's apart.
    pub fn requests(&self, start: AuditMark) -> Result<Vec<AuditEvent>, String> {
        self.requests_of("torpor-operator", start)
    }

    /// The requests of a component, named as its field manager is, since a mark, the Lease's apart.
    pub fn requests_of(&self, component: &str, start: AuditMark) -> Result<Vec<AuditEvent>, String> {
        let agent = format!("{component}/");
        let mut events = self.audit(start)?;
        events.retain(|event| event.user_agent.starts_with(&agent) && event.resource != "leases");
        Ok(events)
    }

    /// Those that can change something, dry runs included.
    pub fn writes(&self, start: AuditMark) -> Result<Vec<AuditEvent>, String> {
        let mut events = self.requests(start)?;
        events.retain(is_write);
        Ok(events)
    }
}

const START: Duration = Duration::from_secs(60);
const NO_AUDIT: &str = "this test reads the audit log of a cluster of its own; unset TORPOR_KUBECONFIG";

/// Whether a request can change something, be it in a dry run.
pub fn is_write(event: &AuditEvent) -> bool {
    !matches!(event.verb.as_str(), "get" | "list" | "watch")
}

/// An error that shows the first of the events, if there are any.
pub fn none(what: &str, events: &[AuditEvent]) -> Result<(), String> {
    if events.is_empty() {
        return Ok(());
    }
    let shown: Vec<String> =
        events.iter().take(12).map(|event| format!("{} {} {}", event.verb, event.code, event.request_uri)).collect();
    Err(format!("{what} {} times: {}", events.len(), shown.join("; ")))
}

/// The objects of a list.
pub fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

/// Namespace and name of an object.
pub fn place(object: &Value) -> String {
    let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
    format!("{}/{}", text("namespace"), text("name"))
}

/// YAML of this many tenants with as many bots as their tier allows, in one fleet.
pub fn tenants(count: usize, tier: impl Fn(usize) -> &'static str) -> String {
    (0..count).fold(String::new(), |mut text, number| {
        let tier = tier(number);
        let bots = match tier {
            "free" => 1,
            "basic" => 3,
            "pro" => 10,
            _ => 50,
        };
        let strategy = json!({"kind": "script", "config": "script_file_name: simple_pmm_example.py\n"});
        let tenant = json!({
            "apiVersion": "torpor.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": format!("{tier}-{number}")},
            "spec": {"tier": tier, "fleets": [{"name": "makers", "replicas": bots, "strategy": strategy}]},
        });
        // Writing to a String cannot fail.
        let _ = write!(text, "---\n{tenant}\n");
        text
    })
}

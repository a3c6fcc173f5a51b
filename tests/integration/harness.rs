//! A cluster with the CRDs, an operator process beside it, and waiting with a limit.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
pub use torpor_cluster::torpor::eventually;
use torpor_cluster::{Cluster, Options, torpor};

use crate::process::{Process, TORPOR, program};
use crate::rights;

/// Outlasts the times in which the API server of a machine that runs control plane, nodes and tests answers nobody, or
/// is down.
pub const LEASE: [&str; 2] = ["--lease-seconds", "60"];

/// A cluster, and an operator that works on it.
pub struct Ctx {
    /// The operator; stopped before the cluster.
    pub operator: Process,
    /// The cluster.
    pub cluster: Cluster,
}

impl Ctx {
    /// The shared cluster: default nodes, bots that take a second to stop, pods that run for a moment before they are
    /// ready, the default pools.
    pub fn start() -> Result<Self, String> {
        let (graceful_stop, slow_start) = (Some(Duration::from_secs(1)), Some(Duration::from_millis(300)));
        let options = Options { graceful_stop, slow_start, ..Options::default() };
        let ctx = Self::with(options, &["--ingress-class", "traefik"])?;
        ctx.apply_file("examples/pools.yaml")?;
        Ok(ctx)
    }

    /// A cluster of one's own, with the CRDs and an operator started with further arguments.
    pub fn with(options: Options, arguments: &[&str]) -> Result<Self, String> {
        let cluster = bare(options)?;
        let operator = program(&cluster, "operator").arguments(&LEASE).arguments(arguments).start()?;
        operator.await_ready(Duration::from_secs(60))?;
        Ok(Ctx { operator, cluster })
    }

    /// Runs kubectl; the error carries what it printed.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        self.cluster.kubectl(arguments).map_err(|error| format!("{error:#}"))
    }

    /// Runs kubectl with standard input.
    pub fn kubectl_stdin(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        self.cluster.kubectl_stdin(arguments, input).map_err(|error| format!("{error:#}"))
    }

    /// Applies YAML.
    pub fn apply(&self, yaml: &str) -> Result<String, String> {
        self.kubectl_stdin(&["apply", "-f", "-"], yaml)
    }

    /// Applies a file of the project.
    pub fn apply_file(&self, path: &str) -> Result<String, String> {
        self.kubectl(&["apply", "-f", path])
    }

    /// One object, or all of a kind, as JSON.
    pub fn get(&self, arguments: &[&str]) -> Result<Value, String> {
        let text = self.kubectl(&[&["get", "-o", "json"], arguments].concat())?;
        serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
    }

    /// Waits until a condition of an object has a status, and returns the object.
    pub fn await_condition(
        &self,
        object: &[&str],
        type_: &str,
        status: &str,
        limit: Duration,
    ) -> Result<Value, String> {
        eventually(limit, || {
            let found = self.get(object)?;
            let condition = condition(&found, type_);
            if condition["status"] == status { Ok(found) } else { Err(format!("{object:?} {type_}: {condition}")) }
        })
    }

    /// Waits until a tenant is Ready.
    pub fn await_ready(&self, tenant: &str) -> Result<Value, String> {
        self.await_condition(&["tenant", tenant], "Ready", "True", Duration::from_secs(180))
    }
}

/// A cluster with the CRDs and the chart's accounts, and without an operator.
pub fn bare(options: Options) -> Result<Cluster, String> {
    let cluster = Cluster::connect_or_start(options).map_err(|error| format!("{error:#}"))?;
    torpor::install_crds(Path::new(TORPOR), &cluster)?;
    rights::install(&cluster)?;
    Ok(cluster)
}

/// The condition of a type, or null.
pub fn condition<'a>(object: &'a Value, type_: &str) -> &'a Value {
    object["status"]["conditions"]
        .as_array()
        .and_then(|conditions| conditions.iter().find(|condition| condition["type"] == type_))
        .unwrap_or(&Value::Null)
}

/// The Events about a live object, a Tenant for example, that have this reason. In their core form, which has all of
/// them whoever wrote them in which.
pub fn events(cluster: &Cluster, about: &Value, reason: &str) -> Result<Vec<Value>, String> {
    let uid = about["metadata"]["uid"].as_str().ok_or_else(|| format!("not a live object: {about}"))?;
    let selector = format!("involvedObject.uid={uid},reason={reason}");
    let arguments = ["get", "events", "-A", "-o", "json", "--field-selector", &selector];
    let text = cluster.kubectl(arguments).map_err(|error| format!("{error:#}"))?;
    let list: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

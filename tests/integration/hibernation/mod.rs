//! `torpor hibernator` as a process beside a real API server, with and without an operator.

pub mod breaker;
pub mod stages;
pub mod webhooks;

use std::time::Duration;

use serde_json::Value;
use torpor::domain::catalog::BUILT_IN;
use torpor_cluster::{Cluster, Options};

use crate::alone::items;
use crate::harness::{LEASE, bare, events, eventually};
use crate::process::{Process, program};
use crate::rights::HOME;
use crate::tenants::same;

const START: Duration = Duration::from_secs(60);

/// A cluster that holds Tenants and nothing else: no operator makes anything of them.
pub struct Objects {
    pub cluster: Cluster,
}

impl Objects {
    pub fn start() -> Result<Self, String> {
        Ok(Objects { cluster: bare(Options { nodes_per_pool: 0, ..Options::default() })? })
    }

    /// A hibernator that is ready. The Lease of one that was killed is not waited for.
    pub fn hibernator(&self, arguments: &[&str]) -> Result<Process, String> {
        self.kubectl(&["delete", "lease", "torpor-hibernator", "-n", HOME, "--ignore-not-found"])?;
        let process = program(&self.cluster, "hibernator").arguments(&LEASE).arguments(arguments).start()?;
        process.await_ready(START)?;
        Ok(process)
    }

    pub fn kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        self.cluster.kubectl(arguments).map_err(|error| format!("{error:#}"))
    }

    pub fn get(&self, arguments: &[&str]) -> Result<Value, String> {
        let text = self.kubectl(&[&["get", "-o", "json"], arguments].concat())?;
        serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
    }

    pub fn tenants(&self) -> Result<Vec<Value>, String> {
        Ok(items(&self.get(&["tenants"])?).cloned().collect())
    }

    /// Waits until so many tenants have a decision.
    pub fn await_decisions(&self, count: usize) -> Result<(), String> {
        eventually(START, || {
            let decided = |tenant: &&Value| tenant["status"]["hibernation"]["decision"].is_object();
            same("tenants with a decision", &self.tenants()?.iter().filter(decided).count(), &count)
        })
    }

    /// Events with a reason.
    pub fn events(&self, reason: &str) -> Result<Vec<Value>, String> {
        let selector = format!("reason={reason}");
        Ok(items(&self.get(&["events", "-A", "--field-selector", &selector])?).cloned().collect())
    }

    /// Number of Events with a reason about one tenant.
    pub fn events_about(&self, tenant: &str, reason: &str) -> Result<usize, String> {
        Ok(events(&self.cluster, &self.get(&["tenant", tenant])?, reason)?.len())
    }
}

/// The stage that was decided for a tenant.
pub fn stage_of(tenant: &Value) -> String {
    tenant["status"]["hibernation"]["decision"]["stage"].as_str().unwrap_or_default().to_owned()
}

/// Number of tenants for which a stage of sleep was decided.
pub fn sleepers(objects: &Objects) -> Result<usize, String> {
    Ok(objects.tenants()?.iter().filter(|tenant| !["Active", ""].contains(&stage_of(tenant).as_str())).count())
}

/// A file with the built-in catalogue in which these tiers have another mode and other times.
pub fn catalog(cluster: &Cluster, name: &str, tiers: &[(&str, &str, [&str; 3])]) -> Result<String, String> {
    let mut text = BUILT_IN.to_owned();
    for (tier, mode, [bots, services, database]) in tiers {
        let start = text.find(&format!("\n  {tier}:")).ok_or("no such tier")?;
        let at = start + text[start..].find("      mode:").ok_or("no mode")?;
        let end = at + text[at..].match_indices('\n').nth(3).map_or(text[at..].len(), |(end, _)| end);
        let policy = format!(
            "      mode: {mode}\n      stopBotsAfter: {bots}\n      stopServicesAfter: {services}\n      databaseOnlyAfter: {database}"
        );
        text.replace_range(at..end, &policy);
    }
    let file = cluster.data_dir().join(format!("catalog-{name}.yaml"));
    std::fs::write(&file, text).map_err(|error| error.to_string())?;
    Ok(file.display().to_string())
}

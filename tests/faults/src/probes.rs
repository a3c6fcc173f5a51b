//! What a program tells of itself at its probe address.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use torpor_cluster::torpor::Process;

/// Longer than an answer of a busy machine takes, shorter than a test waits.
const PATIENCE: Duration = Duration::from_secs(5);

/// A client of probes.
#[derive(Clone, Debug)]
pub struct Probes(reqwest::Client);

impl Probes {
    /// Asks by this client.
    pub fn new(client: reqwest::Client) -> Self {
        Self(client)
    }

    /// What `/readyz` says: the code and the text; an error while nobody answers.
    pub async fn readiness(&self, process: &Process) -> Result<(u16, String)> {
        let answer = self.get(process, "readyz").await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    /// Whether it is ready now, as one that leads.
    pub async fn is_ready(&self, process: &Process) -> bool {
        matches!(self.readiness(process).await, Ok((200, text)) if text == "ready\n")
    }

    /// Its metrics by name and labels.
    pub async fn metrics(&self, process: &Process) -> Result<BTreeMap<String, f64>> {
        let page = self.get(process, "metrics").await?.text().await?;
        let values = page.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Ok(values.collect())
    }

    /// The kinds whose watch its metrics call broken.
    pub async fn broken_watches(&self, process: &Process) -> Result<Vec<String>> {
        let metrics = self.metrics(process).await?;
        let down = metrics.iter().filter(|(_, value)| **value < 0.5);
        let kind = |name: &String| Some(name.strip_prefix("torpor_watch_up{kind=\"")?.strip_suffix("\"}")?.to_owned());
        Ok(down.filter_map(|(name, _)| kind(name)).collect())
    }

    async fn get(&self, process: &Process, path: &str) -> Result<reqwest::Response> {
        Ok(self.0.get(format!("http://{}/{path}", process.probes())).timeout(PATIENCE).send().await?)
    }
}

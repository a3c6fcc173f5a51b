//! The gateway as a portal asks it.

use std::time::{Duration, Instant};

use anyhow::{Error, Result, ensure};
use torpor_cluster::torpor::{Process, Program};

use crate::matrix::Settings;
use crate::rig::Rig;

/// How long the gateway may take until it is ready.
const START: Duration = Duration::from_secs(300);

/// Somebody who may ask the gateway.
pub struct Door {
    /// How the gateway is started, at the same address each time.
    pub program: Program,
    client: reqwest::Client,
    address: String,
    token: String,
}

impl Door {
    /// Starts this gateway, and gives somebody the rights of a portal.
    pub async fn open(rig: &Rig, settings: &Settings, gateway: Program) -> Result<(Self, Process)> {
        let rights = settings.root.join("examples/rbac-portal.yaml").display().to_string();
        rig.cluster.kubectl(["apply", "-f", &rights])?;
        let token = rig.cluster.kubectl(["create", "token", "backend", "-n", "portal"])?.trim().to_owned();
        let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let program = gateway.arguments(&["--address", &address]);
        let process = program.clone().start().map_err(Error::msg)?;
        let client = crate::proxy::client(rig.cluster.authority()?)?;
        let began = Instant::now();
        while !rig.probes.is_ready(&process).await {
            ensure!(began.elapsed() < START, "the gateway is not ready: {}", process.log_text());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok((Self { program, client, address, token }, process))
    }

    /// Tells it something of a tenant.
    pub async fn post(&self, tenant: &str, what: &str) -> Result<()> {
        let url = format!("http://{}/v1/tenants/{tenant}/{what}", self.address);
        let answer = self.client.post(url).bearer_auth(&self.token).send().await?;
        ensure!(answer.status().is_success(), "{what} of {tenant}: {}", answer.text().await?);
        Ok(())
    }
}

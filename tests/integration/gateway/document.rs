//! The OpenAPI document against what the gateway really answers, by schemathesis. Run by `make api-test`.

use std::fs::File;
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use torpor_cluster::Options;

use super::{Door, await_state, token};
use crate::alone::Rig;
use crate::tenants::{ensure, fleet, tenant};

/// Requests of all kinds to every address: no 5xx, and no answer that the document does not have.
pub fn answers_are_documented() -> Result<(), String> {
    let rig = Rig::start(Options::default())?;
    let door = Door::open(&rig.cluster, &[])?;
    let portal = token(&rig.cluster, "portal", "backend")?;
    // The document's own example.
    rig.apply(&tenant("alice", json!({"tier": "basic", "fleets": [fleet("makers", 1)]})).to_string())?;
    rig.await_tenants(1, Duration::from_secs(120))?;
    run(&rig, &door, &portal, &["--exclude-path-regex", "/events$"])?;
    // A stream goes on until its tenant is awake.
    door.call(&portal, "POST", "/v1/tenants/alice/wake")?;
    await_state(&door, &portal, "alice", "Awake")?;
    run(&rig, &door, &portal, &["--include-path-regex", "/events$"])
}

fn run(rig: &Rig, door: &Door, token: &str, more: &[&str]) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let report = rig.cluster.data_dir().join("schemathesis.log");
    let out = File::create(&report).map_err(text)?;
    let program = std::env::var_os("TORPOR_SCHEMATHESIS").unwrap_or_else(|| "schemathesis".into());
    let status = Command::new(program)
        .args(["run", &format!("http://{}/openapi.json", door.address), "--checks", "all", "--no-color"])
        .args(["--request-timeout", "20", "--seed", "1", "-n", "60", "--generation-database", "none"])
        .args(["--header", &format!("Authorization: Bearer {token}")])
        .args(more)
        .current_dir(rig.cluster.data_dir())
        .stdout(out.try_clone().map_err(text)?)
        .stderr(out)
        .status()
        .map_err(|error| format!("schemathesis: {error}; `make api-test` installs it"))?;
    let told = std::fs::read_to_string(&report).map_err(text)?;
    println!("{told}");
    ensure(status.success(), || "schemathesis found something; see above".to_owned())
}

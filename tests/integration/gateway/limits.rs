//! Rates, numbers and certificates.

use std::time::Duration;

use serde_json::json;

use super::{Door, token};
use crate::Ctx;
use crate::harness::eventually;
use crate::tenants::{SOON, ensure, tenant};

/// Who asks too often is told to come again, and hinders nobody else; only so many may listen at a time.
pub fn callers_are_kept_to_their_pace(ctx: &Ctx) -> Result<(), String> {
    let door = Door::open(&ctx.cluster, &["--requests-per-second", "3", "--event-streams", "1"])?;
    let name = "gateway-pace";
    // Suspended, it never wakes, and whoever listens goes on listening.
    ctx.apply(&tenant(name, json!({"tier": "basic", "suspended": true})).to_string())?;
    let (portal, other) =
        (token(&ctx.cluster, "portal", "backend")?, token(&ctx.cluster, "torpor-system", "torpor-gateway")?);
    let path = format!("/v1/tenants/{name}");
    eventually(SOON, || door.call(&portal, "GET", &path)?.is(200))?;
    let listener = eventually(SOON, || door.listen(&portal, &format!("{path}/events")))?;
    let second = eventually(SOON, || {
        let answered = door.call(&portal, "GET", &format!("{path}/events"))?;
        ensure(answered.status != 429, || format!("{answered:?}"))?;
        Ok(answered)
    })?;
    ensure(second.is(503)?.header("retry-after") == "1", || "no Retry-After".to_owned())?;
    drop(listener);
    let answers: Result<Vec<u16>, String> =
        (0..30).map(|_| door.call(&portal, "GET", &path).map(|answer| answer.status)).collect();
    let answers = answers?;
    ensure(answers.contains(&429) && answers.iter().all(|status| [200, 429].contains(status)), || {
        format!("{answers:?}")
    })?;
    let slowed = eventually(SOON, || door.call(&portal, "GET", &path)?.is(429))?;
    ensure(slowed.header("retry-after") == "1", || format!("{slowed:?}"))?;
    // Another caller has a pace of its own.
    door.call(&other, "GET", &path)?.is(403)?;
    std::thread::sleep(Duration::from_secs(1));
    eventually(SOON, || door.call(&portal, "GET", &path)?.is(200)).map(drop)
}

/// Certificate and key are exchanged while the gateway runs; what cannot be used changes nothing.
pub fn certificates_are_exchanged(ctx: &Ctx) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let folder = ctx.cluster.data_dir().join("gateway-tls");
    std::fs::create_dir_all(&folder).map_err(|error| text(&error))?;
    let (chain, key) = (folder.join("tls.crt"), folder.join("tls.key"));
    let make = || -> Result<reqwest::Certificate, String> {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).map_err(|error| text(&error))?;
        std::fs::write(&chain, made.cert.pem()).map_err(|error| text(&error))?;
        std::fs::write(&key, made.signing_key.serialize_pem()).map_err(|error| text(&error))?;
        reqwest::Certificate::from_pem(made.cert.pem().as_bytes()).map_err(|error| text(&error))
    };
    let first = make()?;
    let files = [chain.display().to_string(), key.display().to_string()];
    let door = Door::open(&ctx.cluster, &["--tls-cert-file", &files[0], "--tls-key-file", &files[1]])?;
    let port = door.address.rsplit(':').next().unwrap_or_default().to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| text(&error))?;
    let ask = |trusted: &reqwest::Certificate| -> Result<(), String> {
        runtime.block_on(async {
            let client = reqwest::Client::builder().no_proxy().tls_certs_only([trusted.clone()]).build();
            let client = client.map_err(|error| error.to_string())?;
            let answered = client.get(format!("https://localhost:{port}/healthz")).send().await;
            let status = answered.map_err(|error| format!("{error:?}"))?.status();
            ensure(status == 200, || status.to_string())
        })
    };
    ask(&first)?;
    std::fs::write(&chain, "no certificate").map_err(|error| text(&error))?;
    std::thread::sleep(Duration::from_secs(12));
    ask(&first)?;
    let second = make()?;
    eventually(SOON, || ask(&second))?;
    ensure(ask(&first).is_err(), || "the old certificate is still used".to_owned())
}

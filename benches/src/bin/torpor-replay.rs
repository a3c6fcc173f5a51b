//! Sends recorded requests as fast as the operator could if it had nothing to decide: with the same client and settings, the
//! same number of chains at a time, each request after the answer of the one before, and without reading anything.
//!
//! Reads a file of recordings, opens its connections, prints `ready`, waits for a line on standard input, sends, and
//! prints what became of it as JSON.

use std::io::BufRead;

use anyhow::{Context, Result};
use futures::{StreamExt, channel::mpsc, stream};
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue, USER_AGENT};
use kube::{Client, Config, config::KubeConfigOptions};
use serde_json::{Value, json};
use torpor_bench::requests::{Chain, Recording, Request};

/// Tenants, and beside them fleets, at the same time: the operator's number of passes (`CONCURRENCY` in
/// src/controllers/run.rs).
const AT_ONCE: usize = 16;
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";

#[tokio::main]
async fn main() -> Result<()> {
    let file = std::env::args().nth(1).context("usage: torpor-replay FILE")?;
    let recordings: Vec<Recording> = serde_json::from_slice(&std::fs::read(&file)?)?;
    let client = client().await?;
    let warm = (0..2 * AT_ONCE).map(|_| client.apiserver_version());
    futures::future::try_join_all(warm).await?;
    println!("ready");
    tokio::task::spawn_blocking(|| std::io::stdin().lock().read_line(&mut String::new())).await??;
    let failures = send_all(&client, recordings).await;
    println!("{}", json!({"failed": failures.len(), "first": failures.first()}));
    Ok(())
}

/// As the operator makes its own: src/cluster/client.rs.
async fn client() -> Result<Client> {
    let mut config = Config::from_kubeconfig(&KubeConfigOptions::default()).await?;
    let agent = HeaderValue::from_static(concat!("torpor-replay/", env!("CARGO_PKG_VERSION")));
    config.headers.push((USER_AGENT, agent));
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

/// Tenants in one lane; their fleets, as soon as they exist, in another one, as in the operator's two controllers.
async fn send_all(client: &Client, recordings: Vec<Recording>) -> Vec<String> {
    let (fleets, inbox) = mpsc::unbounded::<Chain>();
    let tenants = async move {
        let sent = stream::iter(recordings).map(|recording| tenant(client, recording, fleets.clone()));
        // The lane of fleets ends when this last sender is gone.
        let failures: Vec<Vec<String>> = sent.buffer_unordered(AT_ONCE).collect().await;
        drop(fleets);
        failures
    };
    let chains = inbox.map(|chain| async move { chain_of(client, &chain).await.1 }).buffer_unordered(AT_ONCE).collect();
    let (tenants, fleets): (Vec<Vec<String>>, Vec<Vec<String>>) = futures::join!(tenants, chains);
    tenants.into_iter().chain(fleets).flatten().collect()
}

async fn tenant(client: &Client, recording: Recording, lane: mpsc::UnboundedSender<Chain>) -> Vec<String> {
    let (answers, mut failures) = chain_of(client, &recording.own).await;
    for (name, fleet) in &recording.fleets {
        // A fleet's objects name their BotFleet, whose uid only its own answer tells.
        let address = format!("/botfleets/{name}?");
        let made = answers.iter().find(|answer| answer.1.contains(&address));
        match made.map(|answer| fleet.chain.replaced(&fleet.uid, &answer.0)) {
            Some(Ok(chain)) => drop(lane.unbounded_send(chain)),
            Some(Err(error)) => failures.push(error.to_string()),
            None => failures.push(format!("{}: fleet {name} was not made", recording.tenant)),
        }
    }
    failures
}

/// uids with their addresses, and failures.
async fn chain_of(client: &Client, chain: &Chain) -> (Vec<(String, String)>, Vec<String>) {
    let (mut uids, mut failures) = (Vec::new(), Vec::new());
    for request in &chain.requests {
        match send(client, request).await {
            Ok(answer) => {
                let uid = answer["metadata"]["uid"].as_str().unwrap_or_default();
                uids.push((uid.to_owned(), request.uri.clone()));
            }
            Err(error) => failures.push(format!("{}: {error:#}", request.uri)),
        }
    }
    (uids, failures)
}

async fn send(client: &Client, request: &Request) -> Result<Value> {
    let (method, kind, accept) = match request.verb.as_str() {
        "create" => ("POST", "application/json", "application/json"),
        _ => ("PATCH", "application/apply-patch+yaml", METADATA),
    };
    let request = http::Request::builder()
        .method(method)
        .uri(&request.uri)
        .header(CONTENT_TYPE, kind)
        .header(ACCEPT, accept)
        .body(serde_json::to_vec(&request.body)?)?;
    Ok(client.request(request).await?)
}

//! `torpor-netpol`: enforces NetworkPolicies on the node whose network it runs in.

use std::{
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use futures::StreamExt;
use k8s_openapi::api::{
    core::v1::{Namespace, Pod},
    networking::v1::NetworkPolicy,
};
use kube::{
    Api, Client, Config, Resource,
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{WatchStreamExt, reflector, reflector::Store, watcher},
};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use torpor_e2e::netpol::{View, compile, render};

/// Enforces NetworkPolicies on one node.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// How to reach the API server
    #[arg(long)]
    kubeconfig: PathBuf,
    /// Name of the node
    #[arg(long)]
    node: String,
    /// Range of the node's pods
    #[arg(long)]
    pods: String,
}

/// Changes come in bursts: a pod that starts is written several times.
const BURST: Duration = Duration::from_millis(20);
const RETRY: Duration = Duration::from_secs(1);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    // Before anything is known every pod is a stranger.
    apply(&render(&compile(&View::default(), &args.node), &args.pods))?;
    let kubeconfig = Kubeconfig::read_from(&args.kubeconfig)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let client = Client::try_from(config)?;
    let (changed, mut changes) = mpsc::channel(1);
    let pods: Store<Pod> = follow(client.clone(), &changed);
    let namespaces: Store<Namespace> = follow(client.clone(), &changed);
    let policies: Store<NetworkPolicy> = follow(client, &changed);
    for ready in [pods.wait_until_ready().await, namespaces.wait_until_ready().await, policies.wait_until_ready().await]
    {
        ready.context("a watch has ended")?;
    }
    let mut applied = String::new();
    loop {
        let (pods, namespaces, policies) = (pods.state(), namespaces.state(), policies.state());
        let view = View::new(
            pods.iter().map(AsRef::as_ref),
            namespaces.iter().map(AsRef::as_ref),
            policies.iter().map(AsRef::as_ref),
        );
        let rules = compile(&view, &args.node);
        let table = render(&rules, &args.pods);
        if table != applied {
            match apply(&table) {
                Ok(()) => {
                    eprintln!("{} pods, {} policies", rules.known.len(), view.policies.len());
                    applied = table;
                }
                Err(error) => {
                    eprintln!("{error:#}\n{table}");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            }
        }
        changes.recv().await.context("the watches have ended")?;
        tokio::time::sleep(BURST).await;
    }
}

/// Keeps a copy of all objects of a kind, and tells of each change.
fn follow<K>(client: Client, changed: &mpsc::Sender<()>) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let stream = watcher(Api::<K>::all(client), watcher::Config::default()).default_backoff().reflect(writer);
    let changed = changed.clone();
    tokio::spawn(async move {
        let mut stream = std::pin::pin!(stream);
        while let Some(event) = stream.next().await {
            match event {
                // A full channel says already that something has changed.
                Ok(_) => drop(changed.try_send(())),
                Err(error) => eprintln!("{error}"),
            }
        }
    });
    store
}

fn apply(table: &str) -> Result<()> {
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    nft.stdin.take().context("no standard input")?.write_all(table.as_bytes())?;
    let output = nft.wait_with_output()?;
    ensure!(output.status.success(), "nft refuses the rules: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

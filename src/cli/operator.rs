//! `torpor operator`: settings from flags and environment, then probes, lease, loops.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;

use super::Failure;
use crate::clock::{Clock, SystemClock};
use crate::cluster::Cluster;
use crate::cluster::client::connect;
use crate::controllers::run::{self, Start};
use crate::domain::catalog::Catalog;
use crate::domain::names;
use crate::http::Server;
use crate::http::probes::{Health, routes};
use crate::leader::{self, LeaderGuard, LeaderParams};
use crate::metrics::Metrics;
use crate::plan::Settings;
use crate::plan::settings::{UserNamespaces, VolumeAccess};
use crate::telemetry::{self, LogFormat};

/// Options of `torpor operator`. Each is a flag and an environment variable.
#[derive(Debug, clap::Args)]
pub struct OperatorArgs {
    /// Tier catalogue to use instead of the built-in one; it is checked before anything starts.
    #[arg(long, env = "TORPOR_CATALOG", value_name = "FILE")]
    pub catalog: Option<PathBuf>,
    /// Address of /livez, /readyz and /metrics.
    #[arg(long, env = "TORPOR_PROBE_ADDRESS", default_value = "0.0.0.0:8080")]
    pub probe_address: SocketAddr,
    /// Log lines for people (text) or programs (json). `RUST_LOG` sets the level, default info.
    #[arg(long, env = "TORPOR_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Namespace of the Lease by which one of several operators leads; it must exist.
    #[arg(long, env = "TORPOR_LEASE_NAMESPACE", default_value = "default")]
    pub lease_namespace: String,
    /// Seconds after which another operator takes over from one that fell silent.
    #[arg(long, env = "TORPOR_LEASE_SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(3..=3600))]
    pub lease_seconds: u64,
    /// Whether pods run in a user namespace of their own (hostUsers: false). Nodes must support it.
    #[arg(long, env = "TORPOR_USER_NAMESPACES", value_enum, default_value_t = Switch::On)]
    pub user_namespaces: Switch,
    /// StorageClass of all volumes. Default: the cluster's.
    #[arg(long, env = "TORPOR_STORAGE_CLASS")]
    pub storage_class: Option<String>,
    /// Access mode of all volumes; ReadWriteOnce for storage drivers that lack ReadWriteOncePod.
    #[arg(long, env = "TORPOR_VOLUME_ACCESS", value_enum, default_value_t = Access::ReadWriteOncePod)]
    pub volume_access: Access,
    /// Image of the PostgreSQL metrics exporter.
    #[arg(long, env = "TORPOR_EXPORTER_IMAGE", default_value_t = Settings::default().exporter_image)]
    pub exporter_image: String,
    /// Names of image pull Secrets in the tenants' namespaces, separated by commas.
    #[arg(long, env = "TORPOR_IMAGE_PULL_SECRETS", value_delimiter = ',')]
    pub image_pull_secrets: Vec<String>,
    /// Namespace whose pods may reach the dashboards.
    #[arg(long, env = "TORPOR_GATEWAY_NAMESPACE", default_value_t = Settings::default().gateway_namespace)]
    pub gateway_namespace: String,
    /// Value of the label kubernetes.io/metadata.name of the namespace whose pods may scrape tenants' metrics. Default: none may.
    #[arg(long, env = "TORPOR_SCRAPER_NAMESPACE")]
    pub scraper_namespace: Option<String>,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

/// Access mode of volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Access {
    /// One pod at a time.
    #[value(name = "ReadWriteOncePod")]
    ReadWriteOncePod,
    /// One node at a time.
    #[value(name = "ReadWriteOnce")]
    ReadWriteOnce,
}

/// The client's own line for each failed request would say twice what its caller tells, and as an error where
/// the caller tries again.
const LOGGED: &str = "info,kube_client::client::builder=off";

/// Runs the operator until it is asked to stop, or must.
///
/// # Errors
/// [`Failure`], one line.
pub fn run(args: OperatorArgs) -> Result<(), Failure> {
    telemetry::init(args.log_format, LOGGED).map_err(Failure::input)?;
    let catalog = read_catalog(args.catalog.as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::run)?;
    runtime.block_on(operate(args, catalog))
}

/// The catalogue of a file, or the built-in one.
///
/// # Errors
/// [`Failure`] with file, line and reason.
pub fn read_catalog(path: Option<&Path>) -> Result<Catalog, Failure> {
    let Some(path) = path else { return Ok(Catalog::default()) };
    let origin = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| Failure::input(format!("{origin}: {error}")))?;
    Catalog::parse(&origin, &text).map_err(Failure::input)
}

fn settings(args: &OperatorArgs) -> Settings {
    Settings {
        exporter_image: args.exporter_image.clone(),
        user_namespaces: match args.user_namespaces {
            Switch::On => UserNamespaces::On,
            Switch::Off => UserNamespaces::Off,
        },
        storage_class: args.storage_class.clone(),
        volume_access: match args.volume_access {
            Access::ReadWriteOncePod => VolumeAccess::ReadWriteOncePod,
            Access::ReadWriteOnce => VolumeAccess::ReadWriteOnce,
        },
        image_pull_secrets: args.image_pull_secrets.clone(),
        gateway_namespace: args.gateway_namespace.clone(),
        scraper_namespaces: args
            .scraper_namespace
            .iter()
            .map(|name| [("kubernetes.io/metadata.name".to_owned(), name.clone())].into())
            .next(),
        ..Settings::default()
    }
}

async fn operate(args: OperatorArgs, catalog: Catalog) -> Result<(), Failure> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let metrics = Metrics::new(env!("CARGO_PKG_VERSION"));
    let health = Health::new(clock.clone());
    health.stand_by();
    let server = Server::bind(args.probe_address).await.map_err(Failure::input)?;
    let address = server.address();
    let probes = tokio::spawn(server.serve(routes(health.clone(), metrics.clone()), std::future::pending()));

    let client = connect(names::OPERATOR).await.map_err(Failure::input)?;
    tracing::info!(%address, version = env!("CARGO_PKG_VERSION"), "probes and metrics");
    let duration = Duration::from_secs(args.lease_seconds);
    let params = LeaderParams {
        namespace: args.lease_namespace.clone(),
        name: names::OPERATOR.to_owned(),
        identity: leader::identity(&std::env::var("HOSTNAME").unwrap_or_else(|_| "local".to_owned())),
        duration,
        grace: duration / 3,
    };
    let mut leadership = tokio::select! {
        acquired = leader::acquire(client.clone(), params, clock.clone()) => acquired.map_err(Failure::input)?,
        signal = stop_signal() => return signal,
    };
    run::announce(&health);
    health.lead();
    metrics.became_leader();
    let guard: LeaderGuard = leadership.guard();
    let cluster = Cluster::new(client, &metrics, &guard);
    let start = Start { clock, catalog, settings: settings(&args), health, metrics };
    let ended = tokio::select! {
        ended = run::operator(cluster, start) => ended.map_err(Failure::run),
        lost = leadership.lost() => {
            return Err(Failure::run(format!("{lost}; this process ends so that only one operator writes")));
        }
        probes = probes => Err(Failure::run(format!("the probe server ended: {probes:?}"))),
        signal = stop_signal() => signal,
    };
    if let Err(error) = leadership.release().await {
        tracing::warn!(%error, "the Lease was not given back");
    }
    ended
}

/// Resolves on SIGTERM or SIGINT.
async fn stop_signal() -> Result<(), Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::run)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::run)?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("asked to stop");
    Ok(())
}

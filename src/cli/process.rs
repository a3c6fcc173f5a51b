//! What the long-running subcommands do alike: logs, probes, connection, lease, and an end that is told in one line.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::Failure;
use crate::clock::{Clock, SystemClock};
use crate::cluster::Cluster;
use crate::cluster::client::{ConnectError, Connection, connect};
use crate::controllers::run::{self, Ended};
use crate::domain::catalog::Catalog;
use crate::http::probes::{Health, routes};
use crate::http::{HttpError, Server, descriptors};
use crate::leader::{self, Identity, LeaderGuard, LeaderParams};
use crate::metrics::Metrics;
use crate::telemetry::{self, LogFormat};

/// Options of every long-running subcommand. Each is a flag and an environment variable.
#[derive(Debug, clap::Args)]
pub struct ObserveArgs {
    /// Address of /livez, /readyz and /metrics.
    #[arg(long, env = "TORPOR_PROBE_ADDRESS", default_value = "0.0.0.0:8080")]
    pub probe_address: SocketAddr,
    /// Log lines for people (text) or programs (json). `RUST_LOG` sets the level, default info.
    #[arg(long, env = "TORPOR_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// Options of every subcommand of which one process at a time works.
#[derive(Debug, clap::Args)]
pub struct ProcessArgs {
    #[command(flatten)]
    observe: ObserveArgs,
    /// Tier catalogue to use instead of the built-in one; it is checked before anything starts.
    #[arg(long, env = "TORPOR_CATALOG", value_name = "FILE")]
    pub catalog: Option<PathBuf>,
    /// Namespace of the Lease by which one of several processes leads; it must exist.
    #[arg(long, env = "TORPOR_LEASE_NAMESPACE", default_value = "default")]
    pub lease_namespace: String,
    /// Seconds after which another process takes over from one that fell silent.
    #[arg(long, env = "TORPOR_LEASE_SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(3..=3600))]
    pub lease_seconds: u64,
    /// Uid of the pod this process runs in. It then follows a predecessor in the same pod, which has ended, after a third of that time.
    #[arg(long, env = "TORPOR_POD_UID", value_name = "UID")]
    pub pod_uid: Option<String>,
}

/// Where `RUST_LOG` does not say otherwise.
const LOGGED: &str = "info";

/// Set by the kubelet in every container.
const IN_CLUSTER: &str = "KUBERNETES_SERVICE_HOST";
/// What readiness names while the API server does not answer a process that starts.
const API_SERVER: &str = "the API server";
/// Pause before it is asked once more.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// What a process that leads works with.
pub struct Leading {
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The tier catalogue.
    pub catalog: Catalog,
    /// The cluster.
    pub cluster: Cluster,
    /// Liveness and readiness.
    pub health: Health,
    /// Counts.
    pub metrics: Metrics,
    /// Whether this process still leads.
    pub leader: LeaderGuard,
}

/// Reads the catalogue, starts logs and probes, waits until this process leads, and works until it is asked to stop or must.
/// The component's name is its field manager, its User-Agent and its Lease.
///
/// # Errors
/// [`Failure`], one line.
pub fn lead<W, F>(
    component: &'static str,
    args: ProcessArgs,
    watches: &'static [&'static str],
    work: W,
) -> Result<(), Failure>
where
    W: FnOnce(Leading) -> F,
    F: Future<Output = Result<Result<(), Ended>, Failure>>,
{
    logs(&args.observe)?;
    let catalog = read_catalog(args.catalog.as_deref())?;
    block_on(leading(component, args, catalog, watches, work))
}

/// Reads a flag that says how many.
///
/// # Errors
/// What it has to be, where it is not.
pub fn at_least_one(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=1_000_000).contains(number));
    number.ok_or_else(|| "not a whole number from 1 to 1000000".to_owned())
}

/// Starts the log.
///
/// # Errors
/// [`Failure`] where the filter cannot be read.
pub fn logs(args: &ObserveArgs) -> Result<(), Failure> {
    telemetry::init(args.log_format, LOGGED).map_err(Failure::input)
}

/// What every long-running process has.
pub struct Started {
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Liveness and readiness.
    pub health: Health,
    /// Counts.
    pub metrics: Metrics,
    /// The API server.
    pub connection: Connection,
    /// Ends never, or the probe server has.
    pub probes: JoinHandle<Result<(), HttpError>>,
}

/// Starts probes and connects; `ready` says what the process is before it does anything. Nothing where it was asked to
/// stop while it waited for the API server.
///
/// # Errors
/// [`Failure`], one line.
pub async fn start(
    component: &str,
    args: &ObserveArgs,
    ready: impl FnOnce(&Health),
) -> Result<Option<Started>, Failure> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let metrics = Metrics::new(env!("CARGO_PKG_VERSION"));
    let health = Health::new(clock.clone());
    ready(&health);
    let server = Server::bind(args.probe_address).await.map_err(Failure::input)?;
    let address = server.address();
    let probes = tokio::spawn(server.serve(routes(health.clone(), metrics.clone()), std::future::pending()));
    let connection = tokio::select! {
        connected = connected(component, &health) => connected.map_err(Failure::input)?,
        signal = stop_signal() => return signal.map(|()| None),
    };
    tracing::info!(%address, version = env!("CARGO_PKG_VERSION"), "probes and metrics");
    Ok(Some(Started { clock, health, metrics, connection, probes }))
}

/// Connects; in a cluster it waits for an API server that does not answer. A process that ended instead would be started
/// ever later by its kubelet, and stay away for up to five minutes after the API server is back.
async fn connected(component: &str, health: &Health) -> Result<Connection, ConnectError> {
    let in_cluster = std::env::var_os(IN_CLUSTER).is_some();
    let mut told = String::new();
    loop {
        match connect(component).await {
            Err(error @ ConnectError::Unreachable { .. }) if in_cluster => {
                health.pending(API_SERVER);
                let error = error.to_string();
                if told != error {
                    tracing::warn!(%error, "waiting for the API server");
                    told = error;
                }
                tokio::time::sleep(ASK_AGAIN).await;
            }
            connected => {
                health.ready(API_SERVER);
                return connected;
            }
        }
    }
}

/// Runs a future of a subcommand, which may have as many open files as the system lets it.
///
/// # Errors
/// Its failure, or that of starting a runtime.
pub fn block_on(future: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    descriptors::raise();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::run)?;
    runtime.block_on(future)
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

async fn leading<W, F>(
    component: &'static str,
    args: ProcessArgs,
    catalog: Catalog,
    watches: &'static [&'static str],
    work: W,
) -> Result<(), Failure>
where
    W: FnOnce(Leading) -> F,
    F: Future<Output = Result<Result<(), Ended>, Failure>>,
{
    let Some(Started { clock, health, metrics, connection, probes }) =
        start(component, &args.observe, Health::stand_by).await?
    else {
        return Ok(());
    };
    let history = connection.history.clone();
    let duration = Duration::from_secs(args.lease_seconds);
    let hostname = std::env::var("HOSTNAME").unwrap_or_else(|_| "local".to_owned());
    let params = LeaderParams {
        namespace: args.lease_namespace.clone(),
        name: component.to_owned(),
        identity: Identity::new(&hostname, args.pod_uid.as_deref().filter(|uid| !uid.trim().is_empty())),
        duration,
        grace: duration / 3,
    };
    let mut leadership = tokio::select! {
        acquired = leader::acquire(connection.client.clone(), params, clock.clone()) => acquired.map_err(Failure::input)?,
        signal = stop_signal() => return signal,
    };
    run::announce(&health, watches);
    health.lead();
    metrics.became_leader();
    let leader = leadership.guard();
    let cluster = Cluster::new(component, connection, &metrics, &leader);
    let events = cluster.events.clone();
    let ended = tokio::select! {
        ended = work(Leading { clock, catalog, cluster, health, metrics, leader }) => match ended {
            Ok(ended) => ended.map_err(Failure::run),
            Err(failure) => Err(failure),
        },
        lost = leadership.lost() => {
            return Err(Failure::run(format!("{lost}; this process ends so that only one {component} writes")));
        }
        told = history.set_back() => Err(set_back(&told)),
        probes = probes => Err(Failure::run(format!("the probe server ended: {probes:?}"))),
        signal = stop_signal() => signal,
    };
    events.flush().await;
    if let Err(error) = leadership.release().await {
        tracing::warn!(%error, "the Lease was not given back");
    }
    ended
}

/// How a process ends whose cluster has been set back.
pub fn set_back(told: &str) -> Failure {
    Failure::run(format!("{told}; this process ends, and the next one reads everything anew"))
}

/// Resolves on SIGTERM or SIGINT.
///
/// # Errors
/// [`Failure`] where signals cannot be had.
pub async fn stop_signal() -> Result<(), Failure> {
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

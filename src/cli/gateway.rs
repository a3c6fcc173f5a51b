//! `torpor gateway`: settings from flags, environment and files, then its server.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum_server::tls_rustls::RustlsConfig;
use clap::ValueEnum;
use jiff::SignedDuration;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::Failure;
use super::process::{self, ObserveArgs, Started, at_least_one, stop_signal};
use crate::api::Tenant;
use crate::cluster::{Cluster, watch};
use crate::controllers::context::Guarded;
use crate::controllers::run;
use crate::domain::{duration, names};
use crate::gateway::links::{LONGEST_LIFE, LinkKeys};
use crate::gateway::{Gateway, Options, routes};
use crate::http::Server;
use crate::leader::LeaderGuard;

/// Options of `torpor gateway`. Each is a flag and an environment variable.
#[derive(Debug, clap::Args)]
pub struct GatewayArgs {
    #[command(flatten)]
    observe: ObserveArgs,
    /// Address on which portals and browsers are answered.
    #[arg(long, env = "TORPOR_GATEWAY_ADDRESS", default_value = "0.0.0.0:8090")]
    pub address: SocketAddr,
    /// Certificate chain in PEM; with it the gateway speaks TLS. A changed file is taken over within 10 s.
    #[arg(long, env = "TORPOR_TLS_CERT_FILE", value_name = "FILE", requires = "tls_key_file")]
    pub tls_cert_file: Option<PathBuf>,
    /// Private key of the certificate in PEM.
    #[arg(long, env = "TORPOR_TLS_KEY_FILE", value_name = "FILE", requires = "tls_cert_file")]
    pub tls_key_file: Option<PathBuf>,
    /// File with the keys of links to the waiting page, one per line, at least 16 bytes each: the first signs, all are accepted. A changed file is taken over within 10 s. Default: no waiting page.
    #[arg(long, env = "TORPOR_LINK_KEY_FILE", value_name = "FILE")]
    pub link_key_file: Option<PathBuf>,
    /// How long a link to the waiting page is valid, 24h at most.
    #[arg(long, env = "TORPOR_LINK_LIFE", value_name = "DURATION", default_value = "15m", value_parser = link_life)]
    pub link_life: SignedDuration,
    /// Where users log in; the waiting page leads there whoever has no valid link.
    #[arg(long, env = "TORPOR_PORTAL_URL", value_name = "URL", value_parser = web_address)]
    pub portal_url: Option<String>,
    /// How users reach pages and dashboards.
    #[arg(long, env = "TORPOR_PUBLIC_SCHEME", value_enum, default_value_t = Scheme::Https)]
    pub public_scheme: Scheme,
    /// Audiences of which a caller's token must name one, separated by commas. Default: the API server's own.
    #[arg(long, env = "TORPOR_TOKEN_AUDIENCES", value_delimiter = ',')]
    pub token_audiences: Vec<String>,
    /// Requests per second of one caller; twice as many for a moment.
    #[arg(long, env = "TORPOR_REQUESTS_PER_SECOND", default_value = "2000")]
    pub requests_per_second: NonZeroU32,
    /// Requests under way at a time; what is more is answered 503 at once.
    #[arg(long, env = "TORPOR_CONCURRENT_REQUESTS", default_value_t = 1_000, value_parser = at_least_one)]
    pub concurrent_requests: usize,
    /// Streams of events open at a time.
    #[arg(long, env = "TORPOR_EVENT_STREAMS", default_value_t = 2_000, value_parser = at_least_one)]
    pub event_streams: usize,
}

/// How a page is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scheme {
    /// By TLS.
    Https,
    /// Without, for trials.
    Http,
}

fn link_life(text: &str) -> Result<SignedDuration, String> {
    let life = duration::seconds(text).map(SignedDuration::from_secs).map_err(|error| error.to_string())?;
    if life > LONGEST_LIFE { Err("a link may be valid for 24h at most".to_owned()) } else { Ok(life) }
}

fn web_address(text: &str) -> Result<String, String> {
    let sound =
        ["https://", "http://"].iter().any(|scheme| text.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty()));
    if sound { Ok(text.to_owned()) } else { Err("not an address like https://portal.example.com/login".to_owned()) }
}

/// How often files that may change are looked at.
const LOOK: Duration = Duration::from_secs(10);
/// After this process has said that it is not ready, load balancers need a moment to send nothing more.
const LEAVE: Duration = Duration::from_secs(3);

/// Runs the gateway until it is asked to stop.
///
/// # Errors
/// [`Failure`], one line.
pub fn run(args: GatewayArgs) -> Result<(), Failure> {
    process::logs(&args.observe)?;
    let files = Files::of(&args);
    let (keys, tls) = (files.keys()?, files.tls()?);
    process::block_on(serve(args, files, keys, tls))
}

async fn serve(
    args: GatewayArgs,
    files: Files,
    keys: Option<LinkKeys>,
    tls: Option<Arc<ServerConfig>>,
) -> Result<(), Failure> {
    let server = Server::bind(args.address).await.map_err(Failure::input)?;
    let address = server.address();
    let announce = |health: &_| run::announce(health, &watch::GATEWAY_NAMES);
    let Some(Started { clock, health, metrics, connection, mut probes }) =
        process::start(names::GATEWAY, &args.observe, announce).await?
    else {
        return Ok(());
    };
    let history = connection.history.clone();
    // Every replica writes, and the API server keeps their writes apart by resource version.
    let cluster = Cluster::new(names::GATEWAY, connection, &metrics, &LeaderGuard::unelected());
    let (watches, all) = (cluster.watches(health.clone()).of_a_server(), cluster.all::<Guarded<Tenant>>());
    let gateway = Arc::new(Gateway::new(options(&args), cluster, clock, metrics));
    gateway.set_keys(keys);
    let watching = {
        let tenants = gateway.tenants().clone();
        tokio::spawn(async move { watches.run("Tenant", all, None, |event| tenants.take(event)).await })
    };
    let tls = tls.map(RustlsConfig::from_config);
    let (leave, left) = tokio::sync::oneshot::channel::<()>();
    let ending = async move { drop(left.await) };
    let mut serving = tokio::spawn(server.serve_with(routes(gateway.clone()), tls.clone(), ending));
    tracing::info!(%address, tls = tls.is_some(), pages = files.keys.is_some(), "answering");
    tokio::select! {
        ended = watching => return Err(Failure::run(format!("the watch ended unexpectedly: {ended:?}"))),
        ended = &mut serving => return Err(Failure::run(format!("the server ended unexpectedly: {ended:?}"))),
        ended = &mut probes => return Err(Failure::run(format!("the probe server ended: {ended:?}"))),
        told = history.set_back() => return Err(process::set_back(&told)),
        () = gateway.tidy() => {}
        () = files.follow(&gateway, tls.as_ref()) => {}
        signal = stop_signal() => signal?,
    }
    health.pending("its end");
    tokio::time::sleep(LEAVE).await;
    drop(leave);
    serving.await.map_err(Failure::run)?.map_err(Failure::run)
}

fn options(args: &GatewayArgs) -> Options {
    let public_scheme = match args.public_scheme {
        Scheme::Https => "https",
        Scheme::Http => "http",
    };
    Options {
        public_scheme: public_scheme.to_owned(),
        portal_url: args.portal_url.clone(),
        link_life: args.link_life,
        audiences: args.token_audiences.clone(),
        per_second: args.requests_per_second,
        concurrency: args.concurrent_requests,
        streams: args.event_streams,
    }
}

/// Files that may change while the gateway runs.
struct Files {
    keys: Option<PathBuf>,
    tls: Option<(PathBuf, PathBuf)>,
}

impl Files {
    fn of(args: &GatewayArgs) -> Self {
        Files { keys: args.link_key_file.clone(), tls: args.tls_cert_file.clone().zip(args.tls_key_file.clone()) }
    }

    fn keys(&self) -> Result<Option<LinkKeys>, Failure> {
        let Some(file) = &self.keys else { return Ok(None) };
        let keys = LinkKeys::parse(&read(file)?);
        keys.map(Some).map_err(|error| Failure::input(format!("{}: {error}", file.display())))
    }

    fn tls(&self) -> Result<Option<Arc<ServerConfig>>, Failure> {
        let Some((certificate, key)) = &self.tls else { return Ok(None) };
        let bad = |file: &Path, error: &dyn std::fmt::Display| Failure::input(format!("{}: {error}", file.display()));
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(certificate)?).collect();
        let chain = chain.map_err(|error| bad(certificate, &error))?;
        let secret = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|error| bad(key, &error))?;
        // An error means that the process has its cryptography already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, secret);
        let mut config = config.map_err(|error| bad(certificate, &error))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Some(Arc::new(config)))
    }

    /// What the files hold, for noticing changes.
    fn contents(&self) -> Vec<Option<Vec<u8>>> {
        let tls = self.tls.iter().flat_map(|(certificate, key)| [certificate, key]);
        self.keys.iter().chain(tls).map(|file| std::fs::read(file).ok()).collect()
    }

    /// Takes over what changes; what cannot be used leaves everything as it is. Ends never.
    async fn follow(&self, gateway: &Gateway, tls: Option<&RustlsConfig>) {
        let mut known = self.contents();
        loop {
            tokio::time::sleep(LOOK).await;
            let now = self.contents();
            if now == known {
                continue;
            }
            known = now;
            match (self.keys(), self.tls()) {
                (Ok(keys), Ok(config)) => {
                    gateway.set_keys(keys);
                    if let (Some(tls), Some(config)) = (tls, config) {
                        tls.reload_from_config(config);
                    }
                    tracing::info!("keys and certificate were read anew");
                }
                (Err(error), _) | (_, Err(error)) => tracing::warn!(%error, "the files as they are now cannot be used"),
            }
        }
    }
}

fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(file).map_err(|error| Failure::input(format!("{}: {error}", file.display())))
}

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
/// Files that cannot be used are told of once a minute.
const LOOKS_PER_WARNING: u32 = 6;
/// After this process has said that it is not ready, load balancers need a moment to send nothing more.
const LEAVE: Duration = Duration::from_secs(3);

/// Runs the gateway until it is asked to stop.
///
/// # Errors
/// [`Failure`], one line.
pub fn run(args: GatewayArgs) -> Result<(), Failure> {
    process::logs(&args.observe)?;
    let keys = args.link_key_file.clone().map(|file| Followed::open(KeyFile(file))).transpose()?;
    let files = args.tls_cert_file.clone().zip(args.tls_key_file.clone());
    let tls = files.map(|(certificate, key)| Followed::open(TlsFiles { certificate, key })).transpose()?;
    process::block_on(serve(args, keys, tls))
}

async fn serve(
    args: GatewayArgs,
    keys: Option<(Followed<KeyFile>, LinkKeys)>,
    tls: Option<(Followed<TlsFiles>, Arc<ServerConfig>)>,
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
    let (key_file, keys) = keys.unzip();
    gateway.set_keys(keys);
    let watching = {
        let tenants = gateway.tenants().clone();
        tokio::spawn(async move { watches.run("Tenant", all, None, |event| tenants.take(event)).await })
    };
    let tls = tls.map(|(files, config)| (files, RustlsConfig::from_config(config)));
    let config = tls.as_ref().map(|(_, config)| config.clone());
    let (leave, left) = tokio::sync::oneshot::channel::<()>();
    let ending = async move { drop(left.await) };
    let mut serving = tokio::spawn(server.serve_with(routes(gateway.clone()), config, ending));
    tracing::info!(%address, tls = tls.is_some(), pages = key_file.is_some(), "answering");
    tokio::select! {
        ended = watching => return Err(Failure::run(format!("the watch ended unexpectedly: {ended:?}"))),
        ended = &mut serving => return Err(Failure::run(format!("the server ended unexpectedly: {ended:?}"))),
        ended = &mut probes => return Err(Failure::run(format!("the probe server ended: {ended:?}"))),
        told = history.set_back() => return Err(process::set_back(&told)),
        () = gateway.tidy() => {}
        () = follow(&gateway, key_file, tls) => {}
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

/// Files that are used together, and what they are made into.
trait Source {
    type Held: PartialEq;
    type Made;

    /// What the log calls them.
    const WHAT: &str;

    fn read(&self) -> Result<Self::Held, Failure>;
    fn make(&self, held: &Self::Held) -> Result<Self::Made, Failure>;
}

/// The keys of links.
struct KeyFile(PathBuf);

impl Source for KeyFile {
    type Held = Vec<u8>;
    type Made = LinkKeys;

    const WHAT: &str = "the keys of links";

    fn read(&self) -> Result<Vec<u8>, Failure> {
        read(&self.0)
    }

    fn make(&self, held: &Vec<u8>) -> Result<LinkKeys, Failure> {
        LinkKeys::parse(held).map_err(|error| bad(&self.0, &error))
    }
}

/// A certificate chain and its private key.
struct TlsFiles {
    certificate: PathBuf,
    key: PathBuf,
}

impl Source for TlsFiles {
    type Held = (Vec<u8>, Vec<u8>);
    type Made = Arc<ServerConfig>;

    const WHAT: &str = "the certificate";

    fn read(&self) -> Result<Self::Held, Failure> {
        Ok((read(&self.certificate)?, read(&self.key)?))
    }

    fn make(&self, (certificate, key): &Self::Held) -> Result<Arc<ServerConfig>, Failure> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
        let chain = chain.map_err(|error| bad(&self.certificate, &error))?;
        let secret = PrivateKeyDer::from_pem_slice(key).map_err(|error| bad(&self.key, &error))?;
        // An error means that the process has its cryptography already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, secret);
        let mut config = config.map_err(|error| bad(&self.certificate, &error))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// What a look at files comes to.
#[derive(Debug)]
enum Look<T> {
    /// Nothing is to be done or said.
    Nothing,
    /// They have changed, and this is used from now on.
    New(T),
    /// They cannot be used as they are, and that is to be said.
    Bad(Failure),
}

/// Files that may change while the gateway runs, and what they held when they were last taken over.
struct Followed<S: Source> {
    source: S,
    used: S::Held,
    /// Looks in a row that found what cannot be used.
    bad: u32,
}

impl<S: Source> Followed<S> {
    /// Reads them for the first time.
    ///
    /// # Errors
    /// [`Failure`] where they cannot be used.
    fn open(source: S) -> Result<(Self, S::Made), Failure> {
        let used = source.read()?;
        let made = source.make(&used)?;
        Ok((Followed { source, used, bad: 0 }, made))
    }

    /// Judges what was read. Files that cannot be used leave everything as it is, and are judged anew at each look: they may be in the
    /// middle of an exchange, and whoever does not hear of it will wonder when the old ones expire.
    fn judge(&mut self, read: Result<S::Held, Failure>) -> Look<S::Made> {
        let made = match read {
            Ok(held) if held == self.used => {
                self.bad = 0;
                return Look::Nothing;
            }
            Ok(held) => self.source.make(&held).map(|made| (held, made)),
            Err(failure) => Err(failure),
        };
        match made {
            Ok((held, made)) => {
                (self.used, self.bad) = (held, 0);
                Look::New(made)
            }
            Err(failure) => {
                self.bad = self.bad.wrapping_add(1);
                if self.bad % LOOKS_PER_WARNING == 1 { Look::Bad(failure) } else { Look::Nothing }
            }
        }
    }

    /// Looks at them, and takes over what has changed.
    fn look(&mut self, take: impl FnOnce(S::Made)) {
        match self.judge(self.source.read()) {
            Look::Nothing => {}
            Look::New(made) => {
                take(made);
                tracing::info!(files = S::WHAT, "files that have changed were taken over");
            }
            Look::Bad(error) => {
                tracing::warn!(%error, files = S::WHAT, "the files as they are now cannot be used");
            }
        }
    }
}

/// Takes over what changes, keys and certificate each for itself. Ends never.
async fn follow(
    gateway: &Gateway,
    mut keys: Option<Followed<KeyFile>>,
    mut tls: Option<(Followed<TlsFiles>, RustlsConfig)>,
) {
    loop {
        // The first look is at once: the API server may have been waited for since they were read.
        if let Some(keys) = &mut keys {
            keys.look(|made| gateway.set_keys(Some(made)));
        }
        if let Some((files, config)) = &mut tls {
            files.look(|made| config.reload_from_config(made));
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(file).map_err(|error| bad(file, &error))
}

fn bad(file: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::input(format!("{}: {error}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Texts that are numbers.
    struct Numbers;

    impl Source for Numbers {
        type Held = String;
        type Made = u32;

        const WHAT: &str = "numbers";

        fn read(&self) -> Result<String, Failure> {
            Ok("1".to_owned())
        }

        fn make(&self, held: &String) -> Result<u32, Failure> {
            held.parse().map_err(Failure::input)
        }
    }

    fn opened() -> Followed<Numbers> {
        let (followed, made) = Followed::open(Numbers).expect("a number");
        assert_eq!(made, 1);
        followed
    }

    #[test]
    fn what_has_changed_since_it_was_first_read_is_taken_over() {
        let mut followed = opened();
        assert!(matches!(followed.judge(Ok("1".to_owned())), Look::Nothing));
        assert!(matches!(followed.judge(Ok("2".to_owned())), Look::New(2)));
        assert!(matches!(followed.judge(Ok("2".to_owned())), Look::Nothing));
        assert!(matches!(followed.judge(Ok("1".to_owned())), Look::New(1)), "back again");
    }

    #[test]
    fn what_cannot_be_used_is_told_again_and_again_and_tried_each_time() {
        let mut followed = opened();
        let told = |look: Look<u32>| matches!(look, Look::Bad(_));
        let gone = || Err(Failure::input("it has gone"));
        let warnings: Vec<bool> = (0..13).map(|_| told(followed.judge(Ok("none".to_owned())))).collect();
        let first_of_six: Vec<bool> = (0..13).map(|look| look % 6 == 0).collect();
        assert_eq!(warnings, first_of_six);
        assert!(matches!(followed.judge(Ok("2".to_owned())), Look::New(2)));
        assert!(told(followed.judge(gone())), "at once, after it was well");
        assert!(matches!(followed.judge(Ok("2".to_owned())), Look::Nothing), "what is used is back");
        assert!(told(followed.judge(gone())));
    }

    #[test]
    fn a_certificate_that_is_exchanged_needs_its_own_key() {
        let files = TlsFiles { certificate: "tls.crt".into(), key: "tls.key".into() };
        let made = || rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let (one, other) = (made(), made());
        let pem = |certificate: &rcgen::CertifiedKey<rcgen::KeyPair>, key: &rcgen::CertifiedKey<rcgen::KeyPair>| {
            (certificate.cert.pem().into_bytes(), key.signing_key.serialize_pem().into_bytes())
        };
        assert!(files.make(&pem(&one, &one)).is_ok());
        let mut followed = Followed { source: files, used: pem(&one, &one), bad: 0 };
        // The file of the key comes a moment after that of the certificate.
        assert!(matches!(followed.judge(Ok(pem(&other, &one))), Look::Bad(_)));
        assert!(matches!(followed.judge(Ok(pem(&other, &other))), Look::New(_)));
    }
}

//! How the operator reaches the API server.

use std::time::Duration;

use http::header::{HeaderValue, USER_AGENT};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt;
use kube::config::KubeConfigOptions;
use kube::{Client, Config};
use thiserror::Error;
use tower::ServiceBuilder;
use tower::timeout::TimeoutLayer;
use tower::util::MapRequestLayer;

use super::history::History;

/// How long an answer may take to begin; that of a watch begins at once. The API server itself gives up after 60 s at most, but
/// one that is cut off says nothing, and a request that is never answered would be waited for by whoever sent it.
const SILENCE: Duration = Duration::from_secs(70);
/// What a connection reads at a time: what a TLS record holds. Left to itself it grows with the lists that pass through, and each of the
/// twenty watches keeps a buffer of some 180 KiB for events of 5. Heads of answers are shorter.
const BUFFER: usize = 16 * 1024;
/// A connection that is idle for this long is asked whether its other end lives; three times, each a third of it apart.
const IDLE: Duration = Duration::from_secs(30);
/// How long the first request may take.
const ANSWER: Duration = Duration::from_secs(5);

/// The API server cannot be reached as configured.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// Neither a kubeconfig nor a service account is usable.
    #[error(
        "no usable kubeconfig or in-cluster service account ({0}); let KUBECONFIG name a valid file or run inside a cluster"
    )]
    Config(String),
    /// The configuration was read and a client cannot be made from it.
    #[error("cannot build a client for {url}: {reason}")]
    Client {
        /// Address of the API server.
        url: String,
        /// Why.
        reason: String,
    },
    /// The API server does not answer.
    #[error("API server {url} does not answer: {reason}; check the address and credentials in KUBECONFIG")]
    Unreachable {
        /// Address of the API server.
        url: String,
        /// Why.
        reason: String,
    },
}

/// A way to the API server.
#[derive(Clone)]
pub struct Connection {
    /// The client.
    pub client: Client,
    /// Where its watches have been.
    pub history: History,
}

impl From<Client> for Connection {
    /// A client of which nobody notes where its watches have been.
    fn from(client: Client) -> Self {
        Connection { client, history: History::default() }
    }
}

/// A client that tells the API server which component it is, after one request has shown that it works.
///
/// # Errors
/// [`ConnectError`], one line with place and remedy.
pub async fn connect(component: &str) -> Result<Connection, ConnectError> {
    let mut config = match Config::from_kubeconfig(&KubeConfigOptions::default()).await {
        Ok(config) => config,
        Err(kubeconfig) => match Config::incluster() {
            Ok(config) => config,
            // Inside a cluster there is no kubeconfig, and outside there is no service account:
            // the kubeconfig's problem is the one a person can act on.
            Err(_) => return Err(ConnectError::Config(one_line(&kubeconfig))),
        },
    };
    let url = config.cluster_url.to_string();
    let agent = format!("{component}/{}", env!("CARGO_PKG_VERSION"));
    let client_error = |reason: String| ConnectError::Client { url: url.clone(), reason };
    // The client takes any address and panics at the first request to one that is not absolute.
    if config.cluster_url.scheme().is_none() || config.cluster_url.host().is_none() {
        return Err(client_error("the address must start with https:// or http://".to_owned()));
    }
    if config.proxy_url.is_some() {
        return Err(client_error("proxies are not supported; unset proxy-url and HTTPS_PROXY".to_owned()));
    }
    let agent = HeaderValue::from_str(&agent).map_err(|error| client_error(error.to_string()))?;
    config.headers.push((USER_AGENT, agent));
    let history = History::default();
    let client = client(&config, history.clone()).map_err(|error| client_error(one_line(&error)))?;
    let unreachable = |reason: String| ConnectError::Unreachable { url: url.clone(), reason };
    tokio::time::timeout(ANSWER, client.apiserver_version())
        .await
        .map_err(|_| unreachable(format!("no answer within {ANSWER:?}")))?
        .map_err(|error| unreachable(one_line(&error)))?;
    Ok(Connection { client, history })
}

/// kube's own stack but for the size of buffers, and without what is not used here: proxies and hidden retries.
fn client(config: &Config, history: History) -> kube::Result<Client> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    // A watch that is silent may be one whose API server is no more: that is noticed after a minute.
    connector.set_keepalive(Some(IDLE));
    connector.set_keepalive_interval(Some(IDLE / 3));
    connector.set_keepalive_retries(Some(3));
    // Around TLS, too: who is connected to and then says nothing is given up before a pass is.
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(connector)?);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_write_timeout(config.write_timeout);
    let connections = legacy::Client::builder(TokioExecutor::new())
        .http1_max_buf_size(BUFFER)
        .build::<_, kube::client::Body>(connector);
    let note = MapRequestLayer::new(move |request: http::Request<_>| {
        history.note(request.uri());
        request
    });
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(SILENCE))
        .layer(note)
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(tower::BoxError::from)
        .service(connections);
    Ok(Client::new(service, config.default_namespace.clone()))
}

/// An error with its causes, as far as they say more, without the excerpts that some add below.
fn one_line(error: &dyn std::error::Error) -> String {
    let first = |error: &dyn std::error::Error| error.to_string().lines().next().unwrap_or_default().to_owned();
    let mut text = first(error);
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = first(error);
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

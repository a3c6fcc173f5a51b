//! One warning, signed and sent to a receiver outside of the cluster.
//!
//! [`Webhook::deliver`] makes exactly one attempt; whoever calls it decides about the next one, with [`Backoff`] for the
//! time between. `docs/webhook.md` is the contract with the receiver: CloudEvents 1.0 in structured JSON, signed as the
//! Standard Webhooks specification says.
//!
//! The environment reaches in at one point only: `SSL_CERT_FILE` and `SSL_CERT_DIR` name the certificate authorities
//! that an `https` receiver is checked against, instead of the system's. `HTTP_PROXY` and its like are ignored.
#![expect(clippy::disallowed_types, reason = "this is the room that sends requests to hosts that a user names")]

mod backoff;
mod event;
mod signature;
#[cfg(test)]
mod tests;

use std::{error::Error, fmt, time::Duration};

use http::header::{CONTENT_TYPE, HeaderValue};
use jiff::Timestamp;
use reqwest::{Certificate, Client, Response, Url, redirect, retry};

pub use self::{
    backoff::Backoff,
    event::{Kind, Warning},
};
use self::{event::MEDIA_TYPE, signature::Signer};

/// An answer is read so far and no further: what it says is of no interest, only that it came to its end in time.
const ANSWER_LIMIT: usize = 16 * 1024;

/// The longest message of an [`Undelivered`], in characters, without the receiver's address.
const REASON_LIMIT: usize = 160;

/// Where warnings go, and how they are signed.
pub struct WebhookConfig {
    /// The receiver's address: absolute, `http` or `https`. It may hold secrets, in its path or query as in a user and
    /// password, which are sent as basic authentication; errors and `Debug` show scheme, host and port only.
    pub url: String,
    /// The key of the signatures, as bytes: at least 16, better 32 random ones. What was read from a file has to be
    /// stripped of its line end first.
    pub key: Vec<u8>,
    /// The longest time one attempt may take, from the look-up of the host's name to the end of the answer. Not zero.
    pub timeout: Duration,
    /// The events' `source`, a URI reference that tells this operator from others. Not empty.
    pub source: String,
}

impl fmt::Debug for WebhookConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookConfig")
            .field("timeout", &self.timeout)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

/// Why a webhook cannot work as configured. One line, without secrets.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// The address is none that a request can be sent to.
    #[error("the webhook's URL is not usable ({0}); it must be absolute, like https://example.com/torpor")]
    Url(String),
    /// The key is so short that it could be guessed.
    #[error("the webhook's key has {0} bytes; it needs at least {min}", min = signature::LEAST_KEY)]
    Key(usize),
    /// CloudEvents requires a source.
    #[error("the webhook's source is empty; it must name this operator, like /clusters/eu-1/torpor")]
    Source,
    /// No attempt could ever succeed.
    #[error("the webhook's timeout is zero")]
    Timeout,
    /// The client cannot be set up, as on a machine without a single certificate authority.
    #[error("cannot set up the webhook's HTTP client: {0}")]
    Client(String),
}

/// Why the receiver did not confirm a warning. It may have got it all the same, so the next attempt carries the same id.
///
/// One line: scheme, host and port of the receiver and what went wrong, without anything that could be a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Undelivered(pub String);

/// Sends warnings to one receiver. It holds no connection between two of them.
pub struct Webhook {
    client: Client,
    url: Url,
    /// Scheme, host and port: all of the URL that may be shown.
    origin: String,
    signer: Signer,
    source: String,
    timeout: Duration,
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook")
            .field("origin", &self.origin)
            .field("source", &self.source)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

impl Webhook {
    /// Checks the configuration and sets up the client; no request is made.
    ///
    /// An `https` receiver must have a certificate of an authority that the machine trusts.
    ///
    /// # Errors
    /// [`WebhookError`] for the first thing that is wrong.
    pub fn new(config: WebhookConfig) -> Result<Self, WebhookError> {
        Self::trusting(config, None)
    }

    /// As [`Webhook::new`], with `authorities` instead of those of the machine.
    fn trusting(config: WebhookConfig, authorities: Option<Vec<Certificate>>) -> Result<Self, WebhookError> {
        let WebhookConfig { url, key, timeout, source } = config;
        let url = Url::parse(&url).map_err(|error| WebhookError::Url(error.to_string()))?;
        // Without TLS nobody needs authorities, and a machine that has none must not be refused for it.
        let authorities = match url.scheme() {
            "https" => authorities,
            "http" => Some(authorities.unwrap_or_default()),
            _ => return Err(WebhookError::Url("its scheme is neither https nor http".to_owned())),
        };
        let signer = Signer::new(&key).ok_or(WebhookError::Key(key.len()))?;
        if source.is_empty() {
            return Err(WebhookError::Source);
        }
        if timeout.is_zero() {
            return Err(WebhookError::Timeout);
        }

        // An error means that the process has its cryptography already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .user_agent(concat!("torpor/", env!("CARGO_PKG_VERSION")))
            .timeout(timeout)
            // A followed redirect would show the warning to a host that nobody configured.
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .no_proxy()
            // Warnings are rare: a connection that was kept would mostly be found closed.
            .pool_max_idle_per_host(0);
        let client = match authorities {
            Some(authorities) => client.tls_certs_only(authorities),
            None => client,
        };
        let client = client.build().map_err(|error| WebhookError::Client(root_cause(&error.without_url())))?;
        let origin = url.origin().ascii_serialization();
        Ok(Self { client, url, origin, signer, source, timeout })
    }

    /// Makes one attempt, at `now`, which the event carries as its `time` and the signature as its timestamp.
    ///
    /// It has succeeded when the receiver has answered with a status from 200 to 299 and its answer came to its end, or
    /// to its 16th KiB, within the configured time. Redirects are not followed.
    ///
    /// # Errors
    /// [`Undelivered`] in every other case, with the reason.
    pub async fn deliver(&self, warning: &Warning, now: Timestamp) -> Result<(), Undelivered> {
        let undelivered = |reason: String| Undelivered(format!("{}: {reason}", self.origin));
        if !event::is_id(&warning.id) {
            return Err(undelivered(format!("the id {:?} cannot be signed: {}", warning.id, event::ID_RULE)));
        }
        let body = event::body(warning, &self.source, now).map_err(|error| undelivered(error.to_string()))?;
        let sent_at = now.as_second();
        let request = self
            .client
            .post(self.url.clone())
            .header(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE))
            .header("webhook-id", &warning.id)
            .header("webhook-timestamp", sent_at)
            .header("webhook-signature", self.signer.sign(&warning.id, sent_at, &body))
            .body(body);
        let response = request.send().await.map_err(|error| undelivered(self.reason(error)))?;
        let status = response.status();
        if status.is_redirection() {
            return Err(undelivered(format!("it answered {status}, and redirects are not followed")));
        }
        if !status.is_success() {
            return Err(undelivered(format!("it answered {status}")));
        }
        read_answer(response).await.map_err(|error| undelivered(self.reason(error)))
    }

    fn reason(&self, error: reqwest::Error) -> String {
        if error.is_timeout() {
            return format!("no complete answer within {:?}", self.timeout);
        }
        let what = if error.is_connect() { "cannot connect" } else { "the exchange broke off" };
        format!("{what}: {}", root_cause(&error.without_url()))
    }
}

async fn read_answer(mut response: Response) -> Result<(), reqwest::Error> {
    let mut read = 0;
    while read < ANSWER_LIMIT {
        match response.chunk().await? {
            Some(chunk) => read += chunk.len(),
            None => break,
        }
    }
    Ok(())
}

/// What lies below all that libraries have wrapped around it, in one short line.
fn root_cause(error: &dyn Error) -> String {
    let mut root = error;
    while let Some(cause) = root.source() {
        root = cause;
    }
    root.to_string().split_whitespace().collect::<Vec<_>>().join(" ").chars().take(REASON_LIMIT).collect()
}

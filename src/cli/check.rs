//! `torpor check`: asks addresses whether they are well, one line each. `helm test` runs it: the image has no other client.
#![expect(clippy::disallowed_types, reason = "whoever starts it names the addresses, and nothing is sent to them")]

use std::time::Duration;

use futures::future::join_all;
use reqwest::{Client, Url, redirect};

use super::process::block_on;
use super::{Failure, write};
use crate::domain::duration;

/// Options of `torpor check`.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// Addresses to ask, like `http://torpor-operator-metrics:8080/readyz`; well is who answers 200.
    #[arg(required = true, value_name = "URL")]
    pub urls: Vec<Url>,
    /// For how long those that are not well are asked again.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = span)]
    pub within: Duration,
    /// Take any certificate, also one for other names or of an unknown authority.
    #[arg(long)]
    pub any_certificate: bool,
}

/// Time that one answer may take.
const ANSWER: Duration = Duration::from_secs(5);
/// Pause before the next try.
const PAUSE: Duration = Duration::from_secs(1);
/// As much of an answer is shown.
const SHOWN: usize = 120;

fn span(text: &str) -> Result<Duration, String> {
    let seconds = duration::seconds(text).map_err(|error| error.to_string())?;
    u64::try_from(seconds).map(Duration::from_secs).map_err(|error| error.to_string())
}

/// Asks every address and prints a line for each.
///
/// # Errors
/// [`Failure`] where one is not well in time.
pub fn run(args: CheckArgs) -> Result<(), Failure> {
    block_on(async move {
        let client = client(&args)?;
        let answers = join_all(args.urls.iter().map(|url| patiently(&client, url, args.within))).await;
        let failed = answers.iter().filter(|answer| answer.is_err()).count();
        let lines: Vec<String> = std::iter::zip(&args.urls, &answers).map(|(url, answer)| line(url, answer)).collect();
        write(&lines.concat())?;
        if failed == 0 {
            Ok(())
        } else {
            Err(Failure::run(format!("{failed} of {} addresses are not well", answers.len())))
        }
    })
}

fn client(args: &CheckArgs) -> Result<Client, Failure> {
    // An error means that the process has its cryptography already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::builder().timeout(ANSWER).redirect(redirect::Policy::none()).no_proxy();
    // Without TLS nobody needs authorities, and a machine that has none must not be refused for it.
    let client = if args.any_certificate || args.urls.iter().all(|url| url.scheme() == "http") {
        client.tls_certs_only([]).tls_danger_accept_invalid_certs(args.any_certificate)
    } else {
        client
    };
    client.build().map_err(Failure::run)
}

async fn patiently(client: &Client, url: &Url, within: Duration) -> Result<String, String> {
    let mut last = "no answer".to_owned();
    let trying = async {
        loop {
            match ask(client, url).await {
                Ok(text) => return text,
                Err(reason) => last = reason,
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    let answered = tokio::time::timeout(within, trying).await;
    answered.map_err(|_| last)
}

async fn ask(client: &Client, url: &Url) -> Result<String, String> {
    let response = client.get(url.clone()).send().await.map_err(|error| root_cause(&error))?;
    let status = response.status();
    let body = response.text().await.map_err(|error| root_cause(&error))?;
    let text: String = body.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(SHOWN).collect();
    if status == 200 { Ok(text) } else { Err(format!("{status} {text}")) }
}

fn line(url: &Url, answer: &Result<String, String>) -> String {
    match answer {
        Ok(text) => format!("ok      {url} {text}\n"),
        Err(reason) => format!("failed  {url} {reason}\n"),
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut root = error;
    while let Some(cause) = root.source() {
        root = cause;
    }
    root.to_string()
}

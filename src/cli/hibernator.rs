//! `torpor hibernator`: settings from flags, environment and files, then its loop; and the breaker's two commands.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;

use super::process::{self, Leading, ProcessArgs, at_least_one};
use super::{Failure, write};
use crate::cluster::breaker::{BreakerStore, NAME, Stored};
use crate::cluster::client::connect;
use crate::cluster::error::{ClusterError, within};
use crate::cluster::watch;
use crate::controllers::hibernation::{self, Start};
use crate::domain::{duration, names};
use crate::hibernation::breaker::{Limits, Saved};
use crate::webhook::{Webhook, WebhookConfig};

/// How long a read at the start may take, and the pause before the next.
const PATIENCE: Duration = Duration::from_secs(3);

/// Options of `torpor hibernator`. Each is a flag and an environment variable.
#[derive(Debug, clap::Args)]
pub struct HibernatorArgs {
    #[command(flatten)]
    process: ProcessArgs,
    /// Address that warnings and questions are posted to as CloudEvents, beside their Kubernetes Event. Default: none.
    #[arg(long, env = "TORPOR_WEBHOOK_URL", value_name = "URL", requires = "webhook_key_file")]
    pub webhook_url: Option<String>,
    /// File with the key that signs what is posted, at least 16 bytes; white space around it does not count.
    #[arg(long, env = "TORPOR_WEBHOOK_KEY_FILE", value_name = "FILE", requires = "webhook_url")]
    pub webhook_key_file: Option<PathBuf>,
    /// Seconds that the receiver has for its whole answer.
    #[arg(long, env = "TORPOR_WEBHOOK_TIMEOUT_SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=300))]
    pub webhook_timeout_seconds: u64,
    /// A warning that the receiver does not take for so long counts as given; its Event stands for it.
    #[arg(long, env = "TORPOR_WEBHOOK_GIVE_UP", value_name = "DURATION", default_value = "24h", value_parser = seconds)]
    pub webhook_give_up: SignedDuration,
    /// The `source` of CloudEvents; name the cluster where several post to one receiver.
    #[arg(long, env = "TORPOR_WEBHOOK_SOURCE", default_value = "/torpor/hibernator")]
    pub webhook_source: String,
    /// Percent of all tenants that may fall asleep, or become due to, within an hour before the breaker opens.
    #[arg(long, env = "TORPOR_BREAKER_PERCENT", default_value_t = Limits::default().percent, value_parser = percent)]
    pub breaker_percent: usize,
    /// So many tenants may fall asleep within an hour in any case.
    #[arg(long, env = "TORPOR_BREAKER_LEAST", default_value_t = Limits::default().least)]
    pub breaker_least: usize,
    /// So many tenants fall asleep per minute at most, the longest idle first.
    #[arg(long, env = "TORPOR_SLEEPS_PER_MINUTE", default_value_t = Limits::default().per_minute, value_parser = at_least_one)]
    pub sleeps_per_minute: usize,
    /// The breaker opens when no activity of any tenant was reported for so long. Set it where a gateway reports logins. Default: never.
    #[arg(long, env = "TORPOR_FEED_SILENCE", value_name = "DURATION", value_parser = seconds)]
    pub feed_silence: Option<SignedDuration>,
    /// The breaker opens when the wall clock jumps, or differs from the API server's, by more than this.
    #[arg(long, env = "TORPOR_CLOCK_TOLERANCE", value_name = "DURATION", default_value = "5m", value_parser = seconds)]
    pub clock_tolerance: SignedDuration,
    /// Do not run: hold all sleep by hand, for this reason, until it is released.
    #[arg(long, value_name = "REASON", conflicts_with = "release")]
    pub hold: Option<String>,
    /// Do not run: release the breaker after you have looked at why it is open.
    #[arg(long)]
    pub release: bool,
}

fn seconds(text: &str) -> Result<SignedDuration, duration::BadDuration> {
    duration::seconds(text).map(SignedDuration::from_secs)
}

fn percent(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=100).contains(number));
    number.ok_or_else(|| "not a whole number from 1 to 100".to_owned())
}

/// Runs the hibernator until it is asked to stop, or must; or changes the breaker.
///
/// # Errors
/// [`Failure`], one line.
pub fn run(args: HibernatorArgs) -> Result<(), Failure> {
    if args.release || args.hold.is_some() {
        return process::block_on(by_hand(args));
    }
    let webhook = webhook(&args)?;
    let limits = Limits {
        percent: args.breaker_percent,
        least: args.breaker_least,
        per_minute: args.sleeps_per_minute,
        feed_silence: args.feed_silence,
        clock_tolerance: args.clock_tolerance,
    };
    let (give_up, namespace) = (args.webhook_give_up, args.process.lease_namespace.clone());
    process::lead(names::HIBERNATOR, args.process, &watch::HIBERNATOR_NAMES, |leading| async move {
        let Leading { clock, catalog, cluster, health, metrics, leader } = leading;
        let store = cluster.breaker(&namespace);
        // A breaker that was left open and cannot be read must not be taken for a closed one.
        let stored = loaded(&store).await?;
        let saved = stored.as_ref().map(|stored| Saved::from_data(&stored.data, clock.now())).unwrap_or_default();
        let hold = stored.and_then(|stored| stored.hold);
        let start = Start { clock, catalog, limits, saved, hold, webhook, give_up, store, leader, health, metrics };
        Ok(hibernation::hibernator(cluster, start).await)
    })
}

/// What the breaker was left as. An API server that is busy is waited for: a program that ended would be started ever later.
async fn loaded(store: &BreakerStore) -> Result<Option<Stored>, Failure> {
    loop {
        match within(PATIENCE, "breaker", store.load()).await {
            Err(error @ (ClusterError::Transient { .. } | ClusterError::Failed { .. })) => {
                tracing::warn!(%error, "the breaker was not read; trying again");
            }
            done => return done.map_err(Failure::run),
        }
        tokio::time::sleep(PATIENCE).await;
    }
}

fn webhook(args: &HibernatorArgs) -> Result<Option<Arc<Webhook>>, Failure> {
    let (Some(url), Some(file)) = (&args.webhook_url, &args.webhook_key_file) else { return Ok(None) };
    let key = read_key(file)?;
    let timeout = Duration::from_secs(args.webhook_timeout_seconds);
    let config = WebhookConfig { url: url.clone(), key, timeout, source: args.webhook_source.clone() };
    Webhook::new(config).map(|webhook| Some(Arc::new(webhook))).map_err(Failure::input)
}

fn read_key(file: &Path) -> Result<Vec<u8>, Failure> {
    let bytes = std::fs::read(file).map_err(|error| Failure::input(format!("{}: {error}", file.display())))?;
    Ok(bytes.trim_ascii().to_vec())
}

/// Does what a person may do to the breaker, with that person's rights.
async fn by_hand(args: HibernatorArgs) -> Result<(), Failure> {
    let client = connect("torpor-cli").await.map_err(Failure::input)?.client;
    let namespace = &args.process.lease_namespace;
    let store = BreakerStore::new(client, namespace);
    let refused = |error: ClusterError| match error {
        ClusterError::Refused { .. } => Failure::input(error),
        other => Failure::run(other),
    };
    let Some(stored) = store.load().await.map_err(refused)? else {
        return Err(Failure::input(format!(
            "there is no ConfigMap {NAME} in namespace {namespace}: no hibernator has run there; name its namespace with --lease-namespace"
        )));
    };
    if let Some(words) = &args.hold {
        store.hold(words).await.map_err(refused)?;
        return write("held: nobody falls asleep until it is released: torpor hibernator --release\n");
    }
    let opening = stored.data.get("since").filter(|_| stored.data.get("state").is_some_and(|state| state == "open"));
    if opening.is_none() && stored.hold.is_none() {
        return write("the breaker is closed; there is nothing to release\n");
    }
    store.release(opening.map(String::as_str)).await.map_err(refused)?;
    let tripped = stored.data.get("message").filter(|_| opening.is_some()).cloned();
    let by_hand = stored.hold.map(|words| format!("held by hand: {words}"));
    let why: Vec<String> = tripped.into_iter().chain(by_hand).collect();
    write(&format!("released; it was open because: {}\n", why.join("; and ")))
}

//! The gateway: the door through which portals report logins and wake tenants, and the page on which users wait.
//!
//! Stateless: what it knows it watches, what it is told it writes into the Tenant's status at once, and the operator
//! acts on that. [`ask`], [`links`] and [`progress`] decide and are pure; `time` says when it is; the rest is HTTP.

pub mod access;
mod api;
pub mod ask;
mod events;
mod limits;
pub mod links;
mod page;
pub mod problem;
pub mod progress;
pub mod store;
#[cfg(test)]
mod tests;
mod time;

use std::collections::HashMap;
use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex as StdMutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{ConnectInfo, FromRequestParts, Path};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use tokio::sync::Mutex;

use self::access::Access;
use self::ask::{Ask, Hindered, change};
use self::links::{Link, LinkKeys};
use self::problem::Problem;
use self::progress::Progress;
use self::store::Tenants;
use self::time::Time;
use crate::api::Tenant;
use crate::clock::Clock;
use crate::cluster::Cluster;
use crate::cluster::error::ClusterError;
use crate::cluster::status::Merged;
use crate::domain::activity;
use crate::domain::stage::{Stage, effective_stage};
use crate::metrics::Metrics;

pub use self::api::openapi;

/// Writers for different tenants seldom meet, and few locks are enough for all.
const LOCKS: usize = 256;
/// Tenants whose confirmation is remembered; others cost a read.
const CONFIRMED: u64 = 100_000;
/// So long a name is known to be nobody's: whoever asks again and again for a tenant that does not exist costs one read in that time. One
/// that is made meanwhile is found when the watch shows it, and after this time in any case.
const ABSENT: Duration = Duration::from_secs(1);
/// Names without a Tenant that are remembered; others cost a read.
const ABSENT_NAMES: u64 = 10_000;
/// A Tenant that changes so often between a look and a write is left to the next request.
const TRIES: u32 = 5;
/// So long a Tenant that the watch shows is believed when it says that a login is no news. A watch may be dead without
/// anybody noticing, and whoever logs in must not be left asleep for it.
const BELIEVED: Duration = Duration::from_secs(60);
/// Another replica's write is seen so soon, or where the watch is behind so much later; after each of these pauses a login that was
/// no news is looked at once more, the last time as the API server has it: together they last as long as the watch is believed, so that
/// this is the read that the next login would be.
const SECOND_LOOKS: [Duration; 3] = [Duration::from_secs(2), Duration::from_secs(10), Duration::from_secs(48)];
/// Longest pause between two tries to write a login that such a look has found missing.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Somebody waits for what is read.
const PATIENCE: Duration = Duration::from_secs(3);
/// Page loads of one tenant per second; a person with several tabs that refresh needs a few.
const PAGES_PER_SECOND: u32 = 10;
/// How often what limiters remember of silent callers is dropped.
const TIDY: Duration = Duration::from_secs(60);

/// How the gateway is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// `https` or `http`: how users reach pages and dashboards.
    pub public_scheme: String,
    /// Where users log in.
    pub portal_url: Option<String>,
    /// How long a link made here is valid.
    pub link_life: SignedDuration,
    /// Audiences of tokens; none means the API server's own.
    pub audiences: Vec<String>,
    /// Requests of one caller per second.
    pub per_second: NonZeroU32,
    /// Requests under way at a time.
    pub concurrency: usize,
    /// Event streams open at a time.
    pub streams: usize,
}

/// What every request works with.
pub struct Gateway {
    options: Options,
    clock: Arc<dyn Clock>,
    time: Time,
    cluster: Cluster,
    tenants: Tenants,
    /// Names that were looked for a moment ago because the watch showed none. `tenants` is asked first, so this hides nobody who has come
    /// meanwhile.
    absent: moka::future::Cache<String, ()>,
    access: Access,
    keys: RwLock<Option<LinkKeys>>,
    pages: DefaultKeyedRateLimiter<String>,
    places: events::Places,
    /// Tenants that were seen lately as the API server has them.
    confirmed: moka::sync::Cache<String, Instant>,
    /// The newest login of tenants that are to be looked at once more.
    second_looks: StdMutex<HashMap<String, Timestamp>>,
    locks: Vec<Mutex<()>>,
    hasher: RandomState,
    metrics: Metrics,
}

impl Gateway {
    /// A gateway over this cluster.
    pub fn new(options: Options, cluster: Cluster, clock: Arc<dyn Clock>, metrics: Metrics) -> Self {
        let pages = NonZeroU32::new(PAGES_PER_SECOND).unwrap_or(NonZeroU32::MIN);
        Gateway {
            access: Access::new(cluster.reviewer(), options.audiences.clone(), options.per_second),
            time: Time::new(clock.clone()),
            tenants: Tenants::default(),
            absent: moka::future::Cache::builder().max_capacity(ABSENT_NAMES).time_to_live(ABSENT).build(),
            keys: RwLock::default(),
            pages: RateLimiter::keyed(Quota::per_second(pages)),
            places: events::Places::of(options.streams),
            confirmed: moka::sync::Cache::builder().max_capacity(CONFIRMED).time_to_live(BELIEVED).build(),
            second_looks: StdMutex::default(),
            locks: (0..LOCKS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            options,
            clock,
            cluster,
            metrics,
        }
    }

    /// The keys that links are signed with from now on.
    pub fn set_keys(&self, keys: Option<LinkKeys>) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    /// All Tenants.
    pub fn tenants(&self) -> &Tenants {
        &self.tenants
    }

    /// Forgets silent callers now and then. Ends never.
    pub async fn tidy(&self) {
        loop {
            tokio::time::sleep(TIDY).await;
            self.access.tidy();
            self.pages.retain_recent();
            self.pages.shrink_to_fit();
        }
    }

    fn keys(&self) -> Option<LinkKeys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What time it is. The API server is asked for its own at most once a minute, and only while somebody asks something of us.
    async fn now(&self) -> Timestamp {
        self.time.now(self.cluster.reader.time()).await
    }

    fn tenant(&self, name: &str) -> Result<Arc<Tenant>, Problem> {
        self.tenants.get(name).ok_or(if self.tenants.complete() { Problem::NotFound } else { Problem::Unavailable })
    }

    /// The Tenant of this name. One that the watch does not show may have been made a moment ago.
    async fn find(&self, name: &str) -> Result<Arc<Tenant>, Problem> {
        if self.tenants.get(name).is_none() && access::is_name(name) {
            // Many who ask at once are one question.
            let looked = self.absent.try_get_with_by_ref(name, self.look_again(name)).await;
            looked.map_err(|problem| (*problem).clone())?;
        }
        self.tenant(name)
    }

    async fn progress(&self, tenant: &Tenant) -> Progress {
        let usual = self.tenants.usual_seconds(tenant.spec.tier);
        progress::of(tenant, usual, &self.options.public_scheme, self.now().await)
    }

    /// A link to the waiting page of a tenant that somebody else has woken already: it never wakes by itself.
    async fn link(&self, tenant: &Tenant) -> Option<String> {
        let now = self.now().await;
        let made_at = activity::read(tenant).newest.min(now).max(store::created(tenant));
        let longest = made_at.checked_add(links::LONGEST_LIFE).ok()?;
        let expires_at = now.checked_add(self.options.link_life).ok()?.min(longest);
        let name = tenant.name_any();
        let text = self.keys()?.sign(&name, Link { made_at, expires_at });
        Some(format!("/wake/{name}?link={text}"))
    }

    /// Does what somebody asks for, once. Returns the Tenant as it is then, and whether it had to be written.
    ///
    /// # Errors
    /// 404, 409 or 503.
    async fn ask(self: &Arc<Self>, name: &str, ask: Ask) -> Result<(Arc<Tenant>, bool), Problem> {
        let began = self.clock.monotonic();
        let tenant = self.find(name).await?;
        let now = self.now().await;
        let first = change(ask, &tenant, now);
        let newest = activity::read(&tenant).newest;
        let exact = matches!(ask, Ask::Wake | Ask::Sleep);
        if first == Ok(None) && !exact && self.confirmed.contains_key(name) {
            self.look_later(name, ask, now);
            return Ok((tenant, false));
        }
        // Of many who report the same login, one writes and the others find it written.
        let _alone = self.lock(name).lock().await;
        // The watch may be behind another replica's write, and nobody would come to mend it. Of those who waited for the lock, one looks
        // for all.
        let confirmed = self.confirmed.get(name);
        let enough = confirmed.is_some_and(|since| since >= began || first.is_ok() && !exact);
        if !matches!(first, Ok(Some(_))) && !enough {
            self.look_again(name).await?;
        }
        for _ in 0..TRIES {
            let tenant = self.tenant(name)?;
            // Clocks of replicas differ: what was known when it was asked for came before.
            if matches!(ask, Ask::Sleep | Ask::Approve) && activity::read(&tenant).newest > newest.max(now) {
                return Err(Hindered::Overtaken.into());
            }
            let Some(fields) = change(ask, &tenant, self.now().await)? else {
                let looked = self.confirmed.get(name).is_some_and(|since| since >= began);
                if !looked {
                    // What it goes by may have been asked for before it came.
                    self.look_later(name, ask, now);
                }
                if !exact || looked {
                    return Ok((tenant, false));
                }
                self.look_again(name).await?;
                continue;
            };
            let asked = self.clock.monotonic();
            match self.cluster.status.merge_unchanged(&tenant.metadata, &fields).await {
                Ok(Merged::Written(written)) => {
                    self.tenants.put(*written);
                    self.confirmed.insert(name.to_owned(), asked);
                    return Ok((self.tenant(name)?, true));
                }
                Ok(Merged::Gone) => self.tenants.remove(name),
                Ok(Merged::Changed) => self.look_again(name).await?,
                // It may have been written all the same, and who is told that it was not asks again, later than it meant.
                Err(error @ (ClusterError::Transient { .. } | ClusterError::Failed { .. })) => {
                    tracing::warn!(tenant = name, %error, "a write may have failed; looking whether it was done");
                    self.look_again(name).await?;
                    let tenant = self.tenant(name)?;
                    if !ask::says(&tenant, &fields) {
                        return Err(error.into());
                    }
                    return Ok((tenant, true));
                }
                Err(error) => return Err(error.into()),
            }
        }
        tracing::warn!(tenant = name, "its status changes faster than it can be written");
        Err(Problem::Unavailable)
    }

    fn lock(&self, name: &str) -> &Mutex<()> {
        &self.locks[usize::try_from(self.hasher.hash_one(name)).unwrap_or_default() % LOCKS]
    }

    async fn look_again(&self, name: &str) -> Result<(), Problem> {
        let asked = self.clock.monotonic();
        let read = tokio::time::timeout(PATIENCE, self.cluster.reader.tenant(name)).await;
        match read.map_err(|_| Problem::Unavailable)?? {
            Some(fresh) => {
                self.tenants.put(fresh);
                self.confirmed.insert(name.to_owned(), asked);
            }
            None => self.tenants.remove(name),
        }
        Ok(())
    }

    /// A sleep request may have gone through another replica just before this login and not be seen here yet. Soon it
    /// is, and then this login is the newer one.
    fn look_later(self: &Arc<Self>, name: &str, ask: Ask, now: Timestamp) {
        let login = match ask {
            Ask::Activity => now,
            // Most links are made when somebody comes, and tell nothing new.
            Ask::Follow(at) if self.tenants.get(name).is_some_and(|tenant| at > activity::read(&tenant).newest) => at,
            Ask::Follow(_) | Ask::Wake | Ask::Sleep | Ask::Approve => return,
        };
        let mut looks = self.second_looks.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = looks.get(name).map_or(login, |known| login.max(*known));
        if looks.insert(name.to_owned(), newest).is_some() {
            return;
        }
        let (gateway, name) = (self.clone(), name.to_owned());
        tokio::spawn(async move {
            let looks = || gateway.second_looks.lock().unwrap_or_else(PoisonError::into_inner);
            let newest = || looks().get(&name).copied().unwrap_or_default();
            // A login that comes meanwhile has all looks of its own.
            loop {
                let login = newest();
                for (number, pause) in (1..).zip(SECOND_LOOKS) {
                    tokio::time::sleep(pause).await;
                    let mut again = pause;
                    let last = number == SECOND_LOOKS.len();
                    while !gateway.second_look(&name, newest(), last).await {
                        again = (again * 2).min(LONGEST_PAUSE);
                        tokio::time::sleep(again).await;
                    }
                }
                let mut looks = looks();
                if looks.get(&name) == Some(&login) {
                    looks.remove(&name);
                    return;
                }
            }
        });
    }

    /// Whether this login wakes whom it should, as far as can be seen here, or as the API server has it.
    async fn second_look(self: &Arc<Self>, name: &str, login: Timestamp, read: bool) -> bool {
        if read && self.look_again(name).await.is_err() {
            return false;
        }
        let now = self.now().await;
        let missed = self.tenants.get(name).is_some_and(|tenant| {
            let asleep = effective_stage(&activity::facts(&tenant, now)) > Stage::Active;
            asleep && matches!(change(Ask::Follow(login), &tenant, now), Ok(Some(_)))
        });
        let done = !missed || self.ask(name, Ask::Follow(login)).await.is_ok();
        if !done {
            tracing::warn!(
                tenant = name,
                "a login that came right after a sleep request could not be written; trying again"
            );
        }
        done
    }
}

/// The name in an address. What cannot be read is nobody's.
struct Name(String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(name) = Path::from_request_parts(parts, state).await.map_err(|_| Problem::NotFound)?;
        Ok(Name(name))
    }
}

/// Who asks: the headers, and the address on the other end of the connection.
struct Caller {
    headers: HeaderMap,
    peer: Option<IpAddr>,
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(address)| address.ip());
        Ok(Caller { headers: parts.headers.clone(), peer })
    }
}

/// Every address of the gateway, with its limits.
pub fn routes(gateway: Arc<Gateway>) -> Router {
    let concurrency = gateway.options.concurrency;
    let routes = api::routes().merge(page::routes()).fallback(page::anywhere);
    limits::around(routes.with_state(gateway.clone()), gateway.metrics.clone(), gateway.clock.clone(), concurrency)
}

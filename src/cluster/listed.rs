//! Wishes that may be old.
//!
//! A list may be old: an API server that lags behind, or one that was restored, shows a Tenant as it was. Who starts with such a list
//! beside what there is now would undo what a user has changed since, and start bots again that were taken away. So before the first
//! write in a tenant's namespace its Tenant and fleets are looked at once more, where they have been listed: they must be now as they are
//! known, by the list or by the watch that goes on from there, which may be as far behind. What came later needs no look.
//!
//! A [`Shown`] is what is to be looked at; the [`Wishes`] of a namespace are all of them. Whatever is told of them is counted as news,
//! and a pass knows how many there were when it began: one that began before the last has read what was, whatever a look would find.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::ListParams;
use kube::{Api, Client};

use super::error::ClusterError;
use super::status::Own;
use crate::api::{BotFleet, Tenant};
use crate::domain::names;

/// What comes so soon after a list is as little known as what was listed: the watch goes on where the list ended, and may show
/// what has long been changed.
const FRESH: Duration = Duration::from_secs(60);

/// How long one pass may take.
pub const LONGEST_PASS: Duration = Duration::from_secs(60);

/// Which incarnation of an object, and which version of it. One number, for it is kept of every tenant that nobody changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version(u64);

impl Version {
    fn of(kind: Own, metadata: &ObjectMeta) -> Self {
        // Only compared within one process, so the standard hasher will do.
        let mut hasher = DefaultHasher::new();
        metadata.uid.hash(&mut hasher);
        match kind {
            // Activity stands in annotations, and decisions in the status.
            Own::Tenant | Own::WorkerPool => metadata.resource_version.hash(&mut hasher),
            // What is wanted of a fleet stands in its spec alone.
            Own::BotFleet => (metadata.generation, metadata.deletion_timestamp.is_some()).hash(&mut hasher),
        }
        Version(hasher.finish())
    }
}

/// A version, and the how-manieth list of its kind has shown it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shown {
    version: Version,
    list: u32,
}

tokio::task_local! {
    /// How many news there were when this pass read what is wanted.
    static BEGAN: u64;
}

/// Runs a pass that has read what is wanted when there were so many news, so that [`Listed::confirm`] knows what it acts on.
pub async fn since<F: Future>(news: u64, pass: F) -> F::Output {
    BEGAN.scope(news, pass).await
}

/// What is wanted in one namespace, as far as it has not been looked at.
#[derive(Clone, Debug)]
struct Wishes {
    /// Number of the last news of it. Who has begun before acts on what was.
    news: u64,
    /// When that was, while anything was to be looked at.
    told: Instant,
    tenant: Option<Shown>,
    fleets: Vec<(Box<str>, Shown)>,
}

impl Wishes {
    fn is_empty(&self) -> bool {
        self.tenant.is_none() && self.fleets.is_empty()
    }

    /// All of it was looked at, and no pass is under way any more that began before.
    fn is_over(&self, now: Instant) -> bool {
        self.is_empty() && now.saturating_duration_since(self.told) > LONGEST_PASS
    }

    fn forget(&mut self, fleet: &str) {
        self.fleets.retain(|(name, _)| **name != *fleet);
    }

    fn shown(&mut self, kind: Own, name: &str) -> Option<&mut Shown> {
        match kind {
            Own::Tenant => self.tenant.as_mut(),
            Own::BotFleet => self.fleets.iter_mut().find(|(fleet, _)| **fleet == *name).map(|(_, shown)| shown),
            Own::WorkerPool => None,
        }
    }
}

/// Lists of one kind.
#[derive(Clone, Copy, Debug, Default)]
struct Lists {
    begun: u32,
    /// The last that was complete, and so can be read.
    complete: u32,
}

#[derive(Debug, Default)]
struct Known {
    /// By namespace. One that was looked at stays for a while, for a pass may be under way that began before.
    wishes: HashMap<String, Wishes>,
    /// How many namespaces there may be before those are forgotten.
    limit: usize,
    tenants: Lists,
    fleets: Lists,
    /// When the last list of either kind was complete.
    complete: Option<Instant>,
    /// How often anything was told.
    news: u64,
}

impl Known {
    fn lists(&mut self, kind: Own) -> Option<&mut Lists> {
        match kind {
            Own::Tenant => Some(&mut self.tenants),
            Own::BotFleet => Some(&mut self.fleets),
            Own::WorkerPool => None,
        }
    }

    /// Notes that this is told of the namespace now.
    fn tell(&mut self, namespace: String, now: Instant) -> &mut Wishes {
        const FEW: usize = 256;
        if self.wishes.len() >= self.limit {
            self.wishes.retain(|_, wishes| !wishes.is_over(now));
            self.limit = FEW + 2 * self.wishes.len();
        }
        self.news += 1;
        let new = Wishes { news: 0, told: now, tenant: None, fleets: Vec::new() };
        let wishes = self.wishes.entry(namespace).or_insert(new);
        wishes.news = self.news;
        if !wishes.is_empty() {
            wishes.told = now;
        }
        wishes
    }
}

/// What is known of wishes without a look, and the way to look.
pub struct Listed {
    client: Client,
    known: Mutex<Known>,
}

impl Listed {
    /// Nothing is known yet.
    pub fn new(client: Client) -> Self {
        Listed { client, known: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Whatever is left half-way by a panic elsewhere is looked at once more.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many news there were. To be asked before what is wanted is read.
    pub fn news(&self) -> u64 {
        self.lock().news
    }

    /// A list of this kind begins.
    pub fn begin(&self, kind: Own) {
        if let Some(lists) = self.lock().lists(kind) {
            lists.begun += 1;
        }
    }

    /// This object is to be looked at before anything is written by it: a list has shown it, or it may have gone.
    pub fn note(&self, kind: Own, metadata: &ObjectMeta, now: Instant) {
        let Some((namespace, name)) = place(kind, metadata) else { return };
        let known = &mut *self.lock();
        let Some(list) = known.lists(kind).map(|lists| lists.begun) else { return };
        let shown = Shown { version: Version::of(kind, metadata), list };
        let wishes = known.tell(namespace, now);
        if kind == Own::Tenant {
            wishes.tenant = Some(shown);
        } else {
            wishes.forget(&name);
            // Most have one, and it is kept for as long as the process runs.
            wishes.fleets.reserve_exact(1);
            wishes.fleets.push((name.into(), shown));
        }
    }

    /// The list is complete, and can be read: what it has not shown is no more.
    pub fn finish(&self, kind: Own, now: Instant) {
        let known = &mut *self.lock();
        let Some(lists) = known.lists(kind) else { return };
        lists.complete = lists.begun;
        let last = lists.complete;
        known.complete = Some(now);
        known.news += 1;
        for wishes in known.wishes.values_mut() {
            let concerned = match kind {
                Own::Tenant => {
                    let listed = wishes.tenant.is_some();
                    wishes.tenant.take_if(|tenant| tenant.list != last);
                    listed
                }
                Own::BotFleet => {
                    let listed = !wishes.fleets.is_empty();
                    wishes.fleets.retain(|(_, fleet)| fleet.list == last);
                    listed
                }
                Own::WorkerPool => false,
            };
            if concerned {
                (wishes.news, wishes.told) = (known.news, now);
            }
        }
    }

    /// The watch has shown an object that was not known, and it can be read: no list has, or it has gone meanwhile.
    pub fn came(&self, kind: Own, metadata: &ObjectMeta, now: Instant) {
        let complete = self.lock().complete;
        if complete.is_some_and(|complete| now.saturating_duration_since(complete) < FRESH) {
            self.note(kind, metadata, now);
        } else {
            self.gone(kind, metadata, now);
        }
    }

    /// The watch has shown a change of this object, and it can be read. Where it was to be looked at it still is, as what it is
    /// now: the watch goes on where the list ended, and this may be from before now as well.
    pub fn seen(&self, kind: Own, metadata: &ObjectMeta, now: Instant) {
        let Some((namespace, name)) = place(kind, metadata) else { return };
        let version = Version::of(kind, metadata);
        let known = &mut *self.lock();
        let Some(wishes) = known.wishes.get_mut(&namespace) else { return };
        if wishes.is_over(now) {
            known.wishes.remove(&namespace);
            return;
        }
        let is_news = match wishes.shown(kind, &name) {
            Some(shown) => std::mem::replace(&mut shown.version, version) != version,
            // A fleet's status is no news to its siblings, and what was looked at is not compared any more.
            None => kind == Own::Tenant,
        };
        if is_news {
            known.tell(namespace, now);
        }
    }

    /// The watch has shown the end of this object.
    pub fn gone(&self, kind: Own, metadata: &ObjectMeta, now: Instant) {
        let Some((namespace, name)) = place(kind, metadata) else { return };
        let known = &mut *self.lock();
        if !known.wishes.contains_key(&namespace) {
            return;
        }
        let wishes = known.tell(namespace, now);
        match kind {
            Own::Tenant => wishes.tenant = None,
            Own::BotFleet => wishes.forget(&name),
            Own::WorkerPool => {}
        }
    }

    /// Makes sure that a pass does not act on what was wanted of a namespace before: it must have begun after the watch told of
    /// the last change, and what is to be looked at must be as it is known.
    ///
    /// # Errors
    /// `Behind` where that is not so. Otherwise why it cannot be told.
    pub async fn confirm(&self, namespace: &str) -> Result<(), ClusterError> {
        let behind = || ClusterError::Behind { what: format!("what is wanted in {namespace}") };
        let (wishes, tenants, fleets) = {
            let known = self.lock();
            let Some(wishes) = known.wishes.get(namespace).cloned() else { return Ok(()) };
            (wishes, known.tenants, known.fleets)
        };
        // What a list shows can be read when the list is complete.
        let unread = wishes.tenant.is_some_and(|tenant| tenant.list > tenants.complete)
            || wishes.fleets.iter().any(|(_, fleet)| fleet.list > fleets.complete);
        if unread || BEGAN.try_with(|began| *began).is_ok_and(|began| began < wishes.news) {
            return Err(behind());
        }
        if let (Some(listed), Some(name)) = (&wishes.tenant, names::tenant_of_namespace(namespace)) {
            let what = format!("Tenant {name}");
            let api: Api<Tenant> = Api::all(self.client.clone());
            let live = api.get_metadata_opt(name).await.map_err(|error| ClusterError::of(&what, &error))?;
            agree(what, Own::Tenant, listed.version, live.as_ref().map(|live| &live.metadata))?;
        }
        if !wishes.fleets.is_empty() {
            let what = format!("BotFleets of {namespace}");
            let api: Api<BotFleet> = Api::namespaced(self.client.clone(), namespace);
            let list = api.list_metadata(&ListParams::default()).await;
            let list = list.map_err(|error| ClusterError::of(&what, &error))?;
            for (name, listed) in &wishes.fleets {
                let live = list.items.iter().find(|live| live.metadata.name.as_deref() == Some(&**name));
                let what = format!("BotFleet {namespace}/{name}");
                agree(what, Own::BotFleet, listed.version, live.map(|live| &live.metadata))?;
            }
        }
        // What a list has shown meanwhile is not what was looked at.
        if let Some(now) = self.lock().wishes.get_mut(namespace) {
            now.tenant.take_if(|tenant| wishes.tenant.as_ref() == Some(tenant));
            now.fleets.retain(|fleet| !wishes.fleets.contains(fleet));
        }
        Ok(())
    }
}

fn agree(what: String, kind: Own, known: Version, live: Option<&ObjectMeta>) -> Result<(), ClusterError> {
    if live.is_some_and(|live| Version::of(kind, live) == known) {
        return Ok(());
    }
    tracing::info!(%what, "nothing is written: it has changed, and the watch has not shown it yet");
    Err(ClusterError::Behind { what })
}

/// Namespace of what is wanted, and name of the object.
fn place(kind: Own, metadata: &ObjectMeta) -> Option<(String, String)> {
    let name = metadata.name.clone()?;
    match kind {
        Own::Tenant => Some((names::namespace(&name), name)),
        Own::BotFleet => Some((metadata.namespace.clone()?, name)),
        Own::WorkerPool => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};

    fn metadata(name: &str, namespace: Option<&str>, version: &str) -> ObjectMeta {
        ObjectMeta {
            name: Some(name.to_owned()),
            namespace: namespace.map(str::to_owned),
            uid: Some("u".to_owned()),
            resource_version: Some(version.to_owned()),
            ..ObjectMeta::default()
        }
    }

    fn now() -> Instant {
        SystemClock.monotonic()
    }

    fn listed() -> Listed {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = kube::Config::new(http::Uri::from_static("http://127.0.0.1:9"));
        Listed::new(Client::try_from(config).expect("a client"))
    }

    #[tokio::test]
    async fn only_what_a_list_alone_has_shown_is_looked_at() {
        let listed = listed();
        let (tenant, fleet) = (metadata("a", None, "5"), metadata("makers", Some("tenant-a"), "6"));
        assert_eq!(listed.confirm("tenant-a").await, Ok(()), "nothing is known, so nothing is asked");
        listed.note(Own::Tenant, &tenant, now());
        listed.note(Own::BotFleet, &fleet, now());
        assert_eq!(listed.confirm("tenant-b").await, Ok(()));
        assert!(listed.confirm("tenant-a").await.is_err(), "nobody answers");
        listed.seen(Own::Tenant, &metadata("a", None, "7"), now());
        let shown = listed.lock().wishes["tenant-a"].tenant.map(|tenant| tenant.version);
        assert_eq!(
            shown,
            Some(Version::of(Own::Tenant, &metadata("a", None, "7"))),
            "what the watch brings may be as old"
        );
        listed.gone(Own::Tenant, &tenant, now());
        assert!(listed.confirm("tenant-a").await.is_err(), "the fleet is as little known");
        listed.gone(Own::BotFleet, &fleet, now());
        assert_eq!(listed.confirm("tenant-a").await, Ok(()));
        assert!(listed.lock().wishes["tenant-a"].is_empty());
    }

    #[tokio::test]
    async fn who_has_read_what_was_is_told_at_once() {
        let listed = listed();
        listed.note(Own::Tenant, &metadata("a", None, "5"), now());
        let began = listed.news();
        listed.seen(Own::Tenant, &metadata("a", None, "6"), now());
        let behind = Err(ClusterError::Behind { what: "what is wanted in tenant-a".to_owned() });
        assert_eq!(since(began, listed.confirm("tenant-a")).await, behind);
        let began = listed.news();
        listed.seen(Own::Tenant, &metadata("a", None, "6"), now());
        let asked = since(began, listed.confirm("tenant-a")).await;
        assert!(
            matches!(asked, Err(ClusterError::Transient { .. })),
            "nothing is new, so it asks, and nobody answers: {asked:?}"
        );
    }

    #[tokio::test]
    async fn what_the_next_list_does_not_show_holds_up_nobody() {
        let listed = listed();
        let shown = |fleets: &[&str]| {
            listed.begin(Own::BotFleet);
            for name in fleets {
                listed.note(Own::BotFleet, &metadata(name, Some("tenant-a"), "6"), now());
            }
            listed.finish(Own::BotFleet, now());
        };
        shown(&["makers", "takers"]);
        listed.note(Own::Tenant, &metadata("a", None, "5"), now());
        shown(&["takers"]);
        let names = |listed: &Listed| {
            listed.lock().wishes["tenant-a"].fleets.iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names(&listed), vec!["takers"]);
        shown(&[]);
        assert!(listed.lock().wishes["tenant-a"].tenant.is_some(), "lists of fleets say nothing of Tenants");
        listed.begin(Own::Tenant);
        listed.finish(Own::Tenant, now());
        assert_eq!(listed.confirm("tenant-a").await, Ok(()));
    }

    #[tokio::test]
    async fn what_comes_right_after_a_list_is_looked_at_and_what_comes_later_is_not() {
        let listed = listed();
        let now = now();
        let (early, late) = (metadata("a", None, "5"), metadata("b", None, "6"));
        listed.begin(Own::Tenant);
        listed.finish(Own::Tenant, now);
        listed.came(Own::Tenant, &early, now + FRESH / 2);
        listed.came(Own::Tenant, &late, now + FRESH);
        assert!(listed.confirm("tenant-a").await.is_err(), "nobody answers");
        assert_eq!(listed.confirm("tenant-b").await, Ok(()));
    }

    #[test]
    fn another_version_incarnation_or_none_does_not_agree() {
        let known = Version::of(Own::Tenant, &metadata("a", None, "5"));
        let agree = |live: Option<&ObjectMeta>| agree("a".to_owned(), Own::Tenant, known, live);
        assert_eq!(agree(Some(&metadata("a", None, "5"))), Ok(()));
        assert_eq!(agree(Some(&metadata("a", None, "6"))), Err(ClusterError::Behind { what: "a".to_owned() }));
        assert!(agree(None).is_err());
        let other = ObjectMeta { uid: Some("v".to_owned()), ..metadata("a", None, "5") };
        assert!(agree(Some(&other)).is_err());
    }

    #[test]
    fn a_fleet_is_the_same_whatever_its_status_says() {
        let fleet = |version: &str, generation: i64| {
            let metadata = metadata("makers", Some("tenant-a"), version);
            Version::of(Own::BotFleet, &ObjectMeta { generation: Some(generation), ..metadata })
        };
        assert_eq!(fleet("5", 1), fleet("6", 1));
        assert_ne!(fleet("5", 1), fleet("5", 2));
    }
}

//! All Tenants as the watch shows them, cut down to what the gateway tells, and who waits for news of them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;
use kube::runtime::watcher::Event;
use tokio::sync::broadcast;

use super::progress;
use crate::api::{Tenant, Tier};
use crate::controllers::context::Guarded;
use crate::domain::names::annotation;

/// News that a slow listener may be behind by before it is told to look again.
const BACKLOG: usize = 1_024;
/// An answer from before a Tenant's deletion is not waited for any longer.
const GONE_FOR: Duration = Duration::from_secs(60);
/// The usual time of a wake-up changes slowly, and telling it takes a look at every tenant.
const USUAL_FOR: Duration = Duration::from_secs(10);

/// The Tenants; clones share them.
#[derive(Clone)]
pub struct Tenants {
    inner: Arc<RwLock<Known>>,
    news: broadcast::Sender<Arc<str>>,
    usual: moka::sync::Cache<Tier, Option<i64>>,
    /// The last version of what was deleted a moment ago: a slow answer must not bring it back.
    gone: moka::sync::Cache<String, u64>,
}

#[derive(Default)]
struct Known {
    tenants: HashMap<Arc<str>, Arc<Tenant>>,
    /// Who claims a host, the oldest first; every replica agrees on whose it is.
    hosts: HashMap<String, BTreeSet<(Timestamp, Arc<str>)>>,
    /// Names of a listing that is under way.
    listed: HashSet<Arc<str>>,
    /// Whether a listing has ended; before, absence means nothing.
    complete: bool,
}

impl Known {
    fn unclaim(&mut self, name: &Arc<str>, tenant: &Tenant) {
        let Some(host) = progress::host(tenant) else { return };
        if let Some(claims) = self.hosts.get_mut(host) {
            claims.remove(&(created(tenant), name.clone()));
            if claims.is_empty() {
                self.hosts.remove(host);
            }
        }
    }
}

impl Default for Tenants {
    fn default() -> Self {
        let usual = moka::sync::Cache::builder().time_to_live(USUAL_FOR).build();
        let gone = moka::sync::Cache::builder().time_to_live(GONE_FOR).build();
        Tenants { inner: Arc::default(), news: broadcast::channel(BACKLOG).0, usual, gone }
    }
}

impl Tenants {
    /// The Tenant of this name, unless it does not exist or is being deleted.
    pub fn get(&self, name: &str) -> Option<Arc<Tenant>> {
        self.read(|known| known.tenants.get(name).cloned())
    }

    /// Whether all Tenants have been listed once.
    pub fn complete(&self) -> bool {
        self.read(|known| known.complete)
    }

    /// The Tenant whose dashboard has this host.
    pub fn by_host(&self, host: &str) -> Option<Arc<Tenant>> {
        self.read(|known| {
            let (_, name) = known.hosts.get(host)?.first()?;
            known.tenants.get(name).cloned()
        })
    }

    /// Whether the host of this tenant's dashboard is its own, and nobody else's. Of two who claim one, whatever stands in front of their
    /// dashboards leads visitors to either.
    pub fn owns_its_host(&self, tenant: &Tenant) -> bool {
        let claimed_by = |claims: &BTreeSet<(Timestamp, Arc<str>)>| {
            claims.len() == 1 && claims.first().is_some_and(|(_, name)| **name == *tenant.name_any())
        };
        self.read(|known| progress::host(tenant).and_then(|host| known.hosts.get(host)).is_some_and(claimed_by))
    }

    /// Names of Tenants that changed, from now on.
    pub fn news(&self) -> broadcast::Receiver<Arc<str>> {
        self.news.subscribe()
    }

    /// How many seconds a wake-up of this tier usually takes.
    pub fn usual_seconds(&self, tier: Tier) -> Option<i64> {
        self.usual.get_with(tier, || {
            self.read(|known| progress::usual_seconds(known.tenants.values().map(Arc::as_ref), tier))
        })
    }

    /// What the watch shows.
    pub fn take(&self, event: Event<Guarded<Tenant>>) {
        match event {
            Event::Init => self.write(|known| known.listed.clear()),
            Event::InitDone => {
                let gone = self.write(|known| {
                    known.complete = true;
                    let listed = std::mem::take(&mut known.listed);
                    known.tenants.keys().filter(|name| !listed.contains(*name)).cloned().collect::<Vec<_>>()
                });
                for name in gone {
                    self.remove(&name);
                }
            }
            Event::Delete(object) => {
                self.gone.insert(object.name_any(), object.resource_version().map_or(0, |text| number(&text)));
                self.remove(&object.name_any());
            }
            Event::Apply(object) => self.seen(object, false),
            Event::InitApply(object) => self.seen(object, true),
        }
    }

    fn seen(&self, object: Guarded<Tenant>, listing: bool) {
        let name: Arc<str> = object.name_any().into();
        match object.0 {
            Ok(tenant) => {
                if listing {
                    self.write(|known| known.listed.insert(name));
                }
                self.put(tenant);
            }
            // One that cannot be read is the operator's to tell of; here it is as if it were not there.
            Err(_) => self.remove(&name),
        }
    }

    /// A Tenant as the API server answered it. An older one than is known changes nothing.
    pub fn put(&self, tenant: Tenant) {
        let name: Arc<str> = tenant.name_any().into();
        if tenant.metadata.deletion_timestamp.is_some() {
            return self.remove(&name);
        }
        let buried = self.gone.get(&*name).is_some_and(|last| last >= version(&tenant));
        let put = self.write(|known| {
            let old = known.tenants.get(&name);
            if buried || old.is_some_and(|old| version(old) >= version(&tenant)) {
                return false;
            }
            if let Some(old) = old.cloned() {
                known.unclaim(&name, &old);
            }
            if let Some(host) = progress::host(&tenant) {
                known.hosts.entry(host.to_owned()).or_default().insert((created(&tenant), name.clone()));
            }
            known.tenants.insert(name.clone(), Arc::new(trimmed(tenant)));
            true
        });
        if put {
            self.tell(name);
        }
    }

    /// A Tenant that is not there any more.
    pub fn remove(&self, name: &str) {
        let removed = self.write(|known| {
            let (name, tenant) = known.tenants.remove_entry(name)?;
            known.unclaim(&name, &tenant);
            Some(name)
        });
        if let Some(name) = removed {
            self.tell(name);
        }
    }

    fn tell(&self, name: Arc<str>) {
        // Nobody listens: nobody is told.
        let _ = self.news.send(name);
    }

    fn read<T>(&self, look: impl FnOnce(&Known) -> T) -> T {
        look(&self.inner.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, change: impl FnOnce(&mut Known) -> T) -> T {
        change(&mut self.inner.write().unwrap_or_else(PoisonError::into_inner))
    }
}

fn version(tenant: &Tenant) -> u64 {
    tenant.metadata.resource_version.as_deref().map_or(0, number)
}

/// Resource versions grow over all objects of a kind, so they tell which of two answers is newer.
fn number(version: &str) -> u64 {
    version.parse().unwrap_or_default()
}

/// What is told of a Tenant, without what is long: fleets with their configurations, and who manages which field.
fn trimmed(mut tenant: Tenant) -> Tenant {
    tenant.metadata.managed_fields = None;
    tenant.metadata.labels = None;
    let annotations = tenant.metadata.annotations.take().unwrap_or_default();
    let kept: BTreeMap<String, String> =
        annotations.into_iter().filter(|(key, _)| annotation::ACTIVITY.contains(&key.as_str())).collect();
    tenant.metadata.annotations = Some(kept);
    tenant.spec.fleets = Vec::new();
    if let Some(status) = &mut tenant.status {
        status.retained_volumes = Vec::new();
    }
    tenant
}

/// Since when a tenant's activity counts; a link from before is another tenant's of the same name.
pub fn created(tenant: &Tenant) -> Timestamp {
    tenant.metadata.creation_timestamp.as_ref().map_or(Timestamp::MAX, |time| time.0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tenant(name: &str, version: u64, host: Option<&str>) -> Tenant {
        let mut tenant: Tenant = serde_json::from_value(json!({
            "apiVersion": "torpor.dev/v1alpha1", "kind": "Tenant", "spec": {"tier": "basic"},
            "metadata": {"name": name, "uid": name, "resourceVersion": version.to_string()},
        }))
        .expect("a Tenant");
        tenant.spec.dashboard.host = host.map(str::to_owned);
        tenant
    }

    #[test]
    fn the_newest_is_known_and_told() {
        let tenants = Tenants::default();
        let mut news = tenants.news();
        tenants.put(tenant("a", 5, Some("a.example.com")));
        assert_eq!(news.try_recv().ok().as_deref(), Some("a"));
        tenants.put(tenant("a", 4, None));
        assert!(news.try_recv().is_err(), "an older one is no news");
        assert!(tenants.by_host("a.example.com").is_some());
        tenants.put(tenant("a", 6, Some("b.example.com")));
        assert!(tenants.by_host("a.example.com").is_none() && tenants.by_host("b.example.com").is_some());
        tenants.remove("a");
        assert!(tenants.get("a").is_none() && tenants.by_host("b.example.com").is_none());
    }

    #[test]
    fn a_host_belongs_to_the_oldest_who_claims_it() {
        let tenants = Tenants::default();
        let claims = |name: &str, second: i64| {
            let mut tenant = tenant(name, 1, Some("x.example.com"));
            let created = Timestamp::from_second(second).expect("a time");
            tenant.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(created));
            tenant
        };
        tenants.put(claims("b", 20));
        tenants.put(claims("a", 10));
        assert!(!tenants.owns_its_host(&claims("a", 10)) && !tenants.owns_its_host(&claims("b", 20)));
        assert!(!tenants.owns_its_host(&tenant("c", 1, None)));
        let owner = |tenants: &Tenants| tenants.by_host("x.example.com").map(|tenant| tenant.name_any());
        assert_eq!(owner(&tenants).as_deref(), Some("a"), "whoever was seen first");
        tenants.remove("a");
        assert_eq!(owner(&tenants).as_deref(), Some("b"));
        assert!(tenants.owns_its_host(&claims("b", 20)));
    }

    #[test]
    fn the_dead_stay_dead() {
        let tenants = Tenants::default();
        tenants.put(tenant("a", 5, None));
        tenants.take(Event::Delete(kube::core::DeserializeGuard(Ok(tenant("a", 7, None)))));
        tenants.put(tenant("a", 6, None));
        assert!(tenants.get("a").is_none(), "an answer from before its deletion");
        tenants.put(tenant("a", 8, None));
        assert!(tenants.get("a").is_some(), "another one of its name");
    }

    #[test]
    fn a_listing_forgets_who_is_not_in_it() {
        let tenants = Tenants::default();
        tenants.put(tenant("a", 1, None));
        tenants.put(tenant("b", 1, None));
        tenants.take(Event::Init);
        tenants.take(Event::InitApply(kube::core::DeserializeGuard(Ok(tenant("b", 1, None)))));
        assert!(tenants.get("a").is_some() && !tenants.complete(), "not before the listing has ended");
        tenants.take(Event::InitDone);
        assert!(tenants.get("a").is_none() && tenants.get("b").is_some());
    }
}

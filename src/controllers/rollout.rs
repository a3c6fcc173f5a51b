//! Whose pods are replaced next.
//!
//! A new catalogue, or an operator with another restart hash, outdates pods of all tenants at once. They are replaced with few tenants at
//! a time, so that a change that was wrong is seen while most bots still trade. What one tenant's user has asked for waits for nobody
//! else, but the bots of a tenant go one at a time over all of its fleets.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::domain::names;

/// So many tenants at a time where few are awake.
const FEWEST: usize = 5;
/// One in so many of those that are awake.
const ONE_IN: usize = 50;
/// A workload that is not whole so long after its last pod has had its time to stop holds up nobody any more: its bots may fail for
/// reasons of their own.
const LONGEST: Duration = Duration::from_secs(600);

/// How soon a pod that works may be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// At once: the stage that its tenant is on the way to needs it.
    AtOnce,
    /// When no other bot of its tenant is being replaced, which is what its user has asked for.
    Asked,
    /// When few other tenants are at it, too.
    InTurn,
}

impl Pace {
    /// The pace of a tenant that may be on the way to another stage, and whose wishes were all `observed`.
    pub fn of(on_the_way: bool, observed: bool) -> Self {
        match observed {
            _ if on_the_way => Pace::AtOnce,
            true => Pace::InTurn,
            false => Pace::Asked,
        }
    }
}

#[derive(Debug)]
struct Turn {
    workload: String,
    until: Instant,
}

/// When the turn of a workload ends whose pod is taken down now.
fn expiry(grace: Duration, now: Instant) -> Instant {
    now + grace + LONGEST
}

#[derive(Debug, Default)]
struct Known {
    /// By namespace.
    taken: HashMap<String, Vec<Turn>>,
    /// Namespace and workload of those who were told to wait.
    waiting: BTreeSet<(String, String)>,
}

impl Known {
    /// Workloads of a namespace that wait.
    fn waiting_of<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a str> {
        let of = self.waiting.range((namespace.to_owned(), String::new())..);
        of.take_while(move |(waiting, _)| waiting == namespace).map(|(_, workload)| &**workload)
    }

    fn forget_ended(&mut self, now: Instant) {
        self.taken.retain(|_, turns| {
            turns.retain(|turn| now < turn.until);
            !turns.is_empty()
        });
    }
}

/// Who replaces pods at present, and who waits for that. Losing it costs nothing but that a few more do at once.
#[derive(Debug, Default)]
pub struct Rollout {
    known: Mutex<Known>,
    awake: AtomicUsize,
}

impl Rollout {
    fn lock(&self) -> MutexGuard<'_, Known> {
        // Each change leaves it whole, and what is too long in it ends by itself.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many tenants are awake.
    pub fn awake(&self, count: usize) {
        self.awake.store(count, Ordering::Relaxed);
    }

    fn at_once(&self) -> usize {
        FEWEST.max(self.awake.load(Ordering::Relaxed) / ONE_IN)
    }

    /// How many tenants have a turn, or wait for one.
    pub fn concerned(&self, now: Instant) -> usize {
        let known = &mut *self.lock();
        known.forget_ended(now);
        let waiting: BTreeSet<&str> = known.waiting.iter().map(|(namespace, _)| &**namespace).collect();
        known.taken.len() + waiting.iter().filter(|namespace| !known.taken.contains_key(**namespace)).count()
    }

    /// Whether a tenant would have a turn now.
    pub fn has_room(&self, namespace: &str, now: Instant) -> bool {
        let known = &mut *self.lock();
        known.forget_ended(now);
        known.taken.contains_key(namespace) || known.taken.len() < self.at_once()
    }

    /// Whether a pod of this workload, one that works and has `grace` to stop, may be replaced now; not if it is `held` by another bot of
    /// its tenant. Who may not is among those that [`Rollout::end`] names when it may.
    pub fn take(
        &self,
        (namespace, workload): (&str, &str),
        pace: Pace,
        held: bool,
        grace: Duration,
        now: Instant,
    ) -> bool {
        let known = &mut *self.lock();
        if pace == Pace::AtOnce {
            known.waiting.remove(&(namespace.to_owned(), workload.to_owned()));
            return true;
        }
        known.forget_ended(now);
        let room = known.taken.len() < self.at_once();
        let turns = known.taken.get(namespace);
        let bots = names::is_fleet_workload(workload);
        let other_bots = |turn: &Turn| bots && names::is_fleet_workload(&turn.workload) && turn.workload != workload;
        let may = !held
            && !turns.is_some_and(|turns| turns.iter().any(other_bots))
            && (pace == Pace::Asked || turns.is_some() || room);
        let place = (namespace.to_owned(), workload.to_owned());
        if !may {
            known.waiting.insert(place);
            return false;
        }
        known.waiting.remove(&place);
        let turns = known.taken.entry(place.0).or_default();
        if turns.iter().all(|turn| turn.workload != workload) {
            turns.push(Turn { workload: place.1, until: expiry(grace, now) });
        }
        true
    }

    /// A pod of this workload was taken down: its turn lasts from now on. One whose pods nobody may take down keeps it no longer than
    /// others do.
    pub fn renew(&self, (namespace, workload): (&str, &str), grace: Duration, now: Instant) {
        let known = &mut *self.lock();
        let turns = known.taken.get_mut(namespace).into_iter().flatten();
        turns.filter(|turn| turn.workload == workload).for_each(|turn| turn.until = expiry(grace, now));
    }

    /// Whether this workload has a turn, or waits for one.
    pub fn has(&self, (namespace, workload): (&str, &str)) -> bool {
        let known = self.lock();
        let turns = known.taken.get(namespace).into_iter().flatten();
        let mut all = turns.map(|turn| &*turn.workload).chain(known.waiting_of(namespace));
        all.any(|known| known == workload)
    }

    /// The workload is whole, or is no more; all of the namespace's where none is named. Returns the namespaces that are to be looked
    /// at again.
    pub fn end(&self, namespace: &str, workload: Option<&str>) -> Vec<String> {
        let known = &mut *self.lock();
        let concerned = |name: &str| workload.is_none_or(|workload| workload == name);
        known.waiting.retain(|(waiting, name)| waiting != namespace || !concerned(name));
        let Some(turns) = known.taken.get_mut(namespace) else { return Vec::new() };
        turns.retain(|turn| !concerned(&turn.workload));
        if turns.is_empty() {
            known.taken.remove(namespace);
        }
        let free = self.at_once().saturating_sub(known.taken.len());
        let mut next: Vec<String> = known.waiting.iter().map(|(waiting, _)| waiting.clone()).collect();
        next.dedup();
        let own = next.iter().position(|waiting| waiting == namespace).map(|own| next.remove(own));
        next.truncate(free);
        next.extend(own);
        known.waiting.retain(|(waiting, _)| !next.contains(waiting));
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};

    const GRACE: Duration = Duration::from_secs(120);

    fn now() -> Instant {
        SystemClock.monotonic()
    }

    #[test]
    fn few_tenants_at_a_time() {
        let (rollout, now) = (Rollout::default(), now());
        let take =
            |tenant: usize| rollout.take((&format!("tenant-{tenant}"), "postgres"), Pace::InTurn, false, GRACE, now);
        rollout.awake(100);
        assert_eq!((0..8).filter(|tenant| take(*tenant)).count(), FEWEST);
        assert!(take(0), "it has its turn");
        assert!(rollout.has_room("tenant-0", now) && !rollout.has_room("tenant-50", now));
        assert!(rollout.has_room("tenant-50", expiry(GRACE, now)), "turns end by themselves");
        assert_eq!((0..8).filter(|tenant| take(*tenant)).count(), FEWEST);
        rollout.awake(1_000);
        assert_eq!((5..30).filter(|tenant| take(*tenant)).count(), 15, "one in fifty of a thousand");
        let with = |tenant, pace| rollout.take((tenant, "postgres"), pace, false, GRACE, now);
        assert!(with("tenant-99", Pace::Asked), "what is asked for waits for nobody");
        assert!(with("tenant-98", Pace::AtOnce) && !rollout.has(("tenant-98", "postgres")), "it takes nobody's turn");
    }

    #[test]
    fn bots_of_a_tenant_go_one_fleet_after_the_other() {
        let (rollout, now) = (Rollout::default(), now());
        let take = |workload: &str| rollout.take(("tenant-a", workload), Pace::Asked, false, GRACE, now);
        assert!(take("bots-a") && take("postgres") && !take("bots-b"));
        assert_eq!(rollout.end("tenant-a", Some("postgres")), ["tenant-a"]);
        assert!(!take("bots-b"), "the first fleet is not whole yet");
        assert!(!rollout.take(("tenant-a", "bots-a"), Pace::Asked, true, GRACE, now), "another bot is still stopping");
        assert_eq!(rollout.end("tenant-a", Some("bots-a")), ["tenant-a"]);
        assert!(take("bots-b"));
        assert_eq!(rollout.end("tenant-a", Some("bots-a")), Vec::<String>::new());
    }

    #[test]
    fn whoever_waits_is_named_when_there_is_room() {
        let (rollout, now) = (Rollout::default(), now());
        let take = |tenant: &str| rollout.take((tenant, "bots-a"), Pace::InTurn, false, GRACE, now);
        let first: Vec<String> = (0..FEWEST).map(|number| format!("a-{number}")).collect();
        assert!(first.iter().all(|tenant| take(tenant)) && !take("b") && !take("c"));
        assert_eq!(rollout.end("c", Some("bots-a")), Vec::<String>::new(), "it waits no more");
        assert!(!take("c"));
        assert_eq!(rollout.end("a-0", Some("bots-a")), ["b"]);
        assert!(take("b") && !take("c"));
        assert_eq!(rollout.end("a-1", None), ["c"], "the tenant is no more");
    }

    #[test]
    fn who_never_ends_holds_up_nobody_for_ever() {
        let (rollout, now) = (Rollout::default(), now());
        let take = |tenant: &str, at| rollout.take((tenant, "bots-a"), Pace::InTurn, false, GRACE, at);
        let end = now + GRACE + LONGEST;
        assert!((0..FEWEST).all(|number| take(&number.to_string(), now)));
        let half = now + LONGEST / 2;
        assert!(take("0", half) && take("1", half), "they go on");
        rollout.renew(("0", "bots-a"), GRACE, half);
        assert!(!take("new", end.checked_sub(Duration::from_secs(1)).unwrap_or(now)), "a bot may still be stopping");
        assert!(take("new", end));
        assert!(rollout.has(("0", "bots-a")) && !rollout.has(("1", "bots-a")));
    }
}

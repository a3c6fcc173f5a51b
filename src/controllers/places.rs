//! Who has the next pass of one kind: places for passes, most of them for upkeep, the rest for what somebody awaits.
//!
//! The loop takes whatever is due, in no order. After a change that concerns all objects, while a webhook hangs, each pass may take half a
//! minute; who is to wake or to stop must not wait for hundreds of those. And the library's schedule never gives back the room that it once
//! took, so that it is not shown all objects at once.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::channel::mpsc::{self, UnboundedReceiver, UnboundedSender};
use kube::Resource;
use kube::runtime::controller::ReconcileRequest;
use kube::runtime::reflector::ObjectRef;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Requests for passes of one kind, as its loop takes them.
pub type Requests<K> = UnboundedReceiver<ReconcileRequest<K>>;

/// So many requests may be under way, or wait for a place, before further ones of the others are made: enough that the loop never waits
/// for the next, whose timer takes a millisecond or two.
const AHEAD: usize = 24;

/// Who is next when a place is free.
struct Line<K: Resource<DynamicType = ()>> {
    /// Numbers of those whose pass found no place, each once; who came first is first. Also of those who were called, and may find that
    /// somebody was quicker.
    numbers: HashMap<ObjectRef<K>, u64>,
    waiting: BTreeMap<u64, ObjectRef<K>>,
    last: u64,
    /// Objects to look at although nothing is known to have happened to them, each once, the next one last.
    others: Vec<Arc<K>>,
    /// Those who were called, or asked for ahead, and whose pass has not begun.
    asked: HashSet<ObjectRef<K>>,
    /// Whether the next is one of the others, where there are both.
    others_turn: bool,
}

impl<K: Resource<DynamicType = ()>> Line<K> {
    fn join(&mut self, object: ObjectRef<K>) {
        let last = &mut self.last;
        let number = *self.numbers.entry(object.clone()).or_insert_with(|| {
            *last += 1;
            *last
        });
        self.waiting.insert(number, object);
    }

    fn leave(&mut self, object: &ObjectRef<K>) {
        if let Some(number) = self.numbers.remove(object) {
            self.waiting.remove(&number);
        }
        if self.waiting.is_empty() {
            // Some of them have gone.
            self.numbers = HashMap::new();
        }
    }

    fn other(&mut self) -> Option<ObjectRef<K>> {
        let other = ObjectRef::from_obj(&*self.others.pop()?);
        self.asked.insert(other.clone());
        Some(other)
    }

    /// Who has waited for a place that is free now, or by turns one of the others, so that neither keeps the other from its look.
    fn call(&mut self) -> Option<ObjectRef<K>> {
        self.others_turn = !self.others_turn;
        let other = if self.others_turn && !self.waiting.is_empty() { self.other() } else { None };
        other.or_else(|| {
            let (_, object) = self.waiting.pop_first()?;
            self.asked.insert(object.clone());
            Some(object)
        })
    }

    /// The others that may be asked for already.
    fn ahead(&mut self) -> Vec<ObjectRef<K>> {
        let room = AHEAD.saturating_sub(self.asked.len() + self.waiting.len());
        (0..room).map_while(|_| self.other()).collect()
    }
}

/// The places.
pub struct Places<K: Resource<DynamicType = ()>> {
    upkeep: Arc<Semaphore>,
    line: Mutex<Line<K>>,
    requests: UnboundedSender<ReconcileRequest<K>>,
}

/// One that was taken, until it is given back.
pub struct Place {
    _upkeep: Option<OwnedSemaphorePermit>,
}

impl<K: Resource<DynamicType = ()>> Places<K> {
    /// So many for upkeep, and what is asked for.
    pub fn new(upkeep: usize) -> (Arc<Self>, Requests<K>) {
        let (requests, queue) = mpsc::unbounded();
        let line = Line {
            numbers: HashMap::new(),
            waiting: BTreeMap::new(),
            last: 0,
            others: Vec::new(),
            asked: HashSet::new(),
            others_turn: false,
        };
        (Arc::new(Places { upkeep: Arc::new(Semaphore::new(upkeep)), line: Mutex::new(line), requests }), queue)
    }

    /// Asks for a pass over this object. Requests for the same object merge.
    pub fn ask(&self, object: ObjectRef<K>) {
        // The receiver lives as long as the process; without it nobody is left to be told.
        let _ = self.requests.unbounded_send(object.into());
    }

    /// Asks for a pass over each of these, a few at a time and after those that were given before.
    pub fn look_at(&self, mut objects: Vec<Arc<K>>) {
        let mut line = self.line();
        let left: HashSet<ObjectRef<K>> = line.others.iter().map(|object| ObjectRef::from_obj(&**object)).collect();
        objects.retain(|object| !left.contains(&ObjectRef::from_obj(&**object)));
        objects.append(&mut line.others);
        line.others = objects;
        self.go_on(line);
    }

    /// A place for a pass over this object. `None` for upkeep that finds none: it is asked for again when one is given back.
    pub fn take(&self, object: &K, awaited: bool) -> Option<Place> {
        let object = ObjectRef::from_obj(object);
        let mut line = self.line();
        line.asked.remove(&object);
        let permit = if awaited { None } else { self.upkeep.clone().try_acquire_owned().ok() };
        let place = (awaited || permit.is_some()).then_some(Place { _upkeep: permit });
        if place.is_some() {
            // A place that is handed to who needs none would be nobody's.
            line.leave(&object);
        } else {
            line.join(object);
        }
        self.go_on(line);
        place
    }

    /// The pass has ended, and another one may begin.
    pub fn give_back(&self, place: Place) {
        drop(place);
        self.call_next(self.line());
    }

    /// A request found no object: it has gone, and takes no place, which is the next one's.
    pub fn is_gone(&self, namespace: Option<&str>, name: &str) {
        let gone = ObjectRef::new(name);
        let gone = if let Some(namespace) = namespace { gone.within(namespace) } else { gone };
        let mut line = self.line();
        line.asked.remove(&gone);
        line.leave(&gone);
        self.call_next(line);
    }

    fn call_next(&self, mut line: MutexGuard<'_, Line<K>>) {
        let next = if self.upkeep.available_permits() > 0 { line.call() } else { None };
        self.go_on(line);
        if let Some(next) = next {
            self.ask(next);
        }
    }

    fn go_on(&self, mut line: MutexGuard<'_, Line<K>>) {
        let ahead = line.ahead();
        drop(line);
        for next in ahead {
            self.ask(next);
        }
    }

    fn line(&self) -> MutexGuard<'_, Line<K>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Namespace;

    use super::*;

    fn named(name: &str) -> Namespace {
        let mut object = Namespace::default();
        object.metadata.name = Some(name.to_owned());
        object
    }

    #[test]
    fn who_finds_no_place_is_asked_for_when_one_is_free() {
        let (places, mut queue) = Places::new(1);
        let first = places.take(&named("a"), false).expect("a place");
        for _ in 0..3 {
            assert!(places.take(&named("b"), false).is_none());
        }
        let awaited = places.take(&named("c"), true).expect("a place of its own");
        places.give_back(awaited);
        assert!(queue.try_recv().is_err(), "no place of upkeep is free");
        places.give_back(first);
        assert_eq!(queue.try_recv().expect("a request").obj_ref.name, "b");
        assert!(queue.try_recv().is_err(), "once");
        assert!(places.take(&named("b"), false).is_some());
    }

    #[test]
    fn who_waits_has_a_turn_after_who_came_before() {
        let (places, mut queue) = Places::new(1);
        let mut held = places.take(&named("a"), false).expect("a place");
        for name in ["b", "c", "gone", "d"] {
            assert!(places.take(&named(name), false).is_none());
        }
        assert!(places.take(&named("c"), true).is_some(), "awaited since, it waits no more");
        let mut turns = Vec::new();
        for _ in 0..4 {
            places.give_back(held);
            let next = queue.try_recv().expect("a request").obj_ref.name;
            held = places.take(&named(&next), false).expect("a place");
            // As it would if it failed.
            turns.push(next);
            assert!(places.take(&named("a"), false).is_none());
        }
        assert_eq!(turns, ["b", "gone", "d", "a"]);
        assert!(places.take(&named("e"), false).is_none());
        places.give_back(held);
        assert_eq!(queue.try_recv().expect("a request").obj_ref.name, "a");
        held = places.take(&named("quick"), false).expect("a place");
        assert!(places.take(&named("a"), false).is_none());
        places.give_back(held);
        assert_eq!(queue.try_recv().expect("a request").obj_ref.name, "a", "its turn is not over");
    }

    #[test]
    fn who_waits_and_has_gone_keeps_nobody_from_a_place() {
        let (places, mut queue) = Places::new(1);
        let held = places.take(&named("a"), false).expect("a place");
        for number in 0..AHEAD + 6 {
            assert!(places.take(&named(&format!("gone-{number}")), false).is_none());
        }
        places.look_at(vec![Arc::new(named("other"))]);
        places.give_back(held);
        let mut seen = Vec::new();
        while let Ok(request) = queue.try_recv() {
            let name = request.obj_ref.name;
            if name == "other" {
                places.give_back(places.take(&named(&name), false).expect("a place"));
            } else {
                places.is_gone(None, &name);
            }
            seen.push(name);
        }
        assert!(seen.contains(&"other".to_owned()) && seen.len() == AHEAD + 7, "{seen:?}");
    }

    #[test]
    fn the_others_are_looked_at_a_few_at_a_time_beside_who_waits() {
        let (places, mut queue) = Places::new(2);
        let named = |number: usize| named(&format!("{number:02}"));
        let mut next = || queue.try_recv().ok().map(|request| request.obj_ref.name);
        places.look_at((0..AHEAD + 10).map(|number| Arc::new(named(number))).collect());
        places.look_at(vec![Arc::new(named(0)), Arc::new(named(99))]);
        let first: Vec<String> = std::iter::from_fn(&mut next).collect();
        assert_eq!(first.len(), AHEAD, "not all at once");
        // One has gone, and somebody awaits another one since it was asked for.
        places.is_gone(None, &first[0]);
        places.give_back(places.take(&named(first[1].parse().expect("a number")), true).expect("a place of its own"));
        assert_eq!([next(), next(), next()].map(|name| name.is_some()), [true, true, false]);
        // Who finds no place waits, and counts.
        let held: Vec<Place> = [50, 51].map(|number| places.take(&named(number), false).expect("a place")).into();
        for number in &first[2..] {
            assert!(places.take(&named(number.parse().expect("a number")), false).is_none());
        }
        assert_eq!(next(), None);
        for place in held {
            places.give_back(place);
        }
        let mut seen = BTreeMap::new();
        while let Some(name) = next() {
            *seen.entry(name.clone()).or_insert(0) += 1;
            places.give_back(places.take(&named(name.parse().expect("a number")), false).expect("a place"));
        }
        assert!(seen.values().all(|times| *times == 1), "each once: {seen:?}");
        assert_eq!(seen.len(), AHEAD + 10 + 1 - 2 - 2, "{seen:?}");
        assert_eq!(next(), None);
    }
}

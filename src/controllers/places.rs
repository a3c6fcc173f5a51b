//! Places for passes of one kind: most of them for upkeep, the rest for what somebody awaits.
//!
//! The loop takes whatever is due, in no order. After a change that concerns all objects, while a webhook hangs, each pass may take half a
//! minute; who is to wake or to stop must not wait for hundreds of those.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use futures::channel::mpsc::UnboundedSender;
use kube::Resource;
use kube::runtime::controller::ReconcileRequest;
use kube::runtime::reflector::ObjectRef;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Those whose pass found no place, each once, for everybody asks again now and then; who came first is first.
struct Line<K: Resource<DynamicType = ()>> {
    /// Also of those who were called, and may find that somebody was quicker.
    numbers: HashMap<ObjectRef<K>, u64>,
    waiting: BTreeMap<u64, ObjectRef<K>>,
    last: u64,
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
    }

    fn call(&mut self) -> Option<ObjectRef<K>> {
        let called = self.waiting.pop_first().map(|(_, object)| object);
        if called.is_none() {
            // Some of them have gone.
            self.numbers.clear();
        }
        called
    }
}

/// The places.
pub struct Places<K: Resource<DynamicType = ()>> {
    upkeep: Arc<Semaphore>,
    line: Mutex<Line<K>>,
    requests: UnboundedSender<ReconcileRequest<K>>,
}

/// One that was taken, until it is given back.
pub struct Place(Option<OwnedSemaphorePermit>);

impl<K: Resource<DynamicType = ()>> Places<K> {
    /// So many for upkeep; passes are asked for through `requests`.
    pub fn new(upkeep: usize, requests: UnboundedSender<ReconcileRequest<K>>) -> Self {
        let line = Line { numbers: HashMap::new(), waiting: BTreeMap::new(), last: 0 };
        Places { upkeep: Arc::new(Semaphore::new(upkeep)), line: Mutex::new(line), requests }
    }

    /// A place for a pass over this object. `None` for upkeep that finds none: it is asked for again when one is given back.
    pub fn take(&self, object: &K, awaited: bool) -> Option<Place> {
        let object = ObjectRef::from_obj(object);
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let permit = if awaited { None } else { self.upkeep.clone().try_acquire_owned().ok() };
        if awaited || permit.is_some() {
            // A place that is handed to who needs none would be nobody's.
            line.leave(&object);
            Some(Place(permit))
        } else {
            line.join(object);
            None
        }
    }

    /// The pass has ended, and another one may begin.
    pub fn give_back(&self, place: Place) {
        let Place(Some(permit)) = place else { return };
        drop(permit);
        let next = self.line.lock().unwrap_or_else(PoisonError::into_inner).call();
        if let Some(next) = next {
            // The receiver lives as long as the loop.
            let _ = self.requests.unbounded_send(next.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::channel::mpsc;
    use k8s_openapi::api::core::v1::Namespace;

    use super::*;

    fn named(name: &str) -> Namespace {
        let mut object = Namespace::default();
        object.metadata.name = Some(name.to_owned());
        object
    }

    #[test]
    fn who_finds_no_place_is_asked_for_when_one_is_free() {
        let (requests, mut queue) = mpsc::unbounded();
        let places = Places::new(1, requests);
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
        let (requests, mut queue) = mpsc::unbounded();
        let places = Places::new(1, requests);
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
}

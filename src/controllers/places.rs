//! Places for passes of one kind: most of them for upkeep, the rest for what somebody awaits.
//!
//! The loop takes whatever is due, in no order. After a change that concerns all objects, while a webhook hangs, each pass may take half a
//! minute; who is to wake or to stop must not wait for hundreds of those.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use futures::channel::mpsc::UnboundedSender;
use kube::Resource;
use kube::runtime::controller::ReconcileRequest;
use kube::runtime::reflector::ObjectRef;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The places.
pub struct Places<K: Resource<DynamicType = ()>> {
    upkeep: Arc<Semaphore>,
    /// Whose pass found none. A set, for everybody asks again now and then.
    waiting: Mutex<HashSet<ObjectRef<K>>>,
    requests: UnboundedSender<ReconcileRequest<K>>,
}

/// One that was taken, until it is given back.
pub struct Place(Option<OwnedSemaphorePermit>);

impl<K: Resource<DynamicType = ()>> Places<K> {
    /// So many for upkeep; passes are asked for through `requests`.
    pub fn new(upkeep: usize, requests: UnboundedSender<ReconcileRequest<K>>) -> Self {
        Places { upkeep: Arc::new(Semaphore::new(upkeep)), waiting: Mutex::default(), requests }
    }

    /// A place for a pass over this object. `None` for upkeep that finds none: it is asked for again when one is given back.
    pub fn take(&self, object: &K, awaited: bool) -> Option<Place> {
        if awaited {
            return Some(Place(None));
        }
        let place = self.upkeep.clone().try_acquire_owned().ok();
        if place.is_none() {
            self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(ObjectRef::from_obj(object));
        }
        place.map(|permit| Place(Some(permit)))
    }

    /// The pass has ended, and another one may begin.
    pub fn give_back(&self, place: Place) {
        let Place(Some(permit)) = place else { return };
        drop(permit);
        let waiting = &mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(next) = waiting.iter().next().cloned() {
            waiting.remove(&next);
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
}

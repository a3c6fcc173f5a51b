//! Server-sent events about one tenant.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive};
use futures::Stream;
use futures::stream::unfold;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

use super::Gateway;
use super::problem::Problem;
use super::progress::Progress;

/// Proxies close connections that are silent for a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Estimates run down although nothing happens.
const LOOK: Duration = Duration::from_secs(5);
/// Streams of one tenant: a person with many tabs, and a portal. Who has one link cannot take everybody's places.
const PER_TENANT: usize = 32;
/// Rights and links are looked at when a stream begins, so none goes on for long.
const LONGEST: Duration = Duration::from_secs(300);
/// A client that is cut off comes again after this time.
const RETRY: Duration = Duration::from_secs(1);

/// A comment now and then, so that a dead connection is noticed from both sides.
pub(super) fn keep_alive() -> KeepAlive {
    KeepAlive::new().interval(KEEP_ALIVE).text("waiting")
}

/// Who listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Audience {
    /// Programs with a token.
    Portals,
    /// People with a link that is valid for so long. They are not told what only whoever runs the cluster understands.
    People(Duration),
}

struct Listener {
    gateway: Arc<Gateway>,
    name: String,
    news: Receiver<Arc<str>>,
    told: Option<Progress>,
    queue: VecDeque<Event>,
    over: bool,
    audience: Audience,
    end: Pin<Box<Sleep>>,
    _place: Place,
}

/// Places of streams: so many at all, and so many for one tenant.
pub(super) struct Places {
    all: Arc<Semaphore>,
    taken: Arc<Mutex<HashMap<String, usize>>>,
}

impl Places {
    /// So many at all.
    pub(super) fn of(streams: usize) -> Self {
        Places { all: Arc::new(Semaphore::new(streams)), taken: Arc::default() }
    }

    fn take(&self, name: &str) -> Option<Place> {
        let permit = self.all.clone().try_acquire_owned().ok()?;
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(name.to_owned()).or_default();
        (*count < PER_TENANT).then(|| {
            *count += 1;
            Place { name: name.to_owned(), taken: self.taken.clone(), _permit: permit }
        })
    }
}

/// A taken place, given back when dropped.
struct Place {
    name: String,
    taken: Arc<Mutex<HashMap<String, usize>>>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.name);
            }
        }
    }
}

/// Progress each time it changes; ends when the tenant is awake or gone.
///
/// # Errors
/// [`Problem::Busy`] where too many listen already.
pub(super) fn of(
    gateway: &Arc<Gateway>,
    name: &str,
    audience: Audience,
) -> Result<impl Stream<Item = Result<Event, Infallible>> + Send + use<>, Problem> {
    let (who, left) = match audience {
        Audience::Portals => ("portals", LONGEST),
        Audience::People(left) => ("people", left.min(LONGEST)),
    };
    // Who has a link cannot keep a portal from listening.
    let place = gateway.places.take(&format!("{who}/{name}")).ok_or(Problem::Busy)?;
    let listener = Listener {
        gateway: gateway.clone(),
        name: name.to_owned(),
        news: gateway.tenants.news(),
        told: None,
        queue: VecDeque::new(),
        over: false,
        audience,
        end: Box::pin(tokio::time::sleep(left)),
        _place: place,
    };
    Ok(unfold(listener, |mut listener| async move {
        let event = listener.next().await?;
        Some((Ok(event), listener))
    }))
}

impl Listener {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some(event);
            }
            if self.over {
                return None;
            }
            if self.told.is_some() {
                self.wait().await;
            }
            if !self.over {
                self.look().await;
            }
        }
    }

    async fn wait(&mut self) {
        let news = async {
            loop {
                match self.news.recv().await {
                    Ok(name) if *name == *self.name => return,
                    Ok(_) => {}
                    // Some news was missed; perhaps it was ours.
                    Err(RecvError::Lagged(_)) => return,
                    Err(RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        tokio::select! {
            () = news => {}
            // Running out of time is as good a reason to look as news.
            () = tokio::time::sleep(LOOK) => {}
            () = &mut self.end => self.over = true,
        }
    }

    async fn look(&mut self) {
        let Some(tenant) = self.gateway.tenants.get(&self.name) else {
            self.over = true;
            self.queue.push_back(Event::default().event("gone").data("{}"));
            return;
        };
        let progress = match self.audience {
            Audience::Portals => self.gateway.progress(&tenant).await,
            Audience::People(_) => self.gateway.progress(&tenant).await.for_people(),
        };
        if self.told.as_ref() == Some(&progress) {
            return;
        }
        let event = |kind: &str| {
            let event = Event::default().event(kind).retry(RETRY);
            event.json_data(&progress).unwrap_or_else(|_| Event::default().comment("unspeakable"))
        };
        self.queue.push_back(event("progress"));
        if progress.is_awake() {
            self.over = true;
            self.queue.push_back(event("awake"));
        }
        self.told = Some(progress);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_tenant_cannot_take_every_place() {
        let places = Places::of(PER_TENANT + 2);
        let mut taken: Vec<_> = (0..PER_TENANT).map(|_| places.take("a")).collect();
        assert!(taken.iter().all(Option::is_some));
        assert!(places.take("a").is_none());
        let others = [places.take("b"), places.take("c")];
        assert!(others.iter().all(Option::is_some));
        assert!(places.take("d").is_none(), "no place is left at all");
        taken.clear();
        drop(others);
        assert!(places.take("a").is_some());
        assert_eq!(places.taken.lock().expect("a lock").len(), 0, "what is given back is forgotten");
    }
}

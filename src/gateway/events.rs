//! Server-sent events about one tenant.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive};
use futures::Stream;
use futures::stream::unfold;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::Gateway;
use super::problem::Problem;
use super::progress::Progress;

/// Proxies close connections that are silent for a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Estimates run down although nothing happens.
const LOOK: Duration = Duration::from_secs(5);
/// A client that is cut off comes again after this time.
const RETRY: Duration = Duration::from_secs(1);

/// A comment now and then, so that a dead connection is noticed from both sides.
pub(super) fn keep_alive() -> KeepAlive {
    KeepAlive::new().interval(KEEP_ALIVE).text("waiting")
}

struct Listener {
    gateway: Arc<Gateway>,
    name: String,
    news: Receiver<Arc<str>>,
    told: Option<Progress>,
    queue: VecDeque<Event>,
    over: bool,
    _place: OwnedSemaphorePermit,
}

/// Progress each time it changes; ends when the tenant is awake or gone.
///
/// # Errors
/// [`Problem::Busy`] where too many listen already.
pub(super) fn of(
    gateway: &Arc<Gateway>,
    name: &str,
) -> Result<impl Stream<Item = Result<Event, Infallible>> + Send + use<>, Problem> {
    let place = gateway.streams.clone().try_acquire_owned().map_err(|_| Problem::Busy)?;
    let listener = Listener {
        gateway: gateway.clone(),
        name: name.to_owned(),
        news: gateway.tenants.news(),
        told: None,
        queue: VecDeque::new(),
        over: false,
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
            self.look();
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
        // Running out of time is as good a reason to look as news.
        let _ = tokio::time::timeout(LOOK, news).await;
    }

    fn look(&mut self) {
        let Some(tenant) = self.gateway.tenants.get(&self.name) else {
            self.over = true;
            self.queue.push_back(Event::default().event("gone").data("{}"));
            return;
        };
        let progress = self.gateway.progress(&tenant);
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

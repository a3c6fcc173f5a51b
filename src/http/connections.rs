//! So many connections at a time: file descriptors are a process's, and strangers must not use them up.

use std::future::{Ready, ready};
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum_server::accept::Accept;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::Service;

/// Lets connections in while there is room, and closes the others at once.
#[derive(Clone, Debug)]
pub(super) struct Room(Arc<Semaphore>);

impl Room {
    /// Room for so many.
    pub(super) fn of(connections: usize) -> Self {
        Room(Arc::new(Semaphore::new(connections)))
    }
}

impl<I, S> Accept<I, S> for Room {
    type Stream = I;
    type Service = Seated<S>;
    type Future = Ready<io::Result<(I, Seated<S>)>>;

    fn accept(&self, stream: I, service: S) -> Self::Future {
        let seat = self.0.clone().try_acquire_owned();
        let full = |_| io::Error::new(io::ErrorKind::ConnectionRefused, "too many connections");
        ready(seat.map_err(full).map(|seat| (stream, Seated { service, _seat: Arc::new(seat) })))
    }
}

/// A service that gives its connection's place back when the last of its clones has gone.
#[derive(Clone, Debug)]
pub(super) struct Seated<S> {
    service: S,
    _seat: Arc<OwnedSemaphorePermit>,
}

impl<S: Service<R>, R> Service<R> for Seated<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: R) -> Self::Future {
        self.service.call(request)
    }
}

//! So many connections at a time: file descriptors are a process's, and strangers must not use them up.

use std::collections::HashMap;
use std::future::{Ready, ready};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum_server::accept::Accept;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::net::TcpStream;
use tower::Service;

/// This part of all seats is kept for peers that hold less than as many.
const KEPT: usize = 4;
/// While connections cannot be taken that happens twenty times a second, and is told only so often.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// Lets connections in while there is room, and closes the others at once.
#[derive(Clone, Debug)]
pub(super) struct Room(Arc<Seats>);

#[derive(Debug)]
struct Seats {
    all: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by: HashMap<IpAddr, usize>,
}

impl Room {
    /// Room for so many.
    pub(super) fn of(connections: usize) -> Self {
        Room(Arc::new(Seats { all: connections, taken: Mutex::default() }))
    }

    fn take(&self, peer: IpAddr) -> Option<Seat> {
        let mut taken = self.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let held = taken.by.get(&peer).copied().unwrap_or_default();
        if !admits(self.0.all, self.0.all.saturating_sub(taken.all), held) {
            return None;
        }
        taken.all += 1;
        taken.by.insert(peer, held + 1);
        Some(Seat { seats: self.0.clone(), peer })
    }
}

/// Whether a peer that holds so many seats may have one more of those that are free. A proxy is one peer for everybody who comes through
/// it, and may have three quarters of all seats; the rest is kept for peers that hold little, so that one alone cannot shut the others out.
fn admits(all: usize, free: usize, held: usize) -> bool {
    let kept = all / KEPT;
    free > kept || free > 0 && held < kept
}

/// A taken seat, given back when dropped.
#[derive(Debug)]
struct Seat {
    seats: Arc<Seats>,
    peer: IpAddr,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all = taken.all.saturating_sub(1);
        if let Some(held) = taken.by.get_mut(&self.peer) {
            *held -= 1;
            if *held == 0 {
                taken.by.remove(&self.peer);
            }
        }
    }
}

impl<S> Accept<TcpStream, S> for Room {
    type Stream = TcpStream;
    type Service = Seated<S>;
    type Future = Ready<io::Result<(TcpStream, Seated<S>)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let full = || io::Error::new(io::ErrorKind::ConnectionRefused, "too many connections");
        // The same peer may come as an address of IPv4 and as the one of IPv6 that stands for it.
        let seat = stream.peer_addr().and_then(|peer| self.take(peer.ip().to_canonical()).ok_or_else(full));
        ready(seat.map(|seat| (stream, Seated { service, _seat: Arc::new(seat) })))
    }
}

/// A service that gives its connection's place back when the last of its clones has gone.
#[derive(Clone, Debug)]
pub(super) struct Seated<S> {
    service: S,
    _seat: Arc<Seat>,
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

/// Tells of connections that cannot be taken, now and then.
pub(super) struct Complaints(DefaultDirectRateLimiter);

impl Complaints {
    /// Nothing was told yet.
    pub(super) fn new() -> Self {
        let pace = Quota::with_period(TOLD_EVERY).unwrap_or_else(|| Quota::per_minute(NonZeroU32::MIN));
        Complaints(RateLimiter::direct(pace))
    }

    /// A connection was not taken.
    pub(super) fn take(&self, peer: Option<&SocketAddr>, error: &io::Error) {
        if self.due(peer, error) {
            tracing::warn!(%error, ?peer, "connections cannot be taken, or are closed at once");
        }
    }

    /// Whether that is to be told. Before a peer is known it is the system that has no room, and afterwards we; what else goes wrong then,
    /// such as a greeting that is none of TLS, is the peer's.
    fn due(&self, peer: Option<&SocketAddr>, error: &io::Error) -> bool {
        (peer.is_none() || error.kind() == io::ErrorKind::ConnectionRefused) && self.0.check().is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_seats_are_for_those_who_hold_little() {
        for (all, free, held, admitted) in [
            (8_192, 8_192, 0, true),
            (8_192, 2_049, 6_143, true),
            (8_192, 2_048, 6_144, false),
            (8_192, 2_048, 2_048, false),
            (8_192, 2_048, 2_047, true),
            (8_192, 1, 0, true),
            (8_192, 0, 0, false),
            (3, 1, 2, true),
            (1, 1, 0, true),
            (1, 0, 1, false),
        ] {
            assert_eq!(admits(all, free, held), admitted, "{free} of {all} are free, the peer holds {held}");
        }
    }

    #[test]
    fn a_seat_that_is_given_back_is_forgotten() {
        let room = Room::of(8);
        let peer = |last: u8| IpAddr::from([192, 0, 2, last]);
        let mut held: Vec<_> = (0..6).map(|_| room.take(peer(1)).expect("a seat")).collect();
        assert!(room.take(peer(1)).is_none());
        let other = room.take(peer(2)).expect("a seat for another");
        held.pop();
        assert!(room.take(peer(1)).is_none(), "it holds more than its share, and few are free");
        held.clear();
        drop(other);
        let taken = room.0.taken.lock().expect("a lock");
        assert!(taken.all == 0 && taken.by.is_empty());
    }

    #[test]
    fn complaints_are_few() {
        let complaints = Complaints::new();
        let peer = SocketAddr::from(([192, 0, 2, 1], 4_711));
        let greeting = io::Error::new(io::ErrorKind::InvalidData, "no TLS");
        assert!(!complaints.due(Some(&peer), &greeting), "a peer's own mistake");
        let full = io::Error::new(io::ErrorKind::ConnectionRefused, "too many connections");
        assert!(complaints.due(Some(&peer), &full));
        let exhausted = io::Error::other("too many open files");
        assert!((0..100).all(|_| !complaints.due(None, &exhausted)), "once in ten seconds");
        assert!(Complaints::new().due(None, &exhausted));
    }
}

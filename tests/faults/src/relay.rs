//! What an API server hears of etcd, told late: it is behind its peers by that.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

/// Passes connections on, answers late. It runs until it is dropped.
pub struct Relay {
    /// Where it listens.
    pub address: SocketAddr,
    late: Arc<AtomicU64>,
    accepting: JoinHandle<()>,
}

impl Relay {
    /// Listens on loopback in front of `target`; nothing is late yet.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, late) = (listener.local_addr()?, Arc::<AtomicU64>::default());
        let accepting = tokio::spawn(accept(listener, target, late.clone()));
        Ok(Self { address, late, accepting })
    }

    /// What comes from now on is told so many milliseconds later.
    pub fn be_late(&self, millis: u64) {
        self.late.store(millis, Ordering::Relaxed);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, late: Arc<AtomicU64>) {
    // Connections end with the relay.
    let mut connections = JoinSet::new();
    loop {
        let Ok((asker, _)) = listener.accept().await else { continue };
        let Ok(answerer) = TcpStream::connect(target).await else { continue };
        let ((asks, told), (answers, asked)) = (asker.into_split(), answerer.into_split());
        connections.spawn(pass(asks, asked, Arc::default()));
        connections.spawn(pass(answers, told, late.clone()));
        while connections.try_join_next().is_some() {}
    }
}

/// Passes on what comes, in order, each part as late as it is to be when it comes. An end of either side ends the other.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, late: Arc<AtomicU64>) {
    let (come, mut waiting) = mpsc::unbounded_channel::<(Instant, Bytes)>();
    let read = async {
        loop {
            let mut part = BytesMut::with_capacity(64 << 10);
            if from.read_buf(&mut part).await.unwrap_or(0) == 0 {
                return;
            }
            let due = Instant::now() + Duration::from_millis(late.load(Ordering::Relaxed));
            if come.send((due, part.freeze())).is_err() {
                return;
            }
        }
    };
    let write = async {
        while let Some((due, part)) = waiting.recv().await {
            sleep_until(due).await;
            if to.write_all(&part).await.is_err() {
                return;
            }
        }
    };
    tokio::select! { () = read => (), () = write => () }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn answers_are_late_and_whole_and_in_order() {
        let server = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let relay = Relay::start(server.local_addr().expect("an address")).await.expect("a relay");
        let mut asker = TcpStream::connect(relay.address).await.expect("a connection");
        let (mut answerer, _) = server.accept().await.expect("a connection");
        let mut heard = [0; 4];
        asker.write_all(b"ask?").await.expect("sent");
        answerer.read_exact(&mut heard).await.expect("passed on");
        assert_eq!(&heard, b"ask?");

        relay.be_late(300);
        let began = Instant::now();
        answerer.write_all(b"on").await.expect("sent");
        // The relay has it by then, or it would be late for nothing.
        tokio::time::sleep(Duration::from_millis(100)).await;
        relay.be_late(0);
        answerer.write_all(b"ce").await.expect("sent");
        asker.read_exact(&mut heard).await.expect("passed on");
        assert_eq!(&heard, b"once");
        assert!(began.elapsed() >= Duration::from_millis(300));
    }
}

//! HTTP servers: one place that binds, serves and ends them.

mod connections;
pub mod descriptors;
pub mod probes;

use std::{future::Future, io, net::SocketAddr, time::Duration};

use axum::Router;
use axum_server::{
    Handle,
    tls_rustls::{RustlsAcceptor, RustlsConfig},
};
use tokio::net::TcpListener;

use self::connections::{Complaints, Room};

/// How long requests that are under way may take to finish once the server is told to end.
const DRAIN: Duration = Duration::from_secs(5);
/// A request's head must be complete so soon; for as long a connection may be silent between two requests.
const HEAD: Duration = Duration::from_secs(20);
/// No program sends more headers, and no proxy adds so many.
const HEADERS: usize = 64;
/// All headers of a request together; a token of Kubernetes has a few KiB.
const HEADER_BYTES: usize = 32 * 1024;

/// Why a server could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address is taken, privileged or not one of this machine.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address that was asked for.
        address: SocketAddr,
        /// What the operating system says.
        source: io::Error,
    },
    /// Accepting connections failed for good.
    #[error("the HTTP server on {address} ended: {source}")]
    Serve {
        /// The address it listened on.
        address: SocketAddr,
        /// What the operating system says.
        source: io::Error,
    },
}

/// A server that has its address but answers nobody yet, so that a wrong address is known before any work begins.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    connections: usize,
}

impl Server {
    /// Takes the address; port 0 asks for any free one.
    ///
    /// # Errors
    /// [`HttpError::Bind`] where the address cannot be had.
    pub async fn bind(address: SocketAddr) -> Result<Self, HttpError> {
        let refused = |source| HttpError::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        Ok(Self { listener, address, connections: descriptors::connections(descriptors::limit()) })
    }

    /// The address with the port that was really taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers requests until `shutdown` resolves, then lets those under way finish, for 5 seconds at most.
    ///
    /// # Errors
    /// [`HttpError::Serve`] where the listening socket is lost.
    pub async fn serve(
        self,
        routes: Router,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), HttpError> {
        self.serve_with(routes, None, shutdown).await
    }

    /// The same by TLS, where a certificate is given. It can be exchanged while the server runs.
    ///
    /// # Errors
    /// [`HttpError::Serve`] where the listening socket is lost.
    pub async fn serve_with(
        self,
        routes: Router,
        tls: Option<RustlsConfig>,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), HttpError> {
        let Self { listener, address, connections } = self;
        let (room, complaints) = (Room::of(connections), Complaints::new());
        tracing::debug!(%address, connections, descriptors = ?descriptors::limit(), "so many connections at a time");
        let complain = move |peer: Option<&SocketAddr>, error: &io::Error| complaints.take(peer, error);
        let failed = |source| HttpError::Serve { address, source };
        let listener = listener.into_std().map_err(failed)?;
        let handle = Handle::new();
        let ending = handle.clone();
        let ender = tokio::spawn(async move {
            shutdown.await;
            ending.graceful_shutdown(Some(DRAIN));
        });
        let routes = routes.into_make_service_with_connect_info::<SocketAddr>();
        let ended = match tls {
            None => {
                let server = axum_server::from_tcp(listener).map_err(failed)?.handle(handle).http1_only();
                let mut server = server.accept_error_handler(complain).acceptor(room);
                bound(server.http_builder());
                server.serve(routes).await
            }
            Some(tls) => {
                let server = axum_server::from_tcp(listener).map_err(failed)?.handle(handle).http1_only();
                let server = server.accept_error_handler(complain);
                let mut server = server.acceptor(RustlsAcceptor::new(tls).acceptor(room));
                bound(server.http_builder());
                server.serve(routes).await
            }
        };
        ender.abort();
        ended.map_err(failed)
    }
}

fn bound(builder: &mut hyper_util::server::conn::auto::Builder<hyper_util::rt::TokioExecutor>) {
    builder.http1().header_read_timeout(HEAD).max_headers(HEADERS).max_buf_size(HEADER_BYTES);
}

#[cfg(test)]
pub(crate) mod tests {
    use std::future::pending;

    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpSocket, TcpStream},
        time::timeout,
    };

    use super::*;

    /// A response as it came over the wire.
    pub(crate) struct Response {
        pub(crate) status: u16,
        pub(crate) head: String,
        pub(crate) body: String,
    }

    /// Asks a server that serves `routes` on a free loopback port.
    pub(crate) async fn ask(routes: Router, path: &str) -> Response {
        let server = Server::bind(([127, 0, 0, 1], 0).into()).await.expect("a free port");
        let address = server.address();
        let serving = tokio::spawn(server.serve(routes, pending()));
        let response = request(address, path).await;
        serving.abort();
        response
    }

    async fn request(address: SocketAddr, path: &str) -> Response {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("a sent request");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("a response");
        let (head, body) = text.split_once("\r\n\r\n").expect("an empty line");
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        Response { status: status.expect("a status code"), head: head.to_lowercase(), body: body.to_owned() }
    }

    #[tokio::test]
    async fn a_taken_address_is_one_clear_line() {
        let first = Server::bind(([127, 0, 0, 1], 0).into()).await.expect("a free port");
        let error = Server::bind(first.address()).await.expect_err("a taken port").to_string();
        assert!(error.starts_with(&format!("cannot listen on {}: ", first.address())), "{error}");
        assert!(error.contains("in use") && !error.contains('\n'), "{error}");
    }

    #[tokio::test]
    async fn one_connection_too_many_is_closed_at_once() {
        let mut server = Server::bind(([127, 0, 0, 1], 0).into()).await.expect("a free port");
        server.connections = 1;
        let address = server.address();
        let serving = tokio::spawn(server.serve(Router::new().route("/", get(async || "hello")), pending()));
        let held = TcpStream::connect(address).await.expect("a connection");
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut refused = TcpStream::connect(address).await.expect("a connection");
        let closed = timeout(Duration::from_secs(2), refused.read(&mut [0; 1])).await.expect("an end in time");
        assert!(!matches!(closed, Ok(1..)), "{closed:?}");
        drop(held);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(request(address, "/").await.body, "hello");
        serving.abort();
    }

    #[tokio::test]
    async fn one_peer_cannot_take_the_last_seats() {
        let mut server = Server::bind(([127, 0, 0, 1], 0).into()).await.expect("a free port");
        server.connections = 8;
        let address = server.address();
        let serving = tokio::spawn(server.serve(Router::new().route("/", get(async || "hello")), pending()));
        let mut held = Vec::new();
        for _ in 0..6 {
            held.push(TcpStream::connect(address).await.expect("a connection"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut refused = TcpStream::connect(address).await.expect("a connection");
        let closed = timeout(Duration::from_secs(2), refused.read(&mut [0; 1])).await.expect("an end in time");
        assert!(!matches!(closed, Ok(1..)), "{closed:?}");
        let other = TcpSocket::new_v4().expect("a socket");
        other.bind(([127, 0, 0, 2], 0).into()).expect("another address of this machine");
        let mut other = other.connect(address).await.expect("a connection");
        other.write_all(b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await.expect("a sent request");
        let mut text = String::new();
        other.read_to_string(&mut text).await.expect("a response");
        assert!(text.ends_with("hello"), "{text}");
        serving.abort();
    }

    #[tokio::test]
    async fn a_request_under_way_is_answered_before_the_server_ends() {
        let (asked, mut was_asked) = tokio::sync::mpsc::channel(1);
        let routes = Router::new().route(
            "/",
            get(async move || {
                // Nobody listens any more only when the test has failed already.
                let _ = asked.send(()).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
                "done"
            }),
        );
        let server = Server::bind(([127, 0, 0, 1], 0).into()).await.expect("a free port");
        let address = server.address();
        let serving = tokio::spawn(server.serve(routes, async move {
            was_asked.recv().await;
        }));
        assert_eq!(request(address, "/").await.body, "done");
        let ended = timeout(Duration::from_secs(2), serving).await.expect("an end in time");
        assert!(ended.expect("no panic").is_ok());
        assert!(TcpStream::connect(address).await.is_err());
    }
}

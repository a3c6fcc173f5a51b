//! Receivers on sockets of this machine.

use std::{future::pending, net::SocketAddr, sync::Arc};

use reqwest::Certificate;
use rustls::pki_types::PrivateKeyDer;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
};
use tokio_rustls::TlsAcceptor;

/// One request as it came over the wire.
pub(super) struct Request {
    pub(super) line: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Request {
    pub(super) fn header(&self, name: &str) -> &str {
        let mut values = self.headers.iter().filter(|(key, _)| key == name);
        let value = values.next().unwrap_or_else(|| panic!("no header {name}"));
        assert!(values.next().is_none(), "two headers {name}");
        &value.1
    }
}

/// Reads one request; `None` where the sender goes away before its end.
async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<Request> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).expect("ASCII");
    let mut lines = head.trim_end().lines();
    let line = lines.next().expect("a request line").to_owned();
    let headers: Vec<_> = lines
        .map(|line| line.split_once(": ").expect("a header"))
        .map(|(key, value)| (key.to_lowercase(), value.to_owned()))
        .collect();
    let mut request = Request { line, headers, body: Vec::new() };
    request.body.resize(request.header("content-length").parse().expect("a length"), 0);
    stream.read_exact(&mut request.body).await.ok()?;
    Some(request)
}

/// A receiver on a free port of this machine, and what it is sent.
pub(super) struct Receiver {
    pub(super) address: SocketAddr,
    pub(super) requests: UnboundedReceiver<Request>,
}

impl Receiver {
    /// Whoever asks is dealt with by `answer`, after its request was read.
    pub(super) async fn new<F>(answer: impl Fn(TcpStream) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send,
    {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (sender, requests) = unbounded_channel();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                if let Some(request) = read_request(&mut stream).await {
                    sender.send(request).expect("a test that goes on");
                    answer(stream).await;
                }
            }
        });
        Self { address, requests }
    }

    /// Answers with this text, then closes the connection.
    pub(super) async fn saying(answer: impl Into<String>) -> Self {
        let answer = answer.into();
        Self::new(move |mut stream| {
            let answer = answer.clone();
            async move { stream.write_all(answer.as_bytes()).await.expect("a sender that listens") }
        })
        .await
    }

    /// Answers with this text and keeps the connection open without another word.
    pub(super) async fn hanging_after(answer: &'static str) -> Self {
        Self::new(move |mut stream| async move {
            stream.write_all(answer.as_bytes()).await.expect("a sender that listens");
            pending::<()>().await;
        })
        .await
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/hooks?token=querysecret", self.address)
    }

    pub(super) fn request(&mut self) -> Request {
        self.requests.try_recv().expect("a request")
    }
}

/// A receiver with a certificate of its own for `127.0.0.1`, which is returned.
pub(super) async fn https_receiver() -> (SocketAddr, Certificate) {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("a key that fits");
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            if let Ok(stream) = acceptor.accept(stream).await {
                answer_in_secret(stream).await;
            }
        }
    });
    (address, Certificate::from_der(made.cert.der()).expect("a certificate"))
}

async fn answer_in_secret(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    if read_request(&mut stream).await.is_some() {
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.expect("a sender that listens");
        stream.shutdown().await.expect("an end");
    }
}

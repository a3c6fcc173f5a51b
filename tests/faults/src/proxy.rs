//! The proxy between one Torpor process and the API server.
//!
//! It ends the process's TLS with a certificate of the cluster's own authority and opens connections of its own to the API
//! server. Whoever the process is, the API server knows by its bearer token, which is passed through.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName, RETRY_AFTER, TRANSFER_ENCODING};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use torpor_cluster::pki::Identity;

use crate::plan::{Action, Match, Plan};
use crate::record::Record;
use crate::relay::Relay;
use crate::request::Request;
use crate::watches;

/// Between the answer and the kill, so that the process has read it. It can do nothing else meanwhile.
const READ: Duration = Duration::from_millis(15);
/// No object of Kubernetes is larger.
const LARGEST_BODY: usize = 8 << 20;

/// A body as the proxy answers it: whole, or frame by frame.
pub type Body = BoxBody<Bytes, Broken>;

/// The connection is to be cut.
#[derive(Debug)]
pub struct Broken;

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("cut as planned")
    }
}

impl std::error::Error for Broken {}

/// A proxy that runs until it is dropped.
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

/// What all connections share.
pub(crate) struct Shared {
    upstream: String,
    /// Where some requests are passed on to while the plan says so, and by what that server is late.
    second: OnceLock<(String, Relay)>,
    client: reqwest::Client,
    state: Mutex<State>,
    gate: watch::Sender<Gate>,
    /// A request meets a rule.
    meeting: Notify,
    /// Running watches that this is about end.
    ending: watch::Sender<Option<Match>>,
}

/// What becomes of the process's requests.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gate {
    /// They get through.
    Open,
    /// Nothing gets through any more, and the process lives until it has read the last answer.
    Shut,
    /// The process is to be killed.
    Doomed,
}

#[derive(Default)]
struct State {
    plan: Plan,
    records: Vec<Record>,
    /// How many came before those.
    forgotten: usize,
    /// Rules met since the plan was set.
    met: usize,
    /// The version that old lists are of.
    past: String,
    /// Numbers of the requests that are not answered yet.
    in_flight: BTreeSet<usize>,
}

impl State {
    fn count(&self) -> usize {
        self.forgotten + self.records.len()
    }

    fn record(&mut self, number: usize) -> Option<&mut Record> {
        self.records.get_mut(number.checked_sub(self.forgotten)?)
    }

    fn since(&self, number: usize) -> &[Record] {
        self.records.get(number.saturating_sub(self.forgotten)..).unwrap_or_default()
    }
}

impl Proxy {
    /// Listens on loopback as the server of that identity, in front of the API server at `upstream`, whose authority's
    /// certificate is `authority` (PEM).
    pub async fn start(upstream: &str, authority: &str, identity: &Identity) -> Result<Self> {
        let client = client(authority)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let acceptor = acceptor(identity)?;
        let shared = Arc::new(Shared {
            upstream: upstream.trim_end_matches('/').to_owned(),
            second: OnceLock::new(),
            client,
            state: Mutex::default(),
            gate: watch::Sender::new(Gate::Open),
            meeting: Notify::new(),
            ending: watch::Sender::new(None),
        });
        let accepting = tokio::spawn(accept(listener, acceptor, shared.clone()));
        Ok(Self { address, shared, accepting })
    }

    /// A second API server, which hears of etcd through the relay. Only the first one counts.
    pub fn second(&self, upstream: String, relay: Relay) {
        let _ = self.shared.second.set((upstream, relay));
    }

    /// Does this from now on. Watches that run go on by the plan they were opened under, unless there is a second API server now, or no
    /// more: then they are cut, and half of them lead to the other.
    pub fn set(&self, plan: Plan) {
        let mut state = self.shared.state();
        let (before, behind) = (state.plan.view.second_behind, plan.view.second_behind);
        state.plan = plan;
        state.met = 0;
        drop(state);
        if let Some((_, relay)) = self.shared.second.get() {
            relay.be_late(behind);
        }
        if before != behind {
            self.cut_watches(Match::default());
        }
    }

    /// How many requests have met a rule since the plan was set.
    pub fn met(&self) -> usize {
        self.shared.state().met
    }

    /// Which of its rules have been met.
    pub fn met_rules(&self) -> Vec<bool> {
        self.shared.state().plan.met()
    }

    /// What is left of the plan.
    pub fn rest(&self) -> Plan {
        self.shared.state().plan.rest()
    }

    /// From now on an old list is one of this version of the cluster.
    pub fn remember(&self, version: &str) {
        version.clone_into(&mut self.shared.state().past);
    }

    /// Forgets the requests so far, of a run that is too long to keep them all.
    pub fn forget(&self) {
        let mut state = self.shared.state();
        state.forgotten = state.count();
        state.records.clear();
    }

    /// How many requests have come so far.
    pub fn count(&self) -> usize {
        self.shared.state().count()
    }

    /// The requests from that number on.
    pub fn since(&self, number: usize) -> Vec<Record> {
        self.shared.state().since(number).to_vec()
    }

    /// Cuts the running watches that this is about.
    pub fn cut_watches(&self, of: Match) {
        self.shared.ending.send_replace(Some(of));
    }

    /// Waits until the process is to be killed. Nothing of it gets through any more.
    pub async fn closed(&self) {
        let mut gate = self.shared.gate.subscribe();
        // The sender lives as long as this proxy.
        let _ = gate.wait_for(|gate| *gate == Gate::Doomed).await;
    }

    /// Waits until a request meets a rule. It goes on meanwhile.
    pub async fn meeting(&self) {
        self.shared.meeting.notified().await;
    }

    /// Lets requests through again, those of the next process.
    pub fn open(&self) {
        self.shared.gate.send_replace(Gate::Open);
    }

    /// How long the process has written nothing about a subject, from that number on. `None`: it never has, or an answer about it
    /// is still to come.
    pub fn quiet(&self, number: usize, about: impl Fn(&Request) -> bool) -> Option<Duration> {
        let state = self.shared.state();
        let own = |record: &&Record| record.request.is_write() && !record.request.is_lease() && about(&record.request);
        let last = state.since(number).iter().rev().find(own)?;
        let asked = |number: usize| state.records.get(number.checked_sub(state.forgotten)?);
        // What lists everything may be about anything.
        let lists = |request: &Request| request.verb == "list" && request.namespace.is_empty();
        let mut waits = state.in_flight.iter().filter_map(|number| asked(*number)).map(|record| &record.request);
        let waits = waits.any(|request| about(request) || lists(request));
        (!waits).then(|| last.ended.elapsed())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// A client that trusts this authority (PEM) and nobody else.
pub fn client(authority: &str) -> Result<reqwest::Client> {
    // Another part of the process may have installed it before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let authority = reqwest::Certificate::from_pem(authority.as_bytes())?;
    Ok(reqwest::Client::builder().tls_certs_only([authority]).no_proxy().build()?)
}

fn acceptor(identity: &Identity) -> Result<TlsAcceptor> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let chain = CertificateDer::pem_slice_iter(identity.cert.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes())?;
    let mut config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    // Connections end with the proxy.
    let mut connections = tokio::task::JoinSet::new();
    for number in 0.. {
        let Ok((stream, _)) = listener.accept().await else { continue };
        connections.spawn(serve(stream, number, acceptor.clone(), shared.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(stream: TcpStream, number: usize, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    // What a process that was killed leaves behind is no matter.
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move { shared.handle(number, request).await }
    });
    let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
}

/// Counts a request as unanswered while it exists.
struct InFlight(Arc<Shared>, usize);

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.in_flight.remove(&self.1);
        if let Some(record) = state.record(self.1) {
            record.ended = Instant::now();
        }
    }
}

/// What is passed on.
#[derive(Clone)]
struct Forwarded {
    method: hyper::Method,
    url: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.gate.send_replace(Gate::Doomed);
    }

    /// The second API server, where there is one and a request is passed on to it: every other watch, by its connection, and each fourth of
    /// the others, which a client sends over few connections.
    fn second(&self, connection: usize, number: usize, asked: &Request) -> Option<&str> {
        let chosen = if asked.verb == "watch" { connection % 2 == 1 } else { number % 4 == 3 };
        let (upstream, _) = self.second.get()?;
        (chosen && self.state().plan.view.second_behind > 0).then_some(upstream)
    }

    async fn handle(
        self: Arc<Self>,
        connection: usize,
        request: hyper::Request<Incoming>,
    ) -> Result<hyper::Response<Body>, Broken> {
        let (head, body) = request.into_parts();
        let body = http_body_util::Limited::new(body, LARGEST_BODY).collect().await.map_err(|_| Broken)?.to_bytes();
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let json = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let content_type = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let asked = Request::read(head.method.as_str(), &path, content_type, &json);
        if *self.gate.borrow() != Gate::Open {
            // Of a process that is about to die: it must neither arrive nor be answered.
            return silence().await;
        }
        let (number, action) = self.note(&asked, json);
        let second = self.second(connection, number, &asked);
        if let Some(record) = self.state().record(number) {
            record.second = second.is_some();
        }
        let url = format!("{}{}", second.unwrap_or(&self.upstream), self.shown(&asked, path));
        let forwarded = Forwarded { method: head.method, url, headers: head.headers, body };
        if asked.verb == "watch" {
            return self.watch(asked, forwarded, action).await;
        }
        let _in_flight = InFlight(self.clone(), number);
        self.state().in_flight.insert(number);
        match action {
            None | Some(Action::Frames(_)) => self.answer(number, &forwarded).await,
            Some(Action::Delay { millis }) => {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                self.answer(number, &forwarded).await
            }
            Some(Action::Cut) => Err(Broken),
            Some(Action::Silence { millis }) => {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                Err(Broken)
            }
            Some(Action::Answer { code, reason, retry_after }) => Ok(refusal(code, &reason, retry_after)),
            Some(Action::CommitThenCut) => {
                self.forward(number, &forwarded).await?;
                Err(Broken)
            }
            Some(Action::CommitThenAnswer { code, reason }) => {
                self.forward(number, &forwarded).await?;
                Ok(refusal(code, &reason, None))
            }
            Some(Action::KillBefore) => {
                self.close();
                silence().await
            }
            Some(Action::Hold) => {
                self.close();
                let mut gate = self.gate.subscribe();
                let _ = gate.wait_for(|gate| *gate == Gate::Open).await;
                self.answer(number, &forwarded).await
            }
            Some(Action::KillUnanswered) => {
                let answer = self.forward(number, &forwarded).await;
                self.close();
                answer?;
                silence().await
            }
            Some(Action::KillAfter) => {
                let answer = self.answer(number, &forwarded).await?;
                // Nothing follows; the driver is told when this answer has been read.
                self.gate.send_replace(Gate::Shut);
                let shared = self.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(READ).await;
                    shared.close();
                });
                Ok(answer)
            }
        }
    }

    /// Where what is asked for is shown to the process.
    fn shown(&self, asked: &Request, path: String) -> String {
        let state = self.state();
        let is_list = asked.verb == "list" && asked.namespace.is_empty();
        if is_list && state.plan.view.old_lists.take(asked) { of_version(&path, &state.past) } else { path }
    }

    fn note(&self, asked: &Request, body: Value) -> (usize, Option<Action>) {
        let mut state = self.state();
        let action = state.plan.decide(asked);
        if action.is_some() {
            state.met += 1;
            self.meeting.notify_one();
        }
        let number = state.count();
        let at = Instant::now();
        let request = asked.clone();
        state.records.push(Record {
            number,
            at,
            ended: at,
            request,
            body,
            code: None,
            delivered: false,
            second: false,
        });
        (number, action)
    }

    async fn answer(self: &Arc<Self>, number: usize, asked: &Forwarded) -> Result<hyper::Response<Body>, Broken> {
        let answer = self.forward(number, asked).await?;
        if let Some(record) = self.state().record(number) {
            record.delivered = true;
        }
        Ok(answer)
    }

    /// Asks the API server and waits for its whole answer. It is asked to the end whatever becomes of the process meanwhile:
    /// the audit log does not tell what became of a request that its client gave up.
    async fn forward(self: &Arc<Self>, number: usize, asked: &Forwarded) -> Result<hyper::Response<Body>, Broken> {
        let (shared, asked) = (self.clone(), asked.clone());
        let asking = tokio::spawn(async move {
            let answer = shared.send(&asked).await?;
            let (code, headers) = (answer.status(), answer.headers().clone());
            let body = answer.bytes().await.map_err(|_| Broken)?;
            if let Some(record) = shared.state().record(number) {
                record.code = Some(code.as_u16());
            }
            let mut response = hyper::Response::new(whole(body));
            *response.status_mut() = code;
            *response.headers_mut() = end_to_end(&headers);
            Ok(response)
        });
        asking.await.map_err(|_| Broken)?
    }

    async fn send(&self, asked: &Forwarded) -> Result<reqwest::Response, Broken> {
        let request = self.client.request(asked.method.clone(), &asked.url).headers(end_to_end(&asked.headers));
        request.body(asked.body.clone()).send().await.map_err(|_| Broken)
    }

    async fn watch(
        self: Arc<Self>,
        asked: Request,
        forwarded: Forwarded,
        action: Option<Action>,
    ) -> Result<hyper::Response<Body>, Broken> {
        let treat = match action {
            None => None,
            Some(Action::Frames(treat)) => Some(treat),
            Some(Action::Delay { millis }) => {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                None
            }
            Some(Action::Silence { millis }) => {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                return Err(Broken);
            }
            Some(Action::Answer { code, reason, retry_after }) => return Ok(refusal(code, &reason, retry_after)),
            Some(_) => return Err(Broken),
        };
        let (shared, of) = (self.clone(), asked.clone());
        let late = Box::new(move || {
            let view = shared.state().plan.view;
            (view.lateness(&of), view.newest_only)
        });
        // What was ended before this one began is not about it.
        let mut ending = self.ending.subscribe();
        let answer = self.send(&forwarded).await?;
        let (code, headers) = (answer.status(), answer.headers().clone());
        let end = async move {
            while ending.changed().await.is_ok() {
                if ending.borrow_and_update().as_ref().is_some_and(|of| of.takes(&asked)) {
                    return;
                }
            }
        };
        let frames = watches::frames(answer, treat, late, end);
        let body = StreamBody::new(futures::StreamExt::map(frames, |frame| frame.map(Frame::data)));
        let mut response = hyper::Response::new(BodyExt::boxed(SyncBody::new(body)));
        *response.status_mut() = code;
        *response.headers_mut() = end_to_end(&headers);
        Ok(response)
    }
}

/// Makes a streaming body shareable, as `BoxBody` wants it: it is only ever polled by one.
struct SyncBody<B>(Mutex<std::pin::Pin<Box<B>>>);

impl<B> SyncBody<B> {
    fn new(body: B) -> Self {
        Self(Mutex::new(Box::pin(body)))
    }
}

impl<B: hyper::body::Body> hyper::body::Body for SyncBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut().poll_frame(context)
    }
}

/// The path of the same list at that version. Further pages are of the version of the first anyway.
fn of_version(path: &str, version: &str) -> String {
    if path.contains("continue=") {
        return path.to_owned();
    }
    let (place, query) = path.split_once('?').unwrap_or((path, ""));
    let kept = query.split('&').filter(|pair| !pair.is_empty() && !pair.starts_with("resourceVersion"));
    let query: Vec<&str> = kept.collect();
    format!("{place}?{}&resourceVersion={version}&resourceVersionMatch=Exact", query.join("&"))
}

async fn silence<T>() -> Result<T, Broken> {
    std::future::pending::<Infallible>().await;
    Err(Broken)
}

fn whole(body: Bytes) -> Body {
    Full::new(body).map_err(|never: Infallible| match never {}).boxed()
}

/// What two sides say to each other, without what belongs to one connection.
fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    const OF_A_CONNECTION: [HeaderName; 3] = [HOST, CONTENT_LENGTH, TRANSFER_ENCODING];
    let mut kept = headers.clone();
    for name in OF_A_CONNECTION {
        kept.remove(name);
    }
    kept.remove("connection");
    kept
}

/// An answer as the API server gives it.
fn refusal(code: u16, reason: &str, retry_after: Option<u32>) -> hyper::Response<Body> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": format!("{reason}, said by the fault proxy"), "reason": reason, "code": code,
    });
    let mut response = hyper::Response::new(whole(status.to_string().into()));
    *response.status_mut() = hyper::StatusCode::from_u16(code).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    if let Some(seconds) = retry_after {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    response
}

/// A kubeconfig that leads a process with that token to this address. `authority` is the file of the authority's certificate.
pub fn kubeconfig(address: SocketAddr, authority: &Path, token: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "chaos",
        "clusters": [{"name": "chaos", "cluster": {
            "server": format!("https://{address}"), "certificate-authority": authority,
        }}],
        "users": [{"name": "chaos", "user": {"token": token}}],
        "contexts": [{"name": "chaos", "context": {"cluster": "chaos", "user": "chaos"}}],
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_list_is_one_of_an_exact_version() {
        let exact = "resourceVersion=7&resourceVersionMatch=Exact";
        let found = of_version("/api/v1/pods?limit=50&resourceVersion=0", "7");
        assert_eq!(found, format!("/api/v1/pods?limit=50&{exact}"));
        let next = "/api/v1/pods?limit=50&continue=x";
        assert_eq!(of_version(next, "7"), next);
    }
}

//! The exchange on a socket: one JSON request at a time, each written to the record before it is answered.

use std::{
    fs::File,
    future::Future,
    io::Write,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    routing::{get, post},
};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::oneshot};

use super::{
    judge,
    market::{Answer, Market, Request, Rules},
    record::Entry,
};

/// How often things happen by themselves.
const STEP: Duration = Duration::from_millis(200);

/// Milliseconds of the clock that the record uses, for tests that compare their own moments with it.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    u64::try_from(time.tv_sec * 1_000 + time.tv_nsec / 1_000_000).unwrap_or_default()
}

/// Serves at an address until `stop` is done. `POST /` is for bots, `GET /record` and `GET /summary` for people.
/// An exchange that cannot write its record ends with an error.
pub async fn serve(address: SocketAddr, record: &Path, rules: Rules, stop: impl Future<Output = ()>) -> Result<()> {
    let file = File::options()
        .create_new(true)
        .append(true)
        .open(record)
        .with_context(|| format!("cannot start the record {}", record.display()))?;
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen at {address}"))?;
    println!("listening at http://{}", listener.local_addr()?);
    let (failed, failure) = oneshot::channel();
    let book = Book { market: Market::new(rules), file, entries: Vec::new(), failed: Some(failed) };
    let exchange = Exchange(Arc::new(Mutex::new(book)));
    let router = Router::new()
        .route("/", post(handle))
        .route("/record", get(entries))
        .route("/summary", get(summary))
        .with_state(exchange.clone());
    tokio::select! {
        served = axum::serve(listener, router) => served?,
        () = exchange.pass_time() => {}
        Ok(error) = failure => return Err(error),
        () = stop => {}
    }
    Ok(())
}

#[derive(Clone)]
struct Exchange(Arc<Mutex<Book>>);

struct Book {
    market: Market,
    file: File,
    entries: Vec<Entry>,
    failed: Option<oneshot::Sender<anyhow::Error>>,
}

impl Exchange {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn pass_time(&self) {
        let mut interval = tokio::time::interval(STEP);
        loop {
            interval.tick().await;
            let mut book = self.book();
            book.market.pass(now());
            book.keep();
        }
    }
}

impl Book {
    /// Writes down what happened; `false` when that failed, which ends the exchange.
    fn keep(&mut self) -> bool {
        let entries = self.market.take_entries();
        let written = entries.iter().try_for_each(|entry| {
            let line = serde_json::to_string(entry)? + "\n";
            self.file.write_all(line.as_bytes()).context("cannot write the record")
        });
        self.entries.extend(entries);
        match written {
            Ok(()) => self.failed.is_some(),
            Err(error) => {
                // Whoever serves has ended already when nobody listens.
                let _ = self.failed.take().map(|failed| failed.send(error));
                false
            }
        }
    }
}

async fn handle(State(exchange): State<Exchange>, Json(request): Json<Request>) -> (StatusCode, Json<Answer>) {
    let mut book = exchange.book();
    let answer = book.market.handle(now(), &request);
    if !book.keep() {
        return (StatusCode::INTERNAL_SERVER_ERROR, Json(Answer::Refused("the record is broken".to_owned())));
    }
    let status = if matches!(answer, Answer::Refused(_)) { StatusCode::CONFLICT } else { StatusCode::OK };
    (status, Json(answer))
}

async fn entries(State(exchange): State<Exchange>) -> Json<Vec<Entry>> {
    Json(exchange.book().entries.clone())
}

async fn summary(State(exchange): State<Exchange>) -> Json<Value> {
    let entries = exchange.book().entries.clone();
    Json(json!({"runs": judge::runs(&entries), "violations": judge::violations(&entries)}))
}

//! An API server that knows one Lease, played by a router in this process.

use std::sync::{Arc, Mutex, PoisonError};

use axum::{
    Json, Router,
    extract::State,
    http::{Method, StatusCode},
    response::{IntoResponse, Response},
    routing::any,
};
use kube::Client;
use serde_json::{Value, json};

/// What the API server does with a writing request.
#[derive(Clone, Copy, Default, PartialEq)]
pub(super) enum Mood {
    #[default]
    Well,
    /// It answers every request with an error.
    Down,
    /// It writes, but the answer gets lost, once.
    AnswerLost,
    /// It refuses, as where a Role is missing.
    Forbids,
}

#[derive(Default)]
pub(super) struct Store {
    pub(super) lease: Option<Value>,
    pub(super) version: u64,
    pub(super) mood: Mood,
    pub(super) reads: usize,
    pub(super) writes: usize,
    pub(super) no_namespace: bool,
}

#[derive(Clone, Default)]
pub(super) struct Server(Arc<Mutex<Store>>);

impl Server {
    pub(super) fn with<T>(&self, f: impl FnOnce(&mut Store) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn client(&self) -> Client {
        let leases = "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases";
        let router = Router::new()
            .route(leases, any(answer))
            .route(&format!("{leases}/{{name}}"), any(answer))
            .with_state(self.clone());
        Client::new(router, "default")
    }

    /// Somebody else writes the Lease.
    pub(super) fn put(&self, spec: Value) {
        self.with(|store| {
            store.version += 1;
            store.lease = Some(json!({
                "metadata": {"name": "torpor", "resourceVersion": store.version.to_string()},
                "spec": spec,
            }));
        });
    }

    pub(super) fn spec(&self) -> Value {
        self.with(|store| store.lease.as_ref().map_or(Value::Null, |lease| lease["spec"].clone()))
    }
}

async fn answer(State(server): State<Server>, method: Method, body: String) -> Response {
    let refuse = |code: u16, message: &str| {
        let status = StatusCode::from_u16(code).expect("a status code");
        let body = json!({"kind": "Status", "status": "Failure", "code": code, "message": message});
        (status, Json(body)).into_response()
    };
    server.with(|store| {
        let reads = method == Method::GET;
        store.writes += usize::from(!reads);
        store.reads += usize::from(reads);
        match store.mood {
            Mood::Down => return refuse(500, "etcd is away"),
            Mood::Forbids if !reads => return refuse(403, "no Role"),
            _ if method == Method::POST && store.no_namespace => {
                return refuse(404, "namespaces not found");
            }
            _ => {}
        }
        let held = store.lease.as_ref().map(|lease| lease["metadata"]["resourceVersion"].clone());
        if !reads {
            let mut lease: Value = serde_json::from_str(&body).expect("a Lease");
            match (&held, method == Method::POST) {
                (Some(_), true) => return refuse(409, "exists"),
                (None, false) => return refuse(404, "not found"),
                (Some(version), false) if *version != lease["metadata"]["resourceVersion"] => {
                    return refuse(409, "changed");
                }
                _ => {}
            }
            store.version += 1;
            lease["metadata"]["resourceVersion"] = store.version.to_string().into();
            store.lease = Some(lease);
            if store.mood == Mood::AnswerLost {
                store.mood = Mood::Well;
                return refuse(500, "the connection broke");
            }
        }
        match &store.lease {
            Some(lease) => Json(lease).into_response(),
            None => refuse(404, "not found"),
        }
    })
}

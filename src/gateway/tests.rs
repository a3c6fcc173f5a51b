//! The gateway over an API server that is played by a router in this process and counts what it is asked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Path, State};
use axum::http::header::{ACCEPT, DATE, LOCATION};
use axum::http::{HeaderMap, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch};
use axum::{Json, Router};
use futures::future::join_all;
use jiff::Timestamp;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::*;
use crate::clock::FixedClock;
use crate::leader::LeaderGuard;

const NOW: &str = "2026-06-01T00:00:00Z";
const KEY: &[u8] = b"a key of tests, long enough";

#[derive(Default)]
struct Store {
    tenants: HashMap<String, Value>,
    reads: usize,
    times: usize,
    /// What its clock says, where it says anything.
    date: Option<String>,
    /// The answer to a write is lost.
    lost: bool,
}

#[derive(Clone, Default)]
struct Api(Arc<Mutex<Store>>);

impl Api {
    fn with<T>(&self, look: impl FnOnce(&mut Store) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn has(&self, tenant: &Value) {
        let name = tenant["metadata"]["name"].as_str().expect("a name").to_owned();
        self.with(|store| store.tenants.insert(name, tenant.clone()));
    }

    #[expect(clippy::disallowed_types, reason = "the gateway's own client, over this router")]
    fn gateway(&self) -> (Arc<Gateway>, Arc<FixedClock>) {
        let tenants = "/apis/torpor.dev/v1alpha1/tenants/{name}";
        let router = Router::new()
            .route("/version", get(time))
            .route(tenants, get(read))
            .route(&format!("{tenants}/status"), patch(write))
            .with_state(self.clone());
        let metrics = Metrics::new("1");
        let client = kube::Client::new(router, "default");
        let cluster = Cluster::new("torpor-gateway", client.into(), &metrics, &LeaderGuard::unelected());
        let clock = Arc::new(FixedClock::new(NOW.parse().expect("a time")));
        let options = Options {
            public_scheme: "https".to_owned(),
            portal_url: None,
            link_life: SignedDuration::from_mins(15),
            audiences: Vec::new(),
            per_second: NonZeroU32::MIN,
            concurrency: 100,
            streams: 100,
        };
        let gateway = Arc::new(Gateway::new(options, cluster, clock.clone(), metrics));
        gateway.set_keys(LinkKeys::parse(KEY).ok());
        gateway.tenants().take(Event::Init);
        gateway.tenants().take(Event::InitDone);
        (gateway, clock)
    }
}

async fn time(State(api): State<Api>) -> Response {
    let date = api.with(|store| {
        store.times += 1;
        store.date.clone()
    });
    let body = Json(json!({}));
    date.map_or_else(|| body.clone().into_response(), |date| ([(DATE, date)], body.clone()).into_response())
}

async fn read(State(api): State<Api>, Path(name): Path<String>) -> Response {
    let found = api.with(|store| {
        store.reads += 1;
        store.tenants.get(&name).cloned()
    });
    // Many ask meanwhile.
    tokio::task::yield_now().await;
    let status =
        json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404, "message": "not found"});
    found.map_or_else(|| (StatusCode::NOT_FOUND, Json(status)).into_response(), |tenant| Json(tenant).into_response())
}

async fn write(State(api): State<Api>, Path(name): Path<String>, body: String) -> Response {
    let body: Value = serde_json::from_str(&body).expect("a patch");
    let failed = |code: u16, reason: &str| {
        let status = json!({"kind": "Status", "status": "Failure", "reason": reason, "code": code, "message": reason});
        (StatusCode::from_u16(code).expect("a code"), Json(status)).into_response()
    };
    api.with(|store| {
        let lost = store.lost;
        let tenant = store.tenants.get_mut(&name).expect("a Tenant");
        if body["metadata"]["resourceVersion"] != tenant["metadata"]["resourceVersion"] {
            return failed(409, "Conflict");
        }
        for (key, field) in body["status"].as_object().expect("fields") {
            tenant["status"][key] = field.clone();
        }
        tenant["metadata"]["resourceVersion"] = "9".into();
        if lost { failed(504, "Timeout") } else { Json(tenant.clone()).into_response() }
    })
}

/// One that is awake and was made so many days ago.
fn tenant(name: &str, days: i64, host: Option<&str>) -> Value {
    let now: Timestamp = NOW.parse().expect("a time");
    let ready =
        json!({"type": "Hibernated", "status": "False", "reason": "Awake", "message": "", "lastTransitionTime": NOW});
    json!({
        "apiVersion": "torpor.dev/v1alpha1", "kind": "Tenant",
        "metadata": {"name": name, "uid": name, "resourceVersion": "1", "generation": 1,
            "creationTimestamp": now - SignedDuration::from_hours(24 * days)},
        "spec": {"tier": "basic", "dashboard": {"host": host}},
        "status": {"observedGeneration": 1, "hibernation": {"stage": "Active"}, "conditions": [ready],
            "lastActivityTime": "2026-05-31T12:00:00Z"},
    })
}

fn decoded(tenant: &Value) -> Tenant {
    serde_json::from_value(tenant.clone()).expect("a Tenant")
}

#[tokio::test]
async fn a_name_without_a_tenant_costs_one_read_for_all_who_ask() {
    let api = Api::default();
    let (gateway, _) = api.gateway();
    let all = join_all((0..50).map(|_| gateway.find("nobody"))).await;
    assert!(all.iter().all(|found| found.as_ref().err() == Some(&Problem::NotFound)));
    assert_eq!(gateway.find("nobody").await.err(), Some(Problem::NotFound));
    assert_eq!(api.with(|store| store.reads), 1);
    assert_eq!(gateway.find("another").await.err(), Some(Problem::NotFound));
    assert_eq!(api.with(|store| store.reads), 2, "each name for itself");
}

#[tokio::test]
async fn a_tenant_that_was_made_a_moment_ago_is_found() {
    let api = Api::default();
    let (gateway, _) = api.gateway();
    assert!(gateway.find("alice").await.is_err() && gateway.find("bob").await.is_err());
    for name in ["alice", "bob"] {
        api.has(&tenant(name, 0, None));
    }
    gateway.tenants().put(decoded(&tenant("alice", 0, None)));
    assert!(gateway.find("alice").await.is_ok(), "the watch has shown it");
    tokio::time::sleep(ABSENT + Duration::from_millis(100)).await;
    assert!(gateway.find("bob").await.is_ok(), "the watch is late");
}

#[tokio::test]
async fn a_login_is_written_at_the_api_servers_time_where_our_clock_is_behind() {
    let api = Api::default();
    api.with(|store| store.date = Some("Thu, 04 Jun 2026 00:00:00 GMT".to_owned()));
    let (gateway, clock) = api.gateway();
    assert_eq!(api.with(|store| store.times), 0, "whom nobody asks asks nobody");
    let mut alice = tenant("alice", 30, None);
    // Another replica wrote it, by a clock that is right.
    alice["status"]["lastActivityTime"] = "2026-06-03T12:00:00Z".into();
    api.has(&alice);
    gateway.tenants().put(decoded(&alice));
    let (written, _) = gateway.ask("alice", Ask::Activity).await.expect("an answer");
    let seen = written.status.as_ref().and_then(|status| status.last_activity_time);
    assert_eq!(seen, "2026-06-04T00:00:00Z".parse().ok());
    clock.advance(Duration::from_secs(59));
    assert_eq!(gateway.now().await, "2026-06-04T00:00:59Z".parse().expect("a time"));
    assert_eq!(api.with(|store| store.times), 1, "once a minute");
}

/// Somebody else's sleep request, ten seconds ago.
fn put_to_sleep(tenant: &Value) -> Value {
    let mut tenant = tenant.clone();
    tenant["metadata"]["resourceVersion"] = "5".into();
    tenant["status"]["requests"]["sleepRequestedAt"] = "2026-05-31T23:59:50Z".into();
    tenant
}

#[tokio::test]
async fn a_login_that_a_silent_watch_called_no_news_wakes_all_the_same() {
    let api = Api::default();
    let (gateway, _) = api.gateway();
    let mut alice = tenant("alice", 30, None);
    alice["status"]["lastActivityTime"] = "2026-05-31T23:59:00Z".into();
    api.has(&alice);
    gateway.tenants().put(decoded(&alice));
    let seen = |api: &Api| api.with(|store| store.tenants["alice"]["status"]["lastActivityTime"].clone());
    gateway.ask("alice", Ask::Activity).await.expect("an answer");
    // Through another replica, and the watch here does not tell.
    api.has(&put_to_sleep(&alice));
    let (_, written) = gateway.ask("alice", Ask::Activity).await.expect("an answer");
    assert!(!written && seen(&api) == "2026-05-31T23:59:00Z", "it looks like no news");
    let login = NOW.parse().expect("a time");
    assert!(gateway.second_look("alice", login, false).await && seen(&api) == "2026-05-31T23:59:00Z", "nor later");
    assert!(gateway.second_look("alice", login, true).await && seen(&api) == NOW, "as the API server has it");
    assert_eq!(api.with(|store| store.reads), 2, "one for the first, one for the last look");
}

#[tokio::test]
async fn a_request_to_sleep_is_not_put_after_a_login_that_came_meanwhile() {
    for ask in [Ask::Sleep, Ask::Approve] {
        let api = Api::default();
        let (gateway, _) = api.gateway();
        let mut alice = tenant("alice", 30, None);
        gateway.tenants().put(decoded(&alice));
        alice["metadata"]["resourceVersion"] = "5".into();
        alice["status"]["lastActivityTime"] = "2026-06-01T00:00:01Z".into();
        api.has(&alice);
        let overtaken = Problem::from(Hindered::Overtaken);
        assert_eq!(gateway.ask("alice", ask).await.err(), Some(overtaken.clone()), "{ask:?}");
        assert!(api.with(|store| store.tenants["alice"]["status"]["requests"].is_null()), "{ask:?}");
        // Known by now, it came before, whatever the clock says that noted it.
        alice["metadata"]["resourceVersion"] = "6".into();
        api.has(&alice);
        assert!(gateway.ask("alice", ask).await.is_ok_and(|(_, written)| written), "{ask:?}");

        // One waits for a login that is being written.
        let (gateway, clock) = api.gateway();
        let bob = tenant("bob", 30, None);
        api.has(&bob);
        gateway.tenants().put(decoded(&bob));
        let held = gateway.lock("bob").lock().await;
        let asked = tokio::spawn({
            let gateway = gateway.clone();
            async move { gateway.ask("bob", ask).await }
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
        clock.advance(Duration::from_secs(5));
        let mut seen = bob.clone();
        seen["metadata"]["resourceVersion"] = "2".into();
        seen["status"]["lastActivityTime"] = "2026-06-01T00:00:05Z".into();
        api.has(&seen);
        gateway.tenants().put(decoded(&seen));
        drop(held);
        assert_eq!(asked.await.expect("no panic").err(), Some(overtaken), "{ask:?}");
    }
}

#[tokio::test]
async fn an_older_link_takes_no_login_from_those_that_are_looked_at_again() {
    let api = Api::default();
    let (gateway, _) = api.gateway();
    let alice = tenant("alice", 30, None);
    api.has(&alice);
    gateway.tenants().put(decoded(&alice));
    let now: Timestamp = NOW.parse().expect("a time");
    gateway.look_later("alice", Ask::Activity, now);
    gateway.look_later("alice", Ask::Follow(now - SignedDuration::from_secs(50)), now);
    gateway.look_later("bob", Ask::Follow(now), now);
    let looks = gateway.second_looks.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert_eq!(looks, HashMap::from([("alice".to_owned(), now)]));
}

#[tokio::test]
async fn what_was_written_is_answered_so_where_the_answer_to_the_write_is_lost() {
    let api = Api::default();
    api.with(|store| store.lost = true);
    let (gateway, _) = api.gateway();
    api.has(&tenant("alice", 30, None));
    gateway.tenants().put(decoded(&tenant("alice", 30, None)));
    let (found, written) = gateway.ask("alice", Ask::Sleep).await.expect("an answer");
    let asked = found.status.as_ref().and_then(|status| status.requests.as_ref()?.sleep_requested_at);
    assert!(written && asked == NOW.parse().ok(), "{asked:?}");
}

async fn visited(gateway: &Arc<Gateway>, name: &str) -> (StatusCode, HeaderMap, String) {
    let made_at: Timestamp = NOW.parse().expect("a time");
    let link = Link { made_at, expires_at: made_at + SignedDuration::from_mins(15) };
    let text = gateway.keys().expect("keys").sign(name, link);
    let request = Request::get(format!("/wake/{name}?link={text}")).header(ACCEPT, "text/html").body(Body::empty());
    let answer = routes(gateway.clone()).oneshot(request.expect("a request")).await.expect("an answer");
    let (parts, body) = answer.into_parts();
    let body = to_bytes(body, 1 << 20).await.expect("a body");
    (parts.status, parts.headers, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test]
async fn a_link_is_handed_to_the_tenants_own_dashboard_only() {
    let api = Api::default();
    let (gateway, _) = api.gateway();
    let host = "shared.example.com";
    for (name, days) in [("older", 20), ("younger", 10)] {
        api.has(&tenant(name, days, Some(host)));
        gateway.tenants().put(decoded(&tenant(name, days, Some(host))));
    }
    for name in ["older", "younger"] {
        let (status, headers, page) = visited(&gateway, name).await;
        assert_eq!(status, StatusCode::OK);
        assert!(!headers.contains_key(LOCATION) && !page.contains(host) && page.contains("is awake"), "{page}");
    }
    gateway.tenants().remove("older");
    let (status, headers, _) = visited(&gateway, "younger").await;
    assert_eq!(status, StatusCode::SEE_OTHER, "it is its own now");
    let to = headers[LOCATION].to_str().expect("an address").to_owned();
    assert!(to.starts_with("https://shared.example.com/?link="), "{to}");
}

//! What every request passes through: bounds on size, time and number, headers for browsers, counting.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::error_handling::HandleErrorLayer;
use axum::extract::{MatchedPath, Request};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, HeaderName, HeaderValue};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use tower::ServiceBuilder;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower::load_shed::LoadShedLayer;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::limit::RequestBodyLimitLayer;

use super::page;
use super::problem::Problem;
use crate::clock::Clock;
use crate::metrics::Metrics;

/// No request of this interface needs a body.
const LARGEST_BODY: usize = 4 * 1024;
/// Longer than any answer of the API server is waited for.
const LONGEST_ANSWER: Duration = Duration::from_secs(15);

/// Puts the bounds around routes.
pub(super) fn around(routes: Router, metrics: Metrics, clock: Arc<dyn Clock>, concurrency: usize) -> Router {
    let busy = |_: axum::BoxError| async { Problem::Busy };
    let bounds = ServiceBuilder::new()
        .layer(CatchPanicLayer::custom(|_| Problem::Internal.into_response()))
        .layer(HandleErrorLayer::new(busy))
        .layer(LoadShedLayer::new())
        .layer(GlobalConcurrencyLimitLayer::new(concurrency));
    routes
        .method_not_allowed_fallback(|| async { Problem::MethodNotAllowed })
        .layer(RequestBodyLimitLayer::new(LARGEST_BODY))
        .layer(middleware::from_fn(in_time))
        .layer(bounds)
        .layer(middleware::from_fn(in_words))
        .layer(middleware::from_fn(move |request: Request, next: Next| {
            counted(metrics.clone(), clock.clone(), request, next)
        }))
}

/// An answer that takes too long is none. Streams are answered at once and go on beyond this.
async fn in_time(request: Request, next: Next) -> Response {
    let answer = tokio::time::timeout(LONGEST_ANSWER, next.run(request)).await;
    answer.unwrap_or_else(|_| Problem::Unavailable.into_response())
}

/// Answers of libraries get the words of ours, browsers a page that tries again where that helps, and every answer the
/// headers that keep browsers from guessing.
async fn in_words(request: Request, next: Next) -> Response {
    let browser = page::wants_page(request.headers(), false);
    let mut response = next.run(request).await;
    match response.status() {
        StatusCode::PAYLOAD_TOO_LARGE => response = Problem::TooLarge.into_response(),
        status @ (StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) if browser => {
            response = page::later(status);
        }
        _ => {}
    }
    let headers = response.headers_mut();
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    for (name, value) in [("x-content-type-options", "nosniff"), ("referrer-policy", "no-referrer")] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response
}

async fn counted(metrics: Metrics, clock: Arc<dyn Clock>, request: Request, next: Next) -> Response {
    let route = route(request.extensions().get::<MatchedPath>());
    let began = clock.monotonic();
    let response = next.run(request).await;
    metrics.answered(route, response.status().as_u16(), clock.monotonic().saturating_duration_since(began));
    response
}

/// The name of an address, without what callers can choose freely.
fn route(matched: Option<&MatchedPath>) -> &'static str {
    match matched.map(MatchedPath::as_str) {
        Some("/v1/tenants/{name}/activity") => "activity",
        Some("/v1/tenants/{name}/wake") => "wake",
        Some("/v1/tenants/{name}/sleep") => "sleep",
        Some("/v1/tenants/{name}/hibernation/approve") => "approve",
        Some("/v1/tenants/{name}") => "progress",
        Some("/v1/tenants/{name}/events") => "events",
        Some("/wake/{name}") => "page",
        Some("/wake/{name}/events") => "page events",
        Some("/healthz") => "healthz",
        Some("/openapi.json") => "openapi",
        _ => "other",
    }
}

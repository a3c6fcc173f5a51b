//! The JSON interface for portals and other programs.

use std::sync::{Arc, LazyLock};

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{LOCATION, RETRY_AFTER};
use axum::response::sse::Sse;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use serde::Serialize;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{IntoResponses, Modify, OpenApi, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::ask::Ask;
use super::events::Audience;
use super::problem::{Problem, ProblemBody};
use super::progress::Progress;
use super::{Caller, Gateway, Name, access, events};

/// What a wake-up was answered with.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Woken {
    /// Where the tenant is.
    progress: Progress,
    /// Ask here how far it is.
    progress_url: String,
    /// Listen here to how far it is: server-sent events.
    events_url: String,
    /// Send the tenant's user here to wait: a path of the gateway with a signed link in it, valid for a short time.
    /// Absent where the gateway has no key to sign with.
    #[serde(skip_serializing_if = "Option::is_none")]
    page_url: Option<String>,
}

/// What every request about a tenant may be answered with, too.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "it stands in the document; `Problem` is what answers")]
enum Refusal {
    /// No valid token.
    #[response(status = 401, content_type = "application/problem+json")]
    Unauthenticated(ProblemBody),
    /// Not allowed, whether or not the tenant exists.
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(ProblemBody),
    /// No such tenant.
    #[response(status = 404, content_type = "application/problem+json")]
    NotFound(ProblemBody),
    /// Too many requests; see Retry-After.
    #[response(status = 429, content_type = "application/problem+json")]
    TooMany(ProblemBody),
    /// The Kubernetes API does not answer, or too much is under way; see Retry-After.
    #[response(status = 503, content_type = "application/problem+json")]
    Unavailable(ProblemBody),
}

/// What every request that can have a body may be answered with, too.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "it stands in the document; `Problem` is what answers")]
enum Oversize {
    /// The body is larger than 4 KiB; none is needed.
    #[response(status = 413, content_type = "application/problem+json")]
    TooLarge(ProblemBody),
}

/// One event of a stream, field by field.
#[derive(ToSchema)]
#[allow(dead_code, reason = "it stands in the document and is written line by line")]
struct ServerSentEvent {
    /// `progress`, `awake` or `gone`.
    event: String,
    /// The same document that `GET /v1/tenants/{name}` gives, as JSON; `{}` with `gone`.
    data: String,
    /// Milliseconds after which to connect again.
    retry: Option<u32>,
}

/// Report that the tenant's user was seen.
///
/// Wakes a tenant that sleeps. Of reports about a tenant that is awake one in five minutes is written, so call it as
/// often as you like.
#[utoipa::path(post, path = "/v1/tenants/{name}/activity", tag = "tenants", security(("token" = [])),
    params(("name" = String, Path, description = "Name of the Tenant", example = "alice")),
    responses(
        (status = 204, description = "Noted"),
        Refusal,
        Oversize,
    ))]
async fn activity(
    State(gateway): State<Arc<Gateway>>,
    Name(name): Name,
    caller: Caller,
) -> Result<StatusCode, Problem> {
    gateway.access.check(&caller.headers, caller.peer, access::ACTIVITY, &name).await?;
    let (_, written) = gateway.ask(&name, Ask::Activity).await?;
    gateway.metrics.activity(written);
    Ok(StatusCode::NO_CONTENT)
}

/// Wake the tenant.
///
/// Idempotent: a wake-up that is under way is answered with its progress.
#[utoipa::path(post, path = "/v1/tenants/{name}/wake", tag = "tenants", security(("token" = [])),
    params(("name" = String, Path, description = "Name of the Tenant", example = "alice")),
    responses(
        (status = 200, description = "It is awake", body = Woken),
        (status = 202, description = "It is on its way up", body = Woken, headers(
            ("Retry-After" = u32, description = "Seconds after which to ask again"),
            ("Location" = String, description = "Where to ask how far it is"))),
        Refusal,
        (status = 409, description = "It is suspended and cannot wake", body = ProblemBody, content_type = "application/problem+json"),
        Oversize,
    ))]
async fn wake(State(gateway): State<Arc<Gateway>>, Name(name): Name, caller: Caller) -> Result<Response, Problem> {
    gateway.access.check(&caller.headers, caller.peer, access::WAKE, &name).await?;
    let (tenant, _) = gateway.ask(&name, Ask::Wake).await?;
    let progress = gateway.progress(&tenant).await;
    let awake = progress.is_awake();
    let pause = retry_after(&progress).to_string();
    let progress_url = format!("/v1/tenants/{name}");
    let events_url = format!("{progress_url}/events");
    let page_url = gateway.link(&tenant).await;
    let body = Json(Woken { progress, progress_url: progress_url.clone(), events_url, page_url });
    if awake {
        return Ok(body.into_response());
    }
    Ok((StatusCode::ACCEPTED, [(RETRY_AFTER, pause), (LOCATION, progress_url)], body).into_response())
}

/// Put the tenant to sleep until its user is seen again.
///
/// For any tier; its bots stop gracefully first.
#[utoipa::path(post, path = "/v1/tenants/{name}/sleep", tag = "tenants", security(("token" = [])),
    params(("name" = String, Path, description = "Name of the Tenant", example = "alice")),
    responses(
        (status = 202, description = "It is on its way down, or sleeps", body = Progress),
        Refusal,
        (status = 409, description = "Its newest activity lies in the future or cannot be read, or its suspension was lifted a moment ago", body = ProblemBody, content_type = "application/problem+json"),
        Oversize,
    ))]
async fn sleep(
    State(gateway): State<Arc<Gateway>>,
    Name(name): Name,
    caller: Caller,
) -> Result<(StatusCode, Json<Progress>), Problem> {
    gateway.access.check(&caller.headers, caller.peer, access::SLEEP, &name).await?;
    let (tenant, _) = gateway.ask(&name, Ask::Sleep).await?;
    Ok((StatusCode::ACCEPTED, Json(gateway.progress(&tenant).await)))
}

/// Agree, for the tenant's user, that it sleeps when it is due.
///
/// For tenants that are asked first (mode Prompt). It counts for the present idle period and is not activity.
#[utoipa::path(post, path = "/v1/tenants/{name}/hibernation/approve", tag = "tenants", security(("token" = [])),
    params(("name" = String, Path, description = "Name of the Tenant", example = "alice")),
    responses(
        (status = 204, description = "Noted"),
        Refusal,
        (status = 409, description = "Its newest activity lies in the future or cannot be read, or its suspension was lifted a moment ago", body = ProblemBody, content_type = "application/problem+json"),
        Oversize,
    ))]
async fn approve(State(gateway): State<Arc<Gateway>>, Name(name): Name, caller: Caller) -> Result<StatusCode, Problem> {
    gateway.access.check(&caller.headers, caller.peer, access::APPROVE, &name).await?;
    gateway.ask(&name, Ask::Approve).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Ask where the tenant is.
#[utoipa::path(get, path = "/v1/tenants/{name}", tag = "tenants", security(("token" = [])),
    params(("name" = String, Path, description = "Name of the Tenant", example = "alice")),
    responses(
        (status = 200, description = "Where it is", body = Progress),
        Refusal,
    ))]
async fn progress(
    State(gateway): State<Arc<Gateway>>,
    Name(name): Name,
    caller: Caller,
) -> Result<Json<Progress>, Problem> {
    gateway.access.check(&caller.headers, caller.peer, access::PROGRESS, &name).await?;
    Ok(Json(gateway.progress(&*gateway.find(&name).await?).await))
}

/// Listen to where the tenant is, until it is awake.
///
/// Server-sent events: `progress` with the document that `GET /v1/tenants/{name}` gives, each time it changes; the last
/// one is `awake`, with the same document, after which the stream ends. `gone` ends it when the tenant was removed. A
/// stream ends after five minutes in any case; connect again then.
#[utoipa::path(get, path = "/v1/tenants/{name}/events", tag = "tenants", security(("token" = [])),
    params(("name" = String, Path, description = "Name of the Tenant", example = "alice")),
    responses(
        (status = 200, description = "A stream of events", body = ServerSentEvent, content_type = "text/event-stream"),
        Refusal,
    ))]
async fn listen(State(gateway): State<Arc<Gateway>>, Name(name): Name, caller: Caller) -> Result<Response, Problem> {
    gateway.access.check(&caller.headers, caller.peer, access::PROGRESS, &name).await?;
    gateway.find(&name).await?;
    stream(&gateway, &name, Audience::Portals)
}

/// The stream of one tenant, for whoever was let in.
pub(super) fn stream(gateway: &Arc<Gateway>, name: &str, audience: Audience) -> Result<Response, Problem> {
    let events = events::of(gateway, name, audience)?;
    Ok(Sse::new(events).keep_alive(events::keep_alive()).into_response())
}

/// Whether the gateway takes requests.
#[utoipa::path(get, path = "/healthz", tag = "gateway", responses((status = 200, description = "It does", body = String, content_type = "text/plain")))]
async fn healthz() -> &'static str {
    "ok\n"
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "gateway", responses((status = 200, description = "OpenAPI 3.1", body = Object)))]
async fn document() -> Json<&'static utoipa::openapi::OpenApi> {
    static DOCUMENT: LazyLock<utoipa::openapi::OpenApi> = LazyLock::new(openapi);
    Json(&DOCUMENT)
}

/// Seconds after which it is worth asking again.
pub(super) fn retry_after(progress: &Progress) -> i64 {
    progress.estimated_seconds.unwrap_or(2).clamp(1, 10)
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Torpor gateway", description = "Wakes tenants when their users log in, and tells how far they are."),
    modifiers(&Token),
    tags((name = "tenants", description = "For portals, with a token of Kubernetes"), (name = "gateway", description = "About the gateway itself"))
)]
struct Document;

struct Token;

impl Modify for Token {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        openapi.components.get_or_insert_default().add_security_scheme("token", scheme);
    }
}

fn documented() -> OpenApiRouter<Arc<Gateway>> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(activity))
        .routes(routes!(wake))
        .routes(routes!(sleep))
        .routes(routes!(approve))
        .routes(routes!(progress))
        .routes(routes!(listen))
        .routes(routes!(healthz))
        .routes(routes!(document))
}

/// The addresses of this interface.
pub(super) fn routes() -> Router<Arc<Gateway>> {
    documented().split_for_parts().0
}

/// The document about them.
pub fn openapi() -> utoipa::openapi::OpenApi {
    documented().split_for_parts().1
}

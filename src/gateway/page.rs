//! The page on which users wait, for people without a token of Kubernetes: a signed link opens it.
//!
//! Whoever has no valid link is told the same, whether or not there is such a tenant.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use askama::Template;
use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::header::{
    ACCEPT, CONTENT_SECURITY_POLICY, CONTENT_TYPE, COOKIE, HOST, LOCATION, RETRY_AFTER, SET_COOKIE, VARY,
};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, extract::OriginalUri};
use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use kube::ResourceExt;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::access::is_name;
use super::ask::Ask;
use super::events::Audience;
use super::links::Link;
use super::problem::Problem;
use super::progress::{PartState, Progress, SUSPENDED, State as Tenancy, Trouble};
use super::{Gateway, Name, api, store};
use crate::api::Tenant;
use crate::api::conditions::reasons;
use crate::domain::names;

const STYLE: &str = include_str!("templates/wake.css");
const SCRIPT: &str = include_str!("templates/wake.js");
const LINK_COOKIE: &str = "torpor-link";
/// So many cookies of that name are looked at: one of this host, and some that others have set for a whole domain.
const COOKIES: usize = 4;
/// A page that cannot listen looks again after so many seconds; one that nothing soon will change, later.
const SOON: u32 = 3;
const LATER: u32 = 15;

/// Nothing but what stands in the page itself may run or load.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let hash = |text: &str| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text.as_bytes())));
    let policy = format!(
        "default-src 'none'; style-src {}; script-src {}; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(STYLE),
        hash(SCRIPT)
    );
    HeaderValue::from_str(&policy).unwrap_or_else(|_| HeaderValue::from_static("default-src 'none'"))
});

#[derive(Template)]
#[template(path = "wake.html")]
struct Page {
    title: &'static str,
    words: String,
    state: String,
    problem: bool,
    steps: Vec<Step>,
    refresh: Option<u32>,
    next: Option<String>,
    events: Option<String>,
    link: Option<Anchor>,
    style: &'static str,
    script: &'static str,
}

struct Step {
    part: String,
    name: &'static str,
    class: &'static str,
    words: &'static str,
}

struct Anchor {
    href: String,
    words: &'static str,
}

#[derive(Deserialize)]
struct LinkQuery {
    link: Option<String>,
}

/// The addresses of the page.
pub(super) fn routes() -> Router<Arc<Gateway>> {
    Router::new().route("/wake/{name}", get(wake)).route("/wake/{name}/events", get(listen))
}

async fn wake(
    State(gateway): State<Arc<Gateway>>,
    Name(name): Name,
    query: Result<Query<LinkQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Response {
    let given = query.ok().and_then(|query| query.0.link);
    visit(&gateway, &name, given.as_deref(), &headers).await
}

async fn listen(
    State(gateway): State<Arc<Gateway>>,
    Name(name): Name,
    query: Result<Query<LinkQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let given = query.ok().and_then(|query| query.0.link);
    let now = gateway.now().await;
    let guest = admitted(&gateway, &name, given.as_deref(), &headers, now).ok_or(Problem::Forbidden)?;
    within_pace(&gateway, &guest.tenant)?;
    let left = guest.link.expires_at.duration_since(now);
    api::stream(&gateway, &name, Audience::People(Duration::try_from(left).unwrap_or_default()))
}

/// Every address that is none of the gateway's. A request for the host of a tenant's dashboard comes here while the
/// dashboard has no pod that is ready.
pub(super) async fn anywhere(
    State(gateway): State<Arc<Gateway>>,
    OriginalUri(uri): OriginalUri,
    request: Request,
) -> Response {
    let headers = request.headers();
    if request.method() != Method::GET || !wants_page(headers, false) && !wants_json(headers) {
        return Problem::NotFound.into_response();
    }
    let host = host_of(headers);
    let query = Query::<LinkQuery>::try_from_uri(&uri).ok().and_then(|query| query.0.link);
    if let Some(tenant) = gateway.tenants.by_host(&host) {
        return visit(&gateway, &tenant.name_any(), query.as_deref(), headers).await;
    }
    // Takes as long as for a host that somebody has.
    let _ = admitted(&gateway, "", query.as_deref(), headers, gateway.now().await);
    refused(&gateway, headers)
}

/// Shows how far a tenant is to whoever has a link to it, and wakes it if the link is new.
async fn visit(gateway: &Arc<Gateway>, name: &str, given: Option<&str>, headers: &HeaderMap) -> Response {
    let now = gateway.now().await;
    let Some(guest) = admitted(gateway, name, given, headers, now) else {
        return refused(gateway, headers);
    };
    if let Err(problem) = within_pace(gateway, &guest.tenant) {
        return problem.into_response();
    }
    let tenant = match gateway.ask(name, Ask::Follow(guest.link.made_at)).await {
        Ok((tenant, _)) => tenant,
        Err(Problem::NotFound) => return refused(gateway, headers),
        Err(problem) => return problem.into_response(),
    };
    let mut progress = gateway.progress(&tenant).await.for_people();
    // Where another tenant claims the same host, what answers there may be that one's, and it must not be handed this link.
    progress.dashboard = progress.dashboard.filter(|_| gateway.tenants.owns_its_host(&tenant));
    let mut response =
        if wants_json(headers) { document(&progress) } else { waiting(gateway, &progress, guest.text, headers) };
    // What came as a cookie need not be set again, and what did not verify must not be.
    if let Some(cookie) = cookie(gateway, guest.text, guest.link, now).filter(|_| given == Some(guest.text)) {
        response.headers_mut().append(SET_COOKIE, cookie);
    }
    response
}

/// Somebody with a valid link.
struct Guest<'a> {
    tenant: Arc<Tenant>,
    link: Link,
    text: &'a str,
}

/// Lets in whoever has a valid link, in the address or kept from an earlier visit.
fn admitted<'a>(
    gateway: &Gateway,
    name: &str,
    given: Option<&'a str>,
    headers: &'a HeaderMap,
    now: Timestamp,
) -> Option<Guest<'a>> {
    let keys = gateway.keys()?;
    let mut texts = given.into_iter().chain(cookies(headers).take(COOKIES));
    let verified = texts.find_map(|text| keys.verify(name, text, now).map(|link| (link, text)));
    let tenant = gateway.tenants.get(name).filter(|_| is_name(name));
    // A link from before the tenant was made is for another one of its name.
    let ((link, text), tenant) = (verified?, tenant?);
    (link.made_at >= store::created(&tenant)).then_some(Guest { tenant, link, text })
}

/// The host that was asked for, without its port.
fn host_of(headers: &HeaderMap) -> String {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    host.rsplit_once(':').map_or(host, |(host, _)| host).to_ascii_lowercase()
}

fn within_pace(gateway: &Gateway, tenant: &Tenant) -> Result<(), Problem> {
    gateway.pages.check_key(&tenant.name_any()).map_err(|_| Problem::TooMany)
}

fn cookies(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    let pairs = values.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.filter(|(name, _)| *name == LINK_COOKIE).map(|(_, value)| value)
}

/// Keeps the link for the next load of the page, for as long as it is valid.
fn cookie(gateway: &Gateway, link: &str, valid: Link, now: Timestamp) -> Option<HeaderValue> {
    let left = valid.expires_at.duration_since(now).as_secs();
    let secure = if gateway.options.public_scheme == "https" { "; Secure" } else { "" };
    let text = format!("{LINK_COOKIE}={link}; Path=/; Max-Age={left}; HttpOnly; SameSite=Lax{secure}");
    HeaderValue::from_str(&text).ok()
}

fn accepts(headers: &HeaderMap, media: &str) -> bool {
    headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).any(|value| value.contains(media))
}

/// Browsers ask for HTML; `unsaid` is for those who do not say what they want.
pub(super) fn wants_page(headers: &HeaderMap, unsaid: bool) -> bool {
    accepts(headers, "text/html") || unsaid && !accepts(headers, "application/json")
}

fn wants_json(headers: &HeaderMap) -> bool {
    !wants_page(headers, true)
}

/// The same for everybody who has no valid link.
fn refused(gateway: &Gateway, headers: &HeaderMap) -> Response {
    if wants_json(headers) {
        return Problem::Forbidden.into_response();
    }
    let words = "This page needs a link that is valid for a short time only. Log in to get a new one.".to_owned();
    let mut refused = plain("Please log in", words, None);
    refused.link = portal(gateway);
    page(StatusCode::FORBIDDEN, refused)
}

fn portal(gateway: &Gateway) -> Option<Anchor> {
    gateway.options.portal_url.clone().map(|href| Anchor { href, words: "Log in" })
}

/// For programs: done, or come again.
fn document(progress: &Progress) -> Response {
    if progress.is_awake() {
        return Json(progress).into_response();
    }
    let pause = api::retry_after(progress).to_string();
    (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, pause)], Json(progress)).into_response()
}

fn waiting(gateway: &Gateway, progress: &Progress, link: &str, headers: &HeaderMap) -> Response {
    // The dashboard's host knows nothing of this visit, and may not be open for its visitors yet.
    let dashboard = progress.dashboard.as_ref().map(|url| format!("{url}?link={link}"));
    let open = progress.dashboard_ready && matches!(progress.state, Tenancy::Awake | Tenancy::Waking);
    let host = host_of(headers);
    let here = progress.dashboard.as_ref().is_some_and(|url| url.contains(&format!("://{host}/")));
    // On the dashboard's own host the way to it opens a moment after it is ready; going there at once would go in circles.
    if let Some(dashboard) = dashboard.as_ref().filter(|_| open && !here) {
        return (StatusCode::SEE_OTHER, [(LOCATION, dashboard.clone())]).into_response();
    }
    let (title, words, refresh) = told(progress, open);
    let moving = matches!(progress.state, Tenancy::Waking | Tenancy::Starting | Tenancy::Awake);
    let steps =
        if matches!(progress.state, Tenancy::Waking | Tenancy::Starting) { steps(progress) } else { Vec::new() };
    let next = dashboard.filter(|_| moving);
    let anchor = match progress.state {
        Tenancy::Asleep | Tenancy::GoingToSleep => portal(gateway),
        _ => next.clone().filter(|_| open).map(|href| Anchor { href, words: "Open your dashboard" }),
    };
    let events = (moving && !open).then(|| format!("/wake/{}/events?link={link}", progress.name));
    let (state, problem) = (format!("{:?}", progress.state), progress.problem.is_some());
    page(StatusCode::OK, Page { state, problem, steps, next, events, link: anchor, ..plain(title, words, refresh) })
}

/// In place of a problem that passes by itself, for people.
pub(super) fn later(status: StatusCode) -> Response {
    let words = "The service does not answer right now. This page tries again by itself.".to_owned();
    page(status, plain("One moment, please", words, Some(SOON)))
}

fn plain(title: &'static str, words: String, refresh: Option<u32>) -> Page {
    let (state, problem) = (String::new(), false);
    Page {
        title,
        words,
        state,
        problem,
        steps: Vec::new(),
        refresh,
        next: None,
        events: None,
        link: None,
        style: STYLE,
        script: SCRIPT,
    }
}

/// Title, words, and after how many seconds to look again.
fn told(progress: &Progress, open: bool) -> (&'static str, String, Option<u32>) {
    let left = progress.estimated_seconds.map(|seconds| format!("About {seconds} s left. "));
    let goes_on = format!("{}This page goes on by itself.", left.unwrap_or_default());
    match (&progress.problem, progress.state) {
        (Some(Trouble { reason, .. }), _) if reason == SUSPENDED => (
            "Your account is suspended",
            "It cannot wake until the suspension is lifted. Your data is kept. Please contact support.".to_owned(),
            None,
        ),
        (Some(Trouble { reason, .. }), Tenancy::Waking | Tenancy::Starting) if !open => (
            "Your stack cannot wake right now",
            format!("{} Your data is kept. {goes_on}", in_plain_words(reason)),
            Some(LATER),
        ),
        (_, Tenancy::Waking) if !open => ("Your stack is waking up", goes_on, Some(SOON)),
        (_, Tenancy::Starting) if !open => ("Your stack is being set up", goes_on, Some(SOON)),
        (_, Tenancy::Asleep | Tenancy::GoingToSleep) => (
            "Your stack sleeps",
            "It was put to sleep after this link was made, or the link was used before. Log in again to wake it."
                .to_owned(),
            None,
        ),
        _ if progress.dashboard.is_some() => {
            ("Your stack is awake", "Your dashboard opens in a moment.".to_owned(), Some(SOON))
        }
        _ => ("Your stack is awake", "You can go on in your portal.".to_owned(), None),
    }
}

/// What the reason of a condition means to somebody who does not run the cluster.
fn in_plain_words(reason: &str) -> &'static str {
    match reason {
        reasons::INVALID_SPEC | reasons::UNDECODABLE => "Its settings contain a mistake. Please contact support.",
        reasons::NOT_OWNED | reasons::REFUSED => "The cluster refuses a part of it. Please contact support.",
        reasons::RETRYING => "The cluster does not answer as it should, which mostly passes.",
        _ => "It waits for something that the cluster does not have right now. If this lasts, please contact support.",
    }
}

fn steps(progress: &Progress) -> Vec<Step> {
    let step = |part: &super::progress::Part| {
        let (class, words) = match part.state {
            PartState::Stopped => ("stopped", "asleep"),
            PartState::Waiting => ("waiting", "waiting its turn"),
            PartState::Stopping => ("stopping", "still stopping"),
            PartState::Starting => ("starting", "starting"),
            PartState::Ready => ("ready", "ready"),
        };
        let name = match part.name.as_str() {
            names::DATABASE => "Database",
            names::REDIS => "Cache",
            names::MONITORING => "Metrics",
            names::DASHBOARD => "Dashboard",
            _ => "Bots",
        };
        Step { part: part.name.clone(), name, class, words }
    };
    progress.parts.iter().map(step).collect()
}

fn page(status: StatusCode, page: Page) -> Response {
    let Ok(html) = page.render() else { return Problem::Internal.into_response() };
    let mut response = (status, html).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(CONTENT_SECURITY_POLICY, POLICY.clone());
    headers.insert(VARY, HeaderValue::from_static("accept, cookie"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    if [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS].contains(&status) {
        headers.insert(RETRY_AFTER, HeaderValue::from(SOON));
    }
    response
}

//! Everything that is not what a caller asked for, as `application/problem+json` (RFC 9457).

use axum::Json;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::ask::Hindered;
use crate::cluster::error::ClusterError;

/// Why a request had no success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Nobody said who asks, or with a token that is not valid.
    Unauthenticated,
    /// The caller may not do that, or the link is none. It does not tell whether the tenant exists.
    Forbidden,
    /// There is no such tenant, or no such address.
    NotFound,
    /// The address does not take this method.
    MethodNotAllowed,
    /// The request cannot have its effect.
    Conflict(String),
    /// The caller asks too often.
    TooMany,
    /// The request is larger than any that means something.
    TooLarge,
    /// Too much is under way.
    Busy,
    /// The API server does not answer as it should; the reason stands in the log.
    Unavailable,
    /// A mistake in the gateway; the log tells more.
    Internal,
}

/// What a caller is told.
#[derive(Serialize, ToSchema, Debug)]
pub struct ProblemBody {
    /// The status code once more.
    #[schema(minimum = 400, maximum = 599)]
    pub status: u16,
    /// What kind of problem it is; the same words each time.
    pub title: &'static str,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Problem {
    const fn status(&self) -> StatusCode {
        match self {
            Problem::Unauthenticated => StatusCode::UNAUTHORIZED,
            Problem::Forbidden => StatusCode::FORBIDDEN,
            Problem::NotFound => StatusCode::NOT_FOUND,
            Problem::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Problem::Conflict(_) => StatusCode::CONFLICT,
            Problem::TooMany => StatusCode::TOO_MANY_REQUESTS,
            Problem::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Problem::Busy | Problem::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Problem::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    const fn title(&self) -> &'static str {
        match self {
            Problem::Unauthenticated => "a valid bearer token is required",
            Problem::Forbidden => "not allowed",
            Problem::NotFound => "not found",
            Problem::MethodNotAllowed => "method not allowed",
            Problem::Conflict(_) => "the request cannot have its effect",
            Problem::TooMany => "too many requests",
            Problem::TooLarge => "the request is too large",
            Problem::Busy => "too many requests are under way",
            Problem::Unavailable => "the Kubernetes API does not answer",
            Problem::Internal => "an error of the gateway",
        }
    }

    const fn retry_after(&self) -> Option<&'static str> {
        match self {
            Problem::TooMany | Problem::Busy | Problem::Unavailable => Some("1"),
            _ => None,
        }
    }

    fn detail(&self) -> Option<String> {
        match self {
            Problem::Conflict(detail) => Some(detail.clone()),
            Problem::TooMany | Problem::Busy | Problem::Unavailable => {
                Some("try again after Retry-After seconds".to_owned())
            }
            _ => None,
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status();
        let body = ProblemBody { status: status.as_u16(), title: self.title(), detail: self.detail() };
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after() {
            headers.insert(RETRY_AFTER, HeaderValue::from_static(seconds));
        }
        if self == Problem::Unauthenticated {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<ClusterError> for Problem {
    fn from(error: ClusterError) -> Self {
        tracing::warn!(%error, "a request to the API server failed");
        Problem::Unavailable
    }
}

impl From<Hindered> for Problem {
    fn from(hindered: Hindered) -> Self {
        Problem::Conflict(hindered.to_string())
    }
}

//! Who may do what: Kubernetes says it, and what it said is remembered briefly.
//!
//! Nothing of an answer depends on whether a tenant exists before its caller has been allowed to ask about it.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use moka::future::Cache;
use sha2::{Digest, Sha256};

use super::problem::Problem;
use crate::api::tenant::MAX_TENANT_NAME;
use crate::cluster::reviews::{Action, Identity, Reviewer};

/// Reports activity.
pub const ACTIVITY: Action = Action { verb: "create", subresource: "activity" };
/// Wakes.
pub const WAKE: Action = Action { verb: "create", subresource: "wake" };
/// Looks at how far a tenant is.
pub const PROGRESS: Action = Action { verb: "get", subresource: "wake" };
/// Puts to sleep.
pub const SLEEP: Action = Action { verb: "create", subresource: "sleep" };
/// Agrees to sleep.
pub const APPROVE: Action = Action { verb: "create", subresource: "approval" };

/// A right that is taken away works on for so long.
pub const REMEMBERED: Duration = Duration::from_secs(10);
/// A caller that was known is not taken for a stranger for so long.
const FAMILIAR: Duration = Duration::from_secs(3_600);
/// Answers that are remembered at most, of each kind; a few hundred bytes each.
const REMEMBERED_ANSWERS: u64 = 10_000;
/// Tokens that nobody has asked about lately, per second and address: so many strangers cannot keep the API server busy.
/// Whoever comes through a proxy shares its address with all who do; portals come from inside of the cluster.
const UNKNOWN_TOKENS: u32 = 50;
/// Tenants that a caller without a right to all may newly ask about, per second.
const NAMED_QUESTIONS: u32 = 20;
/// No token of Kubernetes is longer; what is longer is not worth a question.
const LONGEST_TOKEN: usize = 8 * 1024;

type Fingerprint = [u8; 32];
/// Who wants to do what, and to which tenant; to all of them without one.
type Question = (Arc<Identity>, Action, Option<Arc<str>>);

/// Asks, remembers, and bounds how often anybody may ask.
pub struct Access {
    reviewer: Reviewer,
    audiences: Vec<String>,
    identities: Cache<Fingerprint, Option<Arc<Identity>>>,
    /// Tokens that were valid lately. Strangers who use up the questions about unknown ones must not keep these out.
    familiar: Cache<Fingerprint, ()>,
    permissions: Cache<Question, bool>,
    unknown: DefaultKeyedRateLimiter<Option<IpAddr>>,
    named: DefaultKeyedRateLimiter<String>,
    callers: DefaultKeyedRateLimiter<String>,
}

impl Access {
    /// Tokens must be meant for one of these audiences, or for the API server where there is none. A caller may ask
    /// `per_second` times a second, and twice as often for a moment.
    pub fn new(reviewer: Reviewer, audiences: Vec<String>, per_second: NonZeroU32) -> Self {
        let at_most = |number: u32| Quota::per_second(NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN));
        let burst = per_second.saturating_mul(NonZeroU32::MIN.saturating_add(1));
        Access {
            reviewer,
            audiences,
            familiar: Cache::builder().max_capacity(REMEMBERED_ANSWERS).time_to_idle(FAMILIAR).build(),
            identities: Cache::builder().max_capacity(REMEMBERED_ANSWERS).time_to_live(REMEMBERED).build(),
            permissions: Cache::builder().max_capacity(REMEMBERED_ANSWERS).time_to_live(REMEMBERED).build(),
            unknown: RateLimiter::keyed(at_most(UNKNOWN_TOKENS)),
            named: RateLimiter::keyed(at_most(NAMED_QUESTIONS)),
            callers: RateLimiter::keyed(Quota::per_second(per_second).allow_burst(burst)),
        }
    }

    /// Lets a caller pass who may do that to this tenant.
    ///
    /// # Errors
    /// [`Problem`]: 401, 403, 429 or 503, none of which tells whether the tenant exists.
    pub async fn check(
        &self,
        headers: &HeaderMap,
        peer: Option<IpAddr>,
        action: Action,
        tenant: &str,
    ) -> Result<(), Problem> {
        let who = self.who(headers, peer).await?;
        if self.callers.check_key(&who.user).is_err() {
            return Err(Problem::TooMany);
        }
        // Most callers may ask about every tenant, which is one question for all of them. Where that cannot be told the other may be.
        let all = self.permits(&who, action, None).await;
        if all == Ok(true) || is_name(tenant) && self.permits(&who, action, Some(tenant.into())).await? {
            return Ok(());
        }
        all.and(Err(Problem::Forbidden))
    }

    async fn who(&self, headers: &HeaderMap, peer: Option<IpAddr>) -> Result<Arc<Identity>, Problem> {
        let token = bearer(headers).ok_or(Problem::Unauthenticated)?;
        let fingerprint: Fingerprint = Sha256::digest(token.as_bytes()).into();
        let asked = self.identities.try_get_with(fingerprint, async {
            if self.familiar.get(&fingerprint).await.is_none() {
                self.unknown.check_key(&peer).map_err(|_| Problem::TooMany)?;
            }
            let identity = self.reviewer.identify(token, &self.audiences).await?.map(Arc::new);
            if identity.is_some() {
                self.familiar.insert(fingerprint, ()).await;
            }
            Ok::<_, Problem>(identity)
        });
        asked.await.map_err(|problem| (*problem).clone())?.ok_or(Problem::Unauthenticated)
    }

    async fn permits(&self, who: &Arc<Identity>, action: Action, tenant: Option<Arc<str>>) -> Result<bool, Problem> {
        let key = (who.clone(), action, tenant.clone());
        let asked = self.permissions.try_get_with(key, async {
            if tenant.is_some() {
                self.named.check_key(&who.user).map_err(|_| Problem::TooMany)?;
            }
            Ok::<_, Problem>(self.reviewer.permits(who, action, tenant.as_deref()).await?)
        });
        asked.await.map_err(|problem| (*problem).clone())
    }

    /// Forgets callers who have not asked for a while, so that memory does not grow with every one there ever was.
    pub fn tidy(&self) {
        for users in [&self.callers, &self.named] {
            users.retain_recent();
            users.shrink_to_fit();
        }
        self.unknown.retain_recent();
        self.unknown.shrink_to_fit();
    }
}

/// The token of a request.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    let sound = scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && token.len() <= LONGEST_TOKEN;
    sound.then_some(token)
}

/// Whether a Tenant can have this name.
pub fn is_name(name: &str) -> bool {
    let sound = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=MAX_TENANT_NAME).contains(&name.len())
        && name.bytes().all(sound)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn token(values: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_str(value).expect("a header"));
        }
        bearer(&headers).map(str::to_owned)
    }

    #[test]
    fn one_bearer_token_and_nothing_else() {
        assert_eq!(token(&["Bearer abc"]).as_deref(), Some("abc"));
        assert_eq!(token(&["bearer  abc "]).as_deref(), Some("abc"));
        for other in [&[][..], &["Basic abc"], &["Bearer"], &["Bearer "], &["Bearer a", "Bearer b"]] {
            assert_eq!(token(other), None, "{other:?}");
        }
        assert_eq!(token(&[&format!("Bearer {}", "x".repeat(LONGEST_TOKEN + 1))]), None);
    }

    #[test]
    fn names_are_dns_labels() {
        for name in ["a", "a-1", &"a".repeat(40)] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "-a", "a-", "A", "a.b", "a/b", "..", "a%2fb", "é", &"a".repeat(41)] {
            assert!(!is_name(name), "{name}");
        }
    }
}

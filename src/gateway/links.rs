//! Signed links to the waiting page. End users have no token of Kubernetes; a link is what their portal hands them.
//!
//! A link is `<made at>.<expires at>.<signature>`, both times in milliseconds since 1970. The signature is the
//! HMAC-SHA256 of `torpor-link-v1`, the tenant's name and both times, a line end between them, in base64url without
//! padding. docs/portal.md is the contract with portals that make links themselves.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac};
use jiff::{SignedDuration, Timestamp};
use sha2::Sha256;

/// The least length of a key in bytes: RFC 2104 wants no fewer than the hash has, and half of it cannot be guessed.
pub const LEAST_KEY: usize = 16;
/// A link may live no longer, however it was made: it opens a page without any other question.
pub const LONGEST_LIFE: SignedDuration = SignedDuration::from_hours(24);
/// Clocks of portal and gateway may differ by so much.
const SKEW: SignedDuration = SignedDuration::from_mins(1);

/// The keys of links: the first signs, each of them is accepted.
#[derive(Clone)]
pub struct LinkKeys(Vec<Vec<u8>>);

/// Why keys cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkKeyError {
    /// There is none.
    #[error("it holds no key; it needs one per line, of at least {LEAST_KEY} bytes")]
    Empty,
    /// One could be guessed.
    #[error("the key in line {line} has {bytes} bytes; it needs at least {LEAST_KEY}")]
    Short {
        /// The line, from 1.
        line: usize,
        /// The length of the key.
        bytes: usize,
    },
}

/// What a valid link tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// When it was made.
    pub made_at: Timestamp,
    /// Until when it is valid.
    pub expires_at: Timestamp,
}

impl LinkKeys {
    /// Keys of a file, one per line; the first one signs. Empty lines do not count.
    ///
    /// # Errors
    /// [`LinkKeyError`], which never shows a key.
    pub fn parse(text: &[u8]) -> Result<Self, LinkKeyError> {
        let lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).enumerate();
        let mut keys = Vec::new();
        for (line, key) in lines.filter(|(_, key)| !key.is_empty()) {
            if key.len() < LEAST_KEY {
                return Err(LinkKeyError::Short { line: line + 1, bytes: key.len() });
            }
            keys.push(key.to_vec());
        }
        if keys.is_empty() { Err(LinkKeyError::Empty) } else { Ok(LinkKeys(keys)) }
    }

    /// A link for a tenant.
    pub fn sign(&self, tenant: &str, link: Link) -> String {
        let (made, expires) = (link.made_at.as_millisecond(), link.expires_at.as_millisecond());
        let mac = self.0.first().map(|key| mac(key, tenant, made, expires).finalize().into_bytes());
        format!("{made}.{expires}.{}", URL_SAFE_NO_PAD.encode(mac.unwrap_or_default()))
    }

    /// Reads a link; `None` for one that is malformed, forged, another tenant's, expired or not valid yet. All of them
    /// take the same time, for the signature is checked first and in constant time.
    pub fn verify(&self, tenant: &str, text: &str, now: Timestamp) -> Option<Link> {
        let mut parts = text.splitn(3, '.');
        let mut time = || parts.next()?.parse::<i64>().ok();
        let (made, expires) = (time(), time());
        let signature = parts.next().and_then(|part| URL_SAFE_NO_PAD.decode(part).ok()).unwrap_or_default();
        let (stated, until) = (made.unwrap_or_default(), expires.unwrap_or_default());
        // Not `any`, which would stop at the first key that fits.
        let genuine = self
            .0
            .iter()
            .fold(false, |found, key| found | mac(key, tenant, stated, until).verify_slice(&signature).is_ok());
        let link = Link {
            made_at: Timestamp::from_millisecond(made?).ok()?,
            expires_at: Timestamp::from_millisecond(expires?).ok()?,
        };
        let current = now < link.expires_at && link.made_at.duration_since(now) <= SKEW;
        let short = link.expires_at.duration_since(link.made_at) <= LONGEST_LIFE;
        (genuine && current && short).then_some(link)
    }
}

fn mac(key: &[u8], tenant: &str, made: i64, expires: i64) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(format!("torpor-link-v1\n{tenant}\n{made}\n{expires}").as_bytes());
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> LinkKeys {
        LinkKeys::parse(text.as_bytes()).expect("keys")
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    const OLD: &str = "an old key of many bytes";
    const NEW: &str = "a new key of as many bytes";

    #[test]
    fn a_link_is_for_one_tenant_and_some_time() {
        let keys = keys(NEW);
        let link = Link { made_at: at(1_000), expires_at: at(1_900) };
        let text = keys.sign("alice", link);
        assert_eq!(keys.verify("alice", &text, at(1_000)), Some(link));
        assert_eq!(keys.verify("alice", &text, at(1_899)), Some(link));
        assert_eq!(keys.verify("alice", &text, at(1_900)), None, "expired");
        assert_eq!(keys.verify("alice", &text, at(940)), Some(link), "clocks differ");
        assert_eq!(keys.verify("alice", &text, at(939)), None, "not valid yet");
        assert_eq!(keys.verify("bob", &text, at(1_000)), None, "another tenant's");
        let long = keys.sign("alice", Link { made_at: at(0), expires_at: at(86_401) });
        assert_eq!(keys.verify("alice", &long, at(10)), None, "a link for ever is none");
    }

    #[test]
    fn forged_and_malformed_links_are_none() {
        let keys = keys(NEW);
        let text = keys.sign("alice", Link { made_at: at(1_000), expires_at: at(1_900) });
        let later = text.replacen(".1900000.", ".2900000.", 1);
        assert_ne!(later, text);
        let cut = &text[..text.len() - 1];
        for forged in [&later, cut, "", ".", "..", "a.b.c", "1.2.", &format!("{text}.x"), "9".repeat(99).as_str()] {
            assert_eq!(keys.verify("alice", forged, at(1_000)), None, "{forged}");
        }
    }

    #[test]
    fn keys_are_exchanged_without_breaking_links() {
        let link = Link { made_at: at(1_000), expires_at: at(1_900) };
        let by_old = keys(OLD).sign("alice", link);
        let both = keys(&format!("{NEW}\n\n{OLD}\n"));
        assert_eq!(both.verify("alice", &by_old, at(1_000)), Some(link));
        assert_eq!(both.sign("alice", link), keys(NEW).sign("alice", link));
        assert_eq!(keys(NEW).verify("alice", &by_old, at(1_000)), None);
    }

    #[test]
    fn bad_keys_are_refused_unshown() {
        assert_eq!(LinkKeys::parse(b"\n \n").err(), Some(LinkKeyError::Empty));
        let error = LinkKeys::parse(format!("{NEW}\nsecret\n").as_bytes()).err().expect("an error");
        assert_eq!(error.to_string(), "the key in line 2 has 6 bytes; it needs at least 16");
    }
}

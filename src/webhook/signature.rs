//! Signatures after the Standard Webhooks specification, version `v1`.

use base64::{Engine, prelude::BASE64_STANDARD};
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// The shortest key, in bytes.
pub(super) const LEAST_KEY: usize = 16;

/// Signs with one key, which cannot be had back from it.
#[derive(Clone)]
pub(super) struct Signer(Hmac<Sha256>);

impl Signer {
    /// `None` for a key that is too short.
    pub(super) fn new(key: &[u8]) -> Option<Self> {
        if key.len() < LEAST_KEY {
            return None;
        }
        Hmac::new_from_slice(key).ok().map(Self)
    }

    /// The value of the header `webhook-signature`; `sent_at` is in seconds since 1970.
    pub(super) fn sign(&self, id: &str, sent_at: i64, body: &[u8]) -> String {
        let signed = self.0.clone().chain_update(format!("{id}.{sent_at}.")).chain_update(body);
        format!("v1,{}", BASE64_STANDARD.encode(signed.finalize().into_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_as_the_libraries_of_the_specification_do() {
        let key = BASE64_STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("base64");
        let signer = Signer::new(&key).expect("a long key");
        assert_eq!(
            signer.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
    }

    #[test]
    fn fifteen_bytes_are_no_key() {
        assert!(Signer::new(&[7; 15]).is_none());
        assert!(Signer::new(&[7; 16]).is_some());
    }
}

//! Hashes of what was wanted, kept in annotations and compared over versions of the operator.

use serde_json::Value;
use sha2::{Digest, Sha256};

/// The first 64 bits of SHA-256 over the value's canonical JSON (keys sorted), as 16 hexadecimal digits.
/// The algorithm is stable: changing it would rewrite every object once.
pub fn of(value: &Value) -> String {
    let digest = Sha256::digest(value.to_string().as_bytes());
    let mut head = [0; 8];
    head.copy_from_slice(&digest[..8]);
    format!("{:016x}", u64::from_be_bytes(head))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::of;

    #[test]
    fn hashes_stay_what_they_were() {
        assert_eq!(of(&json!({})), "44136fa355b3678a");
        assert_eq!(of(&json!({"b": 1, "a": 2})), of(&json!({"a": 2, "b": 1})));
    }
}

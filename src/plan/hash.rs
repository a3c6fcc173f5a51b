//! Hashes of what was wanted, kept in annotations and compared over versions of the operator.

use serde_json::Value;
use sha2::{Digest, Sha256};

/// The first 64 bits of SHA-256 over the value's canonical JSON (keys sorted), as 16 hexadecimal digits.
/// The algorithm is stable: changing it would rewrite every object once.
pub fn of(value: &Value) -> String {
    let digest = Sha256::digest(value.to_string().as_bytes());
    digest[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

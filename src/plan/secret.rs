//! The generated Secret: passwords that are made once, when the Secret is created.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Secret;

use super::Child;
use super::scope::Scope;
use crate::domain::names::{self, Component};

/// Password of the database's superuser `postgres`.
pub(super) const POSTGRES_PASSWORD: &str = "postgres-password";
/// Password of the role `hummingbot`, which owns the database that the tenant's programs use.
pub(super) const DATABASE_PASSWORD: &str = "database-password";
/// Password of the role `monitoring`, which may read statistics.
pub(super) const MONITORING_PASSWORD: &str = "monitoring-password";
/// Password of Redis.
pub(super) const REDIS_PASSWORD: &str = "redis-password";
/// The same password as a piece of Redis' configuration, which its file includes.
pub(super) const REDIS_AUTH: &str = "redis-auth.conf";
/// Password of the bots' keystores, for fleets without a credentials Secret of their own.
pub(super) const BOT_PASSWORD: &str = "bot-password";

/// Keys of the generated Secret.
pub const SECRET_KEYS: [&str; 6] =
    [POSTGRES_PASSWORD, DATABASE_PASSWORD, MONITORING_PASSWORD, REDIS_PASSWORD, REDIS_AUTH, BOT_PASSWORD];

/// The contents of a new generated Secret, with passwords from `password`. They must be of letters
/// and digits only: they end up in a configuration file and in connection strings.
pub fn secret_values(mut password: impl FnMut() -> String) -> BTreeMap<String, String> {
    let redis = password();
    let mut values: BTreeMap<String, String> =
        [POSTGRES_PASSWORD, DATABASE_PASSWORD, MONITORING_PASSWORD, BOT_PASSWORD]
            .into_iter()
            .map(|key| (key.to_owned(), password()))
            .collect();
    values.insert(REDIS_AUTH.to_owned(), format!("requirepass {redis}\n"));
    values.insert(REDIS_PASSWORD.to_owned(), redis);
    values
}

/// Without data: the values are made when the Secret is created, and never again.
pub(super) fn plan(scope: &Scope) -> Child {
    Child::Secret(Secret {
        metadata: scope.kept(names::SECRET, Component::Tenant),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_value_and_redis_has_one_password() {
        let mut number = 0;
        let values = secret_values(|| {
            number += 1;
            format!("word{number}")
        });
        let mut keys = SECRET_KEYS;
        keys.sort_unstable();
        assert!(values.keys().map(String::as_str).eq(keys));
        assert_eq!(values[REDIS_AUTH], format!("requirepass {}\n", values[REDIS_PASSWORD]));
        assert_eq!(number, 5);
    }
}

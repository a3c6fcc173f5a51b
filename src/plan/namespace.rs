//! The tenant's namespace and the identity of its pods.

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::ObjectMeta;

use super::Child;
use super::scope::Scope;
use crate::domain::names::{self, Component};

/// The Pod Security level of all tenants. `audit` and `warn` say the same, so that a refusal is
/// told where people look.
const POD_SECURITY: [(&str, &str); 6] = [
    ("pod-security.kubernetes.io/enforce", "restricted"),
    ("pod-security.kubernetes.io/enforce-version", "latest"),
    ("pod-security.kubernetes.io/audit", "restricted"),
    ("pod-security.kubernetes.io/audit-version", "latest"),
    ("pod-security.kubernetes.io/warn", "restricted"),
    ("pod-security.kubernetes.io/warn-version", "latest"),
];

pub(super) fn plan(scope: &Scope) -> Vec<Child> {
    vec![Child::Namespace(namespace(scope)), Child::ServiceAccount(service_account(scope))]
}

/// The security level stands in the first write already: no pod ever runs in the namespace without.
fn namespace(scope: &Scope) -> Namespace {
    let mut labels = scope.labels(Component::Tenant);
    labels.extend(POD_SECURITY.map(|(key, value)| (key.to_owned(), value.to_owned())));
    Namespace {
        metadata: ObjectMeta {
            namespace: None,
            labels: Some(labels),
            ..scope.kept(scope.namespace(), Component::Tenant)
        },
        ..Namespace::default()
    }
}

fn service_account(scope: &Scope) -> ServiceAccount {
    ServiceAccount {
        metadata: scope.owned(names::SERVICE_ACCOUNT, Component::Tenant),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

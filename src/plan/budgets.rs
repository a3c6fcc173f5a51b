//! How many pods a node drain may take at a time.

use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::scope::Scope;
use super::{Child, network};
use crate::domain::names::{self, Component};

/// One bot of the tenant at a time, over all fleets, so that a drain never cancels all its orders
/// at once. One database, too: with 0 a drain would wait forever, and somebody would delete the pod
/// by force; with 1 it stops as gracefully as in any restart.
pub(super) fn plan(scope: &Scope) -> Vec<Child> {
    [(names::BOTS, Component::Bot), (names::DATABASE, Component::Database)]
        .map(|(name, component)| Child::PodDisruptionBudget(budget(scope, name, component)))
        .into()
}

fn budget(scope: &Scope, name: &str, component: Component) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: scope.owned(name, component),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(network::pods(scope.tenant(), &[component])),
            // A pod that is not ready serves nobody, so it never holds up a drain.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    }
}

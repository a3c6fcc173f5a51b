//! What a tenant becomes: pure functions from validated input to ordered, typed objects.
//!
//! [`tenant`] makes everything of a tenant except what runs its bots; each fleet written inside the
//! Tenant becomes a `BotFleet` object there, and [`fleet`] makes the workload of one such object.
//! Both are total: what was validated can be planned. Sleeping removes no object: a part that is
//! down has no replicas. Which parts are up is [`Parts`]; a stage of sleep stands for one such value.

mod budgets;
pub mod child;
mod cost;
mod dashboard;
mod fleet;
pub mod hash;
mod monitoring;
mod namespace;
mod network;
mod parts;
mod pod;
mod postgres;
mod postgres_conf;
mod quota;
mod redis;
mod scope;
mod secret;
pub mod settings;
#[cfg(test)]
mod tests;
mod workload;

pub use child::{Child, ChildKind};
pub use cost::{cost, limit, pods};
pub use parts::{DatabaseSize, Parts};
pub use quota::roomy;
pub use secret::{SECRET_KEYS, secret_values};
pub use settings::Settings;

use scope::Scope;

use crate::domain::names::{self, Component};
use crate::validate::{ValidatedFleet, ValidatedTenant};

/// What a plan may leave out although an earlier one had it, and what has no owner to tell whose it is.
pub const UNOWNED: &[(ChildKind, &str)] = &[(ChildKind::NetworkPolicy, names::MONITORING)];

/// The objects of a tenant of which these parts are up, in the order in which they are applied.
pub fn tenant(tenant: &ValidatedTenant, parts: Parts, settings: &Settings) -> Vec<Child> {
    let scope = Scope::of_tenant(tenant, settings);
    let mut children = namespace::plan(&scope);
    children.extend(network::plan(&scope));
    children.extend(quota::plan(&scope, tenant));
    children.push(secret::plan(&scope));
    children.extend(postgres::plan(&scope, tenant, parts.database));
    children.extend(redis::plan(&scope, &tenant.redis, i32::from(parts.redis)));
    children.extend(dashboard::plan(&scope, &tenant.dashboard, i32::from(parts.dashboard)));
    children.push(monitoring::plan(&scope, tenant.monitoring, i32::from(parts.exporter)));
    children.push(Child::Service(workload::headless_service(&scope, names::BOTS, Component::Bot)));
    children.extend(budgets::plan(&scope));
    children.extend(tenant.fleets.iter().map(|(name, spec)| fleet::object(&scope, name, spec)));
    in_apply_order(children)
}

/// The objects of a fleet of a tenant of which these parts are up, in the order in which they are applied.
pub fn fleet(fleet: &ValidatedFleet, parts: Parts, settings: &Settings) -> Vec<Child> {
    let replicas = if parts.bots { fleet.replicas } else { 0 };
    in_apply_order(fleet::plan(&Scope::of_fleet(fleet, settings), fleet, replicas))
}

/// By kind; objects of one kind stay in the order in which they were planned.
fn in_apply_order(mut children: Vec<Child>) -> Vec<Child> {
    children.sort_by_key(Child::kind);
    children
}

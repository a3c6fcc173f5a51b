//! Asks for passes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kube::runtime::reflector::ObjectRef;

use super::context::Guarded;
use super::places::Places;
use crate::api::{BotFleet, Tenant, WorkerPool};
use crate::domain::names;

/// Asks for passes over objects.
#[derive(Clone)]
pub struct Triggers {
    /// Passes over Tenants.
    pub tenants: Arc<Places<Guarded<Tenant>>>,
    /// Passes over `BotFleets`.
    pub fleets: Arc<Places<Guarded<BotFleet>>>,
    /// Passes over `WorkerPools`.
    pub pools: Arc<Places<Guarded<WorkerPool>>>,
    /// Whether passes have begun. What was asked for before would wait, a request for each object of each list; all are looked at
    /// when they begin.
    open: Arc<AtomicBool>,
}

impl Triggers {
    /// Asks for nothing before passes begin.
    pub fn new(
        tenants: Arc<Places<Guarded<Tenant>>>,
        fleets: Arc<Places<Guarded<BotFleet>>>,
        pools: Arc<Places<Guarded<WorkerPool>>>,
    ) -> Self {
        Triggers { tenants, fleets, pools, open: Arc::default() }
    }

    /// Passes begin: whoever has changed something before has done so where all are looked for next.
    pub fn begin(&self) {
        self.open.store(true, Ordering::SeqCst);
    }

    /// Whether passes have begun.
    pub fn are_open(&self) -> bool {
        self.open.load(Ordering::SeqCst)
    }

    /// A pass over a Tenant. It is cluster-scoped, so its reference never carries a namespace.
    pub fn tenant(&self, name: &str) {
        if self.are_open() {
            self.tenants.ask(ObjectRef::new(name));
        }
    }

    /// A pass over the Tenant of a namespace.
    pub fn tenant_of(&self, namespace: &str) {
        if let Some(name) = names::tenant_of_namespace(namespace) {
            self.tenant(name);
        }
    }

    /// A pass over a `BotFleet`.
    pub fn fleet(&self, namespace: &str, name: &str) {
        if self.are_open() {
            self.fleets.ask(ObjectRef::new(name).within(namespace));
        }
    }

    /// A pass over a `WorkerPool`.
    pub fn pool(&self, name: &str) {
        if self.are_open() {
            self.pools.ask(ObjectRef::new(name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_asked_for_before_passes_begin() {
        let (tenants, mut queue) = Places::new(1);
        let triggers = Triggers::new(tenants, Places::new(1).0, Places::new(1).0);
        triggers.tenant("a");
        assert!(queue.try_recv().is_err());
        triggers.clone().begin();
        triggers.tenant_of("tenant-b");
        assert_eq!(queue.try_recv().expect("a request").obj_ref.name, "b");
    }
}

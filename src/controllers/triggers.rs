//! Asks for passes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::channel::mpsc::UnboundedSender;
use kube::Resource;
use kube::runtime::controller::ReconcileRequest;
use kube::runtime::reflector::ObjectRef;

use super::context::Guarded;
use crate::api::{BotFleet, Tenant, WorkerPool};
use crate::domain::names;

/// Asks for passes over objects. Requests for the same object merge in the scheduler.
#[derive(Clone)]
pub struct Triggers {
    /// Passes over Tenants.
    pub tenants: UnboundedSender<ReconcileRequest<Guarded<Tenant>>>,
    /// Passes over `BotFleets`.
    pub fleets: UnboundedSender<ReconcileRequest<Guarded<BotFleet>>>,
    /// Passes over `WorkerPools`.
    pub pools: UnboundedSender<ReconcileRequest<Guarded<WorkerPool>>>,
    /// Whether passes have begun. What was asked for before would wait, a request for each object of each list; all are looked at
    /// when they begin.
    open: Arc<AtomicBool>,
}

impl Triggers {
    /// Asks for nothing before passes begin.
    pub fn new(
        tenants: UnboundedSender<ReconcileRequest<Guarded<Tenant>>>,
        fleets: UnboundedSender<ReconcileRequest<Guarded<BotFleet>>>,
        pools: UnboundedSender<ReconcileRequest<Guarded<WorkerPool>>>,
    ) -> Self {
        Triggers { tenants, fleets, pools, open: Arc::default() }
    }

    /// Passes begin: whoever has changed something before has done so where all are looked for next.
    pub fn begin(&self) {
        self.open.store(true, Ordering::SeqCst);
    }

    fn ask<K: Resource<DynamicType = ()>>(
        &self,
        queue: &UnboundedSender<ReconcileRequest<K>>,
        object: impl FnOnce() -> ObjectRef<K>,
    ) {
        if self.open.load(Ordering::SeqCst) {
            // The receiver lives as long as the process; without it nobody is left to be told.
            let _ = queue.unbounded_send(object().into());
        }
    }

    /// A pass over a Tenant. It is cluster-scoped, so its reference never carries a namespace.
    pub fn tenant(&self, name: &str) {
        self.ask(&self.tenants, || ObjectRef::new(name));
    }

    /// A pass over the Tenant of a namespace.
    pub fn tenant_of(&self, namespace: &str) {
        if let Some(name) = names::tenant_of_namespace(namespace) {
            self.tenant(name);
        }
    }

    /// A pass over a `BotFleet`.
    pub fn fleet(&self, namespace: &str, name: &str) {
        self.ask(&self.fleets, || ObjectRef::new(name).within(namespace));
    }

    /// A pass over a `WorkerPool`.
    pub fn pool(&self, name: &str) {
        self.ask(&self.pools, || ObjectRef::new(name));
    }
}

#[cfg(test)]
mod tests {
    use futures::channel::mpsc;

    use super::*;

    #[test]
    fn nothing_is_asked_for_before_passes_begin() {
        let (tenants, mut queue) = mpsc::unbounded();
        let triggers = Triggers::new(tenants, mpsc::unbounded().0, mpsc::unbounded().0);
        triggers.tenant("a");
        assert!(queue.try_recv().is_err());
        triggers.clone().begin();
        triggers.tenant_of("tenant-b");
        assert_eq!(queue.try_recv().expect("a request").obj_ref.name, "b");
    }
}

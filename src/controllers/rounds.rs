//! Looks at objects to which nothing is known to have happened: when passes begin, after a list, when something has changed that concerns
//! all, and now and then. At once where somebody awaits a pass, and at the others a few at a time.

use std::sync::Arc;
use std::time::Duration;

use kube::Resource;
use kube::runtime::reflector::ObjectRef;

use super::context::{Context, Guarded, number};
use super::places::Places;
use super::{bot_fleet, tenant};
use crate::api::{BotFleet, Tenant};
use crate::domain::names;

/// A settled object is compared with the index once in this time; that costs no request. Asked of the library's schedule this would take a
/// kilobyte and more for each tenant.
const ROUND: Duration = Duration::from_secs(600);
/// A round goes on so often, with a part of all tenants.
const STEP: Duration = Duration::from_secs(5);

impl Context {
    /// A look at each Tenant and each fleet.
    pub fn everybody(&self) {
        self.look_at(self.tenants.state(), self.fleets.state());
    }

    /// A look at each Tenant and its fleets: whatever concerns all tenants has changed.
    pub fn every_tenant(&self) {
        self.some_tenants(|_| true);
    }

    /// A look at these fleets.
    pub fn look_at_fleets(&self, is_meant: impl Fn(&Guarded<BotFleet>) -> bool) {
        self.look_at(Vec::new(), self.fleets.state().into_iter().filter(|fleet| is_meant(fleet)).collect());
    }

    /// A look at the Tenants whose names are meant, and at their fleets that are looked after. One without a Tenant waits for it, and asks
    /// for itself.
    fn some_tenants(&self, is_meant: impl Fn(&str) -> bool) {
        let name = |tenant: &Guarded<Tenant>| tenant.meta().name.clone().unwrap_or_default();
        let tenants: Vec<_> = self.tenants.state().into_iter().filter(|tenant| is_meant(&name(tenant))).collect();
        let fleets = tenants.iter().flat_map(|tenant| {
            let namespace = names::namespace(&name(tenant));
            let names = self.fleets_with_bots(&namespace);
            names.into_iter().filter_map(move |name| self.fleet(&namespace, &name)).collect::<Vec<_>>()
        });
        let fleets = fleets.collect();
        self.look_at(tenants, fleets);
    }

    fn look_at(&self, tenants: Vec<Arc<Guarded<Tenant>>>, fleets: Vec<Arc<Guarded<BotFleet>>>) {
        if self.triggers.are_open() {
            look_at(tenants, &self.triggers.tenants, |tenant| tenant::is_awaited(tenant, self));
            look_at(fleets, &self.triggers.fleets, |fleet| bot_fleet::is_awaited(fleet, self));
        }
    }
}

fn look_at<K>(objects: Vec<Arc<K>>, places: &Places<K>, is_awaited: impl Fn(&K) -> bool)
where
    K: Resource<DynamicType = ()>,
{
    let (awaited, others): (Vec<_>, Vec<_>) = objects.into_iter().partition(|object| is_awaited(object));
    for object in awaited {
        places.ask(ObjectRef::from_obj(&*object));
    }
    places.look_at(others);
}

/// Goes round for good.
pub async fn run(context: Arc<Context>) {
    let steps = ROUND.as_secs() / STEP.as_secs();
    for step in (0..steps).cycle() {
        tokio::time::sleep(STEP).await;
        context.some_tenants(|name| number(&name) % steps == step);
        if step + 1 == steps {
            context.every_pool();
        }
    }
}

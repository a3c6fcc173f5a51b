//! Looks at all objects: when passes begin, after a list, when something has changed that concerns all, and now and then.

use std::sync::Arc;
use std::time::Duration;

use kube::Resource;
use kube::runtime::reflector::{ObjectRef, Store};

use super::context::{Context, Guarded, number};
use super::places::Places;
use super::{bot_fleet, tenant};
use crate::api::{BotFleet, Tenant};

/// A settled object is compared with the index once in this time; that costs no request. A schedule of the library's for each of them would
/// take a kilobyte and more a tenant.
const ROUND: Duration = Duration::from_secs(600);
/// A round goes on so often, with a part of all objects.
const STEP: Duration = Duration::from_secs(5);

impl Context {
    /// A look at each Tenant and each fleet: at once where somebody awaits one, and at the others a few at a time.
    pub fn everybody(&self) {
        if self.triggers.are_open() {
            all(&self.tenants, &self.triggers.tenants, |object: &Guarded<Tenant>| tenant::is_awaited(object, self));
            all(&self.fleets, &self.triggers.fleets, |object: &Guarded<BotFleet>| bot_fleet::is_awaited(object, self));
        }
    }
}

fn all<K>(store: &Store<K>, places: &Places<K>, is_awaited: impl Fn(&K) -> bool)
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let (awaited, others): (Vec<_>, Vec<_>) = store.state().into_iter().partition(|object| is_awaited(object));
    for object in awaited {
        places.ask(ObjectRef::from_obj(&*object));
    }
    places.ask_all(others);
}

/// Goes round for good.
pub async fn run(context: Arc<Context>) {
    let steps = ROUND.as_secs() / STEP.as_secs();
    for step in (0..steps).cycle() {
        tokio::time::sleep(STEP).await;
        part(&context.tenants, &context.triggers.tenants, (step, steps));
        part(&context.fleets, &context.triggers.fleets, (step, steps));
        part(&context.pools, &context.triggers.pools, (step, steps));
    }
}

fn part<K>(store: &Store<K>, places: &Places<K>, (step, steps): (u64, u64))
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    for object in store.state() {
        let metadata = object.meta();
        if number(&(&metadata.namespace, &metadata.name)) % steps == step {
            places.ask(ObjectRef::from_obj(&*object));
        }
    }
}

//! What a Tenant makes of its fleets: how far each is, their bots, and the volumes that none of them uses.

use kube::ResourceExt;

use super::outcome::Outcome;
use super::workloads;
use crate::api::conditions::{READY, STALLED, reasons};
use crate::api::tenant::BotCount;
use crate::api::{BotFleet, Condition, ConditionStatus};
use crate::cluster::index::{Entry, Slot};
use crate::domain::names::{self, Component};
use crate::domain::stage::Stage;
use crate::plan::ChildKind;
use crate::status::find;
use crate::validate::Problem;

/// What the Tenant makes of a fleet's status.
pub struct FleetView {
    /// Its name.
    pub name: String,
    /// How far it is.
    pub state: FleetState,
}

/// How far a fleet is.
pub enum FleetState {
    /// As it should be.
    Ready,
    /// On its way; the sentence says where.
    Working(String),
    /// Somebody must act; the fleet's condition Stalled.
    Stalled(Condition),
}

/// Reads a fleet for a tenant whose wanted stage is `stage`.
pub fn view(fleet: &BotFleet, entries: &[Entry], stage: Stage) -> FleetView {
    let name = fleet.name_any();
    let status = fleet.status.clone().unwrap_or_default();
    let entry = entries.iter().find(|entry| entry.slot == Slot::Child(ChildKind::BotFleet) && entry.name == name);
    // The answer to a write of the fleet is known before the watch shows the fleet as it is now.
    let newest = fleet.metadata.generation.max(entry.map(|entry| entry.generation));
    let holds = |type_| find(&status.conditions, type_).filter(|condition| condition.status == ConditionStatus::True);
    // Nothing in a fleet's own spec tells of the stage, so its status may still be that of another one.
    let asleep = find(&status.conditions, READY).is_some_and(|ready| ready.reason == reasons::ASLEEP);
    let another_stage =
        if stage == Stage::Active { asleep } else { status.desired_replicas.is_some_and(|desired| desired > 0) };
    // Nor does its status know of a write that its workload has had since.
    let workload = names::fleet_workload(&name);
    let set = entries.iter().find(|e| e.slot == Slot::Child(ChildKind::StatefulSet) && e.name == workload);
    // One that has never had what it needs sleeps without a workload.
    let asks_none = stage != Stage::Active && status.desired_replicas.unwrap_or_default() == 0;
    let in_step = set.map_or(asks_none, |set| set.desired == status.desired_replicas);
    let state = match (find(&status.conditions, READY), holds(STALLED)) {
        (None, _) => FleetState::Working("not handled yet".to_owned()),
        (Some(_), _)
            if status.observed_generation != newest && (holds(READY).is_some() || holds(STALLED).is_some()) =>
        {
            FleetState::Working("its latest change is being handled".to_owned())
        }
        (Some(_), Some(stalled)) => FleetState::Stalled(stalled.clone()),
        (Some(_), None) if another_stage => FleetState::Working(format!("on the way to {stage}")),
        (Some(ready), None) if ready.status == ConditionStatus::True && !in_step => {
            FleetState::Working("its workload is being changed".to_owned())
        }
        (Some(ready), None) if ready.status != ConditionStatus::True => FleetState::Working(ready.message.clone()),
        (Some(_), None) => FleetState::Ready,
    };
    FleetView { name, state }
}

/// A Tenant whose fleet waits for somebody to act waits for the same.
pub fn stalled(fleets: &[FleetView]) -> Option<Outcome> {
    let stalled = fleets.iter().filter_map(|fleet| match &fleet.state {
        FleetState::Stalled(condition) => Some((format!("fleet {}: {}", fleet.name, condition.message), condition)),
        FleetState::Ready | FleetState::Working(_) => None,
    });
    let (messages, conditions): (Vec<String>, Vec<&Condition>) = stalled.unzip();
    let first = conditions.first()?;
    Some(if first.reason == reasons::REFUSED {
        Outcome::Refused(messages.join("; "))
    } else {
        Outcome::Invalid(messages.into_iter().map(Problem).collect())
    })
}

/// Bots of all fleets.
pub fn count(fleets: &[BotFleet]) -> BotCount {
    let sum = |read: fn(&crate::api::BotFleetStatus) -> Option<i32>| {
        fleets.iter().filter_map(|fleet| fleet.status.as_ref().and_then(read)).sum()
    };
    BotCount { desired: sum(|status| status.desired_replicas), ready: sum(|status| status.ready_replicas) }
}

/// Whether the bot is still there whose volume that is.
pub fn in_use(entries: &[Entry], volume: &Entry) -> bool {
    entries.iter().any(|entry| entry.slot == Slot::Pod && names::claim(&entry.name) == volume.name)
}

/// Volumes of bots that no fleet's spec asks for any more, and that no bot uses.
pub fn retained(entries: &[Entry], fleets: &[BotFleet]) -> Vec<String> {
    let mut volumes: Vec<String> = entries
        .iter()
        .filter(|entry| entry.slot == Slot::Volume && entry.is_of(Component::Bot))
        .filter(|entry| !in_use(entries, entry))
        .filter(|entry| {
            let fleet = fleets.iter().find(|fleet| Some(fleet.name_any()) == entry.fleet);
            let ordinal = fleet.and_then(|fleet| {
                workloads::ordinal(&entry.name, &names::claim(&names::fleet_workload(&fleet.name_any())))
            });
            // What a fleet asks for that cannot be read, or is not looked after, is not known.
            let unknown = |other: &Entry| {
                other.slot == Slot::Child(ChildKind::BotFleet)
                    && !other.deleting
                    && Some(&other.name) == entry.fleet.as_ref()
            };
            match (fleet, ordinal) {
                (Some(fleet), Some(ordinal)) => ordinal >= fleet.spec.replicas,
                (Some(_), None) => true,
                (None, _) => !entries.iter().any(unknown),
            }
        })
        .map(|entry| entry.name.clone())
        .collect();
    volumes.sort();
    volumes.truncate(100);
    volumes
}

//! What a tenant becomes: pure functions from validated input to ordered, typed objects.
//!
//! [`tenant`] makes everything of a tenant except what runs its bots; each fleet written inside the
//! Tenant becomes a `BotFleet` object there, and [`fleet`] makes the workload of one such object.
//! Both are total: what was validated can be planned.

pub mod child;
pub mod hash;
pub mod settings;

pub use child::{Child, ChildKind};
pub use settings::Settings;

use crate::domain::quantity::Size;
use crate::domain::stage::Stage;
use crate::validate::{ValidatedFleet, ValidatedTenant};

/// The objects of a tenant at a stage, in the order in which they are applied.
pub fn tenant(_tenant: &ValidatedTenant, _stage: Stage, _settings: &Settings) -> Vec<Child> {
    Vec::new()
}

/// The objects of a fleet at its tenant's stage, in the order in which they are applied.
pub fn fleet(_fleet: &ValidatedFleet, _stage: Stage, _settings: &Settings) -> Vec<Child> {
    Vec::new()
}

/// Sum of what the pods of these objects request of the scheduler, by the workloads' replicas.
pub fn cost(_children: &[Child]) -> Size {
    Size::default()
}

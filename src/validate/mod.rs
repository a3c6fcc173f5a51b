//! From what a user wrote to values that can be planned, or to all that is wrong with it at once.
//!
//! The API server has checked schema and CEL rules already. What is left here needs the tier
//! catalogue or more than one field, plus the readings that the types of [`crate::domain`] demand.

mod bots;
mod document;
mod fleet;
mod tenant;

use std::fmt;

use crate::api::{Resources, Tier};
use crate::domain::quantity::{Bytes, Cpu, Size};

pub use bots::{FleetFacts, Share, allot};
pub use document::document;
pub use fleet::{Desired, FleetContext, ValidatedFleet, config_key, fleet};
pub use tenant::{Dashboard, Database, PoolFacts, Redis, ValidatedTenant, hibernation, tenant};

/// One line for the user: which field, what is wrong with it, what to do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem(pub String);

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Name of the pool that a tier's pods wait for while no `WorkerPool` serves the tier.
pub const fn default_pool(tier: Tier) -> &'static str {
    match tier {
        Tier::Free => "worker-low",
        Tier::Basic => "worker-mid",
        Tier::Pro => "worker-high",
        Tier::Premium => "worker-premium",
    }
}

/// No container starts with less; the catalogue's smallest service has five times as much CPU.
const LEAST: Size = Size { cpu: Cpu(10), memory: Bytes::mi(16) };

/// Problems found so far, so that a user reads all of them at once.
#[derive(Default)]
struct Findings(Vec<Problem>);

impl Findings {
    fn add(&mut self, field: &str, reason: impl fmt::Display) {
        self.0.push(Problem(format!("{field}: {reason}")));
    }

    /// A quantity of bytes that is at least `least`; in case of a problem, `least`.
    fn bytes(&mut self, field: &str, text: &str, least: Bytes) -> Bytes {
        match Bytes::parse(text) {
            Ok(bytes) if bytes >= least => return bytes,
            Ok(_) => self.add(field, format_args!("{text} is too small, use at least {least}")),
            Err(error) => self.add(field, error),
        }
        least
    }

    /// Limits of a container: the given ones, the others from `default`, each between `least` and
    /// `most`. In case of a problem, `default`.
    fn size(&mut self, field: &str, given: Option<&Resources>, default: Size, least: Size, most: Size) -> Size {
        let Some(given) = given else { return default };
        let before = self.0.len();
        let mut size = default;
        if let Some(text) = &given.cpu {
            match Cpu::parse(text) {
                Ok(cpu) if (least.cpu..=most.cpu).contains(&cpu) => size.cpu = cpu,
                Ok(_) => self
                    .add(&format!("{field}.cpu"), format_args!("{text} is not between {} and {}", least.cpu, most.cpu)),
                Err(error) => self.add(&format!("{field}.cpu"), error),
            }
        }
        if let Some(text) = &given.memory {
            match Bytes::parse(text) {
                Ok(memory) if (least.memory..=most.memory).contains(&memory) => size.memory = memory,
                Ok(_) => self.add(
                    &format!("{field}.memory"),
                    format_args!("{text} is not between {} and {}", least.memory, most.memory),
                ),
                Err(error) => self.add(&format!("{field}.memory"), error),
            }
        }
        if self.0.len() == before { size } else { default }
    }

    fn finish<T>(self, value: T) -> Result<T, Vec<Problem>> {
        if self.0.is_empty() { Ok(value) } else { Err(self.0) }
    }
}

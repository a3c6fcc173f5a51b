//! The measurements, in the order in which they run.

pub mod cost;
pub mod creation;
pub mod helm;
pub mod hibernator;
pub mod logins;
pub mod memory;
pub mod restart;
pub mod sleep;
pub mod twin;
pub mod wake;

use anyhow::Result;

use crate::bench::Bench;

/// One measurement: its name, what it does, and whether it goes on with the tenants of the one before.
pub struct Measurement {
    /// By which it is asked for.
    pub name: &'static str,
    /// In a few words.
    pub about: &'static str,
    /// Runs it; figures go into the bench.
    pub run: fn(&mut Bench) -> Result<()>,
}

/// All of them. The first six share the tenants that the first one makes; the sixth puts them to sleep for good.
pub const ALL: [Measurement; 10] = [
    Measurement {
        name: "creation",
        about: "the operator against a blind replayer, and writes per tenant",
        run: creation::run,
    },
    Measurement { name: "memory", about: "resident memory, settled and during a relist", run: memory::run },
    Measurement { name: "restart", about: "until every tenant was verified, and writes", run: restart::run },
    Measurement { name: "twin", about: "memory and verification of a controller-runtime manager", run: twin::run },
    Measurement { name: "wake", about: "single wakes and a burst, through the gateway", run: wake::run },
    Measurement { name: "sleep", about: "all idle tenants at once, after the breaker's release", run: sleep::run },
    Measurement { name: "cost", about: "processor time and memory of a further tenant", run: cost::run },
    Measurement { name: "hibernator", about: "the hibernator alone beside many Tenants", run: hibernator::run },
    Measurement { name: "logins", about: "a thousand reports of activity a second", run: logins::run },
    Measurement { name: "helm", about: "the same tenant as a Helm release", run: helm::run },
];

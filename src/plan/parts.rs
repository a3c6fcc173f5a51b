//! What runs of a tenant's stack: the switch that a plan is made for.

use crate::domain::stage::Stage;

/// How large the database is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DatabaseSize {
    /// The tier's size, or the user's.
    Full,
    /// The least that keeps the data at hand.
    Least,
}

/// Which parts of a stack are up. The database always is; it can only be small.
///
/// A stage stands for one such value. On the way from one stage to another there are more of them, because
/// parts go down and come up one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of its own, and together they are no state machine"
)]
pub struct Parts {
    /// Size of the database.
    pub database: DatabaseSize,
    /// Whether the metrics exporter is up.
    pub exporter: bool,
    /// Whether Redis is up.
    pub redis: bool,
    /// Whether the dashboard is up.
    pub dashboard: bool,
    /// Whether bots are up.
    pub bots: bool,
}

impl Parts {
    /// The parts that are up at a stage.
    pub const fn of(stage: Stage) -> Self {
        let (database, exporter, services, bots) = match stage {
            Stage::Active => (DatabaseSize::Full, true, true, true),
            Stage::BotsStopped => (DatabaseSize::Full, true, true, false),
            Stage::ServicesStopped => (DatabaseSize::Full, true, false, false),
            Stage::DatabaseOnly => (DatabaseSize::Least, false, false, false),
        };
        Parts { database, exporter, redis: services, dashboard: services, bots }
    }
}

//! Stages of sleep, and the one function that tells which of them is in force.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How deep a tenant sleeps. Deeper stages order after lighter ones.
#[derive(
    Serialize, Deserialize, schemars::JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash,
)]
pub enum Stage {
    /// Everything runs.
    #[default]
    Active,
    /// Bots are stopped.
    BotsStopped,
    /// Dashboard and Redis are stopped, too.
    ServicesStopped,
    /// Only the database runs, with its least size.
    DatabaseOnly,
}

impl Stage {
    /// Every stage, from awake to deepest.
    pub const ALL: [Stage; 4] = [Stage::Active, Stage::BotsStopped, Stage::ServicesStopped, Stage::DatabaseOnly];

    /// The word users read.
    pub const fn as_str(self) -> &'static str {
        match self {
            Stage::Active => "Active",
            Stage::BotsStopped => "BotsStopped",
            Stage::ServicesStopped => "ServicesStopped",
            Stage::DatabaseOnly => "DatabaseOnly",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Stage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|stage| stage.as_str().eq_ignore_ascii_case(text))
            .ok_or_else(|| format!("unknown stage {text:?}; one of Active, BotsStopped, ServicesStopped, DatabaseOnly"))
    }
}

/// What is known of a tenant's activity and of decisions about it.
#[derive(Clone, Copy, Debug)]
pub struct SleepFacts {
    /// `spec.suspended`.
    pub suspended: bool,
    /// Something that tells of activity cannot be read.
    pub doubtful: bool,
    /// The newest activity; a tenant without any counts from its creation.
    pub newest_activity: Timestamp,
    /// When manual sleep was asked for.
    pub sleep_requested_at: Option<Timestamp>,
    /// The hibernator's decision: its stage, and the activity it was based on.
    pub decision: Option<(Stage, Timestamp)>,
}

/// The stage in force. Ties and doubts mean awake: a sleep request must be newer than every activity,
/// and a decision counts only while the activity it was based on is still the newest one.
pub fn effective_stage(facts: &SleepFacts) -> Stage {
    if facts.suspended {
        return Stage::DatabaseOnly;
    }
    if facts.doubtful {
        return Stage::Active;
    }
    if facts.sleep_requested_at.is_some_and(|at| at > facts.newest_activity) {
        return Stage::DatabaseOnly;
    }
    match facts.decision {
        Some((stage, based_on)) if based_on == facts.newest_activity => stage,
        Some(_) | None => Stage::Active,
    }
}

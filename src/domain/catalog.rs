//! The tier catalogue: what each tier gives, as data with built-in defaults.

use std::collections::BTreeMap;

use serde::Deserialize;
use thiserror::Error;

use super::duration;
use super::quantity::{Bytes, Cpu, Size};
use crate::api::{HibernationMode, Tier};

/// The built-in catalogue's text.
pub const BUILT_IN: &str = include_str!("catalog.yaml");

/// Why a catalogue is refused, with the line where that can be told.
#[derive(Debug, Error)]
pub enum CatalogError {
    /// It is not YAML of this form.
    #[error("{origin}: {reason}")]
    Syntax {
        /// File name, or `built-in`.
        origin: String,
        /// The parser's words, which name line and column.
        reason: String,
    },
    /// It can be read and contradicts itself.
    #[error("{origin}:{line}: {reason}")]
    Meaning {
        /// File name, or `built-in`.
        origin: String,
        /// Line of the contradiction, from 1.
        line: usize,
        /// What is wrong, and what would be right.
        reason: String,
    },
}

/// What every tier gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Catalog {
    /// Limits of one bot.
    pub bot: Size,
    /// Requests of one bot.
    pub bot_request: Size,
    /// CPU that a pod of a waking tenant may use until it is ready, where its limit is less.
    pub start_cpu: Cpu,
    /// Limits of `PostgreSQL` in stage `DatabaseOnly`.
    pub sleeping_database: Size,
    /// Room in the namespace's quota for one backup job.
    pub backup_job: Size,
    tiers: BTreeMap<Tier, TierPlan>,
}

/// What one tier gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierPlan {
    /// Most bots of all fleets together.
    pub max_bots: i32,
    /// `PriorityClass` of the tier's pods.
    pub priority_class: String,
    /// Limits of all services together; the four below sum up to it.
    pub total: Size,
    /// Limits of `PostgreSQL`.
    pub postgres: Size,
    /// Limits of Redis.
    pub redis: Size,
    /// Limits of the dashboard.
    pub dashboard: Size,
    /// Limits of the metrics exporter.
    pub monitoring: Size,
    /// When an idle tenant sleeps.
    pub hibernation: Policy,
}

/// When an idle tenant sleeps; durations in seconds of idle time, ascending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Auto, Prompt or Never.
    pub mode: HibernationMode,
    /// Bots stop.
    pub stop_bots_after: i64,
    /// Dashboard and Redis stop.
    pub stop_services_after: i64,
    /// Only the database stays.
    pub database_only_after: i64,
    /// How long before each stage its user is warned.
    pub warn_before: Leads,
}

/// How long before a stage its user is warned, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leads {
    /// Before bots stop.
    pub stop_bots: i64,
    /// Before dashboard and Redis stop.
    pub stop_services: i64,
    /// Before only the database stays.
    pub database_only: i64,
}

impl Default for Leads {
    /// Three days before bots stop, which costs the user something, and a day before each later stage.
    fn default() -> Self {
        Leads { stop_bots: 72 * 3_600, stop_services: 24 * 3_600, database_only: 24 * 3_600 }
    }
}

impl Default for Catalog {
    fn default() -> Self {
        // The text is part of the program, and a unit test reads it.
        Self::parse("built-in", BUILT_IN).expect("the built-in catalogue is valid")
    }
}

impl Catalog {
    /// Reads a catalogue.
    ///
    /// # Errors
    /// [`CatalogError`] with the line and the reason.
    pub fn parse(origin: &str, text: &str) -> Result<Self, CatalogError> {
        let raw: RawCatalog = serde_yaml::from_str(text)
            .map_err(|error| CatalogError::Syntax { origin: origin.to_owned(), reason: with_line(&error) })?;
        raw.check().map_err(|problem| CatalogError::Meaning {
            origin: origin.to_owned(),
            line: problem.line(text),
            reason: problem.reason,
        })
    }

    /// What one tier gives. Every catalogue has every tier.
    pub fn tier(&self, tier: Tier) -> &TierPlan {
        &self.tiers[&tier]
    }
}

/// What the parser says, which leaves out the line where it is the very beginning.
fn with_line(error: &serde_yaml::Error) -> String {
    match error.location() {
        Some(place) if place.index() > 0 => error.to_string(),
        Some(_) | None => format!("{error} at line 1"),
    }
}

/// A contradiction, and the keys that lead to it.
struct Problem {
    path: Vec<String>,
    reason: String,
}

impl Problem {
    fn new(path: &[&str], reason: impl Into<String>) -> Self {
        Problem { path: path.iter().map(|key| (*key).to_owned()).collect(), reason: reason.into() }
    }

    /// The line of the innermost key of the path that the text shows.
    fn line(&self, text: &str) -> usize {
        let mut found = 1;
        let mut lines = text.lines().enumerate();
        for key in &self.path {
            let Some((number, _)) = lines.by_ref().find(|(_, line)| {
                line.trim_start().strip_prefix(key.as_str()).is_some_and(|rest| rest.starts_with(':'))
            }) else {
                break;
            };
            found = number + 1;
        }
        found
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawCatalog {
    bot: RawSize,
    bot_request: RawSize,
    start_cpu: Option<Scalar>,
    sleeping_database: RawSize,
    backup_job: RawSize,
    tiers: BTreeMap<String, RawTier>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawTier {
    max_bots: i32,
    priority_class: String,
    total: RawSize,
    postgres: RawSize,
    redis: RawSize,
    dashboard: RawSize,
    monitoring: RawSize,
    hibernation: RawPolicy,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSize {
    cpu: Scalar,
    memory: Scalar,
}

/// A quantity that YAML may have read as a number (`cpu: 1`).
#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Text(String),
    Whole(u32),
    Fraction(f64),
}

impl Scalar {
    fn text(&self) -> String {
        match self {
            Scalar::Text(text) => text.clone(),
            Scalar::Whole(number) => number.to_string(),
            Scalar::Fraction(number) => number.to_string(),
        }
    }

    fn cpu(&self, path: &[&str]) -> Result<Cpu, Problem> {
        Cpu::parse(&self.text()).map_err(|error| Problem::new(path, format!("cpu {error}")))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawPolicy {
    mode: HibernationMode,
    stop_bots_after: String,
    stop_services_after: String,
    database_only_after: String,
    #[serde(default)]
    warn_before: RawLeads,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct RawLeads {
    stop_bots: Option<String>,
    stop_services: Option<String>,
    database_only: Option<String>,
}

/// `PostgreSQL` does not start reliably with less.
const LEAST_DATABASE: Bytes = Bytes::mi(128);

impl RawCatalog {
    fn check(&self) -> Result<Catalog, Problem> {
        for name in self.tiers.keys() {
            if !Tier::ALL.iter().any(|tier| tier.as_str() == name) {
                return Err(Problem::new(
                    &["tiers", name],
                    format!("unknown tier {name:?}; free, basic, pro, premium"),
                ));
            }
        }
        let bot = self.bot.check(&["bot"])?;
        let bot_request = self.bot_request.check(&["botRequest"])?;
        if !bot_request.fits_into(bot) {
            return Err(Problem::new(&["botRequest"], format!("{bot_request} is more than the bot's limit of {bot}")));
        }
        // A catalogue from before this key gives nobody more than the limits.
        let start_cpu = self.start_cpu.as_ref().map_or(Ok(Cpu(0)), |given| given.cpu(&["startCpu"]))?;
        let sleeping_database = self.sleeping_database.check(&["sleepingDatabase"])?;
        if sleeping_database.memory < LEAST_DATABASE {
            return Err(Problem::new(&["sleepingDatabase"], format!("memory must be at least {LEAST_DATABASE}")));
        }
        let backup_job = self.backup_job.check(&["backupJob"])?;
        let mut tiers = BTreeMap::new();
        for tier in Tier::ALL {
            let name = tier.as_str();
            let raw =
                self.tiers.get(name).ok_or_else(|| Problem::new(&["tiers"], format!("tier {name} is missing")))?;
            tiers.insert(tier, raw.check(name, sleeping_database)?);
        }
        Ok(Catalog { bot, bot_request, start_cpu, sleeping_database, backup_job, tiers })
    }
}

impl RawTier {
    fn check(&self, name: &str, sleeping: Size) -> Result<TierPlan, Problem> {
        let path = |field| ["tiers", name, field];
        if !(1..=200).contains(&self.max_bots) {
            return Err(Problem::new(&path("maxBots"), format!("maxBots {} is not between 1 and 200", self.max_bots)));
        }
        if self.priority_class.is_empty() || self.priority_class.starts_with("system-") {
            return Err(Problem::new(&path("priorityClass"), "priorityClass must be a name outside system-"));
        }
        let plan = TierPlan {
            max_bots: self.max_bots,
            priority_class: self.priority_class.clone(),
            total: self.total.check(&path("total"))?,
            postgres: self.postgres.check(&path("postgres"))?,
            redis: self.redis.check(&path("redis"))?,
            dashboard: self.dashboard.check(&path("dashboard"))?,
            monitoring: self.monitoring.check(&path("monitoring"))?,
            hibernation: self.hibernation.check(name)?,
        };
        let sum: Size = [plan.postgres, plan.redis, plan.dashboard, plan.monitoring].into_iter().sum();
        if sum != plan.total {
            return Err(Problem::new(
                &path("total"),
                format!("the four services of tier {name} sum up to {sum}, total says {}", plan.total),
            ));
        }
        if plan.postgres.memory < LEAST_DATABASE {
            return Err(Problem::new(&path("postgres"), format!("memory must be at least {LEAST_DATABASE}")));
        }
        if !sleeping.fits_into(plan.postgres) {
            return Err(Problem::new(&path("postgres"), format!("{} is less than sleepingDatabase", plan.postgres)));
        }
        if name == Tier::Free.as_str() && plan.hibernation.mode != HibernationMode::Auto {
            return Err(Problem::new(&["tiers", name, "hibernation", "mode"], "tier free must have mode Auto"));
        }
        Ok(plan)
    }
}

impl RawSize {
    fn check(&self, path: &[&str]) -> Result<Size, Problem> {
        let cpu = self.cpu.cpu(path)?;
        let memory =
            Bytes::parse(&self.memory.text()).map_err(|error| Problem::new(path, format!("memory {error}")))?;
        if cpu.0 < 2 || memory.0 < Bytes::MI {
            return Err(Problem::new(path, "cpu must be at least 2m and memory at least 1Mi"));
        }
        Ok(Size { cpu, memory })
    }
}

impl RawPolicy {
    fn check(&self, tier: &str) -> Result<Policy, Problem> {
        let read = |field: &str, text: &str| {
            duration::seconds(text)
                .map_err(|error| Problem::new(&["tiers", tier, "hibernation", field], format!("{field} {error}")))
        };
        let lead = |field: &str, text: Option<&String>, default: i64| {
            let path = ["tiers", tier, "hibernation", "warnBefore"];
            text.map_or(Ok(default), |text| {
                duration::seconds(text).map_err(|error| Problem::new(&path, format!("warnBefore.{field} {error}")))
            })
        };
        let (given, default) = (&self.warn_before, Leads::default());
        let policy = Policy {
            mode: self.mode,
            stop_bots_after: read("stopBotsAfter", &self.stop_bots_after)?,
            stop_services_after: read("stopServicesAfter", &self.stop_services_after)?,
            database_only_after: read("databaseOnlyAfter", &self.database_only_after)?,
            warn_before: Leads {
                stop_bots: lead("stopBots", given.stop_bots.as_ref(), default.stop_bots)?,
                stop_services: lead("stopServices", given.stop_services.as_ref(), default.stop_services)?,
                database_only: lead("databaseOnly", given.database_only.as_ref(), default.database_only)?,
            },
        };
        if policy.ascends() {
            Ok(policy)
        } else {
            Err(Problem::new(
                &["tiers", tier, "hibernation"],
                "stopBotsAfter, stopServicesAfter and databaseOnlyAfter must ascend",
            ))
        }
    }
}

impl Policy {
    /// Whether each stage comes no earlier than the one before it.
    pub fn ascends(&self) -> bool {
        self.stop_bots_after <= self.stop_services_after && self.stop_services_after <= self.database_only_after
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(cpu: i64, mi: i64) -> Size {
        Size { cpu: Cpu(cpu), memory: Bytes::mi(mi) }
    }

    #[test]
    fn built_in_sums_are_those_of_the_contract() {
        let catalog = Catalog::default();
        for (tier, bots, total) in [
            (Tier::Free, 1, size(500, 512)),
            (Tier::Basic, 3, size(1000, 1024)),
            (Tier::Pro, 10, size(2000, 2048)),
            (Tier::Premium, 50, size(4000, 4096)),
        ] {
            let plan = catalog.tier(tier);
            assert_eq!(plan.max_bots, bots);
            let sum: Size = [plan.postgres, plan.redis, plan.dashboard, plan.monitoring].into_iter().sum();
            assert_eq!((sum, plan.total), (total, total), "{tier}");
        }
        assert_eq!(catalog.bot, size(200, 512));
        assert_eq!(catalog.bot_request, size(100, 256));
        assert_eq!(catalog.sleeping_database, size(50, 128));
        assert_eq!(catalog.start_cpu, Cpu(2_000));
    }

    #[test]
    fn a_catalogue_without_cpu_for_starting_pods_gives_none() {
        let text: Vec<&str> = BUILT_IN.lines().filter(|line| !line.starts_with("startCpu")).collect();
        assert_eq!(Catalog::parse("tiers.yaml", &text.join("\n")).expect("a catalogue").start_cpu, Cpu(0));
    }

    #[test]
    fn leads_have_defaults_one_by_one() {
        let at = |text: &str| Catalog::parse("tiers.yaml", text).expect(text).tier(Tier::Free).hibernation.warn_before;
        assert_eq!(at(BUILT_IN), Leads { stop_bots: 259_200, stop_services: 86_400, database_only: 86_400 });
        let text = BUILT_IN.replacen(
            "databaseOnlyAfter: 30d",
            "databaseOnlyAfter: 30d\n      warnBefore: {stopServices: 5s}",
            1,
        );
        assert_eq!(at(&text), Leads { stop_services: 5, ..Leads::default() });
    }

    /// Replaces the `nth` occurrence (from 0) and returns the message.
    fn refused(from: &str, nth: usize, to: &str) -> String {
        let at = BUILT_IN.match_indices(from).nth(nth).expect(from).0;
        let text = format!("{}{to}{}", &BUILT_IN[..at], &BUILT_IN[at + from.len()..]);
        Catalog::parse("tiers.yaml", &text).expect_err(to).to_string()
    }

    #[test]
    fn refuses_with_line_and_reason() {
        let line = |needle: &str, nth: usize| {
            BUILT_IN.lines().enumerate().filter(|(_, line)| line.contains(needle)).nth(nth).expect(needle).0 + 1
        };
        let message = refused("{cpu: 400m, memory: 352Mi}", 0, "{cpu: 400m, memory: 353Mi}");
        assert!(message.starts_with(&format!("tiers.yaml:{}: ", line("total:", 1))), "{message}");
        assert!(message.contains("sum up to cpu 1 / memory 1025Mi, total says cpu 1 / memory 1Gi"), "{message}");
        let message = refused("stopBotsAfter: 30d", 1, "stopBotsAfter: 31d");
        assert!(message.starts_with(&format!("tiers.yaml:{}: ", line("hibernation:", 3))), "{message}");
        let message = refused("stopBotsAfter: 7d", 0, "stopBotsAfter: 1w");
        assert!(message.starts_with(&format!("tiers.yaml:{}: stopBotsAfter ", line("stopBotsAfter", 0))), "{message}");
        assert!(refused("maxBots: 3", 0, "maxBotz: 3").contains("maxBotz"));
        assert!(refused("maxBots: 3", 0, "maxBotz: 3").contains("line"));
        assert!(Catalog::parse("tiers.yaml", "a: 1").expect_err("a").to_string().ends_with("at line 1"));
        let lead = "databaseOnlyAfter: 30d\n      warnBefore: {stopBots: 3w}";
        let message = refused("databaseOnlyAfter: 30d", 0, lead);
        assert!(message.contains(&format!(":{}: warnBefore.stopBots ", line("databaseOnlyAfter", 0) + 1)), "{message}");
        assert!(refused("mode: Auto", 0, "mode: Never").contains("tier free must have mode Auto"));
        assert!(refused("  premium:", 0, "  platinum:").contains("unknown tier"));
        assert!(refused("maxBots: 50", 0, "maxBots: 0").contains("between 1 and 200"));
        assert!(refused("memory: 128Mi}", 0, "memory: 64Mi}").contains("at least 128Mi"));
        assert!(refused("startCpu: 2", 0, "startCpu: two").contains(&format!(":{}: cpu \"two\"", line("startCpu", 0))));
    }
}

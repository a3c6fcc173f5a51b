//! Validation of a Tenant against its tier.

use kube::ResourceExt;

use super::bots::{FleetFacts, allot};
use super::fleet::{self, FleetContext};
use super::{Findings, LEAST, Problem};
use crate::api::tenant::{Hibernation, TenantFleet};
use crate::api::{BotFleetSpec, DeletionPolicy, Tenant, Tier};
use crate::domain::catalog::{Catalog, Policy, TierPlan};
use crate::domain::duration;
use crate::domain::names;
use crate::domain::quantity::{Bytes, Size};

/// What validation needs to know of a WorkerPool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolFacts {
    /// Its name, which is the value of the node label `torpor.dev/pool`.
    pub name: String,
    /// Tiers it serves.
    pub tiers: Vec<Tier>,
}

/// A Tenant without contradictions, with everything read that its plan needs.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidatedTenant {
    /// Name of the Tenant.
    pub name: String,
    /// Namespace of its stack.
    pub namespace: String,
    /// Its uid; none before it was stored, as in `torpor render`.
    pub uid: Option<String>,
    /// Generation of the spec that was read; 0 before it was stored.
    pub generation: i64,
    /// Its tier.
    pub tier: Tier,
    /// What the tier gives.
    pub plan: TierPlan,
    /// Limits of one bot, from the catalogue.
    pub bot: Size,
    /// Requests of one bot, from the catalogue.
    pub bot_request: Size,
    /// Limits of the database in stage DatabaseOnly.
    pub sleeping_database: Size,
    /// Room in the quota for one backup job.
    pub backup_job: Size,
    /// PostgreSQL.
    pub database: Database,
    /// Redis.
    pub redis: Redis,
    /// Dashboard.
    pub dashboard: Dashboard,
    /// Limits of the metrics exporter.
    pub monitoring: Size,
    /// When it sleeps: the tier's policy with the Tenant's overrides.
    pub policy: Policy,
    /// Sorted names of the WorkerPools that serve the tier. Empty when there is none.
    pub pools: Vec<String>,
    /// Fleets written inside the Tenant, by name.
    pub fleets: Vec<(String, BotFleetSpec)>,
    /// What happens to the data when the Tenant is deleted.
    pub deletion_policy: DeletionPolicy,
}

/// PostgreSQL of a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Database {
    /// Its image.
    pub image: String,
    /// Size of its volume.
    pub storage: Bytes,
    /// Its limits while awake.
    pub size: Size,
}

/// Redis of a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redis {
    /// Its image.
    pub image: String,
    /// Size of its volume; none keeps its contents in memory and on the node.
    pub storage: Option<Bytes>,
    /// Its limits.
    pub size: Size,
}

/// Dashboard of a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dashboard {
    /// Its image.
    pub image: String,
    /// Host name under which it is reached.
    pub host: Option<String>,
    /// Its limits.
    pub size: Size,
}

impl ValidatedTenant {
    /// What the tenant's fleets need to know of it.
    pub fn fleet_context(&self) -> FleetContext {
        FleetContext {
            tenant: self.name.clone(),
            namespace: self.namespace.clone(),
            tier: self.tier,
            priority_class: self.plan.priority_class.clone(),
            max_bots: self.plan.max_bots,
            bot: self.bot,
            bot_request: self.bot_request,
            pools: self.pools.clone(),
        }
    }
}

/// PostgreSQL does not start reliably with less memory.
const LEAST_DATABASE: Size = Size { cpu: LEAST.cpu, memory: Bytes::mi(128) };
/// An empty database with its smallest write-ahead log takes about 100Mi.
const LEAST_DATABASE_STORAGE: Bytes = Bytes::mi(512);
/// Room for two snapshots of the smallest Redis.
const LEAST_REDIS_STORAGE: Bytes = Bytes::mi(64);

/// Reads a Tenant.
///
/// # Errors
/// Every [`Problem`] it has.
pub fn tenant(tenant: &Tenant, catalog: &Catalog, pools: &[PoolFacts]) -> Result<ValidatedTenant, Vec<Problem>> {
    let mut findings = Findings::default();
    let name = tenant.name_any();
    if name.is_empty() {
        findings.add("metadata.name", "is missing");
    }
    let spec = &tenant.spec;
    let plan = catalog.tier(spec.tier);
    let policy = policy(&mut findings, plan.hibernation, spec.hibernation.as_ref());

    let total = plan.total;
    let redis = spec.redis.clone().unwrap_or_default();
    let dashboard = spec.dashboard.clone().unwrap_or_default();
    let mut size = |field: &str, given: &Option<_>, share, least| {
        findings.size(&format!("spec.{field}.resources"), given.as_ref(), share, least, total)
    };
    let database_size = size("database", &spec.database.resources, plan.postgres, LEAST_DATABASE);
    let redis_size = size("redis", &redis.resources, plan.redis, LEAST);
    let dashboard_size = size("dashboard", &dashboard.resources, plan.dashboard, LEAST);
    let sum = database_size + redis_size + dashboard_size + plan.monitoring;
    if !sum.fits_into(total) {
        findings.add(
            "spec",
            format_args!(
                "database, redis, dashboard and monitoring ask for {sum} in sum, tier {} has {total}; lower one of their resources or choose a larger tier",
                spec.tier
            ),
        );
    }

    let validated = ValidatedTenant {
        namespace: names::namespace(&name),
        name,
        uid: tenant.metadata.uid.clone(),
        generation: tenant.metadata.generation.unwrap_or_default(),
        tier: spec.tier,
        plan: plan.clone(),
        bot: catalog.bot,
        bot_request: catalog.bot_request,
        sleeping_database: catalog.sleeping_database,
        backup_job: catalog.backup_job,
        database: Database {
            image: spec.database.image.clone(),
            storage: findings.bytes("spec.database.storage", &spec.database.storage, LEAST_DATABASE_STORAGE),
            size: database_size,
        },
        redis: Redis {
            image: redis.image,
            storage: redis
                .storage
                .map(|storage| findings.bytes("spec.redis.storage", &storage, LEAST_REDIS_STORAGE)),
            size: redis_size,
        },
        dashboard: Dashboard { image: dashboard.image, host: dashboard.host, size: dashboard_size },
        monitoring: plan.monitoring,
        policy,
        pools: serving(spec.tier, pools),
        fleets: spec.fleets.iter().map(|fleet| (fleet.name.clone(), fleet.spec.clone())).collect(),
        deletion_policy: spec.deletion_policy,
    };
    fleets(&mut findings, &spec.fleets, &validated.fleet_context());
    findings.finish(validated)
}

/// Sorted names of the pools that serve a tier.
fn serving(tier: Tier, pools: &[PoolFacts]) -> Vec<String> {
    let mut names: Vec<String> =
        pools.iter().filter(|pool| pool.tiers.contains(&tier)).map(|pool| pool.name.clone()).collect();
    names.sort();
    names.dedup();
    names
}

/// The tier's policy with the given parts replaced. CEL compares only parts that are given, so the
/// order is checked again here, where all three are known.
fn policy(findings: &mut Findings, tier: Policy, given: Option<&Hibernation>) -> Policy {
    let Some(given) = given else { return tier };
    let mut read = |field: &str, text: Option<&String>, default: i64| match text.map(|text| duration::seconds(text)) {
        None => default,
        Some(Ok(seconds)) => seconds,
        Some(Err(error)) => {
            findings.add(&format!("spec.hibernation.{field}"), error);
            default
        }
    };
    let merged = Policy {
        mode: given.mode.unwrap_or(tier.mode),
        stop_bots_after: read("stopBotsAfter", given.stop_bots_after.as_ref(), tier.stop_bots_after),
        stop_services_after: read("stopServicesAfter", given.stop_services_after.as_ref(), tier.stop_services_after),
        database_only_after: read("databaseOnlyAfter", given.database_only_after.as_ref(), tier.database_only_after),
    };
    if !merged.ascends() {
        findings.add(
            "spec.hibernation",
            format_args!(
                "stopBotsAfter {}, stopServicesAfter {} and databaseOnlyAfter {} (the tier's where not given) must not descend; give the later ones, too",
                words(merged.stop_bots_after),
                words(merged.stop_services_after),
                words(merged.database_only_after),
            ),
        );
    }
    merged
}

/// A duration in the largest unit that divides it.
fn words(seconds: i64) -> String {
    [("d", 86_400), ("h", 3_600), ("m", 60)]
        .into_iter()
        .find(|(_, unit)| seconds % unit == 0)
        .map_or_else(|| format!("{seconds}s"), |(unit, size)| format!("{}{unit}", seconds / size))
}

/// Checks every fleet by itself, and then whether the bots that would start fit into the tier.
fn fleets(findings: &mut Findings, fleets: &[TenantFleet], context: &FleetContext) {
    let wanted: Vec<FleetFacts> = fleets
        .iter()
        .map(|fleet| FleetFacts { name: fleet.name.clone(), created: None, wanted: fleet.spec.replicas })
        .collect();
    let started = allot(context.max_bots, &wanted);
    let mut sum = Size::default();
    for fleet in fleets {
        let size = fleet::check(findings, &format!("spec.fleets[{}]", fleet.name), &fleet.spec, context);
        sum = sum + size * i64::from(started.get(&fleet.name).copied().unwrap_or_default());
    }
    let room = context.room();
    if !sum.fits_into(room) {
        findings.add(
            "spec.fleets",
            format_args!(
                "bots ask for {sum} in sum, tier {} has {room} for them; lower resources or replicas",
                context.tier
            ),
        );
    }
}

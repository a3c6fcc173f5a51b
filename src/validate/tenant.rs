//! Validation of a Tenant against its tier.

use kube::ResourceExt;

use super::bots::{FleetFacts, allot};
use super::fleet::{self, FleetContext};
use super::{Findings, LEAST, Problem};
use crate::api::tenant::TenantFleet;
use crate::api::{BotFleetSpec, DeletionPolicy, Tenant, TenantSpec, Tier};
use crate::domain::catalog::{Catalog, Policy, TierPlan};
use crate::domain::duration;
use crate::domain::names;
use crate::domain::quantity::{Bytes, Cpu, Size};

/// What validation needs to know of a `WorkerPool`.
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
    /// CPU that a pod may use during a wake-up until it is ready, from the catalogue.
    pub start_cpu: Cpu,
    /// Limits of the database in stage `DatabaseOnly`.
    pub sleeping_database: Size,
    /// Room in the quota for one backup job.
    pub backup_job: Size,
    /// `PostgreSQL`.
    pub database: Database,
    /// Redis.
    pub redis: Redis,
    /// Dashboard.
    pub dashboard: Dashboard,
    /// Limits of the metrics exporter.
    pub monitoring: Size,
    /// When it sleeps: the tier's policy with the Tenant's overrides.
    pub policy: Policy,
    /// Sorted names of the `WorkerPools` that serve the tier. Empty when there is none.
    pub pools: Vec<String>,
    /// Fleets written inside the Tenant, by name.
    pub fleets: Vec<(String, BotFleetSpec)>,
    /// What happens to the data when the Tenant is deleted.
    pub deletion_policy: DeletionPolicy,
}

/// `PostgreSQL` of a tenant.
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

/// `PostgreSQL` does not start reliably with less memory.
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
    let policy = policy(&mut findings, spec, catalog);

    let total = plan.total;
    let mut size = |field: &str, given: &Option<_>, share, least| {
        findings.size(&format!("spec.{field}.resources"), given.as_ref(), share, least, total)
    };
    let database_size = size("database", &spec.database.resources, plan.postgres, LEAST_DATABASE);
    let redis_size = size("redis", &spec.redis.resources, plan.redis, LEAST);
    let dashboard_size = size("dashboard", &spec.dashboard.resources, plan.dashboard, LEAST);
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
        start_cpu: catalog.start_cpu,
        sleeping_database: catalog.sleeping_database,
        backup_job: catalog.backup_job,
        database: Database {
            image: spec.database.image.clone(),
            storage: findings.bytes("spec.database.storage", &spec.database.storage, LEAST_DATABASE_STORAGE),
            size: database_size,
        },
        redis: Redis {
            image: spec.redis.image.clone(),
            storage: spec
                .redis
                .storage
                .as_ref()
                .map(|storage| findings.bytes("spec.redis.storage", storage, LEAST_REDIS_STORAGE)),
            size: redis_size,
        },
        dashboard: Dashboard {
            image: spec.dashboard.image.clone(),
            host: spec.dashboard.host.clone(),
            size: dashboard_size,
        },
        monitoring: plan.monitoring,
        policy,
        pools: serving(spec.tier, pools),
        fleets: spec.fleets.iter().map(|fleet| (fleet.name.clone(), fleet.spec.clone())).collect(),
        deletion_policy: spec.deletion_policy,
    };
    fleets(&mut findings, &spec.fleets, &validated.fleet_context());
    findings.finish(validated)
}

/// When a Tenant sleeps: its tier's policy with its overrides. Tier free cannot leave Auto, nor its durations.
///
/// # Errors
/// Every [`Problem`] of `spec.hibernation`.
pub fn hibernation(spec: &TenantSpec, catalog: &Catalog) -> Result<Policy, Vec<Problem>> {
    let mut findings = Findings::default();
    let policy = policy(&mut findings, spec, catalog);
    findings.finish(policy)
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
fn policy(findings: &mut Findings, spec: &TenantSpec, catalog: &Catalog) -> Policy {
    let tier = catalog.tier(spec.tier).hibernation;
    // CEL refuses overrides of tier free, and what was stored before that rule has no effect.
    let Some(given) = spec.hibernation.as_ref().filter(|_| spec.tier != Tier::Free) else { return tier };
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
        warn_before: tier.warn_before,
    };
    if !merged.ascends() {
        findings.add(
            "spec.hibernation",
            format_args!(
                "stopBotsAfter {}, stopServicesAfter {} and databaseOnlyAfter {} (the tier's where not given) must not descend; give the later ones, too",
                duration::words(merged.stop_bots_after),
                duration::words(merged.stop_services_after),
                duration::words(merged.database_only_after),
            ),
        );
    }
    merged
}

/// Checks every fleet by itself, and then whether the bots that would start fit into the tier.
fn fleets(findings: &mut Findings, fleets: &[TenantFleet], context: &FleetContext) {
    // As if all of them ran, and so by number alone: bots that are too many are left out and no error, sizes that do not fit are one.
    let facts = |fleet: &TenantFleet| FleetFacts {
        name: fleet.name.clone(),
        created: None,
        wanted: fleet.spec.wanted(),
        size: fleet::check(findings, &format!("spec.fleets[{}]", fleet.name), &fleet.spec, context),
        running: i32::MAX,
    };
    let facts: Vec<FleetFacts> = fleets.iter().map(facts).collect();
    let shares = allot(context.max_bots, context.room(), &facts);
    let bots = |fleet: &FleetFacts| shares.get(&fleet.name).copied().unwrap_or_default().bots;
    let sum: Size = facts.iter().map(|fleet| fleet.size * i64::from(bots(fleet))).sum();
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

#[cfg(test)]
#[allow(clippy::needless_pass_by_value, reason = "`json!` reads better in place")]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::api::HibernationMode;
    use crate::domain::catalog::Leads;

    fn read(spec: Value) -> Result<ValidatedTenant, String> {
        let pools = ["b", "a", "other"].map(|name| PoolFacts {
            name: name.to_owned(),
            tiers: if name == "other" { vec![Tier::Free] } else { vec![Tier::Basic, Tier::Pro] },
        });
        let resource =
            json!({"apiVersion": "torpor.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": "alice"}, "spec": spec});
        let resource: Tenant = serde_json::from_value(resource).expect("a Tenant");
        tenant(&resource, &Catalog::default(), &pools)
            .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    }

    fn bots(name: &str, replicas: i32, resources: Value) -> Value {
        let strategy = json!({"kind": "v1", "config": "strategy: a"});
        json!({"name": name, "replicas": replicas, "resources": resources, "strategy": strategy})
    }

    #[test]
    fn merges_what_is_given_with_the_tier() {
        let hibernation = json!({"mode": "Prompt", "stopBotsAfter": "10d"});
        let read = read(json!({"tier": "basic", "hibernation": hibernation})).expect("valid");
        let day = 86_400;
        let merged = Policy {
            mode: HibernationMode::Prompt,
            stop_bots_after: 10 * day,
            stop_services_after: 14 * day,
            database_only_after: 30 * day,
            warn_before: Leads::default(),
        };
        assert_eq!(read.policy, merged);
        assert_eq!(read.pools, ["a", "b"]);
        assert_eq!(read.database.size, read.plan.postgres);
        assert_eq!((read.namespace.as_str(), read.uid, read.generation), ("tenant-alice", None, 0));
    }

    #[test]
    fn without_a_pool_pods_wait_for_the_default_one() {
        let read = read(json!({"tier": "premium"})).expect("valid");
        assert!(read.pools.is_empty());
        assert_eq!(read.fleet_context().affinity_pools(), ["worker-premium"]);
    }

    #[test]
    fn refuses_durations_that_descend_only_with_the_tier() {
        let message = read(json!({"tier": "basic", "hibernation": {"stopBotsAfter": "20d"}})).expect_err("20 > 14");
        assert!(message.contains("stopBotsAfter 20d, stopServicesAfter 14d and databaseOnlyAfter 30d"), "{message}");
    }

    #[test]
    fn names_both_sums_of_services() {
        let message =
            read(json!({"tier": "basic", "redis": {"resources": {"memory": "512Mi"}}})).expect_err("too much");
        assert_eq!(message.lines().count(), 1);
        assert!(
            message.contains("ask for cpu 1 / memory 1376Mi in sum, tier basic has cpu 1 / memory 1Gi"),
            "{message}"
        );
        let shifted = json!({"tier": "basic", "database": {"resources": {"memory": "256Mi"}}, "redis": {"resources": {"memory": "256Mi"}}});
        assert!(read(shifted).is_ok());
    }

    #[test]
    fn tells_all_problems_at_once() {
        let message = read(json!({
            "tier": "pro",
            "database": {"storage": "1Mi", "resources": {"memory": "64Mi", "cpu": "9"}},
            "fleets": [bots("a", 1, json!({"cpu": "x"}))],
        }))
        .expect_err("four problems");
        for part in [
            "database.resources.cpu: 9",
            "database.resources.memory: 64Mi",
            "database.storage: 1Mi",
            "fleets[a].resources.cpu: \"x\"",
        ] {
            assert!(message.contains(part), "{part} in {message}");
        }
        assert_eq!(message.lines().count(), 4, "{message}");
    }

    #[test]
    fn bots_fit_as_many_as_the_tier_starts() {
        let double = json!({"cpu": "400m", "memory": "1Gi"});
        let with = |fleets: Vec<Value>| read(json!({"tier": "basic", "fleets": fleets}));
        assert!(with(vec![bots("a", 200, json!(null))]).is_ok(), "a surplus is not started, and no error");
        assert!(with(vec![bots("a", 1, double.clone())]).is_ok());
        let message = with(vec![bots("a", 2, double.clone())]).expect_err("4 bots' worth");
        assert!(message.contains("bots ask for cpu 800m / memory 2Gi in sum, tier basic has cpu 600m / memory 1536Mi"));
        assert!(with(vec![bots("a", 1, double), bots("b", 2, json!(null))]).is_err());
    }

    #[test]
    fn sizes_beyond_all_measure_are_told_and_do_not_overflow() {
        let huge = json!({"cpu": "999999999999k", "memory": "999999999999"});
        assert!(
            read(json!({"tier": "free", "database": {"resources": huge}, "fleets": [bots("a", 200, huge)]})).is_err()
        );
    }
}

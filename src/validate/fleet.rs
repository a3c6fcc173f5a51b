//! Validation of a `BotFleet` against the tier of its tenant.

use kube::ResourceExt;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{Findings, LEAST, Problem, default_pool};
use crate::api::bot_fleet::OWN_SECRET;
use crate::api::{BotFleet, BotFleetSpec, StrategyKind, Tier};
use crate::domain::names;
use crate::domain::quantity::{Bytes, Cpu, Size};

/// What a fleet needs to know of its tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetContext {
    /// Name of the tenant.
    pub tenant: String,
    /// Namespace of tenant and fleet.
    pub namespace: String,
    /// Tier of the tenant.
    pub tier: Tier,
    /// `PriorityClass` of the tier's pods.
    pub priority_class: String,
    /// Most bots of all fleets together.
    pub max_bots: i32,
    /// Limits of one bot, from the catalogue.
    pub bot: Size,
    /// Requests of one bot, from the catalogue.
    pub bot_request: Size,
    /// Sorted names of the `WorkerPools` that serve the tier. Empty when there is none.
    pub pools: Vec<String>,
}

impl FleetContext {
    /// What all bots of the tenant may use in sum.
    pub fn room(&self) -> Size {
        self.bot * i64::from(self.max_bots)
    }

    /// Names of the pools whose nodes pods may run on: those that serve the tier or, when there is
    /// none, the tier's default pool, so that pods wait for it instead of running anywhere.
    pub fn affinity_pools(&self) -> Vec<String> {
        if self.pools.is_empty() { vec![default_pool(self.tier).to_owned()] } else { self.pools.clone() }
    }

    /// Limits of one bot of a fleet; the catalogue's where its own are refused.
    pub fn size(&self, spec: &BotFleetSpec) -> Size {
        check(&mut Findings::default(), "spec", spec, self)
    }

    /// Whether the tier has room for all bots of a fleet that it would start if there were no other, and this one were not paused.
    pub fn has_room_for(&self, spec: &BotFleetSpec, size: Size) -> bool {
        self.all_bots(spec, size).fits_into(self.room())
    }

    fn all_bots(&self, spec: &BotFleetSpec, size: Size) -> Size {
        size * i64::from(spec.replicas.clamp(0, self.max_bots))
    }

    /// What one bot of a fleet asks of the scheduler.
    pub fn bot_request(&self, spec: &BotFleetSpec) -> Size {
        self.request(self.size(spec))
    }

    /// Requests of a bot with these limits, in the catalogue's proportion of the two.
    fn request(&self, limit: Size) -> Size {
        Size {
            cpu: Cpu(share(limit.cpu.0, self.bot_request.cpu.0, self.bot.cpu.0)),
            memory: Bytes(share(limit.memory.0, self.bot_request.memory.0, self.bot.memory.0)),
        }
    }
}

/// `of * part / whole`, rounded down and at least 1, without an overflow in between.
fn share(of: i64, part: i64, whole: i64) -> i64 {
    let share = i128::from(of) * i128::from(part) / i128::from(whole.max(1));
    i64::try_from(share).unwrap_or(of).max(1)
}

/// What the operator wants of a fleet at this moment, besides its spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Desired {
    /// Bots that the tier leaves to this fleet, from [`super::allot`].
    pub replicas: i32,
}

/// A `BotFleet` without contradictions, with everything read that its plan needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidatedFleet {
    /// Name of the `BotFleet`.
    pub name: String,
    /// Its uid; none before it was stored, as in `torpor render`.
    pub uid: Option<String>,
    /// What it needs to know of its tenant.
    pub context: FleetContext,
    /// Bots that run while the tenant is awake: 0 while paused, never more than the tier leaves.
    pub replicas: i32,
    /// Image of the bots.
    pub image: String,
    /// Kind of configuration.
    pub kind: StrategyKind,
    /// Text of the configuration file, with its placeholders.
    pub config: String,
    /// Secret with exchange credentials.
    pub credentials_secret: Option<String>,
    /// Limits of one bot.
    pub size: Size,
    /// Requests of one bot.
    pub request: Size,
    /// Size of one bot's volume.
    pub storage: Bytes,
    /// Seconds a bot has to cancel its orders.
    pub grace_seconds: i64,
}

/// The trades database of a bot starts with a few megabytes, a day of logs takes some more.
const LEAST_STORAGE: Bytes = Bytes::mi(50);
/// A `ConfigMap` holds 1 MiB; the fleet's holds more than this file.
const MOST_CONFIG: usize = 900_000;

/// Reads a `BotFleet`; `config` is the text of its strategy file, wherever that came from.
///
/// # Errors
/// Every [`Problem`] it has.
pub fn fleet(
    fleet: &BotFleet,
    context: &FleetContext,
    desired: Desired,
    config: &str,
) -> Result<ValidatedFleet, Vec<Problem>> {
    let mut findings = Findings::default();
    let name = fleet.name_any();
    if name.is_empty() {
        findings.add("metadata.name", "is missing");
    }
    let spec = &fleet.spec;
    let size = check(&mut findings, "spec", spec, context);
    // Of a fleet that was stored before the API server refused it.
    if spec.credentials_secret.as_deref() == Some(names::SECRET) {
        findings.add("spec.credentialsSecret", OWN_SECRET);
    }
    if !context.has_room_for(spec, size) {
        findings.add(
            "spec.resources",
            format_args!(
                "{} bots ask for {} in sum, tier {} has {} for all bots; lower resources or replicas",
                spec.replicas,
                context.all_bots(spec, size),
                context.tier,
                context.room()
            ),
        );
    }
    check_config(&mut findings, spec.strategy.kind, config);
    findings.finish(ValidatedFleet {
        name,
        uid: fleet.metadata.uid.clone(),
        context: context.clone(),
        replicas: if spec.paused { 0 } else { desired.replicas.clamp(0, context.max_bots) },
        image: spec.image.clone(),
        kind: spec.strategy.kind,
        config: config.to_owned(),
        credentials_secret: spec.credentials_secret.clone(),
        size,
        request: context.request(size),
        storage: Bytes::parse(&spec.storage).unwrap_or(LEAST_STORAGE),
        grace_seconds: spec.termination_grace_period_seconds,
    })
}

/// Checks what can be told of a fleet's spec without its configuration, and returns the limits of
/// one of its bots.
pub(super) fn check(findings: &mut Findings, field: &str, spec: &BotFleetSpec, context: &FleetContext) -> Size {
    findings.bytes(&format!("{field}.storage"), &spec.storage, LEAST_STORAGE);
    if let Some((major, minor)) = release(&spec.image).filter(|release| *release < FIRST_RELEASE) {
        findings.add(
            &format!("{field}.image"),
            format_args!("version {major}.{minor} cannot stop its orders when it is stopped; use 2.16 or later"),
        );
    }
    if spec.strategy.config.is_some() == spec.strategy.config_map_ref.is_some() {
        findings.add(&format!("{field}.strategy"), "needs exactly one of config and configMapRef");
    }
    findings.size(&format!("{field}.resources"), spec.resources.as_ref(), context.bot, LEAST, context.room())
}

/// The first release with `hbot start --foreground`, which stops gracefully on SIGTERM.
const FIRST_RELEASE: (u32, u32) = (2, 16);

/// Release of an official image tag such as `version-2.16.0`; none when the tag tells none.
fn release(image: &str) -> Option<(u32, u32)> {
    let (_, version) = image.split_once(":version-")?;
    let mut parts = version.split(['.', '@', '-']).map(str::parse::<u32>);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

/// The key of a configuration by which Hummingbot finds what to run.
pub const fn config_key(kind: StrategyKind) -> &'static str {
    match kind {
        StrategyKind::Script => "script_file_name",
        StrategyKind::Controller => "controller_name",
        StrategyKind::V1 => "strategy",
    }
}

/// libyaml walks all levels that are open for each token, and takes the square of the number of directives: a text of 900 KB that opens
/// brackets and then lists numbers occupies it for seconds to minutes, in which no fleet of any tenant is looked at. Where a bracket stands in
/// quotes only a parser can tell, so all of them count.
const MOST_BRACKETS: usize = 2_000;
const MOST_TAGS: usize = 10;
/// Brackets times bytes: at most some tenths of a second.
const MOST_WORK: usize = 20_000_000;

/// Finds what would make every bot of the fleet end at once with a configuration error.
fn check_config(findings: &mut Findings, kind: StrategyKind, config: &str) {
    let field = "spec.strategy";
    if config.len() > MOST_CONFIG {
        findings.add(field, format_args!("the configuration has {} bytes, at most {MOST_CONFIG} fit", config.len()));
        return;
    }
    let brackets = config.matches(['[', '{']).count();
    let most = MOST_BRACKETS.min(MOST_WORK / config.len().max(1));
    if brackets > most || config.matches("%TAG").count() > MOST_TAGS {
        findings.add(
            field,
            format_args!(
                "the configuration has more than {most} brackets in its {} bytes or {MOST_TAGS} %TAG directives; write its lists and mappings as lines",
                config.len()
            ),
        );
        return;
    }
    // Placeholders are replaced before the file is YAML; a number and a word stand for any value.
    let sample = config.replace("${BOT_INDEX}", "0").replace("${BOT_NAME}", "bot");
    let parsed: Keys = match serde_yaml::from_str(&sample) {
        Ok(keys) => keys,
        Err(twice) if twice.to_string().contains("duplicate") => {
            return findings.add(field, format_args!("the configuration is not YAML: {twice}"));
        }
        // What is YAML and no mapping has no key either.
        Err(_) => match serde_yaml::from_str::<IgnoredAny>(&sample) {
            Ok(_) => Keys::default(),
            Err(error) => return findings.add(field, format_args!("the configuration is not YAML: {error}")),
        },
    };
    let found = match kind {
        StrategyKind::Script => parsed.script_file_name,
        StrategyKind::Controller => parsed.controller_name,
        StrategyKind::V1 => parsed.strategy,
    };
    if found.is_none() {
        let needed = config_key(kind);
        findings
            .add(field, format_args!("the configuration has no key {needed}, by which Hummingbot finds what to run"));
    }
    let first = sample.lines().map(|line| line.trim_start_matches("---").trim());
    let braces =
        first.filter(|line| !line.is_empty() && !line.starts_with('#')).take(1).any(|line| line.starts_with('{'));
    if kind == StrategyKind::Controller && braces {
        findings.add(field, "a controller's configuration gets the line `id`, so write it as lines, not in braces");
    }
}

/// The keys of a configuration that are looked at. Values are passed over: read in full, a short text that refers to
/// itself many times (`&a`, `*a`) would take gigabytes.
#[derive(Default, Deserialize)]
struct Keys {
    script_file_name: Option<IgnoredAny>,
    controller_name: Option<IgnoredAny>,
    strategy: Option<IgnoredAny>,
}

#[cfg(test)]
#[allow(clippy::needless_pass_by_value, reason = "`json!` reads better in place")]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn context() -> FleetContext {
        let size = |cpu, mi| Size { cpu: Cpu(cpu), memory: Bytes::mi(mi) };
        FleetContext {
            tenant: "alice".to_owned(),
            namespace: "tenant-alice".to_owned(),
            tier: Tier::Basic,
            priority_class: "torpor-medium".to_owned(),
            max_bots: 3,
            bot: size(200, 512),
            bot_request: size(100, 256),
            pools: vec![],
        }
    }

    #[test]
    fn a_text_that_refers_to_itself_many_times_is_passed_over() {
        let many = format!("script_file_name: a.py\na: &a [{}]\nb: [{}]\n", "1,".repeat(8_000), "*a,".repeat(5_000));
        assert!(read(json!({}), 1, &many).is_ok());
    }

    #[test]
    fn a_text_that_nests_deeply_is_refused_unread() {
        let flat = format!("script_file_name: a.py\nlevels: [{}]\n", "[1, 2],".repeat(MOST_BRACKETS / 2));
        assert!(read(json!({}), 1, &flat).is_ok());
        // In quotes a bracket closes nothing.
        let wide = format!("{}{}", "[".repeat(MOST_BRACKETS - 1), "1,".repeat(440_000));
        for deep in [wide, "[?".repeat(400_000), "[\"]\",".repeat(100_000), "%TAG !a! b\n".repeat(50_000)] {
            let config = format!("script_file_name: a.py\nlevels: {deep}");
            assert!(read(json!({}), 1, &config).expect_err("deep").contains("as lines"));
        }
    }

    #[test]
    fn a_controller_is_written_in_lines() {
        let of = |config: &str| read(json!({"strategy": {"kind": "controller", "config": "-"}}), 1, config);
        assert!(of("# mine\n---\ncontroller_name: a\nb: {c: d}\n").is_ok());
        for braces in ["{\"controller_name\": \"a\"}", "# mine\n--- {controller_name: a}\n"] {
            assert!(of(braces).expect_err("braces").contains("not in braces"));
        }
    }

    fn read(changes: Value, replicas: i32, config: &str) -> Result<ValidatedFleet, String> {
        let mut spec = json!({"replicas": 3, "strategy": {"kind": "script", "config": "-"}});
        for (key, value) in changes.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        let resource = json!({"apiVersion": "torpor.dev/v1alpha1", "kind": "BotFleet", "metadata": {"name": "makers"}, "spec": spec});
        let resource: BotFleet = serde_json::from_value(resource).expect("a BotFleet");
        fleet(&resource, &context(), Desired { replicas }, config)
            .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    }

    const CONFIG: &str = "script_file_name: a.py\nindex: ${BOT_INDEX}\nnames: [${BOT_NAME}]\n";

    #[test]
    fn starts_what_is_left_and_nothing_while_paused() {
        assert_eq!(read(json!({}), 2, CONFIG).expect("valid").replicas, 2);
        assert_eq!(read(json!({}), 7, CONFIG).expect("valid").replicas, 3);
        assert_eq!(read(json!({}), -1, CONFIG).expect("valid").replicas, 0);
        assert_eq!(read(json!({"paused": true}), 2, CONFIG).expect("valid").replicas, 0);
    }

    #[test]
    fn requests_keep_the_proportion_of_the_catalogue() {
        let resources = json!({"resources": {"cpu": "150m", "memory": "300Mi"}});
        let fleet = read(resources, 3, CONFIG).expect("valid");
        assert_eq!(fleet.request, Size { cpu: Cpu(75), memory: Bytes::mi(150) });
        let message = read(json!({"resources": {"memory": "513Mi"}}), 3, CONFIG).expect_err("too much");
        assert!(message.contains("3 bots ask for cpu 600m / memory 1539Mi in sum"), "{message}");
    }

    #[test]
    fn finds_configurations_that_no_bot_would_start_with() {
        for (config, expected) in [
            ("a: [", "is not YAML"),
            ("a: b", "has no key script_file_name"),
            ("- script_file_name", "has no key script_file_name"),
            ("", "has no key script_file_name"),
            (&"x".repeat(900_001), "has 900001 bytes"),
        ] {
            let message = read(json!({}), 1, config).expect_err(expected);
            assert!(message.starts_with("spec.strategy: ") && message.contains(expected), "{message}");
        }
    }

    #[test]
    fn refuses_the_secret_of_the_database() {
        let message = read(json!({"credentialsSecret": "torpor-generated"}), 1, CONFIG).expect_err("its own");
        assert!(message.starts_with("spec.credentialsSecret: must not be"), "{message}");
    }

    #[test]
    fn refuses_releases_that_leave_orders_behind() {
        for (image, good) in [
            ("hummingbot/hummingbot:version-2.15.3", false),
            ("hummingbot/hummingbot:version-1.30.0", false),
            ("hummingbot/hummingbot:version-2.16.0", true),
            ("r.example.com:5000/own/hummingbot:version-3.0.1@sha256:ab", true),
            ("own/hummingbot:latest", true),
        ] {
            assert_eq!(read(json!({"image": image}), 1, CONFIG).is_ok(), good, "{image}");
        }
    }
}

//! One fleet: the `BotFleet` object of a Tenant, and the `ConfigMap` and `StatefulSet` of a `BotFleet`.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, EnvVar, ExecAction, Lifecycle, LifecycleHandler, Probe, VolumeMount,
};
use serde_json::json;

use super::pod::{
    self, DATA, Pod, container, exec_probe, field_env, mount, read_only_mount, secret_env, startup_probe, strings,
    text_env,
};
use super::scope::Scope;
use super::secret::BOT_PASSWORD;
use super::workload::{Workload, texts};
use super::{Child, hash};
use crate::api::{BotFleet, BotFleetSpec, StrategyKind};
use crate::domain::names::{self, Component, KEYS_VOLUME, annotation, label};
use crate::domain::quantity::Bytes;
use crate::validate::ValidatedFleet;

/// Any user but root; the image names none.
const USER: i64 = 10_001;
const HOME: &str = "/home/hummingbot";
/// Files of the fleet's `ConfigMap`.
const CONFIG: &str = "/etc/torpor";
/// Exchange credentials, in the init container only.
const EXCHANGE_KEYS: &str = "/run/secrets/exchange";
/// Key of a credentials Secret that holds the keystore password.
const PASSWORD_KEY: &str = "HBOT_PASSWORD";

/// What a start may take, in seconds: imports, and the markets' first data, on a fifth of a core. The startup probe asks about as
/// often. A bot that is stopped while it starts has it beside the time to cancel its orders, because it can be told to stop
/// only once it has started: orders of a run that ended by force may be open all the while.
const START_SECONDS: i32 = 600;

/// Lays out the writable configuration. Pod names hold no character that sed would take for more
/// than itself.
const INIT: &str = include_str!("bot/init.sh");
/// Tells whether this run of the bot has started its strategy.
const STARTED: &str = include_str!("bot/started.sh");
/// Waits until the bot can be asked to stop.
const STOP: &str = include_str!("bot/stop.sh");
/// Tells whether the bot still answers.
const ALIVE: &str = include_str!("bot/alive.sh");

/// The `BotFleet` object of a fleet written inside its Tenant.
pub(super) fn object(scope: &Scope, name: &str, spec: &BotFleetSpec) -> Child {
    let mut fleet = BotFleet::new(name, spec.clone());
    fleet.metadata = scope.owned(name, Component::Bot);
    // Already at its creation, so that there is no moment in which it could go without its bots' graceful stop.
    fleet.metadata.finalizers = Some(vec![names::FINALIZER.to_owned()]);
    let labels = fleet.metadata.labels.get_or_insert_default();
    labels.insert(label::FLEET.to_owned(), name.to_owned());
    Child::BotFleet(Box::new(fleet))
}

pub(super) fn plan(scope: &Scope, fleet: &ValidatedFleet, replicas: i32) -> Vec<Child> {
    let name = names::fleet_workload(&fleet.name);
    let client = client_conf(scope.namespace());
    let config = ConfigMap {
        metadata: scope.owned(&name, Component::Bot),
        data: Some(texts([
            ("strategy.yml", &fleet.config),
            ("conf_client.yml", &client),
            ("init.sh", INIT),
            ("started.sh", STARTED),
            ("alive.sh", ALIVE),
            ("stop.sh", STOP),
        ])),
        ..ConfigMap::default()
    };
    let workload = stateful_set(scope, fleet, &name, replicas);
    vec![Child::ConfigMap(config), Child::StatefulSet(Box::new(workload))]
}

/// Hummingbot completes the file with its defaults. Two of those would send data about the tenant
/// to third parties; they are off.
fn client_conf(namespace: &str) -> String {
    format!(
        "instance_id: {namespace}-${{BOT_NAME}}\n\
         anonymized_metrics_mode: anonymized_metrics_disabled\n\
         send_error_logs: false\n\
         log_level: INFO\n"
    )
}

/// Folder of a kind of configuration, and the flag that says so. The flag is needed: for a controller
/// Hummingbot writes a second file of the same name, which a restart of the container would find.
const fn folder(kind: StrategyKind) -> (&'static str, &'static str) {
    match kind {
        StrategyKind::Script => ("scripts", "--v2-script"),
        StrategyKind::Controller => ("controllers", "--controller"),
        StrategyKind::V1 => ("strategies", "--v1-strategy"),
    }
}

/// Size of `/tmp`. Where it is full a write fails; a bot that fills one on a disk is evicted, with a second to stop. It counts in the memory
/// that the bot may use, which is to go to the bot: the stock image needs a few MiB there. Whole MiB, for the kernel rounds up to pages, and
/// what lies above the limit is evicted here, too.
pub(super) fn scratch(memory: Bytes) -> Bytes {
    Bytes::mi((memory.0 / Bytes::mi(8).0).clamp(1, 64))
}

/// Name of the configuration file. Hummingbot names the trades database after it, up to the first
/// dot; a fleet's name has none, and stays the same for the fleet's life.
fn file(fleet: &str) -> String {
    format!("{fleet}.yml")
}

fn stateful_set(scope: &Scope, fleet: &ValidatedFleet, name: &str, replicas: i32) -> StatefulSet {
    let restart = hash::of(&json!({
        "image": fleet.image,
        "cpu": fleet.size.cpu.0,
        "memory": fleet.size.memory.0,
        "requests": [fleet.request.cpu.0, fleet.request.memory.0],
        "kind": folder(fleet.kind).0,
        "config": fleet.config,
        "credentials": fleet.credentials_secret,
        // What a pod has to stop is fixed when it is made.
        "grace": fleet.grace_seconds,
        "placement": scope.placement(),
    }));
    let mut annotations = pod::restart_annotation(&restart);
    annotations.insert(annotation::SAFE_TO_EVICT.to_owned(), "false".to_owned());
    let mut volumes = vec![
        pod::config("config", name),
        // Keystores are made anew at every start; in memory they never reach a disk.
        pod::memory("conf", Bytes::mi(16)),
        pod::memory("tmp", scratch(fleet.size.memory)),
    ];
    volumes.extend(fleet.credentials_secret.as_deref().map(|secret| pod::secret(KEYS_VOLUME, secret)));
    let pod = Pod {
        component: Component::Bot,
        user: USER,
        grace_seconds: fleet.grace_seconds + i64::from(START_SECONDS),
        init_containers: vec![init(scope, fleet)],
        container: bot(scope, fleet),
        volumes,
        annotations,
    };
    Workload { name, service: names::BOTS, replicas, claim: Some(fleet.storage), restart_hash: &restart }
        .stateful_set(scope, pod)
}

/// The image and user of the bot, so that what it writes is what the bot reads.
fn init(scope: &Scope, fleet: &ValidatedFleet) -> Container {
    let mut init = container("configure", &scope.settings.image(&fleet.image), fleet.request, fleet.size);
    init.command = Some(vec!["sh".to_owned(), format!("{CONFIG}/init.sh")]);
    let mut env = environment(fleet);
    env.extend([
        field_env("BOT_INDEX", "metadata.labels['apps.kubernetes.io/pod-index']"),
        field_env("BOT_NAME", "metadata.name"),
        text_env("CONFIG_FILE", &file(&fleet.name)),
        text_env("CONFIG_FOLDER", folder(fleet.kind).0),
        text_env("LOG_BYTES", &log_bytes(fleet.storage).to_string()),
    ]);
    init.env = Some(env);
    let mut mounts = mounts();
    mounts.extend(fleet.credentials_secret.as_deref().map(|_| read_only_mount(KEYS_VOLUME, EXCHANGE_KEYS)));
    init.volume_mounts = Some(mounts);
    init
}

/// Size of one log file. Hummingbot keeps the one that it writes and seven older ones: together a fifth of the volume, whose rest is
/// for trades, and no more than 100 MiB, for a volume that could not grow is smaller than asked.
fn log_bytes(volume: Bytes) -> i64 {
    const FILES: i64 = 8;
    (volume.0 / 5).min(Bytes::mi(100).0) / FILES
}

/// No shell between the kubelet and the bot: SIGTERM must reach it, for that is when it cancels its
/// orders.
fn bot(scope: &Scope, fleet: &ValidatedFleet) -> Container {
    let (_, kind) = folder(fleet.kind);
    let mut bot = container("bot", &scope.settings.image(&fleet.image), fleet.request, fleet.size);
    bot.command = Some(strings(&["hbot", "start", &file(&fleet.name), kind, "--foreground"]));
    bot.working_dir = Some(HOME.to_owned());
    bot.env = Some(environment(fleet));
    bot.volume_mounts = Some(mounts());
    let stop = ExecAction { command: Some(strings(&["sh", "/etc/torpor/stop.sh"])) };
    let pre_stop = LifecycleHandler { exec: Some(stop), ..LifecycleHandler::default() };
    bot.lifecycle = Some(Lifecycle { pre_stop: Some(pre_stop), ..Lifecycle::default() });
    // One that is restarted by its probes has had its time to start.
    let restart_grace = Some(fleet.grace_seconds);
    bot.startup_probe = Some(Probe {
        termination_grace_period_seconds: restart_grace,
        ..startup_probe("sh /etc/torpor/started.sh", START_SECONDS)
    });
    // A restart leaves orders untended, and every question makes the bot ask its exchanges for
    // balances: asked seldom, and killed only after some twenty minutes of silence.
    bot.liveness_probe = Some(Probe {
        period_seconds: Some(120),
        timeout_seconds: Some(10),
        failure_threshold: Some(5),
        termination_grace_period_seconds: restart_grace,
        ..exec_probe(&["sh", "/etc/torpor/alive.sh"])
    });
    bot
}

/// The password may stand in the environment: hbot removes it from there before it starts anything,
/// and reads it from no file.
fn environment(fleet: &ValidatedFleet) -> Vec<EnvVar> {
    let password = match &fleet.credentials_secret {
        Some(secret) => secret_env("HBOT_PASSWORD", secret, PASSWORD_KEY),
        None => secret_env("HBOT_PASSWORD", names::SECRET, BOT_PASSWORD),
    };
    vec![
        password,
        text_env("HOME", "/tmp"),
        text_env("NUMBA_CACHE_DIR", "/tmp/numba"),
        text_env("PYTHONDONTWRITEBYTECODE", "1"),
    ]
}

fn mounts() -> Vec<VolumeMount> {
    let part = |name: &str| VolumeMount { sub_path: Some(name.to_owned()), ..mount(DATA, &format!("{HOME}/{name}")) };
    vec![
        mount("conf", &format!("{HOME}/conf")),
        part("data"),
        part("logs"),
        mount("tmp", "/tmp"),
        read_only_mount("config", CONFIG),
    ]
}

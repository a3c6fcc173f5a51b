//! Redis: configuration, Service and `StatefulSet`.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Probe};
use serde_json::json;

use super::pod::{
    self, DATA, Pod, SECRETS, container, exec_probe, mount, read_only_mount, service_requests, startup_probe,
};
use super::scope::Scope;
use super::secret::{REDIS_AUTH, REDIS_PASSWORD};
use super::workload::{Workload, cluster_service, container_port, texts};
use super::{Child, hash};
use crate::domain::names::{self, Component};
use crate::domain::quantity::{Bytes, Size};
use crate::validate::Redis;

/// Where Redis listens.
pub(super) const PORT: i32 = 6379;

/// User `redis` of the official image.
const USER: i64 = 999;
/// SIGTERM writes a last snapshot.
const GRACE_SECONDS: i64 = 60;
const CONFIG: &str = "/etc/redis";

/// `redis-cli` ends with code 0 after an error, too, so the answer is compared. `LOADING` means that
/// a snapshot is being read: alive, and not ready; so is one that cannot save (`MISCONF`): its memory holds what a restart
/// would lose.
const PING: &str = r#"set -u
REDISCLI_AUTH="$(cat /run/secrets/torpor/redis-password)"
export REDISCLI_AUTH
case "$1 $(redis-cli -h 127.0.0.1 ping 2>&1)" in
  "ready PONG" | "alive PONG" | "alive LOADING"* | "alive MISCONF"*) exit 0 ;;
  *) exit 1 ;;
esac
"#;

pub(super) fn plan(scope: &Scope, redis: &Redis, replicas: i32) -> Vec<Child> {
    let conf = conf(redis.size, redis.storage);
    let workload = stateful_set(scope, redis, replicas);
    let config = ConfigMap {
        metadata: scope.owned(names::REDIS, Component::Redis),
        data: Some(texts([("redis.conf", &conf), ("ping.sh", PING)])),
        ..ConfigMap::default()
    };
    vec![
        Child::ConfigMap(config),
        Child::Service(cluster_service(scope, names::REDIS, Component::Redis, "redis", PORT)),
        Child::StatefulSet(Box::new(workload)),
    ]
}

/// Three quarters of the memory for data. The rest is for what `maxmemory` does not count: pages
/// written while a snapshot is taken, buffers of clients, and the allocator's gaps. Half of the volume at most: a snapshot is
/// written beside the one it replaces, and a Redis that cannot write one takes no data any more.
fn conf(size: Size, volume: Option<Bytes>) -> String {
    let maxmemory = (size.memory.0 / 4 * 3).min(volume.map_or(i64::MAX, |volume| volume.0 / 2));
    let mut lines = vec![
        "# Computed by Torpor from the container's memory and CPU.".to_owned(),
        // The password stays in the Secret.
        format!("include {SECRETS}/{REDIS_AUTH}"),
        "bind * -::*".to_owned(),
        format!("port {PORT}"),
        "dir /data".to_owned(),
        format!("maxmemory {maxmemory}"),
        "maxmemory-policy allkeys-lru".to_owned(),
        "save 900 1".to_owned(),
        "save 300 10".to_owned(),
        "save 60 10000".to_owned(),
    ];
    lines.extend(io_threads(size).map(|threads| format!("io-threads {threads}")));
    lines.join("\n") + "\n"
}

/// Threads for the network, as Redis' own configuration advises: none below four cores, and one core
/// left free above.
fn io_threads(size: Size) -> Option<i64> {
    let cores = size.cpu.0 / 1_000;
    (cores >= 4).then(|| (cores - 1).min(8))
}

fn stateful_set(scope: &Scope, redis: &Redis, replicas: i32) -> StatefulSet {
    let restart = hash::of(&json!({
        "image": redis.image,
        "cpu": redis.size.cpu.0,
        "memory": redis.size.memory.0,
        // Not by its volume: one that grows restarts nobody, and is counted at the next start.
        "conf": conf(redis.size, None),
        "secret": names::SECRET,
        "volume": redis.storage.is_some(),
        "placement": scope.placement(),
    }));
    let mut volumes = vec![pod::config("config", names::REDIS), pod::generated_secret(&[REDIS_AUTH, REDIS_PASSWORD])];
    if redis.storage.is_none() {
        // A snapshot is written beside the one it replaces.
        volumes.push(pod::scratch(DATA, Bytes(redis.size.memory.0 * 2)));
    }
    let pod = Pod {
        component: Component::Redis,
        user: USER,
        grace_seconds: GRACE_SECONDS,
        init_containers: vec![],
        container: server(scope, redis),
        volumes,
        annotations: pod::restart_annotation(&restart),
    };
    Workload { name: names::REDIS, service: names::REDIS, replicas, claim: redis.storage, restart_hash: &restart }
        .stateful_set(scope, pod)
}

fn server(scope: &Scope, redis: &Redis) -> Container {
    let mut server = container("redis", &scope.settings.image(&redis.image), service_requests(redis.size), redis.size);
    // Not the image's entrypoint: as a user other than root it only adds modules that take memory.
    server.command = Some(vec!["redis-server".to_owned(), format!("{CONFIG}/redis.conf")]);
    server.ports = Some(vec![container_port("redis", PORT)]);
    server.volume_mounts =
        Some(vec![mount(DATA, "/data"), read_only_mount("config", CONFIG), read_only_mount("secrets", SECRETS)]);
    let probe = |question: &str, period: i32, failures: i32| Probe {
        period_seconds: Some(period),
        timeout_seconds: Some(5),
        failure_threshold: Some(failures),
        ..exec_probe(&["sh", "/etc/redis/ping.sh", question])
    };
    // Five minutes, to read a snapshot.
    server.startup_probe = Some(startup_probe("sh /etc/redis/ping.sh ready", 300));
    server.readiness_probe = Some(probe("ready", 10, 3));
    server.liveness_probe = Some(probe("alive", 30, 5));
    server
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::quantity::Cpu;

    #[test]
    fn leaves_room_and_adds_threads_only_where_cores_are() {
        let small = conf(Size { cpu: Cpu(3999), memory: Bytes::mi(64) }, None);
        assert!(small.contains(&format!("maxmemory {}\n", 48 << 20)));
        assert!(!small.contains("io-threads"));
        let volume = conf(Size { cpu: Cpu(1000), memory: Bytes::mi(1024) }, Some(Bytes::mi(200)));
        assert!(volume.contains(&format!("maxmemory {}\n", 100 << 20)), "{volume}");
        assert!(conf(Size { cpu: Cpu(4000), memory: Bytes::mi(64) }, None).ends_with("io-threads 3\n"));
        assert!(!small.contains("requirepass"));
    }
}

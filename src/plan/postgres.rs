//! `PostgreSQL`: configuration, Service and `StatefulSet`.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Probe, Service, VolumeMount};
use serde_json::json;

use super::pod::{
    self, DATA, Pod, SECRETS, container, exec_probe, mount, read_only_mount, service_requests, startup_probe, text_env,
};
use super::postgres_conf::{self, Conf};
use super::scope::Scope;
use super::secret::{DATABASE_PASSWORD, MONITORING_PASSWORD, POSTGRES_PASSWORD};
use super::workload::{Workload, cluster_service, container_port, texts};
use super::{Child, DatabaseSize, hash};
use crate::domain::names::{self, Component};
use crate::domain::quantity::{Bytes, Size};
use crate::validate::ValidatedTenant;

/// Where the database listens.
pub(super) const PORT: i32 = 5432;
/// Database that the tenant's programs use, and the role that owns it.
pub(super) const DATABASE: &str = "hummingbot";
/// Role of the metrics exporter.
pub(super) const MONITORING_ROLE: &str = "monitoring";

/// User and group `postgres` of the official Debian-based image.
const USER: i64 = 999;
/// A fast shutdown writes a checkpoint first; on slow storage that takes more than a minute.
const GRACE_SECONDS: i64 = 120;
/// Files of the `ConfigMap`, beside the volume so that they are never mistaken for data.
const CONFIG: &str = "/etc/postgresql";

/// Asks the server over TCP: while the entrypoint prepares an empty volume, it answers on the socket only.
const IS_READY: &str = "pg_isready -q -h 127.0.0.1";

/// No password-less way in, not even from inside the container.
const PG_HBA: &str = "\
# type  database  user  address  method
local   all       all            scram-sha-256
host    all       all   all      scram-sha-256
";

/// Runs once, on an empty volume. The tenant's programs get a role that owns their database and is
/// no superuser, the exporter one that may only read statistics. The image's entrypoint reads the
/// file into its own shell, so it sets no option there. No password is an argument of a process, and none gets into the
/// server's log, however slow a statement is or how it fails.
const INIT: &str = r#"psql -v ON_ERROR_STOP=1 -v VERBOSITY=terse --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
\set owner_password `cat /run/secrets/torpor/database-password`
\set monitoring_password `cat /run/secrets/torpor/monitoring-password`
SET log_statement = none;
SET log_min_duration_statement = -1;
SET log_min_error_statement = panic;
SET track_activities = off;
CREATE ROLE hummingbot LOGIN PASSWORD :'owner_password';
ALTER DATABASE hummingbot OWNER TO hummingbot;
ALTER SCHEMA public OWNER TO hummingbot;
CREATE ROLE monitoring LOGIN PASSWORD :'monitoring_password' IN ROLE pg_monitor;
SQL
"#;

pub(super) fn plan(scope: &Scope, tenant: &ValidatedTenant, size: DatabaseSize) -> Vec<Child> {
    let size = limits(tenant, size);
    let conf = Conf::of(size, tenant.database.storage).text();
    // A larger volume only allows a larger write-ahead log, which can wait for the next restart: growing
    // a volume interrupts nobody.
    let warrants_restart = Conf::of(size, Bytes(0)).text();
    let workload = stateful_set(scope, tenant, size, &warrants_restart);
    let config = ConfigMap {
        metadata: scope.owned(names::DATABASE, Component::Database),
        data: Some(texts([("postgresql.conf", &conf), ("pg_hba.conf", PG_HBA), ("init.sh", INIT)])),
        ..ConfigMap::default()
    };
    vec![Child::ConfigMap(config), Child::Service(service(scope)), Child::StatefulSet(Box::new(workload))]
}

/// A database that was overridden to less than the sleeping size keeps that.
fn limits(tenant: &ValidatedTenant, size: DatabaseSize) -> Size {
    let awake = tenant.database.size;
    match size {
        DatabaseSize::Full => awake,
        DatabaseSize::Least => {
            let asleep = tenant.sleeping_database;
            Size { cpu: awake.cpu.min(asleep.cpu), memory: awake.memory.min(asleep.memory) }
        }
    }
}

fn service(scope: &Scope) -> Service {
    cluster_service(scope, names::DATABASE, Component::Database, "postgres", PORT)
}

fn stateful_set(scope: &Scope, tenant: &ValidatedTenant, size: Size, conf: &str) -> StatefulSet {
    let restart = hash::of(&json!({
        "image": tenant.database.image,
        "cpu": size.cpu.0,
        "memory": size.memory.0,
        "conf": conf,
        "hba": PG_HBA,
        "secret": names::SECRET,
        "placement": scope.placement(),
    }));
    let pod = Pod {
        component: Component::Database,
        user: USER,
        grace_seconds: GRACE_SECONDS,
        init_containers: vec![],
        container: server(&scope.settings.image(&tenant.database.image), size),
        volumes: vec![
            pod::config("config", names::DATABASE),
            pod::generated_secret(&[POSTGRES_PASSWORD, DATABASE_PASSWORD, MONITORING_PASSWORD]),
            pod::scratch("run", Bytes::mi(1)),
            pod::scratch("tmp", Bytes::mi(64)),
            pod::memory("shm", postgres_conf::shared_memory(size.memory)),
        ],
        annotations: pod::restart_annotation(&restart),
    };
    Workload {
        name: names::DATABASE,
        service: names::DATABASE,
        replicas: 1,
        claim: Some(tenant.database.storage),
        restart_hash: &restart,
    }
    .stateful_set(scope, pod)
}

fn server(image: &str, size: Size) -> Container {
    let mut server = container("postgres", image, service_requests(size), size);
    // The image's entrypoint stays: it makes the database on an empty volume. Its stop signal, too:
    // SIGINT stops at once, SIGTERM would wait for every client to leave.
    server.args = Some(vec!["-c".to_owned(), format!("config_file={CONFIG}/postgresql.conf")]);
    server.env = Some(vec![
        // Below the mount, whose root belongs to root and may hold `lost+found`.
        text_env("PGDATA", "/data/pgdata"),
        text_env("POSTGRES_DB", DATABASE),
        text_env("POSTGRES_INITDB_ARGS", "--auth=scram-sha-256 --data-checksums"),
        text_env("POSTGRES_PASSWORD_FILE", &format!("{SECRETS}/{POSTGRES_PASSWORD}")),
        text_env("POSTGRES_USER", "postgres"),
    ]);
    server.ports = Some(vec![container_port("postgres", PORT)]);
    server.volume_mounts = Some(vec![
        mount(DATA, "/data"),
        read_only_mount("config", CONFIG),
        VolumeMount {
            sub_path: Some("init.sh".to_owned()),
            ..read_only_mount("config", "/docker-entrypoint-initdb.d/init.sh")
        },
        read_only_mount("secrets", SECRETS),
        mount("run", "/var/run/postgresql"),
        mount("tmp", "/tmp"),
        mount("shm", "/dev/shm"),
    ]);
    // 30 minutes, because recovery after a crash replays the write-ahead log before it answers.
    server.startup_probe = Some(startup_probe(IS_READY, 1800));
    let words: Vec<&str> = IS_READY.split(' ').collect();
    server.readiness_probe = Some(Probe { period_seconds: Some(10), timeout_seconds: Some(5), ..exec_probe(&words) });
    // Exit code 1 says that the server is there and turns clients away, as in recovery. Only one
    // that gives no answer for five minutes is killed.
    server.liveness_probe = Some(Probe {
        period_seconds: Some(30),
        timeout_seconds: Some(10),
        failure_threshold: Some(10),
        ..exec_probe(&["sh", "-c", &format!("{IS_READY} || test $? -eq 1")])
    });
    server
}

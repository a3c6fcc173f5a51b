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
const INIT: &str = include_str!("postgres/init.sh");
/// Runs before the image's entrypoint, and makes a database whose first start was cut short anew.
const START: &str = include_str!("postgres/start.sh");

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
    // The image's entrypoint stays, behind it: it makes the database on an empty volume. The image's stop signal, too:
    // SIGINT stops at once, SIGTERM would wait for every client to leave.
    // Written here, not into the ConfigMap: an older version that is rolled back to would take it from under pods that run.
    server.command = Some(["sh", "-c", START, "start.sh"].map(str::to_owned).into());
    server.args = Some(["postgres", "-c", &format!("config_file={CONFIG}/postgresql.conf")].map(str::to_owned).into());
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

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the script is run on real files")]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};
    use std::process::{Command, ExitStatus};

    use super::*;

    /// Stands for the image's entrypoint: makes a database where there is none, and runs so much of the init script as `$MADE` says.
    const ENTRYPOINT: &str = r#"#!/bin/sh
[ "$*" = "postgres -c config_file=x" ] || exit 9
mkdir -p "$PGDATA"
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  [ "$(ls -A "$PGDATA")" = "" ] || { echo "initdb: not empty" >&2; exit 2; }
  [ "$MADE" = nothing ] && { : >"$PGDATA/base"; exit 1; }
  echo 17 >"$PGDATA/PG_VERSION"
  [ "$MADE" = files ] && exit 1
  echo '"-c" "listen_addresses=" "-p" "5432"' >"$PGDATA/postmaster.opts"
  [ "$MADE" = server ] && exit 1
  [ "$MADE" = emptied ] && { : >"$PGDATA/postmaster.opts"; exit 1; }
  . "$INIT"
  : >"$PGDATA/roles"
fi
[ -e "$PGDATA/roles" ] || exit 3
echo '"-c" "config_file=x"' >"$PGDATA/postmaster.opts"
"#;

    fn started(folder: &Path, made: &str) -> ExitStatus {
        let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default());
        Command::new("sh")
            .arg("-c")
            .arg(START)
            .args(["start.sh", "postgres", "-c", "config_file=x"])
            .env("PATH", path)
            .env("PGDATA", folder.join("volume/pgdata"))
            .env("INIT", folder.join("init.sh"))
            .env("MADE", made)
            .status()
            .expect("sh")
    }

    struct Folder(PathBuf);

    impl Folder {
        fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn folder(name: &str) -> Folder {
        let folder = Folder(std::env::temp_dir().join(format!("torpor-postgres-{}-{name}", std::process::id())));
        fs::create_dir_all(folder.path()).expect("a folder");
        for (name, text) in [("docker-entrypoint.sh", ENTRYPOINT), ("psql", "#!/bin/sh\n"), ("init.sh", INIT)] {
            let file = folder.path().join(name);
            fs::write(&file, text).expect("a file");
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("rights");
        }
        fs::create_dir(folder.path().join("volume")).expect("a volume");
        folder
    }

    #[test]
    fn a_first_start_that_was_cut_short_is_made_anew() {
        for made in ["nothing", "files", "server", "emptied"] {
            let folder = folder(made);
            let data = folder.path().join("volume/pgdata");
            assert!(!started(folder.path(), made).success(), "{made}");
            assert!(started(folder.path(), "all").success(), "{made}");
            assert!(folder.path().join("volume/pgdata.cut-short").exists());
            fs::write(data.join("kept"), "rows").expect("a file");
            assert!(started(folder.path(), "all").success(), "{made}");
            assert_eq!(fs::read_to_string(data.join("kept")).expect("what was written"), "rows");
        }
    }

    /// A volume with these files, as it is after a start, the mark of a first start beside it where that is left over.
    fn kept(name: &str, mark: bool, files: &[&str]) -> (ExitStatus, Vec<String>) {
        let folder = folder(name);
        let volume = folder.path().join("volume");
        fs::create_dir(volume.join("pgdata")).expect("a folder");
        for file in files {
            fs::write(volume.join("pgdata").join(file), "kept").expect("a file");
        }
        if mark {
            fs::write(volume.join("first-start"), "").expect("a mark");
        }
        // As the kubelet does, and again.
        let _ = started(folder.path(), "all");
        let status = started(folder.path(), "all");
        for file in files.iter().filter(|file| **file != "postmaster.opts") {
            assert_eq!(fs::read_to_string(volume.join("pgdata").join(file)).expect("what was kept"), "kept", "{name}");
        }
        let names =
            fs::read_dir(&volume).expect("the volume").filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        (status, names.collect())
    }

    #[test]
    fn what_was_brought_here_or_has_served_stays() {
        for (name, mark, files) in [
            ("brought", false, &["PG_VERSION", "roles"][..]),
            ("served under a mark", true, &["PG_VERSION", "roles", "postmaster.opts"]),
            ("restored under a mark", true, &["PG_VERSION", "roles", "backup_label"]),
        ] {
            let (status, names) = kept(name, mark, files);
            assert_eq!((status.success(), names), (true, vec!["pgdata".to_owned()]), "{name}");
        }
        let (status, names) = kept("another layout", false, &["base"]);
        assert_eq!((status.code(), names), (Some(2), vec!["pgdata".to_owned()]), "somebody has to look");
    }
}

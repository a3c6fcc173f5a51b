//! Which images there are, and what is in each.

use torpor_cluster::{GoModule, GoProgram, oci::Config};

use super::{
    Image,
    layer::{File, Layer},
};

const PYTHON: Layer = Layer::Debian { name: "python", packages: &["libstdc++6", "python3"] };
const REDIS: Layer = Layer::Debian { name: "redis", packages: &["redis-server", "redis-tools"] };
const POSTGRES: Layer = Layer::Debian { name: "postgres", packages: &["libc-bin", "ncurses-base"] };

/// Users by the official images' numbers. The operator's other users have no name there, and so none here.
const USERS: Layer = Layer::Files(&[
    file(
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\npostgres:x:999:999::/var/lib/postgresql:/bin/sh\n\
         nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    ),
    file("etc/group", "root:x:0:\npostgres:x:999:\nnogroup:x:65534:\n"),
    file("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
]);

const HUMMINGBOT: Layer = Layer::Built {
    name: "hummingbot",
    packages: &["ca-certificates", "g++", "gcc", "python3-dev", "python3-venv"],
    script: include_str!("../../images/bot/build.sh"),
    files: &[
        ("build-requirements.txt", include_str!("../../images/bot/build-requirements.txt")),
        ("requirements.txt", include_str!("../../images/bot/requirements.txt")),
        ("hummingbot.txt", include_str!("../../images/bot/hummingbot.txt")),
    ],
};

/// Above everything that takes long to build.
const STRATEGY: Layer = Layer::Files(&[file(
    "home/hummingbot/scripts/torpor_orders.py",
    include_str!("../../images/bot/torpor_orders.py"),
)]);

const POSTGRESQL: Layer = Layer::Built {
    name: "postgresql",
    packages: &["ca-certificates", "python3-venv"],
    script: include_str!("../../images/postgres/build.sh"),
    files: &[
        ("requirements.txt", include_str!("../../images/postgres/requirements.txt")),
        ("docker-entrypoint.sh", include_str!("../../images/postgres/docker-entrypoint.sh")),
    ],
};

const STREAMLIT: Layer = Layer::Built {
    name: "streamlit",
    packages: &["ca-certificates", "python3-venv"],
    script: include_str!("../../images/dashboard/build.sh"),
    files: &[
        ("requirements.txt", include_str!("../../images/dashboard/requirements.txt")),
        ("config.toml", include_str!("../../images/dashboard/config.toml")),
        ("main.py", include_str!("../../images/dashboard/main.py")),
    ],
};

const EXPORTER: Layer = Layer::Go {
    module: GoModule {
        name: "postgres-exporter",
        files: &[
            ("go.mod", include_str!("../../images/exporter/go.mod")),
            ("go.sum", include_str!("../../images/exporter/go.sum")),
        ],
        programs: &[GoProgram {
            name: "postgres_exporter",
            package: "github.com/prometheus-community/postgres_exporter/cmd/postgres_exporter",
            ldflags: "-X github.com/prometheus/common/version.Version=0.19.1",
            tags: "",
            cgo: false,
        }],
    },
    path: "bin/postgres_exporter",
};

const fn file(path: &'static str, text: &'static str) -> File {
    File { path, mode: 0o644, text: Some(text) }
}

/// All images, those that take longest first. The tags are what the operator asks for by default; what is inside is the
/// nearest version that the registries of packages have.
pub(super) fn all() -> Vec<Image> {
    vec![
        Image {
            name: "hummingbot/hummingbot:version-2.16.0",
            layers: vec![PYTHON, USERS, HUMMINGBOT, STRATEGY],
            config: Config {
                env: vec!["PATH=/opt/hummingbot/bin:/usr/local/bin:/usr/bin:/bin".into()],
                cmd: words(&["hbot", "--help"]),
                working_dir: "/home/hummingbot".into(),
                ..Config::default()
            },
        },
        Image {
            name: "hummingbot/dashboard:latest",
            layers: vec![PYTHON, USERS, STREAMLIT],
            config: Config {
                env: vec!["PATH=/opt/dashboard/bin:/usr/local/bin:/usr/bin:/bin".into()],
                cmd: words(&["streamlit", "run", "main.py"]),
                working_dir: "/home/dashboard".into(),
                ..Config::default()
            },
        },
        Image {
            name: "library/postgres:17.11-bookworm",
            layers: vec![POSTGRES, USERS, POSTGRESQL],
            config: Config {
                env: vec![
                    "PATH=/usr/lib/postgresql/17/bin:/usr/local/bin:/usr/bin:/bin".into(),
                    "LANG=C.UTF-8".into(),
                    "PGDATA=/var/lib/postgresql/data".into(),
                    // This build would look for the server's socket in /tmp.
                    "PGHOST=/var/run/postgresql".into(),
                ],
                entrypoint: words(&["docker-entrypoint.sh"]),
                cmd: words(&["postgres"]),
                // A fast shutdown; SIGTERM would wait for all clients to leave.
                stop_signal: "SIGINT".into(),
                ..Config::default()
            },
        },
        Image {
            name: "library/redis:7.2.16-bookworm",
            layers: vec![REDIS, USERS],
            config: Config {
                env: vec!["PATH=/usr/local/bin:/usr/bin:/bin".into()],
                cmd: words(&["redis-server"]),
                working_dir: "/data".into(),
                ..Config::default()
            },
        },
        Image {
            name: "prometheuscommunity/postgres-exporter:v0.20.1",
            layers: vec![USERS, EXPORTER],
            config: Config {
                user: "nobody".into(),
                entrypoint: words(&["/bin/postgres_exporter"]),
                ..Config::default()
            },
        },
    ]
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sources that say which images the operator chooses.
    const OPERATOR: [&str; 3] = [
        include_str!("../../../../src/api/tenant.rs"),
        include_str!("../../../../src/api/bot_fleet.rs"),
        include_str!("../../../../src/plan/settings.rs"),
    ];

    #[test]
    fn every_image_is_one_that_the_operator_asks_for() {
        for Image { name, .. } in all() {
            let name = name.strip_prefix("library/").unwrap_or(name);
            let asked = OPERATOR.iter().any(|source| source.contains(&format!("{name}\"")));
            assert!(asked, "no constant of the operator names {name}");
        }
    }

    #[test]
    fn python_packages_are_pinned_by_hash() {
        for list in [
            include_str!("../../images/bot/build-requirements.txt"),
            include_str!("../../images/bot/requirements.txt"),
            include_str!("../../images/bot/hummingbot.txt"),
            include_str!("../../images/dashboard/requirements.txt"),
            include_str!("../../images/postgres/requirements.txt"),
        ] {
            let pins = list.lines().filter(|line| !line.starts_with('#'));
            assert!(pins.clone().count() > 0);
            for pin in pins {
                assert!(pin.contains("==") && pin.contains(" --hash=sha256:"), "{pin}");
            }
        }
    }
}

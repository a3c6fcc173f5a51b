//! The cluster with everything that scenarios need: images, worlds outside, the exchange, and Torpor installed by helm.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::Settings;
use crate::{
    exchange::{
        judge::{self, Violation},
        record::{self, Entry},
    },
    images::{self, REGISTRY},
    node::{Cluster, Options, TOOLS_IMAGE, World},
};

/// Namespace of Torpor's programs.
pub const HOME: &str = "torpor-system";
/// The tenant of tier basic. Its one fleet has as much CPU as the tier gives its bots.
pub const BASIC: &str = "alice";
/// The tenant of tier free, as small as one can be.
pub const FREE: &str = "bob";

/// A name and an address that are nobody's: TEST-NET-3 of RFC 5737, which a tenant's policies count as internet.
const EXCHANGE: (&str, Ipv4Addr) = ("exchange.torpor.test", Ipv4Addr::new(203, 0, 113, 10));
const EXCHANGE_PORT: u16 = 8000;
/// Addresses that no bot may reach: metadata, private, shared.
const FORBIDDEN: [Ipv4Addr; 5] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(10, 99, 0, 10),
    Ipv4Addr::new(172, 20, 0, 10),
    Ipv4Addr::new(192, 168, 77, 10),
    Ipv4Addr::new(100, 64, 0, 10),
];
const POOLS: [(&str, &str, &str, i32); 2] =
    [("worker-mid", "basic", "torpor-medium", 10_000), ("worker-low", "free", "torpor-low", 1_000)];

/// Everything that runs.
pub struct Rig {
    pub cluster: Cluster,
    /// Addresses that no tenant may reach.
    pub forbidden: Arc<World>,
    /// The host of the exchange.
    pub internet: Arc<World>,
    /// How many times each tenant is woken.
    pub wakes: usize,
    record: PathBuf,
    values: PathBuf,
}

impl Rig {
    pub fn start(settings: &Settings) -> Result<Self> {
        let mut archives = images::ensure(|step| println!("         {step}"))?;
        archives.push(settings.image.clone());
        let names = vec![(EXCHANGE.0.to_owned(), EXCHANGE.1)];
        let options = Options { images: archives, names, keep_logs: settings.keep_logs.clone(), ..Options::default() };
        let cluster = Cluster::start(options)?;
        let internet = cluster.world("internet", &[EXCHANGE.1])?;
        let forbidden = cluster.world("forbidden", &FORBIDDEN)?;
        let record = cluster.run_dir().join("exchange.jsonl");
        let exchange = std::env::current_exe()?.with_file_name("torpor-exchange");
        let listen = format!("{}:{EXCHANGE_PORT}", EXCHANGE.1);
        internet.spawn(
            "exchange",
            exchange,
            &["--listen".into(), listen, "--record".into(), record.display().to_string()],
        )?;
        let values = cluster.run_dir().join("values.yaml");
        let rig = Self { cluster, forbidden, internet, wakes: settings.wakes, record, values };
        rig.prepare()?;
        rig.install(None)?;
        for tenant in [Self::tenant(BASIC, "basic", "600m"), Self::tenant(FREE, "free", "200m")] {
            rig.apply(&tenant)?;
        }
        Ok(rig)
    }

    /// What an administrator does before the chart: nodes know their pool, and the namespace takes restricted pods only.
    fn prepare(&self) -> Result<()> {
        for (worker, (pool, ..)) in self.cluster.workers().iter().zip(POOLS) {
            self.cluster.kubectl(["label", "node", worker.name(), &format!("torpor.dev/pool={pool}")])?;
            // The chart's registry stands for all images; the archive has the name under which it is published.
            for image in worker.images()?.iter().filter(|image| image.starts_with("ghcr.io/torpor-dev/torpor:")) {
                worker.tag_image(image, &image.replace("ghcr.io", REGISTRY))?;
            }
        }
        self.apply(&json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": HOME, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
        }))?;
        self.cluster.kubectl(["apply", "-f", &file("examples/rbac-portal.yaml").display().to_string()])?;
        let container = json!({
            "name": "portal", "image": TOOLS_IMAGE, "imagePullPolicy": "Never", "command": ["sleep", "infinity"],
        });
        let labels = json!({"app": "portal"});
        // A drain refuses to end a pod that nobody would make again.
        let spec = json!({"containers": [container], "terminationGracePeriodSeconds": 0});
        self.apply(&json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "portal", "namespace": "portal"},
            "spec": {
                "serviceName": "portal", "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": spec},
            },
        }))
    }

    /// `helm upgrade --install` as README says, with these times of the tiers' stages.
    pub fn install(&self, times: Option<&Times>) -> Result<()> {
        let pools: Vec<Value> = POOLS
            .iter()
            .map(|(name, tier, class, value)| {
                json!({"name": name, "tiers": [tier], "priority": {"class": class, "value": value}})
            })
            .collect();
        let mut values = json!({
            "imageRegistry": REGISTRY,
            "image": {"pullPolicy": "Never"},
            "workerPools": pools,
            "hibernator": {"breaker": {"percent": 100}},
            "tenants": {"gatewayNamespace": "portal"},
        });
        if let Some(times) = times {
            values["catalog"] = times.catalog()?;
        }
        fs::write(&self.values, values.to_string())?;
        let chart = file("charts/torpor");
        let arguments = [
            "upgrade",
            "--install",
            "torpor",
            &chart.display().to_string(),
            "--namespace",
            HOME,
            "--values",
            &self.values.display().to_string(),
            "--wait",
            "--timeout",
            "180s",
        ];
        self.cluster.helm(arguments).map(drop).context("helm upgrade --install")
    }

    fn tenant(name: &str, tier: &str, cpu: &str) -> Value {
        let fleet = json!({
            "name": "makers", "replicas": 1, "resources": {"cpu": cpu, "memory": "512Mi"},
            "strategy": {"kind": "script", "config": strategy("")},
        });
        tenant(name, tier, &[fleet])
    }

    pub fn apply(&self, object: &Value) -> Result<()> {
        self.cluster.kubectl_stdin(["apply", "-f", "-"], &object.to_string()).map(drop)
    }

    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.cluster.kubectl([&["get", "-o", "json"], arguments].concat())?;
        serde_json::from_str(&text).with_context(|| text)
    }

    /// All objects of a kind in a tenant's namespace.
    pub fn list(&self, kind: &str, tenant: &str) -> Result<Vec<Value>> {
        let list = self.get(&[kind, "-n", &namespace(tenant)])?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// The Tenant once it is Ready at a stage.
    pub fn await_stage(&self, tenant: &str, stage: &str, limit: Duration) -> Result<Value> {
        eventually(limit, || {
            let found = self.get(&["tenant", tenant])?;
            let ready = condition(&found, "Ready");
            let reached = &found["status"]["hibernation"]["stage"];
            let current = found["status"]["observedGeneration"] == found["metadata"]["generation"];
            ensure!(current && ready["status"] == "True" && reached == stage, "{tenant} is at {reached}: {ready}");
            Ok(found)
        })
    }

    /// The Tenant once it is awake. One that an earlier scenario left asleep is woken.
    pub fn await_awake(&self, tenant: &str) -> Result<Value> {
        if condition(&self.get(&["tenant", tenant])?, "Hibernated")["status"] == "True" {
            self.portal(tenant, "wake")?;
        }
        self.await_stage(tenant, "Active", Duration::from_secs(240))
    }

    /// A question to the tenant's database, with the password that was generated for its programs.
    pub fn sql(&self, tenant: &str, question: &str) -> Result<String> {
        let command = r#"PGPASSWORD="$(cat /run/secrets/torpor/database-password)" exec psql -h 127.0.0.1 -U hummingbot -d hummingbot -v ON_ERROR_STOP=1 -Atqc "$0""#;
        let answer =
            self.cluster.exec_in_pod(&namespace(tenant), "postgres-0", None, &["sh", "-c", command, question])?;
        Ok(answer.trim().to_owned())
    }

    /// What the portal says to the gateway, from a pod of its own with a token of its own.
    pub fn portal(&self, tenant: &str, request: &str) -> Result<String> {
        self.portal_with(&self.portal_token()?, tenant, request)
    }

    /// A token of the portal's.
    pub fn portal_token(&self) -> Result<String> {
        self.cluster.kubectl(["create", "token", "backend", "-n", "portal"])
    }

    /// [`Self::portal`] with a token that is there already.
    pub fn portal_with(&self, token: &str, tenant: &str, request: &str) -> Result<String> {
        let url = format!("http://torpor-gateway.{HOME}:8090/v1/tenants/{tenant}/{request}");
        let header = format!("Authorization: Bearer {}", token.trim());
        let command = ["wget", "-q", "-O", "-", "--header", &header, "--post-data", "", &url];
        // Every request may be repeated; the portal itself may just be moving to another node.
        eventually(Duration::from_secs(60), || self.cluster.exec_in_pod("portal", "portal-0", None, &command))
    }

    /// What the exchange has seen so far.
    pub fn record(&self) -> Result<Vec<Entry>> {
        record::read(&self.record)
    }

    /// Nothing that must not happen has happened. A bot that was killed for its memory could not take its orders back.
    pub fn exchange_is_content(&self) -> Result<()> {
        let entries = self.record()?;
        ensure!(judge::runs(&entries).len() > 1, "hardly a bot has traded");
        let hog = super::limits::HOG;
        let wrong: Vec<Violation> = judge::violations(&entries)
            .into_iter()
            .filter(|violation| !matches!(violation, Violation::LeftOpen { instance, .. } | Violation::FilledAfterStop { instance, .. } if instance.contains(hog)))
            .collect();
        ensure!(wrong.is_empty(), "{wrong:#?}");
        Ok(())
    }

    /// Whether every program still runs, and no packet wanted to leave the machine.
    pub fn check(&self) -> Result<()> {
        self.cluster.check()?;
        self.internet.check()
    }

    /// What somebody would look at first when something went wrong.
    pub fn look(&self) -> String {
        let questions: [&[&str]; 4] = [
            &["get", "tenants,botfleets", "-A", "-o", "wide"],
            &["get", "pods", "-A", "-o", "wide"],
            &["get", "events", "-A", "--sort-by=.lastTimestamp", "--field-selector=type=Warning"],
            &["logs", "-n", HOME, "deployment/torpor-operator", "--tail=30"],
        ];
        let answers = questions.map(|question| {
            let answer = self.cluster.kubectl(question).unwrap_or_else(|error| format!("{error:#}"));
            let lines: Vec<&str> = answer.lines().collect();
            let last = &lines[lines.len().saturating_sub(40)..];
            format!("$ kubectl {}\n{}\n", question.join(" "), last.join("\n"))
        });
        answers.concat()
    }
}

/// When the stages of all tiers begin, in seconds of idle time.
pub struct Times(pub [u64; 3]);

impl Times {
    /// The built-in catalogue with these times.
    fn catalog(&self) -> Result<Value> {
        let text = fs::read_to_string(file("src/domain/catalog.yaml"))?;
        let mut catalog: Value = serde_yaml::from_str(&text)?;
        let Some(tiers) = catalog["tiers"].as_object_mut() else { bail!("the catalogue has no tiers") };
        for tier in tiers.values_mut() {
            for (field, seconds) in ["stopBotsAfter", "stopServicesAfter", "databaseOnlyAfter"].iter().zip(self.0) {
                tier["hibernation"][field] = json!(format!("{seconds}s"));
            }
            tier["hibernation"]["warnBefore"] = json!({"stopBots": "5s", "stopServices": "5s", "databaseOnly": "5s"});
        }
        Ok(catalog)
    }
}

/// Now, as RFC 3339.
pub fn timestamp() -> Result<String> {
    let output = Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"]).output()?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// A file of the project.
pub fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

pub fn namespace(tenant: &str) -> String {
    format!("tenant-{tenant}")
}

/// A bot's configuration: orders at the exchange, and `more` lines.
pub fn strategy(more: &str) -> String {
    format!("script_file_name: torpor_orders.py\nexchange: http://{}:{EXCHANGE_PORT}/\n{more}\n", EXCHANGE.0)
}

pub fn tenant(name: &str, tier: &str, fleets: &[Value]) -> Value {
    json!({
        "apiVersion": "torpor.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": name},
        "spec": {"tier": tier, "fleets": fleets},
    })
}

/// The condition of a type, or null.
pub fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    let conditions = object["status"]["conditions"].as_array();
    conditions.and_then(|all| all.iter().find(|one| one["type"] == kind)).unwrap_or(&Value::Null)
}

pub fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Tries until it succeeds; after the limit, the last error.
pub fn eventually<T>(limit: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let began = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if began.elapsed() > limit => return Err(error.context(format!("not within {limit:?}"))),
            Err(_) => std::thread::sleep(Duration::from_millis(300)),
        }
    }
}

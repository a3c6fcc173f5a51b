//! Helm on a cluster, and Torpor's programs as the release has them.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use torpor_cluster::{Cluster, Options};

use crate::Ctx;
use crate::harness::eventually;
use crate::process::{Process, Program, program};
use crate::rights;
use crate::tenants::{documents, ensure, text};

/// The release's namespace.
pub const SPACE: &str = rights::HOME;

/// A cluster without Torpor, and what Helm needs.
pub struct Release {
    helm: PathBuf,
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    folder: PathBuf,
}

/// A cluster that nobody has installed anything on.
pub struct Bare {
    release: Release,
    pub cluster: Cluster,
}

impl std::ops::Deref for Bare {
    type Target = Release;
    fn deref(&self) -> &Release {
        &self.release
    }
}

impl Bare {
    /// The cluster with an operator beside it.
    pub fn with(self, operator: Process) -> Ctx {
        Ctx { operator, cluster: self.cluster }
    }
}

impl Release {
    /// A cluster with the namespace of the release, at the strictest Pod Security level.
    pub fn start(options: Options) -> Result<Bare, String> {
        let cluster = Cluster::connect_or_start(options).map_err(|error| format!("{error:#}"))?;
        let release = Self::on(&cluster)?;
        release.kubectl(&["create", "namespace", SPACE])?;
        let levels = ["enforce", "warn"].map(|mode| format!("pod-security.kubernetes.io/{mode}=restricted"));
        release.kubectl(&["label", "namespace", SPACE, &levels[0], &levels[1]])?;
        Ok(Bare { release, cluster })
    }

    /// The same, where an operator runs beside it.
    pub fn of(ctx: &Ctx) -> Result<Self, String> {
        Self::on(&ctx.cluster)
    }

    fn on(cluster: &Cluster) -> Result<Self, String> {
        let folder = cluster.data_dir().join("helm");
        std::fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
        let kubeconfig = cluster.kubeconfig().to_owned();
        Ok(Release { helm: cluster.bin("helm"), kubectl: cluster.bin("kubectl"), kubeconfig, folder })
    }

    fn run(&self, program: &Path, arguments: &[&str], input: Option<&str>) -> Result<(String, String), String> {
        let mut command = Command::new(program);
        command.args(arguments).env("KUBECONFIG", &self.kubeconfig).env("KUBECACHEDIR", self.folder.join("kube"));
        for part in ["CONFIG", "CACHE", "DATA"] {
            command.env(format!("HELM_{part}_HOME"), self.folder.join(part));
        }
        // From a file: a pipe that nobody reads yet would have to be written beside.
        if let Some(input) = input {
            let file = self.folder.join("input.yaml");
            std::fs::write(&file, input).map_err(|error| error.to_string())?;
            command.stdin(std::fs::File::open(file).map_err(|error| error.to_string())?);
        } else {
            command.stdin(Stdio::null());
        }
        let output = command.output().map_err(|error| format!("{}: {error}", program.display()))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (said, complained) = (text(&output.stdout), text(&output.stderr));
        if output.status.success() { Ok((said, complained)) } else { Err(format!("{arguments:?}: {complained}")) }
    }

    /// Helm's answer.
    pub fn helm(&self, arguments: &[&str]) -> Result<String, String> {
        self.run(&self.helm, arguments, None).map(|(said, _)| said)
    }

    /// kubectl's answer.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        self.run(&self.kubectl, arguments, None).map(|(said, _)| said)
    }

    /// Applies what is too large for a client's annotation.
    pub fn apply(&self, yaml: &str) -> Result<(), String> {
        self.run(&self.kubectl, &["apply", "--server-side", "-f", "-"], Some(yaml)).map(drop)
    }

    /// Number of objects that the API server would take, without a word of warning.
    pub fn dry_run(&self, yaml: &str) -> Result<usize, String> {
        let arguments = ["apply", "--server-side", "--dry-run=server", "--validate=strict", "-o", "name", "-f", "-"];
        let (said, complained) = self.run(&self.kubectl, &arguments, Some(yaml))?;
        ensure(complained.trim().is_empty(), || complained)?;
        Ok(said.lines().count())
    }

    /// The chart as a file, as if it had this version.
    pub fn package(&self, version: &str) -> Result<String, String> {
        let folder = self.folder.display().to_string();
        self.helm(&["package", "charts/torpor", "--version", version, "--app-version", version, "-d", &folder])?;
        Ok(self.folder.join(format!("torpor-{version}.tgz")).display().to_string())
    }

    /// A file of values.
    pub fn values(&self, name: &str, values: &Value) -> Result<String, String> {
        let file = self.folder.join(format!("{name}.yaml"));
        std::fs::write(&file, values.to_string()).map_err(|error| error.to_string())?;
        Ok(file.display().to_string())
    }

    /// Everything of the release's manifest exists, and its Deployments are available.
    pub fn manifest_is_there(&self) -> Result<(), String> {
        let manifest = self.helm(&["get", "manifest", "torpor", "--namespace", SPACE])?;
        let wanted = documents(&manifest)?.len();
        let (found, _) = self.run(&self.kubectl, &["get", "-o", "name", "-f", "-"], Some(&manifest))?;
        ensure(found.lines().count() == wanted, || format!("{wanted} objects, found {found}"))?;
        ensure(wanted > 25, || format!("only {wanted} objects: {found}"))?;
        self.kubectl(&["wait", "deployments", "--all", "-n", SPACE, "--for=condition=Available", "--timeout=90s"])
            .map(drop)
    }

    fn deployment(&self, component: &str) -> Result<Value, String> {
        let name = format!("torpor-{component}");
        let text = self.kubectl(&["get", "deployment", &name, "-n", SPACE, "-o", "json"])?;
        serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
    }

    /// Tag of a component's image.
    pub fn tag(&self, component: &str) -> Result<String, String> {
        let image = text(&self.deployment(component)?["spec"]["template"]["spec"]["containers"][0]["image"]);
        image.rsplit_once(':').map(|(_, tag)| tag.to_owned()).ok_or(image)
    }

    /// Names of a component's pods that are ready.
    pub fn pods(&self, component: &str) -> Result<Vec<String>, String> {
        let selector = format!("app.kubernetes.io/name=torpor,app.kubernetes.io/component={component}");
        let arguments = ["get", "pods", "-n", SPACE, "-l", &selector, "-o", "json"];
        eventually(Duration::from_secs(60), || {
            let list: Value = serde_json::from_str(&self.kubectl(&arguments)?).map_err(|error| error.to_string())?;
            let ready = |pod: &&Value| {
                let conditions = pod["status"]["conditions"].as_array();
                conditions
                    .into_iter()
                    .flatten()
                    .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
            };
            let items = list["items"].as_array().into_iter().flatten();
            let names: Vec<String> = items.filter(ready).map(|pod| text(&pod["metadata"]["uid"])).collect();
            if names.is_empty() { Err(format!("no pod of {component} is ready")) } else { Ok(names) }
        })
    }

    /// What Helm says of the release.
    pub fn status(&self) -> Result<String, String> {
        let told = self.helm(&["status", "torpor", "--namespace", SPACE, "-o", "json"])?;
        let told: Value = serde_json::from_str(&told).map_err(|error| format!("{error}: {told}"))?;
        Ok(text(&told["info"]["status"]))
    }

    /// A program under its account, with the environment of its Deployment as it is now. Addresses are this machine's.
    pub fn program(&self, cluster: &Cluster, component: &str) -> Result<Program, String> {
        let deployment = self.deployment(component)?;
        let mut program = program(cluster, component);
        let variables = deployment["spec"]["template"]["spec"]["containers"][0]["env"].as_array().cloned();
        for variable in variables.unwrap_or_default() {
            let (name, mut value) = (text(&variable["name"]), text(&variable["value"]));
            if name == "TORPOR_CATALOG" {
                let catalog =
                    ["get", "configmap", "torpor-catalog", "-n", SPACE, "-o", "jsonpath={.data.tiers\\.yaml}"];
                let file = self.folder.join("tiers.yaml");
                std::fs::write(&file, self.kubectl(&catalog)?).map_err(|error| error.to_string())?;
                value = file.display().to_string();
            }
            program = program.environment(&name, &value);
        }
        Ok(program)
    }
}

/// An address that nothing listens on.
pub fn free_address() -> Result<String, String> {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    free.map(|address| address.to_string()).map_err(|error| error.to_string())
}

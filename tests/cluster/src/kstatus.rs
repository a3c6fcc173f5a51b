//! How GitOps tools judge an object, asked of their own code: kstatus, Argo CD's Lua and Flux' CEL; and the definitions of
//! their custom resources, to check manifests against.
//!
//! ```no_run
//! use serde_json::json;
//! use torpor_cluster::kstatus::{Judge, Rules};
//!
//! let mut judge = Judge::start(&Rules { argocd: json!({}), flux: json!([]) })?;
//! let verdict = judge.judge(&json!({"apiVersion": "torpor.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": "alice"}}))?;
//! println!("{} {}", verdict.kstatus.status, verdict.argocd.status);
//! # Ok::<(), anyhow::Error>(())
//! ```

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    process::bound_to_us,
    tools::{build_once, cache_dir, fnv1a, go, require_go},
};

const FILES: [(&str, &str); 4] = [
    ("main.go", include_str!("../tools/kstatus/main.go")),
    ("apis.go", include_str!("../tools/kstatus/apis.go")),
    ("go.mod", include_str!("../tools/kstatus/go.mod")),
    ("go.sum", include_str!("../tools/kstatus/go.sum")),
];

/// Packages of Flux' API types; controller-gen makes the definitions of them that Flux publishes.
const FLUX: [&str; 3] = [
    "paths=github.com/fluxcd/helm-controller/api/v2",
    "paths=github.com/fluxcd/kustomize-controller/api/v1",
    "paths=github.com/fluxcd/source-controller/api/v1",
];

/// Argo CD's module cannot be required like others, since a part of it is not published; its files can be had.
const ARGOCD: &str = "github.com/argoproj/argo-cd/v3@v3.5.7";
const ARGOCD_SUM: &str = "h1:Xm1BF+I5OgDKUG3SDK49vn2/Y5AMyaNVko+/JT08gj0=";
const ARGOCD_DEFINITIONS: [&str; 2] = ["application-crd.yaml", "appproject-crd.yaml"];

/// The rules that users give to their GitOps tools.
#[derive(Clone, Debug, Serialize)]
pub struct Rules {
    /// `data` of Argo CD's ConfigMap `argocd-cm`.
    pub argocd: Value,
    /// `spec.healthCheckExprs` of Flux' Kustomizations.
    pub flux: Value,
}

/// What each tool says of an object.
#[derive(Clone, Debug, Deserialize)]
pub struct Verdict {
    /// kstatus: `InProgress`, `Current`, `Failed` or `Terminating`.
    pub kstatus: Told,
    /// Argo CD: `Healthy`, `Progressing`, `Degraded` or `Suspended`.
    pub argocd: Told,
    /// Flux: as kstatus, or what an expression for the kind says.
    pub flux: Told,
}

/// One tool's word, and the sentence that it shows with it.
#[derive(Clone, Debug, Deserialize)]
pub struct Told {
    /// One word.
    pub status: String,
    /// A sentence, which may be empty.
    pub message: String,
}

/// A running program that judges; it ends when dropped.
#[derive(Debug)]
pub struct Judge {
    child: Child,
    objects: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Judge {
    /// Starts it with these rules. Builds it first if need be, which takes a minute or two.
    pub fn start(rules: &Rules) -> Result<Self> {
        let mut child =
            bound_to_us(tool()?).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
        let objects = child.stdin.take().context("no standard input")?;
        let answers = BufReader::new(child.stdout.take().context("no standard output")?);
        let mut judge = Self { child, objects, answers };
        judge.send(&serde_json::to_value(rules)?)?;
        Ok(judge)
    }

    /// What the tools say of one version of an object. Broken rules are an error; their reason is on standard error.
    pub fn judge(&mut self, object: &Value) -> Result<Verdict> {
        self.send(object)?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        if line.is_empty() {
            bail!("the judge ended at {}", object["metadata"]);
        }
        Ok(serde_json::from_str(&line)?)
    }

    fn send(&mut self, document: &Value) -> Result<()> {
        writeln!(self.objects, "{document}").context("the judge has ended")
    }
}

impl Drop for Judge {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program that judges; built on the first call from the Go module in `tools/kstatus`.
pub fn tool() -> Result<PathBuf> {
    let dir = folder("kstatus", "")?;
    build_once(&dir, |work| {
        require_go()?;
        eprintln!("building the judge of GitOps health into {} (once; a minute or two)", dir.display());
        unpack(work)?;
        let args =
            ["build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", "kstatus", "."];
        run(&mut go(work, args)).context("building the judge failed").map(drop)
    })?;
    Ok(dir.join("kstatus"))
}

/// A folder with the CustomResourceDefinitions of Flux and Argo CD, made on the first call.
pub fn definitions() -> Result<PathBuf> {
    let dir = folder("gitops-crds", ARGOCD_SUM)?;
    build_once(&dir, |work| {
        require_go()?;
        eprintln!("getting the definitions of Flux and Argo CD into {} (once; a minute or two)", dir.display());
        unpack(work)?;
        let [helm, kustomize, source] = FLUX;
        let out = "output:crd:dir=definitions";
        run(&mut go(work, ["tool", "controller-gen", "crd", helm, kustomize, source, out]))
            .context("making Flux' definitions failed")?;
        argocd(work).context("getting Argo CD's definitions failed")
    })?;
    Ok(dir.join("definitions"))
}

/// Copies Argo CD's definitions out of its module. All of it is 250 MB, which nobody needs afterwards.
fn argocd(work: &Path) -> Result<()> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Downloaded {
        dir: PathBuf,
        sum: String,
    }
    let modules = work.join("modules");
    let mut download = go(work, ["mod", "download", "-json", ARGOCD]);
    // Without the flag nobody may delete what is unpacked.
    let answer = run(download.env("GOMODCACHE", &modules).env("GOFLAGS", "-modcacherw"))?;
    let module: Downloaded = serde_json::from_str(&answer)?;
    ensure!(module.sum == ARGOCD_SUM, "{ARGOCD} has the hash {}, expected {ARGOCD_SUM}", module.sum);
    for name in ARGOCD_DEFINITIONS {
        fs::copy(module.dir.join("manifests/crds").join(name), work.join("definitions").join(name))?;
    }
    Ok(fs::remove_dir_all(modules)?)
}

fn folder(name: &str, more: &str) -> Result<PathBuf> {
    let [(_, main), (_, apis), (_, module), (_, sums)] = FILES;
    Ok(cache_dir()?.join(format!("{name}-{:016x}", fnv1a(&[main, apis, module, sums, more]))))
}

fn unpack(work: &Path) -> Result<()> {
    for (name, content) in FILES {
        fs::write(work.join(name), content)?;
    }
    Ok(())
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8(output.stdout)?)
}

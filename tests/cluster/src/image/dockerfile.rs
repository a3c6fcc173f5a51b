//! `Dockerfile` as BuildKit reads it, compared with what `make image` makes.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;
use serde::Deserialize;

use super::run::output;
use crate::{
    oci::Config,
    tools::{build_once, cache_dir, fnv1a, go, require_go},
};

const MAIN: &str = include_str!("../../tools/dockerfile/main.go");
const GO_MOD: &str = include_str!("../../tools/dockerfile/go.mod");
const GO_SUM: &str = include_str!("../../tools/dockerfile/go.sum");
const GO: &str = "install Go 1.26 or newer, see https://go.dev/dl";

/// What BuildKit makes of a Dockerfile.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Report {
    /// What its linter says.
    warnings: Vec<String>,
    /// Images that stages start with.
    bases: Vec<String>,
    /// Instructions of the last stage, without FROM.
    r#final: Vec<String>,
    config: ConfigOf,
    /// Files that the build gets.
    pub(super) context: Vec<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct ConfigOf {
    user: String,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: String,
    labels: Option<BTreeMap<String, String>>,
}

/// Reads `Dockerfile` and `.dockerignore` of a folder, with values of the arguments.
pub(super) fn read(folder: &Path, arguments: &[(&str, &str)]) -> Result<Report> {
    let mut command = Command::new(tool()?);
    for (name, value) in arguments {
        command.arg("--build-arg").arg(format!("{name}={value}"));
    }
    Ok(serde_json::from_str(&output(command.arg(folder), GO)?)?)
}

fn tool() -> Result<PathBuf> {
    let dir = cache_dir()?.join(format!("dockerfile-{:016x}", fnv1a(&[MAIN, GO_MOD, GO_SUM])));
    build_once(&dir, |work| {
        require_go()?;
        eprintln!("building BuildKit's reader of Dockerfiles into {}; once, takes a minute", dir.display());
        for (name, content) in [("main.go", MAIN), ("go.mod", GO_MOD), ("go.sum", GO_SUM)] {
            fs::write(work.join(name), content)?;
        }
        let arguments =
            ["build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", "dockerfile", "."];
        output(&mut go(work, arguments), GO).map(drop)
    })?;
    Ok(dir.join("dockerfile"))
}

/// Where the Dockerfile would give another image than `make image` with this configuration.
pub(super) fn problems(report: &Report, config: &Config) -> Vec<String> {
    let mut problems = report.warnings.clone();
    for base in &report.bases {
        let pinned = base.split_once("@sha256:").is_some_and(|(name, digest)| name.contains(':') && digest.len() == 64);
        if base != "scratch" && !pinned {
            problems.push(format!("the base {base} is not pinned by tag and digest"));
        }
    }
    if report.bases.last().is_none_or(|base| base != "scratch") {
        problems.push(format!("the last stage starts with {:?}, not with scratch", report.bases.last()));
    }
    let adds = |line: &&String| line.starts_with("COPY") || line.starts_with("ADD") || line.starts_with("RUN");
    let files: Vec<&String> = report.r#final.iter().filter(adds).collect();
    if files != ["COPY --from=build /rootfs/ /"] {
        problems.push(format!("the last stage has {files:?}, not all of /rootfs and nothing else"));
    }
    let found = &report.config;
    let mut same = |what: &str, found: String, expected: String| {
        if found != expected {
            problems.push(format!("{what} is {found}, and {expected} in the image"));
        }
    };
    same("the user", found.user.clone(), config.user.clone());
    same("the working folder", found.working_dir.clone(), config.working_dir.clone());
    same("the entry point", list(found.entrypoint.as_deref()), list(Some(&config.entrypoint)));
    same("the command", list(found.cmd.as_deref()), list(Some(&config.cmd)));
    let labels = found.labels.clone().unwrap_or_default();
    for (name, value) in &config.labels {
        same(&format!("the label {name}"), format!("{:?}", labels.get(name)), format!("{:?}", Some(value)));
    }
    for name in labels.keys().filter(|name| !config.labels.contains_key(*name)) {
        problems.push(format!("the image does not have the label {name}"));
    }
    problems
}

fn list(words: Option<&[String]>) -> String {
    format!("{:?}", words.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            bases: vec![format!("rust:1.95.0-bookworm@sha256:{}", "0".repeat(64)), "scratch".into()],
            r#final: vec!["COPY --from=build /rootfs/ /".into(), "USER 1:1".into()],
            config: ConfigOf { user: "1:1".into(), entrypoint: Some(vec!["/torpor".into()]), ..ConfigOf::default() },
            ..Report::default()
        }
    }

    #[test]
    fn every_member_of_the_workspace_is_let_in() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
        let members = manifest.lines().find_map(|line| line.strip_prefix("members = ")).unwrap();
        let members: Vec<String> = serde_json::from_str(members).unwrap();
        let let_in = fs::read_to_string(root.join(".dockerignore")).unwrap();
        for member in members {
            let folder = format!("!{}", member.split('/').next().unwrap());
            assert!(let_in.lines().any(|line| line == folder), "{folder} is missing in .dockerignore");
        }
    }

    #[test]
    fn differences_are_told() {
        let config = Config { user: "1:1".into(), entrypoint: vec!["/torpor".into()], ..Config::default() };
        assert_eq!(problems(&report(), &config), Vec::<String>::new());

        let mut unpinned = report();
        unpinned.bases[0] = "rust:1.95.0-bookworm".into();
        unpinned.r#final.push("COPY --from=build /bin/sh /bin/sh".into());
        unpinned.config.user = "root".into();
        let found = problems(&unpinned, &config).join("\n");
        for part in ["not pinned", "/bin/sh", "the user is root"] {
            assert!(found.contains(part), "{found}");
        }
    }
}

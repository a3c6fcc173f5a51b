//! `make image-check`: the image built twice, in other folders and in another way, and looked at.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{
    Image, build, config, dockerfile, listing,
    run::{output, shown},
    source::Source,
};
use crate::oci;

/// For the archive as it is, which is larger than what a registry would send.
const LARGEST: u64 = 25_000_000;

/// Builds the commit of `source` twice and fails with everything that is wrong; else the image is in the folder `out`.
/// Minutes: both builds start from nothing.
pub fn check(source: &Source, out: &Path) -> Result<Image> {
    ensure!(
        !source.revision.ends_with("-dirty"),
        "files differ from the commit, and it is the commit that is built: commit first (git status)"
    );
    let work = source.target.join("image-check");
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    fs::create_dir_all(&work)?;

    let clone = work.join("a");
    let git = |arguments: &[&str]| output(Command::new("git").args(arguments), "install the package git");
    git(&["clone", "--quiet", text(&source.dir)?, text(&clone)?])?;
    git(&["-C", text(&clone)?, "checkout", "--quiet", &source.revision])?;
    eprintln!("building {} in {}", source.revision, clone.display());
    let cloned = Source::find(&clone)?.with_target(&work.join("target-a"));
    let image = build(&cloned, &work.join("out-a"))?;

    let created = cloned.created()?;
    let arguments = [("VERSION", cloned.version.as_str()), ("REVISION", &cloned.revision), ("CREATED", &created)];
    let docker = dockerfile::read(&clone, &arguments)?;
    let again = from_context(&cloned, &docker.context, &work)?;

    let mut problems = dockerfile::problems(&docker, &config(&cloned)?);
    if image.digest != again.digest {
        problems.push(format!("two builds differ: {} and {}; see {}", image.digest, again.digest, work.display()));
    }
    if fs::read(&image.sbom)? != fs::read(&again.sbom)? {
        problems.push("two bills of materials differ".to_owned());
    }
    problems.extend(inspect(&image, &cloned, &work)?);
    if !problems.is_empty() {
        bail!("{}", problems.join("\n"));
    }
    println!("{} built twice: {}", image.name, image.digest);
    fs::create_dir_all(out)?;
    let left = |file: &Path| {
        let to = out.join(file.file_name().unwrap_or_default());
        fs::copy(file, &to).map(|_| to).with_context(|| format!("cannot copy {}", file.display()))
    };
    let image = Image { archive: left(&image.archive)?, sbom: left(&image.sbom)?, ..image };
    fs::remove_dir_all(&work)?;
    Ok(image)
}

/// The second build: from what a build of the Dockerfile gets, without a git repository, in a folder with another length
/// and a space in its name, with another CARGO_HOME.
fn from_context(source: &Source, files: &[PathBuf], work: &Path) -> Result<Image> {
    let dir = work.join("a build of the Dockerfile");
    for file in files {
        let to = dir.join(file);
        fs::create_dir_all(to.parent().unwrap_or(&dir))?;
        fs::copy(source.dir.join(file), to)?;
    }
    let home = copy_of_cargo_home(work)?;
    let out = work.join("out-b");
    eprintln!("building again in {}", dir.display());
    let mut cargo = Command::new("cargo");
    cargo
        .args(["run", "--quiet", "--locked", "--package", "torpor-cluster", "--bin", "torpor-image", "--", "build"])
        .arg("--out")
        .arg(&out)
        .current_dir(&dir)
        .env("CARGO_HOME", home)
        .env("CARGO_TARGET_DIR", work.join("target-of-the-second-build"))
        .env("SOURCE_DATE_EPOCH", source.epoch.to_string())
        .env("TORPOR_REVISION", &source.revision);
    shown(&mut cargo).context("the build from the files that .dockerignore lets in")?;
    let again = Source { dir, ..source.clone() };
    let archive = out.join("torpor.oci.tar");
    let digest = oci::validate(&unpacked(&archive, &work.join("unpacked-b"))?)?;
    Ok(Image { name: again.version, archive, sbom: out.join("torpor.sbom.json"), digest })
}

/// Only what was downloaded, so that nothing has to be again.
fn copy_of_cargo_home(work: &Path) -> Result<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let from = set("CARGO_HOME").or_else(|| set("HOME").map(|home| home.join(".cargo"))).context("HOME is not set")?;
    let to = work.join("cargo-home");
    fs::create_dir_all(to.join("registry"))?;
    for part in ["registry/cache", "registry/index", "config.toml"] {
        if from.join(part).exists() {
            output(Command::new("cp").arg("-a").arg(from.join(part)).arg(to.join(part)), "install coreutils")?;
        }
    }
    Ok(to)
}

fn unpacked(archive: &Path, into: &Path) -> Result<PathBuf> {
    fs::create_dir_all(into)?;
    let mut tar = Command::new("tar");
    output(tar.arg("--extract").arg("--file").arg(archive).arg("--directory").arg(into), "install the package tar")?;
    Ok(into.to_owned())
}

fn inspect(image: &Image, source: &Source, work: &Path) -> Result<Vec<String>> {
    let folder = unpacked(&image.archive, &work.join("unpacked-a"))?;
    ensure!(oci::validate(&folder)? == image.digest, "the archive holds another image than was written");
    let index = json(&folder.join("index.json"))?;
    let manifest = json(&blob(&folder, &index["manifests"][0]["digest"])?)?;
    let document = json(&blob(&folder, &manifest["config"]["digest"])?)?;
    let layer = blob(&folder, &manifest["layers"][0]["digest"])?;

    let created = source.created()?;
    let mut problems = Vec::new();
    if manifest["layers"].as_array().is_none_or(|layers| layers.len() != 1) {
        problems.push(format!("not one layer: {}", manifest["layers"]));
    }
    let expected = serde_json::to_value(config(source)?)?;
    if document["config"] != expected {
        problems.push(format!("the configuration is {}, not {expected}", document["config"]));
    }
    if document["created"] != created.as_str() {
        problems.push(format!("created is {}, not {created}", document["created"]));
    }
    let entries = listing::of(&layer)?;
    problems.extend(listing::problems(&entries, &created));
    problems.extend(sizes(image, &layer, &entries)?);
    Ok(problems)
}

/// Prints them, for the documentation.
fn sizes(image: &Image, layer: &Path, entries: &[listing::Entry]) -> Result<Option<String>> {
    let archive = fs::metadata(&image.archive)?.len();
    let compressed = layer.with_extension("gz");
    output(
        Command::new("sh").args(["-c", "gzip -9 --no-name <\"$1\" >\"$2\"", "sh"]).arg(layer).arg(&compressed),
        "install the package gzip",
    )?;
    let program = entries.iter().find(|entry| entry.path == "torpor").map_or(0, |entry| entry.size);
    let files = entries.iter().filter(|entry| entry.size > 0).count();
    println!(
        "files: {files}; program: {program} bytes; archive: {archive}; layer by gzip -9: {}",
        fs::metadata(compressed)?.len()
    );
    Ok((archive > LARGEST).then(|| format!("the archive has {archive} bytes, more than {LARGEST}")))
}

fn blob(folder: &Path, digest: &Value) -> Result<PathBuf> {
    let hex = digest.as_str().and_then(|digest| digest.strip_prefix("sha256:")).context("no digest")?;
    Ok(folder.join("blobs/sha256").join(hex))
}

fn json(file: &Path) -> Result<Value> {
    Ok(serde_json::from_slice(&fs::read(file)?)?)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not text", path.display()))
}

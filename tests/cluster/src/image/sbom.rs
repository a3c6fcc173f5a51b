//! The software bill of materials: what cargo-cyclonedx finds, less what is not in the program, and Debian's packages.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    compile::Toolchain,
    crates::Crate,
    debian::{Libraries, Package},
    run::output,
    source::Source,
};
use crate::tools::{build_once, cache_dir};

const VERSION: &str = "0.5.9";
const CARGO: &str = "install Rust 1.89 or newer, see https://rustup.rs";
/// Stands for the folder of the sources, wherever that is.
const FOLDER: &str = "/torpor";
const FILE: &str = "bill";

/// CycloneDX JSON; the same sources and packages give the same text.
pub(super) fn make(source: &Source, toolchain: &Toolchain, crates: &[Crate], libraries: &Libraries) -> Result<String> {
    let program = tool()?;
    let skeleton = skeleton(source)?;
    output(
        Command::new(program)
            .args(["cyclonedx", "--format", "json", "--spec-version", "1.5", "--no-build-deps", "--quiet"])
            .args(["--target", &toolchain.host, "--override-filename", FILE, "--manifest-path"])
            .arg(skeleton.join("Cargo.toml"))
            // The tool then leaves out the random number that would make each bill another one.
            .env("SOURCE_DATE_EPOCH", source.epoch.to_string()),
        CARGO,
    )?;
    let text = fs::read_to_string(skeleton.join(format!("{FILE}.json"))).context("cargo-cyclonedx wrote no bill")?;
    fs::remove_dir_all(&skeleton)?;
    let bill = serde_json::from_str(&text.replace(&skeleton.display().to_string(), FOLDER))?;
    let names: BTreeSet<(&str, &str)> = crates.iter().map(|one| (&*one.name, &*one.version)).collect();
    let mut bill = only(bill, &names)?;
    add(&mut bill, &toolchain.version, &libraries.packages, &libraries.os_release)?;
    Ok(format!("{bill}\n"))
}

fn tool() -> Result<PathBuf> {
    let dir = cache_dir()?.join(format!("cargo-cyclonedx-{VERSION}"));
    build_once(&dir, |work| {
        eprintln!("building cargo-cyclonedx {VERSION} into {}; once, takes minutes", dir.display());
        let package = format!("cargo-cyclonedx@{VERSION}");
        let mut cargo = Command::new("cargo");
        // Built outside of the project's target folder, which it would only fill.
        cargo.args(["install", "--quiet", "--locked", "--root"]).arg(work).arg(package).env_remove("CARGO_TARGET_DIR");
        output(&mut cargo, CARGO).map(drop)
    })?;
    Ok(dir.join("bin/cargo-cyclonedx"))
}

/// The tool writes beside each manifest of the workspace, so it gets a workspace of manifests only.
fn skeleton(source: &Source) -> Result<PathBuf> {
    let to = source.target.join("bill-of-materials");
    if to.exists() {
        fs::remove_dir_all(&to)?;
    }
    let metadata = output(
        Command::new("cargo")
            .args(["metadata", "--format-version=1", "--no-deps", "--locked"])
            .current_dir(&source.dir),
        CARGO,
    )?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let place = |path: &Value| -> Result<(PathBuf, PathBuf)> {
        let from = PathBuf::from(path.as_str().context("cargo metadata lacks a path")?);
        let to = to.join(from.strip_prefix(&source.dir)?);
        fs::create_dir_all(to.parent().context("a file without a folder")?)?;
        Ok((from, to))
    };
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let (from, to) = place(&package["manifest_path"])?;
        fs::copy(from, to)?;
        for target in package["targets"].as_array().into_iter().flatten() {
            // Cargo asks only whether they are there.
            fs::write(place(&target["src_path"])?.1, "")?;
        }
    }
    fs::copy(source.dir.join("Cargo.lock"), to.join("Cargo.lock"))?;
    Ok(to)
}

/// The bill without what tests, macros and build scripts need.
fn only(mut bill: Value, names: &BTreeSet<(&str, &str)>) -> Result<Value> {
    let key = |component: &Value| {
        let text = |field: &str| component[field].as_str().unwrap_or_default().to_owned();
        (text("name"), text("version"))
    };
    let root = bill["metadata"]["component"].clone();
    let components = bill["components"].as_array_mut().context("the bill has no components")?;
    components.retain(|component| {
        let (name, version) = key(component);
        names.contains(&(&*name, &*version))
    });
    let listed: BTreeSet<(String, String)> = components.iter().chain([&root]).map(key).collect();
    for (name, version) in names {
        ensure!(listed.contains(&((*name).to_owned(), (*version).to_owned())), "the bill lacks {name} {version}");
    }
    let kept: BTreeSet<String> =
        components.iter().chain([&root]).filter_map(|one| one["bom-ref"].as_str().map(ToOwned::to_owned)).collect();
    let is_kept = |reference: &Value| reference.as_str().is_some_and(|reference| kept.contains(reference));
    let dependencies = bill["dependencies"].as_array_mut().context("the bill has no dependencies")?;
    dependencies.retain(|one| is_kept(&one["ref"]));
    for one in dependencies {
        // Asking by index would add a field where there is none.
        if let Some(on) = one.get_mut("dependsOn").and_then(Value::as_array_mut) {
            on.retain(is_kept);
        }
    }
    Ok(bill)
}

/// Adds what is beside the program in the image, and the compiler.
fn add(bill: &mut Value, compiler: &str, packages: &BTreeSet<Package>, os_release: &str) -> Result<()> {
    let release: BTreeMap<&str, &str> = os_release.lines().filter_map(|line| line.split_once('=')).collect();
    let of_system = |field: &str| release.get(field).map_or("", |value| value.trim_matches('"'));
    let (system, version) = (of_system("ID"), of_system("VERSION_ID"));
    let root = bill["metadata"]["component"]["bom-ref"].clone();
    let properties = &mut bill["metadata"]["properties"];
    if properties.is_null() {
        *properties = json!([]);
    }
    properties.as_array_mut().context("the bill's properties are no list")?.push(json!({
        "name": "torpor:compiler",
        "value": compiler,
    }));
    let mut references = Vec::new();
    for package in packages {
        let reference = format!(
            "pkg:deb/{system}/{}@{}?arch={}&distro={system}-{version}",
            package.name,
            encoded(&package.version),
            package.architecture,
        );
        references.push(json!(reference));
        bill["components"].as_array_mut().context("the bill has no components")?.push(json!({
            "type": "library",
            "bom-ref": reference,
            "name": package.name,
            "version": package.version,
            "purl": reference,
        }));
    }
    let dependencies = bill["dependencies"].as_array_mut().context("the bill has no dependencies")?;
    for reference in &references {
        dependencies.push(json!({"ref": reference}));
    }
    let of_root = dependencies.iter_mut().find(|one| one["ref"] == root);
    let on =
        of_root.and_then(|one| one["dependsOn"].as_array_mut()).context("the bill does not say what Torpor needs")?;
    on.extend(references);
    Ok(())
}

/// As package URLs want versions.
fn encoded(version: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-_~:".contains(c);
    version.chars().map(|c| if plain(c) { c.to_string() } else { format!("%{:02X}", u32::from(c)) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bill() -> Value {
        let component = |name: &str| json!({"bom-ref": name, "name": name, "version": "1.0.0"});
        json!({
            "metadata": {"component": component("torpor")},
            "components": [component("serde"), component("itoa"), component("serde_derive")],
            "dependencies": [
                {"ref": "torpor", "dependsOn": ["serde"]},
                {"ref": "serde", "dependsOn": ["serde_derive"]},
                {"ref": "itoa"},
                {"ref": "serde_derive"},
            ],
        })
    }

    #[test]
    fn what_is_not_in_the_program_goes() {
        let names = BTreeSet::from([("torpor", "1.0.0"), ("serde", "1.0.0"), ("itoa", "1.0.0")]);
        let bill = only(bill(), &names).expect("a bill");
        assert_eq!(bill["components"].as_array().map(Vec::len), Some(2));
        assert_eq!(
            bill["dependencies"],
            json!([{"ref": "torpor", "dependsOn": ["serde"]}, {"ref": "serde", "dependsOn": []}, {"ref": "itoa"}])
        );
    }

    #[test]
    fn nothing_of_the_program_is_missing() {
        let names = BTreeSet::from([("torpor", "1.0.0"), ("tokio", "1.0.0")]);
        let error = only(bill(), &names).expect_err("tokio is not in the bill");
        assert!(error.to_string().contains("tokio 1.0.0"), "{error}");
    }

    #[test]
    fn packages_are_added() {
        let package = Package {
            name: "libc6".into(),
            version: "2.36-9+deb12u14".into(),
            architecture: "amd64".into(),
            stanza: String::new(),
        };
        let mut bill = bill();
        let release = "ID=debian\nVERSION_ID=\"12\"\n";
        add(&mut bill, "rustc 1.95.0", &BTreeSet::from([package]), release).expect("a bill");
        let reference = "pkg:deb/debian/libc6@2.36-9%2Bdeb12u14?arch=amd64&distro=debian-12";
        assert_eq!(bill["components"][3]["purl"], reference);
        assert_eq!(bill["dependencies"][0]["dependsOn"], json!(["serde", reference]));
    }
}

//! Images unpacked once for all nodes and runs.
//!
//! containerd never changes a layer or a blob that it has written, so nodes share them by hard links; only its small
//! databases are copied. Unpacking two gigabytes on each node at each start would take longer than all the rest.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use torpor_cluster::process::Spawner;

use super::{
    command::run,
    programs::Programs,
    runtime::{self, DATA},
    space::Space,
    state::home,
    worker::stop,
};

/// The list of what was imported, beside the data.
const LIST: &str = "archives";

/// The folder of unpacked images, with at least those of `archives`; made anew if one is missing or has changed.
pub(super) fn ensure(archives: &[PathBuf], programs: &Programs, spawner: &Spawner) -> Result<PathBuf> {
    let store = home()?.join("images");
    let wanted: Vec<String> = archives.iter().map(|archive| runtime::key(archive)).collect::<Result<_>>()?;
    let there = fs::read_to_string(store.join(LIST)).unwrap_or_default();
    if wanted.iter().all(|key| there.lines().any(|line| line == key)) {
        return Ok(store);
    }
    eprintln!("unpacking {} images (once for this set of images)", archives.len());
    let partial = store.with_extension("partial");
    remove(&partial)?;
    fs::create_dir_all(&partial)?;
    fill(&partial, archives, programs, spawner)?;
    fs::write(partial.join(LIST), wanted.join("\n"))?;
    remove(&store)?;
    fs::rename(&partial, &store)?;
    Ok(store)
}

fn fill(dir: &Path, archives: &[PathBuf], programs: &Programs, spawner: &Spawner) -> Result<()> {
    let space = Space::start(spawner, "torpor-images", &runtime::setup(dir), dir)?;
    let mut containerd = runtime::component(&space, programs, dir)?;
    runtime::start(&mut containerd, spawner, &space, programs)?;
    archives.iter().try_for_each(|archive| runtime::import(&space, programs, archive))?;
    stop(&mut containerd)
}

/// Gives a node, whose `/var/lib` is to be `lib`, the images of the store.
pub(super) fn share(store: &Path, lib: &Path) -> Result<()> {
    let (from, to) = (store.join(DATA), lib.join(DATA));
    run(Command::new("cp").args(["--archive", "--link", "--"]).args([&from, &to]), "")
        .context("cannot share images")?;
    // Layers and blobs lie deeper; what lies here is written to.
    for plugin in fs::read_dir(&to)? {
        let plugin = plugin?;
        if !plugin.file_type()?.is_dir() {
            continue;
        }
        for file in fs::read_dir(plugin.path())? {
            let file = file?;
            if file.file_type()?.is_file() {
                let copy = file.path().with_extension("copy");
                fs::copy(file.path(), &copy)?;
                fs::rename(&copy, file.path())?;
            }
        }
    }
    Ok(())
}

fn remove(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot delete {}", dir.display()))?;
    }
    Ok(())
}

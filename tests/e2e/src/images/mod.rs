//! Images of what tenants run, made on this machine from package registries alone, under the names that the operator
//! asks for with `--image-registry registry.torpor.test`.
//!
//! The real Hummingbot, PostgreSQL, Redis, postgres_exporter and Streamlit run in them. Each layer and each archive is
//! built once and kept in the cache under a hash of what it is made of.

mod debian;
mod layer;
mod list;

use std::{path::PathBuf, sync::Mutex, thread, time::Instant};

use anyhow::{Context, Result, bail, ensure};
use torpor_cluster::{
    build_once, cache_dir, hash,
    oci::{self, Archive, Config},
};

use crate::node::check_machine;
use layer::Layer;

/// The registry in the images' names. Nothing listens there: the images are imported on every node.
pub const REGISTRY: &str = "registry.torpor.test";

/// Built side by side: more would only wait for each other on a small machine.
const WORKERS: usize = 2;

/// One image.
struct Image {
    /// Repository and tag, without registry.
    name: &'static str,
    layers: Vec<Layer>,
    config: Config,
}

/// Builds the images that are not in the cache, which takes minutes, and gives the OCI archives of all. `progress` is
/// told what begins and ends.
pub fn ensure(progress: impl Fn(&str) + Sync) -> Result<Vec<PathBuf>> {
    ensure!(
        cfg!(all(target_arch = "x86_64", target_os = "linux")),
        "the Python packages of the images are pinned for x86-64 Linux: run it on such a machine"
    );
    check_machine()?;
    let images = list::all();
    let archives: Vec<PathBuf> = images.iter().map(Image::archive).collect::<Result<_>>()?;
    let missing = Mutex::new(images.iter().zip(&archives).filter(|(_, archive)| !archive.is_file()));
    let next = || missing.lock().ok().and_then(|mut missing| missing.next());
    let work = || -> Result<()> {
        while let Some((image, _)) = next() {
            let started = Instant::now();
            progress(&format!("building the image {}", image.name));
            image.build().with_context(|| format!("cannot build the image {}", image.name))?;
            progress(&format!("built the image {} in {} s", image.name, started.elapsed().as_secs()));
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            match worker.join() {
                Ok(done) => done?,
                Err(_) => bail!("a builder of images panicked"),
            }
        }
        Ok(())
    })?;
    Ok(archives)
}

impl Image {
    /// Where its archive is, or will be.
    fn archive(&self) -> Result<PathBuf> {
        let layers: Vec<String> = self.layers.iter().map(|layer| format!("{:016x}", layer.key())).collect();
        let config = serde_json::to_string(&self.config)?;
        let key = hash(&[self.name, &layers.join(" "), &config]);
        let (repository, _) = self.name.split_once(':').context("an image has a tag")?;
        let dir = cache_dir()?.join(format!("image-{}-{key:016x}", repository.replace('/', "-")));
        Ok(dir.join("image.oci.tar"))
    }

    fn build(&self) -> Result<()> {
        let layers: Vec<PathBuf> = self.layers.iter().map(Layer::ensure).collect::<Result<_>>()?;
        let archive = self.archive()?;
        build_once(archive.parent().context("an archive has a folder")?, |work| {
            oci::write(&Archive {
                name: format!("{REGISTRY}/{}", self.name),
                layers,
                config: self.config.clone(),
                out: work.join("image.oci.tar"),
                ..Archive::default()
            })?;
            Ok(())
        })
    }
}

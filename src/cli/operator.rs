//! `torpor operator`: settings from flags and environment, then its loops.

use clap::ValueEnum;

use super::Failure;
use super::process::{self, Leading, ProcessArgs};
use crate::cluster::watch;
use crate::controllers::run::{self, Start};
use crate::domain::names;
use crate::plan::Settings;
use crate::plan::settings::{UserNamespaces, VolumeAccess, default_exporter};

/// Options of `torpor operator`. Each is a flag and an environment variable.
#[derive(Debug, clap::Args)]
pub struct OperatorArgs {
    #[command(flatten)]
    process: ProcessArgs,
    /// Whether pods run in a user namespace of their own (hostUsers: false). Nodes must support it.
    #[arg(long, env = "TORPOR_USER_NAMESPACES", value_enum, default_value_t = Switch::On)]
    pub user_namespaces: Switch,
    /// StorageClass of all volumes. Default: the cluster's.
    #[arg(long, env = "TORPOR_STORAGE_CLASS")]
    pub storage_class: Option<String>,
    /// Access mode of all volumes; ReadWriteOnce for storage drivers that lack ReadWriteOncePod.
    #[arg(long, env = "TORPOR_VOLUME_ACCESS", value_enum, default_value_t = Access::ReadWriteOncePod)]
    pub volume_access: Access,
    /// Registry of all images that name none, `registry.example.com/mirror` for example. A change restarts no bot, no database and no Redis. Default: Docker Hub.
    #[arg(long, env = "TORPOR_IMAGE_REGISTRY", value_name = "REGISTRY", value_parser = registry)]
    pub image_registry: Option<String>,
    /// Image of the PostgreSQL metrics exporter. Default: prometheuscommunity/postgres-exporter:v0.20.1 of quay.io, or of the registry for all images.
    #[arg(long, env = "TORPOR_EXPORTER_IMAGE")]
    pub exporter_image: Option<String>,
    /// Names of image pull Secrets in the tenants' namespaces, separated by commas.
    #[arg(long, env = "TORPOR_IMAGE_PULL_SECRETS", value_delimiter = ',')]
    pub image_pull_secrets: Vec<String>,
    /// Namespace whose pods may reach the dashboards.
    #[arg(long, env = "TORPOR_GATEWAY_NAMESPACE", default_value_t = Settings::default().gateway_namespace)]
    pub gateway_namespace: String,
    /// Value of the label kubernetes.io/metadata.name of the namespace whose pods may scrape tenants' metrics. Default: none may.
    #[arg(long, env = "TORPOR_SCRAPER_NAMESPACE")]
    pub scraper_namespace: Option<String>,
    /// IngressClass by which dashboards with a host are reached from outside. Default: they get no Ingress.
    #[arg(long, env = "TORPOR_INGRESS_CLASS")]
    pub ingress_class: Option<String>,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

/// Access mode of volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Access {
    /// One pod at a time.
    #[value(name = "ReadWriteOncePod")]
    ReadWriteOncePod,
    /// One node at a time.
    #[value(name = "ReadWriteOnce")]
    ReadWriteOnce,
}

/// Runs the operator until it is asked to stop, or must.
///
/// # Errors
/// [`Failure`], one line.
pub fn run(args: OperatorArgs) -> Result<(), Failure> {
    let settings = settings(&args);
    process::lead(names::OPERATOR, args.process, &watch::NAMES, |leading| async move {
        let Leading { clock, catalog, cluster, health, metrics, leader: _ } = leading;
        Ok(run::operator(cluster, Start { clock, catalog, settings, health, metrics }).await)
    })
}

/// A host that could be a registry's, and lower-case path segments below it.
fn registry(text: &str) -> Result<String, String> {
    let segment = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-:".contains(c))
    };
    let host = text.split('/').next().unwrap_or_default();
    let named = host.contains(['.', ':']) || host == "localhost";
    if named && text.split('/').all(segment) {
        Ok(text.to_owned())
    } else {
        Err("not a registry such as registry.example.com/mirror".to_owned())
    }
}

fn settings(args: &OperatorArgs) -> Settings {
    Settings {
        exporter_image: args.exporter_image.clone().unwrap_or_else(|| {
            args.image_registry.as_deref().map_or_else(|| Settings::default().exporter_image, default_exporter)
        }),
        image_registry: args.image_registry.clone(),
        user_namespaces: match args.user_namespaces {
            Switch::On => UserNamespaces::On,
            Switch::Off => UserNamespaces::Off,
        },
        storage_class: args.storage_class.clone(),
        volume_access: match args.volume_access {
            Access::ReadWriteOncePod => VolumeAccess::ReadWriteOncePod,
            Access::ReadWriteOnce => VolumeAccess::ReadWriteOnce,
        },
        image_pull_secrets: args.image_pull_secrets.clone(),
        gateway_namespace: args.gateway_namespace.clone(),
        scraper_namespaces: args
            .scraper_namespace
            .iter()
            .map(|name| [("kubernetes.io/metadata.name".to_owned(), name.clone())].into())
            .next(),
        ingress_class: args.ingress_class.clone(),
        ..Settings::default()
    }
}

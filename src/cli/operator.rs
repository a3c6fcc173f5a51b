//! `torpor operator`: settings from flags and environment, then its loops.

use std::collections::BTreeMap;
use std::str::FromStr;

use clap::ValueEnum;
use ipnet::IpNet;

use super::Failure;
use super::process::{self, Leading, ProcessArgs};
use crate::cluster::watch;
use crate::controllers::run::{self, Start};
use crate::domain::names;
use crate::plan::Settings;
use crate::plan::settings::{Dns, UserNamespaces, VolumeAccess, default_exporter};

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
    /// Labels of the namespace of the cluster's name servers, `key=value`, separated by commas.
    #[arg(
        long,
        env = "TORPOR_DNS_NAMESPACE_LABELS",
        value_name = "LABELS",
        default_value = "kubernetes.io/metadata.name=kube-system"
    )]
    pub dns_namespace_labels: Labels,
    /// Addresses of name servers that are no pods, such as node-local caches, in CIDR notation and separated by commas.
    #[arg(long, env = "TORPOR_DNS_ADDRESSES", value_name = "CIDRS", default_value = "169.254.20.10/32")]
    pub dns_addresses: Cidrs,
    /// Addresses that bots must not reach besides private ones, such as public addresses of nodes, in CIDR notation and separated by commas.
    #[arg(long, env = "TORPOR_NOT_INTERNET", value_name = "CIDRS", default_value = "", value_parser = not_all)]
    pub not_internet: Cidrs,
}

/// Addresses in CIDR notation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cidrs(Vec<IpNet>);

impl FromStr for Cidrs {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let net = |part: &str| {
            let net = part.trim().parse::<IpNet>().map(|net| net.trunc());
            net.map_err(|_| format!("{part:?} is not in CIDR notation, such as 192.0.2.0/24"))
        };
        parts(text).map(net).collect::<Result<_, _>>().map(Cidrs)
    }
}

/// Not all addresses: a policy cannot except what it allows as a whole.
fn not_all(text: &str) -> Result<Cidrs, String> {
    let nets: Cidrs = text.parse()?;
    match nets.0.iter().find(|net| net.prefix_len() == 0) {
        Some(all) => Err(format!("{all} is all there is")),
        None => Ok(nets),
    }
}

/// Labels and their values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels(BTreeMap<String, String>);

impl FromStr for Labels {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let label = |part: &str| match part.trim().split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            Some(_) | None => Err(format!("{part:?} is no label such as kubernetes.io/metadata.name=kube-system")),
        };
        let labels: BTreeMap<_, _> = parts(text).map(label).collect::<Result<_, _>>()?;
        // Without one every namespace would be theirs.
        if labels.is_empty() { Err("at least one label is needed".to_owned()) } else { Ok(Labels(labels)) }
    }
}

fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').filter(|part| !part.trim().is_empty())
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
        dns: Dns { namespace_labels: args.dns_namespace_labels.0.clone(), addresses: args.dns_addresses.0.clone() },
        not_internet: args.not_internet.0.clone(),
        gateway_namespace: args.gateway_namespace.clone(),
        scraper_namespaces: args
            .scraper_namespace
            .iter()
            .map(|name| [("kubernetes.io/metadata.name".to_owned(), name.clone())].into())
            .next(),
        ingress_class: args.ingress_class.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_labels_are_read_or_refused() {
        let cidrs = |text: &str| text.parse::<Cidrs>().map(|cidrs| cidrs.0.iter().map(ToString::to_string).collect());
        assert_eq!(cidrs(""), Ok(vec![]));
        assert_eq!(
            cidrs("169.254.10.11/32, fd00::7/64"),
            Ok(vec!["169.254.10.11/32".to_owned(), "fd00::/64".to_owned()])
        );
        for text in ["169.254.20.10", "10.0.0.0/33", "a,b"] {
            assert!(cidrs(text).expect_err(text).contains("CIDR"), "{text}");
        }
        assert!(
            ["0.0.0.0/0", "10.0.0.0/8,::/0"].iter().all(|text| text.parse::<Cidrs>().is_ok() && not_all(text).is_err())
        );
        let labels = "a/b=c,d=".parse::<Labels>().expect("labels").0;
        assert_eq!(labels, [("a/b".to_owned(), "c".to_owned()), ("d".to_owned(), String::new())].into());
        assert!(["", "kube-system", "=x"].iter().all(|text| text.parse::<Labels>().is_err()));
    }
}

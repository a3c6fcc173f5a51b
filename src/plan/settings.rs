//! Settings of the operator that shape the objects of every tenant.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::IpNet;

/// What the operator's administrator chose for all tenants. None of it is part of a restart hash,
/// so a change never restarts a bot: pods take it over when they are replaced for another reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Image of the `PostgreSQL` metrics exporter.
    pub exporter_image: String,
    /// Registry, with a path below it if need be, of every image that names no registry; without it that is Docker Hub.
    pub image_registry: Option<String>,
    /// Whether pods run in a user namespace of their own (`hostUsers: false`).
    pub user_namespaces: UserNamespaces,
    /// `StorageClass` of every volume; none means the cluster's default class.
    pub storage_class: Option<String>,
    /// How exclusively a volume is mounted.
    pub volume_access: VolumeAccess,
    /// Names of image pull Secrets. They must exist in the tenants' namespaces.
    pub image_pull_secrets: Vec<String>,
    /// Where pods may ask for names.
    pub dns: Dns,
    /// Addresses that bots must not reach, besides those that are nobody's internet: public ones of the cluster's own network.
    pub not_internet: Vec<IpNet>,
    /// Namespace whose pods may reach the dashboards: the one the gateway runs in.
    pub gateway_namespace: String,
    /// Labels of the namespaces whose pods may scrape metrics; none means that nobody may.
    pub scraper_namespaces: Option<BTreeMap<String, String>>,
    /// `IngressClass` by which dashboards with a host are reached from outside. Default: they get no Ingress.
    pub ingress_class: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            exporter_image: default_exporter("quay.io"),
            image_registry: None,
            user_namespaces: UserNamespaces::default(),
            storage_class: None,
            volume_access: VolumeAccess::default(),
            image_pull_secrets: Vec::new(),
            dns: Dns::default(),
            not_internet: Vec::new(),
            gateway_namespace: "torpor-system".to_owned(),
            scraper_namespaces: None,
            ingress_class: None,
        }
    }
}

/// The default image of the metrics exporter, which Docker Hub does not have, in a registry.
pub fn default_exporter(registry: &str) -> String {
    format!("{registry}/prometheuscommunity/postgres-exporter:v0.20.1")
}

impl Settings {
    /// The image to pull for one that is asked for.
    pub fn image(&self, asked: &str) -> String {
        let Some(registry) = &self.image_registry else { return asked.to_owned() };
        // The rule of image references: what stands before the first slash is a registry if it has a dot or a port.
        match asked.split_once('/') {
            Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => asked.to_owned(),
            Some(_) => format!("{registry}/{asked}"),
            None => format!("{registry}/library/{asked}"),
        }
    }
}

/// Whether root inside a pod is nobody on the node. Chosen, never detected: a value that followed
/// the state of nodes would change pod templates, and with them restart bots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UserNamespaces {
    /// Pods have user namespaces. Needs Kubernetes 1.33 and nodes that support them.
    #[default]
    On,
    /// Pods share the node's user namespace.
    Off,
}

/// Access mode of every volume claim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VolumeAccess {
    /// One pod at a time, which keeps a second copy of a bot from ever running on the same data.
    #[default]
    ReadWriteOncePod,
    /// One node at a time, for storage drivers without `ReadWriteOncePod`.
    ReadWriteOnce,
}

impl VolumeAccess {
    /// Kubernetes' name of the access mode.
    pub const fn as_str(self) -> &'static str {
        match self {
            VolumeAccess::ReadWriteOncePod => "ReadWriteOncePod",
            VolumeAccess::ReadWriteOnce => "ReadWriteOnce",
        }
    }
}

/// The cluster's name servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    /// Labels of the namespace in which they run.
    pub namespace_labels: BTreeMap<String, String>,
    /// Addresses outside of pods that answer, too. Default: that of Kubernetes' node-local cache, which no pod selector
    /// matches because it runs in the node's network.
    pub addresses: Vec<IpNet>,
}

impl Default for Dns {
    fn default() -> Self {
        let labels = [("kubernetes.io/metadata.name".to_owned(), "kube-system".to_owned())];
        let cache = Ipv4Addr::new(169, 254, 20, 10);
        Self { namespace_labels: labels.into(), addresses: vec![IpNet::V4(cache.into())] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_images_without_a_registry_move() {
        let settings = Settings { image_registry: Some("mirror.example/hub".to_owned()), ..Settings::default() };
        for (asked, pulled) in [
            ("postgres:17.11-bookworm", "mirror.example/hub/library/postgres:17.11-bookworm"),
            ("hummingbot/hummingbot:version-2.16.0", "mirror.example/hub/hummingbot/hummingbot:version-2.16.0"),
            ("quay.io/prometheuscommunity/postgres-exporter:v1", "quay.io/prometheuscommunity/postgres-exporter:v1"),
            ("localhost/bot:1", "localhost/bot:1"),
            ("registry:5000/bot@sha256:0", "registry:5000/bot@sha256:0"),
        ] {
            assert_eq!(settings.image(asked), pulled);
            assert_eq!(Settings::default().image(asked), asked);
        }
    }
}

//! Who may talk to whom: nobody, except as said here.

use std::collections::BTreeMap;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
    NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::scope::Scope;
use super::{Child, dashboard, monitoring, postgres, redis};
use crate::domain::names::{self, Component, label};

/// IPv4 addresses that are not the internet (RFC 6890), the ranges for documentation apart. Link-local holds the clouds' metadata
/// services, which hand out the node's credentials; `192.0.0.0/24` has that of Oracle's cloud, and `168.63.129.16`, a public
/// address by its number, is Azure's `WireServer`, by which a node is set up.
const NOT_INTERNET_V4: [&str; 12] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "168.63.129.16/32",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
];
/// IPv6 addresses that are not the internet. `fc00::/7` holds the metadata service `fd00:ec2::254`;
/// the NAT64 and 6to4 prefixes would lead to the IPv4 addresses above. Mapped addresses
/// (`::ffff:0:0/96`) never leave a host, and the API server refuses them.
const NOT_INTERNET_V6: [&str; 6] = ["::1/128", "64:ff9b::/96", "2002::/16", "fc00::/7", "fe80::/10", "ff00::/8"];

/// Every policy of a tenant.
pub(super) fn plan(scope: &Scope) -> Vec<Child> {
    let mut policies = vec![default(scope), clients(scope), stores(scope), internet(scope), dashboards(scope)];
    policies.extend(scrapers(scope));
    policies.into_iter().map(Child::NetworkPolicy).collect()
}

/// Pods of a tenant that play any of these parts.
pub(super) fn pods(tenant: &str, components: &[Component]) -> LabelSelector {
    if let [component] = components {
        let labels = names::selector(tenant, *component);
        return LabelSelector { match_labels: Some(labels), ..LabelSelector::default() };
    }
    LabelSelector {
        match_labels: Some([(label::TENANT.to_owned(), tenant.to_owned())].into()),
        match_expressions: Some(vec![LabelSelectorRequirement {
            key: label::COMPONENT.to_owned(),
            operator: "In".to_owned(),
            values: Some(components.iter().map(|component| component.as_str().to_owned()).collect()),
        }]),
    }
}

/// Nothing in, nothing out but questions to the name servers. It selects every pod of the
/// namespace, also such as Torpor did not make.
fn default(scope: &Scope) -> NetworkPolicy {
    let dns = &scope.settings.dns;
    let servers = NetworkPolicyPeer {
        namespace_selector: Some(labelled(&dns.namespace_labels)),
        pod_selector: Some(LabelSelector::default()),
        ..NetworkPolicyPeer::default()
    };
    let addresses = dns.addresses.iter().map(|cidr| block(&cidr.to_string(), Vec::new()));
    let egress = NetworkPolicyEgressRule {
        to: Some(std::iter::once(servers).chain(addresses).collect()),
        ports: Some(vec![port("UDP", 53), port("TCP", 53)]),
    };
    policy(scope, names::ISOLATION, Component::Tenant, LabelSelector::default(), vec![], vec![egress])
}

/// What may ask database and Redis, seen from those who ask.
fn clients(scope: &Scope) -> NetworkPolicy {
    let tenant = scope.tenant();
    let egress = NetworkPolicyEgressRule {
        to: Some(vec![peer(pods(tenant, &[Component::Database, Component::Redis]))]),
        ports: Some(vec![port("TCP", postgres::PORT), port("TCP", redis::PORT)]),
    };
    let clients = pods(tenant, &[Component::Dashboard, Component::Monitoring, Component::Bot]);
    policy(scope, "clients", Component::Tenant, clients, vec![], vec![egress])
}

/// What may ask database and Redis, seen from the two. Each listens on its own port only, so one
/// policy serves both.
fn stores(scope: &Scope) -> NetworkPolicy {
    let tenant = scope.tenant();
    let users = NetworkPolicyIngressRule {
        from: Some(vec![peer(pods(tenant, &[Component::Dashboard, Component::Bot]))]),
        ports: Some(vec![port("TCP", postgres::PORT), port("TCP", redis::PORT)]),
    };
    let exporter = NetworkPolicyIngressRule {
        from: Some(vec![peer(pods(tenant, &[Component::Monitoring]))]),
        ports: Some(vec![port("TCP", postgres::PORT)]),
    };
    let stores = pods(tenant, &[Component::Database, Component::Redis]);
    policy(scope, "stores", Component::Tenant, stores, vec![users, exporter], vec![])
}

/// Bots reach exchanges, on any port: some serve their feeds on odd ones.
fn internet(scope: &Scope) -> NetworkPolicy {
    let own = |is_v4: bool| {
        let own = scope.settings.not_internet.iter().filter(move |net| matches!(net, IpNet::V4(_)) == is_v4);
        own.map(ToString::to_string)
    };
    let v4 = NOT_INTERNET_V4.map(str::to_owned).into_iter().chain(own(true)).collect();
    let v6 = NOT_INTERNET_V6.map(str::to_owned).into_iter().chain(own(false)).collect();
    let egress = NetworkPolicyEgressRule { to: Some(vec![block("0.0.0.0/0", v4), block("::/0", v6)]), ports: None };
    let bots = pods(scope.tenant(), &[Component::Bot]);
    policy(scope, "internet", Component::Bot, bots, vec![], vec![egress])
}

/// The gateway reaches the dashboard.
fn dashboards(scope: &Scope) -> NetworkPolicy {
    let name = ("kubernetes.io/metadata.name".to_owned(), scope.settings.gateway_namespace.clone());
    let ingress = from_namespaces(&[name].into(), dashboard::PORT);
    let pods = pods(scope.tenant(), &[Component::Dashboard]);
    policy(scope, names::DASHBOARD, Component::Dashboard, pods, vec![ingress], vec![])
}

/// Prometheus reaches the exporter, where the administrator said which namespaces it runs in.
fn scrapers(scope: &Scope) -> Option<NetworkPolicy> {
    let ingress = from_namespaces(scope.settings.scraper_namespaces.as_ref()?, monitoring::PORT);
    let pods = pods(scope.tenant(), &[Component::Monitoring]);
    Some(policy(scope, names::MONITORING, Component::Monitoring, pods, vec![ingress], vec![]))
}

/// A policy in both directions: a direction without a rule is closed by `default` all the same, and
/// naming it here keeps the policy true even while `default` is missing.
fn policy(
    scope: &Scope,
    name: &str,
    component: Component,
    pods: LabelSelector,
    ingress: Vec<NetworkPolicyIngressRule>,
    egress: Vec<NetworkPolicyEgressRule>,
) -> NetworkPolicy {
    NetworkPolicy {
        // Where a Tenant is deleted in the foreground, the garbage collector takes what it owns at once, and bots take minutes to stop.
        metadata: scope.kept(name, component),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(pods),
            policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
            // Empty lists, too: what is left out is nobody's, and a rule that somebody adds would stay.
            ingress: Some(ingress),
            egress: Some(egress),
        }),
    }
}

fn from_namespaces(labels: &BTreeMap<String, String>, to_port: i32) -> NetworkPolicyIngressRule {
    let peer = NetworkPolicyPeer { namespace_selector: Some(labelled(labels)), ..NetworkPolicyPeer::default() };
    NetworkPolicyIngressRule { from: Some(vec![peer]), ports: Some(vec![port("TCP", to_port)]) }
}

fn labelled(labels: &BTreeMap<String, String>) -> LabelSelector {
    LabelSelector { match_labels: Some(labels.clone()), ..LabelSelector::default() }
}

fn peer(pods: LabelSelector) -> NetworkPolicyPeer {
    NetworkPolicyPeer { pod_selector: Some(pods), ..NetworkPolicyPeer::default() }
}

fn block(cidr: &str, except: Vec<String>) -> NetworkPolicyPeer {
    let except = (!except.is_empty()).then_some(except);
    NetworkPolicyPeer { ip_block: Some(IPBlock { cidr: cidr.to_owned(), except }), ..NetworkPolicyPeer::default() }
}

fn port(protocol: &str, number: i32) -> NetworkPolicyPort {
    NetworkPolicyPort { protocol: Some(protocol.to_owned()), port: Some(IntOrString::Int(number)), end_port: None }
}

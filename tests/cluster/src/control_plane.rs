//! The files and command lines of the control plane's programs.

use std::{
    collections::BTreeSet,
    fs,
    hash::{BuildHasher, RandomState},
    net::TcpListener,
    path::Path,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{options::Options, pki::Authority, process::Component, tools::Tools};

/// The name of etcd's process.
pub const ETCD: &str = "etcd";
/// The name of the API server's process.
pub const API_SERVER: &str = "kube-apiserver";
/// The API server's audit log in the data folder.
pub const AUDIT_LOG: &str = "audit.log";

const AUDIT_POLICY: &str = "audit-policy.yaml";

/// One port for each thing that listens, so that clusters can run side by side.
pub(crate) struct Ports {
    pub(crate) etcd: u16,
    etcd_peer: u16,
    pub(crate) api_server: u16,
    controller_manager: u16,
    scheduler: u16,
    kwok: u16,
}

impl Ports {
    pub(crate) fn choose() -> Result<Self> {
        let [etcd, etcd_peer, api_server, controller_manager, scheduler, kwok] = free_ports()?;
        Ok(Self { etcd, etcd_peer, api_server, controller_manager, scheduler, kwok })
    }
}

/// One more port.
pub(crate) fn free_port() -> Result<u16> {
    free_ports().map(|[port]| port)
}

/// Ports below the range the kernel gives to outgoing connections: a port from that range may be taken between the
/// choice and the start, or while a component is down, by the other components' own connections.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    const RANGE: std::ops::Range<u16> = 20_000..32_000;
    let random = RandomState::new();
    let candidates = (0..1_000_u32).map(|attempt| {
        let offset = random.hash_one(attempt) % u64::from(RANGE.end - RANGE.start);
        RANGE.start + offset as u16
    });
    let mut ports = BTreeSet::new();
    for port in candidates {
        if ports.len() == N {
            break;
        }
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            ports.insert(port);
        }
    }
    let ports: Vec<u16> = ports.into_iter().collect();
    ports.try_into().ok().context("no free loopback ports")
}

/// By default kwok plays four pods at a time, and it deletes by name. Behind by some seconds, it deletes the pod that a StatefulSet has made
/// anew meanwhile, and so stays behind for minutes.
const KWOK_OPTIONS: &str = "\
apiVersion: config.kwok.x-k8s.io/v1alpha1
kind: KwokConfiguration
options:
  nodeLeaseParallelism: 4
  nodePlayStageParallelism: 4
  podPlayStageParallelism: 64
";

/// Writes keys, certificates and configuration into the data folder.
pub(crate) fn write_files(
    data: &Path,
    authority: &Authority,
    server: &str,
    stages: &str,
    options: &Options,
) -> Result<()> {
    write_control_plane_files(data, authority, server, &[])?;
    fs::write(data.join(AUDIT_POLICY), audit_policy(&options.log_bodies_of).to_string())?;
    fs::write(data.join("kwok.kubeconfig"), authority.kubeconfig(server, "kwok", &["system:masters"])?)?;
    fs::write(data.join("stages.yaml"), format!("{KWOK_OPTIONS}---\n{stages}"))?;
    Ok(())
}

/// Writes what the programs of a control plane read into the data folder, and `admin.kubeconfig`. The API server is
/// also reached under `names`.
pub fn write_control_plane_files(data: &Path, authority: &Authority, server: &str, names: &[&str]) -> Result<()> {
    let usual = ["127.0.0.1", "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
    let serving = authority.serving(&[&usual, names].concat())?;
    // The API server takes the public half of the token key from a certificate.
    let service_accounts = authority.client("service-accounts", &[])?;
    let files = [
        ("ca.crt", authority.cert.as_str()),
        ("apiserver.crt", &serving.cert),
        ("apiserver.key", &serving.key),
        ("service-accounts.crt", &service_accounts.cert),
        ("service-accounts.key", &service_accounts.key),
        (AUDIT_POLICY, &audit_policy(&[]).to_string()),
    ];
    for (name, content) in files {
        fs::write(data.join(name), content)?;
    }
    // The API server creates it with its first event; readers shouldn't have to care.
    fs::write(data.join(AUDIT_LOG), "")?;
    let users = [
        ("admin", "kubernetes-admin", "system:masters"),
        ("controller-manager", "system:kube-controller-manager", ""),
        ("scheduler", "system:kube-scheduler", ""),
    ];
    for (file, user, group) in users {
        let groups: &[&str] = if group.is_empty() { &[] } else { &[group] };
        let config = authority.kubeconfig(server, user, groups)?;
        fs::write(data.join(format!("{file}.kubeconfig")), config)?;
    }
    Ok(())
}

fn audit_policy(bodies_of: &[String]) -> Value {
    let with_bodies = json!({"level": "Request", "users": bodies_of, "verbs": ["create", "patch"]});
    // An empty list of users means all of them.
    let bodies = (!bodies_of.is_empty()).then_some(with_bodies);
    let rules: Vec<Value> = bodies.into_iter().chain([json!({"level": "Metadata"})]).collect();
    json!({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": rules})
}

/// The programs in the order they start in.
pub(crate) fn components(tools: &Tools, data: &Path, ports: &Ports, options: &Options) -> Vec<Component> {
    let component = |name: &'static str, args: Vec<String>, more: &[String]| {
        Component::new(name, tools.bin(name), [&args, more].concat(), data)
    };
    let file = |name: &str| data.join(name).display().to_string();
    vec![
        component(ETCD, etcd(data, ports.etcd, ports.etcd_peer), &[]),
        component(
            API_SERVER,
            api_server_at(data, ports.etcd, ports.api_server, &options.service_cidr),
            &further(options),
        ),
        component(
            "kube-controller-manager",
            controller_manager(data),
            &[format!("--secure-port={}", ports.controller_manager)],
        ),
        component("kube-scheduler", scheduler(data), &[format!("--secure-port={}", ports.scheduler)]),
        component(
            "kwok",
            vec![
                format!("--kubeconfig={}", file("kwok.kubeconfig")),
                format!("--config={}", file("stages.yaml")),
                "--manage-all-nodes=false".into(),
                "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake".into(),
                // Without leases every node goes NotReady about once a minute.
                "--node-lease-duration-seconds=40".into(),
                format!("--server-address=127.0.0.1:{}", ports.kwok),
                format!("--node-ip={}", options.pod_address.as_deref().unwrap_or_default()),
            ],
            &[],
        ),
    ]
}

/// What the API server is told after all else, because the last of a flag counts.
fn further(options: &Options) -> Vec<String> {
    let log = options.audit_log.iter().map(|file| format!("--audit-log-path={}", file.display()));
    log.chain(options.api_server.iter().cloned()).collect()
}

/// Arguments of etcd on loopback ports.
pub fn etcd(data: &Path, client_port: u16, peer_port: u16) -> Vec<String> {
    let client = format!("http://127.0.0.1:{client_port}");
    let peer = format!("http://127.0.0.1:{peer_port}");
    vec![
        "--name=torpor".into(),
        format!("--data-dir={}", data.join("etcd").display()),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=torpor={peer}"),
        "--unsafe-no-fsync".into(),
        format!("--quota-backend-bytes={}", 8_u64 << 30),
        "--log-level=warn".into(),
    ]
}

/// Arguments of the API server on a loopback port.
pub(crate) fn api_server_at(data: &Path, etcd_port: u16, port: u16, service_cidr: &str) -> Vec<String> {
    let place = [
        "--bind-address=127.0.0.1".into(),
        format!("--secure-port={port}"),
        // Kubernetes 1.37 refuses to advertise a loopback address.
        "--endpoint-reconciler-type=none".into(),
    ];
    api_server(data, etcd_port, service_cidr).into_iter().chain(place).collect()
}

/// Arguments of the API server, but for where it listens.
pub fn api_server(data: &Path, etcd_port: u16, service_cidr: &str) -> Vec<String> {
    let file = |name: &str| data.join(name).display().to_string();
    vec![
        format!("--etcd-servers=http://127.0.0.1:{etcd_port}"),
        format!("--client-ca-file={}", file("ca.crt")),
        format!("--tls-cert-file={}", file("apiserver.crt")),
        format!("--tls-private-key-file={}", file("apiserver.key")),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--service-account-key-file={}", file("service-accounts.crt")),
        format!("--service-account-signing-key-file={}", file("service-accounts.key")),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        "--allow-privileged=true".into(),
        format!("--service-cluster-ip-range={service_cidr}"),
        "--max-requests-inflight=3000".into(),
        "--max-mutating-requests-inflight=1000".into(),
        format!("--audit-policy-file={}", file(AUDIT_POLICY)),
        format!("--audit-log-path={}", file(AUDIT_LOG)),
        // Marks are offsets into one file, so it must not be rotated.
        "--audit-log-maxsize=100000".into(),
    ]
}

/// Arguments of the controller manager, but for its port.
pub fn controller_manager(data: &Path) -> Vec<String> {
    let file = |name: &str| data.join(name).display().to_string();
    vec![
        format!("--kubeconfig={}", file("controller-manager.kubeconfig")),
        "--bind-address=127.0.0.1".into(),
        "--use-service-account-credentials".into(),
        format!("--service-account-private-key-file={}", file("service-accounts.key")),
        format!("--root-ca-file={}", file("ca.crt")),
        "--leader-elect=false".into(),
        "--kube-api-qps=500".into(),
        "--kube-api-burst=1000".into(),
        "--concurrent-statefulset-syncs=50".into(),
    ]
}

/// Arguments of the scheduler, but for its port.
pub fn scheduler(data: &Path) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", data.join("scheduler.kubeconfig").display()),
        "--bind-address=127.0.0.1".into(),
        "--leader-elect=false".into(),
        "--kube-api-qps=500".into(),
        "--kube-api-burst=1000".into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_differ() {
        let ports: BTreeSet<u16> = free_ports::<6>().unwrap().into();
        assert_eq!(ports.len(), 6);
    }
}

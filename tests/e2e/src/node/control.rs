//! The control plane: its files and programs.

use std::{fs, path::Path};

use anyhow::Result;
use torpor_cluster::{
    control_plane::{self, API_SERVER, ETCD},
    pki::Authority,
    process::Component,
};

use super::{
    addons, images,
    network::{self, API_PORT, CONTROL},
    programs::Programs,
    space::Space,
};

pub(super) const CONTROLLER_MANAGER: &str = "kube-controller-manager";
pub(super) const SCHEDULER: &str = "kube-scheduler";
/// The provisioner of volumes.
pub(super) const VOLUMES: &str = "local-path-provisioner";

/// Where the API server is reached, from everywhere on this machine.
pub(super) fn server() -> String {
    format!("https://{CONTROL}:{API_PORT}")
}

/// Writes the files of the control plane and gives its programs.
pub(super) fn create(data: &Path, space: &Space, programs: &Programs, authority: &Authority) -> Result<Vec<Component>> {
    const ETCD_PORTS: (u16, u16) = (2379, 2380);
    let address = CONTROL.to_string();
    let server = server();
    let names = [&address, network::API_SERVICE, "kubernetes.default.svc.cluster.local"];
    control_plane::write_control_plane_files(data, authority, &server, &names)?;
    let kubelet_client = authority.client("kube-apiserver-kubelet-client", &["system:masters"])?;
    let files = [
        ("kubelet-client.crt", kubelet_client.cert),
        ("kubelet-client.key", kubelet_client.key),
        ("volumes.kubeconfig", authority.kubeconfig(&server, VOLUMES, &["system:masters"])?),
        ("volumes.json", addons::volumes_config()),
        ("volumes-helper.yaml", addons::volumes_helper()),
    ];
    for (name, content) in files {
        fs::write(data.join(name), content)?;
    }
    let file = |name: &str| data.join(name).display().to_string();
    // Elsewhere these have machines of their own. Here a kubelet that is quicker than the API server's own view of who may
    // read what is refused a pod's volume, and asks again after ten seconds.
    let favoured = |name: &'static str, args: Vec<String>, more: &[String]| {
        space.favoured(name, &programs.tools.bin(name), &[&args, more].concat(), data)
    };
    let component = |name: &'static str, args: Vec<String>, more: &[String]| {
        space.component(name, &programs.tools.bin(name), &[&args, more].concat(), data)
    };
    let api_server = control_plane::api_server(data, ETCD_PORTS.0, network::SERVICES);
    Ok(vec![
        favoured(ETCD, control_plane::etcd(data, ETCD_PORTS.0, ETCD_PORTS.1), &[]),
        favoured(
            API_SERVER,
            api_server,
            &[
                format!("--bind-address={address}"),
                format!("--advertise-address={address}"),
                format!("--secure-port={API_PORT}"),
                format!("--kubelet-certificate-authority={}", file("ca.crt")),
                format!("--kubelet-client-certificate={}", file("kubelet-client.crt")),
                format!("--kubelet-client-key={}", file("kubelet-client.key")),
                "--kubelet-preferred-address-types=InternalIP".into(),
                // Pods of a node that is gone are given up after seconds, not after the usual five minutes.
                "--default-not-ready-toleration-seconds=20".into(),
                "--default-unreachable-toleration-seconds=20".into(),
            ],
        ),
        component(
            CONTROLLER_MANAGER,
            control_plane::controller_manager(data),
            &["--node-monitor-grace-period=20s".into(), "--node-monitor-period=2s".into()],
        ),
        component(SCHEDULER, control_plane::scheduler(data), &[]),
        space.component(
            VOLUMES,
            &programs.local_path_provisioner(),
            &[
                "start".into(),
                format!("--config={}", file("volumes.json")),
                format!("--kubeconfig={}", file("volumes.kubeconfig")),
                format!("--helper-pod-file={}", file("volumes-helper.yaml")),
                format!("--helper-image={}", images::TOOLS),
                "--namespace=local-path".into(),
                "--configmap-name=local-path".into(),
                "--service-account-name=default".into(),
                "--provisioner-name=rancher.io/local-path".into(),
            ],
            data,
        ),
    ])
}

//! One node: containerd, the kubelet, kube-proxy, and what enforces NetworkPolicies.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use torpor_cluster::{
    pki::Authority,
    process::{Component, Spawner, wait_until},
};

use super::{
    cgroup,
    command::locked,
    network::{self, API_PORT, CONTROL, FORWARD, NodeNetwork},
    programs::Programs,
    runtime::{self, BUNDLES, CONTAINERD, SOCKET},
    space::{Space, child_of, wait_for_end},
    store,
};

const KUBELET: &str = "kubelet";
/// Where the node's volumes are, in its own `/var/lib`.
pub(super) const VOLUMES: &str = "/var/lib/torpor-volumes";
const START_LIMIT: Duration = Duration::from_secs(60);

/// A node of the cluster.
pub struct Worker {
    name: String,
    network: NodeNetwork,
    dir: PathBuf,
    programs: Programs,
    spawner: Arc<Spawner>,
    components: Mutex<Vec<Component>>,
    space: Space,
}

/// A container that was started on a node, as the node's runtime has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// containerd's id.
    pub id: String,
    /// Namespace of its pod.
    pub namespace: String,
    /// Name of its pod.
    pub pod: String,
    /// Its own name; empty for the sandbox.
    pub name: String,
    /// Process 1, as this machine counts it; `None` once it has ended.
    pub pid: Option<u32>,
}

impl Worker {
    /// Makes the node's machine; nothing runs on it yet.
    pub(super) fn create(
        network: NodeNetwork,
        run: &Path,
        programs: &Programs,
        spawner: &Arc<Spawner>,
        router: &Space,
        authority: &Authority,
    ) -> Result<Self> {
        let name = format!("torpor-node{}", network.0);
        let dir = run.join(&name);
        write_files(&dir, &name, network, authority)?;
        cgroup::create(&name)?;
        let at = |path: &str| format!("'{}'", dir.join(path).display());
        let setup = [
            runtime::setup(&dir.join("lib")),
            format!("mount --bind {} /var/log", at("log")),
            format!("mount --bind {} /etc/hosts", at("hosts")),
            "echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables".into(),
            FORWARD.into(),
        ];
        let space = Space::start(spawner, &name, &setup.join("\n"), run)?;
        network::connect_node(router, &space, network)?;
        let file = |name: &str| dir.join(name).display().to_string();
        let component = |name, program: &Path, args: &[String]| space.component(name, program, args, &dir);
        let components = vec![
            runtime::component(&space, programs, &dir)?,
            component(
                "torpor-netpol",
                &programs.netpol,
                &[
                    format!("--kubeconfig={}", file("netpol.kubeconfig")),
                    format!("--node={name}"),
                    format!("--pods={}", network.pods()),
                ],
            ),
            component(
                KUBELET,
                &programs.kubelet(),
                &[
                    format!("--config={}", file("kubelet.yaml")),
                    format!("--kubeconfig={}", file("kubelet.kubeconfig")),
                    format!("--hostname-override={name}"),
                    format!("--node-ip={}", network.address()),
                ],
            ),
            component("kube-proxy", &programs.kube_proxy(), &[format!("--config={}", file("kube-proxy.yaml"))]),
        ];
        let components = Mutex::new(components);
        Ok(Self { name, network, dir, programs: programs.clone(), spawner: Arc::clone(spawner), components, space })
    }

    /// Starts containerd with the images of the store; needs no API server.
    pub(super) fn start_runtime(&self, store: &Path) -> Result<()> {
        store::share(store, &self.dir.join("lib"))?;
        let mut components = self.components();
        runtime::start(find(&mut components, CONTAINERD)?, &self.spawner, &self.space, &self.programs)
    }

    /// Starts what talks to the API server. Policies are enforced before the first pod can start.
    pub(super) fn start_node(&self) -> Result<()> {
        self.start("torpor-netpol")?;
        wait_until("torpor-netpol", START_LIMIT, || {
            self.check()?;
            Ok(self.space.exec("nft", &["list", "table", "inet", crate::netpol::TABLE]).is_ok())
        })?;
        self.start("kube-proxy")?;
        self.start(KUBELET)
    }

    /// Its name in the API.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        self.network.address()
    }

    /// The folder of its logs and, below `lib/torpor-volumes`, of the data of its volumes.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the images of an OCI archive known to the node, under the names in it.
    pub fn import_image(&self, archive: &Path) -> Result<()> {
        runtime::import(&self.space, &self.programs, archive)
    }

    /// Gives an image that the node has another name, too.
    pub fn tag_image(&self, image: &str, name: &str) -> Result<()> {
        runtime::ctr(&self.space, &self.programs, &["images", "tag", image, name]).map(drop)
    }

    /// Names of the images that the node has.
    pub fn images(&self) -> Result<Vec<String>> {
        runtime::images(&self.space, &self.programs)
    }

    /// Runs a program of this machine on the node, as root, and gives what it printed.
    pub fn exec(&self, program: &str, args: &[&str]) -> Result<String> {
        self.space.exec(program, args)
    }

    /// All containers whose bundle the node still has, sandboxes among them, also while the API server is away.
    pub fn containers(&self) -> Result<Vec<Container>> {
        let mut containers = Vec::new();
        let Ok(bundles) = fs::read_dir(self.space.root().join(BUNDLES)) else {
            // Made with the first pod.
            return Ok(containers);
        };
        for bundle in bundles {
            // Bundles come and go while we look.
            containers.extend(self.container(&bundle?.path()));
        }
        containers.sort_by(|one, other| {
            (&one.namespace, &one.pod, &one.name).cmp(&(&other.namespace, &other.pod, &other.name))
        });
        Ok(containers)
    }

    fn container(&self, bundle: &Path) -> Option<Container> {
        let config: Value = serde_json::from_str(&fs::read_to_string(bundle.join("config.json")).ok()?).ok()?;
        let annotation = |name: &str| config["annotations"][format!("io.kubernetes.cri.{name}")].as_str();
        let inside = fs::read_to_string(bundle.join("init.pid")).ok()?.trim().parse().ok()?;
        Some(Container {
            id: bundle.file_name()?.to_str()?.into(),
            namespace: annotation("sandbox-namespace")?.into(),
            pod: annotation("sandbox-name")?.into(),
            name: annotation("container-name").unwrap_or_default().into(),
            pid: self.outer_pid(inside),
        })
    }

    /// The machine's own number of a process that the node counts as `inside`.
    fn outer_pid(&self, inside: u32) -> Option<u32> {
        let stat = self.space.root().join(format!("proc/{inside}/ns/pid"));
        // The namespace of processes tells containers apart; sandboxes and what shares theirs are told apart by number.
        let namespace = fs::read_link(stat).ok()?;
        let pids =
            fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        pids.into_iter().find(|pid| {
            fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|link| link == namespace)
                && fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| counts_as(&status, inside))
        })
    }

    /// Ends a container's process 1 by SIGKILL, behind the kubelet's back: what a crash looks like.
    pub fn crash(&self, container: &Container) -> Result<()> {
        let pid = container.pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let pid = pid.with_context(|| format!("{}/{} has ended already", container.pod, container.name))?;
        Ok(kill_process(pid, Signal::KILL)?)
    }

    /// Ends the kubelet by SIGTERM and starts it again; containers go on.
    pub fn restart_kubelet(&self) -> Result<()> {
        self.stop_component(KUBELET)?;
        self.start(KUBELET)
    }

    /// Ends one of `containerd`, `torpor-netpol`, `kubelet` and `kube-proxy` by SIGTERM and leaves it down.
    pub fn stop_component(&self, name: &str) -> Result<()> {
        let mut components = self.components();
        stop(find(&mut components, name)?)
    }

    /// Ends it by SIGKILL and leaves it down.
    pub fn kill_component(&self, name: &str) -> Result<()> {
        let mut components = self.components();
        kill(find(&mut components, name)?)
    }

    /// Starts it again.
    pub fn start_component(&self, name: &str) -> Result<()> {
        self.start(name)
    }

    /// Cuts the node off the control plane, in both directions; its pods keep their network.
    pub fn partition(&self) -> Result<()> {
        network::cut(&self.space)
    }

    /// Ends the cut.
    pub fn heal(&self) -> Result<()> {
        network::heal(&self.space)
    }

    /// An error if one of its programs has ended by itself.
    pub fn check(&self) -> Result<()> {
        self.components().iter_mut().try_for_each(|one| one.check().with_context(|| self.name.clone()))
    }

    pub(super) fn init(&self) -> u32 {
        self.space.init()
    }

    fn start(&self, name: &str) -> Result<()> {
        find(&mut self.components(), name)?.start(&self.spawner).with_context(|| self.name.clone())
    }

    fn components(&self) -> MutexGuard<'_, Vec<Component>> {
        locked(&self.components)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // One after the other would take longer, and the kernel ends the rest with the space.
        self.space.end();
        self.components().iter_mut().for_each(Component::kill);
    }
}

/// Asks the program behind nsenter to end, and waits for it: its ports and sockets are free only then.
pub(super) fn stop(component: &mut Component) -> Result<()> {
    end(component, Signal::TERM)
}

/// Kills it, and waits for it.
pub(super) fn kill(component: &mut Component) -> Result<()> {
    end(component, Signal::KILL)
}

fn end(component: &mut Component, signal: Signal) -> Result<()> {
    let nsenter = component.pid().with_context(|| format!("{} does not run", component.name))?;
    if let Some(child) = child_of(nsenter)
        && let Some(pid) = i32::try_from(child).ok().and_then(Pid::from_raw)
    {
        kill_process(pid, signal)?;
        wait_for_end(child);
    }
    component.kill();
    Ok(())
}

pub(super) fn find<'a>(components: &'a mut [Component], name: &str) -> Result<&'a mut Component> {
    let known: Vec<&str> = components.iter().map(|one| one.name).collect();
    let message = format!("no component {name:?}, only {}", known.join(", "));
    components.iter_mut().find(|one| one.name == name).context(message)
}

/// Whether `/proc/<pid>/status` is that of the process which some namespace, the outermost apart, counts as `inside`.
fn counts_as(status: &str, inside: u32) -> bool {
    let Some(numbers) = status.lines().find_map(|line| line.strip_prefix("NSpid:")) else {
        return false;
    };
    numbers.split_whitespace().nth(1) == Some(&inside.to_string())
}

fn write_files(dir: &Path, name: &str, network: NodeNetwork, authority: &Authority) -> Result<()> {
    ensure!(!dir.exists(), "{} is there already", dir.display());
    for folder in ["lib", "log", "cni"] {
        fs::create_dir_all(dir.join(folder))?;
    }
    let serving = authority.serving(&[name, &network.address().to_string()])?;
    let server = format!("https://{CONTROL}:{API_PORT}");
    let kubeconfig = |user: &str, group: &[&str]| authority.kubeconfig(&server, user, group);
    let files = [
        ("hosts", format!("127.0.0.1 localhost\n{} {name}\n", network.address())),
        // Nothing that a pod asks for may leave the machine, so there are no name servers but the cluster's own.
        ("resolv.conf", String::new()),
        ("ca.crt", authority.cert.clone()),
        ("kubelet.crt", serving.cert),
        ("kubelet.key", serving.key),
        ("kubelet.kubeconfig", kubeconfig(&format!("system:node:{name}"), &["system:nodes"])?),
        ("kube-proxy.kubeconfig", kubeconfig("system:kube-proxy", &[])?),
        ("netpol.kubeconfig", kubeconfig(crate::netpol::USER, &[])?),
        ("kubelet.yaml", kubelet_config(dir, name, network).to_string()),
        ("kube-proxy.yaml", kube_proxy_config(dir, name, network).to_string()),
        ("cni/10-torpor.conflist", cni_config(network).to_string()),
    ];
    for (file, text) in files {
        fs::write(dir.join(file), text)?;
    }
    Ok(())
}

fn kubelet_config(dir: &Path, name: &str, network: NodeNetwork) -> Value {
    let file = |name: &str| dir.join(name);
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": network.address(),
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": file("ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup::name(name),
        "clusterDNS": [network::DNS_SERVICE],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": format!("unix://{SOCKET}"),
        // The machine's disk is not ours alone: only when it is really full a pod may go.
        "evictionHard": {
            "imagefs.available": "1%", "imagefs.inodesFree": "1%", "memory.available": "100Mi", "nodefs.available": "1%",
            "nodefs.inodesFree": "1%",
        },
        "failCgroupV1": false,
        "failSwapOn": false,
        "imageGCHighThresholdPercent": 100,
        // A node that is cut off is found out in seconds, not in the usual minute.
        "nodeLeaseDurationSeconds": 20,
        "nodeStatusUpdateFrequency": "5s",
        "oomScoreAdj": 0,
        "resolvConf": file("resolv.conf"),
        "syncFrequency": "10s",
        "tlsCertFile": file("kubelet.crt"),
        "tlsPrivateKeyFile": file("kubelet.key"),
    })
}

fn kube_proxy_config(dir: &Path, name: &str, network: NodeNetwork) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "bindAddress": network.address(),
        "clientConnection": {"kubeconfig": dir.join("kube-proxy.kubeconfig")},
        "clusterCIDR": network::PODS,
        "conntrack": {"maxPerCore": 0, "min": 0},
        "hostnameOverride": name,
        "mode": "nftables",
        "nodePortAddresses": [format!("{}/32", network.address())],
        "oomScoreAdj": 0,
    })
}

fn cni_config(network: NodeNetwork) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "torpor",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "torpor-pods",
                "hairpinMode": true,
                "ipMasq": false,
                "isGateway": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": "/run/torpor-ipam",
                    "ranges": [[{"subnet": network.pods(), "gateway": network.pod_gateway()}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}, "snat": false},
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_by_its_number_on_the_node() {
        let status = "Name:\tsh\nPid:\t900\nNSpid:\t900\t40\t1\n";
        assert!(counts_as(status, 40));
        assert!(!counts_as(status, 1));
        assert!(!counts_as(status, 900));
    }
}

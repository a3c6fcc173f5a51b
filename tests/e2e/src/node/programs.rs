//! The programs of a node, from pinned Go modules.

use std::path::PathBuf;

use anyhow::Result;
use torpor_cluster::{GoModule, GoProgram, Tools};

/// A module below `tests/cluster/tools/node`.
macro_rules! module {
    ($folder:literal, $programs:expr $(, $source:literal)?) => {
        GoModule {
            name: concat!("node-", $folder),
            files: &[
                ("go.mod", include_str!(concat!("../../../cluster/tools/node/", $folder, "/go.mod"))),
                $(($source, include_str!(concat!("../../../cluster/tools/node/", $folder, "/", $source))),)?
            ],
            programs: $programs,
        }
    };
}

const fn program(name: &'static str, package: &'static str) -> GoProgram {
    GoProgram { name, package, ldflags: "", tags: "", cgo: false }
}

/// The same stamp as the control plane's: an unstamped kubelet calls itself v0.0.0.
const KUBERNETES_VERSION: &str = "-X k8s.io/component-base/version.gitVersion=v1.37.2 \
    -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=37";

const KUBERNETES: GoModule = module!(
    "kubernetes",
    &[
        GoProgram { ldflags: KUBERNETES_VERSION, ..program("kubelet", "k8s.io/kubernetes/cmd/kubelet") },
        GoProgram { ldflags: KUBERNETES_VERSION, ..program("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy") },
    ],
    "go.sum"
);

const CONTAINERD: GoModule = module!(
    "containerd",
    &[
        program("containerd", "github.com/containerd/containerd/v2/cmd/containerd"),
        program("containerd-shim-runc-v2", "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"),
        program("ctr", "github.com/containerd/containerd/v2/cmd/ctr"),
    ],
    "go.sum"
);

const RUNC: GoModule = module!(
    "runc",
    &[GoProgram {
        ldflags: "-X main.version=1.5.2",
        tags: "seccomp",
        cgo: true,
        ..program("runc", "github.com/opencontainers/runc")
    }],
    "go.sum"
);

const LOCAL_PATH: GoModule =
    module!("local-path", &[program("local-path-provisioner", "github.com/rancher/local-path-provisioner")], "go.sum");

const COREDNS: GoModule = module!("coredns", &[program("coredns", "github.com/coredns/coredns")], "go.sum");

const PAUSE: GoModule = module!("pause", &[program("pause", ".")], "main.go");

/// Where each program is.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    /// etcd, API server and their kind, kubectl and helm.
    pub(super) tools: Tools,
    kubernetes: PathBuf,
    containerd: PathBuf,
    runc: PathBuf,
    local_path: PathBuf,
    pub(super) coredns: PathBuf,
    pub(super) pause: PathBuf,
    pub(super) netpol: PathBuf,
}

impl Programs {
    /// Builds what is missing, which takes minutes the first time.
    pub(super) fn build() -> Result<Self> {
        Ok(Self {
            tools: Tools::ensure()?,
            kubernetes: KUBERNETES.build()?,
            containerd: CONTAINERD.build()?,
            runc: RUNC.build()?,
            local_path: LOCAL_PATH.build()?,
            coredns: COREDNS.build()?.join("coredns"),
            pause: PAUSE.build()?.join("pause"),
            netpol: beside_us("torpor-netpol")?,
        })
    }

    pub(super) fn kubelet(&self) -> PathBuf {
        self.kubernetes.join("kubelet")
    }

    pub(super) fn kube_proxy(&self) -> PathBuf {
        self.kubernetes.join("kube-proxy")
    }

    /// containerd's folder: it looks for its shim on PATH.
    pub(super) fn containerd_dir(&self) -> &PathBuf {
        &self.containerd
    }

    pub(super) fn runc(&self) -> PathBuf {
        self.runc.join("runc")
    }

    pub(super) fn local_path_provisioner(&self) -> PathBuf {
        self.local_path.join("local-path-provisioner")
    }
}

/// Another program of this package: cargo puts them into one folder, and tests one below it.
fn beside_us(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let found = own.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| path.is_file());
    anyhow::Context::with_context(found, || format!("{name} is not built: run make programs"))
}

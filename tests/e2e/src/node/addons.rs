//! What a cluster needs besides its nodes.

use std::net::Ipv4Addr;

use serde_json::json;

use super::{images, network, worker::VOLUMES};

/// Objects to apply: the name server, which also knows `names`, the storage class, and the rights of what runs on the
/// nodes.
pub(super) fn objects(names: &[(String, Ipv4Addr)]) -> String {
    let worlds: String = names.iter().map(|(name, address)| zone(name, *address)).collect();
    include_str!("addons.yaml").replace("DNS_SERVICE", network::DNS_SERVICE).replace("WORLDS", &worlds)
}

/// The name and all below it, in the name server's configuration.
fn zone(name: &str, address: Ipv4Addr) -> String {
    format!(
        "    {name}:53 {{
        errors
        template IN A {{
            answer \"{{{{ .Name }}}} 5 IN A {address}\"
        }}
        template ANY ANY {{
            rcode NOERROR
        }}
    }}
"
    )
}

/// Where the provisioner of volumes makes their directories.
pub(super) fn volumes_config() -> String {
    json!({
        "nodePathMap": [{"node": "DEFAULT_PATH_FOR_NON_LISTED_NODES", "paths": [VOLUMES]}],
        "setupCommand": "",
        "teardownCommand": "",
    })
    .to_string()
}

/// The pod that makes and deletes a directory on its node.
pub(super) fn volumes_helper() -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "helper-pod"},
        "spec": {"containers": [{"name": "helper-pod", "image": images::TOOLS, "imagePullPolicy": "Never"}]},
    })
    .to_string()
}

//! Addresses, links and the guard: a star of point-to-point links around a router that knows no way off the machine.

use std::{fmt::Write, net::Ipv4Addr, process::Command};

use anyhow::{Context, Result, ensure};

use super::{command::run, space::Space};

/// The router, on all of its links.
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 245, 0, 1);
/// This machine itself, from where tests talk to the API server.
const HOST: Ipv4Addr = Ipv4Addr::new(10, 245, 0, 2);
/// The link on this machine, its only trace in the machine's own network.
pub(super) const HOST_LINK: &str = "torpor0";
/// The control plane.
pub(super) const CONTROL: Ipv4Addr = Ipv4Addr::new(10, 245, 0, 10);
/// Where the API server listens.
pub(super) const API_PORT: u16 = 6443;
/// Holds all of the following.
const ALL: &str = "10.244.0.0/14";
/// All machines of the cluster.
const MACHINES: &str = "10.245.0.0/24";
/// All pods; the node with index `n` has 10.244.n.0/24.
pub(super) const PODS: &str = "10.244.0.0/16";
/// All Services.
pub(super) const SERVICES: &str = "10.246.0.0/16";
/// The first address of Services is the API server's own.
pub(super) const API_SERVICE: &str = "10.246.0.1";
/// The cluster's name server.
pub(super) const DNS_SERVICE: &str = "10.246.0.10";

/// The guard's name, and that of the table which cuts a node off.
const GUARD: &str = "torpor_guard";
const CUT: &str = "torpor_cut";

/// The addresses of one node; indices start with 1.
#[derive(Clone, Copy, Debug)]
pub(super) struct NodeNetwork(pub(super) u8);

impl NodeNetwork {
    pub(super) fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 245, 0, 10 + self.0)
    }

    pub(super) fn pods(self) -> String {
        format!("10.244.{}.0/24", self.0)
    }

    pub(super) fn pod_gateway(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, self.0, 1)
    }

    fn link(self) -> String {
        format!("node{}", self.0)
    }
}

/// What turns a machine into a router, in its own setup.
pub(super) const FORWARD: &str = "echo 1 >/proc/sys/net/ipv4/ip_forward\n";

/// The guard. Only established connections and what goes between our own links pass; this machine may look in, and
/// nothing may ask anything of it. It stands before the first link does.
pub(super) fn guard_rules() -> String {
    format!(
        r#"table inet {GUARD} {{
  counter off_machine {{}}
  chain forward {{
    type filter hook forward priority -20; policy drop;
    ct state established,related accept
    iifname "host" accept
    oifname "host" counter name off_machine drop
    iifname {{ "control", "node*", "world*" }} oifname {{ "control", "node*", "world*" }} accept
    counter name off_machine drop
  }}
  chain input {{
    type filter hook input priority -20; policy drop;
    ct state established,related accept
    iifname "lo" accept
    meta l4proto icmp accept
    counter drop
  }}
}}
"#
    )
}

/// The guard, before there is any other link. The way off the machine leads to a bridge without ports, so the guard sees
/// what goes there.
pub(super) fn prepare_router(router: &Space) -> Result<()> {
    run(router.network_command("nft").args(["-f", "-"]), &guard_rules()).context("cannot set up the guard")?;
    ip(
        router,
        &format!(
            "address add {ROUTER}/32 dev lo\nlink add name nowhere type bridge\nlink set nowhere up\nroute add default dev nowhere\n"
        ),
    )
}

/// Packets that the guard has kept on the machine so far.
pub(super) fn guard_drops(router: &Space) -> Result<u64> {
    let text = run(router.network_command("nft").args(["-j", "list", "counter", "inet", GUARD, "off_machine"]), "")?;
    let json: serde_json::Value = serde_json::from_str(&text)?;
    let objects = json["nftables"].as_array().context("nft answers without a list")?;
    objects
        .iter()
        .find_map(|object| object["counter"]["packets"].as_u64())
        .context("nft does not know the guard's counter")
}

/// A link named `link` from the router to `space`, which gets the addresses and its default route over it.
pub(super) fn connect(router: &Space, space: &Space, link: &str, addresses: &[Ipv4Addr]) -> Result<()> {
    let mut at_router =
        format!("link add {link} type veth peer name eth0 netns {}\nlink set {link} up\n", space.init());
    let mut inside = String::new();
    for address in addresses {
        let _ = writeln!(at_router, "route add {address}/32 dev {link}");
        let _ = writeln!(inside, "address add {address}/32 dev eth0");
    }
    let _ =
        writeln!(inside, "link set eth0 up\nroute add {ROUTER}/32 dev eth0\nroute add default via {ROUTER} dev eth0");
    ip(router, &at_router).and_then(|()| ip(space, &inside)).with_context(|| format!("cannot link {}", space.name))
}

/// A node's link, and the way to its pods.
pub(super) fn connect_node(router: &Space, space: &Space, node: NodeNetwork) -> Result<()> {
    connect(router, space, &node.link(), &[node.address()])?;
    ip(router, &format!("route add {} via {} dev {} onlink\n", node.pods(), node.address(), node.link()))
}

/// Fails if the machine itself has any of the cluster's addresses, or a way to them.
pub(super) fn check_addresses() -> Result<()> {
    let used = run(Command::new("ip").args(["route", "show", "table", "all", "root", ALL]), "")?;
    let used: Vec<&str> = used.lines().map(str::trim).collect();
    let routes = used.join("; ");
    ensure!(used.is_empty(), "the machine's network has addresses in {ALL}, which the cluster needs: {routes}");
    Ok(())
}

/// While a run lasts, its addresses lead nowhere else, also after its link has gone with a run that was killed: somebody
/// outside of the machine might have them.
pub(super) fn reserve_addresses() -> Result<()> {
    run(Command::new("ip").args(["-batch", "-"]), &host_routes("add"))
        .context("cannot reserve the cluster's addresses")?;
    Ok(())
}

/// Gives the addresses back, as many of them as were taken.
pub(super) fn release_addresses() {
    // It fails for each that was not.
    let _ = run(Command::new("ip").args(["-force", "-batch", "-"]), &host_routes("delete"));
}

fn host_routes(action: &str) -> String {
    // The real routes are shorter of metric, and so they win.
    let route = |range: &&str| format!("route {action} unreachable {range} metric 4096\n");
    [MACHINES, PODS, SERVICES].iter().map(route).collect()
}

/// The link between the router and this machine.
pub(super) fn connect_host(router: &Space) -> Result<()> {
    let own = std::process::id();
    ip(
        router,
        &format!(
            "link add host type veth peer name {HOST_LINK} netns {own}\nlink set host up\nroute add {HOST}/32 dev host\n"
        ),
    )?;
    let mut lines = format!("address add {HOST}/32 dev {HOST_LINK}\nlink set {HOST_LINK} up\n");
    let _ = writeln!(lines, "route add {ROUTER}/32 dev {HOST_LINK}");
    for range in [MACHINES, PODS] {
        let _ = writeln!(lines, "route add {range} via {ROUTER} dev {HOST_LINK}");
    }
    run(Command::new("ip").args(["-batch", "-"]), &lines).map(drop).context("cannot link this machine")
}

/// Cuts what runs on the node itself off the control plane; its pods keep their network.
pub(super) fn cut(node: &Space) -> Result<()> {
    let rules = format!(
        "table inet {CUT} {{
  chain input {{ type filter hook input priority -300; policy accept; ip saddr {CONTROL} counter drop; }};
  chain output {{ type filter hook output priority -300; policy accept; ip daddr {CONTROL} counter drop; }};
}}
"
    );
    run(node.network_command("nft").args(["-f", "-"]), &rules).map(drop)
}

/// Ends the cut, if there is one.
pub(super) fn heal(node: &Space) -> Result<()> {
    run(node.network_command("nft").args(["-f", "-"]), &format!("table inet {CUT}\ndelete table inet {CUT}\n"))
        .map(drop)
}

fn ip(space: &Space, lines: &str) -> Result<()> {
    run(space.network_command("ip").args(["-batch", "-"]), lines).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_have_addresses_of_their_own() {
        let (one, two) = (NodeNetwork(1), NodeNetwork(2));
        assert_eq!((one.address().to_string(), one.pods()), ("10.245.0.11".into(), "10.244.1.0/24".into()));
        assert_ne!(one.pod_gateway(), two.pod_gateway());
        assert_ne!(one.link(), two.link());
    }
}

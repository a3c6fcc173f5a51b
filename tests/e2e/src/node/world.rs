//! Hosts outside of the cluster, which tests make up: an exchange on "the internet", a metadata service, a neighbour.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, Weak},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;
use torpor_cluster::process::{Component, Spawner};

use super::{
    command::{locked, run},
    network,
    space::Space,
    worker::{find, stop},
};

/// Every packet that arrives leaves its sender, protocol and port in a set, whatever listens there.
const ARRIVALS: &str = r"table inet torpor_arrivals {
  set seen { type ipv4_addr . inet_proto . inet_service; flags dynamic; size 65535; counter; }
  set other { type ipv4_addr . inet_proto; flags dynamic; size 65535; counter; }
  chain prerouting {
    type filter hook prerouting priority -150; policy accept;
    ct direction original meta l4proto { tcp, udp, sctp } update @seen { ip saddr . meta l4proto . th dport }
    ct direction original meta l4proto != { tcp, udp, sctp } update @other { ip saddr . meta l4proto }
  }
}
";

/// A host, or several, with addresses that only the cluster's router knows.
pub struct World {
    name: String,
    addresses: Vec<Ipv4Addr>,
    connections: Arc<Mutex<Vec<Connection>>>,
    listening: Mutex<BTreeSet<u16>>,
    components: Mutex<Vec<Component>>,
    spawner: Arc<Spawner>,
    dir: PathBuf,
    space: Space,
}

/// A TCP connection that a world's own listener took.
#[derive(Clone, Debug)]
pub struct Connection {
    /// When.
    pub at: SystemTime,
    /// Who: a pod's own address, for nothing is translated on the way.
    pub from: IpAddr,
    /// The address and port it asked for.
    pub to: SocketAddr,
}

/// Packets of one sender to one port of a world, listened on or not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arrival {
    /// The sender.
    pub from: Ipv4Addr,
    /// `tcp`, `udp`, `sctp`, `icmp`, …
    pub protocol: String,
    /// The port they were sent to, of protocols that have ports.
    pub port: Option<u16>,
    /// How many.
    pub packets: u64,
}

impl World {
    pub(super) fn create(
        name: &str,
        number: usize,
        addresses: &[Ipv4Addr],
        run_dir: &Path,
        spawner: &Arc<Spawner>,
        router: &Space,
    ) -> Result<Self> {
        let space = Space::start(spawner, &format!("world-{name}"), "", run_dir)?;
        run(space.network_command("nft").args(["-f", "-"]), ARRIVALS).context("cannot watch for packets")?;
        network::connect(router, &space, &format!("world{number}"), addresses)?;
        let world = Self {
            name: name.into(),
            addresses: addresses.into(),
            connections: Arc::default(),
            listening: Mutex::default(),
            components: Mutex::default(),
            spawner: Arc::clone(spawner),
            dir: run_dir.into(),
            space,
        };
        world.listen(80)?;
        Ok(world)
    }

    /// What it was named.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its addresses.
    pub fn addresses(&self) -> &[Ipv4Addr] {
        &self.addresses
    }

    /// Takes TCP connections on a port, notes each, and answers HTTP with the world's name and the asker's address. Port
    /// 80 is listened on from the start.
    pub fn listen(&self, port: u16) -> Result<()> {
        if !locked(&self.listening).insert(port) {
            return Ok(());
        }
        let network = self.space.network()?;
        let name = self.name.clone();
        let connections = Arc::downgrade(&self.connections);
        // A socket belongs to the network its thread was in when it was made, so the thread moves and nobody else does.
        let (ready, is_ready) = std::sync::mpsc::channel();
        std::thread::Builder::new().name(format!("world-{name}")).spawn(move || {
            let bound = move_into_link_name_space(std::os::fd::AsFd::as_fd(&network), Some(LinkNameSpaceType::Network))
                .map_err(std::io::Error::from)
                .and_then(|()| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
                .and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
            // The file would keep the network alive after everything in it has ended.
            drop(network);
            match bound {
                Ok(listener) => {
                    let _ = ready.send(Ok(()));
                    serve(&listener, &name, &connections);
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        })?;
        is_ready.recv()?.with_context(|| format!("{} cannot listen on port {port}", self.name))
    }

    /// The connections that its own listeners took so far.
    pub fn connections(&self) -> Vec<Connection> {
        locked(&self.connections).clone()
    }

    /// Who sent it packets so far, to whatever port.
    pub fn arrivals(&self) -> Result<Vec<Arrival>> {
        let mut arrivals = Vec::new();
        for set in ["seen", "other"] {
            let mut command = self.space.network_command("nft");
            let text = run(command.args(["-j", "list", "set", "inet", "torpor_arrivals", set]), "")?;
            arrivals.extend(parse_arrivals(&serde_json::from_str(&text)?));
        }
        arrivals.sort();
        Ok(arrivals)
    }

    /// A command that runs there, with this machine's files.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        self.space.command(program)
    }

    /// Runs a program there to its end and gives what it printed.
    pub fn exec(&self, program: &str, args: &[&str]) -> Result<String> {
        self.space.exec(program, args)
    }

    /// Starts a program there; it runs until [`World::stop`] or the end of the world. Its log is `<name>.log` in the run
    /// folder.
    pub fn spawn(&self, name: &'static str, program: impl AsRef<Path>, args: &[String]) -> Result<()> {
        let mut component = self.space.component(name, program.as_ref(), args, &self.dir);
        component.start(&self.spawner)?;
        locked(&self.components).push(component);
        Ok(())
    }

    /// An error with the end of its log if a program of [`World::spawn`] has ended by itself.
    pub fn check(&self) -> Result<()> {
        let mut components = locked(&self.components);
        components.iter_mut().try_for_each(Component::check)
    }

    /// Ends a program of [`World::spawn`] by SIGTERM.
    pub fn stop(&self, name: &str) -> Result<()> {
        let mut components = locked(&self.components);
        stop(find(&mut components, name)?)?;
        components.retain(|one| one.name != name);
        Ok(())
    }

    pub(super) fn init(&self) -> u32 {
        self.space.init()
    }

    /// Ends it for everybody who holds it.
    pub(super) fn end(&self) {
        self.space.end();
    }
}

/// Serves until the world is gone: its record is then too.
fn serve(listener: &TcpListener, name: &str, connections: &Weak<Mutex<Vec<Connection>>>) {
    while let Some(connections) = connections.upgrade() {
        let Ok((stream, from)) = listener.accept() else {
            drop(connections);
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        let Ok(to) = stream.local_addr() else {
            continue;
        };
        let connection = Connection { at: SystemTime::now(), from: from.ip(), to };
        locked(&connections).push(connection);
        let name = name.to_owned();
        std::thread::spawn(move || {
            // Whoever hangs up before the answer is in the record all the same.
            let _ = answer(stream, &name, from);
        });
    }
}

fn answer(mut stream: TcpStream, name: &str, from: SocketAddr) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut request = Vec::new();
    let mut part = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < 16 * 1024 {
        match stream.read(&mut part)? {
            0 => break,
            length => request.extend_from_slice(&part[..length]),
        }
    }
    let body = format!("{name} {}\n", from.ip());
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

/// Elements of the sets, as nft prints them.
fn parse_arrivals(json: &Value) -> Vec<Arrival> {
    let objects = json["nftables"].as_array().into_iter().flatten();
    let elements = objects.filter_map(|object| object["set"]["elem"].as_array()).flatten();
    elements
        .filter_map(|element| {
            let fields = element["elem"]["val"]["concat"].as_array()?;
            let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), String::from);
            Some(Arrival {
                from: fields.first()?.as_str()?.parse().ok()?,
                protocol: text(fields.get(1)?),
                port: fields.get(2).and_then(|port| text(port).parse().ok()),
                packets: element["elem"]["counter"]["packets"].as_u64()?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_are_read_from_nft() {
        let json = serde_json::json!({"nftables": [
            {"metainfo": {"version": "1.0.6"}},
            {"set": {"name": "seen", "elem": [
                {"elem": {"val": {"concat": ["10.244.1.4", "tcp", 80]}, "counter": {"packets": 3, "bytes": 180}}},
                {"elem": {"val": {"concat": ["10.244.1.4", 17, 53]}, "counter": {"packets": 1, "bytes": 60}}},
            ]}},
        ]});
        let arrival = |protocol: &str, port, packets| Arrival {
            from: Ipv4Addr::new(10, 244, 1, 4),
            protocol: protocol.into(),
            port: Some(port),
            packets,
        };
        assert_eq!(parse_arrivals(&json), [arrival("tcp", 80, 3), arrival("17", 53, 1)]);
    }
}

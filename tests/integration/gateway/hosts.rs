//! Traefik in front of dashboards and gateway: one host per tenant. Run by `make traefik-test`.
//!
//! kwok's pods have an address and no network. Traefik takes its connections from an HTTP proxy, as its environment says;
//! that proxy stands for the pods' network and for nothing else. A proxy is not told the address but the host of a request,
//! so dashboards, whose Services are told to keep the host to themselves, are known by their address, and the gateway by any
//! other host.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;
use torpor_cluster::Options;

use super::page::fresh_link;
use super::{Answer, Door, answer, await_state, send, token};
use crate::alone::Rig;
use crate::harness::eventually;
use crate::process::TORPOR;
use crate::tenants::{ensure, fleet, same, tenant};

/// The address of every pod; from a range that is kept for documentation (RFC 5737).
const POD: &str = "192.0.2.1";
/// Stands for the address of a gateway's pod.
const GATEWAY_POD: &str = "192.0.2.2";
const LIMIT: Duration = Duration::from_secs(90);

struct Traefik {
    child: Child,
    address: SocketAddr,
}

impl Drop for Traefik {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Traefik {
    fn start(rig: &Rig, network: SocketAddr) -> Result<Self, String> {
        let program = std::env::var_os("TORPOR_TRAEFIK").ok_or("TORPOR_TRAEFIK is not set; run make traefik-test")?;
        let address = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).map_err(text)?;
        let log = std::fs::File::create(rig.cluster.data_dir().join("traefik.log")).map_err(text)?;
        let child = Command::new(program)
            .args([&format!("--entrypoints.web.address={address}"), "--global.checknewversion=false"])
            .args(["--providers.kubernetesingress=true", "--providers.kubernetesingress.ingressclass=traefik"])
            .args(["--providers.kubernetesingress.throttleduration=100ms", "--log.level=INFO"])
            .env("KUBECONFIG", rig.cluster.kubeconfig())
            .env("HTTP_PROXY", format!("http://{network}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(text)?)
            .stderr(log)
            .spawn()
            .map_err(text)?;
        Ok(Traefik { child, address })
    }

    fn get(&self, host: &str, path: &str, more: &[(&str, &str)]) -> Result<Answer, String> {
        let mut stream = TcpStream::connect(self.address).map_err(text)?;
        stream.set_read_timeout(Some(LIMIT)).map_err(text)?;
        let headers = [&[("Host", host), ("Accept", "text/html")], more].concat();
        send(&mut stream, "GET", path, &headers, "")?;
        answer(&mut BufReader::new(stream))
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// An HTTP proxy: requests to the gateway's pod go to the gateway, all others are answered by the dashboard that they
/// are meant for.
fn network(gateway: &str) -> Result<SocketAddr, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(text)?;
    let address = listener.local_addr().map_err(text)?;
    let gateway = gateway.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let gateway = gateway.clone();
            std::thread::spawn(move || relay(stream, &gateway));
        }
    });
    Ok(address)
}

fn relay(stream: TcpStream, gateway: &str) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        let end = line == "\r\n";
        head.push(line);
        if end {
            break;
        }
    }
    let mut stream = stream;
    let (method, rest) = head[0].split_once(' ')?;
    let (pod, path) = rest.strip_prefix("http://")?.split_once('/')?;
    if !pod.starts_with(POD) {
        let mut door = TcpStream::connect(gateway).ok()?;
        let kept = head[1..].iter().filter(|line| !line.to_lowercase().starts_with("connection:"));
        let kept: String = kept.take(head.len() - 2).cloned().collect();
        let kept = kept.trim_end();
        write!(door, "{method} /{path}{kept}\r\nConnection: close\r\n\r\n").ok()?;
        std::io::copy(&mut door, &mut stream).ok()?;
        return Some(());
    }
    let host = head.iter().find_map(|line| line.strip_prefix("X-Forwarded-Host: "))?.trim();
    let body = format!("<h1>dashboard of {host}</h1>");
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
    .ok()?;
    stream.flush().ok()?;
    let _ = reader.read(&mut [0; 1]);
    Some(())
}

/// Asleep → waiting page → dashboard on each tenant's own host, with nothing reloaded by hand and the others undisturbed.
pub fn sleeping_hosts_lead_to_the_page() -> Result<(), String> {
    let mut rig = Rig::start(Options { pod_address: Some(POD.to_owned()), ..Options::default() })?;
    rig.replace(TORPOR.as_ref(), &["--ingress-class", "traefik"])?;
    rig.operator.await_ready(LIMIT)?;
    let door = Door::open(&rig.cluster, &[])?;
    let portal = token(&rig.cluster, "portal", "backend")?;
    rig.apply(&json!({"apiVersion": "networking.k8s.io/v1", "kind": "IngressClass", "metadata": {"name": "traefik"}, "spec": {"controller": "traefik.io/ingress-controller"}}).to_string())?;
    rig.kubectl(&["apply", "-f", "examples/ingress-gateway.yaml"])?;
    // The gateway runs outside of this cluster. Its Service gets the address that stands for it.
    rig.kubectl(&[
        "patch",
        "service",
        "torpor-gateway",
        "-n",
        "torpor-system",
        "--type=json",
        "-p",
        r#"[{"op":"remove","path":"/spec/selector"}]"#,
    ])?;
    rig.apply(&json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "torpor-gateway-test", "namespace": "torpor-system", "labels": {"kubernetes.io/service-name": "torpor-gateway"}},
        "ports": [{"name": "http", "port": 8090}], "endpoints": [{"addresses": [GATEWAY_POD], "conditions": {"ready": true}}],
    }).to_string())?;
    let names = ["anna", "ben", "carla"];
    let host = |name: &str| format!("{name}.bots.example.com");
    for name in names {
        let spec = json!({"tier": "basic", "dashboard": {"host": host(name)}, "fleets": [fleet("makers", 1)]});
        rig.apply(&tenant(name, spec).to_string())?;
    }
    rig.await_tenants(names.len(), LIMIT)?;
    for name in names {
        let quiet = "traefik.ingress.kubernetes.io/service.passhostheader=false";
        rig.kubectl(&["annotate", "service", "dashboard", "-n", &format!("tenant-{name}"), quiet])?;
    }
    let traefik = Traefik::start(&rig, network(&door.address)?)?;
    let meets = |name: &str, what: &str, more: &[(&str, &str)]| {
        eventually(LIMIT, || {
            let answered = traefik.get(&host(name), "/", more)?;
            ensure(answered.body.contains(what), || format!("{name} does not meet {what:?}: {answered:?}"))?;
            Ok(answered)
        })
    };
    for name in names {
        meets(name, &format!("dashboard of {}", host(name)), &[])?;
    }

    let before = rig.get(&["ingress", "dashboard", "-n", "tenant-anna"])?["metadata"]["resourceVersion"].clone();
    door.call(&portal, "POST", "/v1/tenants/anna/sleep")?.is(202)?;
    await_state(&door, &portal, "anna", "Asleep")?;
    meets("anna", "Please log in", &[])?.is(403)?;
    for name in ["ben", "carla"] {
        meets(name, &format!("dashboard of {}", host(name)), &[])?;
    }
    let link = fresh_link("anna");
    let page = traefik.get(&host("anna"), &format!("/?link={link}"), &[])?;
    ensure(page.body.contains("Your stack"), || format!("{page:?}"))?;
    let cookie = format!("torpor-link={link}");
    meets("anna", &format!("dashboard of {}", host("anna")), &[("Cookie", &cookie)])?;
    let after = rig.get(&["ingress", "dashboard", "-n", "tenant-anna"])?["metadata"]["resourceVersion"].clone();
    same("the Ingress", &after, &before)?;
    meets("nobody", "Please log in", &[])?.is(403).map(drop)
}

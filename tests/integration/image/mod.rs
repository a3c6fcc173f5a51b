//! The container image from inside, as far as that goes without a container: its files are the root of the file system,
//! which nobody may write to, and its user runs the program. Names and certificates are what an image can lack.
//!
//! `make image-check` runs this in a network namespace that has a loopback device and nothing else, so port 53 is free
//! and no question can leave the machine.

mod names;
mod root;

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::json;

use crate::harness::eventually;
use crate::hibernation::{Objects, catalog, stage_of};
use crate::many::create_tenants;
use crate::receiver::{Receiver, Request};
use crate::tenants::{ensure, tenant};

use names::Names;
use root::{Authorities, Root};

const KEY: &[u8] = b"a key of more than sixteen bytes";
const SOON: Duration = Duration::from_secs(60);
/// Found by the search list of a pod of namespace torpor-system.
const IN_CLUSTER: &str = "receiver.hooks";
const OUTSIDE: &str = "hooks.receiver.example";
const API_SERVER: &str = "kubernetes.default.svc";

/// A hibernator in the image finds the API server and receivers of webhooks by name, by the search list of a pod and
/// without; it trusts the authorities of the image, and others when their file is put in the place of the image's.
pub fn names_and_certificates_work_inside() -> Result<(), String> {
    let root = Root::unpack()?;
    // Names of the cluster are asked for with what the search list adds.
    let names = Names::serve(&["receiver.hooks.svc.cluster.local", OUTSIDE, API_SERVER])?;
    let objects = Objects::start()?;
    let data = root::data(&objects.cluster)?;
    std::fs::write(data.join("webhook.key"), KEY).map_err(|error| error.to_string())?;
    let made = catalog(&objects.cluster, "image", &[("free", "Auto", ["20s", "600s", "1200s"])])?;
    std::fs::copy(made, data.join("catalog.yaml")).map_err(|error| error.to_string())?;
    let port = objects.cluster.kubectl(["config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"]);
    let port = port.map_err(|error| error.to_string())?;
    let port = port.rsplit(':').next().unwrap_or_default();
    root::kubeconfig(&objects.cluster, &format!("https://{API_SERVER}:{port}"))?;

    let receiver = Receiver::start()?;
    let plain = receiver.url().replace("127.0.0.1", IN_CLUSTER);
    warned(&root, &objects, &receiver, "by-search", &format!("{plain}/hook"), Authorities::Own)?;
    let asked = names.asked();
    let full = |suffix: &str| format!("{IN_CLUSTER}.{suffix}");
    for suffix in ["torpor-system.svc.cluster.local", "svc.cluster.local"] {
        ensure(asked.contains(&full(suffix)), || format!("{} was not asked for: {asked:?}", full(suffix)))?;
    }
    ensure(asked.iter().any(|name| name == API_SERVER), || format!("{API_SERVER} was not asked for: {asked:?}"))?;

    let issued = rcgen::generate_simple_self_signed([OUTSIDE.to_owned()]).map_err(|error| error.to_string())?;
    let secure = tls(&issued, receiver.url().rsplit(':').next().unwrap_or_default())?;
    let url = format!("https://{OUTSIDE}:{secure}/hook");
    refused(&root, &objects, "unknown-authority", &url, "UnknownIssuer")?;
    let bundle = data.join("authorities.pem");
    std::fs::write(&bundle, issued.cert.pem()).map_err(|error| error.to_string())?;
    warned(&root, &objects, &receiver, "mounted-authority", &url, Authorities::Mounted(&bundle))?;
    warned(&root, &objects, &receiver, "named-authority", &url, Authorities::Named("authorities.pem"))?;
    refused(&root, &objects, "unknown-name", "https://nobody.example/hook", "Name or service not known")
}

/// A warning about a new tenant arrives at the receiver.
fn warned(
    root: &Root,
    objects: &Objects,
    receiver: &Receiver,
    name: &str,
    url: &str,
    authorities: Authorities,
) -> Result<(), String> {
    let _hibernator = root.hibernator(objects, url, authorities)?;
    create_tenants(&objects.cluster, [tenant(name, json!({"tier": "free"}))])?;
    let of_tenant = |request: &Request| request.body.contains(&format!("\"subject\":\"{name}\""));
    let request = eventually(SOON, || {
        let found = receiver.requests().into_iter().find(of_tenant);
        found.ok_or_else(|| format!("{name}: no warning at {url}"))
    })?;
    request.verify(KEY)?;
    println!("image: {name}: a warning came by {url}");
    objects.kubectl(&["delete", "tenant", name, "--wait=false"]).map(drop)
}

/// The tenant stays awake since its warning could not be given, and the program tells why.
fn refused(root: &Root, objects: &Objects, name: &str, url: &str, why: &str) -> Result<(), String> {
    let hibernator = root.hibernator(objects, url, Authorities::Own)?;
    create_tenants(&objects.cluster, [tenant(name, json!({"tier": "free"}))])?;
    let told = eventually(SOON, || {
        let log = hibernator.log_text();
        let line = log.lines().find(|line| line.contains("a warning was not given") && line.contains(why));
        line.map(ToOwned::to_owned).ok_or_else(|| format!("{name}: {why} is not told: {log}"))
    })?;
    let stage = stage_of(&objects.get(&["tenant", name])?);
    ensure(["", "Active"].contains(&stage.as_str()), || format!("{name} sleeps unwarned: {stage}"))?;
    println!("image: {name}: {told}");
    objects.kubectl(&["delete", "tenant", name, "--wait=false"]).map(drop)
}

/// TLS before a receiver that has none; the port.
fn tls(issued: &rcgen::CertifiedKey<rcgen::KeyPair>, to: &str) -> Result<u16, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let key = PrivateKeyDer::try_from(issued.signing_key.serialize_der())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| text(&error))?
        .with_no_client_auth()
        .with_single_cert(vec![issued.cert.der().clone()], key)
        .map_err(|error| text(&error))?;
    let (config, to) = (Arc::new(config), format!("127.0.0.1:{to}"));
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| text(&error))?;
    let port = listener.local_addr().map_err(|error| text(&error))?.port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (config, to) = (config.clone(), to.clone());
            // Whoever does not trust the certificate breaks off, which is what it is for.
            std::thread::spawn(move || exchange(config, stream, &to).ok());
        }
    });
    Ok(port)
}

/// One request, one answer, neither larger than the buffer.
fn exchange(config: Arc<ServerConfig>, stream: TcpStream, to: &str) -> std::io::Result<()> {
    use std::io::{Read, Write};
    let connection = ServerConnection::new(config).map_err(std::io::Error::other)?;
    let mut client = StreamOwned::new(connection, stream);
    let mut receiver = TcpStream::connect(to)?;
    let mut buffer = vec![0; 16 << 10];
    receiver.set_read_timeout(Some(Duration::from_millis(200)))?;
    loop {
        let length = client.read(&mut buffer)?;
        receiver.write_all(&buffer[..length])?;
        match receiver.read(&mut buffer) {
            Ok(length) => return client.write_all(&buffer[..length]).and_then(|()| client.flush()),
            // The request is not complete yet.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

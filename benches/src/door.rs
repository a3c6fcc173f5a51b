//! `torpor gateway`, asked by HTTP as a portal asks it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Error, Result, ensure};
use jiff::Timestamp;
use torpor_cluster::torpor::Process;

use crate::world::{LONG, World, project};

/// A gateway, and the token of somebody who may ask it.
pub struct Door {
    /// The process.
    pub process: Process,
    /// Where it listens.
    pub address: String,
    /// The token.
    pub token: String,
    /// Requests that were answered with 503, and repeated as that answer says.
    busy: AtomicUsize,
}

impl Door {
    /// Starts the gateway and waits until it is ready.
    pub fn open(world: &World) -> Result<Self> {
        let rights = project().join("examples/rbac-portal.yaml").display().to_string();
        world.cluster.kubectl(["apply", "-f", &rights])?;
        let token = world.cluster.kubectl(["create", "token", "backend", "-n", "portal"])?.trim().to_owned();
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let gateway = world.program("gateway").arguments(&["--address", &address]);
        let process = gateway.start().map_err(Error::msg)?;
        process.await_ready(LONG).map_err(Error::msg)?;
        Ok(Door { process, address, token, busy: AtomicUsize::new(0) })
    }

    /// How often the gateway could not ask the API server in time.
    pub fn busy(&self) -> usize {
        self.busy.load(Ordering::SeqCst)
    }

    /// Asks for something about a tenant until it is answered, and tells when that was first.
    pub fn post(&self, tenant: &str, what: &str) -> Result<Timestamp> {
        let (at, since) = (Timestamp::now(), Instant::now());
        loop {
            let line = self.ask(tenant, what)?;
            let code = line.split(' ').nth(1).unwrap_or_default();
            if code.starts_with('2') {
                return Ok(at);
            }
            ensure!(code == "503" && since.elapsed() < LONG, "{what} of {tenant}: {line}");
            self.busy.fetch_add(1, Ordering::SeqCst);
            // What `Retry-After` says.
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    /// Asks once, on a connection of its own. The first line of the answer.
    fn ask(&self, tenant: &str, what: &str) -> Result<String> {
        let mut stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        write!(
            stream,
            "POST /v1/tenants/{tenant}/{what} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            self.token
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.lines().next().unwrap_or_default().to_owned())
    }
}

//! `torpor gateway` as a process under the account that the chart gives it, asked by HTTP.

pub mod document;
pub mod faults;
pub mod hosts;
pub mod limits;
pub mod page;
pub mod strangers;
pub mod wakes;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use torpor_cluster::Cluster;

use crate::harness::eventually;
use crate::process::{Process, Program, program};
use crate::tenants::ensure;

/// The key that links of these tests are signed with.
pub const LINK_KEY: &str = "a key of tests, long enough";
const START: Duration = Duration::from_secs(60);

/// A gateway that runs.
pub struct Door {
    pub process: Process,
    program: Program,
    pub address: String,
}

/// A gateway at an address, whoever runs it.
pub struct At<'a>(&'a str);

/// What was answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Result<Value, String> {
        serde_json::from_str(&self.body).map_err(|error| format!("{error}: {self:?}"))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// The status code is this one.
    pub fn is(self, status: u16) -> Result<Self, String> {
        ensure(self.status == status, || format!("{status} was expected: {self:?}"))?;
        Ok(self)
    }
}

/// Makes the account of the portal. Server-side, because several tests may do so at the same moment.
pub fn accounts(cluster: &Cluster) -> Result<(), String> {
    let file = "examples/rbac-portal.yaml";
    let applied = cluster.kubectl(["apply", "--server-side", "--force-conflicts", "-f", file]);
    applied.map(drop).map_err(|error| format!("{error:#}"))
}

/// A time of a status. As texts, two with fractions of different length do not compare.
pub fn time(value: &Value) -> Option<Timestamp> {
    value.as_str()?.parse().ok()
}

/// The token of an account.
pub fn token(cluster: &Cluster, namespace: &str, account: &str) -> Result<String, String> {
    let token = cluster.kubectl(["create", "token", account, "-n", namespace]);
    token.map(|token| token.trim().to_owned()).map_err(|error| format!("{error:#}"))
}

impl Door {
    /// A gateway which has links and speaks HTTP.
    pub fn open(cluster: &Cluster, arguments: &[&str]) -> Result<Self, String> {
        accounts(cluster)?;
        let text = |error: std::io::Error| error.to_string();
        let address = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).map_err(text)?;
        let address = address.to_string();
        let keys = cluster.data_dir().join("link-keys");
        std::fs::write(&keys, LINK_KEY).map_err(text)?;
        let program = program(cluster, "gateway")
            .arguments(&["--address", &address, "--link-key-file", &keys.display().to_string()])
            .arguments(&["--public-scheme", "http", "--portal-url", "http://portal.example.com/login"])
            .arguments(arguments);
        let process = program.clone().start()?;
        process.await_ready(START)?;
        Ok(Door { process, program, address })
    }

    /// A gateway that somebody else has opened.
    pub const fn at(address: &str) -> At<'_> {
        At(address)
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again at the same address.
    pub fn reopen(&mut self) -> Result<(), String> {
        self.process = self.program.clone().start()?;
        self.process.await_ready(START)
    }

    /// See [`At::ask`].
    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Result<Answer, String> {
        At(&self.address).ask(method, path, headers)
    }

    /// See [`At::call`].
    pub fn call(&self, token: &str, method: &str, path: &str) -> Result<Answer, String> {
        At(&self.address).call(token, method, path)
    }

    /// See [`At::listen`].
    pub fn listen(&self, token: &str, path: &str) -> Result<Events, String> {
        At(&self.address).listen(token, path)
    }

    /// A page as a browser asks for it.
    pub fn browse(&self, path: &str, more: &[(&str, &str)]) -> Result<Answer, String> {
        self.ask("GET", path, &[&[("Accept", "text/html,application/xhtml+xml,*/*;q=0.8")], more].concat())
    }

    /// A connection on which nothing was said yet.
    pub fn connect(&self) -> Result<TcpStream, String> {
        At(&self.address).connect()
    }
}

impl At<'_> {
    /// One request on a connection of its own, with these headers.
    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Result<Answer, String> {
        let mut stream = self.connect()?;
        send(&mut stream, method, path, headers, "")?;
        answer(&mut BufReader::new(stream))
    }

    /// The same with a bearer token.
    pub fn call(&self, token: &str, method: &str, path: &str) -> Result<Answer, String> {
        self.ask(method, path, &[("Authorization", &format!("Bearer {token}"))])
    }

    fn connect(&self) -> Result<TcpStream, String> {
        let stream = TcpStream::connect(self.0).map_err(|error| error.to_string())?;
        stream.set_read_timeout(Some(Duration::from_secs(60))).map_err(|error| error.to_string())?;
        Ok(stream)
    }

    /// Opens a stream of events.
    pub fn listen(&self, token: &str, path: &str) -> Result<Events, String> {
        let mut stream = self.connect()?;
        send(&mut stream, "GET", path, &[("Authorization", &format!("Bearer {token}"))], "")?;
        let mut reader = BufReader::new(stream);
        let (status, _) = head(&mut reader)?;
        ensure(status == 200, || format!("{path}: {status}"))?;
        Ok(Events { reader })
    }
}

/// Sends a request.
pub fn send(
    stream: &mut TcpStream,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Result<(), String> {
    let host = if headers.iter().any(|(name, _)| *name == "Host") { "" } else { "Host: localhost\r\n" };
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let text = format!("{method} {path} HTTP/1.1\r\n{host}{headers}{length}Connection: close\r\n\r\n{body}");
    stream.write_all(text.as_bytes()).map_err(|error| error.to_string())
}

fn head(reader: &mut impl BufRead) -> Result<(u16, BTreeMap<String, String>), String> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        let read = reader.read_line(&mut line).map_err(|error| error.to_string())?;
        if read == 0 || line == "\r\n" {
            break;
        }
        lines.push(line.trim_end().to_owned());
    }
    let status = lines.first().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let headers = lines.iter().skip(1).filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
    Ok((status.ok_or_else(|| format!("no answer: {lines:?}"))?, headers))
}

/// Reads an answer to its end; the connection is closed by then.
pub fn answer(reader: &mut impl BufRead) -> Result<Answer, String> {
    let (status, headers) = head(reader)?;
    let mut body = String::new();
    reader.read_to_string(&mut body).map_err(|error| error.to_string())?;
    if headers.get("transfer-encoding").is_some_and(|value| value == "chunked") {
        body = unchunked(&body);
    }
    Ok(Answer { status, headers, body })
}

fn unchunked(mut text: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = text.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap_or(0);
        if size == 0 || rest.len() < size {
            break;
        }
        whole.push_str(&rest[..size]);
        text = rest[size..].trim_start_matches("\r\n");
    }
    whole
}

/// A stream of server-sent events.
pub struct Events {
    reader: BufReader<TcpStream>,
}

impl Events {
    /// The next event's kind and data; `None` at the end of the stream.
    pub fn next(&mut self) -> Result<Option<(String, Value)>, String> {
        let mut kind = String::new();
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line).map_err(|error| error.to_string())? == 0 {
                return Ok(None);
            }
            let line = line.trim_end();
            if let Some(event) = line.strip_prefix("event: ") {
                event.clone_into(&mut kind);
            }
            if let Some(data) = line.strip_prefix("data: ") {
                let data = serde_json::from_str(data).map_err(|error| format!("{error}: {data}"))?;
                return Ok(Some((kind, data)));
            }
        }
    }
}

/// Waits until the gateway says this of a tenant.
pub fn await_state(door: &Door, token: &str, tenant: &str, state: &str) -> Result<Value, String> {
    eventually(Duration::from_secs(120), || {
        let told = door.call(token, "GET", &format!("/v1/tenants/{tenant}"))?.is(200)?.json()?;
        ensure(told["state"] == state, || format!("{state} was expected: {told}"))?;
        Ok(told)
    })
}

//! The part of the demo that wakes a tenant as a portal does: through the gateway.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{PORTAL, say, show::Demo};

/// The tenant whose user logs in.
const TENANT: &str = "free-bird";
/// Longer than any wake-up of the demo, on a machine that is busy.
const LIMIT: Duration = Duration::from_secs(120);

impl Demo {
    /// A user logs in: what the portal asks the gateway, and what it hears.
    pub(super) fn log_in(&mut self, gateway: &str) -> Result<()> {
        say(format!("The user of {TENANT} logs in. The portal tells the gateway, with a token of its own account:\n"));
        self.kubectl()?.with_input(&["apply", "-f", "-"], PORTAL.yaml)?;
        say(format!("$ kubectl apply -f {}", PORTAL.path));
        say("$ token=$(kubectl create token backend -n portal)");
        let token = self.kubectl()?.run(&["create", "token", "backend", "-n", "portal"])?;
        let door = Door { address: gateway, token: token.trim() };
        let at = |rest: &str| format!("/v1/tenants/{TENANT}{rest}");
        // The API server takes a moment to know new roles.
        super::eventually(Duration::from_secs(20), || {
            let (status, body) = door.ask("GET", &at(""))?;
            Ok(if status == 200 { Ok(()) } else { Err(format!("the gateway answers {status}: {body}")) })
        })?;
        self.shown(&door, "GET", &at(""))?;
        let events = door.listen(&at("/events"))?;
        let started = Instant::now();
        self.shown(&door, "POST", &at("/wake"))?;
        say(format!("\n$ curl -N -H \"Authorization: Bearer $token\" http://{gateway}{}", at("/events")));
        self.hear(events, started)?;
        self.shown(&door, "POST", &at("/activity"))?;
        say("");
        Ok(())
    }

    /// Asks, and shows question and answer.
    fn shown(&self, door: &Door, method: &str, path: &str) -> Result<Value> {
        let how = if method == "GET" { String::new() } else { format!("-X {method} ") };
        say(format!("\n$ curl -i {how}-H \"Authorization: Bearer $token\" http://{}{path}", door.address));
        let (status, body) = door.ask(method, path)?;
        say(format!("HTTP/1.1 {status}  {body}").trim_end());
        if !(200..300).contains(&status) {
            bail!("the gateway answered {status}");
        }
        Ok(serde_json::from_str(&body).unwrap_or(Value::Null))
    }

    /// Tells each event with the time since the login.
    fn hear(&mut self, mut events: BufReader<TcpStream>, started: Instant) -> Result<()> {
        let (mut kind, mut line, mut before) = (String::new(), String::new(), String::new());
        loop {
            self.check()?;
            line.clear();
            if events.read_line(&mut line).context("the stream of events broke off")? == 0 {
                return Ok(());
            }
            if let Some(event) = line.trim_end().strip_prefix("event: ") {
                event.clone_into(&mut kind);
            }
            if let Some(data) = line.trim_end().strip_prefix("data: ") {
                let told = told(&kind, &serde_json::from_str(data)?);
                if told != before {
                    self.progress(format!("{:5.1} s after the login  {told}", started.elapsed().as_secs_f32()));
                    before = told;
                }
            }
            if started.elapsed() > LIMIT {
                bail!("{TENANT} is not awake after {} s: {before}", LIMIT.as_secs());
            }
        }
    }
}

/// An event in a line.
fn told(kind: &str, data: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let parts = data["parts"].as_array().cloned().unwrap_or_default();
    let parts: Vec<String> =
        parts.iter().map(|part| format!("{} {}", text(&part["name"]), text(&part["state"]))).collect();
    let left = data["estimatedSeconds"].as_i64().map(|left| format!(", about {left} s left"));
    format!("{kind}: {}{}; {}", text(&data["state"]), left.unwrap_or_default(), parts.join(", "))
}

/// The gateway as a portal sees it.
struct Door<'a> {
    address: &'a str,
    token: &'a str,
}

impl Door<'_> {
    /// One request: the status code and the body.
    fn ask(&self, method: &str, path: &str) -> Result<(u16, String)> {
        let mut reader = self.send(method, path)?;
        let status = head(&mut reader)?;
        let mut body = String::new();
        reader.read_to_string(&mut body)?;
        Ok((status, body))
    }

    fn listen(&self, path: &str) -> Result<BufReader<TcpStream>> {
        let mut reader = self.send("GET", path)?;
        match head(&mut reader)? {
            200 => Ok(reader),
            status => bail!("the gateway answered {status}"),
        }
    }

    fn send(&self, method: &str, path: &str) -> Result<BufReader<TcpStream>> {
        let mut stream = TcpStream::connect(self.address).context("the gateway does not answer")?;
        stream.set_read_timeout(Some(LIMIT))?;
        let (address, token) = (self.address, self.token);
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes())?;
        Ok(BufReader::new(stream))
    }
}

/// Reads to the end of an answer's head.
fn head(reader: &mut impl BufRead) -> Result<u16> {
    let mut status = None;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            return status.context("the gateway closed the connection");
        }
        status = status.or_else(|| line.split(' ').nth(1)?.parse().ok());
    }
}

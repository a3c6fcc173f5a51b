//! A name server that knows a few names, all of this machine, and remembers what it was asked.

use std::net::UdpSocket;
use std::sync::{Arc, Mutex, PoisonError};

const HEADER: usize = 12;
const ADDRESS: u16 = 1;
const NO_SUCH_NAME: u8 = 3;

/// Answers on port 53 of the loopback address until the test ends.
pub struct Names {
    asked: Arc<Mutex<Vec<String>>>,
}

impl Names {
    /// One that knows these names.
    pub fn serve(known: &[&str]) -> Result<Self, String> {
        let devices = std::fs::read_to_string("/proc/self/net/dev").map_err(|error| error.to_string())?;
        let foreign = devices.lines().skip(2).find(|line| !line.trim_start().starts_with("lo:"));
        if let Some(line) = foreign {
            return Err(format!("not in a network namespace of its own, run it by make image-check: {}", line.trim()));
        }
        let socket = UdpSocket::bind("127.0.0.1:53").map_err(|error| format!("port 53: {error}"))?;
        let known: Vec<String> = known.iter().map(ToString::to_string).collect();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let remembered = asked.clone();
        std::thread::spawn(move || {
            let mut packet = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut packet) {
                if let Some((name, answer)) = answer(&packet[..length], &known) {
                    remembered.lock().unwrap_or_else(PoisonError::into_inner).push(name);
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Ok(Names { asked })
    }

    /// All names that were asked for, in order.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The name in a query, and the answer to it. Names of the list have an IPv4 address and no other record.
fn answer(query: &[u8], known: &[String]) -> Option<(String, Vec<u8>)> {
    let mut labels = Vec::new();
    let mut at = HEADER;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]);
    let name = labels.join(".");
    let found = known.contains(&name);
    let has_address = found && kind == ADDRESS;
    let mut answer = query.get(..2)?.to_vec();
    let status = if found { 0 } else { NO_SUCH_NAME };
    // An answer, with recursion as the resolver wants it; one question, and an address or not.
    answer.extend([0x81, 0x80 | status, 0, 1, 0, u8::from(has_address), 0, 0, 0, 0]);
    answer.extend(query.get(HEADER..at + 4)?);
    if has_address {
        // The name of the question, an address of the Internet, for 5 seconds, in 4 bytes.
        answer.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 127, 0, 0, 1]);
    }
    Some((name, answer))
}

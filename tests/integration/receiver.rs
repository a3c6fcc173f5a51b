//! A receiver of webhooks that behaves as well or as badly as a test wants, and remembers what it was sent.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::harness::eventually;

/// How a request is answered, once it has been recorded.
#[derive(Clone, Debug)]
pub enum Behaviour {
    /// 200, at once.
    Ok200,
    /// 200, after so long.
    Slow(Duration),
    /// 200, after so long to a body that holds this text, and at once to others.
    SlowFor(&'static str, Duration),
    /// The connection is closed without an answer.
    Close,
    /// This status code.
    Status(u16),
    /// 307 to another place.
    Redirect(String),
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    /// When its last byte had come.
    pub at: SystemTime,
    /// The method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Headers, their names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: String,
}

impl Request {
    /// A header, empty where there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// Whether `webhook-signature` holds a signature `v1` of identity, time and body under this key.
    pub fn verify(&self, key: &[u8]) -> Result<(), String> {
        let timestamp = self.header("webhook-timestamp");
        timestamp.parse::<u64>().map_err(|error| format!("webhook-timestamp {timestamp:?}: {error}"))?;
        let mut expected = Hmac::<Sha256>::new_from_slice(key).map_err(|error| error.to_string())?;
        expected.update(format!("{}.{timestamp}.{}", self.header("webhook-id"), self.body).as_bytes());
        let expected = format!("v1,{}", STANDARD.encode(expected.finalize().into_bytes()));
        // While keys are exchanged, a sender signs with both.
        let given = self.header("webhook-signature");
        let signed = given.split(' ').any(|signature| signature == expected);
        if signed { Ok(()) } else { Err(format!("webhook-signature is {given:?}, expected {expected:?}")) }
    }
}

/// An HTTP server on a loopback port; gone when dropped.
pub struct Receiver {
    port: u16,
    shared: Arc<Shared>,
    listening: Option<JoinHandle<()>>,
}

struct Shared {
    refuses: AtomicBool,
    behaviour: Mutex<Behaviour>,
    requests: Mutex<Vec<Request>>,
}

impl Receiver {
    /// One that answers 200.
    pub fn start() -> Result<Self, String> {
        // Below the range that the kernel gives to outgoing connections: one of those could otherwise take the port, or
        // even connect to itself, while nobody listens.
        let random = RandomState::new();
        let mut ports =
            (0..1_000_u32).filter_map(|attempt| u16::try_from(12_000 + random.hash_one(attempt) % 8_000).ok());
        let free = ports.find_map(|port| TcpListener::bind(("127.0.0.1", port)).ok());
        let listener = free.ok_or("no free loopback port")?;
        let port = listener.local_addr().map_err(|error| error.to_string())?.port();
        let shared = Arc::new(Shared {
            refuses: AtomicBool::new(false),
            behaviour: Mutex::new(Behaviour::Ok200),
            requests: Mutex::default(),
        });
        let listening = Some(listen(listener, shared.clone()));
        Ok(Receiver { port, shared, listening })
    }

    /// Where it is to be reached, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Answers in this way from now on, and comes back if it refused.
    pub fn behave(&mut self, behaviour: Behaviour) -> Result<(), String> {
        *locked(&self.shared.behaviour) = behaviour;
        if self.listening.is_none() {
            let bind = || TcpListener::bind(("127.0.0.1", self.port)).map_err(|error| error.to_string());
            let listener = eventually(Duration::from_secs(10), bind)?;
            self.shared.refuses.store(false, Ordering::SeqCst);
            self.listening = Some(listen(listener, self.shared.clone()));
        }
        Ok(())
    }

    /// Refuses every connection from now on.
    pub fn refuse(&mut self) {
        if let Some(listening) = self.listening.take() {
            self.shared.refuses.store(true, Ordering::SeqCst);
            // It looks at the flag when somebody comes.
            let _ = TcpStream::connect(("127.0.0.1", self.port));
            let _ = listening.join();
        }
    }

    /// Everything that has come, in order.
    pub fn requests(&self) -> Vec<Request> {
        locked(&self.shared.requests).clone()
    }

    /// Waits until so many requests have come, and returns all of them.
    pub fn await_requests(&self, count: usize, limit: Duration) -> Result<Vec<Request>, String> {
        eventually(limit, || {
            let requests = self.requests();
            if requests.len() >= count { Ok(requests) } else { Err(format!("{} of {count} requests", requests.len())) }
        })
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.refuse();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn listen(listener: TcpListener, shared: Arc<Shared>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if shared.refuses.load(Ordering::SeqCst) {
                return;
            }
            let shared = shared.clone();
            std::thread::spawn(move || {
                // A sender that goes away half-way is its own business.
                let _ = answer(stream, &shared);
            });
        }
    })
}

fn answer(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let request = read(&mut stream)?;
    let body = request.body.clone();
    locked(&shared.requests).push(request);
    let behaviour = locked(&shared.behaviour).clone();
    let (code, more) = match behaviour {
        Behaviour::Ok200 => (200, String::new()),
        Behaviour::Slow(pause) => {
            std::thread::sleep(pause);
            (200, String::new())
        }
        Behaviour::SlowFor(text, pause) => {
            if body.contains(text) {
                std::thread::sleep(pause);
            }
            (200, String::new())
        }
        Behaviour::Close => return Ok(()),
        Behaviour::Status(code) => (code, String::new()),
        Behaviour::Redirect(place) => (307, format!("Location: {place}\r\n")),
    };
    write!(stream, "HTTP/1.1 {code} -\r\n{more}Content-Length: 0\r\nConnection: close\r\n\r\n")
}

fn read(stream: &mut TcpStream) -> std::io::Result<Request> {
    let bad = |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_owned());
    let mut stream = BufReader::new(stream);
    let mut line = || {
        let mut line = String::new();
        stream.read_line(&mut line).map(|_| line.trim_end().to_owned())
    };
    let first = line()?;
    let mut words = first.split(' ').map(str::to_owned);
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return Err(bad("no request line")) };
    let mut headers = BTreeMap::new();
    loop {
        let text = line()?;
        if text.is_empty() {
            break;
        }
        let (name, value) = text.split_once(':').ok_or_else(|| bad("a header without a colon"))?;
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").map_or(Ok(0), |length| length.parse());
    let mut body = vec![0; length.map_err(|_| bad("Content-Length is no number"))?];
    stream.read_exact(&mut body)?;
    let body = String::from_utf8(body).map_err(|_| bad("the body is not UTF-8"))?;
    Ok(Request { at: SystemTime::now(), method, path, headers, body })
}

/// Sends a webhook as the published example of the signature's definition does, and tells the first line of the answer
/// and where it points to; nothing where the connection was closed.
fn send(receiver: &Receiver, body: &str) -> Result<(String, String), String> {
    let text = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect(("127.0.0.1", receiver.port)).map_err(text)?;
    write!(
        stream,
        "POST /hook?a=b HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\
         Webhook-Id: msg_p5jXN8AQM9LWM0D4loKWxJek\r\nWEBHOOK-TIMESTAMP: 1614265330\r\n\
         webhook-signature: v1,other v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=\r\n\r\n{body}",
        body.len()
    )
    .map_err(text)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(text)?;
    let place = answer.lines().find_map(|line| line.strip_prefix("Location: ")).unwrap_or_default();
    Ok((answer.lines().next().unwrap_or_default().to_owned(), place.to_owned()))
}

/// The receiver does what tests of webhooks rely on. Needs no cluster.
pub fn receiver_behaves_as_told() -> Result<(), String> {
    const BODY: &str = r#"{"test": 2432232314}"#;
    let key = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").map_err(|error| error.to_string())?;
    let mut receiver = Receiver::start()?;
    let elsewhere = format!("{}/elsewhere", receiver.url());
    let pause = Duration::from_millis(300);
    for (behaviour, status, place) in [
        (Behaviour::Ok200, "HTTP/1.1 200 -", ""),
        (Behaviour::Slow(pause), "HTTP/1.1 200 -", ""),
        (Behaviour::Close, "", ""),
        (Behaviour::Status(500), "HTTP/1.1 500 -", ""),
        (Behaviour::Redirect(elsewhere.clone()), "HTTP/1.1 307 -", elsewhere.as_str()),
    ] {
        let shown = format!("{behaviour:?}");
        receiver.behave(behaviour)?;
        let answer = send(&receiver, BODY)?;
        if answer != (status.to_owned(), place.to_owned()) {
            return Err(format!("{shown}: {answer:?}"));
        }
    }
    let requests = receiver.await_requests(5, Duration::from_secs(1))?;
    let waited = requests[2].at.duration_since(requests[1].at).map_err(|error| error.to_string())?;
    if waited < pause {
        return Err(format!("the slow answer came after {waited:?}"));
    }
    for request in &requests {
        request.verify(&key)?;
        if (request.method.as_str(), request.path.as_str(), request.body.as_str()) != ("POST", "/hook?a=b", BODY) {
            return Err(format!("{request:?}"));
        }
    }
    if requests[0].verify(b"another key").is_ok() {
        return Err("a signature by another key was taken".to_owned());
    }
    receiver.refuse();
    if let Ok(answer) = send(&receiver, BODY) {
        return Err(format!("refusing, it answered {answer:?}"));
    }
    receiver.behave(Behaviour::Ok200)?;
    send(&receiver, BODY)?;
    if receiver.requests().len() == 6 { Ok(()) } else { Err(format!("{} requests", receiver.requests().len())) }
}

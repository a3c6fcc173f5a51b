//! Deliveries over real sockets, to receivers that behave and to ones that do not.

mod receiver;

use std::future::pending;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpSocket},
    time::{sleep, timeout},
};

use self::receiver::{Receiver, https_receiver};
use super::*;
use crate::{api::Tier, domain::stage::Stage};

const KEY: &[u8] = b"0123456789abcdef0123456789abcdef";
/// Far more than any delivery to this machine takes.
const PATIENT: Duration = Duration::from_secs(20);
/// What a receiver that hangs is granted.
const IMPATIENT: Duration = Duration::from_millis(300);

fn config(url: impl Into<String>, timeout: Duration) -> WebhookConfig {
    WebhookConfig { url: url.into(), key: KEY.to_vec(), timeout, source: "/clusters/eu-1/torpor".to_owned() }
}

fn warning() -> Warning {
    Warning {
        id: "acme-BotsStopped-1767225600".to_owned(),
        kind: Kind::Warning,
        tenant: "acme".to_owned(),
        tier: Tier::Basic,
        stage: Stage::BotsStopped,
        deadline: time("2026-01-09T00:00:00Z"),
        idle_since: time("2026-01-01T00:00:00Z"),
        message: "The bots of acme stop on 9 January at 00:00 UTC unless somebody logs in before.".to_owned(),
    }
}

fn time(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

fn now() -> Timestamp {
    time("2026-01-08T00:00:00Z")
}

/// One attempt, which ends long before the test would hang.
async fn attempt(url: impl Into<String>, limit: Duration) -> Result<(), Undelivered> {
    deliver(&Webhook::new(config(url, limit)).expect("a webhook")).await
}

async fn deliver(webhook: &Webhook) -> Result<(), Undelivered> {
    timeout(PATIENT / 2, webhook.deliver(&warning(), now())).await.expect("an end in time")
}

/// The message of a failed attempt, after a look at what none may contain.
async fn failure(url: impl Into<String>, limit: Duration) -> String {
    let Undelivered(message) = attempt(url, limit).await.expect_err("a failure");
    for secret in ["querysecret", "token", "/hooks", "password", "0123456789abcdef"] {
        assert!(!message.contains(secret), "{message}");
    }
    assert!(!message.contains('\n') && message.len() < 250, "{message}");
    message
}

/// HMAC-SHA256 as RFC 2104 defines it, without the crate that the module uses.
fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    let mut block = [0; 64];
    block[..key.len()].copy_from_slice(key);
    let inner = Sha256::new().chain_update(block.map(|byte| byte ^ 0x36)).chain_update(text).finalize();
    Sha256::new().chain_update(block.map(|byte| byte ^ 0x5c)).chain_update(inner).finalize().to_vec()
}

#[tokio::test]
async fn an_event_arrives_whole_and_signed() {
    let mut receiver = Receiver::saying("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    assert_eq!(attempt(receiver.url(), PATIENT).await, Ok(()));

    let request = receiver.request();
    assert_eq!(request.line, "POST /hooks?token=querysecret HTTP/1.1");
    assert_eq!(request.header("host"), receiver.address.to_string());
    assert_eq!(request.header("content-type"), "application/cloudevents+json; charset=utf-8");
    assert_eq!(request.header("user-agent"), format!("torpor/{}", env!("CARGO_PKG_VERSION")));
    assert_eq!(request.header("webhook-id"), "acme-BotsStopped-1767225600");
    assert_eq!(request.header("webhook-timestamp"), "1767830400");

    let signed = [b"acme-BotsStopped-1767225600.1767830400.", request.body.as_slice()].concat();
    let signature = request.header("webhook-signature").strip_prefix("v1,").expect("version 1");
    assert_eq!(BASE64_STANDARD.decode(signature).expect("base64"), hmac(KEY, &signed));

    assert_eq!(
        serde_json::from_slice::<Value>(&request.body).expect("JSON"),
        json!({
            "specversion": "1.0",
            "id": "acme-BotsStopped-1767225600",
            "source": "/clusters/eu-1/torpor",
            "type": "dev.torpor.tenant.sleep.warning",
            "subject": "acme",
            "time": "2026-01-08T00:00:00Z",
            "datacontenttype": "application/json",
            "data": {
                "tenant": "acme",
                "tier": "basic",
                "stage": "BotsStopped",
                "deadline": "2026-01-09T00:00:00Z",
                "idleSince": "2026-01-01T00:00:00Z",
                "message": "The bots of acme stop on 9 January at 00:00 UTC unless somebody logs in before.",
            },
        })
    );

    // The page for receivers shows this very request, its JSON laid out for reading.
    let page = include_str!("../../docs/webhook.md");
    let example = page.split("```json\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    let example: Vec<_> = example.lines().map(|line| line.trim_start().replacen("\": ", "\":", 1)).collect();
    assert_eq!(example.concat(), String::from_utf8(request.body.clone()).expect("UTF-8"));
    for name in ["content-type", "webhook-id", "webhook-timestamp", "webhook-signature"] {
        let line = format!("{name}: {}\n", request.header(name));
        assert!(page.contains(&line), "docs/webhook.md lacks {line}");
    }
}

#[tokio::test]
async fn a_question_has_a_type_of_its_own_and_any_language() {
    let mut receiver = Receiver::saying("HTTP/1.1 204 No Content\r\n\r\n").await;
    let webhook = Webhook::new(config(receiver.url(), PATIENT)).expect("a webhook");
    let question =
        Warning { kind: Kind::Question, message: "Darf Größe schlafen? \"はい\"".to_owned(), ..warning() };
    assert_eq!(webhook.deliver(&question, now()).await, Ok(()));

    let event: Value = serde_json::from_slice(&receiver.request().body).expect("JSON");
    assert_eq!(event["type"], "dev.torpor.tenant.sleep.question");
    assert_eq!(event["data"]["message"], question.message);
}

/// A second attempt repeats the id; time and signature are those of the attempt.
#[tokio::test]
async fn a_repetition_has_the_same_id_and_a_new_signature() {
    let mut receiver = Receiver::saying("HTTP/1.1 204 No Content\r\n\r\n").await;
    let webhook = Webhook::new(config(receiver.url(), PATIENT)).expect("a webhook");
    for now in [now(), time("2026-01-08T00:00:01Z")] {
        assert_eq!(webhook.deliver(&warning(), now).await, Ok(()));
    }
    let (first, second) = (receiver.request(), receiver.request());
    assert_eq!(first.header("webhook-id"), second.header("webhook-id"));
    assert_eq!(second.header("webhook-timestamp"), "1767830401");
    assert_ne!(first.header("webhook-signature"), second.header("webhook-signature"));
}

#[tokio::test]
async fn only_success_is_delivered() {
    for (status, delivered) in
        [("200 OK", true), ("202 Accepted", true), ("299 Fine", true), ("304 Not Modified", false)].into_iter().chain([
            ("400 Bad Request", false),
            ("410 Gone", false),
            ("500 Internal Server Error", false),
        ])
    {
        let mut receiver = Receiver::saying(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n")).await;
        if delivered {
            assert_eq!(attempt(receiver.url(), PATIENT).await, Ok(()), "{status}");
        } else {
            let message = failure(receiver.url(), PATIENT).await;
            let expected = format!("http://{}: it answered {status}", receiver.address);
            assert!(message.starts_with(&expected), "{message}");
        }
        receiver.request();
        assert!(receiver.requests.try_recv().is_err(), "{status}: more than one attempt");
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    for status in ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"] {
        let mut other = Receiver::saying("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        let answer = format!("HTTP/1.1 {status}\r\nlocation: {}\r\ncontent-length: 0\r\n\r\n", other.url());
        let mut receiver = Receiver::saying(answer).await;
        let message = failure(receiver.url(), PATIENT).await;
        assert!(message.ends_with(&format!("it answered {status}, and redirects are not followed")), "{message}");
        receiver.request();
        assert!(other.requests.try_recv().is_err(), "{status}: the other receiver was asked");
    }
}

#[tokio::test]
async fn an_answer_that_is_late_is_no_delivery() {
    for answer in [
        "",
        "HTTP/1.1 200 OK\r\ncontent-le",
        "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ] {
        let mut receiver = Receiver::hanging_after(answer).await;
        let message = failure(receiver.url(), IMPATIENT).await;
        assert!(message.ends_with("no complete answer within 300ms"), "{answer:?}: {message}");
        receiver.request();
    }
}

/// The time is for the whole answer, not from one byte to the next.
#[tokio::test]
async fn an_answer_that_drips_is_late_too() {
    let receiver = Receiver::new(|mut stream| async move {
        let head = "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n";
        let mut sent = stream.write_all(head.as_bytes()).await;
        while sent.is_ok() {
            sleep(IMPATIENT / 6).await;
            sent = stream.write_all(b".").await;
        }
    })
    .await;
    let message = failure(receiver.url(), IMPATIENT).await;
    assert!(message.ends_with("no complete answer within 300ms"), "{message}");
}

#[tokio::test]
async fn a_connection_that_breaks_off_is_no_delivery() {
    for answer in [
        "",
        "HTTP/1.1 200 OK\r\ncontent-le",
        "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "this is no HTTP\r\n\r\n",
    ] {
        let receiver = Receiver::saying(answer).await;
        let message = failure(receiver.url(), PATIENT).await;
        assert!(message.contains(": the exchange broke off: "), "{answer:?}: {message}");
    }
}

#[tokio::test]
async fn a_refused_connection_and_an_unknown_host_are_named() {
    // Bound and not listening, so that no other test can get the port meanwhile.
    let taken = TcpSocket::new_v4().expect("a socket");
    taken.bind(([127, 0, 0, 1], 0).into()).expect("a free port");
    let address = taken.local_addr().expect("an address");
    let message = failure(format!("http://user:password@{address}/hooks?token=querysecret"), PATIENT).await;
    assert!(message.starts_with(&format!("http://{address}: cannot connect: Connection refused")), "{message}");

    // No label of a name may be so long, so that this fails without asking any server.
    let host = "x".repeat(64);
    let message = failure(format!("http://{host}/hooks?token=querysecret"), PATIENT).await;
    assert!(message.starts_with(&format!("http://{host}: cannot connect: ")), "{message}");
}

/// Success is told by the status, and nobody waits for the end of an answer that has none.
#[tokio::test]
async fn an_endless_answer_is_cut() {
    let receiver = Receiver::new(|mut stream| async move {
        let mut sent = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        while sent.is_ok() {
            sent = stream.write_all(&[b'x'; 4096]).await;
        }
    })
    .await;
    assert_eq!(attempt(receiver.url(), PATIENT).await, Ok(()));
}

#[tokio::test]
async fn https_needs_a_certificate_that_is_trusted_and_of_that_name() {
    let (address, certificate) = https_receiver().await;
    let url = format!("https://{address}/hooks?token=querysecret");
    let trusting = |url: &str| {
        let trusted = vec![certificate.clone()];
        Webhook::trusting(config(url, PATIENT), Some(trusted)).expect("a webhook")
    };
    assert_eq!(deliver(&trusting(&url)).await, Ok(()));

    let other_name = format!("https://localhost:{}/", address.port());
    let Undelivered(message) = deliver(&trusting(&other_name)).await.expect_err("another name");
    assert!(message.contains("cannot connect: invalid peer certificate"), "{message}");

    let nobody = Webhook::trusting(config(url, PATIENT), Some(Vec::new())).expect("a webhook");
    let Undelivered(message) = deliver(&nobody).await.expect_err("no trust");
    assert!(message.ends_with("cannot connect: invalid peer certificate: UnknownIssuer"), "{message}");
}

#[tokio::test]
async fn a_receiver_without_tls_is_no_https_receiver() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.expect("a sender that listens");
        pending::<()>().await;
    });
    let webhook = Webhook::trusting(config(format!("https://{address}"), PATIENT), Some(Vec::new()));
    let Undelivered(message) = deliver(&webhook.expect("a webhook")).await.expect_err("no TLS");
    assert!(message.starts_with(&format!("https://{address}: cannot connect: ")), "{message}");
}

#[tokio::test]
async fn an_id_that_cannot_be_signed_is_not_sent() {
    let mut receiver = Receiver::saying("HTTP/1.1 204 No Content\r\n\r\n").await;
    let webhook = Webhook::new(config(receiver.url(), PATIENT)).expect("a webhook");
    let Undelivered(message) =
        webhook.deliver(&Warning { id: "a.1\r\nx: y".to_owned(), ..warning() }, now()).await.expect_err("an id");
    assert!(message.contains(r#"the id "a.1\r\nx: y" cannot be signed"#), "{message}");
    assert!(receiver.requests.try_recv().is_err());
}

#[test]
fn a_wrong_configuration_is_one_line_without_secrets() {
    let good = || config("https://user:password@example.com/pathsecret?token=querysecret", PATIENT);
    let cases = [
        (WebhookConfig { url: String::new(), ..good() }, "URL is not usable"),
        (WebhookConfig { url: "/pathsecret".to_owned(), ..good() }, "URL is not usable"),
        (WebhookConfig { url: "example.com/pathsecret".to_owned(), ..good() }, "URL is not usable"),
        (WebhookConfig { url: "http://?token=querysecret".to_owned(), ..good() }, "URL is not usable"),
        (WebhookConfig { url: "ftp://example.com/pathsecret".to_owned(), ..good() }, "neither https nor http"),
        (WebhookConfig { url: "unix:/pathsecret".to_owned(), ..good() }, "neither https nor http"),
        (WebhookConfig { key: b"keysecret".to_vec(), ..good() }, "key has 9 bytes; it needs at least 16"),
        (WebhookConfig { key: Vec::new(), ..good() }, "key has 0 bytes"),
        (WebhookConfig { source: String::new(), ..good() }, "source is empty"),
        (WebhookConfig { timeout: Duration::ZERO, ..good() }, "timeout is zero"),
    ];
    for (config, expected) in cases {
        let shown = format!("{config:?}");
        let error = Webhook::new(config).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains('\n') && !error.contains("secret") && !error.contains("password"), "{error}");
        assert!(!shown.contains("secret") && !shown.contains("password"), "{shown}");
    }
}

#[test]
fn debug_output_shows_the_host_and_no_secret() {
    let config = config("http://user:password@example.com/pathsecret?token=querysecret", PATIENT);
    let key = [format!("{KEY:?}").trim_matches(['[', ']']).to_owned(), "0123456789abcdef".to_owned()];
    let shown = [format!("{config:?}"), format!("{:?}", Webhook::new(config).expect("a webhook"))];
    assert!(shown[1].contains("http://example.com\""), "{}", shown[1]);
    for text in shown {
        for secret in key.iter().map(String::as_str).chain(["password", "pathsecret", "querysecret"]) {
            assert!(!text.contains(secret), "{text}");
        }
    }
}

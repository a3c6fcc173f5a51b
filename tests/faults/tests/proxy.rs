//! The proxy before a server that answers as an API server does, over TLS on both sides.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use torpor_cluster::pki::Authority;
use torpor_faults::plan::{Match, Plan};
use torpor_faults::proxy::{self, Proxy};
use torpor_faults::relay::Relay;

/// A server that tells the token it was given, and on `watch` sends three frames, 50 ms apart.
async fn server(authority: &Authority) -> Result<String> {
    use rustls::pki_types::pem::PemObject;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let identity = authority.serving(&["127.0.0.1"])?;
    let chain =
        rustls::pki_types::CertificateDer::pem_slice_iter(identity.cert.as_bytes()).collect::<Result<_, _>>()?;
    let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(identity.key.as_bytes())?;
    let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut request = vec![0; 65_536];
                while let Ok(length) = stream.read(&mut request).await {
                    if length == 0 || answer(&mut stream, &request[..length]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(format!("https://{address}"))
}

async fn answer(stream: &mut (impl AsyncWriteExt + Unpin), request: &[u8]) -> std::io::Result<()> {
    let request = String::from_utf8_lossy(request).to_lowercase();
    if request.contains("watch=true") {
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
            .await?;
        for number in 0..3 {
            // Each frame comes in two chunks.
            let frame =
                format!("{{\"type\":\"ADDED\",\"object\":{{\"n\":{number},\"metadata\":{{\"name\":\"a\"}}}}}}\n");
            let (first, second) = frame.split_at(7);
            for part in [first, second] {
                stream.write_all(format!("{:x}\r\n{part}\r\n", part.len()).as_bytes()).await?;
                stream.flush().await?;
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
        }
        if request.contains("linger") {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        return stream.write_all(b"0\r\n\r\n").await;
    }
    let token = request.lines().find_map(|line| line.strip_prefix("authorization: bearer ")).unwrap_or("none");
    let body = format!("{{\"token\":\"{}\"}}", token.trim());
    let head =
        format!("HTTP/1.1 201 Created\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).await
}

struct Pair {
    proxy: Proxy,
    client: reqwest::Client,
}

async fn pair() -> Result<Pair> {
    let authority = Authority::new()?;
    let upstream = server(&authority).await?;
    let proxy = Proxy::start(&upstream, &authority.cert, &authority.serving(&["127.0.0.1"])?).await?;
    Ok(Pair { proxy, client: proxy::client(&authority.cert)? })
}

impl Pair {
    fn plan(&self, text: &str) -> Result<()> {
        self.proxy.set(Plan::parse(text)?);
        Ok(())
    }

    async fn create(&self, name: &str) -> Result<reqwest::Response, reqwest::Error> {
        let url = format!("https://{}/api/v1/namespaces/a/configmaps", self.proxy.address);
        let body = format!("{{\"metadata\":{{\"name\":\"{name}\"}}}}");
        self.client.post(url).bearer_auth("secret").body(body).timeout(Duration::from_secs(2)).send().await
    }

    async fn watch(&self) -> Result<reqwest::Response, reqwest::Error> {
        self.client.get(format!("https://{}/api/v1/configmaps?watch=true", self.proxy.address)).send().await
    }
}

#[tokio::test]
async fn requests_pass_and_are_recorded() -> Result<()> {
    let pair = pair().await?;
    let answer = pair.create("one").await?;
    assert_eq!(answer.status(), 201);
    assert_eq!(answer.text().await?, "{\"token\":\"secret\"}");
    let records = pair.proxy.since(0);
    assert_eq!(records[0].request.to_string(), "create configmaps a/one");
    assert!(records[0].committed() && records[0].delivered);
    Ok(())
}

#[tokio::test]
async fn the_planned_one_is_refused_cut_or_answered_otherwise() -> Result<()> {
    let pair = pair().await?;
    pair.plan(
        r#"{"rules": [
            {"of": {"name": "refused"}, "nth": 2, "action": {"answer": {"code": 429, "reason": "TooManyRequests", "retryAfter": 7}}},
            {"of": {"name": "cut"}, "action": "cut"},
            {"of": {"name": "lost"}, "action": "commitThenCut"},
            {"of": {"name": "late"}, "action": {"commitThenAnswer": {"code": 504, "reason": "Timeout"}}},
            {"of": {"name": "silent"}, "action": {"silence": {"millis": 60000}}}
        ]}"#,
    )?;
    assert_eq!(pair.create("refused").await?.status(), 201);
    let refused = pair.create("refused").await?;
    assert_eq!((refused.status().as_u16(), refused.headers()["retry-after"].to_str()?), (429, "7"));
    assert!(refused.text().await?.contains("TooManyRequests"));
    assert!(pair.create("cut").await.is_err());
    assert!(pair.create("lost").await.is_err());
    assert_eq!(pair.create("late").await?.status(), 504);
    let began = Instant::now();
    assert!(pair.create("silent").await.is_err_and(|error| error.is_timeout()));
    assert!(began.elapsed() >= Duration::from_secs(2));
    // The client may be noticed to have gone a moment later.
    let quiet = loop {
        if let Some(quiet) = pair.proxy.quiet(0, |request| request.name == "silent") {
            break quiet;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(quiet < Duration::from_secs(1), "what was waited for has been no quiet: {quiet:?}");
    pair.proxy.forget();
    assert_eq!((pair.proxy.count(), pair.proxy.since(0).len()), (6, 0), "numbers go on");
    Ok(())
}

#[tokio::test]
async fn what_became_of_a_request_is_recorded() -> Result<()> {
    let pair = pair().await?;
    pair.plan(
        r#"{"rules": [
            {"of": {"name": "refused"}, "action": {"answer": {"code": 429, "reason": "TooManyRequests"}}},
            {"of": {"name": "cut"}, "action": "cut"},
            {"of": {"name": "lost"}, "action": "commitThenCut"},
            {"of": {"name": "late"}, "action": {"commitThenAnswer": {"code": 504, "reason": "Timeout"}}}
        ]}"#,
    )?;
    for name in ["refused", "cut", "lost", "late"] {
        let _ = pair.create(name).await;
    }
    let found = |name: &str| {
        let records = pair.proxy.since(0);
        records.into_iter().rfind(|record| record.request.name == name).map(|record| (record.code, record.delivered))
    };
    assert_eq!(found("refused"), Some((None, false)));
    assert_eq!(found("cut"), Some((None, false)));
    assert_eq!(found("lost"), Some((Some(201), false)));
    assert_eq!(found("late"), Some((Some(201), false)));
    assert_eq!(pair.proxy.met(), 4);
    Ok(())
}

#[tokio::test]
async fn nothing_passes_a_closed_gate() -> Result<()> {
    for (action, committed, delivered) in
        [("killBefore", None, false), ("killUnanswered", Some(201), false), ("killAfter", Some(201), true)]
    {
        let pair = pair().await?;
        pair.plan(&format!("{{\"rules\": [{{\"of\": {{\"name\": \"one\"}}, \"action\": \"{action}\"}}]}}"))?;
        assert_eq!(pair.create("one").await.is_ok(), delivered, "{action}");
        tokio::time::timeout(Duration::from_secs(1), pair.proxy.closed()).await?;
        assert!(pair.create("two").await.is_err(), "{action}");
        let records = pair.proxy.since(0);
        assert_eq!(records.len(), 1, "what comes through a closed gate is as if it had not been sent");
        assert_eq!((records[0].code, records[0].delivered), (committed, delivered), "{action}");
        pair.proxy.set(Plan::default());
        pair.proxy.open();
        assert_eq!(pair.create("two").await?.status(), 201, "{action}");
    }
    Ok(())
}

#[tokio::test]
async fn frames_are_passed_delayed_dropped_cut_and_changed() -> Result<()> {
    let pair = pair().await?;
    let whole = pair.watch().await?.text().await?;
    assert_eq!(whole.lines().count(), 3);
    let plan = |action: &str| pair.plan(&format!("{{\"rules\": [{{\"action\": {{\"frames\": {action}}}}}]}}"));
    plan(r#"{"set": {"pointer": "/n", "value": "x"}}"#)?;
    assert_eq!(pair.watch().await?.text().await?.matches("\"x\"").count(), 3);
    plan(r#"{"error": {"code": 410, "reason": "Expired"}}"#)?;
    let text = pair.watch().await?.text().await?;
    assert!(text.contains("\"code\":410") && text.lines().count() == 1, "{text}");
    plan(r#""cut""#)?;
    assert!(pair.watch().await?.text().await.is_err());
    plan(r#""drop""#)?;
    assert_eq!(pair.watch().await?.text().await?, "");
    plan(r#"{"delay": {"millis": 60}}"#)?;
    let began = Instant::now();
    let first = pair.watch().await?.chunk().await?;
    assert!(first.is_some() && began.elapsed() >= Duration::from_millis(60), "{first:?}");
    Ok(())
}

#[tokio::test]
async fn a_watch_that_runs_is_late_and_of_what_it_missed_the_newest_is_told() -> Result<()> {
    let pair = pair().await?;
    let url = format!("https://{}/api/v1/configmaps?watch=true&linger=1", pair.proxy.address);
    let running = pair.client.get(url).send().await?;
    pair.plan(r#"{"view": {"late": "all", "millis": 150, "newestOnly": true}}"#)?;
    let text = running.text().await?;
    assert!(!text.contains("\"n\":1") && text.contains("\"n\":2"), "{text}");
    Ok(())
}

#[tokio::test]
async fn watches_that_run_are_cut_and_the_next_are_not() -> Result<()> {
    let pair = pair().await?;
    let running = pair.watch().await?;
    pair.proxy.cut_watches(Match { verb: Some("watch".to_owned()), ..Match::default() });
    assert!(running.text().await.is_err());
    assert_eq!(pair.watch().await?.text().await?.lines().count(), 3);
    Ok(())
}

#[tokio::test]
async fn some_requests_are_passed_on_to_the_server_that_is_behind() -> Result<()> {
    let authority = Authority::new()?;
    let (first, second) = (server(&authority).await?, server(&authority).await?);
    let proxy = Proxy::start(&first, &authority.cert, &authority.serving(&["127.0.0.1"])?).await?;
    // Between proxy and server it tells which of them has answered.
    let relay = Relay::start(second.trim_start_matches("https://").parse()?).await?;
    proxy.second(format!("https://{}", relay.address), relay);
    let pair = Pair { proxy, client: proxy::client(&authority.cert)? };
    let late = async || {
        let began = Instant::now();
        pair.create("one").await?;
        anyhow::Ok(began.elapsed() >= Duration::from_millis(250))
    };
    for _ in 0..3 {
        assert!(!late().await?);
    }
    let running = pair.watch().await?;
    pair.plan(r#"{"view": {"secondBehind": 250}}"#)?;
    assert!(running.text().await.is_err(), "who watches chooses anew");
    let mut found = Vec::new();
    for _ in 0..8 {
        found.push(late().await?);
    }
    assert_eq!(found.iter().filter(|late| **late).count(), 2, "{found:?}");
    let recorded: Vec<bool> = pair.proxy.since(4).iter().map(|record| record.second).collect();
    assert_eq!(recorded, found);
    pair.plan("{}")?;
    for _ in 0..4 {
        assert!(!late().await?);
    }
    Ok(())
}

#[tokio::test]
async fn both_versions_of_http_are_spoken() -> Result<()> {
    let authority = Authority::new()?;
    let upstream = server(&authority).await?;
    let proxy = Proxy::start(&upstream, &authority.cert, &authority.serving(&["127.0.0.1"])?).await?;
    for offered in [&b"h2"[..], b"http/1.1"] {
        assert_eq!(negotiated(&proxy, &authority, offered).await?.as_deref(), Some(offered));
    }
    Ok(())
}

async fn negotiated(proxy: &Proxy, authority: &Authority, offered: &[u8]) -> Result<Option<Vec<u8>>> {
    use rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_slice(authority.cert.as_bytes())?)?;
    let mut config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![offered.to_vec()];
    let stream = tokio::net::TcpStream::connect(proxy.address).await?;
    let name = rustls::pki_types::ServerName::try_from("127.0.0.1")?;
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    Ok(stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec))
}

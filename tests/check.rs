//! `torpor check` asks addresses as `helm test` has it do: one line each, and an exit code.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a test starts programs and servers")]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::sync::Arc;

use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned, crypto};

/// Exit code, standard output and standard error.
fn check(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_torpor"));
    // A proxy that is not there: it must not be asked.
    command
        .arg("check")
        .args(arguments)
        .env("HTTP_PROXY", "http://127.0.0.1:1")
        .env("http_proxy", "http://127.0.0.1:1");
    let output = command.output().expect("torpor starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// A server that gives these answers one after the other, the last one for good.
fn server(answers: &'static [(u16, &str)], tls: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    let config = tls.then(|| Arc::new(config()));
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let mut stream = stream.expect("a connection");
            let (status, body) = answers[number.min(answers.len() - 1)];
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 {status} X\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
            );
            let mut head = [0; 4096];
            // A client that trusts nobody ends the connection before it has asked.
            let _ = match &config {
                None => stream.read(&mut head).and_then(|_| stream.write_all(answer.as_bytes())),
                Some(config) => {
                    let connection = ServerConnection::new(config.clone()).expect("a connection");
                    let mut stream = StreamOwned::new(connection, stream);
                    stream
                        .read(&mut head)
                        .and_then(|_| stream.write_all(answer.as_bytes()))
                        .and_then(|()| stream.flush())
                }
            };
        }
    });
    format!("{}://{address}/readyz", if tls { "https" } else { "http" })
}

fn config() -> ServerConfig {
    let made = rcgen::generate_simple_self_signed(["elsewhere.example.com".to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("a key that fits")
}

#[test]
fn who_is_well_is_told_by_line_and_exit_code() {
    let well = server(&[(200, "ready\n")], false);
    assert_eq!(check(&[&well]), (Some(0), format!("ok      {well} ready\n"), String::new()));

    let ill = server(&[(503, "waiting for Tenant\nwaiting for Node\n")], false);
    let (code, said, complained) = check(&[&well, &ill, "--within", "2s"]);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(lines.len(), 2, "{said}");
    assert_eq!(lines[0], format!("ok      {well} ready"));
    assert!(lines[1].starts_with(&format!("failed  {ill} 503 ")), "{said}");
    assert!(lines[1].ends_with("waiting for Tenant waiting for Node"), "{said}");
    assert_eq!(complained, "torpor: 1 of 2 addresses are not well\n");
}

#[test]
fn who_is_late_is_waited_for() {
    let late = server(&[(503, "waiting"), (503, "waiting"), (200, "standing by for leadership\n")], false);
    let (code, said, _) = check(&[&late, "--within", "20s"]);
    assert_eq!((code, said), (Some(0), format!("ok      {late} standing by for leadership\n")));
}

#[test]
fn nobody_and_elsewhere_are_not_well() {
    let (code, said, _) = check(&["http://127.0.0.1:1/", "--within", "1s"]);
    assert!(code == Some(1) && said.contains("Connection refused"), "{said}");
    let moved = server(&[(302, "")], false);
    let (code, said, _) = check(&[&moved, "--within", "1s"]);
    assert!(code == Some(1) && said.contains(" 302 "), "{said}");
}

#[test]
fn certificates_are_checked_unless_told_otherwise() {
    let tls = server(&[(200, "ok")], true);
    let (code, said, _) = check(&[&tls, "--within", "1s"]);
    assert!(code == Some(1) && said.starts_with("failed  ") && said.contains("ertificate"), "{said}");
    assert_eq!(check(&[&tls, "--any-certificate"]).0, Some(0));
}

#[test]
fn what_cannot_be_asked_is_refused() {
    for (arguments, part) in
        [(&["readyz"][..], "relative URL"), (&["http://a/", "--within", "soon"], "is not a duration"), (&[], "<URL>")]
    {
        let (code, _, complained) = check(arguments);
        assert!(code == Some(2) && complained.contains(part), "{arguments:?}: {complained}");
    }
}

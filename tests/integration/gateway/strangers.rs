//! Who has no right, and who means harm, learns nothing and holds nothing up.

use std::io::{BufReader, Write};
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Door, answer, send, token};
use crate::Ctx;
use crate::tenants::{ensure, fleet, same, tenant};

/// 401 and 403 are the same for tenants that exist and for those that do not; sizes and paths are bounded.
pub fn strangers_learn_nothing(ctx: &Ctx) -> Result<(), String> {
    let door = Door::open(&ctx.cluster, &[])?;
    let name = "gateway-strangers";
    ctx.apply(&tenant(name, json!({"tier": "free", "fleets": [fleet("makers", 1)]})).to_string())?;
    ctx.apply(r#"{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":"stranger","namespace":"default"}}"#)?;
    ctx.apply(r#"{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":"of-one","namespace":"default"}}"#)?;
    let rules = json!([{"apiGroups": ["torpor.dev"], "resources": ["tenants/wake"], "resourceNames": [name], "verbs": ["get"]}]);
    ctx.apply(&json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "of-one"}, "rules": rules}).to_string())?;
    let subject = json!([{"kind": "ServiceAccount", "name": "of-one", "namespace": "default"}]);
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "of-one"});
    ctx.apply(&json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "of-one"}, "roleRef": role, "subjects": subject}).to_string())?;
    let portal = token(&ctx.cluster, "portal", "backend")?;
    let stranger = token(&ctx.cluster, "default", "stranger")?;
    let of_one = token(&ctx.cluster, "default", "of-one")?;
    crate::harness::eventually(crate::tenants::SOON, || {
        door.call(&portal, "GET", &format!("/v1/tenants/{name}"))?.is(200).map(drop)
    })?;

    let every = [
        ("POST", "/activity"),
        ("POST", "/wake"),
        ("POST", "/sleep"),
        ("POST", "/hibernation/approve"),
        ("GET", ""),
        ("GET", "/events"),
    ];
    let gone = "gateway-nobody";
    for (method, rest) in every {
        let path = |name: &str| format!("/v1/tenants/{name}{rest}");
        for headers in [&[][..], &[("Authorization", "Bearer nonsense")], &[("Authorization", "Basic YTpi")]] {
            let (known, unknown) = (door.ask(method, &path(name), headers)?, door.ask(method, &path(gone), headers)?);
            same("answers", &known.body, &unknown.body)?;
            ensure(known.is(401)?.header("www-authenticate") == "Bearer", || path(name))?;
            unknown.is(401)?;
        }
        let (known, unknown) = (door.call(&stranger, method, &path(name))?, door.call(&stranger, method, &path(gone))?);
        same("answers", &known.body, &unknown.body)?;
        known.is(403)?;
        unknown.is(403)?;
        door.call(&portal, method, &path(gone))?.is(404)?;
        for trick in ["..", "%2e%2e", "a%2fb", "A", "%00", "a%0d%0ab", &"a".repeat(500)] {
            let answered = door.call(&portal, method, &path(trick))?;
            ensure([400, 404, 405].contains(&answered.status), || format!("{method} {trick}: {answered:?}"))?;
        }
    }
    door.call(&of_one, "GET", &format!("/v1/tenants/{name}"))?.is(200)?;
    door.call(&of_one, "GET", &format!("/v1/tenants/{gone}"))?.is(403)?;
    door.call(&of_one, "POST", &format!("/v1/tenants/{name}/wake"))?.is(403)?;
    door.call(&portal, "DELETE", &format!("/v1/tenants/{name}"))?.is(405)?;
    door.call(&portal, "GET", "/no/such/place")?.is(404)?;

    let (known, unknown) = (median(&door, &stranger, name)?, median(&door, &stranger, gone)?);
    println!("gateway: 403 for a tenant that exists after {known:?}, for one that does not after {unknown:?}");
    large_and_slow(&door, &portal, name)?;
    door.ask("GET", "/healthz", &[])?.is(200).map(drop)
}

/// The usual time of an answer, which must not tell whether the tenant exists. Printed for people: machines are noisy.
fn median(door: &Door, token: &str, name: &str) -> Result<Duration, String> {
    let mut took = Vec::new();
    for _ in 0..101 {
        let began = Instant::now();
        door.call(token, "GET", &format!("/v1/tenants/{name}"))?.is(403)?;
        took.push(began.elapsed());
    }
    took.sort_unstable();
    Ok(took[50])
}

fn large_and_slow(door: &Door, portal: &str, name: &str) -> Result<(), String> {
    let path = format!("/v1/tenants/{name}/activity");
    let authorization = format!("Bearer {portal}");
    let mut stream = door.connect()?;
    let sent = send(&mut stream, "POST", &path, &[("Authorization", &authorization)], &"x".repeat(1_000_000));
    // The answer may come, and the connection end, before all of it was sent.
    if let Ok(answered) = answer(&mut BufReader::new(stream)) {
        answered.is(413)?;
    } else {
        ensure(sent.is_err(), || "no answer to a large body".to_owned())?;
    }
    let endless = "x".repeat(100_000);
    let answered = door.ask("GET", "/healthz", &[("X-Endless", &endless)]);
    ensure(answered.as_ref().map_or(true, |answer| answer.status == 431), || format!("{answered:?}"))?;
    let many: Vec<(String, &str)> = (0..200).map(|number| (format!("X-{number}"), "1")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let answered = door.ask("GET", "/healthz", &many);
    ensure(answered.as_ref().map_or(true, |answer| answer.status == 431), || format!("{answered:?}"))?;

    // A body that never comes holds nobody up, and is not waited for.
    let mut slow = door.connect()?;
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {authorization}\r\nContent-Length: 100\r\n\r\n");
    slow.write_all(head.as_bytes()).map_err(|error| error.to_string())?;
    let mut first = [0; 12];
    std::io::Read::read_exact(&mut slow, &mut first).map_err(|error| error.to_string())?;
    same("a slow body", &String::from_utf8_lossy(&first).into_owned(), &"HTTP/1.1 204".to_owned())?;
    // A head that never ends is cut off.
    let began = Instant::now();
    let mut endless = door.connect()?;
    endless.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n").map_err(|error| error.to_string())?;
    let mut rest = Vec::new();
    let _ = std::io::Read::read_to_end(&mut endless, &mut rest);
    let took = began.elapsed();
    ensure(took < Duration::from_secs(40), || format!("a head that never ends held a connection for {took:?}"))
}

//! The waiting page as a browser and as a program meet it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use serde_json::json;
use sha2::Sha256;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Door, LINK_KEY, await_state, token};
use crate::Ctx;
use crate::tenants::{ensure, fleet, same, tenant};

/// A link as docs/portal.md tells portals to make them.
fn link(tenant: &str, made: i128, expires: i128) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(LINK_KEY.as_bytes()).expect("any key");
    mac.update(format!("torpor-link-v1\n{tenant}\n{made}\n{expires}").as_bytes());
    format!("{made}.{expires}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
}

/// One that was made just now and is valid for a quarter of an hour.
pub fn fresh_link(tenant: &str) -> String {
    link(tenant, now(), now() + 15 * 60_000)
}

fn now() -> i128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis().try_into().unwrap_or(0))
}

/// A link opens the page, wakes once, and leads on; without a valid one everybody sees the same.
pub fn a_link_opens_the_page(ctx: &Ctx) -> Result<(), String> {
    let door = Door::open(&ctx.cluster, &[])?;
    let portal = token(&ctx.cluster, "portal", "backend")?;
    let name = "gateway-page";
    let spec = json!({"tier": "basic", "dashboard": {"host": "page.bots.example.com"}, "fleets": [fleet("makers", 1)]});
    ctx.apply(&tenant(name, spec).to_string())?;
    ctx.await_ready(name)?;
    let path = format!("/wake/{name}");
    door.call(&portal, "POST", &format!("/v1/tenants/{name}/sleep"))?.is(202)?;
    await_state(&door, &portal, name, "Asleep")?;

    let minute = 60_000;
    let (made, expires) = (now(), now() + 15 * minute);
    let valid = link(name, made, expires);
    let flipped = if valid.ends_with('A') { "B" } else { "A" };
    let bad = [
        String::new(),
        "nonsense".to_owned(),
        format!("{}{flipped}", &valid[..valid.len() - 1]),
        link("another", made, expires),
        link(name, made - 30 * minute, made - minute),
        link(name, made, made + 25 * 60 * minute),
    ];
    let refused = door.browse("/wake/gateway-nobody", &[])?.is(403)?.body;
    for bad in &bad {
        let page = door.browse(&format!("{path}?link={bad}"), &[])?.is(403)?;
        same("the page of a stranger", &page.body, &refused)?;
    }
    ensure(refused.contains("http://portal.example.com/login"), || refused.clone())?;
    // The host of a tenant tells strangers no more than any other.
    let at_host = door.browse("/some/place", &[("Host", "page.bots.example.com")])?.is(403)?.body;
    same("the page at a host", &at_host, &door.browse("/", &[("Host", "nobody.example.com")])?.is(403)?.body)?;
    let asked = [("Accept", "application/json")];
    door.ask("GET", &path, &asked)?.is(403)?;
    await_state(&door, &portal, name, "Asleep")?;

    let page = door.browse(&format!("{path}?link={valid}"), &[])?.is(200)?;
    ensure(page.body.contains("waking up") && page.body.contains("Dashboard"), || page.body.clone())?;
    let policy = page.header("content-security-policy");
    ensure(policy.contains("default-src 'none'") && policy.contains("sha256-"), || policy.to_owned())?;
    let cookie = page.header("set-cookie").split(';').next().unwrap_or_default().to_owned();
    let jar = [("Cookie", cookie.as_str())];
    // A program is told to come again.
    let later = door.ask("GET", &path, &[asked[0], jar[0]])?;
    ensure(later.status == 503 || later.status == 200, || format!("{later:?}"))?;
    ensure(later.status == 200 || !later.header("retry-after").is_empty(), || format!("{later:?}"))?;
    await_state(&door, &portal, name, "Awake")?;
    let open = door.browse(&path, &jar)?.is(303)?;
    let to = open.header("location");
    ensure(to == format!("http://page.bots.example.com/?link={valid}"), || to.to_owned())?;
    let here = [jar[0], ("Host", "page.bots.example.com")];
    let page = door.browse("/some/place", &here)?.is(200)?;
    ensure(page.body.contains("opens in a moment"), || page.body.clone())?;

    // A link that was used wakes nobody again.
    door.call(&portal, "POST", &format!("/v1/tenants/{name}/sleep"))?.is(202)?;
    await_state(&door, &portal, name, "Asleep")?;
    let page = door.browse(&format!("{path}?link={valid}"), &[])?.is(200)?;
    ensure(page.body.contains("Your stack sleeps"), || page.body.clone())?;
    await_state(&door, &portal, name, "Asleep")?;

    let woken = door.call(&portal, "POST", &format!("/v1/tenants/{name}/wake"))?.is(202)?.json()?;
    let given = woken["pageUrl"].as_str().ok_or("no page")?.to_owned();
    door.browse(&given, &[])?.is(200)?;
    await_state(&door, &portal, name, "Awake")?;
    ctx.kubectl(&["patch", "tenant", name, "--type=merge", "-p", r#"{"spec":{"suspended":true}}"#])?;
    await_state(&door, &portal, name, "Suspended")?;
    let page = door.browse(&given, &[])?.is(200)?;
    ensure(page.body.contains("suspended") && page.body.contains("contact support"), || page.body.clone())
}

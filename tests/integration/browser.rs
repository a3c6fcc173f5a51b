//! The waiting page in a real Chromium, headless, driven by WebDriver. Run by `make page-test` and by nothing else, for it
//! needs a browser. Screenshots for people are written to `target/page`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fantoccini::key::Key;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use torpor_cluster::Options;

use crate::alone::Rig;
use crate::gateway::page::fresh_link;
use crate::gateway::{self, Door, await_state};
use crate::harness::eventually;
use crate::tenants::{ensure, fleet, same, tenant};

const HOST: &str = "page.bots.example.com";
const NAME: &str = "page";
const LIMIT: Duration = Duration::from_secs(90);
const DESKTOP: (u32, u32) = (1280, 800);
const PHONE: (u32, u32) = (390, 844);
/// Every pod takes so long to start that a person, and this test, can watch.
const START: Duration = Duration::from_millis(1_500);

/// A browser, and what it needs; ended when dropped.
struct Browser {
    driver: Child,
    client: Client,
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

impl Browser {
    /// Opens one of this size. The dashboard's and the portal's host lead to `site`.
    async fn open(site: SocketAddr, size: (u32, u32), scripts: bool) -> Result<Self, String> {
        let port = free_port()?;
        let driver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("chromedriver: {error}; `make page-test` installs it"))?;
        let hosts = format!("--host-resolver-rules=MAP {HOST} {site},MAP portal.example.com {site}");
        let window = format!("--window-size={},{}", size.0, size.1);
        let mut chrome = json!({"args": [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--ignore-certificate-errors", hosts, window,
        ]});
        if size == PHONE {
            chrome["mobileEmulation"] =
                json!({"deviceMetrics": {"width": size.0, "height": size.1, "pixelRatio": 2.0}});
        }
        if !scripts {
            chrome["prefs"] = json!({"profile.managed_default_content_settings.javascript": 2});
        }
        let Value::Object(capabilities) = json!({"goog:chromeOptions": chrome}) else { return Err("no object".into()) };
        let address = format!("http://127.0.0.1:{port}");
        let began = Instant::now();
        loop {
            let mut builder = ClientBuilder::new(HttpConnector::new());
            match builder.capabilities(capabilities.clone()).connect(&address).await {
                Ok(client) => return Ok(Browser { driver, client }),
                Err(error) if began.elapsed() > Duration::from_secs(30) => return Err(format!("no browser: {error}")),
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }

    async fn goto(&self, url: &str) -> Result<(), String> {
        self.client.goto(url).await.map_err(text)
    }

    async fn heading(&self) -> Result<String, String> {
        let heading = self.client.find(Locator::Css("h1")).await.map_err(text)?;
        heading.text().await.map_err(text)
    }

    async fn words(&self) -> Result<String, String> {
        let words = self.client.find(Locator::Css("#words")).await.map_err(text)?;
        words.text().await.map_err(text)
    }

    /// The states of the parts as they are shown, in order.
    async fn steps(&self) -> Result<Vec<String>, String> {
        let mut shown = Vec::new();
        for item in self.client.find_all(Locator::Css("li .state")).await.map_err(text)? {
            shown.push(item.text().await.map_err(text)?);
        }
        Ok(shown)
    }

    async fn shoot(&self, name: &str) -> Result<(), String> {
        let folder = Path::new("target/page");
        std::fs::create_dir_all(folder).map_err(text)?;
        let picture = self.client.screenshot().await.map_err(text)?;
        std::fs::write(folder.join(format!("{name}.png")), picture).map_err(text)
    }

    /// Watches until the dashboard is there; tells every set of states that was seen on the way.
    async fn arrive(&self, picture: &str) -> Result<Vec<Vec<String>>, String> {
        let began = Instant::now();
        let mut seen: Vec<Vec<String>> = Vec::new();
        loop {
            let here = self.client.current_url().await.map_err(text)?;
            if here.host_str() == Some(HOST) && self.heading().await.is_ok_and(|heading| heading == "Dashboard") {
                return Ok(seen);
            }
            // The page may be on its way to the next one while it is read.
            if let Ok(steps) = self.steps().await
                && !steps.is_empty()
                && seen.last() != Some(&steps)
            {
                seen.push(steps);
                if seen.len() == 2 {
                    self.shoot(picture).await?;
                }
            }
            ensure(began.elapsed() < LIMIT, || {
                format!("not at the dashboard but at {here} after {LIMIT:?}: {seen:?}")
            })?;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn free_port() -> Result<u16, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(text)?;
    listener.local_addr().map(|address| address.port()).map_err(text)
}

/// Stands for dashboard and portal: whatever is asked for, a page with its title.
fn site() -> Result<SocketAddr, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(text)?;
    let address = listener.local_addr().map_err(text)?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream));
        }
    });
    Ok(address)
}

fn serve(mut stream: TcpStream) {
    let mut request = [0; 4096];
    let read = stream.read(&mut request).unwrap_or(0);
    let request = String::from_utf8_lossy(&request[..read]).to_lowercase();
    let title = if request.contains("host: portal") { "Portal" } else { "Dashboard" };
    let body = format!("<!doctype html><title>{title}</title><h1>{title}</h1>");
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    let _ = stream.write_all(answer.as_bytes());
}

/// Asleep → steps advance → the dashboard: on a desktop, on a phone, without JavaScript; by keyboard alone; and what a
/// tenant that cannot wake is told.
pub fn the_page_leads_to_the_dashboard() -> Result<(), String> {
    let rig = Rig::start(Options { slow_start: Some(START), ..Options::default() })?;
    let door = Door::open(&rig.cluster, &[])?;
    let portal = gateway::token(&rig.cluster, "portal", "backend")?;
    let spec = json!({"tier": "basic", "dashboard": {"host": HOST}, "fleets": [fleet("makers", 1)]});
    rig.apply(&tenant(NAME, spec).to_string())?;
    rig.await_tenants(1, LIMIT)?;
    let site = site()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(text)?;
    let asleep = || -> Result<String, String> {
        eventually(LIMIT, || door.call(&portal, "POST", &format!("/v1/tenants/{NAME}/sleep"))?.is(202))?;
        await_state(&door, &portal, NAME, "Asleep")?;
        Ok(format!("http://{}/wake/{NAME}?link={}", door.address, fresh_link(NAME)))
    };

    for (picture, size, scripts) in
        [("desktop", DESKTOP, true), ("phone", PHONE, true), ("without-javascript", DESKTOP, false)]
    {
        let url = asleep()?;
        let seen = runtime.block_on(async {
            let browser = Browser::open(site, size, scripts).await?;
            browser.goto(&url).await?;
            let heading = browser.heading().await?;
            ensure(heading.contains("waking up"), || format!("{picture}: {heading}"))?;
            let width =
                browser.client.find(Locator::Css("main")).await.map_err(text)?.rectangle().await.map_err(text)?.2;
            ensure(width <= f64::from(size.0), || format!("{picture}: the page is {width} wide"))?;
            browser.arrive(picture).await
        })?;
        let ready = |steps: &Vec<String>| steps.iter().filter(|step| *step == "ready").count();
        let rising = seen.windows(2).all(|pair| ready(&pair[0]) <= ready(&pair[1]));
        ensure(seen.len() >= 2 && rising, || format!("{picture}: steps do not advance: {seen:?}"))?;
        println!("page: {picture}: {} steps seen on the way to the dashboard", seen.len());
        await_state(&door, &portal, NAME, "Awake")?;
    }

    let used = asleep()?;
    door.browse(used.split_once(&door.address).ok_or("no path")?.1, &[])?.is(200)?;
    await_state(&door, &portal, NAME, "Awake")?;
    eventually(LIMIT, || door.call(&portal, "POST", &format!("/v1/tenants/{NAME}/sleep"))?.is(202))?;
    await_state(&door, &portal, NAME, "Asleep")?;
    runtime.block_on(async {
        let browser = Browser::open(site, DESKTOP, true).await?;
        browser.goto(&used).await?;
        same("heading", &browser.heading().await?, &"Your stack sleeps".to_owned())?;
        browser.shoot("asleep").await?;
        let body = browser.client.find(Locator::Css("body")).await.map_err(text)?;
        body.send_keys(&Key::Tab.to_string()).await.map_err(text)?;
        let focused = browser.client.active_element().await.map_err(text)?;
        same("focus", &focused.attr("id").await.map_err(text)?, &Some("link".to_owned()))?;
        browser.shoot("keyboard").await?;
        focused.send_keys(&Key::Enter.to_string()).await.map_err(text)?;
        let began = Instant::now();
        while browser.heading().await.unwrap_or_default() != "Portal" {
            ensure(began.elapsed() < LIMIT, || "Enter does not lead to the portal".to_owned())?;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok::<_, String>(())
    })?;

    rig.kubectl(&["patch", "tenant", NAME, "--type=merge", "-p", r#"{"spec":{"suspended":true}}"#])?;
    await_state(&door, &portal, NAME, "Suspended")?;
    runtime.block_on(async {
        let browser = Browser::open(site, PHONE, true).await?;
        browser.goto(&used).await?;
        same("heading", &browser.heading().await?, &"Your account is suspended".to_owned())?;
        let words = browser.words().await?;
        ensure(words.contains("contact support"), || words.clone())?;
        browser.shoot("suspended").await
    })?;

    // No pool serves the tier any more: nothing can be started, and that is said without Kubernetes' words.
    rig.kubectl(&["patch", "tenant", NAME, "--type=merge", "-p", r#"{"spec":{"suspended":false}}"#])?;
    eventually(LIMIT, || {
        let told = door.call(&portal, "GET", &format!("/v1/tenants/{NAME}"))?.is(200)?.json()?;
        ensure(told["state"] != "Suspended", || told.to_string())
    })?;
    await_state(&door, &portal, NAME, "Awake")?;
    let url = asleep()?;
    rig.kubectl(&["delete", "workerpool", "worker-mid"])?;
    runtime.block_on(async {
        let browser = Browser::open(site, DESKTOP, true).await?;
        browser.goto(&url).await?;
        let began = Instant::now();
        while browser.heading().await.unwrap_or_default() != "Your stack cannot wake right now" {
            let told = door.call(&portal, "GET", &format!("/v1/tenants/{NAME}"))?.body;
            ensure(began.elapsed() < LIMIT, || format!("the page does not say that it cannot wake: {told}"))?;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let words = browser.words().await?;
        ensure(words.contains("contact support") && !words.contains("WorkerPool"), || words.clone())?;
        browser.shoot("cannot-wake").await
    })
}

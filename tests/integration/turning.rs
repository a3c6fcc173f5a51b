//! Whoever logs in, or asks for sleep, in the middle of the way: at each of the operator's writes a tenant turns round.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use torpor::api::Tenant;
use torpor_cluster::{AuditMark, Options};

use crate::Ctx;
use crate::harness::{condition, eventually};
use crate::many::client;
use crate::tenants::stages::asleep;
use crate::tenants::{
    apply, ensure, equal_rendered, fleet, list, mark, objects, render, same, tenant, text, uids, writes,
};

const LIMIT: Duration = Duration::from_secs(120);
const SLEEP: &str = "torpor.dev/sleep-requested-at";
const WAKE: &str = "torpor.dev/wake-requested-at";

/// Tenants that turn round, each after another number of writes.
struct Turning<'a> {
    ctx: &'a Ctx,
    runtime: tokio::runtime::Runtime,
    api: Api<Tenant>,
}

impl Turning<'_> {
    fn annotate(&self, name: &str, key: &str) -> Result<(), String> {
        let body = json!({"metadata": {"annotations": {key: Timestamp::now().to_string()}}});
        let patch = Patch::Merge(&body);
        let patched = self.runtime.block_on(self.api.patch(name, &PatchParams::default(), &patch));
        patched.map(drop).map_err(|error| format!("{name}: {error}"))
    }

    /// Counts the operator's writes about each tenant since the mark, which goes on.
    fn count(&self, since: &mut AuditMark, counts: &mut BTreeMap<String, usize>) -> Result<(), String> {
        let log = self.ctx.cluster.audit().ok_or("this test reads the audit log of a cluster of its own")?;
        let (events, end) = log.read(*since).map_err(|error| format!("{error:#}"))?;
        *since = end;
        for event in events {
            let own = event.user_agent.starts_with("torpor-operator/") && event.stage == "ResponseComplete";
            if !own || matches!(event.verb.as_str(), "get" | "list" | "watch") {
                continue;
            }
            let name = match event.namespace.strip_prefix("tenant-") {
                Some(name) => name.to_owned(),
                None if event.resource == "tenants" => event.name,
                None => continue,
            };
            *counts.entry(name).or_default() += 1;
        }
        Ok(())
    }

    /// Starts all on their way by one annotation, and turns the n-th round by the other after n writes. Returns how many
    /// writes each had seen when it was turned.
    fn turn(&self, names: &[String], go: &str, back: &str) -> Result<Vec<usize>, String> {
        let (mut seen, mut counts) = (mark(self.ctx)?, BTreeMap::new());
        // Whoever turns round first starts last, so that it has not gone on before it is looked at.
        for name in names.iter().rev() {
            self.annotate(name, go)?;
        }
        let began = Instant::now();
        let mut met = vec![None; names.len()];
        while met.contains(&None) {
            self.count(&mut seen, &mut counts)?;
            for (number, name) in names.iter().enumerate() {
                let count = counts.get(name).copied().unwrap_or_default();
                // Several changes may have become one write; such a tenant turns round when its way is over.
                let over = began.elapsed() > Duration::from_secs(40);
                if met[number].is_none() && (count >= number || over) {
                    self.annotate(name, back)?;
                    met[number] = Some(count);
                }
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(met.into_iter().flatten().collect())
    }
}

/// Everything runs, and as it is rendered.
fn awake(ctx: &Ctx, tenant: &Value) -> Result<(), String> {
    let name = text(&tenant["metadata"]["name"]);
    let live = ctx.get(&["tenant", &name])?;
    let told = ["Ready", "Hibernated"].map(|type_| text(&condition(&live, type_)["reason"]));
    ensure(told == ["Ready", "Awake"], || format!("{name} should be awake: {}", live["status"]))?;
    same(&name, &list(ctx, "pods", &format!("tenant-{name}"))?.len(), &5)?;
    equal_rendered(&render(tenant, &[])?, &objects(ctx, &format!("tenant-{name}"))?)
}

/// A login at each write of the way down ends awake, a sleep request at each write of the way up ends asleep, and no
/// volume changes.
pub fn tenants_turn_round_at_each_write() -> Result<(), String> {
    let (graceful_stop, slow_start) = (Some(Duration::from_secs(1)), Some(Duration::from_millis(300)));
    let ctx = Ctx::with(Options { graceful_stop, slow_start, ..Options::default() }, &[])?;
    ctx.apply_file("examples/pools.yaml")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let api = Api::all(runtime.block_on(client(ctx.cluster.kubeconfig()))?);
    let turning = Turning { ctx: &ctx, runtime, api };
    let of = |name: &str| tenant(name, json!({"tier": "basic", "fleets": [fleet("a", 1)]}));

    apply(&ctx, &of("whole"))?;
    ctx.await_ready("whole")?;
    let start = mark(&ctx)?;
    turning.annotate("whole", SLEEP)?;
    asleep(&ctx, &of("whole"))?;
    let down = writes(&ctx, start)?.len();
    let start = mark(&ctx)?;
    turning.annotate("whole", WAKE)?;
    eventually(LIMIT, || awake(&ctx, &of("whole")))?;
    let up = writes(&ctx, start)?.len();

    let names: Vec<String> = (0..=down.max(up)).map(|number| format!("turn-{number}")).collect();
    for name in &names {
        apply(&ctx, &of(name))?;
    }
    let mut volumes = BTreeMap::new();
    for name in &names {
        ctx.await_ready(name)?;
        volumes.insert(name, uids(&list(&ctx, "pvc", &format!("tenant-{name}"))?));
    }
    let met = turning.turn(&names, SLEEP, WAKE)?;
    println!("turning: {down} writes down; logins after {met:?}");
    for name in &names {
        eventually(LIMIT, || awake(&ctx, &of(name)))?;
    }
    // Whoever looked awake because nothing had begun is looked at once more.
    std::thread::sleep(Duration::from_secs(3));
    for name in &names {
        awake(&ctx, &of(name))?;
        same(name, &uids(&list(&ctx, "pvc", &format!("tenant-{name}"))?), &volumes[name])?;
    }

    for name in &names {
        turning.annotate(name, SLEEP)?;
    }
    for name in &names {
        asleep(&ctx, &of(name))?;
    }
    let met = turning.turn(&names, WAKE, SLEEP)?;
    println!("turning: {up} writes up; sleep requests after {met:?}");
    std::thread::sleep(Duration::from_secs(3));
    for name in &names {
        asleep(&ctx, &of(name))?;
        same(name, &uids(&list(&ctx, "pvc", &format!("tenant-{name}"))?), &volumes[name])?;
    }
    Ok(())
}

//! Fleets: what restarts bots and what does not, how many run, and what stays of those that do not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};

use crate::Ctx;
use crate::harness::{condition, eventually};
use crate::tenants::{
    SOON, Watch, apply, await_reason, await_reason_within, brief, ensure, fleet, id, is_bot, is_ready, list, mark,
    patch, same, tenant, text, uids, writes,
};

const LIMIT: Duration = Duration::from_secs(120);

fn bots(ctx: &Ctx, namespace: &str) -> Result<Vec<Value>, String> {
    Ok(list(ctx, "pods", namespace)?.into_iter().filter(is_bot).collect())
}

fn of_fleet(pods: &[Value], fleet: &str) -> BTreeMap<String, String> {
    let own = pods.iter().filter(|pod| pod["metadata"]["labels"]["torpor.dev/fleet"] == fleet);
    uids(&own.cloned().collect::<Vec<_>>())
}

/// A fleet with this configuration text.
fn configured(name: &str, replicas: i32, config: &str) -> Value {
    let mut fleet = fleet(name, replicas);
    fleet["strategy"]["config"] = json!(config);
    fleet
}

/// At every event of a watch, at most one of the fleet's bots was missing, stopping or not ready.
fn one_at_a_time(watch: &Watch, fleet: &str, replicas: usize) -> Result<(), String> {
    let mut up: BTreeMap<String, bool> = BTreeMap::new();
    let mut started = false;
    for (_, event) in watch.events() {
        let pod = &event["object"];
        if pod["metadata"]["labels"]["torpor.dev/fleet"] != fleet {
            continue;
        }
        let stopping = !pod["metadata"]["deletionTimestamp"].is_null();
        let works = event["type"] != "DELETED" && is_ready(pod) && !stopping;
        up.insert(text(&pod["metadata"]["name"]), works);
        let working = up.values().filter(|works| **works).count();
        started |= working == replicas;
        ensure(!started || working + 1 >= replicas, || format!("only {working} of {replicas} bots work: {up:?}"))?;
    }
    ensure(started, || "the watch never saw the fleet whole".to_owned())
}

/// What must change all uids of one fleet's bots, one at a time, and none of the other's.
fn rolls(
    ctx: &Ctx,
    namespace: &str,
    fleet: (&str, usize),
    other: &str,
    change: impl FnOnce() -> Result<(), String>,
) -> Result<(), String> {
    let before = bots(ctx, namespace)?;
    let watch = Watch::existing(ctx, "pods", namespace)?;
    change()?;
    eventually(LIMIT, || {
        let now = bots(ctx, namespace)?;
        let old: BTreeSet<String> = of_fleet(&before, fleet.0).into_values().collect();
        let left = of_fleet(&now, fleet.0).into_values().filter(|uid| old.contains(uid)).count();
        let ready = now.iter().filter(|pod| is_ready(pod)).count();
        ensure(left == 0 && ready == before.len(), || format!("{left} old bots are left, {ready} are ready"))
    })?;
    one_at_a_time(&watch, fleet.0, fleet.1)?;
    same("the other fleet", &of_fleet(&bots(ctx, namespace)?, other), &of_fleet(&before, other))
}

/// A configuration, an image and a referenced ConfigMap restart that fleet's bots one at a time, and nothing else.
pub fn changes_roll_one_fleet(ctx: &Ctx) -> Result<(), String> {
    let namespace = "tenant-rollers";
    let mut referring = fleet("maps", 3);
    referring["strategy"] = json!({"kind": "script", "configMapRef": {"name": "mine"}});
    let text_of = |version: u32| format!("script_file_name: a.py\nversion: {version}\n");
    let spec = |inline: Value| json!({"spec": {"fleets": [inline, referring]}});
    let mut whole = tenant("rollers", json!({"tier": "pro"}));
    whole["spec"]["fleets"] = spec(configured("lines", 3, &text_of(1)))["spec"]["fleets"].clone();
    apply(ctx, &whole)?;
    eventually(SOON, || ctx.get(&["namespace", namespace]).map(drop))?;
    let map = |version: u32| {
        let data = json!({"config.yml": text_of(version)});
        apply(
            ctx,
            &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mine", "namespace": namespace}, "data": data}),
        )
    };
    map(1)?;
    ctx.await_ready("rollers")?;
    let services = |ctx: &Ctx| -> Result<_, String> {
        Ok(uids(&list(ctx, "pods", namespace)?.into_iter().filter(|pod| !is_bot(pod)).collect::<Vec<_>>()))
    };
    let before = services(ctx)?;

    let (lines, maps) = (("lines", 3), ("maps", 3));
    let edit = |change: Value| patch(ctx, &["tenant", "rollers"], &change);
    rolls(ctx, namespace, lines, "maps", || edit(spec(configured("lines", 3, &text_of(2)))))?;
    let config = ctx.get(&["configmap", "bots-lines", "-n", namespace])?;
    same("configuration", &config["data"]["strategy.yml"], &json!(text_of(2)))?;
    let mut image = configured("lines", 3, &text_of(2));
    image["image"] = json!("hummingbot/hummingbot:version-2.17.0");
    rolls(ctx, namespace, lines, "maps", || edit(spec(image.clone())))?;
    // A pod keeps the time to stop that it was made with.
    image["terminationGracePeriodSeconds"] = json!(300);
    rolls(ctx, namespace, lines, "maps", || edit(spec(image.clone())))?;
    rolls(ctx, namespace, maps, "lines", || map(2))?;
    ctx.await_ready("rollers")?;
    same("services", &services(ctx)?, &before)?;

    // Labels and annotations restart nobody, on whatever object of the user's they stand.
    let all = uids(&list(ctx, "pods", namespace)?);
    for object in [&["tenant", "rollers"][..], &["bf", "lines", "-n", namespace], &["namespace", namespace]] {
        ctx.kubectl(&[&["label"], object, &["team=blue"]].concat())?;
        ctx.kubectl(&[&["annotate"], object, &["note=hello"]].concat())?;
    }
    edit(json!({"spec": {"displayName": "Rollers Ltd"}}))?;
    eventually(SOON, || {
        let seen = ctx.get(&["tenant", "rollers"])?;
        same("observedGeneration", &seen["status"]["observedGeneration"], &seen["metadata"]["generation"])
    })?;
    std::thread::sleep(Duration::from_secs(1));
    same("pods", &uids(&list(ctx, "pods", namespace)?), &all)
}

/// A bot that is replaced has the time to stop that it was made with, also where its fleet gives less now. One that has lost its label is
/// stopped with its fleet, whose workload does not know it any more.
pub fn bots_keep_their_time_and_stop_without_their_label(ctx: &Ctx) -> Result<(), String> {
    let (name, namespace) = ("timekeepers", "tenant-timekeepers");
    let mut slow = fleet("a", 1);
    slow["terminationGracePeriodSeconds"] = json!(900);
    apply(ctx, &tenant(name, json!({"tier": "basic", "fleets": [slow]})))?;
    ctx.await_ready(name)?;
    let pods = Watch::start(ctx, &["pods", "-n", namespace])?;
    let fleets = json!([configured("a", 1, "script_file_name: b.py\n")]);
    patch(ctx, &["tenant", name], &json!({"spec": {"fleets": fleets}}))?;
    let stopping = eventually(LIMIT, || {
        let seen = pods.events().into_iter().map(|(_, event)| event["object"]["metadata"].clone());
        let mut stopping = seen.filter(|pod| pod["name"] == "bots-a-0" && pod["deletionTimestamp"].is_string());
        stopping.next().ok_or_else(|| "the bot is not replaced".to_owned())
    })?;
    same("seconds to stop", &stopping["deletionGracePeriodSeconds"], &json!(1500))?;
    ctx.await_ready(name)?;

    let bot = ["pod", "bots-a-0", "-n", namespace];
    ctx.kubectl(&[&["label"][..], &bot, &["torpor.dev/fleet-"]].concat())?;
    eventually(LIMIT, || same("owner", &ctx.get(&bot)?["metadata"]["ownerReferences"], &Value::Null))?;
    patch(ctx, &["tenant", name], &json!({"spec": {"suspended": true}}))?;
    await_reason_within(ctx, LIMIT, &["tenant", name], "Ready", "True", "Asleep")?;
    ensure(ctx.get(&bot).is_err(), || "the tenant sleeps and its bot is there".to_owned())
}

/// A bot that has lost all its labels, which neither its workload nor a watch knows any more, keeps no other from being stopped; nobody
/// starts on its keys, and its Tenant does not go, until it has gone.
pub fn bots_without_labels_are_reckoned_with(ctx: &Ctx) -> Result<(), String> {
    let (name, namespace) = ("unlabelled", "tenant-unlabelled");
    let with_keys = |fleet_name: &str, replicas: i32, paused: bool| {
        let mut fleet = fleet(fleet_name, replicas);
        fleet["credentialsSecret"] = json!("keys");
        fleet["paused"] = json!(paused);
        fleet
    };
    let edit = |fleets: Value| patch(ctx, &["tenant", name], &json!({"spec": {"fleets": fleets}}));
    apply(ctx, &tenant(name, json!({"tier": "pro", "fleets": [with_keys("a", 3, false)]})))?;
    eventually(SOON, || ctx.get(&["namespace", namespace]).map(drop))?;
    ctx.kubectl(&["create", "secret", "generic", "keys", "-n", namespace, "--from-literal=HBOT_PASSWORD=x"])?;
    ctx.await_ready(name)?;
    let bot = ["pod", "bots-a-0", "-n", namespace];
    let lose_labels = || {
        eventually(LIMIT, || ensure(is_ready(&ctx.get(&bot)?), || "the bot is not ready".to_owned()))?;
        patch(ctx, &bot, &json!({"metadata": {"labels": null}}))?;
        eventually(LIMIT, || same("owner", &ctx.get(&bot)?["metadata"]["ownerReferences"], &Value::Null))
    };
    lose_labels()?;
    edit(json!([with_keys("a", 2, false)]))?;
    let surplus = ["pod", "bots-a-2", "-n", namespace];
    eventually(LIMIT, || ensure(ctx.get(&surplus).is_err(), || "the surplus bot is still there".to_owned()))?;

    edit(json!([with_keys("a", 2, true), with_keys("b", 1, false)]))?;
    eventually(LIMIT, || {
        let told = condition(&ctx.get(&["bf", "b", "-n", namespace])?, "Ready").clone();
        ensure(text(&told["message"]).contains("pod bots-a-0"), || format!("no word of the bot: {told}"))
    })?;
    same("bots of b", &of_fleet(&bots(ctx, namespace)?, "b").len(), &0)?;
    ctx.kubectl(&[&["delete"][..], &bot].concat())?;
    ctx.await_ready(name)?;

    edit(json!([with_keys("a", 1, false)]))?;
    ctx.await_ready(name)?;
    lose_labels()?;
    ctx.kubectl(&["delete", "tenant", name, "--wait=false"])?;
    let message = eventually(LIMIT, || {
        let told = condition(&ctx.get(&["tenant", name])?, "Ready").clone();
        let message = text(&told["message"]);
        ensure(message.contains("fleet a: pod bots-a-0"), || format!("no word of the bot: {told}"))?;
        Ok(message)
    })?;
    ensure(ctx.get(&bot)?["metadata"]["deletionTimestamp"].is_null(), || message)?;
    ctx.kubectl(&[&["delete"][..], &bot].concat())?;
    ctx.kubectl(&["wait", "--for=delete", "tenant", name, "--timeout=120s"]).map(drop)
}

/// A fleet that waits for what it refers to has no more bots than are asked for all the same.
pub fn fleets_that_wait_get_smaller(ctx: &Ctx) -> Result<(), String> {
    let (namespace, map) = ("tenant-waiters", ["configmap", "mine", "-n", "tenant-waiters"]);
    apply(ctx, &tenant("waiters", json!({"tier": "basic"})))?;
    ctx.await_ready("waiters")?;
    ctx.kubectl(&[&["create"][..], &map, &["--from-literal=config.yml=script_file_name: a.py"]].concat())?;
    let spec = json!({"replicas": 3, "strategy": {"kind": "script", "configMapRef": {"name": "mine"}}});
    let object = json!({"apiVersion": "torpor.dev/v1alpha1", "kind": "BotFleet", "metadata": {"name": "own", "namespace": namespace}, "spec": spec});
    apply(ctx, &object)?;
    let own = ["botfleet", "own", "-n", namespace];
    await_reason_within(ctx, LIMIT, &own, "Ready", "True", "Ready")?;
    ctx.kubectl(&[&["delete"][..], &map].concat())?;
    await_reason_within(ctx, LIMIT, &own, "Ready", "False", "Waiting")?;
    same("bots that nobody has stopped", &bots(ctx, namespace)?.len(), &3)?;
    ctx.kubectl(&[&["scale", "--replicas=1"][..], &own].concat())?;
    eventually(LIMIT, || same("bots", &bots(ctx, namespace)?.len(), &1))?;
    eventually(LIMIT, || {
        let told = ctx.get(&own)?["status"].clone();
        same("told", &[&told["desiredReplicas"], &told["readyReplicas"]], &[&json!(1), &json!(1)])
    })?;
    await_reason(ctx, &own, "Ready", "False", "Waiting").map(drop)
}

/// A fleet that is renamed, or whose keys another gets, starts no bot with them while one of its predecessor's that has them has not stopped.
pub fn renamed_fleets_trade_one_after_the_other(ctx: &Ctx) -> Result<(), String> {
    let (name, namespace) = ("renamer", "tenant-renamer");
    let with_keys = |fleet_name: &str| {
        let mut fleet = fleet(fleet_name, 1);
        fleet["credentialsSecret"] = json!("keys");
        fleet
    };
    apply(ctx, &tenant(name, json!({"tier": "basic", "fleets": [with_keys("old")]})))?;
    eventually(SOON, || ctx.get(&["namespace", namespace]).map(drop))?;
    ctx.kubectl(&["create", "secret", "generic", "keys", "-n", namespace, "--from-literal=HBOT_PASSWORD=x"])?;
    ctx.await_ready(name)?;
    let mut paused = with_keys("new");
    paused["paused"] = json!(true);
    let mut given_up = fleet("third", 1);
    given_up["paused"] = json!(true);
    let steps = [
        ("old", "new", vec![with_keys("new")]),
        // One beside that, which is paused, and stands behind it.
        ("new", "third", vec![with_keys("third"), paused]),
        // Paused, and without its keys at once; then without them, and not paused.
        ("third", "fourth", vec![given_up, with_keys("fourth")]),
        ("fourth", "fifth", vec![fleet("fourth", 1), with_keys("fifth")]),
    ];
    for (old, new, fleets) in steps {
        let watch = Watch::existing(ctx, "pods", namespace)?;
        patch(ctx, &["tenant", name], &json!({"spec": {"fleets": fleets}}))?;
        eventually(LIMIT, || same("new bots", &of_fleet(&bots(ctx, namespace)?, new).len(), &1))?;
        await_reason_within(ctx, LIMIT, &["tenant", name], "Ready", "True", "Ready")?;
        let events = watch.events();
        let at = |type_: &str, fleet: &str| {
            events.iter().position(|(_, event)| {
                event["type"] == type_ && event["object"]["metadata"]["labels"]["torpor.dev/fleet"] == fleet
            })
        };
        let (gone, came) = (at("DELETED", old), at("ADDED", new));
        ensure(gone.is_some() && gone < came, || {
            format!("the bot of {old} went at event {gone:?}, that of {new} came at {came:?}")
        })?;
    }
    // One of which nothing is left but a bot that does not stop.
    let (bot, fifth) = (["pod", "bots-fifth-0", "-n", namespace], ["bf", "fifth", "-n", namespace]);
    patch(ctx, &bot, &json!({"metadata": {"finalizers": ["example.com/keep"]}}))?;
    patch(ctx, &["tenant", name], &json!({"spec": {"fleets": [with_keys("sixth")]}}))?;
    eventually(LIMIT, || {
        let deleted = &ctx.get(&fifth)?["metadata"]["deletionTimestamp"];
        ensure(deleted.is_string(), || "fleet fifth is not deleted".to_owned())
    })?;
    patch(ctx, &fifth, &json!({"metadata": {"finalizers": null}}))?;
    let sixth = ["bf", "sixth", "-n", namespace];
    let message = await_reason_within(ctx, LIMIT, &sixth, "Ready", "False", "Waiting")?;
    ensure(message.contains("fleet fifth has to leave credentialsSecret keys first: 1 of its bots"), || message)?;
    same("bots of sixth", &of_fleet(&bots(ctx, namespace)?, "sixth").len(), &0)?;
    patch(ctx, &bot, &json!({"metadata": {"finalizers": null}}))?;
    ctx.await_ready(name).map(drop)
}

/// A new tier moves bots to its pool and PriorityClass, one at a time, with their volumes.
pub fn new_tiers_move_bots(ctx: &Ctx) -> Result<(), String> {
    let namespace = "tenant-movers";
    apply(ctx, &tenant("movers", json!({"tier": "basic", "fleets": [fleet("a", 3), fleet("b", 0)]})))?;
    ctx.await_ready("movers")?;
    let volumes = uids(&list(ctx, "pvc", namespace)?);
    rolls(ctx, namespace, ("a", 3), "b", || patch(ctx, &["tenant", "movers"], &json!({"spec": {"tier": "pro"}})))?;
    await_reason_within(ctx, LIMIT, &["tenant", "movers"], "Ready", "True", "Ready")?;
    let nodes = ctx.get(&["nodes", "-l", "torpor.dev/pool=worker-high"])?;
    let nodes: BTreeSet<String> =
        nodes["items"].as_array().into_iter().flatten().map(|node| text(&node["metadata"]["name"])).collect();
    let pods = list(ctx, "pods", namespace)?;
    same("pods", &pods.len(), &7)?;
    for pod in pods {
        same(&id(&pod), &pod["spec"]["priorityClassName"], &json!("torpor-high"))?;
        ensure(nodes.contains(&text(&pod["spec"]["nodeName"])), || format!("{} runs elsewhere: {nodes:?}", id(&pod)))?;
    }
    same("volumes", &uids(&list(ctx, "pvc", namespace)?), &volumes)
}

/// Fewer bots keep their volumes, which the status lists; with deletionPolicy Delete they go.
pub fn shrinking_keeps_volumes(ctx: &Ctx) -> Result<(), String> {
    let namespace = "tenant-shrinkers";
    let spec =
        |policy: &str, fleets: Value| json!({"spec": {"tier": "pro", "deletionPolicy": policy, "fleets": fleets}});
    let whole = spec("Retain", json!([fleet("a", 3), fleet("b", 1)]));
    apply(ctx, &tenant("shrinkers", whole["spec"].clone()))?;
    ctx.await_ready("shrinkers")?;
    let edit = |change: Value| patch(ctx, &["tenant", "shrinkers"], &change);
    let retained = |wanted: &[&str]| {
        eventually(Duration::from_secs(45), || {
            let found = ctx.get(&["tenant", "shrinkers"])?;
            let listed = found["status"].get("retainedVolumes").cloned().unwrap_or(json!([]));
            same("retainedVolumes", &listed, &json!(wanted))
        })
    };
    let volumes = || -> Result<_, String> { Ok(uids(&list(ctx, "pvc", namespace)?)) };
    let before = volumes()?;
    edit(spec("Retain", json!([fleet("a", 1), fleet("b", 1)])))?;
    retained(&["data-bots-a-1", "data-bots-a-2"])?;
    eventually(LIMIT, || same("bots", &bots(ctx, namespace)?.len(), &2))?;
    same("volumes", &volumes()?, &before)?;
    edit(spec("Retain", json!([fleet("a", 2)])))?;
    retained(&["data-bots-a-2", "data-bots-b-0"])?;
    ctx.await_ready("shrinkers")?;
    same("volumes", &volumes()?, &before)?;
    eventually(LIMIT, || ensure(ctx.get(&["bf", "b", "-n", namespace]).is_err(), || "fleet b is still there".into()))?;
    // A fleet of that name finds its volume again.
    edit(spec("Retain", json!([fleet("a", 2), fleet("b", 1)])))?;
    retained(&["data-bots-a-2"])?;
    ctx.await_ready("shrinkers")?;
    same("volumes", &volumes()?, &before)?;
    edit(spec("Delete", json!([fleet("a", 1)])))?;
    eventually(LIMIT, || {
        let names: Vec<String> = list(ctx, "pvc", namespace)?.iter().map(id).collect();
        let wanted = ["data-bots-a-0", "data-postgres-0"].map(|name| format!("PersistentVolumeClaim/{name}"));
        same("volumes", &names, &wanted.to_vec())
    })?;
    retained(&[])
}

/// More bots than the tier has: the youngest fleet's surplus is not started, and its condition says so.
pub fn surplus_bots_are_not_started(ctx: &Ctx) -> Result<(), String> {
    let namespace = "tenant-crowded";
    apply(ctx, &tenant("crowded", json!({"tier": "basic", "fleets": [fleet("old", 2)]})))?;
    ctx.await_ready("crowded")?;
    // Creation times have whole seconds.
    std::thread::sleep(Duration::from_millis(1100));
    let metadata = json!({"name": "young", "namespace": namespace});
    let spec = json!({"replicas": 3, "strategy": fleet("x", 1)["strategy"]});
    apply(ctx, &json!({"apiVersion": "torpor.dev/v1alpha1", "kind": "BotFleet", "metadata": metadata, "spec": spec}))?;
    let young = ["bf", "young", "-n", namespace];
    let counts = |old: i64, young: i64| {
        eventually(LIMIT, || {
            let found = list(ctx, "botfleets", namespace)?;
            let ready = |name: &str| {
                let fleet = found.iter().find(|fleet| fleet["metadata"]["name"] == name);
                fleet
                    .map(|fleet| (fleet["status"]["desiredReplicas"].clone(), fleet["status"]["readyReplicas"].clone()))
            };
            same(
                "old, young",
                &(ready("old"), ready("young")),
                &(Some((json!(old), json!(old))), Some((json!(young), json!(young)))),
            )?;
            same("bots", &i64::try_from(bots(ctx, namespace)?.len()).ok(), &Some(old + young))
        })
    };
    counts(2, 1)?;
    let message = await_reason_within(ctx, LIMIT, &young, "Ready", "True", "OverTier")?;
    ensure(message.contains("2 bots are not started: the tier has no more for this fleet"), || message)?;
    ctx.await_ready("crowded")?;

    // kubectl scale, on the older fleet, takes from the younger one and gives back.
    ctx.kubectl(&["scale", "bf/young", "-n", namespace, "--replicas=1"])?;
    counts(2, 1)?;
    await_reason_within(ctx, LIMIT, &young, "Ready", "True", "Ready")?;
    patch(ctx, &["tenant", "crowded"], &json!({"spec": {"fleets": [fleet("old", 3)]}}))?;
    counts(3, 0)?;
    await_reason_within(ctx, LIMIT, &young, "Ready", "True", "OverTier")?;
    let mut paused = fleet("old", 3);
    paused["paused"] = json!(true);
    patch(ctx, &["tenant", "crowded"], &json!({"spec": {"fleets": [paused]}}))?;
    await_reason_within(ctx, LIMIT, &["bf", "old", "-n", namespace], "Ready", "True", "Paused")?;
    counts(0, 1)?;
    ctx.kubectl(&["scale", "bf/young", "-n", namespace, "--replicas=3"])?;
    counts(0, 3)?;
    let told = ctx.get(&["tenant", "crowded"])?;
    same("retained", &told["status"].get("retainedVolumes"), &None)?;
    // The larger tier has room for all of them.
    patch(ctx, &["tenant", "crowded"], &json!({"spec": {"tier": "pro", "fleets": [fleet("old", 3)]}}))?;
    counts(3, 3)?;
    // Beside the older fleet there is the memory of seven bots, and three of these have that of nine.
    ctx.kubectl(&["scale", "bf/young", "-n", namespace, "--replicas=0"])?;
    counts(3, 0)?;
    patch(ctx, &young, &json!({"spec": {"replicas": 3, "resources": {"memory": "1536Mi"}}}))?;
    counts(3, 2)?;
    let message = await_reason_within(ctx, LIMIT, &young, "Ready", "True", "OverTier")?;
    ensure(message.contains("1 bots are not started"), || message)?;
    ctx.await_ready("crowded")?;
    // What runs is not stopped for its size: nine bots' worth beside five are more than there is, and the fifth does not start.
    patch(ctx, &["tenant", "crowded"], &json!({"spec": {"fleets": [fleet("old", 5)]}}))?;
    eventually(LIMIT, || same("bots", &bots(ctx, namespace)?.len(), &6))?;
    eventually(LIMIT, || {
        let ready = condition(&ctx.get(&["bf", "old", "-n", namespace])?, "Ready").clone();
        let short = ready["reason"] == "Progressing" && text(&ready["message"]).starts_with("bots-old 4/5 ready");
        ensure(short, || format!("no word of the fifth bot: {ready}"))
    })?;
    same("young", &ctx.get(&young)?["status"]["desiredReplicas"], &json!(2))?;
    // Nor when its StatefulSet is made anew around them, one of them being away.
    let kept = ["statefulset", "bots-young", "-n", namespace];
    let uid = ctx.get(&kept)?["metadata"]["uid"].clone();
    ctx.kubectl(&["delete", "pod", "bots-young-0", "-n", namespace, "--wait=false"])?;
    ctx.kubectl(&["delete", "statefulset", "bots-young", "-n", namespace, "--cascade=orphan"])?;
    eventually(LIMIT, || {
        let set = ctx.get(&kept)?;
        same("bots asked for", &set["spec"]["replicas"], &json!(2))?;
        ensure(set["metadata"]["uid"] != uid, || "the StatefulSet is not made anew".to_owned())
    })?;
    patch(ctx, &["tenant", "crowded"], &json!({"spec": {"fleets": [fleet("old", 3)]}}))?;
    counts(3, 2)?;
    ctx.await_ready("crowded").map(drop)
}

/// A fleet whose bots do not work is mended by its next configuration: nothing waits for them to become ready.
pub fn broken_fleets_are_mended(ctx: &Ctx) -> Result<(), String> {
    let namespace = "tenant-mended";
    apply(ctx, &tenant("mended", json!({"tier": "basic", "fleets": [fleet("a", 2)]})))?;
    ctx.await_ready("mended")?;
    let before = bots(ctx, namespace)?;
    for pod in &before {
        let broken = json!({"status": {"conditions": [{"type": "Ready", "status": "False", "reason": "Test"}]}});
        let change = ["--subresource=status", "--type=strategic", "-p", &broken.to_string()].map(str::to_owned);
        let mut arguments = vec!["patch", "pod", pod["metadata"]["name"].as_str().unwrap_or_default(), "-n", namespace];
        arguments.extend(change.iter().map(String::as_str));
        ctx.kubectl(&arguments)?;
    }
    let message = await_reason(ctx, &["bf", "a", "-n", namespace], "Ready", "False", "Progressing")?;
    ensure(message.starts_with("bots-a 0/2 ready") || message.starts_with("bots-a 1/2 ready"), || message)?;
    patch(ctx, &["tenant", "mended"], &json!({"spec": {"fleets": [configured("a", 2, "script_file_name: b.py\n")]}}))?;
    await_reason_within(ctx, LIMIT, &["tenant", "mended"], "Ready", "True", "Ready")?;
    let (before, now) = (of_fleet(&before, "a"), of_fleet(&bots(ctx, namespace)?, "a"));
    ensure(now.iter().all(|(name, uid)| before.get(name) != Some(uid)), || format!("{now:?} were {before:?}"))
}

/// Volumes grow where the StorageClass allows it, without a restart; where it does not, the condition says so.
pub fn volumes_grow_without_restart(ctx: &Ctx) -> Result<(), String> {
    let namespace = "tenant-growers";
    let fleets = |storage: &str| {
        let mut fleet = fleet("a", 2);
        fleet["storage"] = json!(storage);
        json!({"spec": {"fleets": [fleet]}})
    };
    let mut whole = tenant("growers", json!({"tier": "basic"}));
    whole["spec"]["fleets"] = fleets("500Mi")["spec"]["fleets"].clone();
    apply(ctx, &whole)?;
    ctx.await_ready("growers")?;
    let sizes = |prefix: &str| -> Result<Vec<String>, String> {
        let claims = list(ctx, "pvc", namespace)?;
        let own = claims.iter().filter(|claim| text(&claim["metadata"]["name"]).starts_with(prefix));
        Ok(own.map(|claim| text(&claim["spec"]["resources"]["requests"]["storage"])).collect())
    };
    let before = uids(&list(ctx, "pods,pvc", namespace)?);
    patch(ctx, &["tenant", "growers"], &fleets("1Gi"))?;
    let message = await_reason(ctx, &["bf", "a", "-n", namespace], "Stalled", "True", "Refused")?;
    ensure(message.contains("PersistentVolumeClaim tenant-growers/data-bots-a-0"), || message)?;
    let message = await_reason(ctx, &["tenant", "growers"], "Stalled", "True", "Refused")?;
    ensure(message.contains("fleet a: "), || message)?;
    same("pods and volumes", &uids(&list(ctx, "pods,pvc", namespace)?), &before)?;
    same("sizes", &sizes("data-bots-a")?, &vec!["500Mi".to_owned(); 2])?;
    // What cannot grow stops and starts all the same.
    for (paused, running) in [(true, 0), (false, 2)] {
        let mut change = fleets("1Gi");
        change["spec"]["fleets"][0]["paused"] = json!(paused);
        patch(ctx, &["tenant", "growers"], &change)?;
        eventually(LIMIT, || {
            same("bots", &bots(ctx, namespace)?.iter().filter(|bot| is_ready(bot)).count(), &running)
        })?;
    }
    // So does any other change reach its pods.
    let mut change = fleets("1Gi");
    change["spec"]["fleets"][0]["image"] = json!("hummingbot/hummingbot:version-2.17.0");
    let old = uids(&bots(ctx, namespace)?);
    patch(ctx, &["tenant", "growers"], &change)?;
    eventually(LIMIT, || {
        let now = bots(ctx, namespace)?;
        let renewed = uids(&now).iter().all(|(name, uid)| old.get(name) != Some(uid));
        ensure(renewed && now.iter().filter(|bot| is_ready(bot)).count() == 2, || format!("{old:?} became {now:?}"))
    })?;
    await_reason(ctx, &["bf", "a", "-n", namespace], "Stalled", "True", "Refused")?;
    let before = uids(&list(ctx, "pods,pvc", namespace)?);

    let classes = ctx.get(&["storageclasses"])?;
    let class = text(&classes["items"][0]["metadata"]["name"]);
    let mark = mark(ctx)?;
    patch(ctx, &["storageclass", &class], &json!({"allowVolumeExpansion": true}))?;
    // Nothing tells the operator of that class, so it looks again within a minute; any touch makes it look at once.
    ctx.kubectl(&["annotate", "bf", "a", "-n", namespace, "look=again"])?;
    await_reason_within(ctx, LIMIT, &["tenant", "growers"], "Ready", "True", "Ready")?;
    same("sizes", &sizes("data-bots-a")?, &vec!["1Gi".to_owned(); 2])?;
    patch(ctx, &["tenant", "growers"], &json!({"spec": {"database": {"storage": "8Gi"}}}))?;
    eventually(LIMIT, || same("database", &sizes("data-postgres")?, &vec!["8Gi".to_owned()]))?;
    await_reason_within(ctx, LIMIT, &["tenant", "growers"], "Ready", "True", "Ready")?;
    same("pods and volumes", &uids(&list(ctx, "pods,pvc", namespace)?), &before)?;
    let sets = list(ctx, "statefulsets", namespace)?;
    let grown = |name: &str| {
        let set = sets.iter().find(|set| set["metadata"]["name"] == name);
        set.map(|set| text(&set["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"]))
    };
    same("templates", &(grown("bots-a"), grown("postgres")), &(Some("1Gi".to_owned()), Some("8Gi".to_owned())))?;
    let gone: Vec<String> = writes(ctx, mark)?
        .iter()
        .filter(|event| event.namespace == namespace && event.verb == "delete" && event.resource != "statefulsets")
        .map(brief)
        .collect();
    ensure(gone.is_empty(), || format!("{gone:?}"))?;
    let told = ctx.get(&["bf", "a", "-n", namespace])?;
    same("Stalled", &condition(&told, "Stalled")["status"], &json!("False"))?;

    // Volumes that were retained have the size that the new Tenant asks for before anything runs on them, or more.
    ctx.kubectl(&["delete", "tenant", "growers", "--timeout=60s"])?;
    whole["spec"]["fleets"] = fleets("2Gi")["spec"]["fleets"].clone();
    apply(ctx, &whole)?;
    ctx.await_ready("growers")?;
    same("sizes", &sizes("data-bots-a")?, &vec!["2Gi".to_owned(); 2])?;
    same("database", &sizes("data-postgres")?, &vec!["8Gi".to_owned()])?;
    // Where they cannot grow, the bots run on what there is, and that is said.
    patch(ctx, &["storageclass", &class], &json!({"allowVolumeExpansion": false}))?;
    ctx.kubectl(&["delete", "tenant", "growers", "--timeout=60s"])?;
    whole["spec"]["fleets"] = fleets("4Gi")["spec"]["fleets"].clone();
    apply(ctx, &whole)?;
    await_reason_within(ctx, LIMIT, &["bf", "a", "-n", namespace], "Stalled", "True", "Refused")?;
    eventually(LIMIT, || same("bots", &bots(ctx, namespace)?.iter().filter(|bot| is_ready(bot)).count(), &2))?;
    patch(ctx, &["storageclass", &class], &json!({"allowVolumeExpansion": true}))?;
    ctx.kubectl(&["annotate", "--overwrite", "bf", "a", "-n", namespace, "look=again"])?;
    await_reason_within(ctx, LIMIT, &["tenant", "growers"], "Ready", "True", "Ready")?;
    same("sizes", &sizes("data-bots-a")?, &vec!["4Gi".to_owned(); 2])
}

//! The part of the demo that shows idle tenants fall asleep: what was told to whom, and every stage, with times.

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use serde_json::Value;

use super::{
    TENANTS,
    parts::{Parts, condition},
    say,
    show::{Demo, now},
};

/// Longer than the last deadline of the demo's catalogue, on a machine that is busy.
const LIMIT: Duration = Duration::from_secs(180);

/// One tenant on its way.
struct Sleeper {
    name: &'static str,
    tier: String,
    line: String,
    asleep: bool,
    asked: bool,
}

impl Demo {
    /// Everybody logs in, and nobody does anything more.
    pub(super) fn fall_asleep(&mut self) -> Result<()> {
        say("Idle tenants fall asleep. This demo's catalogue (examples/catalog-demo.yaml) counts seconds where the");
        say("built-in one counts days. Everybody logs in once, and then nobody does:\n");
        say("$ kubectl annotate tenants --all torpor.dev/last-activity=$(date -u +%Y-%m-%dT%H:%M:%SZ)");
        let value = format!("torpor.dev/last-activity={}", now()?);
        let names: Vec<&str> = TENANTS.iter().map(|(name, _)| *name).collect();
        self.kubectl()?.run(&[&["annotate", "--overwrite", "tenant"], names.as_slice(), &[value.as_str()]].concat())?;
        let started = Instant::now();
        let mut told: BTreeSet<String> = self.notices()?.into_iter().map(|(uid, _, _)| uid).collect();
        let mut sleepers = self.sleepers()?;
        loop {
            self.check()?;
            let idle = started.elapsed().as_secs();
            for (uid, name, note) in self.notices()? {
                if told.insert(uid) {
                    self.progress(format!("idle {idle:2} s  {name:<13} is told: {note}"));
                }
            }
            let found = self.kubectl()?.get(&["tenants"])?;
            for sleeper in &mut sleepers {
                self.look(sleeper, &found, idle)?;
            }
            let done = sleepers.iter().all(|s| s.asleep || s.asked || s.tier == "premium");
            if done {
                let kept = "premium-desk stays awake: tier premium never sleeps by itself";
                self.progress(format!("idle {idle:2} s  {kept}"));
                return self.print(&["get", "tenants", "-o", "wide"]).map(|()| say(""));
            }
            if started.elapsed() > LIMIT {
                let late: Vec<&str> = sleepers.iter().filter(|s| !s.asleep).map(|s| s.name).collect();
                bail!("not asleep after {} s: {}", LIMIT.as_secs(), late.join(", "));
            }
            thread::sleep(Duration::from_millis(300));
        }
    }

    fn sleepers(&self) -> Result<Vec<Sleeper>> {
        let found = self.kubectl()?.get(&["tenants"])?;
        let tier = |name| tenant(&found, name)["spec"]["tier"].as_str().unwrap_or_default().to_owned();
        let one = |name| Sleeper { name, tier: tier(name), line: String::new(), asleep: false, asked: false };
        Ok(TENANTS.iter().map(|(name, _)| one(name)).collect())
    }

    fn look(&self, sleeper: &mut Sleeper, found: &Value, idle: u64) -> Result<()> {
        let tenant = tenant(found, sleeper.name);
        sleeper.asked = condition(tenant, "SleepHeld")["reason"] == "AwaitingApproval";
        let stage = tenant["status"]["hibernation"]["stage"].as_str().unwrap_or_default();
        let awake = condition(tenant, "Hibernated")["reason"] == "Awake";
        if sleeper.asleep || awake || sleeper.tier == "premium" {
            return Ok(());
        }
        let parts = Parts::read(self.kubectl()?, sleeper.name)?;
        let line = parts.line();
        if line != sleeper.line {
            self.progress(format!("idle {idle:2} s  {:<13} {line}", sleeper.name));
            sleeper.line = line;
        }
        sleeper.asleep = stage == "DatabaseOnly" && parts.ready && parts.hibernated;
        Ok(())
    }

    /// Warnings and questions: identity, tenant, words.
    fn notices(&self) -> Result<Vec<(String, String, String)>> {
        let found = self.kubectl()?.get(&["events", "-n", "default"])?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let events = found["items"].as_array().cloned().unwrap_or_default();
        let notices = events.iter().filter(|e| e["reason"] == "SleepWarning" || e["reason"] == "SleepQuestion");
        // Since when somebody is idle stands at the beginning of the line already.
        let note = |event: &Value| {
            let all = text(&event["message"]);
            all.split_once(": ").map_or(all.clone(), |(_, rest)| rest.to_owned())
        };
        Ok(notices.map(|e| (text(&e["metadata"]["uid"]), text(&e["involvedObject"]["name"]), note(e))).collect())
    }
}

fn tenant<'a>(found: &'a Value, name: &str) -> &'a Value {
    let items = found["items"].as_array();
    items.and_then(|items| items.iter().find(|item| item["metadata"]["name"] == name)).unwrap_or(&Value::Null)
}

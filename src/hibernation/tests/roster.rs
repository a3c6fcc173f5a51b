use std::collections::BTreeMap;

use serde_json::json;

use super::*;
use crate::api::Tenant;
use crate::clock::{Clock, FixedClock};
use crate::domain::catalog::Catalog;
use crate::hibernation::breaker::{Limits, Saved, Trip};

#[path = "warnings.rs"]
mod warnings;
#[path = "writes.rs"]
mod writes;

const DAY: u64 = 86_400;

fn start() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().expect("a time")
}

/// A roster with the cluster around it: Tenants as they are stored, users who are told things, and a clock.
struct World {
    roster: Roster,
    clock: FixedClock,
    catalog: Catalog,
    tenants: BTreeMap<String, serde_json::Value>,
    version: u64,
    told: Vec<(String, String)>,
    /// The receiver takes nothing.
    deaf: bool,
    saved: Saved,
    writes: usize,
}

impl World {
    fn new(limits: Limits) -> Self {
        Self::resumed(limits, &Catalog::default(), start(), BTreeMap::new(), Saved::default())
    }

    fn resumed(
        limits: Limits,
        catalog: &Catalog,
        now: Timestamp,
        tenants: BTreeMap<String, serde_json::Value>,
        saved: Saved,
    ) -> Self {
        let policies = format!("{catalog:?}");
        let breaker = Breaker::new(limits, saved.clone(), &policies);
        World {
            roster: Roster::new(breaker, SignedDuration::from_hours(24)),
            clock: FixedClock::new(now),
            catalog: catalog.clone(),
            tenants,
            version: 1_000_000,
            told: Vec::new(),
            deaf: false,
            saved,
            writes: 0,
        }
    }

    /// A new process over the same cluster, with this catalogue.
    fn restarted(self, catalog: &Catalog) -> Self {
        let saved = self.roster.breaker().saved().clone();
        let mut world = Self::resumed(Limits::default(), catalog, self.clock.now(), self.tenants, saved);
        world.told = self.told;
        world.list();
        world
    }

    fn tenant(&mut self, name: &str, tier: &str) {
        let tenant = json!({
            "apiVersion": "torpor.dev/v1alpha1", "kind": "Tenant",
            "metadata": {"name": name, "uid": name, "creationTimestamp": self.clock.now().to_string(), "annotations": {}},
            "spec": {"tier": tier},
        });
        self.tenants.insert(name.to_owned(), tenant);
        self.show(name);
    }

    fn annotate(&mut self, name: &str, key: &str, value: &str) {
        let tenant = self.tenants.get_mut(name).expect(name);
        tenant["metadata"]["annotations"][key] = value.into();
        self.show(name);
    }

    fn log_in(&mut self, name: &str) {
        let now = self.clock.now().to_string();
        self.annotate(name, "torpor.dev/last-activity", &now);
    }

    /// The watch shows a Tenant.
    fn show(&mut self, name: &str) {
        self.version += 1;
        let tenant = self.tenants.get_mut(name).expect(name);
        tenant["metadata"]["resourceVersion"] = self.version.to_string().into();
        let tenant: Tenant = serde_json::from_value(tenant.clone()).expect("a Tenant");
        let facts = Facts::read(&tenant, &self.catalog).expect("not deleted");
        self.roster.seen(facts, self.clock.now());
    }

    fn list(&mut self) {
        let names: Vec<String> = self.tenants.keys().cloned().collect();
        for name in &names {
            self.show(name);
        }
        self.roster.listed(&|name| names.iter().any(|known| known == name), self.clock.now());
        self.settle();
    }

    /// Does what the roster asks for until it asks for nothing.
    fn settle(&mut self) {
        for _ in 0..100_000 {
            let (now, monotonic) = (self.clock.now(), self.clock.monotonic());
            let wants = self.roster.tick(now, monotonic);
            self.saved = self.roster.breaker().saved().clone();
            if wants.check_clock {
                self.roster.clock_checked(SignedDuration::ZERO, now, monotonic);
                continue;
            }
            if let Some(tell) = self.roster.take_notice(now) {
                if self.deaf {
                    self.roster.not_told(&tell, NotTold::Webhook("deaf".to_owned()), SignedDuration::from_mins(5), now);
                } else {
                    self.told.push((tell.name.to_string(), tell.id()));
                    self.roster.told(&tell, now);
                }
                continue;
            }
            let Some(write) = self.roster.take_write(now) else { return };
            self.writes += 1;
            let tenant = self.tenants.get_mut(&*write.name).expect("known");
            tenant["status"]["hibernation"]["decision"] = serde_json::to_value(&write.written.decision).expect("json");
            tenant["status"]["conditions"] = serde_json::to_value(&write.written.conditions).expect("json");
            self.version += 1;
            self.roster.wrote(&write, self.version, now);
        }
        panic!("it never comes to rest");
    }

    /// Time passes; the roster is asked when it wants to be, and at least each hour.
    fn pass(&mut self, seconds: u64) {
        let end = self.clock.now().checked_add(Duration::from_secs(seconds)).expect("a time");
        while self.clock.now() < end {
            let now = self.clock.now();
            let next = self.roster.next().unwrap_or(end).min(end);
            let step = next.duration_since(now).as_secs().clamp(1, 3_600);
            self.clock.advance(Duration::from_secs(step.unsigned_abs()));
            self.settle();
        }
    }

    fn decision(&self, name: &str) -> &serde_json::Value {
        &self.tenants[name]["status"]["hibernation"]["decision"]
    }

    fn stage(&self, name: &str) -> &str {
        self.decision(name)["stage"].as_str().unwrap_or("none")
    }

    fn asleep(&self) -> usize {
        self.tenants.keys().filter(|name| self.stage(name) != "Active").count()
    }

    fn reason(&self, name: &str, type_: &str) -> Option<&str> {
        let conditions = self.tenants[name]["status"]["conditions"].as_array()?;
        conditions.iter().find(|condition| condition["type"] == type_)?["reason"].as_str()
    }

    fn trip(&self) -> Option<Trip> {
        self.roster.breaker().open().map(|open| open.reason)
    }

    fn release(&mut self) {
        let since = self.roster.breaker().open().expect("open").since.to_string();
        assert!(self.roster.release(&since, self.clock.now()));
        self.settle();
    }
}

fn four_tiers() -> World {
    let mut world = World::new(Limits::default());
    for tier in ["free", "basic", "pro", "premium"] {
        world.tenant(tier, tier);
    }
    world.list();
    world
}

#[test]
fn four_tiers_live_through_forty_days() {
    let mut world = four_tiers();
    let stages = |world: &World| ["free", "basic", "pro", "premium"].map(|name| world.stage(name).to_owned());
    world.pass(6 * DAY);
    assert_eq!(stages(&world), ["Active"; 4]);
    world.pass(DAY);
    assert_eq!(stages(&world), ["BotsStopped", "Active", "Active", "Active"]);
    world.pass(7 * DAY);
    assert_eq!(stages(&world), ["ServicesStopped", "ServicesStopped", "Active", "Active"]);
    world.pass(26 * DAY);
    assert_eq!(stages(&world), ["DatabaseOnly", "DatabaseOnly", "Active", "Active"]);
    assert_eq!(world.reason("pro", "SleepHeld"), Some("AwaitingApproval"));
    let told = |name: &str| world.told.iter().filter(|(told, _)| told == name).count();
    assert_eq!(["free", "basic", "pro", "premium"].map(told), [3, 2, 1, 0], "one for each deadline: {:?}", world.told);
    assert_eq!(world.decision("premium")["nextTransitionTime"], serde_json::Value::Null);
}

#[test]
fn an_approval_counts_for_one_idle_period() {
    let mut world = four_tiers();
    world.pass(31 * DAY);
    world.annotate("pro", "torpor.dev/hibernate", "approved");
    world.settle();
    assert_eq!(world.stage("pro"), "DatabaseOnly");
    assert_eq!(world.reason("pro", "SleepHeld"), None);
    world.log_in("pro");
    world.settle();
    assert_eq!(world.stage("pro"), "Active");
    world.pass(60 * DAY);
    assert_eq!(world.stage("pro"), "Active", "the old answer is none for this period");
    assert_eq!(world.reason("pro", "SleepHeld"), Some("AwaitingApproval"));
    let pro = world.tenants.get_mut("pro").expect("pro");
    pro["metadata"]["annotations"].as_object_mut().expect("a map").remove("torpor.dev/hibernate");
    world.show("pro");
    world.settle();
    world.annotate("pro", "torpor.dev/hibernate", "approved");
    world.settle();
    assert_eq!(world.stage("pro"), "DatabaseOnly", "taken away and given again");
}

#[test]
fn an_answer_that_is_older_than_the_activity_is_none() {
    let mut world = four_tiers();
    let pro = world.tenants.get_mut("pro").expect("pro");
    pro["metadata"]["annotations"]["torpor.dev/hibernate"] = "approved".into();
    pro["metadata"]["managedFields"] = json!([{
        "manager": "kubectl", "operation": "Update", "apiVersion": "torpor.dev/v1alpha1", "time": "2025-12-01T00:00:00Z",
        "fieldsType": "FieldsV1", "fieldsV1": {"f:metadata": {"f:annotations": {"f:torpor.dev/hibernate": {}}}},
    }]);
    world.show("pro");
    world.pass(40 * DAY);
    assert_eq!(world.stage("pro"), "Active", "given a month before the tenant's newest activity");
}

#[test]
fn activity_wakes_at_any_moment() {
    for hours in (0..31 * 24).step_by(5) {
        let mut world = four_tiers();
        world.pass(hours * 3_600);
        for name in ["free", "basic", "pro", "premium"] {
            world.log_in(name);
        }
        world.settle();
        assert_eq!(world.asleep(), 0, "after {hours} h");
    }
}

#[test]
fn logins_do_not_each_cost_a_write() {
    let mut world = four_tiers();
    world.pass(DAY);
    let before = world.writes;
    for _ in 0..48 {
        world.clock.advance(Duration::from_secs(300));
        world.log_in("free");
        world.settle();
    }
    assert!(world.writes - before <= 2, "{} writes for 48 logins in 4 hours", world.writes - before);
}

#[test]
fn settled_is_silent() {
    let mut world = four_tiers();
    let before = world.writes;
    world.pass(3 * DAY);
    world.list();
    assert_eq!(world.writes, before);
    let catalog = world.catalog.clone();
    let mut world = world.restarted(&catalog);
    world.settle();
    assert_eq!(world.writes, 0, "a restarted process has nothing to say");
}

#[test]
fn kills_at_any_moment_end_alike_with_the_same_notices() {
    let whole = {
        let mut world = four_tiers();
        world.pass(45 * DAY);
        world
    };
    for hours in (0..40 * 24).step_by(7) {
        let mut world = four_tiers();
        world.pass(hours * 3_600);
        let catalog = world.catalog.clone();
        let mut world = world.restarted(&catalog);
        world.pass((45 * 24 - hours) * 3_600);
        for name in ["free", "basic", "pro", "premium"] {
            assert_eq!(world.stage(name), whole.stage(name), "{name}, killed after {hours} h");
        }
        let ids = |world: &World| {
            let mut ids = world.told.clone();
            ids.sort();
            ids
        };
        assert_eq!(ids(&world), ids(&whole), "killed after {hours} h");
    }
}

fn crowd(count: usize, tier: &str) -> World {
    let mut world = World::new(Limits::default());
    for n in 0..count {
        world.tenant(&format!("t{n}"), tier);
        world.clock.advance(Duration::from_secs(1_200));
    }
    world.list();
    world
}

#[test]
fn a_clock_that_jumps_puts_nobody_to_sleep() {
    let mut world = crowd(200, "free");
    let jumped = world.clock.now().checked_add(Duration::from_secs(31 * DAY)).expect("a time");
    world.clock.set(jumped);
    world.settle();
    assert_eq!((world.trip(), world.asleep()), (Some(Trip::ClockJump), 0));
    assert_eq!(world.reason("t0", "SleepHeld"), Some("BreakerOpen"));
    assert!(world.told.is_empty(), "nobody is warned of what will not come");
    world.log_in("t0");
    world.settle();
    assert_eq!(world.reason("t0", "SleepHeld"), None, "waking goes on");
}

#[test]
fn a_clock_that_jumped_before_the_start_is_noticed_by_the_api_servers() {
    let mut world = crowd(3, "free");
    world.pass(7 * DAY - 7_200);
    world.clock.advance(Duration::from_secs(7_200));
    let (now, monotonic) = (world.clock.now(), world.clock.monotonic());
    assert!(world.roster.tick(now, monotonic).check_clock, "asked before anybody falls asleep");
    assert!(world.roster.clock_checked(SignedDuration::from_hours(-24 * 31), now, monotonic));
    assert!(!world.roster.tick(now, monotonic).check_clock);
    while let Some(write) = world.roster.take_write(now) {
        assert_eq!(write.written.decision.stage, Stage::Active);
        world.roster.wrote(&write, u64::MAX, now);
    }
    assert_eq!(world.trip(), Some(Trip::ClockDiffers));
}

#[test]
fn a_catalogue_in_minutes_is_held_until_somebody_has_looked() {
    let mut world = crowd(200, "free");
    world.pass(DAY);
    let text = crate::domain::catalog::BUILT_IN.replacen("stopBotsAfter: 7d", "stopBotsAfter: 7m", 1);
    let minutes = Catalog::parse("minutes", &text).expect("a catalogue");
    let world = world.restarted(&minutes);
    assert_eq!((world.trip(), world.asleep(), world.told.len()), (Some(Trip::PolicyChange), 0, 0));
    assert!(world.roster.breaker().open().is_some_and(|open| open.message.contains("200 of 200 tenants")));
    // Another process finds it open.
    let mut world = world.restarted(&minutes);
    world.pass(3_600);
    assert_eq!((world.trip(), world.asleep()), (Some(Trip::PolicyChange), 0));
    world.log_in("t7");
    world.settle();
    assert_eq!(world.stage("t7"), "Active");
    world.release();
    world.pass(600);
    assert_eq!(world.trip(), None);
    assert_eq!(world.asleep(), 200, "t7 was idle for seven minutes again");
}

#[test]
fn who_was_released_is_no_news_to_the_next_process() {
    let mut world = World::new(Limits { per_minute: 10, ..Limits::default() });
    for n in 0..30 {
        world.tenant(&format!("t{n}"), "free");
    }
    world.clock.advance(Duration::from_secs(600));
    world.tenant("later", "free");
    world.list();
    world.pass(7 * DAY - 600);
    assert_eq!((world.trip(), world.asleep()), (Some(Trip::TooMany), 0));
    world.release();
    world.pass(60);
    assert_eq!(world.asleep(), 20, "the others wait for the pace");
    let catalog = world.catalog.clone();
    let mut world = world.restarted(&catalog);
    world.pass(240);
    assert_eq!((world.trip(), world.asleep()), (None, 30));
    let mut world = world.restarted(&catalog);
    world.pass(700);
    assert_eq!((world.trip(), world.asleep()), (None, 31));
}

#[test]
fn the_pace_is_kept_and_the_longest_idle_go_first() {
    let mut world = World::new(Limits { percent: 100, per_minute: 10, ..Limits::default() });
    for n in 0..40 {
        world.tenant(&format!("t{n:02}"), "free");
        world.clock.advance(Duration::from_secs(1));
    }
    world.list();
    // Everybody is warned in time; then nobody looks until all are due.
    world.pass(6 * DAY);
    world.clock.advance(Duration::from_secs(2 * DAY));
    world.settle();
    let names: Vec<&str> = world.tenants.keys().map(String::as_str).filter(|n| world.stage(n) != "Active").collect();
    assert_eq!(names, (0..10).map(|n| format!("t{n:02}")).collect::<Vec<_>>());
    for minutes in 1..=3 {
        world.pass(60);
        assert_eq!(world.asleep(), 10 + minutes * 10);
    }
    assert_eq!(world.trip(), None);
}

#[test]
fn a_silent_feed_holds_and_a_hand_does_too() {
    let limits = Limits { feed_silence: Some(SignedDuration::from_hours(24)), ..Limits::default() };
    let mut world = World::new(limits);
    for n in 0..10 {
        world.tenant(&format!("t{n}"), "free");
    }
    world.log_in("t0");
    world.annotate("t1", "torpor.dev/last-activity", "2099-01-01T00:00:00Z");
    world.list();
    world.pass(8 * DAY);
    assert_eq!((world.trip(), world.asleep()), (Some(Trip::FeedSilent), 0), "a mistake does not make it alive");

    let mut world = four_tiers();
    assert!(world.roster.hold(Some("migration"), world.clock.now()));
    world.pass(20 * DAY);
    assert_eq!((world.trip(), world.asleep()), (Some(Trip::ByHand), 0));
    world.roster.hold(None, world.clock.now());
    world.pass(10 * DAY);
    assert!(world.asleep() > 0);
}

#[test]
fn a_reporter_whose_clock_is_ahead_keeps_the_feed_alive() {
    let mut world = World::new(Limits { feed_silence: Some(SignedDuration::from_hours(6)), ..Limits::default() });
    world.tenant("free", "free");
    world.list();
    world.pass(5 * 3_600);
    let ahead = world.clock.now().checked_add(Duration::from_secs(30)).expect("a time").to_string();
    world.annotate("free", "torpor.dev/last-activity", &ahead);
    world.pass(2 * 3_600);
    assert_eq!(world.trip(), None);
    world.pass(5 * 3_600);
    assert_eq!(world.trip(), Some(Trip::FeedSilent));
}

#[test]
fn time_under_a_hold_is_none_to_give_up_after() {
    let mut world = four_tiers();
    world.deaf = true;
    world.pass(4 * DAY + 3_600);
    world.roster.hold(Some("migration"), world.clock.now());
    world.pass(2 * DAY);
    world.roster.hold(None, world.clock.now());
    world.pass(23 * 3_600);
    let failed = |world: &World| {
        let conditions = world.tenants["free"]["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions
            .iter()
            .any(|condition| condition["message"].as_str().is_some_and(|m| m.contains("not tried any more")))
    };
    assert!(!failed(&world), "the receiver had an hour before, and 23 after");
    world.pass(2 * 3_600);
    assert!(failed(&world));
}

/// A crowd whose breaker has opened for a clock that jumped, and was released.
fn released() -> World {
    let mut world = crowd(200, "basic");
    world.pass(3 * DAY);
    let jumped = world.clock.now().checked_add(Duration::from_secs(600)).expect("a time");
    world.clock.set(jumped);
    world.settle();
    assert_eq!(world.trip(), Some(Trip::ClockJump));
    world.release();
    world.settle();
    world.clock.advance(Duration::from_secs(1));
    world
}

/// Somebody shortens the policy of every tenant; by it they were due before that release.
fn shorten(world: &mut World) {
    for tenant in world.tenants.values_mut() {
        let shorter = json!({"stopBotsAfter": "1h", "stopServicesAfter": "14d", "databaseOnlyAfter": "30d"});
        tenant["spec"]["hibernation"] = shorter;
    }
}

#[test]
fn a_release_excuses_nobody_who_becomes_due_later() {
    let mut world = released();
    shorten(&mut world);
    let names: Vec<String> = world.tenants.keys().cloned().collect();
    for name in names {
        world.show(&name);
    }
    world.settle();
    assert_eq!((world.trip(), world.asleep()), (Some(Trip::TooMany), 0));
}

#[test]
fn a_release_excuses_nobody_who_becomes_due_while_nobody_looks() {
    let mut world = released();
    shorten(&mut world);
    let catalog = world.catalog.clone();
    let mut world = world.restarted(&catalog);
    world.settle();
    assert_eq!((world.trip(), world.asleep()), (Some(Trip::TooMany), 0));
}

#[test]
fn a_sleep_request_that_is_taken_back_shortens_no_idleness() {
    let stage = |world: &World| world.tenants["idle"]["status"]["hibernation"]["decision"]["stage"].clone();
    let asked_and_taken_back = |world: &mut World| {
        let now = world.clock.now().to_string();
        world.annotate("idle", "torpor.dev/sleep-requested-at", &now);
        world.settle();
        assert_eq!(stage(world), "DatabaseOnly");
        world.tenants.get_mut("idle").expect("known")["metadata"]["annotations"] = json!({});
        world.show("idle");
        world.settle();
    };
    // Its warning came late, and names a moment that has not come.
    let mut late = World::new(Limits::default());
    late.tenant("idle", "free");
    late.clock.advance(Duration::from_secs(8 * DAY));
    late.list();
    late.settle();
    asked_and_taken_back(&mut late);
    assert_eq!(stage(&late), "Active");
    assert_eq!(late.reason("idle", "SleepHeld"), Some("AwaitingWarning"));
    // It was warned in time, and nobody falls asleep.
    let mut held = World::new(Limits::default());
    held.tenant("idle", "free");
    held.list();
    held.pass(6 * DAY);
    let now = held.clock.now();
    held.roster.hold(Some("an incident"), now);
    held.pass(2 * DAY);
    asked_and_taken_back(&mut held);
    assert_eq!(stage(&held), "Active");
    assert_eq!(held.reason("idle", "SleepHeld"), Some("BreakerOpen"));
}

#[test]
fn what_cannot_be_read_keeps_awake_and_is_reported() {
    let mut world = four_tiers();
    world.annotate("free", "torpor.dev/last-activity", "yesterday");
    world.annotate("basic", "torpor.dev/last-activity", "2030-01-01T00:00:00Z");
    world.annotate("premium", "torpor.dev/sleep-requested-at", "soon");
    world.annotate("pro", "torpor.dev/hibernate", "ok");
    world.pass(60 * DAY);
    assert_eq!(world.asleep(), 0);
    let reasons = ["free", "basic", "premium", "pro"].map(|name| world.reason(name, "ActivityInvalid"));
    assert_eq!(reasons, [Some("Malformed"), Some("Future"), Some("Malformed"), Some("Malformed")]);
    world.log_in("free");
    world.settle();
    assert_eq!(world.reason("free", "ActivityInvalid"), None);
}

#[test]
fn older_versions_and_former_namesakes_say_nothing() {
    let mut world = four_tiers();
    world.pass(7 * DAY);
    let mut old: Tenant = serde_json::from_value(world.tenants["free"].clone()).expect("a Tenant");
    old.status = None;
    old.metadata.resource_version = Some("1".to_owned());
    world.roster.seen(Facts::read(&old, &world.catalog).expect("facts"), world.clock.now());
    world.settle();
    assert_eq!(world.stage("free"), "BotsStopped");
    old.metadata.uid = Some("another".to_owned());
    world.roster.seen(Facts::read(&old, &world.catalog).expect("facts"), world.clock.now());
    assert_eq!(world.roster.len(), 4);
}

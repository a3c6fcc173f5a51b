//! The hibernator's loop: tells the roster what happens, and does what it asks for. All thinking is in
//! [`crate::hibernation`].

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::runtime::events::EventType;
use kube::runtime::watcher::Event;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

use super::context::Guarded;
use super::run::Ended;
use crate::api::conditions::ACTIVITY_INVALID;
use crate::api::{Tenant, TenantStatus};
use crate::clock::Clock;
use crate::cluster::Cluster;
use crate::cluster::breaker::{BreakerStore, Stored};
use crate::cluster::error::{ClusterError, within};
use crate::cluster::events::Once;
use crate::cluster::status::Own;
use crate::domain::catalog::Catalog;
use crate::domain::stage::Stage;
use crate::hibernation::breaker::{Breaker, Limits, Open, Saved, Trip};
use crate::hibernation::gate::NoticeKind;
use crate::hibernation::member::Facts;
use crate::hibernation::notices::{NotTold, Tell};
use crate::hibernation::roster::{NotWritten, Roster, Wants, Write};
use crate::http::probes::Health;
use crate::leader::LeaderGuard;
use crate::metrics::Metrics;
use crate::webhook::{self, Webhook};

/// Status writes under way at a time. More only makes the API server queue them.
const WRITES: usize = 16;
/// Notices under way at a time, so that a receiver that is slow for one tenant does not keep others from theirs.
const NOTICES: usize = 64;
/// How often the clocks are compared and the loop proves that it turns while nothing happens.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// A loop that was silent for so long is stuck.
const LONGEST_SILENCE: Duration = Duration::from_secs(180);
/// A request of the loop's own that failed is tried again after this time.
const AGAIN: Duration = Duration::from_secs(5);
/// How long a request may take: less than the third of the Lease that its successor waits for, by default, and so long that few are given up
/// which are done all the same. What they would do a second time, their versions and names prevent.
const PATIENCE: Duration = Duration::from_secs(8);
/// How old the API server's time may be when it is compared.
const CLOCK_PATIENCE: Duration = Duration::from_secs(5);
const NAME: &str = "hibernation";

/// What the hibernator is started with.
pub struct Start {
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The tier catalogue.
    pub catalog: Catalog,
    /// When the breaker opens, and the pace.
    pub limits: Limits,
    /// The breaker as it was left.
    pub saved: Saved,
    /// Somebody's words by which all sleep is held.
    pub hold: Option<String>,
    /// Where warnings go beside their Event.
    pub webhook: Option<Arc<Webhook>>,
    /// A warning that the webhook does not take for so long counts as given.
    pub give_up: SignedDuration,
    /// Where the breaker is kept.
    pub store: BreakerStore,
    /// Whether this process leads.
    pub leader: LeaderGuard,
    /// Liveness and readiness.
    pub health: Health,
    /// Counts.
    pub metrics: Metrics,
}

/// What the loop is told.
enum Happened {
    Seen(Box<Facts>),
    Gone(Arc<str>),
    Listed(HashSet<String>),
    Breaker(Stored),
    BreakerGone,
    Wrote(Write, Result<Option<u64>, ClusterError>),
    Told(Tell, Result<(), NotTold>),
    ApiTime(SignedDuration),
    Saved,
}

/// Runs until a loop ends, which is always an error.
///
/// # Errors
/// [`Ended`], naming the loop.
pub async fn hibernator(cluster: Cluster, start: Start) -> Result<(), Ended> {
    let (tell, told) = unbounded_channel();
    let mut loops = JoinSet::new();
    let watches = cluster.watches(start.health.clone());
    start.health.heart(NAME, LONGEST_SILENCE);
    {
        let (watches, tell, catalog) = (watches.clone(), tell.clone(), start.catalog.clone());
        let tenants = cluster.all::<Guarded<Tenant>>();
        loops.spawn(async move {
            let mut present = HashSet::new();
            let sink = |event| tenant_event(&tell, &catalog, &mut present, event);
            watches.run("Tenant", tenants, None, sink).await;
            "Tenant"
        });
    }
    {
        let (tell, (api, selected)) = (tell.clone(), start.store.watched());
        loops.spawn(async move {
            let mut there = false;
            let sink = |event: Event<ConfigMap>| {
                let happened = match event {
                    Event::Apply(object) | Event::InitApply(object) => {
                        there = true;
                        Happened::Breaker(Stored::of(&object))
                    }
                    Event::Delete(_) => Happened::BreakerGone,
                    Event::InitDone if !there => Happened::BreakerGone,
                    Event::InitDone => return,
                    Event::Init => {
                        there = false;
                        return;
                    }
                };
                let _ = tell.send(happened);
            };
            watches.run_with("breaker", api, selected, sink).await;
            "breaker"
        });
    }
    let policies = policies_hash(&start.catalog);
    let breaker = Breaker::new(start.limits, start.saved.clone(), &policies);
    let mut roster = Roster::new(breaker, start.give_up);
    roster.hold(start.hold.as_deref(), start.clock.now());
    let under_way = UnderWay::default();
    let shell = Shell { cluster: Arc::new(cluster), start, tell, roster, under_way, breaker_version: 0 };
    loops.spawn(async move {
        shell.run(told).await;
        NAME
    });
    let ended = loops.join_next().await;
    Err(Ended(ended.map_or_else(String::new, |ended| ended.map_or_else(|e| e.to_string(), str::to_owned))))
}

/// A hash of when tiers sleep, by which a change of the catalogue is noticed.
fn policies_hash(catalog: &Catalog) -> String {
    let policies = crate::api::Tier::ALL.map(|tier| format!("{:?}", catalog.tier(tier).hibernation));
    crate::plan::hash::of(&policies.to_vec().into())
}

fn tenant_event(
    tell: &UnboundedSender<Happened>,
    catalog: &Catalog,
    present: &mut HashSet<String>,
    event: Event<Guarded<Tenant>>,
) {
    // The receiver lives as long as the process.
    let send = |happened| drop(tell.send(happened));
    // Only a listing ends, and what came since is known to whoever is told.
    let listing = matches!(event, Event::InitApply(_));
    match event {
        Event::Init => present.clear(),
        Event::InitDone => send(Happened::Listed(std::mem::take(present))),
        Event::Delete(object) => send(Happened::Gone(object.name_any().into())),
        Event::Apply(object) | Event::InitApply(object) => {
            // One that cannot be read gets no decision, and without one it is awake; the operator says so.
            match object.0.as_ref().ok().and_then(|tenant| Facts::read(tenant, catalog)) {
                Some(facts) => {
                    if listing {
                        present.insert(facts.name.to_string());
                    }
                    send(Happened::Seen(Box::new(facts)));
                }
                None => send(Happened::Gone(object.name_any().into())),
            }
        }
    }
}

#[derive(Debug, Default)]
struct UnderWay {
    writes: usize,
    notices: usize,
    clock: bool,
    saving: bool,
    save_again: bool,
}

struct Shell {
    cluster: Arc<Cluster>,
    start: Start,
    tell: UnboundedSender<Happened>,
    roster: Roster,
    under_way: UnderWay,
    /// The newest version of the breaker's ConfigMap that was seen: it is watched, and read.
    breaker_version: u64,
}

impl Shell {
    async fn run(mut self, mut told: UnboundedReceiver<Happened>) {
        self.save();
        loop {
            self.start.health.progress(NAME);
            let now = self.now();
            let wants = self.roster.tick(now, self.start.clock.monotonic());
            self.serve(wants, now);
            let until = self.roster.next().map(|at| at.duration_since(now));
            let pause = until.and_then(|until| until.try_into().ok()).unwrap_or(HEARTBEAT);
            tokio::select! {
                Some(happened) = told.recv() => self.take(happened),
                () = tokio::time::sleep(pause.clamp(Duration::from_millis(10), HEARTBEAT)) => {}
            }
            // What has happened meanwhile is taken together, so that a listing is not a thousand rounds.
            while let Ok(happened) = told.try_recv() {
                self.take(happened);
            }
        }
    }

    fn now(&self) -> Timestamp {
        self.start.clock.now()
    }

    fn take(&mut self, happened: Happened) {
        let now = self.now();
        match happened {
            Happened::Seen(facts) => self.roster.seen(*facts, now),
            Happened::Gone(name) => self.roster.gone(&name),
            Happened::Listed(present) => {
                self.roster.listed(&|name| present.contains(name), now);
                tracing::info!(tenants = self.roster.len(), due = self.roster.due(), "all tenants are known");
            }
            Happened::Breaker(stored) if stored.version < self.breaker_version => {}
            Happened::Breaker(stored) => {
                self.breaker_version = stored.version;
                self.breaker_changed(&stored, now);
            }
            Happened::BreakerGone => {
                if self.roster.hold_lost(now) {
                    tracing::warn!(
                        "the breaker's ConfigMap was deleted while it held; it stays open until it is released"
                    );
                }
                self.save();
            }
            Happened::Wrote(write, answer) => {
                self.under_way.writes -= 1;
                self.written(&write, answer, now);
            }
            Happened::Told(tell, Ok(())) => {
                self.under_way.notices -= 1;
                self.start.metrics.warned("delivered");
                self.roster.told(&tell, now);
            }
            Happened::Told(tell, Err(failed)) => {
                self.under_way.notices -= 1;
                self.start.metrics.warned("failed");
                let pause = webhook::Backoff::new(&tell.id()).pause(tell.attempts + 1);
                tracing::warn!(tenant = &*tell.name, error = %failed, "a warning was not given; trying again in {pause:?}");
                self.roster.not_told(&tell, failed, pause.try_into().unwrap_or(SignedDuration::MAX), now);
            }
            Happened::ApiTime(ahead) => {
                self.under_way.clock = false;
                if self.roster.clock_checked(ahead, now, self.start.clock.monotonic()) {
                    self.tripped();
                }
            }
            Happened::Saved => {
                self.under_way.saving = false;
                if std::mem::take(&mut self.under_way.save_again) {
                    self.save();
                }
            }
        }
    }

    fn serve(&mut self, wants: Wants, now: Timestamp) {
        if wants.save {
            self.tripped();
        }
        if wants.check_clock && !std::mem::replace(&mut self.under_way.clock, true) {
            self.check_clock();
        }
        while self.under_way.notices < NOTICES
            && let Some(tell) = self.roster.take_notice(now)
        {
            self.under_way.notices += 1;
            self.give_notice(tell);
        }
        while self.under_way.writes < WRITES
            && let Some(write) = self.roster.take_write(now)
        {
            self.under_way.writes += 1;
            self.write(write);
        }
        let open = self.roster.breaker().open().map(|open| open.reason);
        for trip in Trip::ALL {
            self.start.metrics.set_breaker(trip.as_str(), open == Some(trip));
        }
        self.start.metrics.set_due(self.roster.due());
    }

    /// The breaker has opened, which is kept for the next process.
    fn tripped(&mut self) {
        self.opened(self.roster.breaker().saved().open.as_ref());
        self.save();
    }

    /// Said in the log and by an Event.
    fn opened(&self, open: Option<&Open>) {
        let Some(open) = open else { return };
        tracing::warn!(reason = open.reason.as_str(), "the breaker is open, nobody falls asleep: {}", open.message);
        let note = format!("nobody falls asleep: {}; after a look: torpor hibernator --release", open.message);
        self.event("BreakerOpened", EventType::Warning, note);
    }

    fn event(&self, reason: &'static str, type_: EventType, note: String) {
        self.cluster.events.publish_about(self.start.store.reference(), type_, reason, &note);
    }

    /// Somebody held or released the breaker, or changed what we saved.
    fn breaker_changed(&mut self, stored: &Stored, now: Timestamp) {
        if self.roster.hold(stored.hold.as_deref(), now) {
            if stored.hold.is_some() {
                self.opened(self.roster.breaker().open());
            } else {
                tracing::info!("sleep is no longer held by hand");
            }
        }
        let released = stored.release.as_deref().is_some_and(|opening| self.roster.release(opening, now));
        if released {
            tracing::info!("the breaker was released");
            self.event("BreakerReleased", EventType::Normal, "tenants may fall asleep again".to_owned());
        }
        let saved = self.roster.breaker().saved().to_data();
        if released || saved.iter().any(|(key, value)| stored.data.get(key) != Some(value)) {
            self.save();
        }
    }

    fn save(&mut self) {
        if std::mem::replace(&mut self.under_way.saving, true) {
            self.under_way.save_again = true;
            return;
        }
        let data = self.roster.breaker().saved().to_data();
        let (store, leader, tell) = (self.start.store.clone(), self.start.leader.clone(), self.tell.clone());
        tokio::spawn(async move {
            while let Err(error) = within(PATIENCE, "breaker", store.save(&data, &leader)).await {
                tracing::warn!(%error, "the breaker was not saved; trying again");
                tokio::time::sleep(AGAIN).await;
            }
            let _ = tell.send(Happened::Saved);
        });
    }

    /// Nobody falls asleep by a clock that nobody else confirms, nor by a breaker of which a watch may have lost sight.
    fn check_clock(&self) {
        let (reader, clock, tell) = (self.cluster.reader.clone(), self.start.clock.clone(), self.tell.clone());
        let store = self.start.store.clone();
        tokio::spawn(async move {
            let (ahead, breaker) = loop {
                let breaker = within(PATIENCE, "breaker", store.load()).await;
                let theirs = within(CLOCK_PATIENCE, "time of the API server", reader.time()).await;
                match theirs.and_then(|theirs| Ok((theirs.duration_since(clock.now()), breaker?))) {
                    Ok(found) => break found,
                    Err(error) => {
                        tracing::warn!(%error, "clock and breaker were not confirmed; nobody falls asleep meanwhile");
                    }
                }
                tokio::time::sleep(AGAIN).await;
            };
            let _ = tell.send(breaker.map_or(Happened::BreakerGone, Happened::Breaker));
            let _ = tell.send(Happened::ApiTime(ahead));
        });
    }

    fn write(&self, write: Write) {
        let (status, tell) = (self.cluster.status.clone(), self.tell.clone());
        tokio::spawn(async move {
            let part = TenantStatus {
                conditions: write.written.conditions.clone(),
                hibernation: Some(crate::api::tenant::HibernationStatus {
                    decision: Some(Box::new(write.written.decision.clone())),
                    ..Default::default()
                }),
                ..TenantStatus::default()
            };
            let mut about = metadata(&write.name, &write.uid);
            // It is decided about the Tenant as it is, not about one that has changed meanwhile.
            about.resource_version = Some(write.version.to_string());
            let what = format!("status of Tenant {}", write.name);
            let answer = within(PATIENCE, &what, status.write_unchanged(Own::Tenant, &about, &part)).await;
            let version = answer.map(|version| version.and_then(|version| version.parse().ok()));
            let _ = tell.send(Happened::Wrote(write, version));
        });
    }

    fn written(&mut self, write: &Write, answer: Result<Option<u64>, ClusterError>, now: Timestamp) {
        let decision = &write.written.decision;
        match answer {
            Ok(Some(version)) => {
                self.roster.wrote(write, version, now);
                if decision.stage != write.before {
                    self.start.metrics.decided(decision.stage.as_str());
                    tracing::info!(tenant = &*write.name, stage = %decision.stage, "decided");
                }
                self.events_of(write);
            }
            // It has changed or gone, or another of its name has come; the watch tells.
            Ok(None) => self.roster.not_written(write, NotWritten::Changed, now),
            Err(error) => {
                tracing::warn!(tenant = &*write.name, %error, "a decision was not written; trying again");
                let refused = matches!(error, ClusterError::Refused { .. });
                self.roster.not_written(write, if refused { NotWritten::Refused } else { NotWritten::Failed }, now);
            }
        }
    }

    fn events_of(&self, write: &Write) {
        let decision = &write.written.decision;
        let mut told: Vec<(EventType, &'static str, String)> = Vec::new();
        if decision.stage > write.before && decision.stage > Stage::Active {
            let note = format!("stage {}: {}", decision.stage, decision.reason.as_deref().unwrap_or_default());
            told.push((EventType::Normal, "SleepDecided", note));
        }
        let invalid = write.written.conditions.iter().find(|condition| condition.type_ == ACTIVITY_INVALID);
        if let Some(invalid) = invalid.filter(|_| write.raised.iter().any(|type_| type_ == ACTIVITY_INVALID)) {
            told.push((EventType::Warning, ACTIVITY_INVALID, invalid.message.clone()));
        }
        for (type_, reason, note) in told {
            self.cluster.events.publish(Own::Tenant, &metadata(&write.name, &write.uid), type_, reason, &note);
        }
    }

    /// First the Event, which costs nobody anything, then the webhook.
    fn give_notice(&self, tell: Tell) {
        let (events, hook, channel) = (self.cluster.events.clone(), self.start.webhook.clone(), self.tell.clone());
        let now = self.now();
        tokio::spawn(async move {
            let (id, note) = (tell.id(), note(&tell));
            let reason = match tell.notice.kind {
                NoticeKind::Warning => "SleepWarning",
                NoticeKind::Question => "SleepQuestion",
            };
            let once = Once { id: &id, at: now, reason, note: &note };
            let about = metadata(&tell.name, &tell.uid);
            let recorded = if tell.recorded {
                Ok(())
            } else {
                within(PATIENCE, "Event", events.publish_once(Own::Tenant, &about, once)).await
            };
            let given = match (recorded, hook) {
                (Err(error), _) => Err(NotTold::Event(error.to_string())),
                (Ok(()), None) => Ok(()),
                (Ok(()), Some(hook)) => {
                    let delivered = hook.deliver(&warning(&tell, id, note), now).await;
                    delivered.map_err(|error| NotTold::Webhook(error.to_string()))
                }
            };
            let _ = channel.send(Happened::Told(tell, given));
        });
    }
}

fn metadata(name: &str, uid: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), uid: Some(uid.to_owned()), ..ObjectMeta::default() }
}

/// What a notice says.
fn note(tell: &Tell) -> String {
    let what = match tell.notice.stage {
        Stage::Active => "nothing stops",
        Stage::BotsStopped => "bots stop",
        Stage::ServicesStopped => "bots, dashboard and Redis stop",
        Stage::DatabaseOnly => "everything stops but the database, which keeps its data",
    };
    let since = crate::status::whole_second(tell.idle_since);
    let at = crate::status::whole_second(tell.notice.deadline);
    match tell.notice.kind {
        NoticeKind::Warning => format!("idle since {since}: at {at} {what}; any activity prevents it"),
        NoticeKind::Question => format!(
            "idle since {since}: if its user agrees, {what}; to agree: kubectl annotate tenant {} torpor.dev/hibernate=approved",
            tell.name
        ),
    }
}

fn warning(tell: &Tell, id: String, message: String) -> webhook::Warning {
    webhook::Warning {
        id,
        kind: match tell.notice.kind {
            NoticeKind::Warning => webhook::Kind::Warning,
            NoticeKind::Question => webhook::Kind::Question,
        },
        tenant: tell.name.to_string(),
        tier: tell.tier,
        stage: tell.notice.stage,
        deadline: tell.notice.deadline,
        idle_since: tell.idle_since,
        message,
    }
}

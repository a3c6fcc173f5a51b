//! All tenants, and who is next: the hibernator without its input and output.
//!
//! The shell tells it what happened and asks what to do. It holds one timer per tenant in one ordered set, so a moment at
//! which nothing is due costs nothing, however many tenants there are.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use smol_str::SmolStr;

use super::breaker::{Breaker, DueTenant};
use super::decide::{Why, deadlines};
use super::gate::Notice;
use super::member::{Beyond, Facts, Failing, View, Written, worth_writing, written};
use super::notices::{NotTold, Tell, Telling};
use crate::domain::activity;
use crate::domain::stage::Stage;

/// A comparison with the API server's clock counts for so long.
const CLOCK_FRESH: Duration = Duration::from_secs(60);
/// A status write that failed is tried again after this time, twice that if it fails again, and so on.
const WRITE_AGAIN: SignedDuration = SignedDuration::from_secs(5);
const WRITE_AGAIN_AT_LAST: SignedDuration = SignedDuration::from_mins(5);
/// Where the pace lets nobody fall asleep because some are permitted and not written it is looked at again after this time.
const LOOK_AGAIN: SignedDuration = SignedDuration::from_secs(1);

/// One tenant, and what is under way for it.
#[derive(Debug)]
struct Member {
    facts: Facts,
    timer: Option<Timestamp>,
    /// Its place among those that are ready.
    ready: Option<Timestamp>,
    /// Its place among those with something to be told.
    untold: Option<Timestamp>,
    /// Its place among those with something to be written.
    dirty: Option<Timestamp>,
    /// A status write is under way.
    writing: bool,
    /// Status writes that failed in a row.
    failed_writes: u32,
    /// The last of them was refused, for which nobody else waits.
    refused: bool,
    /// A notice that is being given, or is to be tried again.
    telling: Option<Telling>,
    /// A notice that was given, with the activity it was about.
    told: Option<(Timestamp, Notice)>,
    failing: Option<Failing>,
    /// The activity for whose idle period a deeper stage was permitted, and that stage.
    permitted: Option<(Timestamp, Stage)>,
}

/// A status to write.
#[derive(Clone, Debug)]
pub struct Write {
    /// Name of the Tenant.
    pub name: Arc<str>,
    /// Its uid.
    pub uid: String,
    /// Its resource version when that was decided.
    pub version: u64,
    /// What to write.
    pub written: Written,
    /// The stage before.
    pub before: Stage,
    /// Condition types that hold now and did not before.
    pub raised: Vec<SmolStr>,
}

/// Why a status was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotWritten {
    /// The Tenant has changed or gone meanwhile.
    Changed,
    /// It failed, and may be done all the same.
    Failed,
    /// The API server refuses it.
    Refused,
}

/// All tenants.
#[derive(Debug)]
pub struct Roster {
    members: HashMap<Arc<str>, Member>,
    timers: BTreeSet<(Timestamp, Arc<str>)>,
    /// Tenants for which a deeper stage is due, and since when.
    due: BTreeMap<Arc<str>, Timestamp>,
    /// Those among them whose warning's moment has come, by their newest activity.
    ready: BTreeSet<(Timestamp, Arc<str>)>,
    /// Those with something to be told, whoever has waited longest first.
    untold: BTreeSet<(Timestamp, Arc<str>)>,
    /// Those with something to be written, whoever has waited longest first.
    dirty: BTreeSet<(Timestamp, Arc<str>)>,
    breaker: Breaker,
    give_up: SignedDuration,
    listed: bool,
    newest_reported: Option<Timestamp>,
    clock_checked: Option<Instant>,
    /// When the pace lets the next tenant fall asleep.
    next_place: Option<Timestamp>,
}

/// What the roster wants of its shell beside writes and notices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    /// The breaker's state must be saved.
    pub save: bool,
    /// The API server's clock must be asked before anybody may fall asleep.
    pub check_clock: bool,
}

impl Roster {
    /// An empty roster. A notice that its receiver does not take counts as given after `give_up`.
    pub fn new(breaker: Breaker, give_up: SignedDuration) -> Self {
        Roster {
            members: HashMap::new(),
            timers: BTreeSet::new(),
            due: BTreeMap::new(),
            ready: BTreeSet::new(),
            untold: BTreeSet::new(),
            dirty: BTreeSet::new(),
            breaker,
            give_up,
            listed: false,
            newest_reported: None,
            clock_checked: None,
            next_place: None,
        }
    }

    /// The breaker.
    pub fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// Number of tenants.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Number of tenants that are due for a deeper stage.
    pub fn due(&self) -> usize {
        self.due.len()
    }

    /// A Tenant appeared or changed. An older version than the one that is known says nothing.
    pub fn seen(&mut self, facts: Facts, now: Timestamp) {
        let name = facts.name.clone();
        // A time in the future is somebody's mistake, and would make a silent feed look alive until it comes.
        let reported = facts.activity.reported.filter(|at| !activity::in_future(*at, now));
        self.newest_reported = self.newest_reported.max(reported);
        match self.members.get_mut(&name) {
            Some(member) if member.facts.uid == facts.uid => {
                if facts.version < member.facts.version {
                    return;
                }
                member.facts = facts;
            }
            Some(_) | None => {
                self.gone(&name);
                let member = Member {
                    facts,
                    timer: None,
                    ready: None,
                    untold: None,
                    dirty: None,
                    writing: false,
                    failed_writes: 0,
                    refused: false,
                    telling: None,
                    told: None,
                    failing: None,
                    permitted: None,
                };
                self.members.insert(name.clone(), member);
            }
        }
        if self.listed {
            self.look(&name, now);
        }
    }

    /// A Tenant has gone, or is being deleted.
    pub fn gone(&mut self, name: &Arc<str>) {
        if let Some(member) = self.members.remove(name) {
            if let Some(timer) = member.timer {
                self.timers.remove(&(timer, name.clone()));
            }
            if let Some(place) = member.ready {
                self.ready.remove(&(place, name.clone()));
            }
            if let Some(place) = member.untold {
                self.untold.remove(&(place, name.clone()));
            }
            if let Some(place) = member.dirty {
                self.dirty.remove(&(place, name.clone()));
            }
            self.due.remove(name);
        }
    }

    /// All Tenants are known; `present` names them. Before this nothing is decided, since the breaker has to know how
    /// many there are.
    pub fn listed(&mut self, present: &dyn Fn(&str) -> bool, now: Timestamp) {
        let gone: Vec<Arc<str>> = self.members.keys().filter(|name| !present(name)).cloned().collect();
        for name in &gone {
            self.gone(name);
        }
        if self.listed {
            self.look_at_all(now);
            return;
        }
        self.recall(now);
        self.look_at_all(now);
        self.listed = true;
    }

    /// Tells the breaker who fell asleep before this process began. Who is suspended, or sleeps on request, did not.
    fn recall(&mut self, now: Timestamp) {
        for (name, member) in &self.members {
            let view = member.view(now);
            let asleep = view.due.why == Why::Idle && view.record.stage > Stage::Active;
            let decided = member.facts.decision.as_ref().and_then(|decision| decision.decided_at);
            if let Some(at) = decided.filter(|_| asleep) {
                // A release may have excused it, which only the moment at which it became due tells.
                let all = deadlines(&view.situation.policy, view.situation.activity);
                let due_at =
                    all.iter().find(|deadline| deadline.stage >= view.record.stage).map_or(at, |found| found.at);
                self.breaker.fell_asleep(name.clone(), at, due_at.min(at));
            }
        }
    }

    fn look_at_all(&mut self, now: Timestamp) {
        let names: Vec<Arc<str>> = self.members.keys().cloned().collect();
        for name in &names {
            self.look(name, now);
        }
    }

    /// Looks at one tenant: what is due, what is to be told, what is to be written, when to look again.
    fn look(&mut self, name: &Arc<str>, now: Timestamp) {
        let Some(member) = self.members.get_mut(name) else { return };
        let activity = member.facts.activity.newest;
        if member.telling.is_some_and(|telling| telling.activity != activity && !telling.under_way) {
            member.telling = None;
            member.failing = None;
        }
        if member.told.as_ref().is_some_and(|(about, _)| *about != activity) {
            member.told = None;
            member.failing = None;
        }
        let view = member.view(now);
        if view.due.why == Why::Idle && view.due.stage > view.record.stage {
            // A policy that is shortened later reaches back before a release that knew nothing of it, so the moment at
            // which this process saw the tenant become due counts. What was due before it began is told by the policy.
            // It is not told of a time at which the decision says that nothing was due.
            let told = member.facts.not_due_before().map_or(Timestamp::MIN, |at| at.min(now));
            let since = if self.listed { now } else { view.due_since(now).max(told) };
            self.due.entry(name.clone()).or_insert(since);
        } else {
            self.due.remove(name);
        }
        // A permission belongs to one descent to one stage under a closed breaker.
        let another = member.permitted.is_some_and(|(_, stage)| stage != view.gate.stage);
        if !view.gate.falls_asleep || another || self.breaker.open().is_some() {
            member.permitted = None;
        }
        let waits = view.gate.falls_asleep && member.permitted != Some((activity, view.gate.stage));
        let ready = waits.then_some(activity);
        move_to(&mut self.ready, &mut member.ready, ready, name);
        let again = member.telling.and_then(|telling| telling.again_at);
        let idle = member.telling.is_none_or(|telling| !telling.under_way && again.is_none_or(|at| at <= now));
        let untold = (view.gate.notice.is_some() && idle).then(|| again.or(member.untold).unwrap_or(now));
        move_to(&mut self.untold, &mut member.untold, untold, name);
        let timers = view.gate.look_again.into_iter().chain(again).chain(member.facts.comes_true_at(now));
        let timer = timers.filter(|at| *at > now).min();
        move_to(&mut self.timers, &mut member.timer, timer, name);
        let breaker = self.breaker.open().map(|open| open.message.as_str());
        let worth = worth_writing(&member.facts, &member.written(&view, breaker, now));
        let dirty = worth.then(|| member.dirty.unwrap_or(now));
        move_to(&mut self.dirty, &mut member.dirty, dirty, name);
    }

    /// Time has passed. Call it whenever something happened and at [`Roster::next`].
    pub fn tick(&mut self, wall: Timestamp, monotonic: Instant) -> Wants {
        let mut wants = Wants::default();
        if self.breaker.clocks(wall, monotonic) {
            wants.save = true;
        }
        while let Some((at, name)) = self.timers.first().cloned() {
            if at > wall {
                break;
            }
            self.timers.pop_first();
            if let Some(member) = self.members.get_mut(&name) {
                member.timer = None;
            }
            self.look(&name, wall);
        }
        if self.listed && self.breaker.open().is_none() {
            let known = self.members.values().map(|member| member.facts.activity.newest);
            let silent = self.breaker.feed(self.newest_reported, known, wall);
            wants.save |= silent || self.too_many(wall);
        }
        if wants.save {
            self.look_at_all(wall);
        }
        if self.listed && self.breaker.open().is_none() {
            self.permit(wall, monotonic, &mut wants);
        }
        wants
    }

    fn too_many(&mut self, now: Timestamp) -> bool {
        let due = self.due.iter().map(|(name, due_at)| DueTenant { name: name.clone(), due_at: *due_at });
        let due: Vec<DueTenant> = due.collect();
        !due.is_empty() && self.breaker.count(self.members.len(), &due, now)
    }

    /// Lets those fall asleep that may: the longest idle first, as many as the pace allows.
    fn permit(&mut self, wall: Timestamp, monotonic: Instant, wants: &mut Wants) {
        self.next_place = None;
        if self.ready.is_empty() {
            return;
        }
        let fresh = |at: Instant| monotonic.saturating_duration_since(at) < CLOCK_FRESH;
        if !self.clock_checked.is_some_and(fresh) {
            wants.check_clock = true;
            return;
        }
        let unwritten = self.members.iter().filter(|(_, member)| member.is_unwritten()).map(|(name, _)| name);
        for _ in 0..self.breaker.pace(wall, unwritten) {
            let Some((activity, name)) = self.ready.pop_first() else { break };
            let Some(member) = self.members.get_mut(&name) else { continue };
            let view = member.view(wall);
            member.ready = None;
            member.permitted = Some((activity, view.gate.stage));
            let due_at = self.due.get(&name).copied().unwrap_or(wall);
            self.breaker.fell_asleep(name.clone(), wall, due_at);
            let dirty = Some(member.dirty.unwrap_or(wall));
            move_to(&mut self.dirty, &mut member.dirty, dirty, &name);
        }
        if !self.ready.is_empty() {
            let next = wall.checked_add(LOOK_AGAIN).unwrap_or(wall);
            self.next_place = Some(self.breaker.next_place(wall).max(next));
        }
    }

    /// When to call [`Roster::tick`] next if nothing happens.
    pub fn next(&self) -> Option<Timestamp> {
        let first = self.timers.first().map(|(at, _)| *at);
        first.into_iter().chain(self.next_place).min()
    }

    /// The next status to write, if any. The shell answers with [`Roster::wrote`] or [`Roster::not_written`].
    pub fn take_write(&mut self, now: Timestamp) -> Option<Write> {
        let writing = |name: &Arc<str>| self.members.get(name).is_some_and(|member| member.writing);
        let (_, name) = self.dirty.iter().find(|(_, name)| !writing(name))?.clone();
        let member = self.members.get_mut(&name)?;
        move_to(&mut self.dirty, &mut member.dirty, None, &name);
        let view = member.view(now);
        let breaker = self.breaker.open().map(|open| open.message.as_str());
        let written = member.written(&view, breaker, now);
        member.writing = true;
        let old = member.facts.decision.as_ref().filter(|old| old.based_on == written.decision.based_on);
        let before = old.map_or(Stage::Active, |old| old.stage);
        let held = |type_: &str| member.facts.conditions.iter().any(|condition| condition.type_ == type_);
        let raised = written.conditions.iter().map(|c| c.type_.clone()).filter(|type_| !held(type_)).collect();
        Some(Write { uid: member.facts.uid.clone(), version: member.facts.version, written, before, raised, name })
    }

    /// A status was written; the Tenant has this version now.
    pub fn wrote(&mut self, write: &Write, version: u64, now: Timestamp) {
        let Some(member) = self.members.get_mut(&write.name).filter(|member| member.facts.uid == write.uid) else {
            return;
        };
        member.writing = false;
        (member.failed_writes, member.refused) = (0, false);
        if version >= member.facts.version {
            member.facts.version = version;
            member.facts.decision = Some(write.written.decision.clone());
            member.facts.conditions.clone_from(&write.written.conditions);
        }
        self.look(&write.name, now);
    }

    /// A status was not written; it is tried again a little later, ever later while it fails.
    pub fn not_written(&mut self, write: &Write, why: NotWritten, now: Timestamp) {
        let Some(member) = self.members.get_mut(&write.name).filter(|member| member.facts.uid == write.uid) else {
            return;
        };
        member.writing = false;
        let failed = if why == NotWritten::Changed { 0 } else { member.failed_writes };
        let pause = WRITE_AGAIN.saturating_mul(1 << failed.min(6)).min(WRITE_AGAIN_AT_LAST);
        member.failed_writes = if why == NotWritten::Changed { 0 } else { failed.saturating_add(1) };
        member.refused = why == NotWritten::Refused;
        let at = now.checked_add(pause).unwrap_or(now);
        let timer = member.timer.map_or(at, |timer| timer.min(at));
        move_to(&mut self.timers, &mut member.timer, Some(timer), &write.name);
    }

    /// The next notice to give, if any. None is given while the breaker is open: what it says would not come true.
    /// The shell answers with [`Roster::told`] or [`Roster::not_told`].
    pub fn take_notice(&mut self, now: Timestamp) -> Option<Tell> {
        if self.breaker.open().is_some() {
            return None;
        }
        while let Some((_, name)) = self.untold.pop_first() {
            let Some(member) = self.members.get_mut(&name) else { continue };
            member.untold = None;
            // Computed anew for each try: one that comes late leaves its whole lead from when it is taken.
            let Some(notice) = member.view(now).gate.notice else { continue };
            return Some(member.tell(name, notice, now));
        }
        None
    }

    /// A notice was given.
    pub fn told(&mut self, tell: &Tell, now: Timestamp) {
        let Some(member) = self.members.get_mut(&tell.name).filter(|member| member.facts.uid == tell.uid) else {
            return;
        };
        member.telling = None;
        member.failing = None;
        member.told = Some((tell.idle_since, tell.notice));
        self.look(&tell.name, now);
    }

    /// A notice was not given; it is tried again after `pause`, or given up.
    pub fn not_told(&mut self, tell: &Tell, failed: NotTold, pause: SignedDuration, now: Timestamp) {
        let give_up = self.give_up;
        let Some(member) = self.members.get_mut(&tell.name).filter(|member| member.facts.uid == tell.uid) else {
            return;
        };
        let Some(telling) = &mut member.telling else { return };
        telling.under_way = false;
        if telling.activity != member.facts.activity.newest {
            return self.look(&tell.name, now);
        }
        let (failing, instead) = telling.failed(tell.notice, failed, (pause, give_up), now);
        member.failing = Some(failing);
        if let Some(recorded) = instead {
            member.told = Some((tell.idle_since, recorded));
            member.telling = None;
        }
        self.look(&tell.name, now);
    }

    /// The API server's clock is so far ahead of ours. `true` when that opens the breaker.
    pub fn clock_checked(&mut self, ahead: SignedDuration, wall: Timestamp, monotonic: Instant) -> bool {
        self.clock_checked = Some(monotonic);
        let opened = self.breaker.api_clock(ahead, wall);
        if opened {
            self.look_at_all(wall);
        }
        opened
    }

    /// Somebody holds the breaker open, or no longer does. `true` when that is news.
    pub fn hold(&mut self, words: Option<&str>, now: Timestamp) -> bool {
        let news = self.breaker.hold(words, now);
        if news {
            self.closed_or_opened(now);
        }
        news
    }

    /// Somebody released the opening of that moment. `true` when that closes the breaker.
    pub fn release(&mut self, opening: &str, now: Timestamp) -> bool {
        let released = self.breaker.release(opening, now);
        if released {
            self.closed_or_opened(now);
        }
        released
    }

    /// What somebody's hold was written on has gone; the hold stays until it is released. `true` when there was one.
    pub fn hold_lost(&mut self, now: Timestamp) -> bool {
        self.breaker.hold_lost(now)
    }

    /// No receiver was tried while the breaker was open, so that time is none to give up after.
    fn closed_or_opened(&mut self, now: Timestamp) {
        for member in self.members.values_mut() {
            if let Some(telling) = &mut member.telling {
                telling.refused_since = None;
            }
        }
        self.look_at_all(now);
    }
}

impl Member {
    /// Whether it may fall asleep, and no decision says so yet.
    fn is_unwritten(&self) -> bool {
        let decision = self.facts.decision.as_ref();
        let says = |activity, stage| decision.is_some_and(|said| said.based_on == activity && said.stage >= stage);
        let current = self.permitted.filter(|(activity, _)| *activity == self.facts.activity.newest && !self.refused);
        current.is_some_and(|(activity, stage)| !says(activity, stage))
    }

    fn view(&self, now: Timestamp) -> View {
        let told = self.told.as_ref().filter(|(about, _)| *about == self.facts.activity.newest);
        View::of(&self.facts, told.map(|(_, notice)| notice), now)
    }

    /// Begins the next try of a notice.
    fn tell(&mut self, name: Arc<str>, notice: Notice, now: Timestamp) -> Tell {
        let activity = self.facts.activity.newest;
        let telling = Telling::next(self.telling, notice, activity, now);
        self.telling = Some(telling);
        Tell {
            name,
            uid: self.facts.uid.clone(),
            tier: self.facts.tier,
            notice,
            idle_since: activity,
            attempts: telling.attempts,
            recorded: telling.recorded.is_some(),
        }
    }

    fn written(&self, view: &View, breaker: Option<&str>, now: Timestamp) -> Written {
        let permitted = self.permitted == Some((self.facts.activity.newest, view.gate.stage)) && breaker.is_none();
        written(&self.facts, view, Beyond { permitted, breaker, failing: self.failing.as_ref() }, now)
    }
}

/// Moves a tenant to another place of an ordered set, or out of it.
fn move_to(
    set: &mut BTreeSet<(Timestamp, Arc<str>)>,
    place: &mut Option<Timestamp>,
    to: Option<Timestamp>,
    name: &Arc<str>,
) {
    if *place == to {
        return;
    }
    if let Some(old) = std::mem::replace(place, to) {
        set.remove(&(old, name.clone()));
    }
    set.extend(to.map(|at| (at, name.clone())));
}

#[cfg(test)]
#[path = "tests/roster.rs"]
mod tests;

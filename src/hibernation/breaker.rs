//! Whether anybody may fall asleep at all. When many would at once, when the clock or the activity feed cannot be trusted,
//! or when somebody says so, nobody does until somebody has looked. Waking is never held.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

/// Time over which tenants that fall asleep are counted.
const WINDOW: SignedDuration = SignedDuration::from_hours(1);
/// A release excuses nothing after this time. Whoever was due then, and whose warning begins its lead of three days only
/// now, has fallen asleep by then.
const RELEASE_COUNTS: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Time over which the pace is kept.
const PACE: SignedDuration = SignedDuration::from_mins(1);

/// When the breaker opens, and how fast tenants may fall asleep while it is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Percent of all tenants that may fall asleep, or become due to, within an hour.
    pub percent: usize,
    /// So many may in any case.
    pub least: usize,
    /// So many fall asleep per minute at most.
    pub per_minute: usize,
    /// No activity of any tenant for so long means that the feed is broken. `None` where no feed is configured.
    pub feed_silence: Option<SignedDuration>,
    /// The wall clock may be off by so much.
    pub clock_tolerance: SignedDuration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            percent: 10,
            least: 5,
            per_minute: 60,
            feed_silence: None,
            clock_tolerance: SignedDuration::from_mins(5),
        }
    }
}

impl Limits {
    /// How many of so many tenants may fall asleep within an hour.
    pub fn allowed(&self, tenants: usize) -> usize {
        (tenants.saturating_mul(self.percent) / 100).max(self.least)
    }
}

/// Why the breaker is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trip {
    /// Too many tenants became due within an hour.
    TooMany,
    /// Too many tenants became due after the catalogue had changed.
    PolicyChange,
    /// The wall clock jumped.
    ClockJump,
    /// The wall clock differs from the API server's.
    ClockDiffers,
    /// No activity was reported for too long.
    FeedSilent,
    /// Somebody holds it open.
    ByHand,
}

impl Trip {
    /// Every reason.
    pub const ALL: [Trip; 6] =
        [Trip::TooMany, Trip::PolicyChange, Trip::ClockJump, Trip::ClockDiffers, Trip::FeedSilent, Trip::ByHand];

    /// The word in metrics, Events and the breaker's ConfigMap.
    pub const fn as_str(self) -> &'static str {
        match self {
            Trip::TooMany => "TooMany",
            Trip::PolicyChange => "PolicyChange",
            Trip::ClockJump => "ClockJump",
            Trip::ClockDiffers => "ClockDiffers",
            Trip::FeedSilent => "FeedSilent",
            Trip::ByHand => "ByHand",
        }
    }
}

/// The breaker is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// Why.
    pub reason: Trip,
    /// What happened, in a sentence.
    pub message: String,
    /// Since when. A release names this moment, so that it never closes another opening.
    pub since: Timestamp,
}

/// What of the breaker outlives the process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// Open, and why.
    pub open: Option<Open>,
    /// When it was last released. What was due by then is no news.
    pub released_at: Option<Timestamp>,
    /// Hash of the policies that were in force.
    pub policies: String,
}

impl Saved {
    /// As the data of a ConfigMap.
    pub fn to_data(&self) -> BTreeMap<String, String> {
        let mut data = BTreeMap::new();
        let mut put = |key: &str, value: String| data.insert(key.to_owned(), value);
        put("state", if self.open.is_some() { "open" } else { "closed" }.to_owned());
        if let Some(open) = &self.open {
            put("reason", open.reason.as_str().to_owned());
            put("message", open.message.clone());
            put("since", open.since.to_string());
        }
        if let Some(at) = self.released_at {
            put("releasedAt", at.to_string());
        }
        put("policies", self.policies.clone());
        data
    }

    /// From the data of a ConfigMap. What cannot be read and does not say `closed` is an open breaker: in doubt
    /// nobody falls asleep.
    pub fn from_data(data: &BTreeMap<String, String>, now: Timestamp) -> Self {
        let text = |key: &str| data.get(key).map(String::as_str).unwrap_or_default();
        let time = |key: &str| text(key).parse::<Timestamp>().ok();
        let open = (text("state") != "closed").then(|| Open {
            reason: Trip::ALL.into_iter().find(|trip| trip.as_str() == text("reason")).unwrap_or(Trip::ByHand),
            message: text("message").to_owned(),
            since: time("since").unwrap_or(now),
        });
        // A release excuses what was due when somebody looked. One from the future would excuse everything to come.
        let released_at = time("releasedAt").filter(|at| *at <= now);
        Saved { open, released_at, policies: text("policies").to_owned() }
    }
}

/// A tenant that is due for a deeper stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueTenant {
    /// Its name.
    pub name: Arc<str>,
    /// When its stage became due by its policy.
    pub due_at: Timestamp,
}

/// The breaker.
#[derive(Debug)]
pub struct Breaker {
    limits: Limits,
    saved: Saved,
    by_hand: Option<Open>,
    policies_changed: bool,
    /// Tenants that fell asleep within the last hour: when they did, and when that was due.
    slept: HashMap<Arc<str>, (Timestamp, Timestamp)>,
    clocks: Option<(Timestamp, Instant)>,
}

impl Breaker {
    /// The breaker as it was left, for a process with these policies.
    pub fn new(limits: Limits, saved: Saved, policies: &str) -> Self {
        let policies_changed = !saved.policies.is_empty() && saved.policies != policies;
        // Whoever released it then did not know these policies.
        let released_at = saved.released_at.filter(|_| !policies_changed);
        let saved = Saved { policies: policies.to_owned(), released_at, ..saved };
        Breaker { limits, saved, by_hand: None, policies_changed, slept: HashMap::new(), clocks: None }
    }

    /// Why nobody falls asleep, if so.
    pub fn open(&self) -> Option<&Open> {
        self.by_hand.as_ref().or(self.saved.open.as_ref())
    }

    /// What has to outlive the process.
    pub fn saved(&self) -> &Saved {
        &self.saved
    }

    /// Somebody holds it open with these words, or no longer does. `true` when that is news.
    pub fn hold(&mut self, words: Option<&str>, now: Timestamp) -> bool {
        let before = self.by_hand.as_ref().map(|open| open.message.clone());
        let message = words.map(|words| format!("held by hand: {words}"));
        if before == message {
            return false;
        }
        self.by_hand = message.map(|message| Open { reason: Trip::ByHand, message, since: now });
        if self.by_hand.is_none() {
            // Whoever lets go has looked: what became due meanwhile is no news.
            self.saved.released_at = Some(now);
        }
        true
    }

    /// What somebody's hold was written on has gone. Nobody has let go of it, so it becomes an opening of its own.
    /// `true` when there was a hold.
    pub fn hold_lost(&mut self, now: Timestamp) -> bool {
        let Some(hold) = self.by_hand.take() else { return false };
        self.saved.open.get_or_insert(Open { since: now, ..hold });
        true
    }

    /// Somebody has looked at the opening of that moment. `true` when that closes it.
    pub fn release(&mut self, opening: &str, now: Timestamp) -> bool {
        let named = self.saved.open.as_ref().is_some_and(|open| open.since.to_string() == opening);
        if named {
            self.saved.open = None;
            self.saved.released_at = Some(now);
            self.policies_changed = false;
        }
        named
    }

    /// A tenant fell asleep, or was found to have fallen asleep, at that time.
    pub fn fell_asleep(&mut self, name: Arc<str>, at: Timestamp, due_at: Timestamp) {
        self.slept.insert(name, (at, due_at));
    }

    /// How many more tenants may fall asleep within this minute. Those that were permitted to, and are `unwritten`, still will.
    pub fn pace<'a>(&self, now: Timestamp, unwritten: impl Iterator<Item = &'a Arc<str>>) -> usize {
        let is_recent = |at: &Timestamp| now.duration_since(*at) < PACE;
        let recent = self.slept.values().filter(|(at, _)| is_recent(at)).count();
        let older = unwritten.filter(|name| !self.slept.get(*name).is_some_and(|(at, _)| is_recent(at))).count();
        self.limits.per_minute.saturating_sub(recent + older)
    }

    /// When the pace allows the next one.
    pub fn next_place(&self, now: Timestamp) -> Timestamp {
        let oldest = self.slept.values().map(|(at, _)| *at).filter(|at| now.duration_since(*at) < PACE).min();
        oldest.and_then(|at| at.checked_add(PACE).ok()).unwrap_or(now)
    }

    /// Counts who is due against what is allowed. `true` when that opens it.
    pub fn count(&mut self, tenants: usize, due: &[DueTenant], now: Timestamp) -> bool {
        self.slept.retain(|_, (at, _)| now.duration_since(*at) < WINDOW);
        let released = self.saved.released_at.filter(|at| now.duration_since(*at) < RELEASE_COUNTS);
        let news = |due_at: Timestamp| released.is_none_or(|released| due_at > released);
        let waiting = due.iter().filter(|tenant| news(tenant.due_at));
        let slept = self.slept.iter().filter(|(_, (_, due_at))| news(*due_at));
        let names: std::collections::HashSet<&str> =
            waiting.map(|tenant| &*tenant.name).chain(slept.map(|(name, _)| &**name)).collect();
        let (count, allowed) = (names.len(), self.limits.allowed(tenants));
        if count <= allowed {
            return false;
        }
        let because = if self.policies_changed { " after the tier catalogue changed" } else { "" };
        let message =
            format!("{count} of {tenants} tenants became due to sleep within an hour{because}; at most {allowed} may");
        let reason = if self.policies_changed { Trip::PolicyChange } else { Trip::TooMany };
        self.trip(reason, message, now)
    }

    /// Looks at the clocks. `true` when that opens it.
    pub fn clocks(&mut self, wall: Timestamp, monotonic: Instant) -> bool {
        let Some((wall_before, monotonic_before)) = self.clocks.replace((wall, monotonic)) else { return false };
        let passed = monotonic.saturating_duration_since(monotonic_before);
        let jump = wall.duration_since(wall_before) - signed(passed);
        if jump.abs() <= self.limits.clock_tolerance {
            return false;
        }
        self.trip(Trip::ClockJump, format!("the wall clock jumped by {}", words(jump)), wall)
    }

    /// What the API server's clock says, so far ahead of ours. `true` when that opens it.
    pub fn api_clock(&mut self, ahead: SignedDuration, now: Timestamp) -> bool {
        if ahead.abs() <= self.limits.clock_tolerance {
            return false;
        }
        self.trip(Trip::ClockDiffers, format!("the API server's clock is {} ahead of this one", words(ahead)), now)
    }

    /// When anybody's activity was last reported; where it never was, since when each tenant is there. `true` when that opens it.
    /// To be asked before [`Breaker::count`]: a broken feed is the cause, and many that become due its effect.
    pub fn feed(&mut self, newest: Option<Timestamp>, known: impl Iterator<Item = Timestamp>, now: Timestamp) -> bool {
        let Some(limit) = self.limits.feed_silence else { return false };
        if newest.or_else(|| known.min()).is_none_or(|last| now.duration_since(last) <= limit) {
            return false;
        }
        let message = match newest {
            None => "no activity of any tenant was ever reported".to_owned(),
            Some(_) => format!("no activity of any tenant was reported for more than {}", words(limit)),
        };
        self.trip(Trip::FeedSilent, message, now)
    }

    /// The first reason stays: it is the one to look at.
    fn trip(&mut self, reason: Trip, message: String, now: Timestamp) -> bool {
        if self.saved.open.is_some() {
            return false;
        }
        self.saved.open = Some(Open { reason, message, since: now });
        true
    }
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

/// A duration for people, in its two largest units.
fn words(duration: SignedDuration) -> String {
    let seconds = duration.as_secs();
    let sign = if seconds < 0 { "-" } else { "" };
    let seconds = seconds.unsigned_abs();
    let units = [(seconds / 86_400, "d"), (seconds / 3_600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let first = units.iter().position(|(count, _)| *count > 0).unwrap_or(3);
    let shown = units[first..].iter().take(2).filter(|(count, _)| *count > 0);
    let text: Vec<String> = shown.map(|(count, unit)| format!("{count}{unit}")).collect();
    if text.is_empty() { "0s".to_owned() } else { format!("{sign}{}", text.join(" ")) }
}

#[cfg(test)]
#[path = "tests/breaker.rs"]
mod tests;

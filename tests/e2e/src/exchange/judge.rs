//! What a record says about how bots were treated. Bots hold money: a stop that leaves an order open, a fill of an
//! order that nobody tends, and two copies of one bot are what must never be.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::Serialize;

use super::record::{Entry, Event};

/// One copy of a bot, from its first sign of life to its last.
#[derive(Serialize, Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The bot.
    pub bot: String,
    /// This copy.
    pub instance: String,
    /// Its first sign of life, as place in the record and time.
    pub first: Moment,
    /// Its last sign of life so far.
    pub last: Moment,
    /// When it was given the lock.
    pub locked: Option<Moment>,
    /// When it said that it was asked to stop.
    pub stopping: Option<Moment>,
    /// How its hold of the lock ended.
    pub end: Option<End>,
    /// Orders that it placed.
    pub placed: usize,
    /// Its orders that were cancelled, by itself or by a later copy.
    pub cancelled: usize,
    /// Its orders that are open at the end of the record.
    pub open: BTreeSet<u64>,
    /// Its orders that were open when its hold ended.
    pub left_open: BTreeSet<u64>,
    /// Its orders that were filled, and when.
    pub filled: BTreeMap<u64, Moment>,
    /// Orders that it still tried to place after its hold had ended.
    pub late_orders: usize,
}

/// A place in the record and its time.
#[derive(Serialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    /// Index of the entry.
    pub entry: usize,
    /// Milliseconds of the monotonic clock.
    pub at: u64,
}

/// How the hold of a lock ended.
#[derive(Serialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// The bot gave it back.
    Unlocked(Moment),
    /// The bot fell silent; its last sign of life was at this time.
    Silent(u64),
}

impl Run {
    /// Whether the bot stopped in good order: asked to, nothing left open, lock given back.
    pub fn was_graceful(&self) -> bool {
        matches!((self.stopping, self.end), (Some(_), Some(End::Unlocked(_)))) && self.left_open.is_empty()
    }

    fn filled_after_end(&self) -> impl Iterator<Item = (&u64, &Moment)> {
        self.filled.iter().filter(|(_, moment)| match self.end {
            Some(End::Unlocked(end)) => **moment > end,
            Some(End::Silent(last)) => moment.at > last,
            None => false,
        })
    }
}

/// What must not have happened.
#[derive(Serialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Violation {
    /// A bot ended and left orders open.
    LeftOpen {
        /// The copy of the bot.
        instance: String,
        /// The orders.
        orders: BTreeSet<u64>,
    },
    /// Somebody traded with the order of a bot that was gone.
    FilledAfterStop {
        /// The copy of the bot.
        instance: String,
        /// The order.
        order: u64,
    },
    /// A bot that had given its lock back wanted to trade.
    OrderAfterStop {
        /// The copy of the bot.
        instance: String,
    },
    /// Two copies of one bot ran at the same time.
    TwoCopies {
        /// The copy that started first.
        first: String,
        /// The copy that started before the first one's end.
        second: String,
    },
    /// The exchange gave the lock of a bot to two copies of it.
    TwoHolders {
        /// The copy that had it.
        first: String,
        /// The copy that was given it, too.
        second: String,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::LeftOpen { instance, orders } => write!(f, "{instance} ended and left orders {orders:?} open"),
            Violation::FilledAfterStop { instance, order } => {
                write!(f, "order {order} was filled after {instance} had ended")
            }
            Violation::OrderAfterStop { instance } => write!(f, "{instance} wanted to trade after it had ended"),
            Violation::TwoCopies { first, second } => write!(f, "{first} and {second} ran at the same time"),
            Violation::TwoHolders { first, second } => write!(f, "{first} and {second} had the lock at the same time"),
        }
    }
}

/// Every copy of every bot, in the order in which they appeared.
pub fn runs(entries: &[Entry]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    let mut owners: BTreeMap<u64, usize> = BTreeMap::new();
    for (index, entry) in entries.iter().enumerate() {
        let moment = Moment { entry: index, at: entry.at };
        let place = *places.entry(&entry.instance).or_insert_with(|| {
            runs.push(Run::new(entry, moment));
            runs.len() - 1
        });
        let run = &mut runs[place];
        if entry.event.is_activity() {
            run.last = moment;
        }
        match &entry.event {
            Event::Locked => {
                run.locked.get_or_insert(moment);
            }
            Event::Stopping => {
                run.stopping.get_or_insert(moment);
            }
            Event::Unlocked => run.ends(End::Unlocked(moment)),
            Event::Lapsed { last } => run.ends(End::Silent(*last)),
            Event::Placed { order, .. } => {
                run.placed += 1;
                run.open.insert(*order);
                owners.insert(*order, place);
            }
            Event::Rejected { .. } if run.end.is_some() => run.late_orders += 1,
            Event::Cancelled { order } => {
                if let Some(owner) = owners.get(order) {
                    runs[*owner].cancelled += 1;
                    runs[*owner].open.remove(order);
                }
            }
            Event::Filled { order } => {
                if let Some(owner) = owners.get(order) {
                    runs[*owner].open.remove(order);
                    runs[*owner].filled.insert(*order, moment);
                }
            }
            Event::Refused { .. } | Event::Heartbeat { .. } | Event::Rejected { .. } => {}
        }
    }
    runs
}

impl Run {
    fn new(entry: &Entry, moment: Moment) -> Self {
        Run {
            bot: entry.bot.clone(),
            instance: entry.instance.clone(),
            first: moment,
            last: moment,
            locked: None,
            stopping: None,
            end: None,
            placed: 0,
            cancelled: 0,
            open: BTreeSet::new(),
            left_open: BTreeSet::new(),
            filled: BTreeMap::new(),
            late_orders: 0,
        }
    }

    fn ends(&mut self, end: End) {
        self.end = Some(end);
        self.left_open = self.open.clone();
    }
}

/// Everything that must not have happened.
pub fn violations(entries: &[Entry]) -> Vec<Violation> {
    let runs = runs(entries);
    let mut found = left_open(&runs);
    found.extend(after_stop(&runs));
    found.extend(two_copies(&runs));
    found.extend(two_holders(entries));
    found
}

/// Ends that left orders open.
pub fn left_open(runs: &[Run]) -> Vec<Violation> {
    let left = runs.iter().filter(|run| !run.left_open.is_empty());
    left.map(|run| Violation::LeftOpen { instance: run.instance.clone(), orders: run.left_open.clone() }).collect()
}

/// Fills and orders after an end.
pub fn after_stop(runs: &[Run]) -> Vec<Violation> {
    let mut found = Vec::new();
    for run in runs {
        let instance = || run.instance.clone();
        found.extend(
            run.filled_after_end().map(|(order, _)| Violation::FilledAfterStop { instance: instance(), order: *order }),
        );
        found.extend((run.late_orders > 0).then(|| Violation::OrderAfterStop { instance: instance() }));
    }
    found
}

/// Copies of one bot whose signs of life are not strictly one after the other. This does not look at the lock: a copy
/// that was refused it ran all the same.
pub fn two_copies(runs: &[Run]) -> Vec<Violation> {
    let mut found = Vec::new();
    for (index, first) in runs.iter().enumerate() {
        let later = runs[index + 1..].iter().filter(|second| second.bot == first.bot && second.first < first.last);
        found.extend(
            later.map(|second| Violation::TwoCopies { first: first.instance.clone(), second: second.instance.clone() }),
        );
    }
    found
}

/// Locks that two copies had at once: a check of the exchange itself, from nothing but grants and ends.
pub fn two_holders(entries: &[Entry]) -> Vec<Violation> {
    let mut holders: BTreeMap<&str, &str> = BTreeMap::new();
    let mut found = Vec::new();
    for entry in entries {
        match &entry.event {
            Event::Locked => {
                if let Some(first) = holders.insert(&entry.bot, &entry.instance) {
                    found.push(Violation::TwoHolders { first: first.to_owned(), second: entry.instance.clone() });
                }
            }
            Event::Unlocked | Event::Lapsed { .. } => {
                holders.remove(entry.bot.as_str());
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::record::Side;

    /// A record of entries `(time, instance, event)`; the bot is the instance's name before `@`.
    fn record(entries: &[(u64, &str, Event)]) -> Vec<Entry> {
        let entry = |(at, instance, event): &(u64, &str, Event)| {
            let (bot, _) = instance.split_once('@').expect("bot@start");
            Entry { at: *at, bot: bot.to_owned(), instance: (*instance).to_owned(), event: event.clone() }
        };
        entries.iter().map(entry).collect()
    }

    fn placed(order: u64) -> Event {
        Event::Placed { order, side: Side::Buy, price: "1".into(), amount: "1".into() }
    }

    const HELD: Event = Event::Heartbeat { held: true };

    #[test]
    fn a_stop_in_good_order_is_no_violation() {
        let entries = record(&[
            (1, "a@1", Event::Locked),
            (2, "a@1", placed(1)),
            (3, "a@1", placed(2)),
            (4, "a@1", Event::Filled { order: 1 }),
            (5, "a@1", Event::Stopping),
            (6, "a@1", Event::Cancelled { order: 2 }),
            (7, "a@1", Event::Unlocked),
            (8, "a@2", Event::Locked),
            (9, "a@2", placed(3)),
        ]);
        assert_eq!(violations(&entries), []);
        let runs = runs(&entries);
        assert!(runs[0].was_graceful() && !runs[1].was_graceful());
        assert_eq!((runs[0].placed, runs[0].cancelled, runs[0].filled.len()), (2, 1, 1));
        assert_eq!(runs[1].open, [3].into());
    }

    #[test]
    fn an_order_left_open_is_seen_and_so_is_its_fill() {
        let entries = record(&[
            (1, "a@1", Event::Locked),
            (2, "a@1", placed(1)),
            (3, "a@1", placed(2)),
            (4, "a@1", Event::Stopping),
            (5, "a@1", Event::Unlocked),
            (5, "a@1", Event::Filled { order: 1 }),
        ]);
        let instance = || "a@1".to_owned();
        assert_eq!(
            violations(&entries),
            [
                Violation::LeftOpen { instance: instance(), orders: [1, 2].into() },
                Violation::FilledAfterStop { instance: instance(), order: 1 },
            ]
        );
        assert!(!runs(&entries)[0].was_graceful());
    }

    #[test]
    fn a_killed_bot_ends_at_its_last_sign_of_life() {
        let entries = record(&[
            (1, "a@1", Event::Locked),
            (2, "a@1", placed(1)),
            (3, "a@1", placed(2)),
            (9, "a@1", Event::Filled { order: 1 }),
            (14, "a@1", Event::Lapsed { last: 3 }),
            (15, "a@2", Event::Locked),
            (16, "a@2", Event::Cancelled { order: 2 }),
        ]);
        let instance = || "a@1".to_owned();
        assert_eq!(
            violations(&entries),
            [
                Violation::LeftOpen { instance: instance(), orders: [2].into() },
                Violation::FilledAfterStop { instance: instance(), order: 1 },
            ]
        );
        assert!(runs(&entries)[0].open.is_empty(), "the later copy cleaned up");
    }

    #[test]
    fn a_second_copy_is_seen_even_though_it_never_got_the_lock() {
        let copies = |entries: &[(u64, &str, Event)]| violations(&record(entries)).len();
        let refused = || Event::Refused { holder: "a@1".into() };
        assert_eq!(copies(&[(1, "a@1", Event::Locked), (2, "a@2", refused()), (2, "a@1", HELD)]), 1);
        // A restart after a crash: nothing is heard of the first any more.
        assert_eq!(
            copies(&[
                (1, "a@1", Event::Locked),
                (2, "a@1", HELD),
                (3, "a@2", refused()),
                (9, "a@1", Event::Lapsed { last: 2 }),
                (9, "a@2", Event::Locked),
            ]),
            0
        );
        assert_eq!(copies(&[(1, "a@1", Event::Locked), (2, "b@1", Event::Locked), (3, "a@1", HELD)]), 0);
    }

    #[test]
    fn two_holders_and_late_orders_are_seen() {
        let entries = record(&[
            (1, "a@1", Event::Locked),
            (2, "a@2", Event::Locked),
            (3, "a@2", Event::Unlocked),
            (4, "a@2", Event::Rejected { reason: "no lock".into() }),
        ]);
        assert_eq!(
            violations(&entries),
            [
                Violation::OrderAfterStop { instance: "a@2".into() },
                Violation::TwoHolders { first: "a@1".into(), second: "a@2".into() },
            ]
        );
    }
}

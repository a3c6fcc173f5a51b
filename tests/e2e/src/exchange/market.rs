//! What the exchange answers. Nothing here reads a clock or a socket.

use std::{collections::BTreeMap, mem, time::Duration};

use serde::{Deserialize, Serialize};

use super::record::{Entry, Event, Side};

/// How the exchange behaves.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// How long after its last sign of life a bot keeps its lock.
    pub lease: Duration,
    /// How long an order stays open before somebody may trade with it.
    pub fill_after: Duration,
}

/// Every third order finds somebody who trades with it; the others stay open until they are cancelled.
const FILLED: u64 = 3;

/// A request of one copy of a bot.
#[derive(Deserialize, Clone, Debug)]
pub struct Request {
    /// The bot.
    pub bot: String,
    /// The copy that asks.
    pub instance: String,
    /// What it wants.
    #[serde(flatten)]
    pub wish: Wish,
}

/// What a bot can want.
#[derive(Deserialize, Clone, Debug)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Wish {
    /// To be the one copy that trades.
    Lock,
    /// To keep the lock.
    Heartbeat,
    /// To have it known that it was asked to stop.
    Stopping,
    /// To give the lock back.
    Unlock,
    /// A new order.
    Place {
        /// Buy or sell.
        side: Side,
        /// For how much.
        price: String,
        /// How much.
        amount: String,
    },
    /// To take an order back.
    Cancel {
        /// Its number.
        order: u64,
    },
    /// The open orders of all copies of the bot.
    Orders,
}

/// The answer.
#[derive(Serialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It is done.
    Done,
    /// The order's number.
    Order(u64),
    /// The open orders.
    Orders(Vec<u64>),
    /// The order is not open any more, so there is nothing to cancel.
    NotOpen,
    /// It is not done, and why.
    Refused(String),
}

/// An exchange with nothing but locks and orders.
#[derive(Debug)]
pub struct Market {
    rules: Rules,
    locks: BTreeMap<String, Lock>,
    orders: BTreeMap<u64, Order>,
    last_order: u64,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Lock {
    instance: String,
    last: u64,
}

#[derive(Debug)]
struct Order {
    bot: String,
    instance: String,
    placed: u64,
}

impl Market {
    /// An exchange without bots.
    pub fn new(rules: Rules) -> Self {
        Self { rules, locks: BTreeMap::new(), orders: BTreeMap::new(), last_order: 0, entries: Vec::new() }
    }

    /// Answers a request at a time in milliseconds.
    pub fn handle(&mut self, at: u64, request: &Request) -> Answer {
        self.pass(at);
        let (bot, instance) = (request.bot.as_str(), request.instance.as_str());
        let holder = self.locks.get(bot).map(|lock| lock.instance.clone());
        let held = holder.as_deref() == Some(instance);
        if let Some(lock) = self.locks.get_mut(bot).filter(|_| held) {
            lock.last = at;
        }
        let (event, answer) = match &request.wish {
            Wish::Lock => match holder {
                Some(holder) if !held => {
                    let reason = format!("{holder} has the lock");
                    (Event::Refused { holder }, Answer::Refused(reason))
                }
                Some(_) => (Event::Heartbeat { held }, Answer::Done),
                None => {
                    self.locks.insert(bot.to_owned(), Lock { instance: instance.to_owned(), last: at });
                    (Event::Locked, Answer::Done)
                }
            },
            Wish::Heartbeat if held => (Event::Heartbeat { held }, Answer::Done),
            Wish::Heartbeat => (Event::Heartbeat { held }, without_lock()),
            Wish::Stopping => (Event::Stopping, Answer::Done),
            Wish::Unlock if held => {
                self.locks.remove(bot);
                (Event::Unlocked, Answer::Done)
            }
            Wish::Place { side, price, amount } if held => {
                self.last_order += 1;
                let order = self.last_order;
                let of = Order { bot: bot.to_owned(), instance: instance.to_owned(), placed: at };
                self.orders.insert(order, of);
                let event = Event::Placed { order, side: *side, price: price.clone(), amount: amount.clone() };
                (event, Answer::Order(order))
            }
            Wish::Cancel { order } if held => match self.orders.get(order) {
                Some(open) if open.bot == bot => {
                    self.orders.remove(order);
                    (Event::Cancelled { order: *order }, Answer::Done)
                }
                // Filled a moment ago, as happens to every bot: nothing that the record should call a fault.
                _ => return Answer::NotOpen,
            },
            Wish::Unlock | Wish::Place { .. } | Wish::Cancel { .. } => {
                (Event::Rejected { reason: "without the lock".to_owned() }, without_lock())
            }
            Wish::Orders => {
                let of_bot = self.orders.iter().filter(|(_, order)| order.bot == bot);
                return Answer::Orders(of_bot.map(|(number, _)| *number).collect());
            }
        };
        self.note(at, bot.to_owned(), instance.to_owned(), event);
        answer
    }

    /// What happens by itself until a time: locks of silent bots end, orders find a partner.
    pub fn pass(&mut self, at: u64) {
        let (lease, fill_after) = (millis(self.rules.lease), millis(self.rules.fill_after));
        let silent = |lock: &Lock| at.saturating_sub(lock.last) > lease;
        let ended: Vec<String> = keys(&self.locks, |_, lock| silent(lock));
        for bot in ended {
            if let Some(lock) = self.locks.remove(&bot) {
                self.note(at, bot, lock.instance, Event::Lapsed { last: lock.last });
            }
        }
        let ripe = |order: &Order| at.saturating_sub(order.placed) >= fill_after;
        let filled: Vec<u64> = keys(&self.orders, |number, order| number.is_multiple_of(FILLED) && ripe(order));
        for number in filled {
            if let Some(order) = self.orders.remove(&number) {
                self.note(at, order.bot, order.instance, Event::Filled { order: number });
            }
        }
    }

    /// What happened since the last call.
    pub fn take_entries(&mut self) -> Vec<Entry> {
        mem::take(&mut self.entries)
    }

    fn note(&mut self, at: u64, bot: String, instance: String, event: Event) {
        self.entries.push(Entry { at, bot, instance, event });
    }
}

fn keys<K: Clone, V>(map: &BTreeMap<K, V>, mut wanted: impl FnMut(&K, &V) -> bool) -> Vec<K> {
    map.iter().filter(|(key, value)| wanted(key, value)).map(|(key, _)| key.clone()).collect()
}

fn without_lock() -> Answer {
    Answer::Refused("another copy has the lock, or nobody".to_owned())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::exchange::judge;

    const RULES: Rules = Rules { lease: Duration::from_secs(10), fill_after: Duration::from_secs(3) };

    /// The bot is the instance's name before `@`.
    fn ask(market: &mut Market, at: u64, instance: &str, wish: serde_json::Value) -> Answer {
        let (bot, _) = instance.split_once('@').expect("bot@start");
        let mut request = json!({"bot": bot, "instance": instance});
        request.as_object_mut().expect("an object").extend(wish.as_object().expect("an object").clone());
        market.handle(at, &serde_json::from_value(request).expect("a request"))
    }

    fn place(market: &mut Market, at: u64, instance: &str) -> Answer {
        ask(market, at, instance, json!({"do": "place", "side": "sell", "price": "101", "amount": "0.1"}))
    }

    #[test]
    fn one_copy_at_a_time_has_the_lock_and_only_it_trades() {
        let mut market = Market::new(RULES);
        assert_eq!(ask(&mut market, 0, "a@1", json!({"do": "lock"})), Answer::Done);
        assert!(matches!(ask(&mut market, 1, "a@2", json!({"do": "lock"})), Answer::Refused(_)));
        assert!(matches!(place(&mut market, 2, "a@2"), Answer::Refused(_)));
        assert_eq!(place(&mut market, 3, "a@1"), Answer::Order(1));
        assert!(matches!(ask(&mut market, 4, "a@2", json!({"do": "cancel", "order": 1})), Answer::Refused(_)));
        assert!(matches!(ask(&mut market, 4, "a@2", json!({"do": "unlock"})), Answer::Refused(_)));
        assert_eq!(ask(&mut market, 4, "b@1", json!({"do": "lock"})), Answer::Done);
        assert_eq!(ask(&mut market, 4, "b@1", json!({"do": "cancel", "order": 1})), Answer::NotOpen);
        assert_eq!(ask(&mut market, 4, "b@1", json!({"do": "orders"})), Answer::Orders(Vec::new()));
        assert_eq!(ask(&mut market, 5, "a@1", json!({"do": "cancel", "order": 1})), Answer::Done);
        assert_eq!(ask(&mut market, 5, "a@1", json!({"do": "cancel", "order": 1})), Answer::NotOpen);
        assert_eq!(ask(&mut market, 6, "a@1", json!({"do": "unlock"})), Answer::Done);
        assert_eq!(ask(&mut market, 7, "a@2", json!({"do": "lock"})), Answer::Done);
        let entries = market.take_entries();
        assert_eq!(judge::two_holders(&entries), []);
        assert_eq!(judge::two_copies(&judge::runs(&entries)).len(), 1);
    }

    #[test]
    fn a_lock_lasts_for_its_lease_after_the_last_sign_of_life() {
        let mut market = Market::new(RULES);
        ask(&mut market, 0, "a@1", json!({"do": "lock"}));
        assert_eq!(ask(&mut market, 9_000, "a@1", json!({"do": "heartbeat"})), Answer::Done);
        assert!(matches!(ask(&mut market, 19_000, "a@2", json!({"do": "lock"})), Answer::Refused(_)));
        assert_eq!(ask(&mut market, 19_001, "a@2", json!({"do": "lock"})), Answer::Done);
        assert!(matches!(ask(&mut market, 19_002, "a@1", json!({"do": "heartbeat"})), Answer::Refused(_)));
        let lapsed = Event::Lapsed { last: 9_000 };
        assert!(market.take_entries().iter().any(|entry| entry.event == lapsed && entry.instance == "a@1"));
    }

    #[test]
    fn every_third_order_is_filled_when_it_has_been_open_for_a_while() {
        let mut market = Market::new(RULES);
        ask(&mut market, 0, "a@1", json!({"do": "lock"}));
        for order in 1..=4 {
            assert_eq!(place(&mut market, 100, "a@1"), Answer::Order(order));
        }
        assert_eq!(ask(&mut market, 3_099, "a@1", json!({"do": "orders"})), Answer::Orders(vec![1, 2, 3, 4]));
        assert_eq!(ask(&mut market, 3_100, "a@1", json!({"do": "orders"})), Answer::Orders(vec![1, 2, 4]));
        // Nobody tends them any more, and that is seen.
        ask(&mut market, 3_200, "a@1", json!({"do": "unlock"}));
        assert_eq!(judge::violations(&market.take_entries()).len(), 1);
    }
}

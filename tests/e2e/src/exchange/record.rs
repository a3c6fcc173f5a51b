//! What happened at the exchange, one JSON object a line, in the order in which it happened.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// One line of the record.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Milliseconds of the machine's monotonic clock, which all its processes share.
    pub at: u64,
    /// The bot, e.g. `tenant-alice-bots-makers-0`: the same for every copy of it.
    pub bot: String,
    /// This copy of the bot: its host name and when it started.
    pub instance: String,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// What can happen. All but `Filled` and `Lapsed` are requests of the instance.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The instance was given the bot's lock.
    Locked,
    /// The instance asked for the lock while another had it.
    Refused {
        /// The instance that had it.
        holder: String,
    },
    /// A sign of life.
    Heartbeat {
        /// Whether the instance still has the lock.
        held: bool,
    },
    /// The instance said that it was asked to stop.
    Stopping,
    /// The instance gave the lock back: it trades no more.
    Unlocked,
    /// The lock was taken from an instance that gave no sign of life for too long.
    Lapsed {
        /// When it gave the last one.
        last: u64,
    },
    /// A new order.
    Placed {
        /// Its number.
        order: u64,
        /// Buy or sell.
        side: Side,
        /// For how much, as the bot wrote it.
        price: String,
        /// How much, as the bot wrote it.
        amount: String,
    },
    /// An order, or the cancellation of one, that the exchange did not accept.
    Rejected {
        /// Why.
        reason: String,
    },
    /// The order was taken back.
    Cancelled {
        /// Its number.
        order: u64,
    },
    /// Somebody traded with the order.
    Filled {
        /// Its number.
        order: u64,
    },
}

impl Event {
    /// Whether the instance itself did something, which shows that it ran.
    pub fn is_activity(&self) -> bool {
        !matches!(self, Event::Filled { .. } | Event::Lapsed { .. })
    }
}

/// Side of an order.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Buy.
    Buy,
    /// Sell.
    Sell,
}

/// Reads the record that the exchange wrote. A last line without its end is one that is being written.
pub fn read(file: &Path) -> Result<Vec<Entry>> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read the record {}", file.display()))?;
    parse(&text).with_context(|| format!("{} is no record of the exchange", file.display()))
}

fn parse(text: &str) -> Result<Vec<Entry>> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_read_back_as_they_were_written() {
        let entry = |event| Entry { at: 7, bot: "a".into(), instance: "a@1".into(), event };
        let entries = [
            entry(Event::Refused { holder: "a@0".into() }),
            entry(Event::Placed { order: 3, side: Side::Buy, price: "99.5".into(), amount: "1".into() }),
            entry(Event::Lapsed { last: 5 }),
        ];
        let lines: Vec<String> =
            entries.iter().map(|entry| serde_json::to_string(entry).expect("plain data")).collect();
        assert_eq!(lines[0], r#"{"at":7,"bot":"a","instance":"a@1","event":"refused","holder":"a@0"}"#);
        let text = lines.join("\n") + "\n{\"at\":8,\"bo";
        assert_eq!(parse(&text).expect("well-formed"), entries);
        assert!(parse("").expect("empty").is_empty());
        assert!(parse("nonsense\n").is_err());
    }
}

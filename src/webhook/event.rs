//! What a receiver is told, as a CloudEvent.

use jiff::Timestamp;
use serde::Serialize;

use crate::{api::Tier, domain::stage::Stage};

/// The media type of a CloudEvent that is JSON as a whole.
pub(super) const MEDIA_TYPE: &str = "application/cloudevents+json; charset=utf-8";

/// What [`is_id`] demands.
pub(super) const ID_RULE: &str = "it must be of 1 to 256 visible ASCII characters without a full stop";

/// Whether an id can stand in a header, and in the signed text, whose parts full stops divide.
pub(super) fn is_id(id: &str) -> bool {
    (1..=256).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'.')
}

/// What kind of answer a warning asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The tenant falls asleep at the deadline unless its user is active before.
    Warning,
    /// The tenant falls asleep only if its user agrees.
    Question,
}

impl Kind {
    /// The event's `type`.
    pub const fn event_type(self) -> &'static str {
        match self {
            Kind::Warning => "dev.torpor.tenant.sleep.warning",
            Kind::Question => "dev.torpor.tenant.sleep.question",
        }
    }
}

/// What the user of one tenant has to be told before a stage of sleep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// What receivers recognise a repetition by: the same in every attempt for one warning, another one for every other
    /// warning. 1 to 256 visible ASCII characters without a full stop, since full stops divide what is signed.
    pub id: String,
    /// Whether it tells or asks.
    pub kind: Kind,
    /// The tenant's name, which is the event's subject as well.
    pub tenant: String,
    /// The tenant's tier.
    pub tier: Tier,
    /// The stage that will be entered.
    pub stage: Stage,
    /// When it will be entered, at the earliest.
    pub deadline: Timestamp,
    /// The newest activity that is known; the tenant has been idle since.
    pub idle_since: Timestamp,
    /// A sentence or two for a person.
    pub message: String,
}

#[derive(Serialize)]
struct CloudEvent<'a> {
    specversion: &'static str,
    id: &'a str,
    source: &'a str,
    #[serde(rename = "type")]
    event_type: &'static str,
    subject: &'a str,
    time: Timestamp,
    datacontenttype: &'static str,
    data: Data<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Data<'a> {
    tenant: &'a str,
    tier: Tier,
    stage: Stage,
    deadline: Timestamp,
    idle_since: Timestamp,
    message: &'a str,
}

/// The event as it is sent: one line of JSON.
///
/// # Errors
/// Those of `serde_json`, which has no cause to fail here.
pub(super) fn body(warning: &Warning, source: &str, now: Timestamp) -> Result<Vec<u8>, serde_json::Error> {
    let Warning { id, kind, tenant, tier, stage, deadline, idle_since, message } = warning;
    serde_json::to_vec(&CloudEvent {
        specversion: "1.0",
        id,
        source,
        event_type: kind.event_type(),
        subject: tenant,
        time: now,
        datacontenttype: "application/json",
        data: Data { tenant, tier: *tier, stage: *stage, deadline: *deadline, idle_since: *idle_since, message },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_fits_into_a_header_and_divides_nothing() {
        for id in ["x", "acme/BotsStopped@1767225600", &"x".repeat(256)] {
            assert!(is_id(id), "{id}");
        }
        for id in ["", "a.b", "a b", "a\r\nx-forged: 1", "größe", &"x".repeat(257)] {
            assert!(!is_id(id), "{id}");
        }
    }
}

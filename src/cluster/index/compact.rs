//! Entries as the index keeps them: texts that many have in common are kept once, and those that are numbers as numbers.
//!
//! A tenant has some 25 objects or more, and an operator thousands of tenants: what one entry takes decides what Torpor takes.

use std::collections::HashSet;
use std::hash::Hash;
use std::num::NonZeroI64;
use std::sync::Arc;

use jiff::Timestamp;

use super::{Entry, Facts, Fields, Keys, Slot};
use crate::domain::names::Component;

/// An object's identity: a UUID, as all API servers give it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Uid {
    Uuid([u64; 2]),
    Other(Box<str>),
}

impl Uid {
    pub(super) fn read(text: &str) -> Self {
        match uuid::Uuid::try_parse(text) {
            // Only what is written back as it was read.
            Ok(uuid) if uuid.hyphenated().to_string() == text => {
                let (high, low) = uuid.as_u64_pair();
                Self::Uuid([high, low])
            }
            _ => Self::Other(text.into()),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Uuid([high, low]) => uuid::Uuid::from_u64_pair(*high, *low).hyphenated().to_string(),
            Self::Other(text) => text.to_string(),
        }
    }
}

/// A hash as [`crate::plan::hash::of`] writes it, or what somebody else has written in its place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Mark {
    #[default]
    Absent,
    Hash(u64),
    Other(Odd),
}

/// A text where a hash belongs: so seldom that one word must do for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Odd(Box<Box<str>>);

impl Mark {
    pub(super) fn read(text: Option<&str>) -> Self {
        let Some(text) = text else { return Self::Absent };
        match u64::from_str_radix(text, 16) {
            Ok(hash) if format!("{hash:016x}") == text => Self::Hash(hash),
            _ => Self::Other(Odd(Box::new(text.into()))),
        }
    }

    fn text(&self) -> Option<String> {
        match self {
            Self::Absent => None,
            Self::Hash(hash) => Some(format!("{hash:016x}")),
            Self::Other(text) => Some(text.0.to_string()),
        }
    }
}

/// The fewest that are worth a look whether they are still needed.
pub(super) const FEW: usize = 256;

/// What entries share.
#[derive(Debug)]
pub(super) struct Pool<T: ?Sized> {
    known: HashSet<Arc<T>>,
    /// How many there may be before those are forgotten that no entry has any more.
    limit: usize,
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self { known: HashSet::new(), limit: 0 }
    }
}

impl<T: Eq + Hash + ?Sized> Pool<T> {
    /// The same, as others have it.
    pub(super) fn shared<'a>(&mut self, wanted: &'a T) -> Arc<T>
    where
        Arc<T>: From<&'a T>,
    {
        if let Some(known) = self.known.get(wanted) {
            return known.clone();
        }
        if self.known.len() >= self.limit {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.limit = FEW + 2 * self.known.len();
        }
        let wanted: Arc<T> = wanted.into();
        self.known.insert(wanted.clone());
        wanted
    }

    /// Forgets what nobody has any more.
    pub(super) fn give_back(&mut self, known: Arc<T>) {
        // This one and the one that is known.
        if Arc::strong_count(&known) <= 2 {
            self.known.remove(&known);
        }
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.known.len()
    }
}

/// All that entries share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) texts: Pool<str>,
    pub(super) kin: Pool<Kin>,
}

/// Whose an object is. Most objects of a tenant have it in common with others.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Kin {
    owner: Option<Uid>,
    tenant: Option<Arc<str>>,
    fleet: Option<Arc<str>>,
}

impl From<&Kin> for Arc<Kin> {
    fn from(kin: &Kin) -> Self {
        Arc::new(kin.clone())
    }
}

/// What only workloads and pods have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Extra {
    changed_in_part: bool,
    /// Seconds since 1970; Kubernetes' times have no fractions.
    ends: Option<NonZeroI64>,
    restart_hash: Mark,
    desired: Option<i32>,
    facts: Facts,
    node: Option<Arc<str>>,
    keys: Option<Keys>,
}

impl Extra {
    fn boxed(self) -> Option<Box<Self>> {
        (self != Self::default()).then(|| Box::new(self))
    }
}

/// One entry.
#[derive(Clone, Debug)]
pub(super) struct Compact {
    pub(super) slot: Slot,
    pub(super) deleting: bool,
    component: Option<Component>,
    pub(super) name: Arc<str>,
    pub(super) uid: Uid,
    pub(super) version: u64,
    generation: i64,
    kin: Arc<Kin>,
    pub(super) applied_hash: Mark,
    pub(super) fields: Fields,
    extra: Option<Box<Extra>>,
}

impl Compact {
    pub(super) fn of(entry: Entry, Shared { texts, kin }: &mut Shared) -> Self {
        let mut shared = |text: Option<String>| text.map(|text| texts.shared(&text));
        let of = Kin {
            owner: entry.owner.map(|uid| Uid::read(&uid)),
            tenant: shared(entry.tenant),
            fleet: shared(entry.fleet),
        };
        let node = shared(entry.node);
        let fields = match entry.fields {
            Fields::Unverified(text) => Fields::Unverified(texts.shared(&text)),
            verified @ Fields::Verified(_) => verified,
        };
        let extra = Extra {
            changed_in_part: entry.changed_in_part,
            ends: entry.ends.and_then(|ends| NonZeroI64::new(ends.as_second())),
            restart_hash: Mark::read(entry.restart_hash.as_deref()),
            desired: entry.desired,
            facts: entry.facts,
            node,
            keys: entry.keys,
        };
        Self {
            slot: entry.slot,
            deleting: entry.deleting,
            component: entry.component,
            name: texts.shared(&entry.name),
            uid: Uid::read(&entry.uid),
            version: entry.version,
            generation: entry.generation,
            kin: kin.shared(&of),
            applied_hash: Mark::read(entry.applied_hash.as_deref()),
            fields,
            extra: extra.boxed(),
        }
    }

    pub(super) fn entry(&self, namespace: &str) -> Entry {
        let text = |text: &Option<Arc<str>>| text.as_deref().map(str::to_owned);
        let extra = self.extra.as_deref().cloned().unwrap_or_default();
        Entry {
            slot: self.slot,
            namespace: namespace.to_owned(),
            name: self.name.to_string(),
            uid: self.uid.text(),
            version: self.version,
            generation: self.generation,
            deleting: self.deleting,
            ends: extra.ends.and_then(|ends| Timestamp::from_second(ends.get()).ok()),
            owner: self.owner(),
            tenant: text(&self.kin.tenant),
            component: self.component,
            fleet: text(&self.kin.fleet),
            applied_hash: self.applied_hash.text(),
            restart_hash: extra.restart_hash.text(),
            changed_in_part: extra.changed_in_part,
            desired: extra.desired,
            facts: extra.facts,
            node: text(&extra.node),
            keys: extra.keys,
            fields: self.fields.clone(),
        }
    }

    pub(super) fn changed_in_part(&self) -> bool {
        self.extra.as_deref().is_some_and(|extra| extra.changed_in_part)
    }

    pub(super) fn facts(&self) -> &Facts {
        self.extra.as_deref().map_or(&Facts::None, |extra| &extra.facts)
    }

    /// Node of a pod that has not ended.
    pub(super) fn node(&self) -> Option<&Arc<str>> {
        let ended = matches!(self.facts(), Facts::Pod { ended: true, .. });
        self.extra.as_deref().and_then(|extra| extra.node.as_ref()).filter(|_| !ended)
    }

    /// uid of the controlling owner.
    pub(super) fn owner(&self) -> Option<String> {
        self.kin.owner.as_ref().map(Uid::text)
    }

    /// Takes over what the newer picture of the same object does not tell.
    pub(super) fn keep_of(&mut self, known: &Self) {
        let Some(known) = &known.extra else { return };
        let mut extra = self.extra.take().map(|extra| *extra).unwrap_or_default();
        let is_answer = extra.facts == Facts::None;
        if is_answer {
            extra.facts.clone_from(&known.facts);
        }
        // Until its controller tells that it knows the new template it makes pods of the old one.
        let seen = matches!(extra.facts, Facts::Workload { observed_generation, .. } if observed_generation >= self.generation);
        if is_answer || self.slot != Slot::Pod && !seen {
            extra.keys = known.keys.or(extra.keys);
        }
        extra.desired = extra.desired.or(known.desired);
        extra.node = extra.node.or_else(|| known.node.clone());
        self.extra = extra.boxed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_and_hashes_come_back_as_they_were() {
        for text in ["9c3e8a52-7d0e-4b63-9e0b-0a5f4c1d2e3f", "9C3E8A52-7D0E-4B63-9E0B-0A5F4C1D2E3F", "u1", ""] {
            assert_eq!(Uid::read(text).text(), text);
        }
        assert!(matches!(Uid::read("9c3e8a52-7d0e-4b63-9e0b-0a5f4c1d2e3f"), Uid::Uuid(_)));
        for text in ["44136fa355b3678a", "044136fa355b3678", "44136FA355B3678A", "h", "+4136fa355b3678a", ""] {
            assert_eq!(Mark::read(Some(text)).text().as_deref(), Some(text));
        }
        assert!(matches!(Mark::read(Some("44136fa355b3678a")), Mark::Hash(_)));
        assert_eq!(Mark::read(None).text(), None);
    }

    #[test]
    fn an_entry_is_small() {
        // 25 of them and the Tenant are what one tenant takes.
        assert!(size_of::<Compact>() <= 112, "{}", size_of::<Compact>());
        // As much as the allocator gives for it anyway.
        assert!(size_of::<Extra>() <= 112, "{}", size_of::<Extra>());
    }
}

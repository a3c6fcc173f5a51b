//! Entries as the index keeps them: texts that many have in common are kept once, and those that are numbers as numbers.
//!
//! A tenant has some 25 objects or more, and an operator thousands of tenants: what one entry takes decides what Torpor takes.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;

use super::{Entry, Facts, Fields, Slot};

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    Absent,
    Hash(u64),
    Other(Box<str>),
}

impl Mark {
    pub(super) fn read(text: Option<&str>) -> Self {
        let Some(text) = text else { return Self::Absent };
        match u64::from_str_radix(text, 16) {
            Ok(hash) if format!("{hash:016x}") == text => Self::Hash(hash),
            _ => Self::Other(text.into()),
        }
    }

    fn text(&self) -> Option<String> {
        match self {
            Self::Absent => None,
            Self::Hash(hash) => Some(format!("{hash:016x}")),
            Self::Other(text) => Some(text.to_string()),
        }
    }
}

/// Texts that entries share.
#[derive(Debug, Default)]
pub(super) struct Texts {
    known: HashSet<Arc<str>>,
    /// How many there may be before those are forgotten that no entry has any more.
    limit: usize,
}

impl Texts {
    /// The fewest that are worth a look whether they are still needed.
    pub(super) const FEW: usize = 256;

    /// The same text, as others have it.
    pub(super) fn shared(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.known.get(text) {
            return known.clone();
        }
        if self.known.len() >= self.limit {
            self.known.retain(|text| Arc::strong_count(text) > 1);
            self.limit = Self::FEW + 2 * self.known.len();
        }
        let text: Arc<str> = text.into();
        self.known.insert(text.clone());
        text
    }

    /// Forgets a text that nobody has any more.
    pub(super) fn give_back(&mut self, text: Arc<str>) {
        // This one and the one that is known.
        if Arc::strong_count(&text) <= 2 {
            self.known.remove(&text);
        }
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.known.len()
    }
}

/// One entry.
#[derive(Clone, Debug)]
pub(super) struct Compact {
    pub(super) slot: Slot,
    pub(super) deleting: bool,
    resized: bool,
    pub(super) name: Arc<str>,
    pub(super) uid: Uid,
    pub(super) version: u64,
    generation: i64,
    ends: Option<Timestamp>,
    owner: Option<Arc<str>>,
    tenant: Option<Arc<str>>,
    component: Option<Arc<str>>,
    fleet: Option<Arc<str>>,
    pub(super) applied_hash: Mark,
    restart_hash: Mark,
    pub(super) desired: Option<i32>,
    facts: Option<Box<Facts>>,
    pub(super) fields: Fields,
}

impl Compact {
    pub(super) fn of(entry: Entry, texts: &mut Texts) -> Self {
        let mut shared = |text: Option<String>| text.map(|text| texts.shared(&text));
        let (owner, tenant) = (shared(entry.owner), shared(entry.tenant));
        let (component, fleet) = (shared(entry.component), shared(entry.fleet));
        let fields = match entry.fields {
            Fields::Unverified(text) => Fields::Unverified(texts.shared(&text)),
            verified @ Fields::Verified(_) => verified,
        };
        Self {
            slot: entry.slot,
            deleting: entry.deleting,
            resized: entry.resized,
            name: texts.shared(&entry.name),
            uid: Uid::read(&entry.uid),
            version: entry.version,
            generation: entry.generation,
            ends: entry.ends,
            owner,
            tenant,
            component,
            fleet,
            applied_hash: Mark::read(entry.applied_hash.as_deref()),
            restart_hash: Mark::read(entry.restart_hash.as_deref()),
            desired: entry.desired,
            facts: (entry.facts != Facts::None).then(|| Box::new(entry.facts)),
            fields,
        }
    }

    pub(super) fn entry(&self, namespace: &str) -> Entry {
        let text = |text: &Option<Arc<str>>| text.as_deref().map(str::to_owned);
        Entry {
            slot: self.slot,
            namespace: namespace.to_owned(),
            name: self.name.to_string(),
            uid: self.uid.text(),
            version: self.version,
            generation: self.generation,
            deleting: self.deleting,
            ends: self.ends,
            owner: text(&self.owner),
            tenant: text(&self.tenant),
            component: text(&self.component),
            fleet: text(&self.fleet),
            applied_hash: self.applied_hash.text(),
            restart_hash: self.restart_hash.text(),
            resized: self.resized,
            desired: self.desired,
            facts: self.facts().clone(),
            fields: self.fields.clone(),
        }
    }

    pub(super) fn facts(&self) -> &Facts {
        self.facts.as_deref().unwrap_or(&Facts::None)
    }

    /// uid of the controlling owner.
    pub(super) fn owner(&self) -> Option<&str> {
        self.owner.as_deref()
    }

    /// Takes over what the newer picture of the same object does not tell.
    pub(super) fn keep_of(&mut self, known: &Self) {
        if self.facts.is_none() {
            self.facts.clone_from(&known.facts);
        }
        self.desired = self.desired.or(known.desired);
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
        assert!(size_of::<Compact>() <= 240, "{}", size_of::<Compact>());
    }
}

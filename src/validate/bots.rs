//! How the tier's bots are shared among fleets.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube::ResourceExt;

use super::FleetContext;
use crate::api::{BotFleet, BotFleetSpec};
use crate::domain::quantity::Size;

/// What the sharing needs to know of a fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetFacts {
    /// Its name.
    pub name: String,
    /// When it was created; a fleet not created yet comes after all that are.
    pub created: Option<Timestamp>,
    /// Bots it asks for.
    pub wanted: i32,
    /// Limits of one of them.
    pub size: Size,
}

impl FleetFacts {
    /// Facts of a stored fleet, or of one that is written as a resource of its own.
    pub fn of(fleet: &BotFleet, context: &FleetContext) -> Self {
        let created = fleet.metadata.creation_timestamp.as_ref().map(|time| time.0);
        FleetFacts::new(fleet.name_any(), created, &fleet.spec, context)
    }

    /// Facts of a fleet of a tenant. What runs of one whose resources are refused has a size that is not known, and is taken to have the
    /// catalogue's.
    pub fn new(name: String, created: Option<Timestamp>, spec: &BotFleetSpec, context: &FleetContext) -> Self {
        let size = context.size(spec);
        let size = if context.has_room_for(spec, size) { size } else { context.bot };
        FleetFacts { name, created, wanted: spec.wanted(), size }
    }
}

/// What the tier leaves to a fleet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// By the number of bots alone.
    pub number: i32,
    /// By the number and the room for them.
    pub room: i32,
}

impl Share {
    /// The share of the fleet of this name.
    pub fn of(name: &str, fleets: &[FleetFacts], tier: &FleetContext) -> Self {
        let get = |room| allot(tier.max_bots, room, fleets).get(name).copied().unwrap_or_default();
        Share { number: get(Size::MOST), room: get(tier.room()) }
    }

    /// Bots that the fleet is to have of which so many are asked for already. Size bounds what is started and stops nothing: the quota has
    /// let it in, and is a little larger than the room.
    pub fn beside(self, running: i32) -> i32 {
        self.number.min(self.room.max(running))
    }
}

/// Bots that each fleet may start: oldest fleets first, then by name, until the tier's number or the room for its bots is used up, in which
/// a fleet of large bots may leave none for the next. Every fleet is in the result.
pub fn allot(max_bots: i32, room: Size, fleets: &[FleetFacts]) -> BTreeMap<String, i32> {
    let mut order: Vec<&FleetFacts> = fleets.iter().collect();
    order.sort_by_key(|fleet| (fleet.created.is_none(), fleet.created, &fleet.name));
    let (mut left, mut room) = (max_bots.max(0), room);
    order
        .into_iter()
        .map(|fleet| {
            let fit = i32::try_from(room.holds(fleet.size)).unwrap_or(i32::MAX);
            let bots = fleet.wanted.clamp(0, left.min(fit));
            left -= bots;
            room = room - fleet.size * i64::from(bots);
            (fleet.name.clone(), bots)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::quantity::{Bytes, Cpu};

    const BOT: Size = Size { cpu: Cpu(200), memory: Bytes::mi(512) };

    fn facts(name: &str, created: Option<i64>, wanted: i32) -> FleetFacts {
        let created = created.map(|second| Timestamp::from_second(second).expect("in range"));
        FleetFacts { name: name.to_owned(), created, wanted, size: BOT }
    }

    fn shared(bots: i32, fleets: &[FleetFacts]) -> Vec<(String, i32)> {
        allot(bots, BOT * i64::from(bots), fleets).into_iter().collect()
    }

    fn are(given: &[(String, i32)], expected: &[(&str, i32)]) {
        let given: Vec<(&str, i32)> = given.iter().map(|(name, bots)| (name.as_str(), *bots)).collect();
        assert_eq!(given, expected);
    }

    #[test]
    fn oldest_fleets_come_first() {
        let fleets =
            [facts("new", None, 1), facts("young", Some(20), 5), facts("b", Some(10), 2), facts("a", Some(10), 4)];
        are(&shared(10, &fleets), &[("a", 4), ("b", 2), ("new", 0), ("young", 4)]);
        are(&shared(5, &fleets), &[("a", 4), ("b", 1), ("new", 0), ("young", 0)]);
    }

    #[test]
    fn large_bots_take_more_of_the_room_and_never_an_older_fleets() {
        let large = |created, wanted| FleetFacts {
            size: Size { cpu: Cpu(200), memory: Bytes::mi(1_024) },
            ..facts("large", Some(created), wanted)
        };
        are(&shared(5, &[facts("small", Some(10), 2), large(20, 2)]), &[("large", 1), ("small", 2)]);
        are(&shared(5, &[facts("small", Some(20), 2), large(10, 2)]), &[("large", 2), ("small", 1)]);
        // What one fleet has no room for is left to the next.
        are(
            &shared(3, &[facts("old", Some(10), 2), large(20, 1), facts("new", None, 1)]),
            &[("large", 0), ("new", 1), ("old", 2)],
        );
    }

    #[test]
    fn size_bounds_what_is_started_and_number_what_runs() {
        let share = Share { number: 3, room: 1 };
        assert_eq!([0, 1, 2, 3, 4].map(|running| share.beside(running)), [1, 1, 2, 3, 3]);
    }

    #[test]
    fn never_more_than_the_tier_and_never_negative() {
        for max in [-1, 0, 1, 50] {
            let bots = shared(max, &[facts("a", None, -7), facts("b", None, i32::MAX)]);
            assert_eq!(bots.iter().map(|(_, bots)| bots).sum::<i32>(), max.max(0));
        }
        are(&shared(3, &[facts("a", None, -7)]), &[("a", 0)]);
        let nothing = FleetFacts { size: Size::default(), ..facts("a", None, 4) };
        are(&shared(3, &[nothing]), &[("a", 3)]);
    }
}

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
    /// Bots that it has been given already.
    pub running: i32,
}

impl FleetFacts {
    /// Facts of a stored fleet, or of one that is written as a resource of its own, that has so many bots already.
    pub fn of(fleet: &BotFleet, context: &FleetContext, running: i32) -> Self {
        let created = fleet.metadata.creation_timestamp.as_ref().map(|time| time.0);
        FleetFacts { running, ..FleetFacts::new(fleet.name_any(), created, &fleet.spec, context) }
    }

    /// Facts of a fleet of a tenant of which nothing runs. What runs of one whose resources are refused has a size that is not known, and
    /// is taken to have the catalogue's.
    pub fn new(name: String, created: Option<Timestamp>, spec: &BotFleetSpec, context: &FleetContext) -> Self {
        let size = context.size(spec);
        let size = if context.has_room_for(spec, size) { size } else { context.bot };
        FleetFacts { name, created, wanted: spec.wanted(), size, running: 0 }
    }
}

/// What the tier leaves to a fleet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Bots that it is to have.
    pub bots: i32,
    /// Bots that it could have if room were no matter.
    pub number: i32,
    /// Bots that are known to have room.
    pub fit: i32,
}

/// What is left to each fleet: oldest fleets first, then by name, until the tier's number or the room for its bots is used up. Every fleet is
/// in the result.
///
/// Size bounds what is started and stops nothing that runs: the quota, which is a little larger than the room, has let it in.
pub fn allot(max_bots: i32, room: Size, fleets: &[FleetFacts]) -> BTreeMap<String, Share> {
    let mut order: Vec<&FleetFacts> = fleets.iter().collect();
    order.sort_by_key(|fleet| (fleet.created.is_none(), fleet.created, &fleet.name));
    let (mut left, mut room) = (max_bots.max(0), room);
    order
        .into_iter()
        .map(|fleet| {
            let number = fleet.wanted.clamp(0, left);
            let fit = number.min(i32::try_from(room.holds(fleet.size)).unwrap_or(i32::MAX));
            let bots = number.min(fit.max(fleet.running));
            left -= bots;
            room = room - fleet.size * i64::from(bots);
            (fleet.name.clone(), Share { bots, number, fit })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::Tier;
    use crate::domain::quantity::{Bytes, Cpu};

    const BOT: Size = Size { cpu: Cpu(200), memory: Bytes::mi(512) };

    fn facts(name: &str, created: Option<i64>, wanted: i32) -> FleetFacts {
        let created = created.map(|second| Timestamp::from_second(second).expect("in range"));
        FleetFacts { name: name.to_owned(), created, wanted, size: BOT, running: 0 }
    }

    fn shared(bots: i32, fleets: &[FleetFacts]) -> Vec<(String, i32)> {
        let shares = allot(bots, BOT * i64::from(bots), fleets);
        shares.into_iter().map(|(name, share)| (name, share.bots)).collect()
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
    }

    #[test]
    fn size_bounds_what_is_started_and_number_what_runs() {
        let young = |running| FleetFacts {
            size: Size { cpu: Cpu(200), memory: Bytes::mi(1_024) },
            running,
            ..facts("young", Some(20), 3)
        };
        // Beside seven of ten bots there is the room of three, which is that of one of these.
        let beside = |running| allot(10, BOT * 10, &[facts("old", Some(10), 7), young(running)])["young"];
        assert_eq!([0, 1, 2, 3, 4].map(|running| beside(running).bots), [1, 1, 2, 3, 3]);
        assert_eq!(beside(2), Share { bots: 2, number: 3, fit: 1 });
        // An older fleet that asks for more takes them by number.
        assert_eq!(allot(10, BOT * 10, &[facts("old", Some(10), 9), young(3)])["young"].bots, 1);
        // What does not run leaves its room and its number to the next.
        are(
            &shared(3, &[facts("old", Some(10), 2), FleetFacts { wanted: 1, ..young(0) }, facts("new", None, 1)]),
            &[("new", 1), ("old", 2), ("young", 0)],
        );
    }

    #[test]
    fn resources_that_are_refused_count_as_the_catalogues() {
        let context = FleetContext {
            tenant: "a".to_owned(),
            namespace: "tenant-a".to_owned(),
            tier: Tier::Basic,
            priority_class: String::new(),
            max_bots: 3,
            bot: BOT,
            bot_request: BOT,
            pools: Vec::new(),
        };
        let size = |replicas: i32, memory: &str| {
            let strategy = json!({"kind": "v1", "config": "strategy: a"});
            let spec = json!({"replicas": replicas, "strategy": strategy, "resources": {"memory": memory}});
            let spec: BotFleetSpec = serde_json::from_value(spec).expect("a spec");
            FleetFacts::new("a".to_owned(), None, &spec, &context).size.memory
        };
        assert_eq!(size(1, "1Gi"), Bytes::mi(1_024));
        assert_eq!(size(2, "1Gi"), Bytes::mi(512), "two of them have no room");
        assert_eq!(size(1, "2560Mi"), Bytes::mi(512));
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

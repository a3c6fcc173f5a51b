//! How the tier's number of bots is shared among fleets.

use std::collections::BTreeMap;

use jiff::Timestamp;

/// What the sharing needs to know of a fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetFacts {
    /// Its name.
    pub name: String,
    /// When it was created; a fleet not created yet comes after all that are.
    pub created: Option<Timestamp>,
    /// Bots it asks for: `spec.replicas`, or 0 while paused.
    pub wanted: i32,
}

/// Bots that each fleet may start: oldest fleets first, then by name, until the tier's number is
/// used up. Every fleet is in the result.
pub fn allot(max_bots: i32, fleets: &[FleetFacts]) -> BTreeMap<String, i32> {
    let mut order: Vec<&FleetFacts> = fleets.iter().collect();
    order.sort_by_key(|fleet| (fleet.created.is_none(), fleet.created, &fleet.name));
    let mut left = max_bots.max(0);
    order
        .into_iter()
        .map(|fleet| {
            let bots = fleet.wanted.clamp(0, left);
            left -= bots;
            (fleet.name.clone(), bots)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(name: &str, created: Option<i64>, wanted: i32) -> FleetFacts {
        let created = created.map(|second| Timestamp::from_second(second).expect("in range"));
        FleetFacts { name: name.to_owned(), created, wanted }
    }

    #[test]
    fn oldest_fleets_come_first() {
        let fleets =
            [facts("new", None, 1), facts("young", Some(20), 5), facts("b", Some(10), 2), facts("a", Some(10), 4)];
        let bots = allot(10, &fleets);
        let given: Vec<(&str, i32)> = bots.iter().map(|(name, bots)| (name.as_str(), *bots)).collect();
        assert_eq!(given, [("a", 4), ("b", 2), ("new", 0), ("young", 4)]);
        assert_eq!(allot(5, &fleets)["b"], 1);
    }

    #[test]
    fn never_more_than_the_tier_and_never_negative() {
        for max in [-1, 0, 1, 50] {
            let bots = allot(max, &[facts("a", None, -7), facts("b", None, i32::MAX)]);
            assert_eq!(bots.values().sum::<i32>(), max.max(0));
        }
        assert_eq!(allot(3, &[facts("a", None, -7)])["a"], 0);
    }
}

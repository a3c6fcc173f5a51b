//! What becomes of decisions that cannot be written.

use super::*;

#[test]
fn a_write_that_fails_again_and_again_is_made_ever_more_seldom() {
    let mut world = four_tiers();
    for name in ["a", "b"] {
        world.tenant(name, "free");
    }
    let mut tries = Vec::new();
    for _ in 0..400 {
        let now = world.clock.now();
        world.roster.tick(now, world.clock.monotonic());
        while let Some(write) = world.roster.take_write(now) {
            tries.push((write.name.to_string(), now));
            world.roster.not_written(&write, NotWritten::Failed, now);
        }
        world.clock.advance(std::time::Duration::from_secs(1));
    }
    let of = |name: &str| tries.iter().filter(|(tried, _)| tried == name).map(|(_, at)| *at).collect::<Vec<_>>();
    let pauses: Vec<i64> = of("a").windows(2).map(|two| two[1].duration_since(two[0]).as_secs()).collect();
    assert_eq!(pauses, [5, 10, 20, 40, 80, 160]);
    assert_eq!(of("a"), of("b"));
}

#[test]
fn whoever_has_waited_longest_is_written_first() {
    let mut world = four_tiers();
    for name in ["z", "a"] {
        world.tenant(name, "free");
        let now = world.clock.now();
        world.roster.tick(now, world.clock.monotonic());
        world.clock.advance(std::time::Duration::from_secs(1));
    }
    let now = world.clock.now();
    let first = world.roster.take_write(now).expect("a first decision");
    assert_eq!(&*first.name, "z");
}

#[test]
fn a_write_that_fails_is_made_again() {
    let mut world = four_tiers();
    world.tenant("new", "free");
    let now = world.clock.now();
    world.roster.tick(now, world.clock.monotonic());
    let write = world.roster.take_write(now).expect("a first decision");
    world.roster.not_written(&write, NotWritten::Failed, now);
    world.pass(10);
    assert_eq!(world.stage("new"), "Active");
}

#[test]
fn while_nothing_can_be_written_no_more_are_permitted_than_the_pace_allows() {
    let mut world = World::new(Limits { per_minute: 2, percent: 100, least: 100, ..Limits::default() });
    for name in ["a", "b", "c", "d", "e", "f"] {
        world.tenant(name, "free");
    }
    world.list();
    world.pass(7 * DAY - 60);
    assert_eq!(world.asleep(), 0);
    let mut tried = std::collections::BTreeSet::new();
    for second in 0..3 * 3_600 {
        let (now, monotonic) = (world.clock.now(), world.clock.monotonic());
        if world.roster.tick(now, monotonic).check_clock {
            world.roster.clock_checked(SignedDuration::ZERO, now, monotonic);
            world.roster.tick(now, monotonic);
        }
        while let Some(write) = world.roster.take_write(now) {
            if write.written.decision.stage > Stage::Active {
                tried.insert(write.name.to_string());
            }
            world.roster.not_written(&write, NotWritten::Failed, now);
        }
        assert!(tried.len() <= 2, "after {second} s: {tried:?}");
        world.clock.advance(std::time::Duration::from_secs(1));
    }
    assert_eq!(tried.len(), 2);
    world.pass(20 * 60);
    assert_eq!(world.asleep(), 6);
}

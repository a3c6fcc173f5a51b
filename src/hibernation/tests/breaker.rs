use super::*;
use crate::clock::{Clock, FixedClock};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).expect("a time")
}

fn breaker(limits: Limits) -> Breaker {
    Breaker::new(limits, Saved::default(), "p")
}

fn due(count: usize, due_at: Timestamp) -> Vec<DueTenant> {
    (0..count).map(|n| DueTenant { name: format!("t{n}").into(), due_at }).collect()
}

fn reason(breaker: &Breaker) -> Option<Trip> {
    breaker.open().map(|open| open.reason)
}

#[test]
fn a_tenth_and_at_least_five_may_fall_asleep_within_an_hour() {
    for (tenants, allowed) in [(1, 5), (4, 5), (50, 5), (59, 5), (60, 6), (200, 20), (1_000, 100)] {
        assert_eq!(Limits::default().allowed(tenants), allowed);
        let mut breaker = breaker(Limits::default());
        assert!(!breaker.count(tenants, &due(allowed, at(0)), at(0)), "{tenants}");
        assert!(breaker.count(tenants, &due(allowed + 1, at(0)), at(0)), "{tenants}");
        assert_eq!(reason(&breaker), Some(Trip::TooMany));
    }
}

#[test]
fn those_who_slept_within_the_hour_count_and_later_do_not() {
    let mut breaker = breaker(Limits::default());
    for n in 0..4 {
        breaker.fell_asleep(format!("s{n}").into(), at(n), at(n));
    }
    assert!(!breaker.count(10, &due(1, at(60)), at(60)));
    assert!(!breaker.count(10, &due(2, at(3_600)), at(3_600)), "the first has left the hour");
    assert!(breaker.count(10, &due(3, at(3_600)), at(3_600)));
}

#[test]
fn one_tenant_that_goes_deeper_twice_counts_once() {
    let mut breaker = breaker(Limits::default());
    for n in 0..5 {
        breaker.fell_asleep(format!("t{n}").into(), at(n), at(n));
    }
    assert!(!breaker.count(10, &due(5, at(60)), at(60)));
}

#[test]
fn a_release_excuses_nothing_under_other_policies_nor_for_ever() {
    let released = |policies: &str, now: Timestamp| {
        let saved = Saved { released_at: Some(at(20)), policies: "p".to_owned(), ..Saved::default() };
        let mut breaker = Breaker::new(Limits::default(), Saved::from_data(&saved.to_data(), now), policies);
        !breaker.count(10, &due(8, at(0)), now)
    };
    assert!(released("p", at(30)));
    assert!(!released("other", at(30)), "nobody has looked at these policies");
    assert!(released("p", at(20 + 7 * 86_400 - 1)));
    assert!(!released("p", at(20 + 7 * 86_400)), "a week later");
    assert!(!released("p", at(19)), "from the future");
}

#[test]
fn letting_go_of_a_hold_excuses_what_became_due_meanwhile() {
    let mut breaker = breaker(Limits::default());
    assert!(breaker.hold(Some("words"), at(0)) && breaker.hold(None, at(100)));
    assert!(!breaker.count(10, &due(8, at(50)), at(101)));
    assert!(breaker.count(10, &due(8, at(102)), at(103)));
}

#[test]
fn a_hold_that_is_lost_stays_until_it_is_released() {
    let mut breaker = breaker(Limits::default());
    assert!(!breaker.hold_lost(at(0)), "there was none");
    breaker.hold(Some("words"), at(0));
    assert!(breaker.hold_lost(at(5)));
    assert!(!breaker.hold(None, at(6)), "that nobody holds it any more is no release");
    let open = breaker.open().expect("open").clone();
    assert_eq!((open.reason, open.message.as_str(), open.since), (Trip::ByHand, "held by hand: words", at(5)));
    assert!(breaker.saved().to_data().values().any(|value| value == "held by hand: words"), "and it outlives us");
    assert!(breaker.release(&open.since.to_string(), at(7)));
}

#[test]
fn a_release_names_its_opening_and_lets_those_go_that_were_due() {
    let mut breaker = breaker(Limits::default());
    assert!(breaker.count(10, &due(8, at(0)), at(10)));
    assert!(!breaker.release("2020-01-01T00:00:00Z", at(20)), "another opening");
    let since = breaker.open().expect("open").since.to_string();
    assert!(breaker.release(&since, at(20)));
    assert_eq!(breaker.open(), None);
    assert!(!breaker.count(10, &due(8, at(0)), at(30)), "they were due when somebody looked");
    assert!(breaker.count(10, &due(8, at(21)), at(30)), "these became due later");
    assert!(!breaker.release(&since, at(40)), "an old release closes no new opening");
}

#[test]
fn a_change_of_policies_is_named() {
    let saved = Saved { policies: "old".to_owned(), ..Saved::default() };
    let mut breaker = Breaker::new(Limits::default(), saved, "new");
    assert!(breaker.count(10, &due(8, at(0)), at(0)));
    assert_eq!(reason(&breaker), Some(Trip::PolicyChange));
    assert!(breaker.open().is_some_and(|open| open.message.contains("8 of 10 tenants")));
    assert_eq!(breaker.saved().policies, "new");
}

#[test]
fn clocks_may_drift_and_not_jump() {
    let mut breaker = breaker(Limits::default());
    let clock = FixedClock::new(at(0));
    let look = |breaker: &mut Breaker| breaker.clocks(clock.now(), clock.monotonic());
    assert!(!look(&mut breaker));
    clock.advance(Duration::from_secs(86_400));
    assert!(!look(&mut breaker), "time that passed is no jump");
    clock.set(at(86_400 + 300));
    assert!(!look(&mut breaker), "five minutes are tolerated");
    clock.set(at(31 * 86_400));
    assert!(look(&mut breaker));
    assert_eq!(breaker.open().map(|open| open.message.as_str()), Some("the wall clock jumped by 29d 23h"));
}

#[test]
fn the_clock_may_jump_neither_way() {
    let mut breaker = breaker(Limits::default());
    let clock = FixedClock::new(at(0));
    breaker.clocks(clock.now(), clock.monotonic());
    clock.set(at(-301));
    assert!(breaker.clocks(clock.now(), clock.monotonic()));
    assert_eq!(reason(&breaker), Some(Trip::ClockJump));
}

#[test]
fn the_api_servers_clock_is_asked() {
    for (ahead, opens) in [(300, false), (-300, false), (301, true), (-301, true)] {
        let mut breaker = breaker(Limits::default());
        assert_eq!(breaker.api_clock(SignedDuration::from_secs(ahead), at(0)), opens, "{ahead}");
    }
}

#[test]
fn a_silent_feed_counts_only_where_one_is_configured() {
    let limits = Limits { feed_silence: Some(SignedDuration::from_hours(6)), ..Limits::default() };
    let six_hours = 6 * 3_600;
    for (newest, first, opens) in [
        (None, None, false),
        (None, Some(at(0)), false),
        (None, Some(at(-1)), true),
        (Some(at(0)), Some(at(-1)), false),
        (Some(at(-1)), None, true),
    ] {
        let known = || first.into_iter().chain(first.map(|_| at(1)));
        assert_eq!(breaker(limits).feed(newest, known(), at(six_hours)), opens, "{newest:?} {first:?}");
        assert!(!breaker(Limits::default()).feed(newest, known(), at(six_hours)));
    }
}

#[test]
fn the_pace_is_kept_over_each_minute() {
    let mut breaker = breaker(Limits { per_minute: 2, ..Limits::default() });
    let pace = |breaker: &Breaker, second: i64, unwritten: &[&str]| {
        let unwritten: Vec<Arc<str>> = unwritten.iter().map(|name| (*name).into()).collect();
        breaker.pace(at(second), unwritten.iter())
    };
    assert_eq!(pace(&breaker, 0, &[]), 2);
    breaker.fell_asleep("a".into(), at(0), at(0));
    breaker.fell_asleep("b".into(), at(30), at(0));
    assert_eq!((pace(&breaker, 59, &[]), breaker.next_place(at(59))), (0, at(60)));
    assert_eq!((pace(&breaker, 60, &[]), pace(&breaker, 90, &[])), (1, 2));
    assert_eq!(pace(&breaker, 60, &["b"]), 1, "each counts once");
    assert_eq!(pace(&breaker, 90, &["b"]), 1, "it still will");
    assert_eq!(pace(&breaker, 90, &["a", "b", "c"]), 0, "all at once");
}

#[test]
fn a_hand_holds_it_until_the_hand_lets_go() {
    let mut breaker = breaker(Limits::default());
    assert!(breaker.hold(Some("migration"), at(0)));
    assert!(!breaker.hold(Some("migration"), at(1)), "no news");
    assert_eq!(breaker.open().map(|open| open.message.as_str()), Some("held by hand: migration"));
    assert!(breaker.hold(None, at(2)) && breaker.open().is_none());
}

#[test]
fn what_is_saved_is_read_back_and_doubt_is_open() {
    let open = Open { reason: Trip::FeedSilent, message: "m".to_owned(), since: at(5) };
    for open in [None, Some(open)] {
        let saved = Saved { open, released_at: Some(at(1)), policies: "p".to_owned() };
        assert_eq!(Saved::from_data(&saved.to_data(), at(9)), saved);
    }
    let odd = [("state".to_owned(), "ajar".to_owned())].into();
    assert_eq!(Saved::from_data(&odd, at(9)).open.map(|open| open.since), Some(at(9)));
}

#[test]
fn durations_are_said_in_two_units() {
    let said = |seconds| words(SignedDuration::from_secs(seconds));
    assert_eq!(
        [said(0), said(59), said(-61), said(3_600), said(2_678_400), said(90_061)],
        ["0s", "59s", "-1m 1s", "1h", "31d", "1d 1h"]
    );
}

use super::*;
use crate::api::Tier;
use crate::domain::catalog::{Catalog, Leads};

const DAY: i64 = 86_400;

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

/// The activity of all situations here.
fn start() -> Timestamp {
    time(1_700_000_000)
}

fn after(seconds: i64) -> Timestamp {
    later(start(), seconds)
}

fn situation(policy: Policy) -> Situation {
    Situation {
        policy,
        suspended: false,
        activity: start(),
        doubtful: false,
        sleep_requested_at: None,
        approved: false,
    }
}

fn of_tier(tier: Tier) -> Situation {
    situation(Catalog::default().tier(tier).hibernation)
}

/// Every policy a tenant can have: each tier's, and overrides with each mode, with stages together and apart.
fn policies() -> Vec<Policy> {
    let mut all: Vec<Policy> = Tier::ALL.map(|tier| Catalog::default().tier(tier).hibernation).to_vec();
    let durations = [(20, 40, 60), (10, 10, 10), (1, 1, 30 * DAY), (5 * DAY, 9 * DAY, 9 * DAY), (1, 2, 3)];
    for mode in [HibernationMode::Auto, HibernationMode::Prompt, HibernationMode::Never] {
        for (stop_bots_after, stop_services_after, database_only_after) in durations {
            all.push(Policy {
                mode,
                stop_bots_after,
                stop_services_after,
                database_only_after,
                warn_before: Leads::default(),
            });
        }
    }
    all
}

fn thresholds(policy: &Policy) -> [i64; 3] {
    [policy.stop_bots_after, policy.stop_services_after, policy.database_only_after]
}

/// Every situation that differs in anything but time.
fn situations() -> Vec<Situation> {
    let mut all = Vec::new();
    for policy in policies() {
        for bits in 0..8 {
            for request in [None, Some(-1), Some(0), Some(1)] {
                all.push(Situation {
                    suspended: bits & 1 > 0,
                    doubtful: bits & 2 > 0,
                    approved: bits & 4 > 0,
                    sleep_requested_at: request.map(after),
                    ..situation(policy)
                });
            }
        }
    }
    all
}

/// Seconds of idle time around every boundary of a policy.
fn moments(policy: &Policy) -> Vec<i64> {
    let mut all: Vec<i64> = thresholds(policy).into_iter().flat_map(|after| [after - 1, after, after + 1]).collect();
    all.extend([-DAY, -1, 0, 1, 400 * DAY]);
    all.sort_unstable();
    all
}

/// The rule of the contract, written down a second time and as plainly as possible.
fn expected(situation: &Situation, idle: i64) -> (Stage, Why) {
    let [bots, services, database] = thresholds(&situation.policy);
    let by_idle_time = match idle {
        idle if idle >= database => Stage::DatabaseOnly,
        idle if idle >= services => Stage::ServicesStopped,
        idle if idle >= bots => Stage::BotsStopped,
        _ => Stage::Active,
    };
    let slept = by_idle_time != Stage::Active;
    match (situation.suspended, situation.doubtful, situation.sleep_requested_at > Some(start())) {
        (true, _, _) => (Stage::DatabaseOnly, Why::Suspended),
        (false, true, _) => (Stage::Active, Why::Doubtful),
        (false, false, true) => (Stage::DatabaseOnly, Why::SleepRequested),
        (false, false, false) => match situation.policy.mode {
            HibernationMode::Never => (Stage::Active, Why::NeverSleeps),
            HibernationMode::Prompt if slept && !situation.approved => (Stage::Active, Why::Unapproved),
            HibernationMode::Prompt | HibernationMode::Auto if slept => (by_idle_time, Why::Idle),
            HibernationMode::Prompt | HibernationMode::Auto => (Stage::Active, Why::Active),
        },
    }
}

#[test]
fn every_situation_at_every_boundary() {
    let mut count = 0;
    for situation in situations() {
        for idle in moments(&situation.policy) {
            let due = decide(&situation, after(idle));
            assert_eq!((due.stage, due.why), expected(&situation, idle), "{situation:?} after {idle} s");
            assert_eq!(due.based_on, start());
            count += 1;
        }
    }
    assert!(count > 7_000, "{count}");
}

#[test]
fn what_comes_next_is_never_in_the_past_and_comes_true() {
    for situation in situations() {
        for idle in moments(&situation.policy) {
            let now = after(idle);
            let due = decide(&situation, now);
            let Some(next) = due.next else { continue };
            assert!(next.at > now && next.warn_at <= next.at && next.warn_at >= start(), "{next:?} at {now}");
            let then = decide(&situation, next.at);
            let asks = then.why == Why::Unapproved;
            assert!(asks || (then.stage == next.stage && then.stage > due.stage), "{situation:?}: {next:?}, {then:?}");
            assert_eq!(decide(&situation, later(next.at, -1)).stage, due.stage, "nothing changes before it");
        }
    }
}

#[test]
fn sleep_only_deepens_with_idle_time_and_never_with_activity() {
    for situation in situations() {
        let stages: Vec<Stage> =
            moments(&situation.policy).into_iter().map(|idle| decide(&situation, after(idle)).stage).collect();
        assert!(stages.is_sorted(), "{situation:?}: {stages:?}");
        for idle in moments(&situation.policy) {
            let now = after(idle);
            let before = decide(&situation, now).stage;
            for newer in [1, 10, DAY, 500 * DAY] {
                // Approval is for one idle period; keeping it is the harder case.
                let active = Situation { activity: after(newer), ..situation };
                assert!(decide(&active, now).stage <= before, "{situation:?} after {idle} s, activity {newer} s later");
            }
        }
    }
}

#[test]
fn tiers_sleep_when_the_contract_says() {
    let stages = |tier, approved, days: i64| decide(&Situation { approved, ..of_tier(tier) }, after(days * DAY)).stage;
    for (days, free, basic) in [
        (6, Stage::Active, Stage::Active),
        (7, Stage::BotsStopped, Stage::Active),
        (13, Stage::BotsStopped, Stage::Active),
        (14, Stage::ServicesStopped, Stage::ServicesStopped),
        (29, Stage::ServicesStopped, Stage::ServicesStopped),
        (30, Stage::DatabaseOnly, Stage::DatabaseOnly),
    ] {
        assert_eq!((stages(Tier::Free, false, days), stages(Tier::Basic, false, days)), (free, basic), "{days} d");
    }
    assert_eq!(stages(Tier::Pro, false, 4_000), Stage::Active, "pro sleeps only if its user agrees");
    assert_eq!((stages(Tier::Pro, true, 29), stages(Tier::Pro, true, 30)), (Stage::Active, Stage::DatabaseOnly));
    assert_eq!(stages(Tier::Premium, true, 4_000), Stage::Active, "premium never sleeps by itself");
}

#[test]
fn only_its_user_puts_premium_to_sleep() {
    let premium = of_tier(Tier::Premium);
    for idle in [0, DAY, 4_000 * DAY] {
        assert_eq!(decide(&premium, after(idle)).stage, Stage::Active);
        let asked = Situation { sleep_requested_at: Some(after(1)), ..premium };
        assert_eq!(decide(&asked, after(idle)).stage, Stage::DatabaseOnly);
        let active_again = Situation { activity: after(1), ..asked };
        assert_eq!(decide(&active_again, after(idle)).stage, Stage::Active, "a tie means awake");
    }
}

#[test]
fn times_at_the_edge_of_time_keep_tenants_awake() {
    for tier in Tier::ALL {
        for now in [Timestamp::MIN, start(), Timestamp::MAX] {
            let unknown = Situation { activity: Timestamp::MAX, ..of_tier(tier) };
            // At the last moment of time everything is due; no clock shows it.
            if now < Timestamp::MAX {
                assert_eq!(decide(&unknown, now).stage, Stage::Active);
            }
            decide(&Situation { activity: Timestamp::MIN, ..of_tier(tier) }, now);
        }
        let future = Situation { activity: after(100 * DAY), ..of_tier(tier) };
        assert_eq!(decide(&future, start()).stage, Stage::Active);
    }
}

#[test]
fn stages_at_one_moment_are_one_deadline() {
    let basic = deadlines(&of_tier(Tier::Basic).policy, start());
    let seen: Vec<_> = basic.iter().map(|d| (d.at, d.stage, d.warn_at)).collect();
    assert_eq!(
        seen,
        [
            (after(14 * DAY), Stage::ServicesStopped, after(11 * DAY)),
            (after(30 * DAY), Stage::DatabaseOnly, after(29 * DAY)),
        ]
    );
    let pro = deadlines(&of_tier(Tier::Pro).policy, start());
    assert_eq!(pro.len(), 1);
    assert_eq!((pro[0].stage, pro[0].warn_at), (Stage::DatabaseOnly, after(27 * DAY)));
}

#[test]
fn a_warning_never_comes_in_the_first_half_of_the_time() {
    for policy in policies() {
        let mut before = start();
        for deadline in deadlines(&policy, start()) {
            let (whole, lead) = (deadline.at.duration_since(before), deadline.at.duration_since(deadline.warn_at));
            assert!(lead.as_secs() * 2 <= whole.as_secs(), "{policy:?}: {deadline:?}");
            before = deadline.at;
        }
    }
}

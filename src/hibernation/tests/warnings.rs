//! Who is warned, and when a warning that nobody takes is given up.

use super::*;
use crate::hibernation::gate::NoticeKind;

#[test]
fn nobody_sleeps_unwarned_until_the_receiver_is_given_up() {
    let mut world = four_tiers();
    world.deaf = true;
    world.pass(4 * DAY + 23 * 3_600);
    assert_eq!(world.reason("free", "WarningFailed"), Some("WebhookFailed"));
    world.pass(2 * 3_600);
    world.pass(2 * DAY - 3_600);
    assert_eq!(world.stage("free"), "BotsStopped", "given up after a day, in time for the deadline");
    assert_eq!(world.reason("free", "WarningFailed"), Some("WebhookFailed"), "and that is said");

    let mut world = World::new(Limits::default());
    world.roster.give_up = SignedDuration::from_hours(24 * 365);
    world.deaf = true;
    world.tenant("free", "free");
    world.list();
    world.pass(60 * DAY);
    assert_eq!((world.stage("free"), world.reason("free", "SleepHeld")), ("Active", Some("AwaitingWarning")));
    world.deaf = false;
    world.pass(3_600);
    assert_eq!(world.told.len(), 1);
    world.pass(3 * DAY - 3_600);
    assert_eq!(world.stage("free"), "Active", "taken late, it leaves its whole lead");
    world.pass(DAY);
    assert_eq!(world.stage("free"), "DatabaseOnly");
    assert_eq!(world.reason("free", "WarningFailed"), None);
}

#[test]
fn without_its_event_no_warning_is_given_up() {
    let mut world = four_tiers();
    world.clock.advance(Duration::from_secs(4 * DAY));
    for day in 0..60_u32 {
        let now = world.clock.now();
        world.roster.clock_checked(SignedDuration::ZERO, now, world.clock.monotonic());
        world.roster.tick(now, world.clock.monotonic());
        while let Some(tell) = world.roster.take_notice(now) {
            assert!(!tell.recorded);
            world.roster.not_told(&tell, NotTold::Event("no".to_owned()), SignedDuration::from_mins(5), now);
        }
        while let Some(write) = world.roster.take_write(now) {
            assert_eq!(write.written.decision.stage, Stage::Active, "after {day} days");
            world.roster.wrote(&write, u64::MAX, now);
        }
        world.clock.advance(Duration::from_secs(DAY));
    }
}

#[test]
fn the_event_of_a_warning_is_made_once() {
    let mut world = four_tiers();
    world.deaf = true;
    world.pass(4 * DAY + 60);
    world.clock.advance(Duration::from_secs(600));
    let now = world.clock.now();
    world.roster.tick(now, world.clock.monotonic());
    assert!(world.roster.take_notice(now).expect("tried again").recorded);
}

#[test]
fn a_warning_that_follows_a_question_has_an_event_of_its_own() {
    let mut world = four_tiers();
    world.deaf = true;
    world.pass(30 * DAY + 3_600);
    let next = |world: &mut World| {
        world.clock.advance(Duration::from_secs(600));
        let now = world.clock.now();
        world.roster.tick(now, world.clock.monotonic());
        let tells = std::iter::from_fn(|| world.roster.take_notice(now)).collect::<Vec<_>>();
        let tell = tells.into_iter().find(|tell| &*tell.name == "pro").expect("tried again");
        world.roster.not_told(&tell, NotTold::Webhook("deaf".to_owned()), SignedDuration::from_mins(5), now);
        (tell.notice.kind, tell.recorded)
    };
    assert_eq!(next(&mut world), (NoticeKind::Question, true));
    world.tenants.get_mut("pro").expect("pro")["spec"]["hibernation"] = json!({"mode": "Auto"});
    world.show("pro");
    assert_eq!(next(&mut world), (NoticeKind::Warning, false));
    assert_eq!(next(&mut world), (NoticeKind::Warning, true));
}

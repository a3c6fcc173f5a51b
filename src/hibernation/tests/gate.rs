use super::*;
use crate::api::Tier;
use crate::domain::catalog::{Catalog, Policy};
use crate::hibernation::decide::decide;

const DAY: i64 = 86_400;

fn start() -> Timestamp {
    Timestamp::from_second(1_700_000_000).expect("a time")
}

fn after(seconds: i64) -> Timestamp {
    later(start(), seconds)
}

fn tenant(tier: Tier) -> Situation {
    of_policy(Catalog::default().tier(tier).hibernation)
}

fn of_policy(policy: Policy) -> Situation {
    Situation {
        policy,
        suspended: false,
        activity: start(),
        doubtful: false,
        sleep_requested_at: None,
        approved: false,
    }
}

fn judged(situation: &Situation, record: Record, now: Timestamp) -> Gate {
    gate(situation, &decide(situation, now), &record, now)
}

fn warned(at: Timestamp, stage: Stage) -> Announced {
    Announced { at, stage }
}

/// Lives through an idle period, looking every `step` seconds and telling at once; returns what happened when.
fn live(situation: &Situation, from: i64, to: i64, step: i64) -> Vec<(i64, String)> {
    let mut record = Record::default();
    let mut story = Vec::new();
    let mut at = from;
    while at <= to {
        let gate = judged(situation, record, after(at));
        if let Some(notice) = gate.notice {
            let deadline = notice.deadline.duration_since(start()).as_secs();
            story.push((at, format!("{:?} {} at {deadline}", notice.kind, notice.stage)));
            match notice.kind {
                NoticeKind::Warning => record.warned = Some(warned(notice.deadline, notice.stage)),
                NoticeKind::Question => record.asked = Some(warned(notice.due_at, notice.stage)),
            }
        } else {
            if gate.stage != record.stage {
                story.push((at, gate.stage.to_string()));
            }
            record.stage = gate.stage;
            at += step;
        }
    }
    story
}

fn words(story: &[(i64, &str)]) -> Vec<(i64, String)> {
    story.iter().map(|(at, what)| (*at, (*what).to_owned())).collect()
}

#[test]
fn each_stage_comes_after_its_one_warning() {
    let day = |days: i64| days * DAY;
    let told = live(&tenant(Tier::Free), 0, day(40), 3_600);
    let expected = [
        (day(4), format!("Warning BotsStopped at {}", day(7))),
        (day(7), "BotsStopped".to_owned()),
        (day(13), format!("Warning ServicesStopped at {}", day(14))),
        (day(14), "ServicesStopped".to_owned()),
        (day(29), format!("Warning DatabaseOnly at {}", day(30))),
        (day(30), "DatabaseOnly".to_owned()),
    ];
    assert_eq!(told, expected);
}

#[test]
fn stages_that_come_together_have_one_warning() {
    let story = live(&tenant(Tier::Basic), 0, 20 * DAY, 3_600);
    let expected = [(11 * DAY, "Warning ServicesStopped at 1209600"), (14 * DAY, "ServicesStopped")];
    assert_eq!(story, words(&expected));
}

#[test]
fn a_late_warning_leaves_its_whole_lead() {
    // Looked at for the first time after a hundred days: warned now, asleep three days later, for bots stop, and at the stage
    // that was named.
    let story = live(&tenant(Tier::Free), 100 * DAY, 104 * DAY, 60);
    let expected = [(100 * DAY, "Warning DatabaseOnly at 8899201"), (8_899_260, "DatabaseOnly")];
    assert_eq!(story, words(&expected));
    // Missed by a minute only: the same.
    let story = live(&tenant(Tier::Free), 7 * DAY + 60, 11 * DAY, 60);
    let expected = [(604_860, "Warning BotsStopped at 864061"), (864_120, "BotsStopped")];
    assert_eq!(story, words(&expected));
}

#[test]
fn without_its_warning_no_stage_is_ever_entered() {
    for tier in Tier::ALL {
        for approved in [false, true] {
            let situation = Situation { approved, ..tenant(tier) };
            for now in (0..60 * DAY).step_by(3_571) {
                for stage in Stage::ALL {
                    let record = Record { stage, ..Record::default() };
                    let gate = judged(&situation, record, after(now));
                    assert!(gate.stage <= stage, "{tier} {approved} after {now} s: {gate:?}");
                }
            }
        }
    }
}

#[test]
fn pro_is_asked_and_waits_for_an_answer() {
    let pro = tenant(Tier::Pro);
    let story = live(&pro, 0, 90 * DAY, 3_600);
    assert_eq!(story, words(&[(30 * DAY, "Question DatabaseOnly at 2592000")]), "asked once, and nothing stops");
    let asked = Record { asked: Some(warned(after(30 * DAY), Stage::DatabaseOnly)), ..Record::default() };
    assert_eq!(judged(&pro, asked, after(50 * DAY)).wait, Some(Wait::Approval));
    let agreed = Situation { approved: true, ..pro };
    let gate = judged(&agreed, asked, after(50 * DAY));
    assert_eq!((gate.stage, gate.falls_asleep, gate.notice), (Stage::DatabaseOnly, true, None), "the answer is enough");
    let before = live(&agreed, 0, 31 * DAY, 3_600);
    let expected = [(27 * DAY, "Warning DatabaseOnly at 2592000"), (30 * DAY, "DatabaseOnly")];
    assert_eq!(before, words(&expected), "who agreed beforehand is warned like others");
}

#[test]
fn an_answer_taken_back_wakes() {
    let asleep = Record {
        stage: Stage::DatabaseOnly,
        asked: Some(warned(after(30 * DAY), Stage::DatabaseOnly)),
        ..Record::default()
    };
    let gate = judged(&tenant(Tier::Pro), asleep, after(50 * DAY));
    assert_eq!((gate.stage, gate.falls_asleep), (Stage::Active, false));
}

#[test]
fn suspension_and_request_ask_nobody() {
    for tier in Tier::ALL {
        let base = tenant(tier);
        let suspended = Situation { suspended: true, ..base };
        let requested = Situation { sleep_requested_at: Some(after(5)), ..base };
        for situation in [suspended, requested] {
            let gate = judged(&situation, Record::default(), after(10));
            assert_eq!((gate.stage, gate.falls_asleep, gate.wait), (Stage::DatabaseOnly, false, None));
        }
    }
}

fn asleep(stage: Stage, since: i64) -> Record {
    Record { stage, warned: Some(warned(after(since), stage)), ..Record::default() }
}

#[test]
fn a_longer_policy_wakes_and_warns_anew() {
    let asleep = asleep(Stage::BotsStopped, 7 * DAY);
    let mut longer = tenant(Tier::Free);
    longer.policy.stop_bots_after = 10 * DAY;
    let gate = judged(&longer, asleep, after(7 * DAY + 60));
    assert_eq!(gate.stage, Stage::Active);
    assert_eq!(gate.notice.map(|notice| notice.deadline), Some(after(10 * DAY)));
}

#[test]
fn a_shorter_policy_keeps_what_was_announced() {
    let warned = Record { warned: Some(warned(after(7 * DAY), Stage::BotsStopped)), ..Record::default() };
    let mut shorter = tenant(Tier::Free);
    shorter.policy.stop_bots_after = DAY;
    let gate = judged(&shorter, warned, after(6 * DAY));
    assert_eq!((gate.stage, gate.wait), (Stage::Active, Some(Wait::Announced(after(7 * DAY)))));
    assert!(judged(&shorter, warned, after(7 * DAY)).falls_asleep);
}

#[test]
fn a_decision_about_another_activity_says_nothing() {
    let decision: Decision = serde_json::from_value(serde_json::json!({
        "stage": "DatabaseOnly", "basedOn": "2026-01-01T00:00:00Z",
        "warnedFor": "2026-01-30T00:00:00Z", "warnedStage": "DatabaseOnly",
    }))
    .expect("a decision");
    let since = |activity| Situation { activity, ..tenant(Tier::Free) };
    assert_eq!(Record::of(Some(&decision), &since(decision.based_on)).stage, Stage::DatabaseOnly);
    assert_eq!(Record::of(Some(&decision), &since(later(decision.based_on, 1))), Record::default());
    assert_eq!(Record::of(None, &since(decision.based_on)), Record::default());
}

/// The end of a suspension or of a request must not leave a stage that nobody was warned of.
#[test]
fn a_stage_that_was_not_announced_is_no_stage_of_idleness() {
    let decided = |more: serde_json::Value| {
        let mut decision = serde_json::json!({"stage": "DatabaseOnly", "basedOn": start().to_string()});
        decision.as_object_mut().expect("a map").extend(more.as_object().expect("a map").clone());
        serde_json::from_value::<Decision>(decision).expect("a decision")
    };
    let stage = |situation: &Situation, more| Record::of(Some(&decided(more)), situation).stage;
    let (free, pro) = (tenant(Tier::Free), tenant(Tier::Pro));
    let warned = serde_json::json!({"warnedFor": after(7 * DAY).to_string(), "warnedStage": "BotsStopped"});
    let asked = serde_json::json!({"askedFor": after(30 * DAY).to_string(), "askedStage": "DatabaseOnly"});
    assert_eq!(stage(&free, serde_json::json!({})), Stage::Active);
    assert_eq!(stage(&free, warned), Stage::BotsStopped);
    assert_eq!(stage(&pro, asked.clone()), Stage::Active, "asked, and not answered");
    assert_eq!(stage(&Situation { approved: true, ..pro }, asked.clone()), Stage::DatabaseOnly);
    assert_eq!(stage(&free, asked), Stage::Active, "a question in another mode is no warning");
}

#[test]
fn a_question_is_no_warning_once_nobody_is_asked() {
    let asked = Record { asked: Some(warned(after(30 * DAY), Stage::DatabaseOnly)), ..Record::default() };
    let mut auto = tenant(Tier::Pro);
    auto.policy.mode = HibernationMode::Auto;
    let gate = judged(&auto, asked, after(50 * DAY));
    assert_eq!((gate.stage, gate.falls_asleep, gate.wait), (Stage::Active, false, Some(Wait::Warning)));
    assert_eq!(gate.notice.map(|notice| notice.kind), Some(NoticeKind::Warning));
}

#[test]
fn a_stage_deeper_than_the_warned_one_is_not_entered() {
    // The policy was shortened after bots had been announced for the seventh day.
    let announced = Record { warned: Some(warned(after(7 * DAY), Stage::BotsStopped)), ..Record::default() };
    let mut shorter = tenant(Tier::Free);
    (shorter.policy.stop_services_after, shorter.policy.database_only_after) = (7 * DAY, 7 * DAY);
    let gate = judged(&shorter, announced, after(7 * DAY));
    assert_eq!((gate.stage, gate.falls_asleep), (Stage::BotsStopped, true));
    let gate = judged(&shorter, asleep(Stage::BotsStopped, 7 * DAY), after(7 * DAY));
    assert_eq!((gate.stage, gate.wait), (Stage::BotsStopped, Some(Wait::Warning)));
    assert_eq!(gate.notice.map(|notice| notice.stage), Some(Stage::DatabaseOnly), "it needs a warning of its own");
}

#[test]
fn where_bots_have_stopped_already_the_lead_is_that_of_the_stages_to_come() {
    let gate = judged(&tenant(Tier::Free), asleep(Stage::BotsStopped, 7 * DAY), after(100 * DAY));
    let notice = gate.notice.expect("a warning");
    assert_eq!((notice.stage, notice.deadline), (Stage::DatabaseOnly, after(101 * DAY + 1)));
}

#[test]
fn an_answer_permits_no_deeper_stage_than_was_asked_about() {
    let asked = Record { asked: Some(warned(after(14 * DAY), Stage::BotsStopped)), ..Record::default() };
    let mut pro = tenant(Tier::Pro);
    let days = |pro: &mut Situation, of: [i64; 3]| {
        [pro.policy.stop_bots_after, pro.policy.stop_services_after, pro.policy.database_only_after] =
            of.map(|days| days * DAY);
    };
    days(&mut pro, [14, 14, 14]);
    let question = judged(&pro, asked, after(15 * DAY)).notice.expect("asked anew");
    assert_eq!((question.kind, question.stage), (NoticeKind::Question, Stage::DatabaseOnly));
    let agreed = Situation { approved: true, ..pro };
    let gate = judged(&agreed, asked, after(15 * DAY));
    assert_eq!((gate.stage, gate.notice), (Stage::BotsStopped, None), "what was asked about");
    let gate = judged(&agreed, Record { stage: Stage::BotsStopped, ..asked }, after(15 * DAY));
    assert_eq!((gate.stage, gate.wait), (Stage::BotsStopped, Some(Wait::Warning)), "what is deeper is warned of");
    days(&mut pro, [14, 20, 30]);
    assert_eq!(judged(&pro, asked, after(15 * DAY)).notice, None, "once is enough");
}

#[test]
fn a_warning_that_comes_late_but_before_its_deadline_leaves_its_whole_lead() {
    let (free, lead) = (tenant(Tier::Free), 3 * DAY);
    let deadline = |now: i64| judged(&free, Record::default(), after(now)).notice.map(|notice| notice.deadline);
    assert_eq!(deadline(4 * DAY + lead / 10), Some(after(7 * DAY)), "a tenth late is not worth another day");
    let late = 7 * DAY - 60;
    assert_eq!(deadline(late), Some(after(late + lead + 1)));
}

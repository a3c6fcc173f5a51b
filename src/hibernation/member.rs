//! One tenant as the hibernator sees it: what its Tenant tells, and what its decision should be.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::ResourceExt;

use super::decide::{Due, Situation, Why, deadlines, decide};
use super::gate::{Announced, Gate, Notice, NoticeKind, Record, Wait, gate};
use crate::api::conditions::{ACTIVITY_INVALID, SLEEP_HELD, WARNING_FAILED, reasons};
use crate::api::tenant::Decision;
use crate::api::{Condition, ConditionStatus, Tenant, Tier};
use crate::controllers::outcome::Verdict;
use crate::domain::activity::{self, Activity};
use crate::domain::catalog::{Catalog, Policy};
use crate::domain::names::annotation;
use crate::domain::stage::Stage;
use crate::status::{Seen, condition, whole_second};
use crate::validate;

/// The value of the annotation `torpor.dev/hibernate` by which a user agrees.
const APPROVED: &str = "approved";

/// What a Tenant tells about activity, sleep and earlier decisions; a few hundred bytes.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Its name.
    pub name: Arc<str>,
    /// Its uid.
    pub uid: String,
    /// Its resource version as a number, for comparing age.
    pub version: u64,
    /// Its generation.
    pub generation: i64,
    /// Its tier.
    pub tier: Tier,
    /// When it sleeps. `None` where `spec.hibernation` contradicts itself or the tier.
    pub policy: Option<Policy>,
    /// `spec.suspended`.
    pub suspended: bool,
    /// What it tells of its user's activity.
    pub activity: Activity,
    /// The user's answer by annotation.
    pub approval: Approval,
    /// When the user agreed through the gateway.
    pub approved_at: Option<Timestamp>,
    /// The last decision.
    pub decision: Option<Decision>,
    /// Conditions that the hibernator wrote.
    pub conditions: Vec<Condition>,
}

/// The annotation `torpor.dev/hibernate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Approval {
    /// It is not there.
    Absent,
    /// It says `approved`; its manager last wrote at this time, as far as that is known.
    Given(Option<Timestamp>),
    /// It says something else.
    Malformed,
}

impl Facts {
    /// Reads a Tenant. `None` for one that is being deleted: nothing is decided for it any more.
    pub fn read(tenant: &Tenant, catalog: &Catalog) -> Option<Self> {
        if tenant.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let status = tenant.status.as_ref();
        let own = |condition: &&Condition| [SLEEP_HELD, WARNING_FAILED, ACTIVITY_INVALID].contains(&&*condition.type_);
        let approval = match tenant.annotations().get(annotation::HIBERNATE).map(String::as_str) {
            None => Approval::Absent,
            Some(APPROVED) => Approval::Given(annotated_at(tenant.managed_fields(), annotation::HIBERNATE)),
            Some(_) => Approval::Malformed,
        };
        Some(Facts {
            name: tenant.name_any().into(),
            uid: tenant.uid().unwrap_or_default(),
            version: tenant.resource_version().and_then(|version| version.parse().ok()).unwrap_or_default(),
            generation: tenant.metadata.generation.unwrap_or_default(),
            tier: tenant.spec.tier,
            policy: validate::hibernation(&tenant.spec, catalog).ok(),
            suspended: tenant.spec.suspended,
            activity: activity::read(tenant),
            approval,
            approved_at: status.and_then(|s| s.requests.as_ref()).and_then(|asked| asked.hibernation_approved_at),
            decision: status.and_then(|s| s.hibernation.as_ref()).and_then(|sleep| sleep.decision.as_deref().cloned()),
            conditions: status.map(|s| s.conditions.iter().filter(own).cloned().collect()).unwrap_or_default(),
        })
    }

    /// The activity for whose idle period the user agreed. The gateway notes the moment of an approval, which tells
    /// its period. An annotation counts for the period in which it is first seen, unless it was given before that
    /// period's activity; it must be taken away before it can be given again.
    fn approved_for(&self, now: Timestamp) -> Option<Timestamp> {
        let past = |at: &Timestamp| !activity::in_future(*at, now);
        if self.approved_at.filter(past).is_some_and(|at| at >= self.activity.newest) {
            return Some(self.activity.newest);
        }
        let Approval::Given(at) = self.approval else { return None };
        let recorded = self.decision.as_ref().and_then(|decision| decision.approved_for);
        // Kubernetes notes whole seconds.
        let earlier = at.filter(|at| at.as_second() < self.activity.newest.as_second());
        recorded.or(earlier).or(Some(self.activity.newest))
    }
}

impl Facts {
    /// Until when nothing would be due, as the last decision saw it: by the policy of then, and by an activity that may have become newer.
    pub fn not_due_before(&self) -> Option<Timestamp> {
        let decision = self.decision.as_ref().filter(|decision| decision.held.is_none())?;
        // One without a next stage says that there is none.
        Some(decision.next_transition_time.unwrap_or(Timestamp::MAX))
    }

    /// When a time that lies in the future will no longer be worth a word.
    pub fn comes_true_at(&self, now: Timestamp) -> Option<Timestamp> {
        let approved = self.approved_at.filter(|at| activity::in_future(*at, now));
        let ahead = [self.activity.ahead(now), self.activity.sleep_request_ahead(now), approved];
        ahead.into_iter().flatten().min().map(activity::comes_true)
    }
}

/// When the manager of an annotation last wrote.
fn annotated_at(managed: &[ManagedFieldsEntry], key: &str) -> Option<Timestamp> {
    let field = format!("f:{key}");
    let owns = |entry: &&ManagedFieldsEntry| {
        let fields = entry.fields_v1.as_ref().map(|fields| &fields.0["f:metadata"]["f:annotations"]);
        fields.is_some_and(|annotations| annotations.get(&field).is_some())
    };
    managed.iter().filter(owns).filter_map(|entry| entry.time.as_ref()).map(|time| time.0).max()
}

/// What is thought of one tenant at one moment.
#[derive(Clone, Debug)]
pub struct View {
    /// What is known.
    pub situation: Situation,
    /// The stage that is due.
    pub due: Due,
    /// What earlier decisions say.
    pub record: Record,
    /// What is to be done.
    pub gate: Gate,
    approved_for: Option<Timestamp>,
}

impl View {
    /// `told` is a notice that was given and is not in any decision yet.
    pub fn of(facts: &Facts, told: Option<&Notice>, now: Timestamp) -> Self {
        let approved_for = facts.approved_for(now);
        let activity = facts.activity.newest;
        let situation = Situation {
            policy: facts.policy.unwrap_or(NO_POLICY),
            suspended: facts.suspended,
            activity,
            doubtful: facts.policy.is_none() || facts.activity.doubtful(),
            sleep_requested_at: facts.activity.sleep_request(now),
            approved: approved_for == Some(activity),
        };
        let due = decide(&situation, now);
        let mut record = Record::of(facts.decision.as_ref(), &situation);
        match told {
            Some(told) if told.kind == NoticeKind::Warning => {
                record.warned = Some(Announced { at: told.deadline, stage: told.stage });
            }
            Some(told) => record.asked = Some(Announced { at: told.due_at, stage: told.stage }),
            None => {}
        }
        let gate = gate(&situation, &due, &record, now);
        View { situation, due, record, gate, approved_for }
    }

    /// When the stage that is due became due.
    pub fn due_since(&self, now: Timestamp) -> Timestamp {
        let all = deadlines(&self.situation.policy, self.situation.activity);
        let passed = all.iter().filter(|deadline| deadline.at <= now && deadline.stage > self.record.stage);
        passed.map(|deadline| deadline.at).min().unwrap_or(now)
    }
}

/// Stands where a policy cannot be read; such a tenant is in doubt and stays awake before this is asked.
const NO_POLICY: Policy = Policy {
    mode: crate::api::HibernationMode::Never,
    stop_bots_after: i64::MAX,
    stop_services_after: i64::MAX,
    database_only_after: i64::MAX,
    warn_before: crate::domain::catalog::Leads { stop_bots: 0, stop_services: 0, database_only: 0 },
};

/// What the shell knows of a tenant's sleep beyond its Tenant.
#[derive(Clone, Copy, Debug, Default)]
pub struct Beyond<'a> {
    /// A deeper stage was permitted by breaker and pace.
    pub permitted: bool,
    /// Why the breaker is open, if it is.
    pub breaker: Option<&'a str>,
    /// Why the webhook did not take the warning, since when, and whether that is no longer waited for.
    pub failing: Option<&'a Failing>,
}

/// A warning that does not reach its receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failing {
    /// When it was first tried.
    pub since: Timestamp,
    /// What happened last.
    pub error: String,
    /// Tries so far.
    pub attempts: u32,
    /// It is not tried any more; the Event stands for it.
    pub gave_up: bool,
}

/// The schema takes no more; somebody's words why sleep is held may be longer.
const HELD_LENGTH: usize = 1_000;

/// Failures in a row before a status shows them: one hiccup is no news.
const SHOWN_AFTER: u32 = 3;

/// The hibernator's part of a Tenant's status.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    /// The decision.
    pub decision: Decision,
    /// Its conditions, each only while it holds.
    pub conditions: Vec<Condition>,
}

/// What should stand in a Tenant's status.
pub fn written(facts: &Facts, view: &View, beyond: Beyond, now: Timestamp) -> Written {
    let View { due, gate, record, .. } = view;
    let falls = gate.falls_asleep && beyond.permitted;
    let stage = if gate.falls_asleep && !falls { record.stage } else { gate.stage };
    let hold = hold(facts, view, beyond, stage);
    let same = facts.decision.as_ref().filter(|old| old.stage == stage && old.based_on == due.based_on);
    let next = match gate.wait {
        Some(Wait::Announced(at)) => Some(at),
        Some(Wait::Warning | Wait::Approval) => None,
        // It has come, and only the pace is awaited.
        None if gate.falls_asleep && !falls => Some(view.due_since(now)),
        None => due.next.map(|next| next.at.max(record.warned.map_or(next.at, |warned| warned.at))),
    };
    let next = next.filter(|_| beyond.breaker.is_none() || stage == Stage::Active && due.stage == Stage::Active);
    let decision = Decision {
        stage,
        based_on: due.based_on,
        idle_stage: matches!(due.why, Why::Suspended | Why::SleepRequested).then_some(record.stage),
        decided_at: same.map_or(Some(whole_second(now)), |old| old.decided_at),
        reason: Some(reason(view, stage)),
        next_transition_time: next,
        warned_for: record.warned.map(|warned| warned.at),
        warned_stage: record.warned.map(|warned| warned.stage),
        asked_for: record.asked.map(|asked| asked.at),
        asked_stage: record.asked.map(|asked| asked.stage),
        approved_for: view.approved_for,
        held: hold.as_ref().map(|verdict| verdict.message.chars().take(HELD_LENGTH).collect()),
    };
    let seen = Seen { generation: facts.generation, now };
    let verdicts = [
        (SLEEP_HELD, hold),
        (WARNING_FAILED, beyond.failing.and_then(failed)),
        (ACTIVITY_INVALID, invalid(facts, now)),
    ];
    let told = |(type_, verdict): (&str, Option<Verdict>)| {
        verdict.map(|verdict| condition(&facts.conditions, type_, &verdict, seen))
    };
    let mut conditions: Vec<Condition> = verdicts.into_iter().filter_map(told).collect();
    if beyond.failing.is_none() {
        conditions.extend(given_up_before(facts, &decision).cloned());
    }
    Written { decision, conditions }
}

/// The condition that another process left when it gave a warning up, as long as that warning is the last one.
fn given_up_before<'a>(facts: &'a Facts, decision: &Decision) -> Option<&'a Condition> {
    let notices = |decision: &Decision| (decision.based_on, decision.warned_for, decision.asked_for);
    let same = facts.decision.as_ref().is_some_and(|old| notices(old) == notices(decision));
    let told = decision.warned_for.or(decision.asked_for).is_some();
    facts.conditions.iter().find(|condition| condition.type_ == WARNING_FAILED).filter(|_| same && told)
}

/// Whether that says anything that the Tenant's status does not say yet.
///
/// While a tenant is awake each login moves its next deadline. That alone is written only when it moved by more than a
/// 24th of the time until bots stop, so that logins do not each cost a write.
pub fn worth_writing(facts: &Facts, new: &Written) -> bool {
    // The end of a suspension is being recorded; until then nobody knows what the decision would be based on.
    if new.decision.based_on == Timestamp::MAX {
        return false;
    }
    let Some(old) = &facts.decision else { return true };
    let words = |conditions: &[Condition]| {
        let one = |c: &Condition| (c.type_.clone(), c.status, c.reason.clone(), c.message.clone());
        let mut all: Vec<_> = conditions.iter().map(one).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    };
    let new_decision = &new.decision;
    let asleep_since_another = new_decision.stage > Stage::Active && old.based_on != new_decision.based_on;
    let step = facts.policy.map_or(0, |policy| policy.stop_bots_after / 24);
    let moved = match (old.next_transition_time, new_decision.next_transition_time) {
        (Some(old), Some(new)) => new.duration_since(old).abs() > SignedDuration::from_secs(step),
        (None, None) => false,
        (Some(_), None) | (None, Some(_)) => true,
    };
    old.stage != new_decision.stage
        || old.idle_stage != new_decision.idle_stage
        || asleep_since_another
        || moved
        || old.held != new_decision.held
        || old.reason != new_decision.reason
        || old.warned_for != new_decision.warned_for
        || old.warned_stage != new_decision.warned_stage
        || old.asked_for != new_decision.asked_for
        || old.asked_stage != new_decision.asked_stage
        || old.approved_for != new_decision.approved_for
        || words(&facts.conditions) != words(&new.conditions)
}

/// Why the tenant is at this stage; no number in it changes by the mere passing of time.
fn reason(view: &View, stage: Stage) -> String {
    let policy = &view.situation.policy;
    let after = |stage| match stage {
        Stage::Active => 0,
        Stage::BotsStopped => policy.stop_bots_after,
        Stage::ServicesStopped => policy.stop_services_after,
        Stage::DatabaseOnly => policy.database_only_after,
    };
    match view.due.why {
        Why::Suspended => "spec.suspended is set".to_owned(),
        Why::SleepRequested => "sleep was asked for after the newest activity".to_owned(),
        Why::NeverSleeps => "the policy is Never".to_owned(),
        Why::Doubtful => "its activity or its policy cannot be read, so it stays awake".to_owned(),
        Why::Active => "in use, or not idle for long enough".to_owned(),
        Why::Unapproved => "idle for long enough, and its user has not agreed to sleep".to_owned(),
        Why::Idle if stage == Stage::Active => "idle for long enough, and still awake; see held".to_owned(),
        Why::Idle => format!("idle for {}", duration(after(stage))),
    }
}

fn duration(seconds: i64) -> String {
    crate::domain::duration::words(seconds)
}

fn holds(reason: &'static str, message: impl Into<String>) -> Verdict {
    Verdict { status: ConditionStatus::True, reason, message: message.into() }
}

/// Why a deeper stage that is due is not entered.
fn hold(facts: &Facts, view: &View, beyond: Beyond, stage: Stage) -> Option<Verdict> {
    if let (Some(message), true) = (beyond.breaker, view.due.why == Why::Idle && view.due.stage > stage) {
        return Some(holds(reasons::BREAKER_OPEN, format!("sleep is held for every tenant: {message}")));
    }
    Some(match view.gate.wait? {
        Wait::Warning => holds(
            reasons::AWAITING_WARNING,
            format!("stage {} is due and waits until its warning is delivered", view.due.stage),
        ),
        Wait::Announced(at) => holds(
            reasons::AWAITING_WARNING,
            format!("stage {} is due and its warning came late; it named {at}", view.due.stage),
        ),
        Wait::Approval => {
            let old = matches!(facts.approval, Approval::Given(_));
            let hint = if old {
                "the annotation torpor.dev/hibernate was given for an earlier idle period; remove it, then set it again"
            } else {
                "to agree, set the annotation torpor.dev/hibernate=approved"
            };
            holds(reasons::AWAITING_APPROVAL, format!("idle for long enough to sleep if its user agrees; {hint}"))
        }
    })
}

fn failed(failing: &Failing) -> Option<Verdict> {
    let Failing { since, error, attempts, gave_up } = failing;
    let shown = *gave_up || *attempts >= SHOWN_AFTER;
    let end = if *gave_up { "it is not tried any more, the Event stands for it" } else { "trying again" };
    let message = format!("the warning was not delivered since {}: {error}; {end}", whole_second(*since));
    shown.then(|| holds(reasons::WEBHOOK_FAILED, message))
}

/// What of activity and approval cannot be used as it stands.
fn invalid(facts: &Facts, now: Timestamp) -> Option<Verdict> {
    let mut malformed: Vec<String> = facts
        .activity
        .malformed
        .iter()
        .map(|key| format!("annotation {key} holds no time such as 2026-01-31T12:00:00Z and is ignored"))
        .collect();
    if facts.approval == Approval::Malformed {
        malformed.push(format!("annotation {} is not {APPROVED} and is ignored", annotation::HIBERNATE));
    }
    if !malformed.is_empty() {
        return Some(holds(reasons::MALFORMED, malformed.join("; ")));
    }
    let mut future = Vec::new();
    if let Some(newest) = facts.activity.ahead(now) {
        future.push(format!("the newest activity, {newest}, lies in the future and counts as now"));
    }
    if let Some(asked) = facts.activity.sleep_request_ahead(now) {
        let place = match facts.activity.sleep_requests[0] {
            Some(annotated) if annotated == asked => format!("annotation {}", annotation::SLEEP_REQUESTED_AT),
            _ => "status.requests.sleepRequestedAt".to_owned(),
        };
        future.push(format!("{place} names {asked}, which lies in the future, and is ignored until then"));
    }
    (!future.is_empty()).then(|| holds(reasons::FUTURE, future.join("; ")))
}

#[cfg(test)]
#[path = "tests/member.rs"]
mod tests;

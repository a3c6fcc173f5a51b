//! A notice to a user on its way: each try, and when it is given up.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::gate::{Notice, NoticeKind};
use super::member::Failing;
use crate::api::Tier;

/// A notice on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Telling {
    kind: NoticeKind,
    due_at: Timestamp,
    /// The newest activity when it was begun.
    pub(super) activity: Timestamp,
    since: Timestamp,
    pub(super) attempts: u32,
    pub(super) under_way: bool,
    pub(super) again_at: Option<Timestamp>,
    /// What its Event says, once that is stored.
    pub(super) recorded: Option<Notice>,
    /// Since when its receiver has been tried without a pause of ours. Giving up counts from here.
    pub(super) refused_since: Option<Timestamp>,
}

impl Telling {
    /// The next try of a notice, of which an earlier one may be known.
    pub(super) fn next(known: Option<Self>, notice: Notice, activity: Timestamp, now: Timestamp) -> Self {
        let of = |telling: &Self| (telling.kind, telling.activity, telling.due_at);
        let new = Telling {
            kind: notice.kind,
            due_at: notice.due_at,
            activity,
            since: now,
            attempts: 0,
            under_way: true,
            again_at: None,
            recorded: None,
            refused_since: None,
        };
        Telling { under_way: true, again_at: None, ..known.filter(|known| of(known) == of(&new)).unwrap_or(new) }
    }

    /// A try of this notice has failed. Returns what the Tenant's status says of it, and the notice that counts as given where its
    /// receiver has been tried for long enough.
    pub(super) fn failed(
        &mut self,
        notice: Notice,
        failed: NotTold,
        (pause, give_up): (SignedDuration, SignedDuration),
        now: Timestamp,
    ) -> (Failing, Option<Notice>) {
        self.attempts += 1;
        self.again_at = now.checked_add(pause).ok();
        let (error, instead) = match failed {
            NotTold::Event(error) => (error, None),
            NotTold::Webhook(error) => {
                let recorded = *self.recorded.get_or_insert(notice);
                let since = *self.refused_since.get_or_insert(now);
                (error, Some(recorded).filter(|_| now.duration_since(since) >= give_up))
            }
        };
        let gave_up = instead.is_some();
        (Failing { since: self.since, error, attempts: self.attempts, gave_up }, instead)
    }
}

/// Which half of a notice failed, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotTold {
    /// Its Event was not stored. Without that nothing stands for the notice, so it is never given up.
    Event(String),
    /// Its Event is stored; the webhook's receiver did not take it.
    Webhook(String),
}

impl std::fmt::Display for NotTold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (NotTold::Event(error) | NotTold::Webhook(error)) = self;
        f.write_str(error)
    }
}

/// A notice to give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tell {
    /// Name of the Tenant.
    pub name: Arc<str>,
    /// Its uid.
    pub uid: String,
    /// Its tier.
    pub tier: Tier,
    /// The notice.
    pub notice: Notice,
    /// The newest activity.
    pub idle_since: Timestamp,
    /// Tries before this one.
    pub attempts: u32,
    /// Its Event is stored already.
    pub recorded: bool,
}

impl Tell {
    /// What names this notice for good: the same for each try, and after a restart. Webhooks want it without full stops. A
    /// question and a warning about one moment are two notices: whoever was asked has not been warned.
    pub fn id(&self) -> String {
        let kind = match self.notice.kind {
            NoticeKind::Warning => "warning",
            NoticeKind::Question => "question",
        };
        format!("{}/{}/{}/{kind}", self.uid, self.notice.stage, self.notice.due_at.as_second())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::stage::Stage;

    #[test]
    fn a_question_and_a_warning_about_one_moment_are_two_notices() {
        let start = Timestamp::UNIX_EPOCH;
        let tell = |kind| Tell {
            name: "alice".into(),
            uid: "uid".to_owned(),
            tier: Tier::Pro,
            notice: Notice { kind, stage: Stage::BotsStopped, due_at: start, deadline: start },
            idle_since: start,
            attempts: 0,
            recorded: false,
        };
        assert_ne!(tell(NoticeKind::Question).id(), tell(NoticeKind::Warning).id());
    }
}

//! What is to be done to which request, as data.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::request::Request;

/// Which requests a rule is about. What is absent matches anything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Match {
    /// The verb, `apply` and `patch` apart.
    pub verb: Option<String>,
    /// API group.
    pub group: Option<String>,
    /// Resource in the plural.
    pub resource: Option<String>,
    /// Subresource; an empty one means the object itself.
    pub subresource: Option<String>,
    /// Namespace.
    pub namespace: Option<String>,
    /// Name.
    pub name: Option<String>,
    /// Label selector of a list or watch.
    pub selector: Option<String>,
    /// Only what can change something, the Lease apart.
    pub writes: bool,
}

impl Match {
    /// Exactly the requests that this one is an example of.
    pub fn like(request: &Request) -> Self {
        Self {
            verb: Some(request.verb.clone()),
            group: Some(request.group.clone()),
            resource: Some(request.resource.clone()),
            subresource: Some(request.subresource.clone()),
            namespace: Some(request.namespace.clone()),
            name: Some(request.name.clone()),
            selector: None,
            writes: request.is_write(),
        }
    }

    /// Whether it is about that request.
    pub fn takes(&self, request: &Request) -> bool {
        let same = |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|wanted| wanted == found);
        same(&self.verb, &request.verb)
            && same(&self.group, &request.group)
            && same(&self.resource, &request.resource)
            && same(&self.subresource, &request.subresource)
            && same(&self.namespace, &request.namespace)
            && same(&self.name, &request.name)
            && same(&self.selector, &request.selector)
            && (!self.writes || (request.is_write() && !request.is_lease()))
    }
}

/// What is done to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Action {
    /// It arrives late.
    Delay {
        /// By this much.
        millis: u64,
    },
    /// It never arrives, and its connection is cut.
    Cut,
    /// It never arrives, and nobody says so before the connection ends.
    Silence {
        /// For this long.
        millis: u64,
    },
    /// It never arrives; this is the answer.
    Answer {
        /// HTTP status code.
        code: u16,
        /// Reason of the Status object, e.g. `Conflict`.
        reason: String,
        /// `Retry-After` in seconds.
        #[serde(default)]
        retry_after: Option<u32>,
    },
    /// It arrives, and its connection is cut instead of an answer.
    CommitThenCut,
    /// It arrives, and this is answered instead.
    CommitThenAnswer {
        /// HTTP status code.
        code: u16,
        /// Reason of the Status object.
        reason: String,
    },
    /// The process is killed instead of the request.
    KillBefore,
    /// The process is killed instead of the answer.
    KillUnanswered,
    /// The process is killed when it has the answer, before it asks for anything else.
    KillAfter,
    /// The process is stopped instead: the request waits at the closed gate, and arrives when that opens.
    Hold,
    /// Frames of this watch are treated.
    Frames(FrameAction),
}

impl Action {
    /// Whether the process is killed.
    pub fn kills(&self) -> bool {
        matches!(self, Self::KillBefore | Self::KillUnanswered | Self::KillAfter)
    }
}

/// What is done to the frames of a watch, from the rule's first frame on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum FrameAction {
    /// They arrive late.
    Delay {
        /// By this much.
        millis: u64,
    },
    /// They never arrive, and the connection stays.
    Drop,
    /// The connection ends instead.
    Cut,
    /// The watch ends with this Status, code 410 for example.
    Error {
        /// Code of the Status object.
        code: u16,
        /// Its reason.
        reason: String,
    },
    /// This field of the object, a JSON pointer, has another value.
    Set {
        /// Where.
        pointer: String,
        /// What.
        value: Value,
    },
}

impl Eq for FrameAction {}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// Which requests.
    #[serde(default)]
    pub of: Match,
    /// Only the so-manieth of them, counted from 1; all without it.
    #[serde(default)]
    pub nth: Option<usize>,
    /// Only each so-manieth of them.
    #[serde(default)]
    pub every: Option<usize>,
    /// What is done.
    pub action: Action,
}

/// Which kinds a view is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kinds {
    /// None.
    #[default]
    Nothing,
    /// All.
    All,
    /// Torpor's own, which say what is wanted.
    Wishes,
    /// All others, which say what there is.
    Rest,
}

impl Kinds {
    /// Whether it is about the kind that this request is about.
    pub fn take(self, request: &Request) -> bool {
        match self {
            Self::Nothing => false,
            Self::All => true,
            Self::Wishes => request.group == "torpor.dev",
            Self::Rest => request.group != "torpor.dev",
        }
    }
}

/// How the process is shown the cluster, as an API server shows it that lags behind. Single objects are shown as they are, but by the
/// second API server: others ask etcd for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct View {
    /// What all namespaces hold of these kinds is listed as it was at the version of [`crate::proxy::Proxy::remember`].
    pub old_lists: Kinds,
    /// Watches of these kinds are late, those that run already too.
    pub late: Kinds,
    /// By so much.
    pub millis: u64,
    /// Of what came late about one object only the newest is told.
    pub newest_only: bool,
    /// Half of the watches and a fourth of all else lead to a second API server, which hears of etcd so many milliseconds late; 0: there is
    /// none.
    pub second_behind: u64,
}

impl View {
    /// Nothing old, nothing late.
    pub const AS_IT_IS: Self =
        Self { old_lists: Kinds::Nothing, late: Kinds::Nothing, millis: 0, newest_only: false, second_behind: 0 };

    /// How late the process may hear of anything.
    pub fn latest(&self) -> Duration {
        Duration::from_millis(self.millis.max(self.second_behind))
    }

    /// How late the frames of that watch are.
    pub fn lateness(&self, request: &Request) -> Duration {
        if self.late.take(request) { Duration::from_millis(self.millis) } else { Duration::ZERO }
    }
}

/// Rules; the first that takes a request decides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The rules in order.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// How the process is shown the cluster meanwhile.
    #[serde(default)]
    pub view: View,
    /// How many requests each rule's match has taken.
    #[serde(skip)]
    counts: Vec<usize>,
    #[serde(skip)]
    met: Vec<bool>,
}

impl Plan {
    /// These rules.
    pub fn new(rules: Vec<Rule>) -> Self {
        Self { rules, ..Self::default() }
    }

    /// The same with the cluster shown like this.
    #[must_use]
    pub fn shown(self, view: View) -> Self {
        Self { view, ..self }
    }

    /// Rules from JSON.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// Which rules have decided about a request, in their order.
    pub fn met(&self) -> Vec<bool> {
        let met = self.met.iter().copied().chain(std::iter::repeat(false));
        met.take(self.rules.len()).collect()
    }

    /// What is left of it, with what has been counted: the rules that have not been met, or are for more than one request.
    #[must_use]
    pub fn rest(&self) -> Self {
        let counts = self.counts.iter().copied().chain(std::iter::repeat(0));
        let rules = self.rules.iter().cloned().zip(counts).zip(self.met());
        let (rules, counts) =
            rules.filter_map(|((rule, count), met)| (!met || rule.nth.is_none()).then_some((rule, count))).unzip();
        Self { rules, view: self.view, counts, met: Vec::new() }
    }

    /// Counts the request and says what is done to it.
    pub fn decide(&mut self, request: &Request) -> Option<Action> {
        self.counts.resize(self.rules.len(), 0);
        self.met.resize(self.rules.len(), false);
        let mut decided = None;
        for ((rule, count), met) in self.rules.iter().zip(&mut self.counts).zip(&mut self.met) {
            if rule.of.takes(request) {
                *count += 1;
                let due =
                    rule.nth.is_none_or(|nth| nth == *count) && rule.every.is_none_or(|every| *count % every == 0);
                if decided.is_none() && due {
                    *met = true;
                    decided = Some(rule.action.clone());
                }
            }
        }
        decided
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(verb: &str, resource: &str, name: &str) -> Request {
        Request { verb: verb.into(), resource: resource.into(), name: name.into(), ..Request::default() }
    }

    #[test]
    fn the_nth_of_those_that_match_is_met() {
        let mut plan = Plan::parse(
            r#"{"rules": [
                {"of": {"verb": "patch", "resource": "pods"}, "nth": 2, "action": "cut"},
                {"of": {"writes": true}, "nth": 4, "action": {"answer": {"code": 429, "reason": "TooManyRequests", "retryAfter": 2}}},
                {"of": {"verb": "watch"}, "action": {"frames": {"delay": {"millis": 20}}}}
            ]}"#,
        )
        .expect("a plan");
        assert_eq!(plan.decide(&request("patch", "pods", "a")), None);
        assert_eq!(plan.decide(&request("patch", "leases", "a")), None);
        assert_eq!(plan.decide(&request("get", "pods", "a")), None);
        assert_eq!(plan.decide(&request("patch", "pods", "b")), Some(Action::Cut));
        assert_eq!(plan.decide(&request("delete", "pods", "b")), None);
        let answer = Action::Answer { code: 429, reason: "TooManyRequests".into(), retry_after: Some(2) };
        assert_eq!(plan.decide(&request("delete", "pods", "b")), Some(answer));
        let late = Action::Frames(FrameAction::Delay { millis: 20 });
        assert_eq!(plan.decide(&request("watch", "pods", "")), Some(late.clone()));
        assert_eq!(plan.decide(&request("watch", "pods", "")), Some(late));
        assert_eq!(plan.met(), [true, true, true]);
    }

    #[test]
    fn each_nth_is_met() {
        let mut plan =
            Plan::parse(r#"{"rules": [{"of": {"writes": true}, "every": 3, "action": "cut"}]}"#).expect("a plan");
        let met = (0..9).filter(|_| plan.decide(&request("patch", "pods", "a")).is_some()).count();
        assert_eq!(met, 3);
    }

    #[test]
    fn who_decides_has_been_met() {
        let of = |nth| format!(r#"{{"of": {{"writes": true}}, "nth": {nth}, "action": "cut"}}"#);
        let mut plan = Plan::parse(&format!(r#"{{"rules": [{}, {}, {}]}}"#, of(2), of(2), of(3))).expect("a plan");
        assert_eq!(plan.met(), [false, false, false]);
        plan.decide(&request("patch", "pods", "a"));
        plan.decide(&request("patch", "pods", "a"));
        assert_eq!(plan.met(), [true, false, false], "the first rule that takes a request decides");
        let mut rest = plan.rest();
        assert_eq!(rest.rules.len(), 2);
        rest.decide(&request("patch", "pods", "a"));
        assert_eq!(rest.met(), [false, true], "what was counted before counts");
    }

    #[test]
    fn a_view_is_about_wishes_or_about_what_there_is() {
        let plan = Plan::parse(r#"{"view": {"oldLists": "rest", "late": "wishes", "millis": 20}}"#).expect("a plan");
        let tenants = Request { group: "torpor.dev".into(), ..request("watch", "tenants", "") };
        let pods = request("watch", "pods", "");
        assert_eq!(plan.view.lateness(&tenants), Duration::from_millis(20));
        assert_eq!(plan.view.lateness(&pods), Duration::ZERO);
        assert!(plan.view.old_lists.take(&pods) && !plan.view.old_lists.take(&tenants));
        assert_eq!(View::default().lateness(&pods), Duration::ZERO);
    }

    #[test]
    fn unknown_words_are_refused() {
        assert!(Plan::parse(r#"{"rules": [{"of": {"verbs": "patch"}, "action": "cut"}]}"#).is_err());
        assert!(Plan::parse(r#"{"rules": [{"action": "explode"}]}"#).is_err());
    }

    #[test]
    fn a_request_is_like_itself() {
        let own = request("delete", "pods", "a");
        assert!(Match::like(&own).takes(&own));
        assert!(!Match::like(&own).takes(&request("delete", "pods", "b")));
        assert!(!Match::like(&own).takes(&Request { dry_run: true, ..own.clone() }));
    }
}

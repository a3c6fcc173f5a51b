//! Which part of a status is the operator's, which belongs to hibernator and gateway, and what may be told late.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::conditions::{HIBERNATED, READY, RECONCILING, STALLED};
use crate::api::{BotFleetStatus, Condition, TenantStatus, WorkerPoolStatus};

/// Condition types that the operator writes.
const OWN: [&str; 4] = [READY, RECONCILING, STALLED, HIBERNATED];

/// A status with parts of several writers.
pub trait Status: Serialize + DeserializeOwned + Clone + Default + PartialEq {
    /// All conditions.
    fn conditions(&self) -> &[Condition];

    /// The operator's part alone, in a fixed order, for comparing.
    #[must_use]
    fn own(&self) -> Self;

    /// What must be told at once: the operator's part without wording and counts, which change with every pod.
    #[must_use]
    fn urgent(&self) -> Self;

    /// The operator's part of this status together with the others' parts of an older one.
    #[must_use]
    fn over(&self, old: &Self) -> Self;
}

fn own_conditions(conditions: &[Condition]) -> Vec<Condition> {
    let mut own: Vec<Condition> =
        conditions.iter().filter(|condition| OWN.contains(&condition.type_.as_str())).cloned().collect();
    own.sort_by(|a, b| a.type_.cmp(&b.type_));
    own
}

fn without_wording(conditions: &mut [Condition]) {
    for condition in conditions {
        condition.message.clear();
    }
}

fn all_conditions(new: &[Condition], old: &[Condition]) -> Vec<Condition> {
    let others = old.iter().filter(|condition| !OWN.contains(&condition.type_.as_str()));
    new.iter().chain(others).cloned().collect()
}

impl Status for TenantStatus {
    fn conditions(&self) -> &[Condition] {
        &self.conditions
    }

    fn own(&self) -> Self {
        let mut own = self.clone();
        own.conditions = own_conditions(&self.conditions);
        own.last_activity_time = None;
        own.requests = None;
        if let Some(hibernation) = &mut own.hibernation {
            hibernation.decision = None;
        }
        own
    }

    fn urgent(&self) -> Self {
        let mut urgent = TenantStatus { bots: None, cost: None, ..self.own() };
        without_wording(&mut urgent.conditions);
        for part in urgent.wake.iter_mut().flat_map(|wake| &mut wake.parts) {
            part.message = None;
        }
        urgent
    }

    fn over(&self, old: &Self) -> Self {
        let mut all = self.clone();
        all.conditions = all_conditions(&self.conditions, &old.conditions);
        all.last_activity_time = old.last_activity_time;
        all.requests.clone_from(&old.requests);
        if let Some(decision) = old.hibernation.as_ref().and_then(|hibernation| hibernation.decision.clone()) {
            all.hibernation.get_or_insert_default().decision = Some(decision);
        }
        all
    }
}

impl Status for BotFleetStatus {
    fn conditions(&self) -> &[Condition] {
        &self.conditions
    }

    fn own(&self) -> Self {
        BotFleetStatus { conditions: own_conditions(&self.conditions), ..self.clone() }
    }

    fn urgent(&self) -> Self {
        let mut urgent = BotFleetStatus { replicas: None, ready_replicas: None, ..self.own() };
        without_wording(&mut urgent.conditions);
        urgent
    }

    fn over(&self, old: &Self) -> Self {
        BotFleetStatus { conditions: all_conditions(&self.conditions, &old.conditions), ..self.clone() }
    }
}

impl Status for WorkerPoolStatus {
    fn conditions(&self) -> &[Condition] {
        &self.conditions
    }

    fn own(&self) -> Self {
        WorkerPoolStatus { conditions: own_conditions(&self.conditions), ..self.clone() }
    }

    fn urgent(&self) -> Self {
        let mut urgent = self.own();
        without_wording(&mut urgent.conditions);
        urgent
    }

    fn over(&self, old: &Self) -> Self {
        WorkerPoolStatus { conditions: all_conditions(&self.conditions, &old.conditions), ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(value: serde_json::Value) -> TenantStatus {
        serde_json::from_value(value).expect("a status")
    }

    #[test]
    fn other_writers_fields_are_neither_compared_nor_lost() {
        let condition = |type_: &str| json!({"type": type_, "status": "True", "reason": "R", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let mine = status(json!({"conditions": [condition("Ready")], "hibernation": {"stage": "Active"}}));
        let both = status(json!({
            "conditions": [condition("Warned"), condition("Ready")],
            "lastActivityTime": "2026-01-01T00:00:00Z",
            "requests": {"sleepRequestedAt": "2026-01-01T00:00:00Z"},
            "hibernation": {"stage": "Active", "decision": {"stage": "BotsStopped", "basedOn": "2026-01-01T00:00:00Z"}},
        }));
        assert_eq!(mine.own(), both.own());
        let merged = mine.over(&both);
        assert_eq!(merged.last_activity_time, both.last_activity_time);
        assert_eq!(merged.requests, both.requests);
        assert_eq!(merged.hibernation, both.hibernation);
        assert_eq!(merged.conditions.len(), 2);
        let without_volumes = status(json!({}));
        let with_volumes = status(json!({"retainedVolumes": ["data-bots-a-0"]}));
        assert_ne!(without_volumes.own(), with_volumes.own(), "a list that became empty is a difference");
    }

    #[test]
    fn only_wording_and_counts_can_wait() {
        let said = |message: &str, reason: &str, ready: i32, stage: &str| {
            status(json!({
                "conditions": [{"type": "Ready", "status": "False", "reason": reason, "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z"}],
                "bots": {"desired": 3, "ready": ready},
                "hibernation": {"stage": stage},
            }))
        };
        let first = said("a", "Progressing", 0, "Active");
        assert_eq!(first.urgent(), said("b", "Progressing", 2, "Active").urgent());
        assert_ne!(first.urgent(), said("a", "Waiting", 0, "Active").urgent());
        assert_ne!(first.urgent(), said("a", "Progressing", 0, "BotsStopped").urgent());
    }
}

//! Condition types and reasons. These strings are API: scripts and alerts match on them.

use jiff::Timestamp;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

/// As it should be at the current stage; a tenant that sleeps as decided is ready.
pub const READY: &str = "Ready";
/// The operator is still working towards the spec.
pub const RECONCILING: &str = "Reconciling";
/// Nothing further happens until somebody changes something; the message says what.
pub const STALLED: &str = "Stalled";
/// The tenant sleeps: its stage is not Active and its parts are down as decided.
pub const HIBERNATED: &str = "Hibernated";
/// A stage of sleep is due and is not entered. The hibernator writes it, and only while it is true.
pub const SLEEP_HELD: &str = "SleepHeld";
/// A warning of sleep did not reach the webhook. The hibernator writes it, and only while it is true.
pub const WARNING_FAILED: &str = "WarningFailed";
/// Something that tells of activity cannot be read or lies in the future. The hibernator writes it, and only while
/// it is true.
pub const ACTIVITY_INVALID: &str = "ActivityInvalid";

/// Reasons of conditions, each documented where it is declared.
pub mod reasons {
    /// Everything of this stage is ready.
    pub const READY: &str = "Ready";
    /// The tenant sleeps as decided.
    pub const ASLEEP: &str = "Asleep";
    /// The tenant is awake.
    pub const AWAKE: &str = "Awake";
    /// Parts are on their way up, or to a lighter stage.
    pub const WAKING_UP: &str = "WakingUp";
    /// Parts are on their way down to the decided stage.
    pub const GOING_TO_SLEEP: &str = "GoingToSleep";
    /// Objects were written and their pods are not all ready yet.
    pub const PROGRESSING: &str = "Progressing";
    /// Something the spec refers to, or needs, does not exist yet; it is looked for again.
    pub const WAITING: &str = "Waiting";
    /// The spec contradicts itself, its tier or the catalogue.
    pub const INVALID_SPEC: &str = "InvalidSpec";
    /// The stored object cannot be read as this version's type.
    pub const UNDECODABLE: &str = "Undecodable";
    /// An object of that name exists and belongs to somebody else.
    pub const NOT_OWNED: &str = "NotOwned";
    /// The API server refused an object for a reason that a retry cannot change.
    pub const REFUSED: &str = "Refused";
    /// The API server could not be reached or asked to wait; the operator tries again.
    pub const RETRYING: &str = "Retrying";
    /// The object is being deleted.
    pub const DELETING: &str = "Deleting";
    /// Nothing prevents progress.
    pub const NOT_STALLED: &str = "NotStalled";
    /// There is nothing left to do.
    pub const SETTLED: &str = "Settled";
    /// Some bots of this fleet are not started: the tier has no more number or room for them.
    pub const OVER_TIER: &str = "OverTier";
    /// The fleet was paused by its spec.
    pub const PAUSED: &str = "Paused";
    /// A bot did not stop within its grace period; the kubelet ends it.
    pub const STOP_OVERDUE: &str = "StopOverdue";
    /// Sleep is held for everybody until somebody has looked and released it.
    pub const BREAKER_OPEN: &str = "BreakerOpen";
    /// The user was asked and has not agreed yet.
    pub const AWAITING_APPROVAL: &str = "AwaitingApproval";
    /// The user's warning was not delivered yet, or its deadline has not come yet.
    pub const AWAITING_WARNING: &str = "AwaitingWarning";
    /// The webhook did not take the warning.
    pub const WEBHOOK_FAILED: &str = "WebhookFailed";
    /// A time lies in the future.
    pub const FUTURE: &str = "Future";
    /// A value cannot be read.
    pub const MALFORMED: &str = "Malformed";
}

/// Value of a condition.
#[derive(Serialize, Deserialize, schemars::JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionStatus {
    /// The condition holds.
    True,
    /// The condition does not hold.
    False,
    /// It cannot be told.
    Unknown,
}

/// One observation of the object's state, in the form of Kubernetes' own conditions.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Name of the condition, for example `Ready`.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 63))]
    pub type_: SmolStr,
    /// Whether the condition holds: True, False or Unknown.
    pub status: ConditionStatus,
    /// The `metadata.generation` that this condition was computed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When `status` last changed.
    pub last_transition_time: Timestamp,
    /// One word for programs, for example `Progressing`.
    #[schemars(length(min = 1, max = 128))]
    pub reason: SmolStr,
    /// What is missing and who must act, for people.
    #[schemars(length(max = 4096))]
    pub message: String,
}

//! When a tenant sleeps: pure functions and one state machine without input or output.
//!
//! [`decide()`] tells which stage is due from policy, activity and time. [`gate()`] tells whether that stage may be entered:
//! only after its warning, and its question where the policy asks one. [`breaker`] tells whether anybody may fall asleep at
//! all. [`roster`] knows all tenants and who is next; its shell is `controllers/hibernation.rs`.
//!
//! Everything leans the same way: what is unknown, unreadable, late or too much keeps tenants awake.

pub mod breaker;
pub mod decide;
pub mod gate;
pub mod member;
pub mod notices;
pub mod roster;

pub use decide::{Deadline, Due, Situation, Why, decide};
pub use gate::{Gate, Notice, NoticeKind, Record, Wait, gate};

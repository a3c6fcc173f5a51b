//! Values that cannot be wrong, and the small rules on them. Pure: no client, no clock, no files.

pub mod activity;
pub mod catalog;
pub mod duration;
pub mod names;
pub mod quantity;
pub mod stage;

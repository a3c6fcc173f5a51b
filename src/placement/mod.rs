//! Which nodes belong to which pool, and what must be written on them. Pure.

pub mod assign;

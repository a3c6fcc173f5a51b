//! A mock exchange: what real bots trade at in the end-to-end tests, and the record that shows how they were treated.
//!
//! [`market`] decides, [`server`] listens, [`record`] holds what happened, and [`judge`] says what of it must not
//! have.

pub mod judge;
pub mod market;
pub mod record;
pub mod server;

//! Measurements of Torpor's programs, which run as processes on a local control plane: nothing here links the library.
//!
//! `make bench` runs them; docs/performance.md says what each means and what it showed. One file per measurement in
//! [`measure`]; statistics in [`stats`], counts in [`audit`], memory and processor time in [`memory`], and nowhere else.

pub mod audit;
pub mod bench;
pub mod chart;
pub mod copies;
pub mod door;
pub mod measure;
pub mod memory;
pub mod report;
pub mod requests;
pub mod stats;
pub mod tenants;
pub mod world;

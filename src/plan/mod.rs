//! What a tenant becomes: pure functions from validated input to ordered, typed objects.

pub mod child;
pub mod hash;

pub use child::{Child, ChildKind};

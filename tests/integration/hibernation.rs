//! Idle tenants that fall asleep by themselves.

pub mod rbac;

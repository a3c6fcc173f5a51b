//! The subcommands of `torpor`, one file each.

pub mod render;

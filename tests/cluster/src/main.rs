//! `torpor-cluster`: see `torpor-cluster --help`.
fn main() {}

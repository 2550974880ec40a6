//! `cargo xtask`: every developer and newcomer command.
fn main() {}

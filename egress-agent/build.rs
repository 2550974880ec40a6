//! Builds the kernel programs and hands their path to the crate.
fn main() {}

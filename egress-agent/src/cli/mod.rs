//! The command line.

pub mod validate;

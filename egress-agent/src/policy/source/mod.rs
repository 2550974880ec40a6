//! Where documents come from: watched files.
//!
//! [`files`] says that something may have changed, [`reader`] finds out what,
//! [`keeper`] gives it to the [`store`](super::store) and hands out snapshots.

pub mod files;
pub mod keeper;
pub mod reader;
mod scan;

#[cfg(test)]
mod tests;

//! Where documents come from: watched files, and objects of a Kubernetes API
//! server.
//!
//! [`files`] says that something may have changed, [`reader`] finds out what,
//! [`keeper`] gives it to the [`store`](super::store) and hands out snapshots.
//! `kubernetes` follows an API server for the keeper.

pub mod files;
pub mod keeper;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
pub mod reader;
mod scan;

#[cfg(test)]
mod tests;

//! The API on the Unix socket, and the endpoint for metrics and health.
//!
//! Both run on the control runtime and get what they tell from one
//! [`AdminApi`], so that they know no other room. [`view`] holds the shapes of
//! the answers, which `egressctl` reads with the same types; [`documents`] puts
//! what the policy's keeper tells into them.

pub mod api;
mod connection;
pub mod documents;
mod error;
pub mod metrics;
mod query;
mod routes;
pub mod socket;
#[cfg(test)]
mod tests;
pub mod view;

pub use api::{AdminApi, ApiError, Pending};
pub use error::ListenError;
pub use query::{Query, encode};

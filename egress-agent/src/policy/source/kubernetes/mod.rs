//! Documents from a Kubernetes API server.
//!
//! [`documents`] follows the three kinds and gives what changes to the
//! [keeper](super::keeper), [`object`] makes the text of a document from an
//! object, [`discover`] finds the version that the server serves, [`kept`]
//! remembers the documents for a start without the server, and [`report`] tells
//! problems to the objects themselves.

pub mod discover;
pub mod documents;
pub mod kept;
pub mod object;
pub mod report;

#[cfg(test)]
mod tests;

use crate::policy::schema::meta::Kind;

/// The kinds that are followed. Secrets are read by name only.
pub const KINDS: [Kind; 3] = [
    Kind::ServiceEntry,
    Kind::DestinationRule,
    Kind::VirtualService,
];

//! Why no endpoint was picked.

use std::fmt;

use crate::flag::{Flag, Side};

/// Why [`EndpointSet::pick`](super::EndpointSet::pick) found nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PickError {
    /// The cluster has no endpoint at all: none listed, or none with the
    /// labels of the subset.
    Empty,
    /// Every endpoint is ejected or fails its health check, and
    /// `minHealthPercent` does not ask to use them all the same.
    NoHealthy,
    /// No name of the cluster has been resolved yet: wait with
    /// [`EndpointSet::resolved`](super::EndpointSet::resolved).
    Unresolved,
    /// The address dialled is a virtual one, and the cluster has no endpoint
    /// of its own to go to instead.
    Virtual,
}

impl PickError {
    /// Envoy's response flag.
    pub const fn flag(self) -> Flag {
        match self {
            Self::Unresolved => Flag::DnsResolutionFailure,
            Self::Empty | Self::NoHealthy | Self::Virtual => Flag::NoHealthyUpstream,
        }
    }

    /// Whose side failed.
    pub const fn side(self) -> Side {
        match self {
            Self::Empty | Self::Virtual => Side::Policy,
            Self::NoHealthy | Self::Unresolved => Side::Upstream,
        }
    }
}

impl fmt::Display for PickError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "the service has no endpoint",
            Self::NoHealthy => "every endpoint is ejected or fails its health check",
            Self::Unresolved => "the name of the service has not been resolved",
            Self::Virtual => {
                "the address dialled is a virtual one, and resolution NONE or PASSTHROUGH \
                 has no other address to go to"
            }
        })
    }
}

impl std::error::Error for PickError {}

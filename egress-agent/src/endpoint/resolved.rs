//! What resolution hands to the endpoint sets.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::policy::model::{Labels, Locality};

/// Where a connection is dialled to.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Destination {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix socket path; an abstract one starts with `@`.
    Unix(Arc<str>),
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix://{path}"),
        }
    }
}

/// One address that a cluster may use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ResolvedEndpoint {
    /// Where.
    pub destination: Destination,
    /// The name that it was resolved from, where there is one.
    pub name: Option<Arc<str>>,
    /// `weight`, at least 1.
    pub weight: u32,
    /// Locality.
    pub locality: Locality,
    /// Labels.
    pub labels: Labels,
}

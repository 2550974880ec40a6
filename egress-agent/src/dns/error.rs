//! What can go wrong in this room.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::flag::{Flag, Side};

/// Why a query could not be answered or state not be kept.
#[derive(Debug)]
pub enum DnsError {
    /// Every virtual address is taken or still remembered by clients.
    Exhausted {
        /// The name that got none.
        name: Arc<str>,
    },
    /// The kernel entries of a new virtual address could not be made.
    Publish {
        /// The name.
        name: Arc<str>,
        /// What the capture side said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// Making them took too long.
    PublishTimeout {
        /// The name.
        name: Arc<str>,
        /// The limit.
        limit: Duration,
    },
    /// The state file could not be written.
    State {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The resolver could not be reached.
    Resolver {
        /// Which.
        resolver: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The resolver did not answer.
    ResolverTimeout {
        /// Which.
        resolver: SocketAddr,
        /// The limit.
        limit: Duration,
    },
    /// Too many queries wait for an answer, or too many connections are open.
    Overflow {
        /// The limit.
        limit: usize,
    },
    /// A listening socket failed.
    Socket(io::Error),
    /// A client broke the protocol or went away.
    Client(io::Error),
}

impl DnsError {
    /// Whose side failed.
    pub const fn side(&self) -> Side {
        match self {
            Self::Exhausted { .. }
            | Self::Publish { .. }
            | Self::PublishTimeout { .. }
            | Self::State { .. }
            | Self::Overflow { .. }
            | Self::Socket(_) => Side::Internal,
            Self::Resolver { .. } | Self::ResolverTimeout { .. } => Side::Upstream,
            Self::Client(_) => Side::Downstream,
        }
    }

    /// How a captured DNS connection that ended so is logged.
    pub const fn flag(&self) -> Flag {
        match self {
            Self::Client(_) => Flag::DownstreamProtocolError,
            Self::Overflow { .. } => Flag::UpstreamOverflow,
            _ => Flag::DnsResolutionFailure,
        }
    }
}

impl fmt::Display for DnsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exhausted { name } => write!(
                f,
                "no virtual address is left for {name}; too many names under wildcard hosts are in use"
            ),
            Self::Publish { name, source } => {
                write!(f, "cannot register the virtual address of {name}: {source}")
            }
            Self::PublishTimeout { name, limit } => write!(
                f,
                "registering the virtual address of {name} took longer than {limit:?}"
            ),
            Self::State { path, source } => {
                write!(f, "cannot write {}: {source}", path.display())
            }
            Self::Resolver { resolver, source } => {
                write!(f, "cannot reach resolver {resolver}: {source}")
            }
            Self::ResolverTimeout { resolver, limit } => {
                write!(f, "resolver {resolver} did not answer within {limit:?}")
            }
            Self::Overflow { limit } => {
                write!(
                    f,
                    "{limit} captured DNS queries or connections are open already"
                )
            }
            Self::Socket(error) => write!(f, "DNS listener: {error}"),
            Self::Client(error) => write!(f, "DNS client: {error}"),
        }
    }
}

impl Error for DnsError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Publish { source, .. } => Some(&**source),
            Self::State { source, .. } | Self::Resolver { source, .. } => Some(source),
            Self::Socket(error) | Self::Client(error) => Some(error),
            _ => None,
        }
    }
}

//! Why a name has no address.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::flag::{Flag, Side};

/// Why a name has no address, or no newer one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ResolveError {
    /// Its resolver says that it does not exist (NXDOMAIN).
    NoSuchName(Arc<str>),
    /// It exists and has neither A nor AAAA records.
    NoAddress(Arc<str>),
    /// No answer in time.
    Timeout {
        /// The name.
        name: Arc<str>,
        /// The limit.
        limit: Duration,
    },
    /// The resolver failed or could not be reached.
    Server {
        /// The name.
        name: Arc<str>,
        /// What it said, or why it could not be asked.
        reason: Arc<str>,
    },
    /// All addresses in the answer are virtual ones of ours.
    Virtual(Arc<str>),
    /// Not a host name.
    InvalidName(Arc<str>),
    /// The system's configuration names no server.
    Configuration {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: Arc<str>,
    },
    /// Too many names are in use.
    Overflow {
        /// The limit.
        limit: usize,
    },
}

impl ResolveError {
    /// Whose side failed.
    pub const fn side(&self) -> Side {
        match self {
            Self::NoSuchName(_)
            | Self::NoAddress(_)
            | Self::Timeout { .. }
            | Self::Server { .. } => Side::Upstream,
            Self::InvalidName(_) => Side::Policy,
            Self::Virtual(_) | Self::Configuration { .. } | Self::Overflow { .. } => Side::Internal,
        }
    }

    /// Envoy's response flag.
    pub const fn flag(&self) -> Flag {
        match self {
            Self::Overflow { .. } => Flag::UpstreamOverflow,
            _ => Flag::DnsResolutionFailure,
        }
    }

    /// The resolver answered, and the name has no address.
    pub const fn is_negative(&self) -> bool {
        matches!(self, Self::NoSuchName(_) | Self::NoAddress(_))
    }
}

impl fmt::Display for ResolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchName(name) => write!(f, "{name} does not exist in DNS (NXDOMAIN)"),
            Self::NoAddress(name) => write!(f, "{name} has no address in DNS"),
            Self::Timeout { name, limit } => {
                write!(f, "no DNS answer for {name} within {limit:?}")
            }
            Self::Server { name, reason } => write!(f, "DNS lookup of {name} failed: {reason}"),
            Self::Virtual(name) => write!(
                f,
                "the name server answered {name} with this agent's own virtual addresses: it is \
                 a local forwarder whose queries are captured; name the servers behind it with \
                 --dns-upstream, or run it in a cgroup that is not captured"
            ),
            Self::InvalidName(name) => write!(f, "{name:?} is not a host name"),
            Self::Configuration { path, reason } => write!(
                f,
                "no name server to ask: {}: {reason}; correct it or set --dns-upstream",
                path.display()
            ),
            Self::Overflow { limit } => {
                write!(f, "{limit} names are being looked up for requests already")
            }
        }
    }
}

impl Error for ResolveError {}

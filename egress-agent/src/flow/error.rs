//! Why a connection did not reach its service.

use std::fmt;
use std::io;

use crate::connect::ConnectError;
use crate::endpoint::{Overflow, PickError};
use crate::flag::{Flag, Side};
use crate::route::RouteError;

/// Why a connection did not reach its service.
#[derive(Debug)]
pub enum FlowError {
    /// The service has nothing for this client: the snapshot lacks a view or
    /// an endpoint set.
    NoView,
    /// No route, or one that leads nowhere.
    Route(RouteError),
    /// No endpoint; why, and the same in words.
    Pick(PickError, String),
    /// `maxConnections`.
    Overflow(Overflow),
    /// No connection to the endpoint; after several tries, the last one's.
    Connect(ConnectError),
    /// The application broke the connection meanwhile.
    Client(io::Error),
}

impl FlowError {
    /// Envoy's flag.
    pub const fn flag(&self) -> Flag {
        match self {
            Self::NoView => Flag::NoClusterFound,
            Self::Route(error) => error.flag(),
            Self::Pick(error, _) => error.flag(),
            Self::Overflow(error) => error.flag(),
            Self::Connect(error) => error.flag(),
            Self::Client(_) => Flag::DownstreamConnectionTermination,
        }
    }

    /// Worth an explanation to an application whose protocol has words for it:
    /// the service was there, and TLS towards it failed.
    pub const fn is_of_tls(&self) -> bool {
        matches!(
            self,
            Self::Connect(
                ConnectError::Tls { .. } | ConnectError::Secret(_) | ConnectError::StartTls { .. }
            )
        )
    }

    /// Whose side failed.
    pub const fn side(&self) -> Side {
        match self {
            Self::NoView => Side::Internal,
            Self::Route(error) => error.side(),
            Self::Pick(error, _) => error.side(),
            Self::Overflow(error) => error.side(),
            Self::Connect(error) => error.side(),
            Self::Client(_) => Side::Downstream,
        }
    }
}

impl From<RouteError> for FlowError {
    fn from(error: RouteError) -> Self {
        Self::Route(error)
    }
}

impl From<Overflow> for FlowError {
    fn from(error: Overflow) -> Self {
        Self::Overflow(error)
    }
}

impl From<ConnectError> for FlowError {
    fn from(error: ConnectError) -> Self {
        Self::Connect(error)
    }
}

impl fmt::Display for FlowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoView => f.write_str("the policy in force has no cluster for this client"),
            Self::Route(error) => error.fmt(f),
            Self::Pick(_, text) => f.write_str(text),
            Self::Overflow(error) => error.fmt(f),
            Self::Connect(error) => error.fmt(f),
            Self::Client(error) => write!(f, "the application broke the connection: {error}"),
        }
    }
}

impl std::error::Error for FlowError {}

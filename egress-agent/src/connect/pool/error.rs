//! What goes wrong between asking for a connection and the response.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use crate::endpoint::{Outcome, Overflow};
use crate::flag::{Flag, Side};

/// Why a connection could not be opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DialError {
    /// What the endpoint is told.
    pub outcome: Outcome,
    /// Whose side failed.
    pub side: Side,
    /// Another endpoint may do better.
    pub elsewhere: bool,
    /// What happened, with host and peer.
    pub message: Box<str>,
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for DialError {}

/// Why a request got no connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AcquireError {
    /// A limit is reached.
    Overflow(Overflow),
    /// No connection became free in time.
    Waited(Duration),
    /// The connection could not be opened.
    Dial(DialError),
    /// The worker is stopping.
    Closing,
}

impl AcquireError {
    /// The access log's flag.
    pub const fn flag(&self) -> Flag {
        match self {
            Self::Overflow(_) | Self::Waited(_) => Flag::UpstreamOverflow,
            Self::Dial(_) => Flag::UpstreamConnectionFailure,
            Self::Closing => Flag::LocalReset,
        }
    }

    /// Whose side failed.
    pub const fn side(&self) -> Side {
        match self {
            Self::Overflow(_) | Self::Waited(_) => Side::Policy,
            Self::Dial(error) => error.side,
            Self::Closing => Side::Internal,
        }
    }
}

impl fmt::Display for AcquireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overflow(overflow) => overflow.fmt(f),
            Self::Waited(time) => write!(
                f,
                "no connection became free within {} ms: maxConnections is reached",
                time.as_millis()
            ),
            Self::Dial(error) => error.fmt(f),
            Self::Closing => f.write_str("the agent is stopping"),
        }
    }
}

impl Error for AcquireError {}

/// How a request failed once it had a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SendFailure {
    /// The connection was gone before a byte of the request was written.
    Unsent,
    /// HTTP/2: the service says that it has not looked at the request
    /// (REFUSED_STREAM, or a GOAWAY that leaves this stream out).
    Refused,
    /// The connection closed before the response.
    Closed,
    /// HTTP/2: the service reset the stream.
    Reset,
    /// What came back is not HTTP.
    Protocol,
    /// The request's own body failed, so the fault is the client's.
    RequestBody,
}

impl SendFailure {
    /// The access log's flag.
    pub const fn flag(self) -> Flag {
        match self {
            Self::Unsent | Self::Closed => Flag::UpstreamConnectionTermination,
            Self::Refused | Self::Reset => Flag::UpstreamRemoteReset,
            Self::Protocol => Flag::UpstreamProtocolError,
            Self::RequestBody => Flag::DownstreamConnectionTermination,
        }
    }

    /// Whose side failed.
    pub const fn side(self) -> Side {
        match self {
            Self::RequestBody => Side::Downstream,
            _ => Side::Upstream,
        }
    }
}

/// A request that got no response.
#[derive(Debug)]
pub struct SendError {
    /// How.
    pub failure: SendFailure,
    /// What happened.
    pub cause: Box<dyn Error + Send + Sync>,
}

impl SendError {
    pub(super) fn new(
        failure: SendFailure,
        cause: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self {
            failure,
            cause: cause.into(),
        }
    }
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cause.fmt(f)
    }
}

impl Error for SendError {}

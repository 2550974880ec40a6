//! Why a listener of the admin room cannot be opened.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::flag::Side;

/// Why a listener of the admin room cannot be opened.
#[derive(Debug)]
pub enum ListenError {
    /// Another agent answers on the admin socket.
    InUse {
        /// Which.
        path: PathBuf,
    },
    /// What stands in the place of the socket is something else.
    NotASocket {
        /// Where.
        path: PathBuf,
    },
    /// The admin socket cannot be made.
    Socket {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The metrics listener cannot be opened.
    Metrics {
        /// Where.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
}

impl ListenError {
    /// Whose side this is.
    pub const fn side(&self) -> Side {
        Side::Policy
    }
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse { path } => write!(
                f,
                "another agent answers on {}; stop it, or choose another socket with --admin",
                path.display()
            ),
            Self::NotASocket { path } => write!(
                f,
                "{} exists and is not a socket; remove it, or choose another path with --admin",
                path.display()
            ),
            Self::Socket { path, error } => write!(
                f,
                "cannot listen on {}: {error}; choose another path with --admin",
                path.display()
            ),
            Self::Metrics { address, error } => write!(
                f,
                "cannot serve metrics on {address}: {error}; choose another address with --metrics, or `off`"
            ),
        }
    }
}

impl std::error::Error for ListenError {}

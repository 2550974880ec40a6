//! Listeners, one set for each network namespace and worker; admission; one
//! task for each connection.

use std::io;
use std::net::SocketAddr;
use std::time::SystemTime;

use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::capture::sockets::NetNs;
use crate::capture::{self, Captured};

mod admission;
mod backoff;
mod inherit;
mod intake;
mod listen;
pub mod pktinfo;
pub mod socket;
#[cfg(test)]
mod tests;

pub use admission::{Admission, Admitted};
pub use inherit::{Inherited, Kept};
pub use intake::{Intake, IntakeStats};
pub use listen::{Listening, Ports, WorkerListeners};

/// A connection that was accepted and whose origin is known.
#[derive(Debug)]
pub struct Accepted {
    /// What the kernel recorded.
    pub captured: Captured,
    /// The stream to the application.
    pub stream: TcpStream,
    /// The application's network namespace, where upstream sockets are made.
    pub netns: NetNs,
    /// When it was accepted.
    pub started: Instant,
    /// The same on the wall clock.
    pub started_at: SystemTime,
    /// Its place among the open connections; given back when dropped.
    pub admitted: Admitted,
}

/// What the kernel programs recorded of redirected connections.
pub trait Origins: Send + Sync {
    /// Takes the record of the connection that comes from `peer` to the
    /// listener on port `listener` in the namespace with the cookie `netns`;
    /// `None` when there is none: somebody dialled the listener without having
    /// been redirected to it.
    ///
    /// # Errors
    /// When the map cannot be read.
    fn take(&self, netns: u64, peer: SocketAddr, listener: u16) -> io::Result<Option<Captured>>;
}

impl Origins for capture::Origins {
    fn take(&self, netns: u64, peer: SocketAddr, listener: u16) -> io::Result<Option<Captured>> {
        Self::take(self, netns, peer, listener)
    }
}

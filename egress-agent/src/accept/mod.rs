//! Listeners, one set for each network namespace and worker; admission; one
//! task for each connection.

pub mod pktinfo;

use tokio::net::TcpStream;

use crate::capture::Captured;

/// A connection that was accepted and whose origin is known.
#[derive(Debug)]
pub struct Accepted {
    /// What the kernel recorded.
    pub captured: Captured,
    /// The stream to the application.
    pub stream: TcpStream,
}

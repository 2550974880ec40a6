//! From an address, then SNI or Host, to a registered service and a protocol.

use std::sync::Arc;

use tokio::net::TcpStream;

use crate::capture::Captured;
use crate::policy::snapshot::{Client, Service};

/// A connection whose service and protocol are known.
#[derive(Debug)]
pub struct Identified {
    /// What the kernel recorded.
    pub captured: Captured,
    /// The stream; nothing has been consumed from it.
    pub stream: TcpStream,
    /// The service.
    pub service: Arc<Service>,
    /// The name that the application asked for: the service's host, or, for a
    /// wildcard, the name whose virtual address was dialled or that SNI gave.
    pub host: Arc<str>,
    /// Who calls, as policy sees it.
    pub client: Client,
    /// What the client speaks.
    pub spoken: Spoken,
}

/// What the client speaks, as far as its first bytes tell.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Spoken {
    /// HTTP/1 in the clear, or HTTP/2 with prior knowledge.
    Http,
    /// TLS, with the SNI of its ClientHello where there is one.
    Tls {
        /// Server name, lower case.
        sni: Option<Arc<str>>,
    },
    /// Anything else, or a protocol in which the server may speak first.
    Opaque,
}

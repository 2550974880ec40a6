//! From an address, then SNI or Host, to a registered service and a protocol.
//!
//! Only where the client always speaks first (HTTP, HTTPS, TLS) are its first
//! bytes waited for. On any other port the server may be the one to speak, so
//! nothing is waited for and [`Spoken::Unheard`] is handed on.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::accept::socket::reset;
use crate::accept::{Accepted, Admitted};
use crate::capture::sockets::NetNs;
use crate::capture::{Caller, Captured};
use crate::flag::{Flag, Side};
use crate::policy::snapshot::{Client, Service, ServiceId, Snapshot};

mod head;
mod hello;
mod sniff;
#[cfg(test)]
mod tests;

pub use hello::{Hello, client_hello};
pub use sniff::{Heard, Look, Name, Patience, Question, Silence, sniff};

/// Names behind virtual addresses; the DNS room knows them.
pub trait HostNames: Send + Sync {
    /// The host (lower case) that a virtual address was given out for.
    fn host_of(&self, address: IpAddr) -> Option<Arc<str>>;
}

/// Who is behind a cgroup; the workload room knows.
pub trait Callers: Send + Sync {
    /// The workload of a caller. Called once for each connection: it must
    /// answer from memory.
    fn workload_of(&self, caller: &Caller) -> Workload;
}

/// A workload: as policy sees it, and its name for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Workload {
    /// Namespace and labels.
    pub client: Client,
    /// Systemd unit, or the pod's owner; one of few, since it is a label of
    /// metrics.
    pub name: Arc<str>,
    /// Pod or unit instance, for the access log.
    pub instance: Option<Arc<str>>,
}

/// A connection whose service and protocol are known.
#[derive(Debug)]
pub struct Identified {
    /// What the kernel recorded.
    pub captured: Captured,
    /// The stream; nothing has been consumed from it.
    pub stream: TcpStream,
    /// The application's network namespace, where upstream sockets are made.
    pub netns: NetNs,
    /// The service.
    pub service: Arc<Service>,
    /// The name that the application asked for: the service's host, or, for a
    /// wildcard, the name whose virtual address was dialled or that SNI gave,
    /// else the address dialled as text.
    pub host: Arc<str>,
    /// Who calls, as policy sees it.
    pub client: Client,
    /// What the client speaks.
    pub spoken: Spoken,
    /// Its place among the open connections.
    pub admitted: Admitted,
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
    /// Anything else.
    Opaque,
    /// Not waited for: the server may speak first.
    Unheard,
}

/// What identification comes to.
#[derive(Debug)]
pub enum Identity {
    /// A registered service.
    Service(Identified),
    /// An address that a registered host shares with others, and SNI or Host
    /// names none that is registered: goes on untouched to the address
    /// dialled.
    PassOn(PassOn),
}

/// A connection that is none of ours.
#[derive(Debug)]
pub struct PassOn {
    /// What the kernel recorded.
    pub captured: Captured,
    /// The stream; nothing has been consumed from it.
    pub stream: TcpStream,
    /// The application's network namespace.
    pub netns: NetNs,
    /// What the client speaks.
    pub spoken: Spoken,
    /// Its place among the open connections.
    pub admitted: Admitted,
}

/// Why a connection could not be identified.
#[derive(Debug)]
pub enum IdentifyError {
    /// The service was removed between `connect` and now.
    UnknownService(ServiceId),
    /// The application left before it said anything.
    ClientGone(Option<io::Error>),
    /// The application said nothing for so long.
    Silent(Duration),
}

impl IdentifyError {
    /// Whose side failed.
    pub const fn side(&self) -> Side {
        match self {
            Self::UnknownService(_) => Side::Policy,
            Self::ClientGone(_) | Self::Silent(_) => Side::Downstream,
        }
    }

    /// How the record says it.
    pub const fn flag(&self) -> Flag {
        match self {
            Self::UnknownService(_) => Flag::NoRouteFound,
            Self::ClientGone(_) => Flag::DownstreamConnectionTermination,
            Self::Silent(_) => Flag::StreamIdleTimeout,
        }
    }
}

impl fmt::Display for IdentifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownService(id) => {
                write!(f, "service {} is no longer registered; dial again", id.0)
            }
            Self::ClientGone(None) => {
                f.write_str("the application closed the connection without a byte")
            }
            Self::ClientGone(Some(error)) => {
                write!(f, "the application broke the connection: {error}")
            }
            Self::Silent(limit) => write!(f, "the application sent nothing for {limit:?}"),
        }
    }
}

impl std::error::Error for IdentifyError {}

/// What identification needs besides the connection.
pub struct IdentifyContext<'a> {
    /// The policy in force.
    pub snapshot: &'a Snapshot,
    /// Names behind virtual addresses.
    pub names: &'a dyn HostNames,
    /// From the first byte on, until it is clear what they are.
    pub sniff_timeout: Duration,
}

/// Finds service, name and protocol.
///
/// # Errors
/// When the service is gone, or the client before it spoke. The stream is then
/// closed; nothing was lost.
pub async fn identify(
    accepted: Accepted,
    client: Client,
    context: &IdentifyContext<'_>,
) -> Result<Identity, IdentifyError> {
    let id = accepted.captured.service;
    let Some(service) = context.snapshot.service(id) else {
        reset(accepted.stream);
        return Err(IdentifyError::UnknownService(id));
    };
    let heard = if service.protocol.client_speaks_first() {
        listen(&accepted, service, &client, context.sniff_timeout).await?
    } else {
        Heard {
            spoken: Spoken::Unheard,
            name: Name::Missing,
        }
    };
    let Accepted {
        captured,
        stream,
        netns,
        admitted,
        ..
    } = accepted;
    let mut service = service.clone();
    if captured.name_decides {
        let port = captured.original.port();
        let meant = match &heard.name {
            // Within HTTP/2 each request names its host; none of it can be
            // seen from here.
            Name::Unseen => Some(service),
            Name::Missing => None,
            Name::Told(name) if service.key.host.exact().is_some_and(|own| **own == **name) => {
                Some(service)
            }
            // Of a wildcard host and a full name, the full name.
            Name::Told(name) => context
                .snapshot
                .services_of(name, &client.namespace)
                .find(|other| other.key.port == port)
                .cloned()
                .or_else(|| service.key.host.matches(name).then_some(service)),
        };
        match meant {
            Some(meant) => service = meant,
            None => {
                return Ok(Identity::PassOn(PassOn {
                    captured,
                    stream,
                    netns,
                    spoken: heard.spoken,
                    admitted,
                }));
            }
        }
    }
    let host = match service.key.host.exact() {
        Some(host) => host.clone(),
        None => context
            .names
            .host_of(captured.original.ip())
            .or(match heard.name {
                Name::Told(name) => Some(name),
                Name::Missing | Name::Unseen => None,
            })
            .unwrap_or_else(|| captured.original.ip().to_string().into()),
    };
    Ok(Identity::Service(Identified {
        captured,
        stream,
        netns,
        service,
        host,
        client,
        spoken: heard.spoken,
        admitted,
    }))
}

/// Waits for the first bytes of a client that always speaks first.
async fn listen(
    accepted: &Accepted,
    service: &Service,
    client: &Client,
    sniff_timeout: Duration,
) -> Result<Heard, IdentifyError> {
    let question = Question {
        look: if service.protocol.is_http() {
            Look::TlsOrHttp
        } else {
            Look::Any
        },
        host: accepted.captured.name_decides,
    };
    let idle = service
        .view(client)
        .and_then(|view| view.cluster.policy.connection_pool.idle_timeout);
    let patience = Patience {
        first: idle,
        rest: sniff_timeout,
    };
    sniff(&accepted.stream, question, patience)
        .await
        .map_err(|silence| match silence {
            Silence::Gone(error) => IdentifyError::ClientGone(error),
            Silence::TimedOut => IdentifyError::Silent(idle.unwrap_or_default()),
        })
}

//! Opens a connection to an endpoint: TCP or Unix, the PROXY header, TLS, a
//! tunnel; all within `connectTimeout`.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout};

use super::error::{ConnectError, Phase};
use super::proxy_protocol;
use super::starttls::{self, Begun, Opening, Plain};
use super::stream::Stream;
use super::tls::{self, Alpn, TlsFacts};
use super::tunnel;
use crate::capture::sockets::{NetNs, Sockets};
use crate::endpoint::resolved::Destination;
use crate::policy::model::{ClientTls, Keepalive, TrafficPolicy};
use crate::secret::Secrets;

/// How to reach an endpoint.
#[derive(Clone, Copy, Debug)]
pub struct DialContext<'a> {
    /// Makes the socket.
    pub sockets: &'a Sockets,
    /// The application's namespace.
    pub netns: &'a NetNs,
    /// TLS material.
    pub secrets: &'a Secrets,
    /// Connect timeout, keepalive, PROXY protocol.
    pub policy: &'a TrafficPolicy,
    /// TLS to originate. Decided by the caller, since it depends on what the
    /// application speaks: never TLS in TLS.
    pub tls: Option<&'a ClientTls>,
    /// The name that the application asked for: SNI, and the name to verify,
    /// unless the policy says otherwise.
    pub host: &'a str,
    /// The application's namespace, where a `credentialName` is looked for.
    pub namespace: &'a Arc<str>,
    /// Protocols to offer.
    pub alpn: Alpn,
    /// The application's own address, for the PROXY header.
    pub source: SocketAddr,
}

/// An open connection to an endpoint.
#[derive(Debug)]
pub struct Connected {
    /// The stream.
    pub stream: Stream,
    /// What the handshake came to; `None` in the clear.
    pub tls: Option<TlsFacts>,
    /// What the application is owed before bytes are relayed; [`starttls::open`]
    /// carries it out.
    pub opening: Option<Opening>,
    /// Time until TCP was connected.
    pub tcp_time: Duration,
    /// Time that the TLS handshake took, and what came before it inside the
    /// application's protocol.
    pub tls_time: Duration,
}

impl Connected {
    /// Our address, asked of the kernel; `None` for Unix sockets.
    pub fn local(&self) -> Option<SocketAddr> {
        self.stream.tcp()?.local_addr().ok()
    }
}

/// Dials.
///
/// # Errors
/// Refused, unreachable, timed out, TLS, or material that cannot be used; each
/// says which endpoint.
pub async fn dial(
    context: &DialContext<'_>,
    destination: &Destination,
) -> Result<Connected, ConnectError> {
    dial_observed(context, destination, &Cell::new(Phase::Tcp)).await
}

/// As [`dial`], and tells how far it has come.
///
/// # Errors
/// As [`dial`].
pub async fn dial_observed(
    context: &DialContext<'_>,
    destination: &Destination,
    phase: &Cell<Phase>,
) -> Result<Connected, ConnectError> {
    // Before anything is dialled: without its material a connection must not
    // even show the server that somebody wanted to talk.
    let tls = context
        .tls
        .map(|tls| tls::prepare(context, tls))
        .transpose()?;
    dial_prepared(context, destination, tls, phase).await
}

/// As [`dial_observed`], with its material at hand.
pub(super) async fn dial_prepared(
    context: &DialContext<'_>,
    destination: &Destination,
    tls: Option<tls::Prepared>,
    phase: &Cell<Phase>,
) -> Result<Connected, ConnectError> {
    let limit = context.policy.connection_pool.connect_timeout;
    match timeout(limit, dial_in_time(context, destination, tls, phase)).await {
        Ok(connected) => connected,
        Err(_) => Err(ConnectError::TimedOut {
            to: destination.clone(),
            after: limit,
            phase: phase.get(),
        }),
    }
}

async fn dial_in_time(
    context: &DialContext<'_>,
    destination: &Destination,
    tls: Option<tls::Prepared>,
    phase: &Cell<Phase>,
) -> Result<Connected, ConnectError> {
    let started = Instant::now();
    let failed = |error| ConnectError::from_io(destination, error);
    let version = context.policy.proxy_protocol;
    let limit = context.policy.connection_pool.connect_timeout;
    let connected = match destination {
        Destination::Tcp(address) => {
            let mut stream = dial_tcp(context, *address).await.map_err(failed)?;
            if let Some(version) = version {
                let local = stream.local_addr().ok();
                let header = proxy_protocol::header(version, context.source, local, *address);
                stream.write_all(&header).await.map_err(failed)?;
            }
            let tcp_time = started.elapsed();
            let (stream, tls, opening) = match tls {
                None => (Stream::Tcp(stream), None, None),
                Some(tls) => {
                    phase.set(Phase::Tls);
                    let local = stream.local_addr().ok();
                    match begin(context, &mut stream, local, destination).await? {
                        Begun::Tls(opening) => {
                            let (stream, facts) =
                                tls::handshake(tls, context.alpn, stream, destination).await?;
                            (Stream::Tls(Box::new(stream)), Some(facts), opening)
                        }
                        Begun::Later(greeting) => {
                            let plain = Plain::Tcp(stream);
                            let opening = Opening::later(greeting, plain, tls, destination, limit);
                            (Stream::Unready, None, Some(opening))
                        }
                    }
                }
            };
            (stream, tls, tcp_time, opening)
        }
        Destination::Unix(path) => {
            let mut stream = dial_unix(path).await.map_err(failed)?;
            if let Some(version) = version {
                let header = proxy_protocol::local_header(version);
                stream.write_all(&header).await.map_err(failed)?;
            }
            let tcp_time = started.elapsed();
            let (stream, tls, opening) = match tls {
                None => (Stream::Unix(stream), None, None),
                Some(tls) => {
                    phase.set(Phase::Tls);
                    match begin(context, &mut stream, None, destination).await? {
                        Begun::Tls(opening) => {
                            let (stream, facts) =
                                tls::handshake(tls, context.alpn, stream, destination).await?;
                            (Stream::TlsUnix(Box::new(stream)), Some(facts), opening)
                        }
                        Begun::Later(greeting) => {
                            let plain = Plain::Unix(stream);
                            let opening = Opening::later(greeting, plain, tls, destination, limit);
                            (Stream::Unready, None, Some(opening))
                        }
                    }
                }
            };
            (stream, tls, tcp_time, opening)
        }
    };
    let (mut stream, tls, tcp_time, opening) = connected;
    let tls_time = started.elapsed().saturating_sub(tcp_time);
    if let Some(tunnel) = &context.policy.tunnel {
        tunnel::open(&mut stream, tunnel)
            .await
            .map_err(|failure| ConnectError::Tunnel {
                to: destination.clone(),
                failure,
            })?;
    }
    Ok(Connected {
        stream,
        tls,
        opening,
        tcp_time,
        tls_time,
    })
}

/// TLS at once, or what the policy's protocol asks for before it.
async fn begin<S: AsyncRead + AsyncWrite + Unpin>(
    context: &DialContext<'_>,
    stream: &mut S,
    local: Option<SocketAddr>,
    destination: &Destination,
) -> Result<Begun, ConnectError> {
    match context.tls.and_then(|tls| tls.extra.starttls) {
        None => Ok(Begun::Tls(None)),
        Some(protocol) => starttls::begin(protocol, stream, local)
            .await
            .map_err(|failure| ConnectError::StartTls {
                to: destination.clone(),
                failure,
            }),
    }
}

async fn dial_tcp(context: &DialContext<'_>, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = context.sockets.tcp(context.netns, &address)?;
    socket.set_nodelay(true)?;
    if let Some(keepalive) = context.policy.connection_pool.keepalive {
        set_keepalive(&SockRef::from(&socket), keepalive)?;
    }
    socket.connect(address).await
}

fn set_keepalive(socket: &SockRef<'_>, policy: Keepalive) -> io::Result<()> {
    // The kernel counts in seconds and takes 1 to 32767 (tcp(7)).
    let seconds = |time: Duration| {
        let whole = time.as_secs() + u64::from(time.subsec_nanos() > 0);
        Duration::from_secs(whole.clamp(1, 32_767))
    };
    let mut keepalive = TcpKeepalive::new();
    if let Some(time) = policy.time {
        keepalive = keepalive.with_time(seconds(time));
    }
    if let Some(interval) = policy.interval {
        keepalive = keepalive.with_interval(seconds(interval));
    }
    if let Some(probes) = policy.probes {
        keepalive = keepalive.with_retries(probes.clamp(1, 127));
    }
    socket.set_keepalive(true)?;
    socket.set_tcp_keepalive(&keepalive)
}

async fn dial_unix(path: &str) -> io::Result<UnixStream> {
    match path.strip_prefix('@') {
        // tokio takes a leading zero byte for an abstract name (unix(7)).
        Some(name) => UnixStream::connect(format!("\0{name}")).await,
        None => UnixStream::connect(path).await,
    }
}

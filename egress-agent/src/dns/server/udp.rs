//! DNS over UDP.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use egress_common::DNS6_PORTS;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::super::DnsError;
use super::super::answer::{Transport, Verdict};
use super::{Asked, Counters, Server, is_ours, slot_of};
use crate::accept::pktinfo::{self, Datagram};

/// Longest time that an answer waits for room in the socket's buffer.
const SEND_LIMIT: Duration = Duration::from_secs(1);

thread_local! {
    /// Room for the longest datagram. Each network namespace has many sockets,
    /// and a query is short, so they share one and keep a copy.
    static SCRATCH: RefCell<Box<[u8]>> =
        RefCell::new(vec![0; usize::from(u16::MAX)].into_boxed_slice());
}

fn with_scratch<T>(receive: impl FnOnce(&mut [u8]) -> io::Result<T>) -> io::Result<T> {
    SCRATCH.with(|scratch| match scratch.try_borrow_mut() {
        Ok(mut buffer) => receive(&mut buffer),
        Err(_) => Err(io::ErrorKind::ResourceBusy.into()),
    })
}

/// Serves the IPv4 listener: one non-blocking socket on `0.0.0.0`. Ends only
/// with an error.
///
/// # Errors
/// [`DnsError::Socket`] when the socket is unusable.
pub async fn serve_v4(
    server: Arc<Server>,
    socket: std::net::UdpSocket,
) -> Result<Infallible, DnsError> {
    pktinfo::enable(&socket).map_err(DnsError::Socket)?;
    let socket = Arc::new(UdpSocket::from_std(socket).map_err(DnsError::Socket)?);
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let received = socket
            .async_io(Interest::READABLE, || {
                with_scratch(|buffer| {
                    let datagram = pktinfo::receive(&socket, buffer)?;
                    Ok((datagram, Box::from(&buffer[..datagram.length])))
                })
            })
            .await;
        let (
            Datagram {
                source,
                destination,
                ..
            },
            query,
        ): (Datagram, Box<[u8]>) = match received {
            Ok(received) => received,
            Err(error) => {
                pause(&error).await;
                continue;
            }
        };
        let asked = slot_of(destination)
            .and_then(|slot| server.resolvers.v4(slot))
            .filter(|asked| !is_ours(asked.resolver));
        let Some(asked) = asked else {
            tracing::debug!(%source, %destination, "dropped a datagram that stands for no resolver");
            Counters::count(&server.counters.dropped);
            continue;
        };
        let reply = Reply {
            socket: Arc::clone(&socket),
            from: Some(destination),
            to: source.into(),
        };
        serve(&server, query, asked, reply, &mut tasks).await;
    }
}

/// Serves the IPv6 listeners: non-blocking sockets on `[::1]`, in the order of
/// [`Listeners::dns6`](egress_common::Listeners). Ends only with an error.
///
/// # Errors
/// [`DnsError::Socket`] when a socket is unusable.
pub async fn serve_v6(
    server: Arc<Server>,
    sockets: [std::net::UdpSocket; DNS6_PORTS],
) -> Result<Infallible, DnsError> {
    let mut loops = JoinSet::new();
    for (slot, socket) in (0..).zip(sockets) {
        let socket = UdpSocket::from_std(socket).map_err(DnsError::Socket)?;
        loops.spawn(serve_slot(Arc::clone(&server), Arc::new(socket), slot));
    }
    match loops.join_next().await {
        Some(Ok(never)) => match never {},
        _ => Err(DnsError::Socket(io::ErrorKind::Other.into())),
    }
}

async fn serve_slot(server: Arc<Server>, socket: Arc<UdpSocket>, slot: u32) -> Infallible {
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let received = socket
            .async_io(Interest::READABLE, || {
                with_scratch(|buffer| {
                    let (length, source) = socket.try_recv_from(buffer)?;
                    Ok((Box::from(&buffer[..length]), source))
                })
            })
            .await;
        let (query, source): (Box<[u8]>, SocketAddr) = match received {
            Ok(received) => received,
            Err(error) => {
                pause(&error).await;
                continue;
            }
        };
        let Some(asked) = server.resolvers.v6(slot) else {
            Counters::count(&server.counters.dropped);
            continue;
        };
        let reply = Reply {
            socket: Arc::clone(&socket),
            from: None,
            to: source,
        };
        serve(&server, query, asked, reply, &mut tasks).await;
    }
}

/// An error of the socket is no reason to stop (the network stack may be short
/// of memory), nor to spin.
async fn pause(error: &io::Error) {
    tracing::warn!("DNS listener: {error}");
    sleep(Duration::from_millis(10)).await;
}

/// Where an answer goes.
struct Reply {
    socket: Arc<UdpSocket>,
    /// The address that it must leave from; `None`: the socket's own.
    from: Option<Ipv4Addr>,
    to: SocketAddr,
}

impl Reply {
    /// Sends an answer. One that cannot be sent is lost, as datagrams are.
    async fn send(&self, bytes: &[u8]) {
        let sent = async {
            match (self.from, self.to) {
                (Some(from), SocketAddr::V4(to)) => {
                    let send = || pktinfo::send(&self.socket, bytes, from, to);
                    self.socket.async_io(Interest::WRITABLE, send).await
                }
                _ => self.socket.send_to(bytes, self.to).await.map(|_| ()),
            }
        };
        if let Ok(Err(error)) = timeout(SEND_LIMIT, sent).await {
            tracing::debug!("an answer was lost: {error}");
        }
    }
}

async fn serve(
    server: &Arc<Server>,
    query: Box<[u8]>,
    asked: Asked,
    reply: Reply,
    tasks: &mut JoinSet<()>,
) {
    let Asked {
        resolver,
        namespace,
    } = asked;
    let verdict = server.decide(&query, &namespace, Transport::Udp);
    match verdict {
        Verdict::Answer(bytes) => reply.send(&bytes).await,
        Verdict::Drop => {}
        Verdict::Forward | Verdict::Allocate { .. } => match server.queries.take() {
            Ok(permit) => {
                let server = Arc::clone(server);
                tasks.spawn(async move {
                    let finish =
                        server.finish(&query, verdict, resolver, &namespace, Transport::Udp);
                    if let Some(bytes) = finish.await {
                        reply.send(&bytes).await;
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                if let Some(bytes) = server.refuse(&query, &error) {
                    reply.send(&bytes).await;
                }
            }
        },
    }
}

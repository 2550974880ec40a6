//! DNS over UDP: what waits on a socket is read, decided and answered
//! together, with one system call for each step; only a query that needs
//! somebody else gets a task.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use egress_common::DNS6_PORTS;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::task::{JoinSet, yield_now};
use tokio::time::{sleep, timeout};

use super::super::DnsError;
use super::super::answer::{Transport, Verdict};
use super::{Asked, Counters, Server, is_ours, slot_of};
use crate::accept::pktinfo::{self, Answers, Batch, COUNT, Received};

/// Longest time that an answer waits for room in the socket's buffer.
const SEND_LIMIT: Duration = Duration::from_secs(1);

thread_local! {
    /// Each network namespace has many sockets, which share the room of their
    /// thread: nothing in it is kept while one waits.
    static SCRATCH: RefCell<(Batch, Answers)> = RefCell::default();
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
    Ok(Listener {
        server,
        socket,
        slot: None,
    }
    .run()
    .await)
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
        let socket = Arc::new(UdpSocket::from_std(socket).map_err(DnsError::Socket)?);
        let listener = Listener {
            server: Arc::clone(&server),
            socket,
            slot: Some(slot),
        };
        loops.spawn(listener.run());
    }
    match loops.join_next().await {
        Some(Ok(never)) => match never {},
        _ => Err(DnsError::Socket(io::ErrorKind::Other.into())),
    }
}

/// One socket.
struct Listener {
    server: Arc<Server>,
    socket: Arc<UdpSocket>,
    /// The one slot of a socket on `[::1]`; `None`: the destination tells.
    slot: Option<u32>,
}

/// Which resolver the datagrams of a batch meant; most are for the same one,
/// and asking the kernel costs a system call.
#[derive(Default)]
struct Meant(Vec<(u32, Option<Asked>)>);

impl Meant {
    fn get(&mut self, slot: u32, ask: impl FnOnce(u32) -> Option<Asked>) -> Option<&Asked> {
        let known = self.0.iter().position(|(known, _)| *known == slot);
        let place = known.unwrap_or_else(|| {
            let asked = ask(slot).filter(|asked| !is_ours(asked.resolver));
            self.0.push((slot, asked));
            self.0.len() - 1
        });
        self.0.get(place)?.1.as_ref()
    }
}

impl Listener {
    async fn run(self) -> Infallible {
        let mut tasks = JoinSet::new();
        loop {
            while tasks.try_join_next().is_some() {}
            if let Err(error) = self.socket.readable().await {
                pause(&error).await;
                continue;
            }
            match self.round(&mut tasks) {
                // Others have their turn while more may be waiting.
                Ok(COUNT) => yield_now().await,
                Ok(_) => {}
                Err(error) => pause(&error).await,
            }
        }
    }

    /// Serves what waits, and says how much that was.
    fn round(&self, tasks: &mut JoinSet<()>) -> io::Result<usize> {
        SCRATCH.with(|scratch| {
            let Ok(mut scratch) = scratch.try_borrow_mut() else {
                return Err(io::ErrorKind::ResourceBusy.into());
            };
            let (batch, answers) = &mut *scratch;
            let mut received = Ok(0);
            // A batch that is not full has emptied the socket: said as
            // `WouldBlock`, it saves the call that would say so.
            let _ = self.socket.try_io(Interest::READABLE, || {
                received = batch.receive(&*self.socket);
                match received {
                    Ok(COUNT) => Ok(()),
                    _ => Err(io::ErrorKind::WouldBlock.into()),
                }
            });
            let count = match received {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
                Err(error) => return Err(error),
            };
            let mut meant = Meant::default();
            for index in 0..count {
                match batch.get(index) {
                    Some(received) => self.serve(received, &mut meant, answers, tasks),
                    None => Counters::count(&self.server.counters.dropped),
                }
            }
            let lost = answers.send(&*self.socket, |bytes, from, to| {
                let reply = self.reply(from, to);
                let bytes: Box<[u8]> = bytes.into();
                tasks.spawn(async move { reply.send(&bytes).await });
            });
            if lost > 0 {
                tracing::debug!(lost, "answers were lost");
            }
            Ok(count)
        })
    }

    fn reply(&self, from: Option<Ipv4Addr>, to: SocketAddr) -> Reply {
        Reply {
            socket: Arc::clone(&self.socket),
            from,
            to,
        }
    }

    fn serve(
        &self,
        received: Received<'_>,
        meant: &mut Meant,
        answers: &mut Answers,
        tasks: &mut JoinSet<()>,
    ) {
        let server = &self.server;
        let Received {
            bytes: query,
            truncated,
            source,
            destination,
        } = received;
        let asked = match self.slot {
            Some(slot) => meant.get(slot, |slot| server.resolvers.v6(slot)),
            None => destination
                .and_then(slot_of)
                .and_then(|slot| meant.get(slot, |slot| server.resolvers.v4(slot))),
        };
        let Some(asked) = asked.filter(|_| !truncated) else {
            tracing::debug!(%source, ?destination, "dropped a datagram that stands for no resolver, or is too long");
            Counters::count(&server.counters.dropped);
            return;
        };
        let from = if self.slot.is_some() {
            None
        } else {
            destination
        };
        if answers.add(from, source, |out| {
            server.answer_quickly(query, &asked.namespace, Transport::Udp, out)
        }) {
            return;
        }
        let whole = |answers: &mut Answers, bytes: &[u8]| {
            answers.add(from, source, |out| {
                out.extend_from_slice(bytes);
                true
            });
        };
        match server.decide(query, &asked.namespace, Transport::Udp) {
            Verdict::Answer(bytes) => whole(answers, &bytes),
            Verdict::Drop => {}
            verdict @ (Verdict::Forward | Verdict::Allocate { .. }) => {
                match server.queries.take() {
                    Ok(permit) => {
                        let (server, reply) = (Arc::clone(server), self.reply(from, source));
                        let (query, asked): (Box<[u8]>, Asked) = (query.into(), asked.clone());
                        tasks.spawn(async move {
                            let Asked {
                                resolver,
                                namespace,
                            } = asked;
                            let finish = server.finish(
                                &query,
                                verdict,
                                resolver,
                                &namespace,
                                Transport::Udp,
                            );
                            if let Some(bytes) = finish.await {
                                reply.send(&bytes).await;
                            }
                            drop(permit);
                        });
                    }
                    Err(error) => {
                        if let Some(bytes) = server.refuse(query, &error) {
                            whole(answers, &bytes);
                        }
                    }
                }
            }
        }
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

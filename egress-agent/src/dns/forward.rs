//! Queries that are not ours, sent on as the very bytes that came to exactly
//! the resolver that the application asked, from the application's own network
//! namespace. The answer goes back as it is: truncation, EDNS and DNSSEC bits
//! are the resolver's.
//!
//! Over UDP only the id is another on the way: a random port and a random id
//! guard each query against forged answers, whatever id the client chose (see
//! [`sockets`]; a TSIG carries the id that was signed, RFC 8945 section 4.2).
//!
//! A resolver that does not answer does not answer: the client hears nothing,
//! and retries or moves on by its own rules, as on a real network. Only what a
//! real network says at once (port unreachable, no route) is said at once, as
//! SERVFAIL, since an ICMP error cannot be passed on.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::time::Duration;

use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::DnsError;
use crate::capture::sockets::{NetNs, Sockets};

mod sockets;

use sockets::{Connected, Idle};

/// How long a forwarded query waits for its answer. Longer than the five
/// seconds after which glibc tries again, so that a slow answer still arrives.
pub const FORWARD_LIMIT: Duration = Duration::from_secs(10);

thread_local! {
    /// Room for the longest datagram.
    static SCRATCH: RefCell<Box<[u8]>> =
        RefCell::new(vec![0; usize::from(u16::MAX)].into_boxed_slice());
}

fn with_scratch<T>(receive: impl FnOnce(&mut [u8]) -> io::Result<T>) -> io::Result<T> {
    SCRATCH.with(|scratch| match scratch.try_borrow_mut() {
        Ok(mut room) => receive(&mut room),
        Err(_) => Err(io::ErrorKind::ResourceBusy.into()),
    })
}

/// Sends queries from one network namespace.
#[derive(Clone, Debug)]
pub struct Forwarder {
    sockets: Sockets,
    netns: NetNs,
    idle: Idle,
    limit: Duration,
}

impl Forwarder {
    /// A forwarder for clients in `netns`, to be used on one runtime.
    pub fn new(sockets: Sockets, netns: NetNs) -> Self {
        Self {
            sockets,
            netns,
            idle: Idle::default(),
            limit: FORWARD_LIMIT,
        }
    }

    /// Sets another limit than [`FORWARD_LIMIT`].
    #[must_use]
    pub const fn with_limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// One datagram there and one back.
    ///
    /// # Errors
    /// [`DnsError::Resolver`] when the resolver cannot be reached,
    /// [`DnsError::ResolverTimeout`] when it does not answer.
    pub async fn udp(&self, query: &[u8], resolver: SocketAddr) -> Result<Vec<u8>, DnsError> {
        self.within(resolver, self.exchange(query, resolver)).await
    }

    async fn exchange(&self, query: &[u8], resolver: SocketAddr) -> io::Result<Vec<u8>> {
        if let Some(mut kept) = self.idle.take(resolver) {
            match ask(&mut kept, query, resolver).await {
                Ok(answer) => {
                    self.idle.keep(kept);
                    return Ok(answer);
                }
                // The error of an earlier query, or an address or a route that
                // has changed since: a new socket tells.
                Err(error) => tracing::debug!(%resolver, "on a socket that was kept: {error}"),
            }
        }
        let mut fresh = Connected::new(&self.sockets, &self.netns, resolver).await?;
        let answer = ask(&mut fresh, query, resolver).await?;
        self.idle.keep(fresh);
        Ok(answer)
    }

    /// A connection to a resolver.
    ///
    /// # Errors
    /// As [`udp`](Self::udp).
    pub async fn connect(&self, resolver: SocketAddr) -> Result<TcpStream, DnsError> {
        self.within(resolver, async {
            let socket = self.sockets.tcp(&self.netns, &resolver)?;
            socket.set_nodelay(true)?;
            socket.connect(resolver).await
        })
        .await
    }

    /// One query over a connection of its own.
    ///
    /// # Errors
    /// As [`udp`](Self::udp).
    pub async fn tcp(&self, query: &[u8], resolver: SocketAddr) -> Result<Vec<u8>, DnsError> {
        let mut stream = self.connect(resolver).await?;
        self.within(resolver, async {
            stream.write_all(&framed(query)?).await?;
            let id = query.first_chunk().copied().unwrap_or_default();
            loop {
                let length = stream.read_u16().await?;
                let mut answer = vec![0; usize::from(length)];
                stream.read_exact(&mut answer).await?;
                if answers(id, query, &answer) {
                    return Ok(answer);
                }
            }
        })
        .await
    }

    async fn within<T>(
        &self,
        resolver: SocketAddr,
        work: impl Future<Output = io::Result<T>>,
    ) -> Result<T, DnsError> {
        match timeout(self.limit, work).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(source)) => Err(DnsError::Resolver { resolver, source }),
            Err(_) => Err(DnsError::ResolverTimeout {
                resolver,
                limit: self.limit,
            }),
        }
    }
}

/// Sends a query with an id of the socket's own and waits for its answer, which
/// has the client's id again.
async fn ask(connected: &mut Connected, query: &[u8], resolver: SocketAddr) -> io::Result<Vec<u8>> {
    let Some((own_id, rest)) = query.split_first_chunk::<2>() else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let id = connected.next_id();
    let socket = &connected.socket;
    let send = || {
        let parts = [IoSlice::new(&id), IoSlice::new(rest)];
        let sent = rustix::net::sendmsg(
            socket,
            &parts,
            &mut SendAncillaryBuffer::default(),
            SendFlags::DONTWAIT,
        );
        sent.map(drop).map_err(io::Error::from)
    };
    // Not through tokio at first: of a new socket it waits for the poller's
    // word.
    match send() {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            socket.async_io(Interest::WRITABLE, send).await?;
        }
        sent => sent?,
    }
    let mut answer = receive(socket, id, query, resolver).await?;
    if let Some(place) = answer.first_chunk_mut() {
        *place = *own_id;
    }
    Ok(answer)
}

async fn receive(
    socket: &UdpSocket,
    id: [u8; 2],
    query: &[u8],
    resolver: SocketAddr,
) -> io::Result<Vec<u8>> {
    // A closed port is an error on the socket, which alone does not count as
    // readable.
    let interest = Interest::READABLE | Interest::ERROR;
    let answer = socket
        .async_io(interest, || {
            // A waiting query holds no buffer.
            with_scratch(|room| {
                loop {
                    let (length, _) = rustix::net::recv(socket, &mut *room, RecvFlags::empty())?;
                    if answers(id, query, &room[..length]) {
                        return Ok(room[..length].to_vec());
                    }
                    tracing::debug!(%resolver, "ignored a message that is no answer to the query");
                }
            })
        })
        .await?;
    // Most likely nothing more waits: said here, it saves the next query on
    // this socket the call that would find out. What does wait is no answer to
    // that query, and is read with it.
    let _ = socket.try_io::<()>(interest, || Err(io::ErrorKind::WouldBlock.into()));
    Ok(answer)
}

/// A message with its length before it (RFC 1035 section 4.2.2).
pub(super) fn framed(message: &[u8]) -> io::Result<Vec<u8>> {
    let Ok(length) = u16::try_from(message.len()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut frame = Vec::with_capacity(message.len() + 2);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(message);
    Ok(frame)
}

const HEADER: usize = 12;

/// Whether `answer` is one to `query`, sent with `id`: a response with that id
/// and its question.
/// The question's case may differ (the client itself decides whether it minds),
/// and may be missing from an error.
fn answers(id: [u8; 2], query: &[u8], answer: &[u8]) -> bool {
    let (Some(asked), Some(said)) = (query.get(..HEADER), answer.get(..HEADER)) else {
        return false;
    };
    if said[..2] != id || said[2] & 0x80 == 0 {
        return false;
    }
    let questions = |header: &[u8]| u16::from_be_bytes([header[4], header[5]]);
    let error = said[3] & 0x0f != 0;
    match (questions(asked), questions(said)) {
        // Nothing to compare.
        (0, _) => true,
        (_, 0) => error,
        (1, 1) => match (question(query), question(answer)) {
            (Some((name, rest)), Some((other_name, other_rest))) => {
                name.eq_ignore_ascii_case(other_name) && rest == other_rest
            }
            _ => false,
        },
        (asked, said) => asked == said,
    }
}

/// Name and (type, class) of a message's first question, as bytes; a question
/// comes first, so there is nothing that it could be compressed against.
fn question(message: &[u8]) -> Option<(&[u8], &[u8])> {
    let body = message.get(HEADER..)?;
    let mut end = 0;
    loop {
        let length = usize::from(*body.get(end)?);
        end += 1;
        match length {
            0 => break,
            1..=63 => end += length,
            _ => return None,
        }
    }
    Some((&body[..end], body.get(end..end + 4)?))
}

#[cfg(test)]
mod tests;

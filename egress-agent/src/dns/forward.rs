//! Queries that are not ours, sent on as the very bytes that came to exactly
//! the resolver that the application asked, from the application's own network
//! namespace. The answer goes back as it is: truncation, EDNS and DNSSEC bits
//! are the resolver's.
//!
//! Each UDP query has a socket of its own, so a random source port guards it
//! against forged answers, and the kernel drops what comes from elsewhere
//! (the socket is connected). The id stays the client's.
//!
//! A resolver that does not answer does not answer: the client hears nothing,
//! and retries or moves on by its own rules, as on a real network. Only what a
//! real network says at once (port unreachable, no route) is said at once, as
//! SERVFAIL, since an ICMP error cannot be passed on.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use rustix::net::RecvFlags;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::DnsError;
use crate::capture::sockets::{NetNs, Sockets};

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
    limit: Duration,
}

impl Forwarder {
    /// A forwarder for clients in `netns`.
    pub const fn new(sockets: Sockets, netns: NetNs) -> Self {
        Self {
            sockets,
            netns,
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
        let any: IpAddr = if resolver.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let socket = self.sockets.udp(&self.netns, SocketAddr::new(any, 0))?;
        let socket = UdpSocket::from_std(socket)?;
        socket.connect(resolver).await?;
        socket.send(query).await?;
        // A closed port is an error on the socket, which alone does not count
        // as readable.
        let interest = Interest::READABLE | Interest::ERROR;
        socket
            .async_io(interest, || {
                // A waiting query holds no buffer.
                with_scratch(|room| {
                    loop {
                        let (length, _) = rustix::net::recv(&socket, &mut *room, RecvFlags::empty())?;
                        if answers(query, &room[..length]) {
                            return Ok(room[..length].to_vec());
                        }
                        tracing::debug!(%resolver, "ignored a message that is no answer to the query");
                    }
                })
            })
            .await
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
            loop {
                let length = stream.read_u16().await?;
                let mut answer = vec![0; usize::from(length)];
                stream.read_exact(&mut answer).await?;
                if answers(query, &answer) {
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

/// Whether `answer` is one to `query`: a response with its id and question.
/// The question's case may differ (the client itself decides whether it minds),
/// and may be missing from an error.
fn answers(query: &[u8], answer: &[u8]) -> bool {
    let (Some(asked), Some(said)) = (query.get(..HEADER), answer.get(..HEADER)) else {
        return false;
    };
    if asked[..2] != said[..2] || said[2] & 0x80 == 0 {
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

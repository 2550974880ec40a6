//! UDP sockets towards resolvers, kept for a moment after a query so that the
//! next one need not wait for a new one to be made.
//!
//! A socket carries one query at a time, at most [`USES`] of them, and is taken
//! again for at most [`LIFETIME`] after it was made: its port stands open for
//! less time than one query that nobody answers keeps a port open. Port (the
//! kernel's choice) and id (ours, from the cryptographic generator) are both
//! random, which RFC 5452 section 9.2 asks for; since every query has an id of
//! its own, a late answer to a query before is no answer to this one.
//! Only a socket whose last query was answered is kept: no answer to it is
//! still under way.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep_until};

use crate::capture::sockets::{NetNs, Sockets};

/// Queries that one socket carries, one after the other.
pub(super) const USES: usize = 16;

/// How long after it was made a socket is taken again.
pub(super) const LIFETIME: Duration = Duration::from_secs(2);

/// Most idle sockets of one forwarder; those of further queries that wait at
/// the same time are closed after them.
pub(super) const IDLE: usize = 16;

/// A socket that is connected to a resolver: the kernel drops what comes from
/// elsewhere.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) socket: UdpSocket,
    resolver: SocketAddr,
    /// Ids of the queries to come.
    ids: [u16; USES],
    left: usize,
    until: Instant,
}

impl Connected {
    /// A new socket, with a random port.
    pub(super) async fn new(
        sockets: &Sockets,
        netns: &NetNs,
        resolver: SocketAddr,
    ) -> io::Result<Self> {
        let any: IpAddr = if resolver.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let socket = sockets.udp(netns, SocketAddr::new(any, 0))?;
        let socket = UdpSocket::from_std(socket)?;
        socket.connect(resolver).await?;
        let mut bytes = [0; USES * 2];
        SystemRandom::new()
            .fill(&mut bytes)
            .map_err(|_| io::Error::other("no random numbers"))?;
        let mut ids = [0; USES];
        for (id, bytes) in ids.iter_mut().zip(bytes.chunks_exact(2)) {
            *id = u16::from_be_bytes([bytes[0], bytes[1]]);
        }
        Ok(Self {
            socket,
            resolver,
            ids,
            left: USES,
            until: Instant::now() + LIFETIME,
        })
    }

    /// The id of the next query.
    pub(super) fn next_id(&mut self) -> [u8; 2] {
        self.left = self.left.saturating_sub(1);
        self.ids[self.left].to_be_bytes()
    }
}

/// The idle sockets of one network namespace and worker. They are closed with
/// it, and each at its time.
#[derive(Clone, Debug, Default)]
pub(super) struct Idle(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// The one that was used last at the end.
    sockets: Vec<Connected>,
    /// Whether a task closes sockets at their time.
    watched: bool,
}

impl Idle {
    /// A socket to `resolver` that may be used once more.
    pub(super) fn take(&self, resolver: SocketAddr) -> Option<Connected> {
        let now = Instant::now();
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |one: &Connected| one.resolver == resolver && one.until > now;
        let place = state.sockets.iter().rposition(fits)?;
        Some(state.sockets.swap_remove(place))
    }

    /// Keeps a socket whose query was answered, if it may be used again.
    pub(super) fn keep(&self, socket: Connected) {
        if socket.left == 0 || socket.until <= Instant::now() {
            return;
        }
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.sockets.len() >= IDLE {
            return;
        }
        state.sockets.push(socket);
        if !state.watched {
            state.watched = true;
            tokio::spawn(close_in_time(Arc::downgrade(&self.0)));
        }
    }

    /// How many there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.sockets.len()
    }
}

/// Closes sockets at their time, until none is left.
async fn close_in_time(state: Weak<Mutex<State>>) {
    loop {
        let next = {
            let Some(state) = state.upgrade() else { return };
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            state.sockets.retain(|one| one.until > now);
            let Some(next) = state.sockets.iter().map(|one| one.until).min() else {
                state.watched = false;
                return;
            };
            next
        };
        sleep_until(next).await;
    }
}

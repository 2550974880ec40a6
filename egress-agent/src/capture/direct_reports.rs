//! What the kernel programs report of direct connections.
#![allow(unsafe_code, reason = "reports of the ring buffer, as bytes")]

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use egress_common::direct::{self as layout, DirectEvent};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::Caller;
use super::origins::{caller, ip};
use crate::policy::snapshot::ServiceId;

/// A report on a direct connection.
#[derive(Clone, Debug)]
pub struct DirectReport {
    /// What happened.
    pub outcome: DirectOutcome,
    /// The service.
    pub service: ServiceId,
    /// Number of the endpoint; `None`: none was used.
    pub endpoint: Option<u64>,
    /// Where the connection went; `None`: nowhere.
    pub destination: Option<SocketAddr>,
    /// What the application dialled.
    pub original: SocketAddr,
    /// Who called.
    pub caller: Caller,
    /// From `connect` to this report.
    pub age: Duration,
    /// From `connect` to the end of the handshake, if it came to that.
    pub handshake: Option<Duration>,
}

/// What happened to a direct connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DirectOutcome {
    /// The handshake succeeded.
    Established,
    /// The handshake failed: refused, timed out, or given up.
    Failed,
    /// It is over.
    Closed {
        /// Bytes that the endpoint acknowledged.
        sent: u64,
        /// Bytes received from the endpoint.
        received: u64,
        /// Whose doing it was that it ended by a reset; `None`: it did not.
        reset: Option<ResetBy>,
    },
    /// Refused: all places under `maxConnections` are taken (`UO`).
    Overflow,
    /// Refused: no endpoint may be used (`UH`).
    NoEndpoint,
}

/// Who ended a connection otherwise than by a close of both sides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResetBy {
    /// The application, or the end of its process: it closed the socket with
    /// data unread, or with `SO_LINGER` zero.
    Application,
    /// The endpoint or the network: a reset came, or nothing any more.
    Endpoint,
}

/// Reads the reports. Wait for its descriptor to be readable, then call
/// [`Self::next`] until it answers `None`, and again after
/// [`Self::LOOK_AGAIN`].
pub struct DirectReports {
    ring: RingBuf<MapData>,
}

impl fmt::Debug for DirectReports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectReports").finish_non_exhaustive()
    }
}

impl AsFd for DirectReports {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl AsRawFd for DirectReports {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl DirectReports {
    /// Only what is urgent makes the descriptor readable at once. Other
    /// reports do so at most once in this time: look once more when it has
    /// passed since then.
    pub const LOOK_AGAIN: Duration = Duration::from_nanos(layout::WAKE_AGAIN_NS);

    pub(super) const fn new(ring: RingBuf<MapData>) -> Self {
        Self { ring }
    }

    /// Registers it with the runtime of the calling task, to wait for reports.
    ///
    /// # Errors
    /// When the descriptor cannot be registered.
    pub fn watched(self) -> io::Result<AsyncFd<Self>> {
        // SAFETY: the descriptor belongs to `self.ring`, which is neither
        // closed nor replaced before it is dropped, together with the result.
        let watched = unsafe { AsyncFd::register_with_interest(self, Interest::READABLE) };
        watched.map_err(io::Error::from)
    }

    /// The oldest report that was not read yet.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator ends, this only runs dry for the moment"
    )]
    pub fn next(&mut self) -> Option<DirectReport> {
        loop {
            let item = self.ring.next()?;
            if item.len() < size_of::<DirectEvent>() {
                continue;
            }
            // SAFETY: long enough, and any bytes are a valid event.
            let event = unsafe { item.as_ptr().cast::<DirectEvent>().read_unaligned() };
            if let Some(report) = report(&event) {
                return Some(report);
            }
        }
    }
}

fn report(event: &DirectEvent) -> Option<DirectReport> {
    let outcome = match event.kind {
        layout::EVENT_ESTABLISHED => DirectOutcome::Established,
        layout::EVENT_FAILED => DirectOutcome::Failed,
        layout::EVENT_CLOSED => DirectOutcome::Closed {
            sent: event.sent,
            received: event.received,
            reset: matches!(event.old_state, TCP_ESTABLISHED | TCP_CLOSE_WAIT).then_some(
                if event.released == 0 {
                    ResetBy::Endpoint
                } else {
                    ResetBy::Application
                },
            ),
        },
        layout::EVENT_OVERFLOW => DirectOutcome::Overflow,
        layout::EVENT_NO_ENDPOINT => DirectOutcome::NoEndpoint,
        _ => return None,
    };
    let since = |end: u64| Duration::from_nanos(end.saturating_sub(event.connected_ns));
    Some(DirectReport {
        outcome,
        service: ServiceId(event.service),
        endpoint: (event.endpoint != 0).then_some(event.endpoint),
        destination: (event.port != 0).then(|| SocketAddr::new(ip(&event.address), event.port)),
        original: SocketAddr::new(ip(&event.original), event.original_port),
        caller: caller(&event.caller),
        age: since(event.now_ns),
        handshake: (event.established_ns != 0).then(|| since(event.established_ns)),
    })
}

/// `net/tcp_states.h`.
const TCP_ESTABLISHED: u8 = 1;
const TCP_CLOSE_WAIT: u8 = 8;

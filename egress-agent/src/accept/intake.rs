//! The accept loop: takes connections, looks up where they were going, and
//! hands them on.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::backoff::Backoff;
use super::socket::reset;
use super::{Accepted, Admission, Origins};
use crate::capture::sockets::NetNs;

/// What became of connections before they were handed on.
#[derive(Debug, Default)]
pub struct IntakeStats {
    /// Handed on.
    pub accepted: AtomicU64,
    /// Reset: the kernel programs had not redirected them.
    pub unknown_origin: AtomicU64,
    /// Reset: the limit on open connections.
    pub over_limit: AtomicU64,
    /// Reset: the record could not be read.
    pub failed_lookups: AtomicU64,
    /// Failures of accept(2) that made the loop pause.
    pub pauses: AtomicU64,
}

fn count(counter: &AtomicU64) -> u64 {
    counter.fetch_add(1, Ordering::Relaxed) + 1
}

/// Turns what listeners accept into [`Accepted`] values.
#[derive(Clone)]
pub struct Intake {
    /// Where a connection was going.
    pub origins: Arc<dyn Origins>,
    /// Limit of this worker.
    pub admission: Admission,
    /// Shared by all workers.
    pub stats: Arc<IntakeStats>,
}

/// Where a listener is.
pub(super) struct Place {
    pub(super) netns: NetNs,
    pub(super) port: u16,
}

impl Intake {
    /// Accepts for ever. `hand_on` must not block: it starts a task.
    pub async fn run(self, listener: TcpListener, netns: NetNs, hand_on: impl Fn(Accepted)) {
        let port = match listener.local_addr() {
            Ok(address) => address.port(),
            Err(error) => {
                tracing::error!(%error, "a listener has no address; it is closed");
                return;
            }
        };
        let place = Place { netns, port };
        self.accept_from(async || listener.accept().await, &place, hand_on)
            .await;
    }

    pub(super) async fn accept_from(
        &self,
        mut accept: impl AsyncFnMut() -> io::Result<(TcpStream, SocketAddr)>,
        place: &Place,
        hand_on: impl Fn(Accepted),
    ) {
        let mut backoff = Backoff::default();
        loop {
            match accept().await {
                Ok((stream, peer)) => {
                    backoff.reset();
                    if let Some(accepted) = self.admit(stream, peer, place) {
                        hand_on(accepted);
                    }
                }
                Err(error) => {
                    if let Some(pause) = backoff.pause_after(&error) {
                        let times = count(&self.stats.pauses);
                        if times.is_power_of_two() {
                            tracing::error!(%error, times, "cannot accept connections; raise the \
                                limit on open files (LimitNOFILE=)");
                        }
                        tokio::time::sleep(pause).await;
                    }
                }
            }
        }
    }

    fn admit(&self, stream: TcpStream, peer: SocketAddr, place: &Place) -> Option<Accepted> {
        // The record is taken even when the connection is then turned away:
        // it must not stay in the map.
        let captured = match self.origins.take(place.netns.cookie, peer, place.port) {
            Ok(Some(captured)) => captured,
            Ok(None) => {
                count(&self.stats.unknown_origin);
                tracing::debug!(%peer, "reset a connection that was not redirected here");
                reset(stream);
                return None;
            }
            Err(error) => {
                if count(&self.stats.failed_lookups).is_power_of_two() {
                    tracing::error!(%error, %peer, "cannot read where a connection was going");
                }
                reset(stream);
                return None;
            }
        };
        let Some(admitted) = self.admission.admit() else {
            if count(&self.stats.over_limit).is_power_of_two() {
                tracing::warn!(
                    open = self.admission.open(),
                    "the limit on open connections is reached; new ones are reset"
                );
            }
            reset(stream);
            return None;
        };
        count(&self.stats.accepted);
        Some(Accepted {
            captured,
            stream,
            netns: place.netns.clone(),
            started: Instant::now(),
            started_at: SystemTime::now(),
            admitted,
        })
    }
}

//! A name with its address, and the clock that its times are read from.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use super::super::state::Record;
use super::number::VirtualAddress;

/// A name and its address.
#[derive(Debug)]
pub struct Holding {
    /// Host, lower case, no trailing dot.
    pub name: Arc<str>,
    /// Its address.
    pub address: VirtualAddress,
    /// Made for a name under a wildcard host, at its first query.
    pub derived: bool,
    /// Order in which numbers were given out since the agent started.
    pub(in crate::dns) sequence: u64,
    /// The kernel has entries for it, so it may be answered.
    pub(super) ready: AtomicBool,
    /// Unix seconds of the last use; 0: none.
    pub(super) used: AtomicU64,
    /// Unix seconds of the release; 0: held.
    pub(super) released: AtomicU64,
}

impl Holding {
    /// A policy names it.
    pub fn held(&self) -> bool {
        self.released.load(Ordering::Acquire) == 0
    }

    /// The kernel has entries for it.
    pub fn ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Says that the kernel has entries for it.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    /// When it was last named in an answer or dialled.
    pub fn last_used(&self) -> Option<SystemTime> {
        let seconds = self.used.load(Ordering::Relaxed);
        (seconds != 0).then(|| UNIX_EPOCH + Duration::from_secs(seconds))
    }

    pub(super) fn record(&self) -> Record {
        Record {
            name: (&*self.name).into(),
            index: self.address.0,
            derived: self.derived,
            used: self.used.load(Ordering::Relaxed),
            released: self.released.load(Ordering::Acquire),
        }
    }
}

/// Seconds of Unix time that go with tokio's clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    unix: u64,
    start: Instant,
}

impl Clock {
    pub(super) fn start() -> Self {
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            unix: unix.as_secs(),
            start: Instant::now(),
        }
    }

    pub(super) fn now(&self) -> u64 {
        self.unix + self.start.elapsed().as_secs()
    }
}

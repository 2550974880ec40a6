//! Requests that wait for a place under `maxConnections` while idle
//! connections, maybe of other workers, hold the places.
//!
//! Each worker keeps connections of its own. Without this, a request that came
//! to one worker could wait until another worker's idle connection is closed
//! for its age.

use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::Notify;

use super::set::EndpointSet;

#[derive(Debug, Default)]
pub(super) struct Wanted {
    waiting: AtomicU32,
    /// Made when first asked for.
    asked: OnceLock<Arc<Notify>>,
}

impl Wanted {
    fn asked(&self) -> &Arc<Notify> {
        self.asked.get_or_init(Arc::default)
    }
}

/// A request that waits for a place; it waits until this is dropped.
#[derive(Debug)]
#[must_use = "dropping it ends the wait"]
pub struct ConnectionWanted {
    set: Arc<EndpointSet>,
}

impl Drop for ConnectionWanted {
    fn drop(&mut self) {
        let waiting = &self.set.shared.wanted.waiting;
        waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

impl EndpointSet {
    /// Tells the keepers of idle connections that a request waits for a place
    /// under `maxConnections`.
    pub fn want_connection(self: &Arc<Self>) -> ConnectionWanted {
        self.shared.wanted.waiting.fetch_add(1, Ordering::AcqRel);
        ConnectionWanted {
            set: Arc::clone(self),
        }
    }

    /// Asks one keeper of idle connections to close one.
    pub fn ask_for_connection(&self) {
        self.shared.wanted.asked().notify_one();
    }

    /// Requests that wait for a place, over all workers.
    pub fn connections_wanted(&self) -> u32 {
        self.shared.wanted.waiting.load(Ordering::Acquire)
    }

    /// Completes when a keeper of idle connections is asked to close one
    /// ([`connections_wanted`](Self::connections_wanted) says whether still).
    pub fn connection_asked_for(&self) -> impl Future<Output = ()> + Send + use<> {
        Arc::clone(self.shared.wanted.asked()).notified_owned()
    }
}

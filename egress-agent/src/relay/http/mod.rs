//! HTTP: a connection's requests, one after the other or side by side, each
//! routed, tried, retried and recorded by itself.
//!
//! [`serve`] drives one client connection. The client's bytes pass the
//! [`guard`] before hyper sees them; [`exchange`] decides what a request gets;
//! [`forward`] is the one place where tries are made and repeated; the
//! response streams back through [`response`], whose end is the end of the
//! request.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, Cache};
use tokio::sync::watch;
use tokio::time::Instant;

use self::drain::Drain;
use super::{Buffers, Transport};
use crate::connect::pool::{Io, Pool};
use crate::endpoint::Live;
use crate::secret::Secrets;

mod affinity;
mod client;
mod connection;
mod deadline;
mod drain;
mod exchange;
mod expiry;
mod extended;
mod failure;
mod forward;
mod guard;
mod guarded;
mod local;
mod mirror;
mod outgoing;
mod reach;
mod record;
mod request;
mod response;
mod retry;
mod tries;
mod upgrade;
mod upload;

#[cfg(test)]
mod tests;

pub use client::Caller;
pub use connection::{End, serve};
pub use record::{Log, Record};
pub use upload::RequestBody;

/// What is the same for all HTTP connections.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A request's head must be complete so long after its first byte (408).
    pub head_timeout: Duration,
    /// A request's body must not stand still for longer (the connection is
    /// closed).
    pub body_timeout: Duration,
    /// A connection without requests is closed after this (Envoy: 1 h).
    pub idle_timeout: Duration,
    /// HTTP/2 streams that one client may have open at once.
    pub max_streams: u32,
    /// Add `x-request-id` where there is none.
    pub request_id: bool,
    /// Add `x-forwarded-proto` where there is none.
    pub forwarded_proto: bool,
    /// Add `traceparent` where there is none.
    pub trace_context: bool,
    /// Share of the traces begun here that are marked as sampled, in parts per
    /// million (Istio: 1 %).
    pub trace_sampling: u32,
    /// Add `x-envoy-attempt-count` to requests.
    pub attempt_count: bool,
    /// Add `x-envoy-upstream-service-time` to responses.
    pub service_time: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            head_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_mins(5),
            idle_timeout: Duration::from_hours(1),
            max_streams: 1024,
            request_id: true,
            forwarded_proto: true,
            trace_context: true,
            trace_sampling: 10_000,
            attempt_count: false,
            service_time: false,
        }
    }
}

/// The newest policy, as one worker has seen it.
pub(super) type Current = Rc<Arc<Live>>;

/// A connection to a service.
pub trait ServiceStream: Io + Transport {}
impl<S: Io + Transport> ServiceStream for S {}

/// What HTTP connections of one worker share.
pub struct Worker<S> {
    /// Connections to services.
    pub pool: Rc<Pool<RequestBody, S>>,
    /// Settings.
    pub settings: Settings,
    /// Spare buffers for connections that change their protocol.
    buffers: Buffers,
    /// Credentials that requests are given.
    secrets: Arc<Secrets>,
    live: RefCell<Cached>,
    drain: Rc<Drain>,
    /// When it began.
    epoch: Instant,
}

struct Cached {
    cache: Cache<Arc<ArcSwap<Live>>, Arc<Live>>,
    current: Current,
}

impl<S> std::fmt::Debug for Worker<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl<S: ServiceStream> Worker<S> {
    /// What one worker's connections share. `draining` turns true when they are
    /// to end. To be called on the worker's own thread.
    pub fn new(
        pool: Rc<Pool<RequestBody, S>>,
        live: Arc<ArcSwap<Live>>,
        settings: Settings,
        buffers: Buffers,
        draining: watch::Receiver<bool>,
        secrets: Arc<Secrets>,
    ) -> Rc<Self> {
        let mut cache = Cache::new(live);
        let current = Rc::new(Arc::clone(cache.load()));
        Rc::new(Self {
            pool,
            settings,
            buffers,
            secrets,
            live: RefCell::new(Cached { cache, current }),
            drain: Drain::follow(draining),
            epoch: Instant::now(),
        })
    }

    /// The newest policy. A request costs no shared counter as long as the
    /// policy stays.
    fn live(&self) -> Current {
        let mut live = self.live.borrow_mut();
        let Cached { cache, current } = &mut *live;
        let newest = cache.load();
        if !Arc::ptr_eq(newest, current) {
            *current = Rc::new(Arc::clone(newest));
        }
        Rc::clone(current)
    }
}

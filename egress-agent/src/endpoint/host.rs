//! One endpoint and what is known about it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use tokio::time::{Instant, sleep_until};

use super::outcome::LastFailure;
use super::outlier::{Generation, Tally};
use super::resolved::{Destination, ResolvedEndpoint};
use super::told::Told;
use crate::policy::model::{Labels, Locality};

/// Number of an endpoint, unique while the agent runs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct EndpointId(u64);

impl EndpointId {
    /// The number, from 1 up.
    pub const fn get(self) -> u64 {
        self.0
    }

    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One address of a cluster. The description is immutable: when weight,
/// locality or labels change, a new value with the same state takes its place.
#[derive(Debug)]
pub struct Endpoint {
    /// Number; the same while the address stays in the cluster.
    pub id: EndpointId,
    /// Where.
    pub destination: Destination,
    /// The name that it was resolved from, where there is one.
    pub name: Option<Arc<str>>,
    /// `weight`, at least 1.
    pub weight: u32,
    /// Locality.
    pub locality: Locality,
    /// Labels.
    pub labels: Labels,
    pub(super) state: Arc<State>,
}

/// What changes while an endpoint lives; shared by its descriptions.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct State {
    /// Bit set of `OUT_` reasons; zero: may be picked.
    pub(super) out: AtomicU8,
    /// Picks not yet given back: requests (HTTP) or connections (TCP).
    pub(super) active: AtomicU32,
    /// Open connections of the agent.
    pub(super) connections: AtomicU32,
    /// Open connections of the direct path, as the kernel counts them.
    pub(super) direct: AtomicU32,
    /// When the drain of a vanished endpoint is over; `None`: not draining.
    pub(super) drain: Told<Option<Instant>>,
    /// Errors in a row and the period that they belong to.
    pub(super) tally: Tally,
    pub(super) last_failure: LastFailure,
    /// Second of the set's life in which it was last picked, where endpoints
    /// come and go with what clients dial.
    pub(super) used: AtomicU64,
    pub(super) counters: EndpointCounters,
}

/// Ejected by outlier detection.
pub(super) const OUT_EJECTED: u8 = 1;
/// Fails its active health check.
pub(super) const OUT_UNHEALTHY: u8 = 2;
/// No longer among the cluster's endpoints.
pub(super) const OUT_GONE: u8 = 4;

/// What an endpoint did since it appeared.
#[derive(Debug, Default)]
pub struct EndpointCounters {
    /// Times picked.
    pub picks: AtomicU64,
    /// Connections opened.
    pub connections: AtomicU64,
    /// Connect attempts that failed, TLS included.
    pub connect_failures: AtomicU64,
    /// Verdicts that were good.
    pub successes: AtomicU64,
    /// Verdicts that were bad, `connect_failures` included.
    pub failures: AtomicU64,
    /// Times ejected.
    pub ejections: AtomicU64,
}

impl Endpoint {
    pub(super) fn new(resolved: ResolvedEndpoint) -> Self {
        let state = State {
            out: AtomicU8::new(0),
            active: AtomicU32::new(0),
            connections: AtomicU32::new(0),
            direct: AtomicU32::new(0),
            drain: Told::new(None),
            tally: Tally::default(),
            last_failure: LastFailure::default(),
            used: AtomicU64::new(0),
            counters: EndpointCounters::default(),
        };
        Self::with(EndpointId::next(), Arc::new(state), resolved)
    }

    /// The same endpoint with a new description.
    pub(super) fn described(&self, resolved: ResolvedEndpoint) -> Self {
        Self::with(self.id, Arc::clone(&self.state), resolved)
    }

    fn with(id: EndpointId, state: Arc<State>, resolved: ResolvedEndpoint) -> Self {
        Self {
            id,
            destination: resolved.destination,
            name: resolved.name,
            weight: resolved.weight.max(1),
            locality: resolved.locality,
            labels: resolved.labels,
            state,
        }
    }

    /// Whether this is what `resolved` describes.
    pub(super) fn is(&self, resolved: &ResolvedEndpoint) -> bool {
        self.destination == resolved.destination
            && self.name == resolved.name
            && self.weight == resolved.weight.max(1)
            && self.locality == resolved.locality
            && self.labels == resolved.labels
    }

    /// Neither ejected, nor unhealthy, nor gone.
    pub fn is_available(&self) -> bool {
        self.state.out.load(Ordering::Acquire) == 0
    }

    /// No longer among the cluster's endpoints: a pool must not put a
    /// connection to it back.
    pub fn is_gone(&self) -> bool {
        self.state.out.load(Ordering::Acquire) & OUT_GONE != 0
    }

    /// Picks that were not given back yet.
    pub fn active_requests(&self) -> u32 {
        self.state.active.load(Ordering::Relaxed)
    }

    /// Open connections of the agent to it.
    pub fn active_connections(&self) -> u32 {
        self.state.connections.load(Ordering::Relaxed)
    }

    /// Open connections on the direct path, as the kernel counts them.
    pub fn direct_connections(&self) -> u32 {
        self.state.direct.load(Ordering::Relaxed)
    }

    /// Takes over the kernel's count of direct connections.
    pub fn set_direct_connections(&self, count: u32) {
        self.state.direct.store(count, Ordering::Relaxed);
    }

    /// The present period: what begins now may be held against the endpoint
    /// until it is ejected or readmitted.
    pub fn generation(&self) -> Generation {
        self.state.tally.generation()
    }

    /// What it did so far.
    pub fn counters(&self) -> &EndpointCounters {
        &self.state.counters
    }

    /// Counts an open connection until the guard is dropped.
    pub fn open_connection(&self) -> ConnectionGuard {
        self.state.connections.fetch_add(1, Ordering::Relaxed);
        self.guard()
    }

    /// As [`Self::open_connection`], but only if there is none.
    pub(super) fn first_connection(&self) -> Option<ConnectionGuard> {
        self.state
            .connections
            .compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
            .then(|| self.guard())
    }

    fn guard(&self) -> ConnectionGuard {
        let opened = &self.state.counters.connections;
        opened.fetch_add(1, Ordering::Relaxed);
        ConnectionGuard(Arc::clone(&self.state))
    }

    /// Completes when this endpoint has vanished from DNS and the grace time
    /// of its connections is over; never when it comes back before that, and
    /// never for resolutions other than DNS. A relay awaits it beside its copy
    /// loop and then closes.
    pub async fn drained(&self) {
        let drain = &self.state.drain;
        loop {
            let changed = drain.next();
            match drain.get() {
                // In this order: an endpoint that is back when the time is over
                // does not drain, even if both are seen at once.
                Some(deadline) => tokio::select! {
                    biased;
                    () = changed => {}
                    () = sleep_until(deadline) => return,
                },
                None => changed.await,
            }
        }
    }

    /// When the drain of a vanished endpoint is over.
    pub fn drain_deadline(&self) -> Option<Instant> {
        self.state.drain.get()
    }
}

/// Counts an open connection of an endpoint while it lives.
#[derive(Debug)]
pub struct ConnectionGuard(Arc<State>);

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

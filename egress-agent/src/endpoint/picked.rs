//! What a pick asks and what it gives.

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::host::{Endpoint, EndpointId};
use super::outcome::Outcome;
use super::outlier::Generation;
use super::pool::Pool;
use super::resolved::Destination;
use crate::policy::snapshot::Client;

/// What the choice depends on, besides the cluster.
#[derive(Clone, Copy, Debug)]
pub struct PickContext<'a> {
    /// Who calls (`failoverPriority` compares its labels).
    pub client: &'a Client,
    /// The destination that the application dialled.
    pub original: SocketAddr,
    /// The name that the application asked for, lower case.
    pub host: &'a str,
    /// Hash of the request's `consistentHash` key ([`hash_bytes`],
    /// [`hash_address`]); `None` when the request has none: then a random
    /// endpoint.
    ///
    /// [`hash_bytes`]: super::hash_bytes
    /// [`hash_address`]: super::hash_address
    pub hash: Option<u64>,
    /// Endpoints that earlier tries of this request went to: avoided while
    /// there are others. Leave it empty for `retryIgnorePreviousHosts: false`.
    pub tried: &'a [EndpointId],
    /// `retryRemoteLocalities`: priority levels of tried endpoints are left
    /// for the others.
    pub remote_localities: bool,
}

/// An endpoint that was chosen. It counts as active while this lives.
#[derive(Debug)]
pub struct Picked {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// Where to dial.
    pub destination: Destination,
    pool: Arc<Pool>,
    period: Generation,
    judged: Cell<bool>,
}

impl Picked {
    pub(super) fn new(pool: &Arc<Pool>, endpoint: Arc<Endpoint>) -> Self {
        let state = &endpoint.state;
        state.active.fetch_add(1, Ordering::Relaxed);
        state.counters.picks.fetch_add(1, Ordering::Relaxed);
        Self {
            destination: endpoint.destination.clone(),
            period: endpoint.generation(),
            endpoint,
            pool: Arc::clone(pool),
            judged: Cell::new(false),
        }
    }

    /// Tells how it went. Only the first report counts; dropping without one
    /// says nothing about the endpoint.
    pub fn report(&self, outcome: Outcome) {
        if !self.judged.replace(true) {
            self.pool.judge(&self.endpoint, self.period, outcome);
        }
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        self.endpoint.state.active.fetch_sub(1, Ordering::Relaxed);
    }
}

//! The endpoints of one cluster (or of one name of a dynamic one) and the
//! table that picks among them.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use super::error::PickError;
use super::host::{Endpoint, OUT_GONE};
use super::outcome::Outcome;
use super::picked::PickContext;
use super::resolved::ResolvedEndpoint;

#[derive(Debug)]
pub(super) struct Pool {
    members: Mutex<Vec<Arc<Endpoint>>>,
    table: ArcSwap<Vec<Arc<Endpoint>>>,
}

impl Pool {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            members: Mutex::default(),
            table: ArcSwap::default(),
        })
    }

    pub(super) fn update(&self, resolved: Vec<ResolvedEndpoint>) {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh: Vec<Arc<Endpoint>> = resolved
            .into_iter()
            .map(
                |new| match members.iter().find(|m| m.destination == new.destination) {
                    Some(old) if old.is(&new) => Arc::clone(old),
                    Some(old) => Arc::new(old.described(new)),
                    None => Arc::new(Endpoint::new(new)),
                },
            )
            .collect();
        for old in members.iter() {
            if !fresh.iter().any(|new| new.id == old.id) {
                old.state.out.fetch_or(OUT_GONE, Ordering::AcqRel);
            }
        }
        self.table.store(Arc::new(fresh.clone()));
        *members = fresh;
    }

    pub(super) fn pick(&self, context: &PickContext<'_>) -> Result<Arc<Endpoint>, PickError> {
        let table = self.table.load();
        if table.is_empty() {
            return Err(PickError::Empty);
        }
        let start = fastrand::usize(..table.len());
        let order = || table[start..].iter().chain(&table[..start]);
        order()
            .find(|e| e.is_available() && !context.tried.contains(&e.id))
            .or_else(|| order().find(|e| e.is_available()))
            .map(Arc::clone)
            .ok_or(PickError::NoHealthy)
    }

    pub(super) fn judge(&self, endpoint: &Endpoint, outcome: Outcome) {
        let counters = &endpoint.state.counters;
        match outcome.success() {
            Some(true) => counters.successes.fetch_add(1, Ordering::Relaxed),
            Some(false) => counters.failures.fetch_add(1, Ordering::Relaxed),
            None => 0,
        };
    }
}

//! The endpoints of one cluster (or of one name of a dynamic one) and the
//! tables that pick among them.
//!
//! Everything that changes what may be picked happens under one lock, which
//! also publishes the new tables, so no change can be missed. Picking takes no
//! lock.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use tokio::time::Instant;

use super::config::Config;
use super::error::PickError;
use super::health::CheckState;
use super::host::{Endpoint, EndpointId, OUT_EJECTED, OUT_GONE, OUT_UNHEALTHY};
use super::index::Index;
use super::outlier::EjectReason;
use super::picked::PickContext;
use super::resolved::{Destination, ResolvedEndpoint};
use super::shared::Shared;
use super::table::{Candidate, Table};
use super::variants::Tables;
use super::weighted::Cursor;
use crate::policy::snapshot::Client;

/// Vanished endpoints that are remembered while they drain.
const DEPARTED: usize = 4096;

/// Aligned so that its reference count, which every pick changes, is on a line
/// of its own.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Pool {
    pub(super) shared: Arc<Shared>,
    pub(super) kind: Kind,
    pub(super) inner: Mutex<Inner>,
    tables: ArcSwap<Tables>,
    cursor: Cursor,
    /// Second of the set's life in which it was last picked from.
    pub(super) used: AtomicU64,
    /// This pool's part of the set's gauges: all, available, ejected.
    counted: [AtomicU32; 3],
}

/// Where the endpoints of a pool come from.
#[derive(Debug)]
pub(super) enum Kind {
    /// From resolution.
    Resolved,
    /// From what clients dial.
    Dialled(Box<Dialled>),
}

/// What clients dialled.
#[derive(Debug)]
pub(super) struct Dialled {
    pub(super) index: Index<std::net::SocketAddr, Endpoint>,
    /// `minHealthPercent` asks to use ejected ones too.
    pub(super) panic: AtomicBool,
}

#[derive(Debug, Default)]
pub(super) struct Inner {
    pub(super) members: Vec<Member>,
    pub(super) departed: Vec<Departed>,
    /// Number of the `interval` in which the last sweep fell.
    pub(super) swept: u64,
}

/// An endpoint and what only its pool knows of it.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) endpoint: Arc<Endpoint>,
    /// When its warm-up began.
    pub(super) since: Instant,
    pub(super) ejection: Option<Ejection>,
    /// Ejections in a row, less the healthy intervals since.
    pub(super) times: u32,
    pub(super) check: CheckState,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Ejection {
    pub(super) at: Instant,
    pub(super) reason: EjectReason,
}

#[derive(Debug)]
pub(super) struct Departed {
    pub(super) member: Member,
    pub(super) until: Instant,
}

impl Member {
    pub(super) fn new(endpoint: Arc<Endpoint>, now: Instant) -> Self {
        Self {
            endpoint,
            since: now,
            ejection: None,
            times: 0,
            check: CheckState::default(),
        }
    }

    pub(super) fn set_out(&self, bit: u8, out: bool) {
        let flags = &self.endpoint.state.out;
        if out {
            flags.fetch_or(bit, Ordering::AcqRel);
        } else {
            flags.fetch_and(!bit, Ordering::AcqRel);
        }
    }

    pub(super) fn id(&self) -> EndpointId {
        self.endpoint.id
    }
}

impl Pool {
    pub(super) fn new(shared: Arc<Shared>, kind: Kind) -> Arc<Self> {
        Arc::new(Self {
            shared,
            kind,
            inner: Mutex::default(),
            tables: ArcSwap::default(),
            cursor: Cursor::default(),
            used: AtomicU64::new(0),
            counted: Default::default(),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over a new list of endpoints.
    pub(super) fn update(&self, resolved: Vec<ResolvedEndpoint>, now: Instant) {
        let config = self.shared.config.load();
        let mut inner = self.lock();
        let resolved = merge(resolved);
        let mut wanted: HashMap<&Destination, &ResolvedEndpoint> =
            resolved.iter().map(|new| (&new.destination, new)).collect();
        let mut changed = false;
        let mut members = Vec::with_capacity(resolved.len());
        let mut departing = Vec::new();
        let before = std::mem::take(&mut inner.members);
        // Endpoints that stay keep their place: answers come in any order.
        for mut member in before {
            let Some(new) = wanted.remove(&member.endpoint.destination) else {
                changed = true;
                departing.push(member);
                continue;
            };
            if !member.endpoint.is(new) {
                member.endpoint = Arc::new(member.endpoint.described(new.clone()));
                changed = true;
            }
            members.push(member);
        }
        for new in &resolved {
            if wanted.remove(&new.destination).is_some() {
                changed = true;
                members.push(arrive(&mut inner, new, now));
            }
        }
        inner.members = members;
        if changed {
            self.readmit_beyond_cap(&mut inner, &config, now);
            self.publish(&inner, &config, now);
        }
        // Only now: whoever still reads the tables of before finds somebody.
        for member in departing {
            self.depart(&mut inner, member, &config, now);
        }
    }

    fn depart(&self, inner: &mut Inner, member: Member, config: &Config, now: Instant) {
        member.set_out(OUT_GONE, true);
        let until = now + config.options.drain_grace;
        if config.drains() {
            member.endpoint.state.drain.set(Some(until));
            tracing::info!(
                cluster = %self.shared.name(),
                endpoint = %member.endpoint.destination,
                connections = member.endpoint.active_connections(),
                grace_s = config.options.drain_grace.as_secs(),
                "endpoint vanished; its connections drain"
            );
        }
        if inner.departed.len() == DEPARTED {
            inner.departed.remove(0);
        }
        inner.departed.push(Departed { member, until });
    }

    /// Takes over a changed policy.
    pub(super) fn reconfigure(&self, now: Instant) {
        let config = self.shared.config.load();
        let mut inner = self.lock();
        inner.swept = self.interval_number(&config, now);
        if config.policy().health_check.is_none() {
            for member in &mut inner.members {
                member.check = CheckState::default();
                member.set_out(OUT_UNHEALTHY, false);
            }
        }
        self.readmit_beyond_cap(&mut inner, &config, now);
        self.publish(&inner, &config, now);
    }

    /// Builds the tables anew. Called under the lock.
    pub(super) fn publish(&self, inner: &Inner, config: &Config, now: Instant) {
        let (all, available) = inner.counts();
        self.count(inner);
        if let Kind::Dialled(dialled) = &self.kind {
            let percent = (available * 100).checked_div(all).unwrap_or(100);
            dialled
                .panic
                .store(percent < config.panic_percent() as usize, Ordering::Release);
        } else {
            let tables = self.tables.load().rebuilt(config, &inner.candidates(), now);
            self.tables.store(Arc::new(tables));
        }
        self.shared.changed();
    }

    /// Keeps the set's gauges, which are sums over its pools.
    pub(super) fn count(&self, inner: &Inner) {
        let (all, available) = inner.counts();
        self.set_gauges([all, available, inner.ejected()]);
    }

    fn set_gauges(&self, counts: [usize; 3]) {
        let counters = &self.shared.counters;
        let gauges = [&counters.endpoints, &counters.available, &counters.ejected];
        let counts = counts.map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        for ((gauge, mine), now) in gauges.into_iter().zip(&self.counted).zip(counts) {
            let before = mine.swap(now, Ordering::AcqRel);
            // Modulo 2^32, so a fall is a rise by the complement.
            gauge.fetch_add(now.wrapping_sub(before), Ordering::AcqRel);
        }
    }

    /// Chooses an endpoint.
    pub(super) fn pick(&self, context: &PickContext<'_>) -> Result<Arc<Endpoint>, PickError> {
        let config = self.shared.config.load();
        let mut last = Err(PickError::Empty);
        for _ in 0..2 {
            let tables = self.tables.load();
            let Some(table) = tables.of(&config, context.client) else {
                self.add_variant(&config, context.client);
                continue;
            };
            last = table.pick(context, &self.cursor).map(Arc::clone);
            if !matches!(last, Err(PickError::NoHealthy)) {
                break;
            }
            // An endpoint goes out a moment before the table without it is
            // published: when all of a table are out, the next one decides.
            drop(self.lock());
        }
        last
    }

    /// Builds the table for a client with labels not met before.
    fn add_variant(&self, config: &Config, client: &Client) {
        let inner = self.lock();
        let tables = self.tables.load();
        if let Some(tables) = tables.with(config, client, &inner.candidates(), Instant::now()) {
            self.tables.store(Arc::new(tables));
        }
    }

    /// The table of a client, for those who look at it from outside.
    pub(super) fn table(&self, client: Option<&Client>) -> Option<Arc<Table>> {
        let config = self.shared.config.load();
        let tables = self.tables.load();
        let Some(client) = client else {
            return tables.plain().cloned();
        };
        if let Some(table) = tables.of(&config, client) {
            return Some(Arc::clone(table));
        }
        self.add_variant(&config, client);
        self.tables.load().of(&config, client).cloned()
    }

    /// The member at a destination.
    pub(super) fn endpoint_at(&self, destination: &Destination) -> Option<Arc<Endpoint>> {
        let inner = self.lock();
        let mut members = inner.members.iter();
        members
            .find(|member| member.endpoint.destination == *destination)
            .map(|member| Arc::clone(&member.endpoint))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // A name that was forgotten takes its part of the gauges along.
        self.set_gauges([0; 3]);
    }
}

impl Inner {
    pub(super) fn candidates(&self) -> Vec<Candidate> {
        let candidate = |member: &Member| Candidate {
            endpoint: Arc::clone(&member.endpoint),
            since: member.since,
        };
        self.members.iter().map(candidate).collect()
    }

    /// Endpoints, and those of them that may be picked.
    pub(super) fn counts(&self) -> (usize, usize) {
        let available = self.members.iter().filter(|m| m.endpoint.is_available());
        (self.members.len(), available.count())
    }

    pub(super) fn ejected(&self) -> usize {
        self.members.iter().filter(|m| m.ejection.is_some()).count()
    }
}

/// A new endpoint, or one that vanished a short while ago and is back with all
/// that was known of it.
fn arrive(inner: &mut Inner, new: &ResolvedEndpoint, now: Instant) -> Member {
    let known = inner
        .departed
        .iter()
        .position(|departed| departed.member.endpoint.destination == new.destination);
    let Some(known) = known else {
        return Member::new(Arc::new(Endpoint::new(new.clone())), now);
    };
    let mut member = inner.departed.remove(known).member;
    member.endpoint = Arc::new(member.endpoint.described(new.clone()));
    member.set_out(OUT_GONE, false);
    member.set_out(OUT_EJECTED, member.ejection.is_some());
    member.endpoint.state.drain.set(None);
    member
}

/// An address that is listed more than once (two names that resolve to it) is
/// one endpoint with the sum of the weights.
fn merge(resolved: Vec<ResolvedEndpoint>) -> Vec<ResolvedEndpoint> {
    let mut places: HashMap<Destination, usize> = HashMap::with_capacity(resolved.len());
    let mut merged: Vec<ResolvedEndpoint> = Vec::with_capacity(resolved.len());
    for new in resolved {
        if let Some(&place) = places.get(&new.destination) {
            let known = &mut merged[place];
            known.weight = known.weight.max(1).saturating_add(new.weight.max(1));
        } else {
            places.insert(new.destination.clone(), merged.len());
            merged.push(new);
        }
    }
    merged
}

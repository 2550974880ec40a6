//! What the pools of one set have in common.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::Instant;

use super::changes::Watchers;
use super::config::Config;
use super::limits::Limits;
use super::set::EndpointSet;
use super::wanted::Wanted;
use crate::policy::snapshot::ClusterKey;

/// Counters and gauges of a cluster, for metrics.
#[derive(Debug, Default)]
pub struct SetCounters {
    /// Picks that found no endpoint (`UH`, `DF`).
    pub no_endpoint: AtomicU64,
    /// Ejections by `consecutive5xxErrors`.
    pub ejections_5xx: AtomicU64,
    /// Ejections by `consecutiveGatewayErrors`.
    pub ejections_gateway: AtomicU64,
    /// Ejections by `consecutiveLocalOriginFailures`.
    pub ejections_local: AtomicU64,
    /// Ejections that `maxEjectionPercent` did not allow.
    pub ejections_refused: AtomicU64,
    /// Ejected endpoints that were readmitted.
    pub readmissions: AtomicU64,
    /// Reports of an earlier period, which did not count.
    pub late_reports: AtomicU64,
    /// Active health checks that succeeded.
    pub checks_passed: AtomicU64,
    /// Active health checks that failed.
    pub checks_failed: AtomicU64,
    /// Gauge: endpoints.
    pub endpoints: AtomicU32,
    /// Gauge: endpoints that may be picked.
    pub available: AtomicU32,
    /// Gauge: ejected endpoints.
    pub ejected: AtomicU32,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) key: ClusterKey,
    pub(super) config: ArcSwap<Config>,
    pub(super) limits: Arc<Limits>,
    pub(super) counters: SetCounters,
    pub(super) wanted: Wanted,
    pub(super) created: Instant,
    /// Grows whenever picking changes.
    pub(super) version: OnceLock<watch::Sender<u64>>,
    pub(super) watchers: Arc<Watchers>,
    pub(super) set: Weak<EndpointSet>,
}

/// `host:port`, with the subset where there is one; for messages.
#[derive(Clone, Copy)]
pub(super) struct Name<'a>(&'a ClusterKey);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(key) = self;
        write!(f, "{}:{}", key.service.host, key.service.port)?;
        if !key.subset.is_empty() {
            write!(f, "/{}", key.subset)?;
        }
        Ok(())
    }
}

impl Shared {
    pub(super) fn name(&self) -> Name<'_> {
        Name(&self.key)
    }

    pub(super) fn changed(&self) {
        if let Some(version) = self.version.get() {
            version.send_modify(|version| *version += 1);
        }
        self.watchers.tell(&self.set);
    }

    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.created)
    }
}

pub(super) fn bump(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

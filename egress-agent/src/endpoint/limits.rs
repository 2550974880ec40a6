//! Circuit breakers (`connectionPool`, `retryBudget`): counted for each
//! cluster on this node, over all workers (ISTIO-API section 10).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use tokio::time::Instant;

use super::host::{ConnectionGuard, Endpoint};
use super::set::EndpointSet;
use crate::flag::{Flag, Side};
use crate::policy::model::{RetryBudget, TrafficPolicy};

/// What a limit counts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum LimitKind {
    /// `tcp.maxConnections`.
    Connections,
    /// `http.http2MaxRequests`: requests in flight.
    Requests,
    /// `http.http1MaxPendingRequests`: requests that wait for a connection.
    Pending,
    /// `http.maxRetries` or `retryBudget`: retries in flight.
    Retries,
}

impl LimitKind {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Connections,
        Self::Requests,
        Self::Pending,
        Self::Retries,
    ];

    /// The Istio field.
    pub const fn field(self) -> &'static str {
        match self {
            Self::Connections => "maxConnections",
            Self::Requests => "http2MaxRequests",
            Self::Pending => "http1MaxPendingRequests",
            Self::Retries => "maxRetries",
        }
    }
}

/// A limit is reached (flag `UO`): never a reason to retry, and never held
/// against an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Overflow {
    /// Which limit.
    pub kind: LimitKind,
    /// Its value at that moment.
    pub limit: u32,
}

impl Overflow {
    /// Envoy's response flag.
    pub const fn flag(self) -> Flag {
        Flag::UpstreamOverflow
    }

    /// Whose side failed.
    pub const fn side(self) -> Side {
        Side::Policy
    }
}

impl fmt::Display for Overflow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} is reached", self.kind.field(), self.limit)
    }
}

impl std::error::Error for Overflow {}

/// One counter and its limit.
#[derive(Debug)]
pub(super) struct Gauge {
    current: AtomicU32,
    limit: AtomicU32,
    overflows: AtomicU64,
}

impl Gauge {
    const fn new() -> Self {
        Self {
            current: AtomicU32::new(0),
            limit: AtomicU32::new(u32::MAX),
            overflows: AtomicU64::new(0),
        }
    }

    /// Takes a place unless `limit` are taken: one compare-exchange decides,
    /// so the count never exceeds the limit, not even for a moment.
    fn take(&self, limit: u32) -> bool {
        let taken = self
            .current
            .try_update(Ordering::AcqRel, Ordering::Relaxed, |current| {
                (current < limit).then_some(current + 1)
            })
            .is_ok();
        if !taken {
            self.overflows.fetch_add(1, Ordering::Relaxed);
        }
        taken
    }

    fn current(&self) -> u32 {
        self.current.load(Ordering::Acquire)
    }
}

/// The gauges of one cluster, on a cache line of their own. They share it:
/// whoever changes one of them changes others for the same request.
#[derive(Debug)]
#[repr(align(64))]
struct Gauges([Gauge; 4]);

/// The limits of one cluster.
#[derive(Debug)]
pub(super) struct Limits {
    gauges: Gauges,
    budget: ArcSwapOption<RetryBudget>,
    /// While the budget has an interval.
    window: ArcSwapOption<Window>,
}

impl Limits {
    pub(super) fn new(policy: &TrafficPolicy) -> Arc<Self> {
        let limits = Self {
            gauges: Gauges([Gauge::new(), Gauge::new(), Gauge::new(), Gauge::new()]),
            budget: ArcSwapOption::empty(),
            window: ArcSwapOption::empty(),
        };
        limits.configure(policy);
        Arc::new(limits)
    }

    /// Takes over new limits. What is in flight stays counted, so after a
    /// limit was lowered nothing new starts until enough has ended.
    pub(super) fn configure(&self, policy: &TrafficPolicy) {
        let pool = &policy.connection_pool;
        let values = [
            pool.max_connections,
            pool.max_requests,
            pool.max_pending_requests,
            pool.max_retries,
        ];
        for (gauge, value) in self.gauges.0.iter().zip(values) {
            gauge.limit.store(value, Ordering::Release);
        }
        let windowed = policy.retry_budget.is_some_and(|b| !b.interval.is_zero());
        if !windowed {
            self.window.store(None);
        } else if self.window.load().is_none() {
            self.window
                .store(Some(Arc::new(Window::new(Instant::now()))));
        }
        self.budget.store(policy.retry_budget.map(Arc::new));
    }

    pub(super) const fn gauge(&self, kind: LimitKind) -> &Gauge {
        &self.gauges.0[kind as usize]
    }

    /// The limit as it is now.
    pub(super) fn limit(&self, kind: LimitKind) -> u32 {
        if kind == LimitKind::Retries
            && let Some(budget) = &*self.budget.load()
        {
            return self.retry_limit(budget);
        }
        self.gauge(kind).limit.load(Ordering::Acquire)
    }

    /// Taken at this moment.
    pub(super) fn current(&self, kind: LimitKind) -> u32 {
        self.gauge(kind).current()
    }

    /// Times that the limit was reached.
    pub(super) fn overflows(&self, kind: LimitKind) -> u64 {
        self.gauge(kind).overflows.load(Ordering::Relaxed)
    }

    /// `retryBudget`: a share of active and pending requests, or, with a
    /// `budgetInterval`, of those started within it, if that is more.
    fn retry_limit(&self, budget: &RetryBudget) -> u32 {
        let active = self
            .current(LimitKind::Requests)
            .saturating_add(self.current(LimitKind::Pending));
        let base = if budget.interval.is_zero() {
            active
        } else {
            let window = self.window.load();
            let started = window
                .as_ref()
                .map_or(0, |window| window.sum(budget.interval, Instant::now()));
            active.max(started)
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a u32, 0 to 100 per cent; rounded down as Envoy does"
        )]
        let share = (f64::from(base) * budget.percent / 100.0) as u32;
        share.max(budget.min_retry_concurrency)
    }

    pub(super) fn permit(self: &Arc<Self>, kind: LimitKind) -> Result<Permit, Overflow> {
        let limit = self.limit(kind);
        if kind == LimitKind::Requests
            && let Some(window) = &*self.window.load()
            && let Some(budget) = &*self.budget.load()
        {
            window.add(budget.interval, Instant::now());
        }
        if self.gauge(kind).take(limit) {
            Ok(self.granted(kind))
        } else {
            Err(Overflow { kind, limit })
        }
    }

    /// A place beyond the limit: the first connection of an endpoint.
    pub(super) fn force(self: &Arc<Self>, kind: LimitKind) -> Permit {
        self.gauge(kind).current.fetch_add(1, Ordering::AcqRel);
        self.granted(kind)
    }

    fn granted(self: &Arc<Self>, kind: LimitKind) -> Permit {
        Permit {
            limits: Arc::clone(self),
            kind,
        }
    }
}

/// A place under a limit, given back when dropped.
#[must_use = "dropping a permit gives the place back"]
#[derive(Debug)]
pub struct Permit {
    limits: Arc<Limits>,
    kind: LimitKind,
}

impl Permit {
    /// What it counts.
    pub const fn kind(&self) -> LimitKind {
        self.kind
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let before = self
            .limits
            .gauge(self.kind)
            .current
            .fetch_sub(1, Ordering::AcqRel);
        debug_assert!(before > 0, "a permit was given back twice");
    }
}

/// Requests started within `budgetInterval`, to an eighth of it.
#[derive(Debug)]
struct Window {
    since: Instant,
    /// Number of the eighth (high half) and requests in it (low half).
    slots: [AtomicU64; Self::SLOTS as usize],
}

impl Window {
    const SLOTS: u32 = 8;

    fn new(now: Instant) -> Self {
        Self {
            since: now,
            slots: Default::default(),
        }
    }

    /// Number of the eighth that `now` falls into; never zero, which marks an
    /// unused slot.
    fn number(&self, interval: std::time::Duration, now: Instant) -> u64 {
        let slot = (interval / Self::SLOTS).as_micros().max(1);
        let passed = now.saturating_duration_since(self.since).as_micros();
        u64::try_from(passed / slot).unwrap_or(u64::MAX) % u64::from(u32::MAX) + 1
    }

    fn add(&self, interval: std::time::Duration, now: Instant) {
        let number = self.number(interval, now);
        let index = usize::try_from(number % u64::from(Self::SLOTS)).unwrap_or(0);
        let _ = self.slots[index].try_update(Ordering::AcqRel, Ordering::Relaxed, |slot| {
            if slot >> 32 == number {
                // A full counter stays full.
                Some(if slot & u64::from(u32::MAX) == u64::from(u32::MAX) {
                    slot
                } else {
                    slot + 1
                })
            } else {
                Some(number << 32 | 1)
            }
        });
    }

    fn sum(&self, interval: std::time::Duration, now: Instant) -> u32 {
        let number = self.number(interval, now);
        let oldest = number.saturating_sub(u64::from(Self::SLOTS) - 1);
        let sum = self
            .slots
            .iter()
            .map(|slot| slot.load(Ordering::Acquire))
            .filter(|slot| (oldest.max(1)..=number).contains(&(slot >> 32)))
            .map(|slot| slot & u64::from(u32::MAX))
            .sum::<u64>();
        u32::try_from(sum).unwrap_or(u32::MAX)
    }
}

/// What the flow takes places from.
impl EndpointSet {
    /// A place under `maxConnections`.
    ///
    /// # Errors
    /// When none is free: TCP closes at once, HTTP waits.
    pub fn connection_permit(&self) -> Result<Permit, Overflow> {
        self.shared.limits.permit(LimitKind::Connections)
    }

    /// As [`Self::connection_permit`], and counts the connection as one of the
    /// endpoint's. An endpoint without any connection gets one beyond the limit
    /// (HTTP; ISTIO-API section 10), and no more than one.
    ///
    /// # Errors
    /// When none is free and the endpoint has a connection already.
    pub fn connection_permit_for(
        &self,
        endpoint: &Endpoint,
    ) -> Result<(Permit, ConnectionGuard), Overflow> {
        let limits = &self.shared.limits;
        match limits.permit(LimitKind::Connections) {
            Ok(permit) => Ok((permit, endpoint.open_connection())),
            Err(overflow) => {
                let guard = endpoint.first_connection().ok_or(overflow)?;
                Ok((limits.force(LimitKind::Connections), guard))
            }
        }
    }

    /// A place under `http2MaxRequests`.
    ///
    /// # Errors
    /// When none is free: 503 with flag `UO`.
    pub fn request_permit(&self) -> Result<Permit, Overflow> {
        self.shared.limits.permit(LimitKind::Requests)
    }

    /// A place under `http1MaxPendingRequests`, held while a request waits for
    /// a connection.
    ///
    /// # Errors
    /// When none is free: 503 with flag `UO`.
    pub fn pending_permit(&self) -> Result<Permit, Overflow> {
        self.shared.limits.permit(LimitKind::Pending)
    }

    /// A place under `maxRetries` or the retry budget.
    ///
    /// # Errors
    /// When none is free: the last answer goes out.
    pub fn retry_permit(&self) -> Result<Permit, Overflow> {
        self.shared.limits.permit(LimitKind::Retries)
    }
}

//! One name in use, the task that keeps its answer fresh, and how it is shown.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::answer::{Answer, Progress, State};
use super::error::ResolveError;
use super::order::Routes;
use super::resolver::{IDLE_LIMIT, Inner};
use super::upstream::{Families, Query};

/// Longest time of one lookup, all tries and servers together.
pub(super) const LOOKUP_LIMIT: Duration = Duration::from_secs(10);

/// What the tasks need.
pub(super) struct Shared {
    pub(super) query: Box<dyn Query>,
    pub(super) routes: Box<dyn Routes>,
    pub(super) turns: Semaphore,
    pub(super) start: Instant,
}

impl Shared {
    /// Milliseconds since the start: an instant that fits an atomic.
    pub(super) fn millis(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// One name.
pub(super) struct Entry {
    pub(super) name: Arc<str>,
    pub(super) answer: watch::Sender<Arc<Answer>>,
    /// Changes with each lookup that ends, and when the entry is dropped.
    pub(super) rounds: watch::Sender<()>,
    /// Milliseconds of the last use by [`Resolver::lookup`].
    pub(super) used: AtomicU64,
    /// Milliseconds from which on a further lookup is due.
    pub(super) due: AtomicU64,
    pub(super) wanted: Notify,
    pub(super) dropped: AtomicBool,
    pub(super) task: Mutex<Option<AbortHandle>>,
}

impl Entry {
    pub(super) fn answer(&self) -> Arc<Answer> {
        Arc::clone(&self.answer.borrow())
    }

    pub(super) fn is_watched(&self) -> bool {
        self.answer.receiver_count() > 0
    }
}

/// Looks a name up again and again, until nobody wants it.
pub(super) async fn keep(
    shared: Arc<Shared>,
    entry: Arc<Entry>,
    inner: Weak<Inner>,
    mut progress: Progress,
) {
    loop {
        let begun = shared.millis();
        let found = {
            let Ok(_turn) = shared.turns.acquire().await else {
                return;
            };
            let query = shared.query.query(Arc::clone(&entry.name));
            match timeout(LOOKUP_LIMIT, query).await {
                Ok(found) => found,
                Err(_) => Families::failed(ResolveError::Timeout {
                    name: Arc::clone(&entry.name),
                    limit: LOOKUP_LIMIT,
                }),
            }
        };
        let now = Instant::now();
        let wait = progress.absorb(found, now, fastrand::f64(), &*shared.routes);
        let due = shared.millis() + u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        entry.due.store(due, Ordering::Release);
        publish(&entry, &progress);
        sleep_until(now + wait).await;
        // A name that nobody watches is asked for again when it is wanted.
        while !entry.is_watched() && entry.used.load(Ordering::Acquire) <= begun {
            let left = IDLE_LIMIT.saturating_sub(Duration::from_millis(
                shared
                    .millis()
                    .saturating_sub(entry.used.load(Ordering::Acquire)),
            ));
            let dropped = match timeout(left, entry.wanted.notified()).await {
                Ok(()) => false,
                Err(_) => inner.upgrade().is_none_or(|inner| inner.drop_idle(&entry)),
            };
            if dropped {
                return;
            }
        }
    }
}

fn publish(entry: &Entry, progress: &Progress) {
    let answer = Arc::new(progress.answer.clone());
    entry.answer.send_if_modified(|current| {
        let differs = answer.differs(current);
        if differs {
            log(entry, &answer);
        }
        *current = Arc::clone(&answer);
        differs
    });
    entry.rounds.send_replace(());
}

fn log(entry: &Entry, answer: &Answer) {
    let name = &*entry.name;
    match &answer.state {
        State::Pending => {}
        State::Fresh => {
            tracing::info!(name, addresses = ?answer.addresses, "resolved");
        }
        State::Stale { error, .. } => {
            tracing::warn!(name, "{error}; the last addresses stay in use");
        }
        State::Failed { error } => tracing::warn!(name, "{error}"),
    }
}

/// One name, as it is shown.
#[derive(Clone, PartialEq, Serialize, Debug)]
pub struct NameStatus {
    /// The name.
    pub name: Arc<str>,
    /// Its addresses, in the order in which they are preferred.
    pub addresses: Vec<IpAddr>,
    /// `pending`, `fresh`, `stale` or `failed`.
    pub state: &'static str,
    /// Why the last lookup failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Seconds since the last good answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age: Option<u64>,
    /// Seconds until its TTL ends; 0 when it is over.
    pub ttl: u64,
    /// How many clusters watch it; 0: looked up for single requests.
    pub watchers: usize,
}

impl NameStatus {
    pub(super) fn new(entry: &Entry, now: Instant) -> Self {
        let answer = entry.answer();
        Self {
            name: Arc::clone(&entry.name),
            addresses: answer.addresses.to_vec(),
            state: answer.state.word(),
            error: answer.state.error().map(ToString::to_string),
            age: answer
                .resolved_at
                .map(|then| now.duration_since(then).as_secs()),
            ttl: answer.expires_at.duration_since(now).as_secs(),
            watchers: entry.answer.receiver_count(),
        }
    }
}

//! The names in use, for those who watch them and those who look them up.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, timeout_at};

use super::answer::{Answer, Progress, State};
use super::entry::{Entry, NameStatus, Shared, keep};
use super::error::ResolveError;
use super::order::Routes;
use super::upstream::Query;
use crate::shared_map::SharedMap;

/// Most lookups at a time; further names wait their turn.
pub const LOOKUPS_LIMIT: usize = 64;

/// Most names that nobody watches (looked up for single requests). Past that
/// the least recently used one is dropped.
pub const UNWATCHED_LIMIT: usize = 4096;

/// A name that nobody watched or looked up for this long is dropped.
pub const IDLE_LIMIT: Duration = Duration::from_mins(2);

/// Keeps the addresses of names. Clones share everything; any thread may use
/// one, while all lookups run on the runtime that it was made on.
#[derive(Clone)]
pub struct Resolver {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    shared: Arc<Shared>,
    runtime: Handle,
    /// For readers that must not wait.
    names: SharedMap<Arc<Entry>>,
    /// Says what is in `names`, while it changes.
    register: Mutex<HashMap<Arc<str>, Arc<Entry>>>,
    unwatched_limit: usize,
}

impl Resolver {
    /// A resolver on the current runtime.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(query: impl Query, routes: impl Routes) -> Self {
        Self::with_unwatched_limit(query, routes, UNWATCHED_LIMIT)
    }

    /// With another limit than [`UNWATCHED_LIMIT`].
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn with_unwatched_limit(query: impl Query, routes: impl Routes, limit: usize) -> Self {
        Self {
            inner: Arc::new(Inner {
                shared: Arc::new(Shared {
                    query: Box::new(query),
                    routes: Box::new(routes),
                    turns: Semaphore::new(LOOKUPS_LIMIT),
                    start: Instant::now(),
                }),
                runtime: Handle::current(),
                names: SharedMap::new(),
                register: Mutex::default(),
                unwatched_limit: limit.max(1),
            }),
        }
    }

    /// The answer for a name, kept fresh for as long as the receiver lives.
    /// Receivers are woken when the addresses or the kind of state change; the
    /// times in the value move without.
    pub fn watch(&self, name: &str) -> watch::Receiver<Arc<Answer>> {
        let name = normal(name);
        let mut register = self.inner.lock();
        let entry = self.inner.entry(&mut register, &name);
        let receiver = entry.answer.subscribe();
        // It may be waiting out its last moments unwatched.
        entry.wanted.notify_one();
        receiver
    }

    /// The answer for a name now, waiting for a lookup until `deadline` if
    /// there is none or its TTL is over. Stale addresses are better than none.
    ///
    /// # Errors
    /// Why there is no address.
    pub async fn lookup(&self, name: &str, deadline: Instant) -> Result<Arc<Answer>, ResolveError> {
        if let Ok(ip) = name.parse::<IpAddr>() {
            return Ok(literal(ip));
        }
        let name = normal(name);
        let begun = Instant::now();
        loop {
            let entry = match self.inner.names.get(&name) {
                Some(entry) => entry,
                None => self.inner.admit(&name)?,
            };
            let now = self.inner.shared.millis();
            entry.used.store(now, Ordering::Release);
            let mut rounds = entry.rounds.subscribe();
            let answer = entry.answer();
            let due = now >= entry.due.load(Ordering::Acquire);
            if due {
                entry.wanted.notify_one();
            }
            let take = match answer.state {
                State::Pending => false,
                State::Fresh => Instant::now() < answer.expires_at,
                // Old addresses at once are better than a wait for a name
                // server that failed before.
                State::Stale { .. } => true,
                // The back-off holds for requests as well.
                State::Failed { .. } => !due,
            };
            if take {
                return verdict(answer);
            }
            let ended = timeout_at(deadline, rounds.changed()).await;
            if entry.dropped.load(Ordering::Acquire) && ended.is_ok() {
                // Between our look and its end; begin again.
                continue;
            }
            let answer = entry.answer();
            if ended.is_err() && answer.addresses.is_empty() {
                return Err(ResolveError::Timeout {
                    name,
                    limit: deadline.duration_since(begun),
                });
            }
            return verdict(answer);
        }
    }

    /// Every name in use, in order, for `egressctl proxy-config dns`.
    pub fn status(&self) -> Vec<NameStatus> {
        let now = Instant::now();
        let entries = self.inner.names.values();
        let mut list: Vec<NameStatus> = entries
            .iter()
            .map(|entry| NameStatus::new(entry, now))
            .collect();
        list.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        list
    }
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver")
            .field("names", &self.inner.names.len())
            .finish_non_exhaustive()
    }
}

/// Lower case, no trailing dot.
fn normal(name: &str) -> Arc<str> {
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        name.to_ascii_lowercase().into()
    } else {
        name.into()
    }
}

fn literal(ip: IpAddr) -> Arc<Answer> {
    let now = Instant::now();
    Arc::new(Answer {
        addresses: Arc::from([ip]),
        state: State::Fresh,
        resolved_at: Some(now),
        expires_at: now + super::MAX_TTL,
        lookups: 0,
    })
}

fn verdict(answer: Arc<Answer>) -> Result<Arc<Answer>, ResolveError> {
    match &answer.state {
        State::Failed { error } => Err(error.clone()),
        _ => Ok(answer),
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<Entry>>> {
        // Nothing panics while it is held, and each step leaves it whole.
        self.register.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The entry of a name that a request wants.
    fn admit(self: &Arc<Self>, name: &Arc<str>) -> Result<Arc<Entry>, ResolveError> {
        let mut register = self.lock();
        if register.len() >= self.unwatched_limit && !register.contains_key(name) {
            let unwatched = register.values().filter(|entry| !entry.is_watched());
            if unwatched.clone().count() >= self.unwatched_limit {
                let idle = unwatched
                    .filter(|entry| entry.answer.borrow().lookups > 0)
                    .min_by_key(|entry| entry.used.load(Ordering::Acquire))
                    .cloned();
                let Some(idle) = idle else {
                    // Every one of them waits for its first answer.
                    let limit = self.unwatched_limit;
                    return Err(ResolveError::Overflow { limit });
                };
                self.remove(&mut register, &idle);
            }
        }
        Ok(self.entry(&mut register, name))
    }

    fn entry(
        self: &Arc<Self>,
        register: &mut HashMap<Arc<str>, Arc<Entry>>,
        name: &Arc<str>,
    ) -> Arc<Entry> {
        if let Some(entry) = register.get(name) {
            return Arc::clone(entry);
        }
        let progress = Progress::new(Arc::clone(name), Instant::now());
        let entry = Arc::new(Entry {
            name: Arc::clone(name),
            answer: watch::Sender::new(Arc::new(progress.answer.clone())),
            rounds: watch::Sender::new(()),
            used: AtomicU64::new(self.shared.millis()),
            due: AtomicU64::new(0),
            wanted: Notify::new(),
            dropped: AtomicBool::new(false),
            task: Mutex::default(),
        });
        register.insert(Arc::clone(name), Arc::clone(&entry));
        self.names.insert(name, Arc::clone(&entry));
        let task = self.runtime.spawn(keep(
            Arc::clone(&self.shared),
            Arc::clone(&entry),
            Arc::downgrade(self),
            progress,
        ));
        let mut slot = entry.task.lock().unwrap_or_else(PoisonError::into_inner);
        *slot = Some(task.abort_handle());
        drop(slot);
        entry
    }

    fn remove(&self, register: &mut HashMap<Arc<str>, Arc<Entry>>, entry: &Arc<Entry>) {
        register.remove(&entry.name);
        self.names.remove(&entry.name);
        entry.dropped.store(true, Ordering::Release);
        entry.rounds.send_replace(());
        let task = entry.task.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = &*task {
            task.abort();
        }
    }

    /// Drops an entry that nobody has wanted since `deadline` was set.
    pub(super) fn drop_idle(&self, entry: &Arc<Entry>) -> bool {
        let mut register = self.lock();
        let idle = self
            .shared
            .millis()
            .saturating_sub(entry.used.load(Ordering::Acquire));
        let idle = Duration::from_millis(idle) >= IDLE_LIMIT && !entry.is_watched();
        if idle {
            self.remove(&mut register, entry);
        }
        idle
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for entry in self.lock().values() {
            let task = entry.task.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(task) = &*task {
                task.abort();
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests;

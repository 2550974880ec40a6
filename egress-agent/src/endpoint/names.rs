//! The names of a `DYNAMIC_DNS` cluster: each that clients ask for has a pool of
//! its own.
//!
//! A pick of a name that is not known adds it and tells the watchers of the
//! set; the control runtime looks it up and keeps its addresses fresh for as
//! long as it is here ([`EndpointSet::names_in_use`]).

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::index::Index;
use super::pool::{Kind, Pool};
use super::resolved::ResolvedEndpoint;
use super::set::{EndpointSet, Resolved};
use super::told::Told;

/// Names that a cluster keeps; one more takes the place of the one that was
/// not used for the longest time.
const LIMIT: usize = 1024;
/// A name that was not used for this long is forgotten.
pub(super) const NAME_IDLE: Duration = Duration::from_mins(10);

/// The names of one cluster.
#[derive(Debug)]
pub(super) struct Names {
    index: Index<Arc<str>, Name>,
    /// Serialises writers.
    writing: Mutex<()>,
}

/// One name.
#[derive(Debug)]
pub(super) struct Name {
    pub(super) pool: Arc<Pool>,
    pub(super) resolved: Told<Resolved>,
    failure: Mutex<Option<Arc<str>>>,
}

impl Name {
    /// Why its last lookup failed, while none has succeeded since.
    pub(super) fn failure(&self) -> Option<Arc<str>> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.clone()
    }

    fn ended(&self, failure: Option<Arc<str>>) {
        let state = match failure {
            Some(_) if self.resolved.get() != Resolved::Done => Resolved::Failed,
            _ => Resolved::Done,
        };
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
        self.resolved.set(state);
    }
}

impl Names {
    fn new() -> Self {
        Self {
            index: Index::new(),
            writing: Mutex::new(()),
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<Arc<Name>> {
        self.index.get(name)
    }

    pub(super) fn pools(&self) -> Vec<Arc<Pool>> {
        let all = self.index.values().into_iter();
        all.map(|(_, name)| Arc::clone(&name.pool)).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.index.values().is_empty()
    }

    /// Forgets names that were last used before second `idle` of the set's
    /// life; true when there was one.
    pub(super) fn forget_unused(&self, idle: u64) -> bool {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut forgotten = false;
        for (key, name) in self.index.values() {
            if name.pool.used.load(Ordering::Relaxed) < idle {
                self.index.remove(&*key);
                forgotten = true;
            }
        }
        forgotten
    }
}

impl EndpointSet {
    /// The names that clients of a `DYNAMIC_DNS` cluster ask for (lower case).
    /// Each change of the list is told to [`Changes`](super::Changes).
    pub fn names_in_use(&self) -> Vec<Arc<str>> {
        let names = self.names.get().map(|names| names.index.values());
        let names = names.unwrap_or_default().into_iter();
        names.map(|(name, _)| name).collect()
    }

    /// As [`Self::update`], for one name (lower case).
    pub fn update_name(&self, name: &Arc<str>, endpoints: Vec<ResolvedEndpoint>) {
        let now = Instant::now();
        let known = self.known(name, now).0;
        known.pool.update(endpoints, now);
        self.resolution().success = Some(now);
        known.ended(None);
    }

    /// As [`Self::resolution_failed`], for one name. Its addresses, if it has
    /// any, stay in use unless they are `given_up`.
    pub fn name_failed(&self, name: &Arc<str>, error: Arc<str>, given_up: bool) {
        let now = Instant::now();
        self.resolution().failure = Some((now, Arc::clone(&error)));
        let known = self.known(name, now).0;
        if given_up {
            known.pool.update(Vec::new(), now);
        }
        known.ended(Some(error));
    }

    /// The name that a client asks for; told to the watchers when it is new.
    pub(super) fn name(&self, name: &str) -> Arc<Name> {
        let now = Instant::now();
        let known = self.names.get().and_then(|names| names.get(name));
        let known = known.unwrap_or_else(|| {
            let (known, new) = self.known(&Arc::from(name), now);
            if new {
                self.shared.changed();
            }
            known
        });
        known.pool.used.store(self.second(now), Ordering::Relaxed);
        known
    }

    /// An entry of the list, made when there is none; true: it is new.
    fn known(&self, key: &Arc<str>, now: Instant) -> (Arc<Name>, bool) {
        let names = self.names.get_or_init(|| Box::new(Names::new()));
        let _writing = names.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = names.get(key) {
            return (known, false);
        }
        let all = names.index.values();
        if all.len() >= LIMIT {
            let used = |name: &Arc<Name>| name.pool.used.load(Ordering::Relaxed);
            if let Some((oldest, _)) = all.iter().min_by_key(|(_, name)| used(name)) {
                names.index.remove(&**oldest);
            }
        }
        let pool = Pool::new(Arc::clone(&self.shared), Kind::Resolved);
        pool.used.store(self.second(now), Ordering::Relaxed);
        let name = Arc::new(Name {
            pool,
            resolved: Told::new(Resolved::Pending),
            failure: Mutex::default(),
        });
        names.index.insert(key, &name);
        (name, true)
    }
}

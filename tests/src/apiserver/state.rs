//! What the server knows, and how it behaves.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;

use super::Seen;

/// Plural, namespace (empty for none), name.
pub(super) type Key = (String, String, String);

#[derive(Debug)]
pub(super) struct Change {
    pub(super) version: u64,
    pub(super) kind: &'static str,
    pub(super) key: Key,
    pub(super) object: Value,
}

/// How it behaves.
#[derive(Clone, Debug)]
pub struct Manners {
    /// Version of Istio's group that is served; `None`: the kinds are not
    /// installed.
    pub istio: Option<&'static str>,
    /// Takes connections and drops them.
    pub down: bool,
    /// Between two pieces of 7 bytes of every stream.
    pub slow: Option<Duration>,
    /// Says `410 Gone` with the answer, not in the stream.
    pub gone_at_once: bool,
    /// Ends each watch as soon as it is open.
    pub end_at_once: bool,
    /// Says 403 for paths that contain this.
    pub forbid: Option<String>,
    /// Says 429 with this `retryAfterSeconds`.
    pub busy: Option<u32>,
    /// Between two bookmarks.
    pub bookmarks: Duration,
}

impl Default for Manners {
    fn default() -> Self {
        Self {
            istio: Some("v1"),
            down: false,
            slow: None,
            gone_at_once: false,
            end_at_once: false,
            forbid: None,
            busy: None,
            bookmarks: Duration::from_mins(1),
        }
    }
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) manners: Manners,
    pub(super) objects: BTreeMap<Key, Value>,
    pub(super) history: Vec<Change>,
    pub(super) version: u64,
    /// Versions up to this one are forgotten.
    pub(super) compacted: u64,
    pub(super) pages: BTreeMap<String, (u64, Vec<Value>)>,
    pub(super) seen: Vec<Seen>,
    pub(super) streams: usize,
    /// Streams of an older era end.
    pub(super) era: u64,
    pub(super) uids: u64,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    /// Version and era.
    pub(super) changed: watch::Sender<(u64, u64)>,
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    pub(super) fn change(&mut self, version: u64, kind: &'static str, key: Key, object: Value) {
        self.history.push(Change {
            version,
            kind,
            key,
            object,
        });
    }
}

//! How each watch fares, for `egressctl status` and the metrics. Needs nothing
//! of Kubernetes, so that it is there without it too.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How the watches of one agent fare; shared between threads.
#[derive(Clone, Debug)]
pub struct Board(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    server: Mutex<Arc<str>>,
    node: Arc<str>,
    started: Instant,
    watches: Mutex<BTreeMap<Arc<str>, State>>,
    rows: AtomicU64,
}

#[derive(Clone, Debug, Default)]
struct State {
    /// Which row of this name it is.
    row: u64,
    objects: usize,
    synced: bool,
    contact: Option<Instant>,
    failing: Option<Arc<str>>,
    /// May be refused.
    optional: bool,
    /// What is wrong though the server answers.
    note: Option<Arc<str>>,
    lists: u64,
    watches: u64,
    failures: u64,
    /// Objects of an earlier run stand in until the first list.
    kept: Option<Duration>,
}

/// One watch as it is now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Watch {
    /// What is watched, such as `serviceentries` or `secrets payments/client`.
    pub what: Arc<str>,
    /// Objects in force.
    pub objects: usize,
    /// The server's list was seen at least once.
    pub synced: bool,
    /// Time since the server last answered, while it does not; else zero.
    pub behind: Duration,
    /// Why it does not.
    pub error: Option<Arc<str>>,
    /// Lists so far.
    pub lists: u64,
    /// Watches opened so far.
    pub watches: u64,
    /// Requests that failed so far.
    pub failures: u64,
}

/// What the board shows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// URL of the API server.
    pub server: String,
    /// Name of this node.
    pub node: String,
    /// Every watch has its list.
    pub synced: bool,
    /// How far behind the watch is that is furthest behind; zero when none is.
    pub behind: Duration,
    /// Why.
    pub error: Option<String>,
    /// Each watch, by name.
    pub watches: Vec<Watch>,
}

impl Board {
    /// A board with no watches.
    pub fn new(node: &str) -> Self {
        Self(Arc::new(Shared {
            server: Mutex::new("".into()),
            node: node.into(),
            started: Instant::now(),
            watches: Mutex::default(),
            rows: AtomicU64::new(0),
        }))
    }

    /// Sets the URL of the server.
    pub fn server(&self, url: &str) {
        *self.0.server.lock().unwrap_or_else(PoisonError::into_inner) = url.into();
    }

    /// A row of the board, which goes when the last clone of it is dropped.
    pub fn watch(&self, what: &str) -> Row {
        self.row(what, State::default())
    }

    /// A row of something that the agent need not be allowed to read: that the
    /// server refuses it is shown, and is no fault of the server.
    pub fn watch_optional(&self, what: &str) -> Row {
        let state = State {
            optional: true,
            ..State::default()
        };
        self.row(what, state)
    }

    fn row(&self, what: &str, mut state: State) -> Row {
        let what: Arc<str> = what.into();
        let row = self.0.rows.fetch_add(1, Ordering::Relaxed);
        state.row = row;
        self.watches().insert(Arc::clone(&what), state);
        Row(Arc::new(RowInner {
            board: self.clone(),
            what,
            row,
        }))
    }

    fn watches(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, State>> {
        // Nothing panics while it is held.
        self.0
            .watches
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether every watch has its list.
    pub fn is_synced(&self) -> bool {
        let watches = self.watches();
        !watches.is_empty() && watches.values().all(|state| state.synced)
    }

    /// What it shows now.
    pub fn report(&self) -> Report {
        let watches: Vec<Watch> = self
            .watches()
            .iter()
            .map(|(what, state)| Watch {
                what: Arc::clone(what),
                objects: state.objects,
                synced: state.synced,
                behind: match (&state.failing, state.contact) {
                    (None, _) => Duration::ZERO,
                    (Some(_), Some(contact)) => contact.elapsed(),
                    (Some(_), None) => self.0.started.elapsed() + state.kept.unwrap_or_default(),
                },
                error: state.failing.clone().or_else(|| state.note.clone()),
                lists: state.lists,
                watches: state.watches,
                failures: state.failures,
            })
            .collect();
        let worst = watches
            .iter()
            .filter(|watch| !watch.behind.is_zero())
            .max_by_key(|watch| watch.behind);
        Report {
            server: self
                .0
                .server
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .to_string(),
            node: self.0.node.to_string(),
            synced: !watches.is_empty() && watches.iter().all(|watch| watch.synced),
            behind: worst.map_or(Duration::ZERO, |watch| watch.behind),
            error: worst
                .and_then(|watch| watch.error.as_ref())
                .map(ToString::to_string),
            watches,
        }
    }
}

/// One watch on the board.
#[derive(Clone, Debug)]
pub struct Row(Arc<RowInner>);

#[derive(Debug)]
struct RowInner {
    board: Board,
    what: Arc<str>,
    row: u64,
}

impl Drop for RowInner {
    fn drop(&mut self) {
        let mut watches = self.board.watches();
        // Another one of the same name may stand there by now.
        if watches.get(&self.what).is_some_and(|s| s.row == self.row) {
            watches.remove(&self.what);
        }
    }
}

impl Row {
    /// What is watched.
    pub fn what(&self) -> &Arc<str> {
        &self.0.what
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        if let Some(state) = self.0.board.watches().get_mut(&self.0.what) {
            change(state);
        }
    }

    /// The server answered.
    pub fn contact(&self) {
        self.change(|state| {
            state.contact = Some(Instant::now());
            state.failing = None;
        });
    }

    /// The server's list was taken over.
    pub fn listed(&self) {
        self.change(|state| {
            state.synced = true;
            state.lists += 1;
            state.contact = Some(Instant::now());
            state.failing = None;
            state.note = None;
        });
    }

    /// A watch was opened.
    pub fn watching(&self) {
        self.change(|state| {
            state.watches += 1;
            state.contact = Some(Instant::now());
            state.failing = None;
        });
    }

    /// A request failed, or a watch broke off.
    pub fn failed(&self, error: &str) {
        self.change(|state| {
            state.failures += 1;
            state.failing = Some(error.into());
        });
    }

    /// The server refused a request (403).
    pub fn refused(&self, error: &str) {
        let mut optional = false;
        self.change(|state| optional = state.optional);
        if optional {
            self.nothing(error);
        } else {
            self.failed(error);
        }
    }

    /// The server answers, but there is nothing to have, and why.
    pub fn nothing(&self, why: &str) {
        self.change(|state| {
            state.synced = true;
            state.contact = Some(Instant::now());
            state.failing = None;
            state.note = Some(why.into());
        });
    }

    /// How many objects there are.
    pub fn objects(&self, count: usize) {
        self.change(|state| state.objects = count);
    }

    /// Objects of an earlier run are in force, which saw the server this long
    /// ago.
    pub fn kept(&self, age: Duration) {
        self.change(|state| state.kept = Some(age));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watch_that_is_furthest_behind_is_told() {
        let board = Board::new("n1");
        assert!(!board.is_synced());
        let (a, b) = (board.watch("a"), board.watch("b"));
        a.listed();
        assert!(!board.is_synced());
        b.listed();
        assert!(board.is_synced());
        assert_eq!(board.report().behind, Duration::ZERO);
        b.failed("connection refused");
        let report = board.report();
        assert_eq!(report.error.as_deref(), Some("connection refused"));
        assert!(report.behind > Duration::ZERO);
        b.contact();
        assert_eq!(board.report().error, None);
        drop(b);
        assert_eq!(board.report().watches.len(), 1);
    }

    #[test]
    fn the_age_of_what_an_earlier_run_kept_counts() {
        let board = Board::new("n1");
        let row = board.watch("a");
        row.kept(Duration::from_hours(1));
        row.failed("down");
        assert!(board.report().behind >= Duration::from_hours(1));
    }
}

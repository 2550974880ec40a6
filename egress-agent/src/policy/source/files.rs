//! Waits until something changes in directories.
//!
//! The kernel tells through inotify. Since a file is seldom written in one
//! step, a change counts when it has been quiet for 20 ms, or 200 ms after it
//! began. Where inotify cannot be had, the files are looked at every 2 s; and
//! every 30 s in any case, since network file systems tell nothing of what
//! others do.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::scan::Directories;

/// Quiet time after which a change counts.
const SETTLE: Duration = Duration::from_millis(20);
/// Time after which a change counts though it goes on.
const SETTLE_MAX: Duration = Duration::from_millis(200);
/// Between looks without inotify.
const POLL: Duration = Duration::from_secs(2);
/// Between looks with inotify.
const LOOK: Duration = Duration::from_secs(30);
/// Files that are being written, at most; more count as settled.
const WRITING_MAX: usize = 1024;

/// What the kernel told.
#[derive(Debug, Default)]
struct Told {
    wake: Notify,
    /// Files that were written to and not closed yet.
    writing: Mutex<HashSet<PathBuf>>,
    /// What is watched, and which changes there matter.
    directories: Mutex<Directories>,
}

impl Told {
    fn writing(&self) -> std::sync::MutexGuard<'_, HashSet<PathBuf>> {
        // Nothing panics while it is held.
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn directories(&self) -> std::sync::MutexGuard<'_, Directories> {
        self.directories
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a change at `path` matters: it does where it is not known.
    fn matters(&self, path: &Path) -> bool {
        let directories = self.directories();
        let above = path.parent().unwrap_or(path);
        let known = |directory: &Path| Some(directories.get(directory)?.takes(directory, path));
        known(path).or_else(|| known(above)).unwrap_or(true)
    }

    fn take(&self, event: notify::Result<notify::Event>) {
        // An error may hide events: look.
        let Ok(event) = event else {
            self.wake.notify_one();
            return;
        };
        if !event.paths.is_empty() && !event.paths.iter().any(|path| self.matters(path)) {
            return;
        }
        match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
                let mut writing = self.writing();
                for path in &event.paths {
                    writing.remove(path);
                }
            }
            // That we ourselves read them.
            EventKind::Access(_) => return,
            EventKind::Modify(notify::event::ModifyKind::Data(_)) => {
                let mut writing = self.writing();
                if writing.len() < WRITING_MAX {
                    writing.extend(event.paths);
                }
            }
            _ => {}
        }
        self.wake.notify_one();
    }
}

/// Watches directories.
#[derive(Debug)]
pub struct Watcher {
    told: Arc<Told>,
    inotify: Option<RecommendedWatcher>,
    /// What is watched, and what it was when that began: another directory of
    /// the same name needs a new watch.
    watched: BTreeMap<PathBuf, (u64, u64)>,
    /// Why the kernel does not tell of everything.
    fault: Option<Box<str>>,
    /// When the change began that has not settled.
    began: Option<Instant>,
    /// When something was told last.
    last: Instant,
    looked: Instant,
}

impl Default for Watcher {
    fn default() -> Self {
        Self::new()
    }
}

impl Watcher {
    /// A watcher of nothing yet.
    pub fn new() -> Self {
        let told = Arc::new(Told::default());
        let teller = Arc::clone(&told);
        let (inotify, fault) = match notify::recommended_watcher(move |event| teller.take(event)) {
            Ok(inotify) => (Some(inotify), None),
            Err(error) => (None, Some(error.to_string().into())),
        };
        Self {
            told,
            inotify,
            watched: BTreeMap::new(),
            fault,
            began: None,
            last: Instant::now(),
            looked: Instant::now(),
        }
    }

    /// A watcher without inotify.
    #[cfg(test)]
    pub(super) fn polling() -> Self {
        Self {
            inotify: None,
            fault: Some("switched off".into()),
            ..Self::new()
        }
    }

    /// Why files are looked at every 2 s; `None` when the kernel tells.
    pub fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// Watches these directories and no others. Whether one of them is new:
    /// then what changed before it was watched is not told, and the files must
    /// be looked at once more.
    pub(super) fn watch(&mut self, directories: &Directories) -> bool {
        let Some(inotify) = &mut self.inotify else {
            return false;
        };
        self.told.directories().clone_from(directories);
        let identity = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
        self.watched.retain(|path, before| {
            let stays = directories.contains_key(path) && identity(path) == Some(*before);
            if !stays {
                // The kernel forgets a directory that is gone by itself.
                let _ = inotify.unwatch(path);
            }
            stays
        });
        self.fault = None;
        let mut new = false;
        for path in directories.keys() {
            if self.watched.contains_key(path) {
                continue;
            }
            // Before it is watched: if it is replaced in between, the next
            // time sees that.
            let Some(identity) = identity(path) else {
                continue;
            };
            match inotify.watch(path, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.watched.insert(path.clone(), identity);
                    new = true;
                }
                Err(error) => self.fault = Some(error.to_string().into()),
            }
        }
        new
    }

    /// Looks again shortly, though the kernel told nothing.
    pub fn look_again(&mut self) {
        let now = Instant::now();
        self.began.get_or_insert(now);
        self.last = now;
    }

    /// Waits until something may have changed, and has settled. Nothing is
    /// lost when this is dropped and called again.
    pub async fn changed(&mut self) {
        let pause = if self.fault.is_some() { POLL } else { LOOK };
        loop {
            let due = match self.began {
                None => self.looked + pause,
                Some(began) => {
                    let limit = began + SETTLE_MAX;
                    if self.told.writing().is_empty() {
                        limit.min(self.last + SETTLE)
                    } else {
                        limit
                    }
                }
            };
            tokio::select! {
                biased;
                () = self.told.wake.notified() => {
                    self.last = Instant::now();
                    self.began.get_or_insert(self.last);
                    if self.began.is_some_and(|began| began + SETTLE_MAX <= self.last) {
                        break;
                    }
                }
                () = tokio::time::sleep_until(due) => break,
            }
        }
        self.told.writing().clear();
        self.began = None;
        self.looked = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::pin::pin;
    use std::task::{Context, Waker};

    use notify::event::{CreateKind, DataChange, ModifyKind, RenameMode};

    use super::super::reader::Reader;
    use super::*;

    #[test]
    fn what_others_write_beside_a_single_file_wakes_nobody() {
        let home = tempfile::tempdir().unwrap();
        let file = |name: &str| home.path().join(name);
        fs::write(file("a.yaml"), "").unwrap();
        fs::create_dir(file("all")).unwrap();
        fs::create_dir(file("..data")).unwrap();
        fs::write(file("..data/m.yaml"), "").unwrap();
        let told = Told::default();
        let watch = |paths: &[&str]| {
            let paths = paths.iter().map(|path| file(path)).collect();
            *told.directories() = Reader::new(paths).changes().directories;
        };
        let wakes = |kind: EventKind, paths: &[&str]| {
            let event = notify::Event::new(kind);
            told.take(Ok(paths
                .iter()
                .fold(event, |event, path| event.add_path(file(path)))));
            let mut wake = pin!(told.wake.notified());
            let woken = wake.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            woken.is_ready()
        };
        let written = EventKind::Modify(ModifyKind::Data(DataChange::Any));
        let created = EventKind::Create(CreateKind::Any);
        let renamed = EventKind::Modify(ModifyKind::Name(RenameMode::Both));

        watch(&["a.yaml", "all", "later/b.yaml"]);
        for other in ["b.yaml", "agent.log", ".a.yaml.swp"] {
            assert!(!wakes(written, &[other]), "{other}");
            assert!(!wakes(created, &[other]), "{other}");
        }
        assert!(told.writing().is_empty());
        assert!(wakes(written, &["a.yaml"]));
        assert!(wakes(renamed, &[".a.yaml.swp", "a.yaml"]));
        assert!(wakes(created, &["all/b.yaml"]));
        assert!(wakes(created, &["all"]));
        assert!(wakes(created, &["later"]));
        assert!(wakes(
            EventKind::Remove(notify::event::RemoveKind::Any),
            &[""]
        ));
        // Where links lead is decided beside them.
        std::os::unix::fs::symlink("..data/m.yaml", file("m.yaml")).unwrap();
        watch(&["m.yaml"]);
        assert!(wakes(renamed, &["..data_tmp", "..data"]));
        assert!(wakes(written, &["..data/m.yaml"]));
        assert!(!wakes(written, &["..data/other.yaml"]));
    }
}

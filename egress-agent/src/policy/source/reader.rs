//! Finds out which files changed, and reads those alone.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use twox_hash::XxHash64;

use super::scan::{Directories, Mark, Scan};
use crate::policy::load::read_limited;
use crate::policy::store::{Content, FileChange};

/// What is known of a file.
#[derive(Debug)]
struct Known {
    mark: Mark,
    /// Another change may hide behind the same mark.
    unsure: bool,
    /// Of the bytes that were read; `None`: they could not be.
    hash: Option<u64>,
}

/// The files under some paths, as they were read last.
#[derive(Debug)]
pub struct Reader {
    paths: Vec<PathBuf>,
    known: BTreeMap<PathBuf, Known>,
    /// What could not be looked at the last time.
    failed: BTreeSet<PathBuf>,
}

/// What changed since the last time.
#[derive(Debug, Default)]
pub struct Changes {
    /// Files that are new, other or gone.
    pub files: Vec<FileChange>,
    /// Directories whose changes matter now.
    pub(super) directories: Directories,
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = XxHash64::with_seed(0);
    hasher.write(bytes);
    hasher.finish()
}

impl Reader {
    /// A reader that has read nothing yet.
    pub fn new(paths: Vec<PathBuf>) -> Self {
        Self {
            paths,
            known: BTreeMap::new(),
            failed: BTreeSet::new(),
        }
    }

    /// The paths.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Takes other paths.
    pub fn set_paths(&mut self, paths: Vec<PathBuf>) {
        self.paths = paths;
    }

    /// Reads every file again at the next time.
    pub fn forget(&mut self) {
        for known in self.known.values_mut() {
            known.unsure = true;
            known.hash = None;
        }
    }

    /// Looks at the files, and reads those that changed.
    pub fn changes(&mut self) -> Changes {
        let scan = Scan::of(&self.paths);
        let mut changes = Changes {
            directories: scan.directories,
            ..Changes::default()
        };
        let failed = scan.failed.iter().map(|(path, _)| path.clone()).collect();
        let before = std::mem::replace(&mut self.failed, failed);
        for path in before.difference(&self.failed) {
            // What was said of it holds no more.
            match self.known.get_mut(path) {
                Some(known) => (known.unsure, known.hash) = (true, None),
                None => changes
                    .files
                    .push(change(path, SystemTime::now(), Content::Gone)),
            }
        }
        let gone: Vec<PathBuf> = self
            .known
            .keys()
            .filter(|path| !scan.files.contains_key(*path))
            .filter(|path| !scan.failed.iter().any(|(above, _)| path.starts_with(above)))
            .cloned()
            .collect();
        for path in gone {
            self.known.remove(&path);
            changes
                .files
                .push(change(&path, SystemTime::now(), Content::Gone));
        }
        for (path, error) in scan.failed {
            changes
                .files
                .push(change(&path, SystemTime::now(), Content::Unreadable(error)));
        }
        for (path, mark) in scan.files {
            let known = self.known.get(&path);
            if known.is_some_and(|known| known.mark == mark && !known.unsure) {
                continue;
            }
            let before = known.map(|known| known.hash);
            let read_at = SystemTime::now();
            match read_limited(&path) {
                Ok(bytes) => {
                    let hash = hash(&bytes);
                    let unsure = mark.is_fresh(read_at);
                    if before != Some(Some(hash)) {
                        let content = Content::Bytes(bytes);
                        changes.files.push(change(&path, mark.modified(), content));
                    }
                    let hash = Some(hash);
                    self.known.insert(path, Known { mark, unsure, hash });
                }
                // Gone since it was found: that is told, and the next time sees it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let content = Content::Unreadable(error);
                    changes.files.push(change(&path, mark.modified(), content));
                    let (unsure, hash) = (true, None);
                    self.known.insert(path, Known { mark, unsure, hash });
                }
            }
        }
        changes
    }
}

fn change(path: &Path, modified: SystemTime, content: Content) -> FileChange {
    FileChange {
        path: Arc::from(path),
        modified,
        content,
    }
}

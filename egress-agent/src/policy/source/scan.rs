//! What stands under the paths now: files with their marks, and directories to
//! watch.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::policy::load::is_policy_file;

/// A link may lead back up.
const DEPTH_MAX: usize = 16;

/// What tells one state of a file from another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Mark {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Mark {
    pub(super) fn of(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    pub(super) fn modified(&self) -> SystemTime {
        let (seconds, nanoseconds) = self.modified;
        let since = Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
            + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0));
        SystemTime::UNIX_EPOCH + since
    }

    /// A later change may have the same mark, as file systems keep time in
    /// steps of up to 10 ms (one tick), and old ones in steps of 2 s.
    pub(super) fn is_fresh(&self, read_at: SystemTime) -> bool {
        let step = Duration::from_millis(if self.changed.1 == 0 { 2000 } else { 20 });
        let (seconds, nanoseconds) = self.changed;
        let since = Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
            + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0));
        let changed = SystemTime::UNIX_EPOCH + since;
        // One in the future (the clock was set) is not looked at for ever.
        read_at < changed + step && changed < read_at + step
    }
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Files by the path under which they were found.
    pub(super) files: BTreeMap<PathBuf, Mark>,
    /// Directories whose changes matter.
    pub(super) directories: BTreeSet<PathBuf>,
    /// What could not be looked at. What was under it before still counts.
    pub(super) failed: Vec<(PathBuf, io::Error)>,
}

impl Scan {
    /// Looks at files, and at directories and theirs. Hidden files are passed
    /// over, as those of a mounted ConfigMap must be.
    pub(super) fn of(paths: &[PathBuf]) -> Self {
        let mut scan = Self::default();
        for path in paths {
            scan.watch_ancestor(path);
            match fs::metadata(path) {
                Ok(meta) if meta.is_dir() => scan.directory(path, 0),
                // A named file is taken whatever its name ends in.
                Ok(meta) => scan.file(path, &meta),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => scan.failed.push((path.clone(), error)),
            }
        }
        scan
    }

    /// The nearest directory above a path that exists tells when the path, or
    /// the next directory on the way to it, appears or is replaced.
    fn watch_ancestor(&mut self, path: &Path) {
        for above in path.ancestors().skip(1) {
            let above = if above.as_os_str().is_empty() {
                Path::new(".")
            } else {
                above
            };
            if above.is_dir() {
                self.directories.insert(above.to_owned());
                return;
            }
        }
    }

    fn file(&mut self, path: &Path, meta: &Metadata) {
        // What a link leads to may change in its own place.
        let link = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink());
        if link
            && let Ok(real) = fs::canonicalize(path)
            && let Some(parent) = real.parent()
        {
            self.directories.insert(parent.to_owned());
        }
        self.files.insert(path.to_owned(), Mark::of(meta));
    }

    fn directory(&mut self, directory: &Path, depth: usize) {
        self.directories.insert(directory.to_owned());
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) => {
                // Gone since it was found.
                if error.kind() != io::ErrorKind::NotFound {
                    self.failed.push((directory.to_owned(), error));
                }
                return;
            }
        };
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    self.failed.push((directory.to_owned(), error));
                    return;
                }
            };
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let path = entry.path();
            // Through symbolic links; one that leads nowhere is no file.
            match fs::metadata(&path) {
                Ok(meta) if meta.is_dir() => {
                    if depth < DEPTH_MAX {
                        self.directory(&path, depth + 1);
                    }
                }
                Ok(meta) if meta.is_file() && is_policy_file(&path) => self.file(&path, &meta),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => self.failed.push((path, error)),
            }
        }
    }
}

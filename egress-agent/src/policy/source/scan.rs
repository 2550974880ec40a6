//! What stands under the paths now: files with their marks, and directories to
//! watch.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
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

/// Which changes of a directory matter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Interest {
    /// Those of anything in it.
    All,
    /// Those of these entries: what else is written there is not ours.
    Names(BTreeSet<OsString>),
}

impl Interest {
    /// Whether a change at `path`, the directory or an entry of it, matters.
    pub(super) fn takes(&self, directory: &Path, path: &Path) -> bool {
        match self {
            Self::All => true,
            Self::Names(names) => {
                path == directory || path.file_name().is_none_or(|name| names.contains(name))
            }
        }
    }
}

/// Directories to watch.
pub(super) type Directories = BTreeMap<PathBuf, Interest>;

fn add(directories: &mut Directories, path: &Path, name: Option<OsString>) {
    match (directories.get_mut(path), name) {
        (Some(Interest::Names(names)), Some(name)) => {
            names.insert(name);
        }
        (Some(Interest::All), _) => {}
        (_, None) => {
            directories.insert(path.to_owned(), Interest::All);
        }
        (None, Some(name)) => {
            let names = BTreeSet::from([name]);
            directories.insert(path.to_owned(), Interest::Names(names));
        }
    }
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Files by the path under which they were found.
    pub(super) files: BTreeMap<PathBuf, Mark>,
    /// Directories whose changes matter.
    pub(super) directories: Directories,
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
        let mut next = path;
        for above in path.ancestors().skip(1) {
            let directory = if above.as_os_str().is_empty() {
                Path::new(".")
            } else {
                above
            };
            if directory.is_dir() {
                // Where a link leads is decided by others beside it, as in a
                // mounted ConfigMap.
                let link = fs::symlink_metadata(next).is_ok_and(|meta| meta.is_symlink());
                let name = next.file_name().filter(|_| !link);
                add(&mut self.directories, directory, name.map(Into::into));
                return;
            }
            next = above;
        }
    }

    fn file(&mut self, path: &Path, meta: &Metadata) {
        // What a link leads to may change in its own place.
        let link = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink());
        if link
            && let Ok(real) = fs::canonicalize(path)
            && let Some(parent) = real.parent()
        {
            let name = real.file_name().map(Into::into);
            add(&mut self.directories, parent, name);
        }
        self.files.insert(path.to_owned(), Mark::of(meta));
    }

    fn directory(&mut self, directory: &Path, depth: usize) {
        add(&mut self.directories, directory, None);
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

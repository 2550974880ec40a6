//! New cgroups, told by inotify: the kernel must know the namespace of a
//! workload before its first packet, and a cgroup is made before anything runs
//! in it.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags, add_watch};
use tokio::io::unix::AsyncFd;

use crate::capture::watch_descriptor;

/// Cgroups that are watched at most; those beyond are found by the look around
/// every few seconds.
const WATCHES: usize = 65_536;

/// Watches a cgroup and all below it.
#[derive(Debug)]
pub(super) struct CgroupWatch {
    inotify: AsyncFd<OwnedFd>,
    paths: HashMap<i32, PathBuf>,
    /// The limit on watches was met, and told.
    full: bool,
}

impl CgroupWatch {
    /// Begins at `cgroup`, a path in the file system.
    ///
    /// # Errors
    /// When the kernel gives no inotify descriptor.
    pub(super) fn new(cgroup: &Path) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let mut watch = Self {
            inotify: watch_descriptor(inotify)?,
            paths: HashMap::new(),
            full: false,
        };
        watch.add(cgroup.to_owned());
        Ok(watch)
    }

    /// Watches a directory, then what is in it by then: whatever is made later
    /// is reported.
    fn add(&mut self, directory: PathBuf) {
        let mut open = vec![directory];
        while let Some(directory) = open.pop() {
            let flags = WatchFlags::CREATE | WatchFlags::ONLYDIR | WatchFlags::DONT_FOLLOW;
            let added = if self.paths.len() < WATCHES {
                add_watch(self.inotify.get_ref(), &directory, flags)
            } else {
                Err(rustix::io::Errno::NOSPC)
            };
            match added {
                Ok(number) => {
                    for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                            open.push(entry.path());
                        }
                    }
                    self.paths.insert(number, directory);
                }
                Err(rustix::io::Errno::NOENT) => {}
                Err(error) => {
                    if !self.full {
                        tracing::warn!(
                            cgroup = %directory.display(),
                            "new cgroups below are found some seconds late: {error}; raise \
                             fs.inotify.max_user_watches"
                        );
                    }
                    self.full = true;
                }
            }
        }
    }

    /// Waits until there are new cgroups.
    ///
    /// # Errors
    /// When the descriptor cannot be read.
    pub(super) async fn changed(&mut self) -> io::Result<()> {
        loop {
            let mut new = Vec::new();
            {
                let mut ready = self.inotify.readable().await?;
                let mut buffer = [MaybeUninit::uninit(); 4096];
                let mut reader = Reader::new(self.inotify.get_ref(), &mut buffer);
                loop {
                    match reader.next() {
                        Ok(event) => {
                            if event.events().contains(ReadFlags::IGNORED) {
                                self.paths.remove(&event.wd());
                                continue;
                            }
                            if event.events().contains(ReadFlags::ISDIR)
                                && let (Some(parent), Some(name)) =
                                    (self.paths.get(&event.wd()), event.file_name())
                            {
                                new.push(parent.join(OsStr::from_bytes(name.to_bytes())));
                            }
                        }
                        Err(rustix::io::Errno::AGAIN) => {
                            ready.clear_ready();
                            break;
                        }
                        Err(rustix::io::Errno::INTR) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            if !new.is_empty() {
                for directory in new {
                    self.add(directory);
                }
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[tokio::test]
    async fn new_directories_at_any_depth_are_told() {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir_all(home.path().join("a/b")).unwrap();
        let mut watch = CgroupWatch::new(home.path()).unwrap();
        assert_eq!(watch.paths.len(), 3);
        fs::create_dir_all(home.path().join("a/b/c/d")).unwrap();
        watch.changed().await.unwrap();
        // `d` may have been made before or after `c` was watched.
        while watch.paths.len() < 5 {
            watch.changed().await.unwrap();
        }
        fs::remove_dir(home.path().join("a/b/c/d")).unwrap();
        fs::create_dir(home.path().join("e")).unwrap();
        watch.changed().await.unwrap();
        assert!(watch.paths.values().any(|path| path.ends_with("e")));
        assert!(!watch.paths.values().any(|path| path.ends_with("d")));
    }
}

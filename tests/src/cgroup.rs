//! The lab's cgroups: one child of the unified hierarchy's root with a group
//! for each kind of process.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::{Context, Group, Result};

/// How long the kernel may take to end the processes of a group.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

pub(crate) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    pub(crate) fn new(name: &str) -> Result<Self> {
        let cgroup = Self {
            path: root()?.join(name),
        };
        for group in [Group::Clients, Group::Outside, Group::Servers] {
            let path = cgroup.group(group);
            fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        }
        Ok(cgroup)
    }

    pub(crate) fn group(&self, group: Group) -> PathBuf {
        self.path.join(match group {
            Group::Clients => "clients",
            Group::Outside => "outside",
            Group::Servers => "servers",
        })
    }

    /// Ends every process in it, and removes it.
    pub(crate) fn remove(&self) {
        remove(&self.path);
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Mount point of the unified hierarchy.
pub(crate) fn root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    mounts
        .lines()
        .find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (point, kind) = (fields.next()?, fields.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(point))
        })
        .context("no cgroup v2 hierarchy is mounted")
}

/// Ends every process of a cgroup and of those below it (`cgroup.kill`, kernel
/// 5.14), and removes them.
pub(crate) fn remove(path: &Path) {
    if !path.exists() {
        return;
    }
    let _ = fs::write(path.join("cgroup.kill"), "1");
    let deadline = Instant::now() + KILL_DEADLINE;
    while !remove_tree(path) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
}

/// Removes a cgroup and those below it; false while processes are in it.
fn remove_tree(path: &Path) -> bool {
    if let Ok(entries) = fs::read_dir(path) {
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove_tree(&entry.path());
            }
        }
    }
    fs::remove_dir(path).is_ok() || !path.exists()
}

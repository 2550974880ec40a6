//! The unified cgroup hierarchy: from ids to paths and back.
//!
//! The id that BPF programs see (`bpf_get_current_cgroup_id`) is the kernfs id,
//! which is the inode number of the directory. No id is used twice while the
//! kernel runs, and a cgroup is never renamed, so an answer stays true until
//! the cgroup is removed.

use std::fs;
use std::io;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The hierarchy, where it is mounted.
#[derive(Clone, Debug)]
pub struct Hierarchy {
    root: PathBuf,
}

/// Cgroups that one walk visits at most. The kernel's own default limit
/// (`cgroup.max.descendants`) is far higher, but a node with this many is one
/// on which a walk must not be waited for.
const WALK_LIMIT: usize = 65_536;
/// Nesting that a walk follows.
const DEPTH_LIMIT: usize = 32;

/// What a walk saw.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Walked {
    /// Every cgroup that exists.
    All,
    /// Only some: there are too many.
    Part,
}

impl Hierarchy {
    /// The hierarchy that is mounted at `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where it is mounted.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Id of the cgroup at `path`, from the root of the hierarchy.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn id(&self, path: &str) -> io::Result<u64> {
        let path = self.root.join(path.trim_start_matches('/'));
        Ok(fs::metadata(path)?.ino())
    }

    /// Path of the cgroup of a process, from the root of the hierarchy.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn of_process(&self, pid: u32) -> io::Result<String> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        // `0::PATH` is the unified hierarchy (cgroups(7)); the path of a removed
        // cgroup ends in ` (deleted)`.
        text.lines()
            .find_map(|line| line.strip_prefix("0::"))
            .filter(|path| !path.ends_with(" (deleted)"))
            .map(str::to_owned)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Path of the cgroup with this id, if the process `pid` is still in it,
    /// which is far cheaper to ask than a walk.
    pub fn path_by_process(&self, id: u64, pid: u32) -> Option<String> {
        let path = self.of_process(pid).ok()?;
        // It may have moved since, and `/proc` shows the path as our own cgroup
        // namespace sees it.
        (self.id(&path).ok()? == id).then_some(path)
    }

    /// Visits every cgroup with its id and its path, parents first. One that
    /// comes or goes meanwhile may be missed.
    ///
    /// # Errors
    /// When the root cannot be read.
    pub fn walk(&self, mut visit: impl FnMut(u64, &str)) -> io::Result<Walked> {
        let mut visited = 1;
        let mut complete = Walked::All;
        visit(self.id("")?, "/");
        let mut open = vec![(String::new(), fs::read_dir(&self.root)?)];
        while let Some((parent, directory)) = open.last_mut() {
            let Some(Ok(entry)) = directory.next() else {
                open.pop();
                continue;
            };
            // The kernel gives the type with the entry, so this asks nothing.
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let path = format!("{parent}/{name}");
            visit(entry.ino(), &path);
            visited += 1;
            if visited >= WALK_LIMIT {
                return Ok(Walked::Part);
            }
            if open.len() > DEPTH_LIMIT {
                complete = Walked::Part;
            } else if let Ok(below) = fs::read_dir(entry.path()) {
                open.push((path, below));
            }
        }
        Ok(complete)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_walk_gives_the_inodes_and_paths_of_directories_only() {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir_all(home.path().join("a.slice/b.service/c")).unwrap();
        fs::create_dir(home.path().join("d")).unwrap();
        fs::write(home.path().join("a.slice/cgroup.procs"), "").unwrap();
        let hierarchy = Hierarchy::at(home.path());
        let mut seen = Vec::new();
        let walked = hierarchy.walk(|id, path| {
            assert_eq!(hierarchy.id(path).unwrap(), id, "{path}");
            seen.push(path.to_owned());
        });
        assert_eq!(walked.unwrap(), Walked::All);
        seen.sort();
        assert_eq!(
            seen,
            [
                "/",
                "/a.slice",
                "/a.slice/b.service",
                "/a.slice/b.service/c",
                "/d"
            ]
        );
    }

    /// What the rest relies on: the number that `readdir` gives is the id.
    #[test]
    fn the_real_hierarchy_gives_ids_of_cgroups() {
        let Ok(root) = crate::capture::cgroup_root() else {
            eprintln!("SKIPPED: no unified cgroup hierarchy is mounted");
            return;
        };
        let hierarchy = Hierarchy::at(root);
        let mut compared = 0;
        let walked = hierarchy.walk(|id, path| {
            // One that was removed meanwhile has no id any more.
            if let Ok(own) = hierarchy.id(path) {
                assert_eq!(own, id, "{path}");
                compared += 1;
            }
        });
        assert!(walked.is_ok() && compared > 0);
        let path = hierarchy.of_process(std::process::id()).unwrap();
        let found = hierarchy
            .id(&path)
            .ok()
            .and_then(|id| hierarchy.path_by_process(id, std::process::id()));
        assert!(found.is_none_or(|found| found == path));
    }

    #[test]
    fn a_deep_hierarchy_is_followed_only_so_far() {
        let home = tempfile::tempdir().unwrap();
        let deep = vec!["x"; 2 * DEPTH_LIMIT].join("/");
        fs::create_dir_all(home.path().join(deep)).unwrap();
        let mut seen = 0;
        let walked = Hierarchy::at(home.path()).walk(|_, _| seen += 1);
        assert_eq!(walked.unwrap(), Walked::Part);
        assert_eq!(seen, DEPTH_LIMIT + 2);
    }

    #[test]
    fn a_process_has_a_cgroup_and_a_dead_one_has_none() {
        let hierarchy = Hierarchy::at("/nonexistent");
        let own = hierarchy.of_process(std::process::id());
        assert!(own.is_ok_and(|path| path.starts_with('/')));
        assert!(hierarchy.of_process(u32::MAX).is_err());
        assert!(hierarchy.walk(|_, _| ()).is_err());
    }
}

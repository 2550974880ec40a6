//! Names that tell whose they are, and the removal of what a killed run left.
//!
//! A lab's name holds the process id and start time of the process that made
//! it, so that a leftover is one whose process is gone, whoever has the id now.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::{Context, Result, cgroup};

/// Beginning of the name of everything that a lab makes.
const PREFIX: &str = "egress-lab.";

/// Labs made by this process.
static COUNT: AtomicU32 = AtomicU32::new(0);
/// One removal at a time.
static REMOVING: Mutex<()> = Mutex::new(());

/// A name for a new lab: `egress-lab.PID.START.N`.
pub(crate) fn new_name() -> Result<String> {
    let pid = std::process::id();
    let start = start_time(pid).context("cannot read this process's start time")?;
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    Ok(format!("{PREFIX}{pid}.{start}.{number}"))
}

/// Folder of the lab `name`.
pub(crate) fn directory(name: &str) -> PathBuf {
    std::env::temp_dir().join(name)
}

/// Removes cgroups, namespaces and folders of labs whose process is gone.
/// What cannot be removed is left for the next time.
pub(crate) fn remove_leftovers() {
    let _guard = REMOVING.lock();
    if let Ok(root) = cgroup::root() {
        for name in leftovers(&root) {
            cgroup::remove(&root.join(name));
        }
    }
    for name in leftovers(Path::new("/run/netns")) {
        delete_namespace(&name);
    }
    let temporary = std::env::temp_dir();
    for name in leftovers(&temporary) {
        remove_directory(&temporary.join(name));
    }
}

/// Deletes a named network namespace.
pub(crate) fn delete_namespace(name: &str) {
    let _ = Command::new("ip")
        .args(["netns", "delete", name])
        .stderr(Stdio::null())
        .status();
}

/// Unmounts what is mounted in a lab's folder, and removes it.
pub(crate) fn remove_directory(directory: &Path) {
    let bpffs = directory.join("bpffs");
    if bpffs.exists() {
        let _ = rustix::mount::unmount(&bpffs, rustix::mount::UnmountFlags::DETACH);
    }
    let _ = fs::remove_dir_all(directory);
}

fn leftovers(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| is_leftover(name))
        .collect()
}

fn is_leftover(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX) else {
        return false;
    };
    let mut parts = rest.split('.').map(str::parse::<u64>);
    let (Some(Ok(pid)), Some(Ok(start))) = (parts.next(), parts.next()) else {
        return false;
    };
    u32::try_from(pid).is_ok_and(|pid| start_time(pid) != Some(start))
}

/// Start time of a process in clock ticks since boot: field 22 of
/// `/proc/PID/stat`, counted behind the name, which may hold anything.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn only_names_of_dead_processes_are_leftovers() {
        let own = new_name().unwrap();
        assert!(!is_leftover(&own));
        assert!(!is_leftover(&format!("{own}.app")));
        let pid = std::process::id();
        assert!(is_leftover(&format!("{PREFIX}{pid}.1.0.world")));
        assert!(is_leftover(&format!("{PREFIX}4294967295.1.0")));
        assert!(!is_leftover("egress-lab.x.y.z"));
        assert!(!is_leftover("somebody-elses"));
    }
}

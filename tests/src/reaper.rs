//! Names that tell whose they are, and the removal of a lab however its maker
//! ends.
//!
//! Each lab has a janitor: a shell of its own session that waits for the end
//! of a pipe which only the maker holds. Whether the maker drops the lab,
//! panics, is interrupted or killed, the pipe ends and the janitor cleans up.
//! A lab's name holds the process id and start time of its maker, so that
//! leftovers (of a janitor that was killed too) are known at the next start.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::{Context, Result, cgroup};

/// Beginning of the name of everything that a lab makes.
const PREFIX: &str = "egress-lab.";

/// Removes the lab `$1` with cgroup `$2` and folder `$3`, at the end of its
/// standard input: first the processes (a namespace lives as long as one is in
/// it; `cgroup.kill` is of kernel 5.14), then the rest.
const JANITOR: &str = r#"
cat >/dev/null
if [ -d "$2" ]; then
    echo 1 >"$2/cgroup.kill"
    for attempt in $(seq 500); do
        find "$2" -depth -type d -exec rmdir {} + 2>/dev/null
        if [ ! -d "$2" ]; then break; fi
        sleep 0.01
    done
fi
for namespace in /run/netns/"$1".*; do
    if [ -e "$namespace" ]; then ip netns delete "${namespace##*/}"; fi
done
if [ -d "$3/bpffs" ]; then umount --lazy "$3/bpffs"; fi
rm -rf "$3"
"#;

/// Labs made by this process.
static COUNT: AtomicU32 = AtomicU32::new(0);
/// One removal of leftovers at a time.
static REMOVING: Mutex<()> = Mutex::new(());

/// The janitor of one lab; on drop the lab is removed.
pub(crate) struct Janitor {
    shell: Child,
}

impl Janitor {
    /// Starts the janitor of the lab `name`, before anything of it is made.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let shell = janitor(name)?
            .stdin(Stdio::piped())
            .spawn()
            .context("cannot start the janitor")?;
        Ok(Self { shell })
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

/// The janitor in a session of its own, where no interrupt of the terminal
/// reaches it.
fn janitor(name: &str) -> Result<Command> {
    let mut command = Command::new("setsid");
    command
        .args(["--wait", "sh", "-c", JANITOR, "janitor", name])
        .arg(cgroup::root()?.join(name))
        .arg(directory(name));
    Ok(command)
}

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

/// Removes the labs whose maker is gone; what cannot be removed is left for
/// the next time.
pub(crate) fn remove_leftovers() -> Result<()> {
    let _guard = REMOVING.lock();
    let folders = [
        cgroup::root()?,
        PathBuf::from("/run/netns"),
        std::env::temp_dir(),
    ];
    let labs: BTreeSet<String> = folders
        .iter()
        .flat_map(|folder| leftovers(folder))
        .collect();
    for name in labs {
        janitor(&name)?.stdin(Stdio::null()).status()?;
    }
    Ok(())
}

fn leftovers(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| leftover(entry.file_name().to_str()?))
        .collect()
}

/// The lab that a file called `name` belongs to, if its maker is gone.
fn leftover(name: &str) -> Option<String> {
    let mut parts = name.strip_prefix(PREFIX)?.split('.').map(str::parse::<u64>);
    let (Ok(pid), Ok(start), Ok(number)) = (parts.next()?, parts.next()?, parts.next()?) else {
        return None;
    };
    let gone = start_time(u32::try_from(pid).ok()?) != Some(start);
    gone.then(|| format!("{PREFIX}{pid}.{start}.{number}"))
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
        assert_eq!(leftover(&own), None);
        assert_eq!(leftover(&format!("{own}.app")), None);
        let pid = std::process::id();
        let dead = format!("{PREFIX}{pid}.1.0");
        assert_eq!(leftover(&format!("{dead}.world")), Some(dead));
        let dead = format!("{PREFIX}4294967295.1.0");
        assert_eq!(leftover(&dead), Some(dead.clone()));
        assert_eq!(leftover("egress-lab.x.y.z"), None);
        assert_eq!(leftover("egress-lab.1"), None);
        assert_eq!(leftover("somebody-elses"), None);
    }
}

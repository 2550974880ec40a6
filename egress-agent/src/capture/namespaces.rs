//! Network namespaces of callers: how to find and enter one, and how to tell
//! that nobody but us is left in it.
//!
//! A namespace lives as long as something holds it: a task, an open file or
//! mount of it, a socket. Our listeners are sockets, so they would hold it for
//! ever. What says that a namespace is in use is a task in it, or a mount (as
//! `ip netns add` and container runtimes make, for namespaces that wait for
//! their tasks). Where there is neither, our listeners may go: whoever still
//! has a socket there and connects it is met by the hook, which asks for
//! listeners anew.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::hash::BuildHasher;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use egress_common::caller::NamespaceEvent;

use super::kernel::Kernel;
use super::reports::Reports;
use super::sockets::NetNs;

/// Cgroups of the captured subtree that one look visits.
const CGROUPS: usize = 65_536;

impl Kernel {
    /// The reader of reports on sockets in namespaces without listeners;
    /// `None` when it was taken before.
    pub fn take_namespace_reports(&self) -> Option<Reports<NamespaceEvent>> {
        Reports::take(self, "NAMESPACE_EVENTS")
    }
}

/// Opens a namespace file.
///
/// # Errors
/// When it is gone, or not ours to open (`CAP_SYS_PTRACE` is needed for those
/// of other users' processes).
fn open(path: impl AsRef<Path>) -> io::Result<NetNs> {
    let handle: OwnedFd = File::open(path)?.into();
    NetNs::open(handle)
}

/// The namespace with the cookie `cookie`, which a thread was in when it made
/// a socket. The thread may have left it or ended since, so what is found
/// there is compared, and then every other task and mount is looked at.
/// `None`: it is gone, or held by nothing that can be entered.
pub fn find(cookie: u64, pid: u32, tid: u32) -> Option<NetNs> {
    let matches = |netns: &NetNs| netns.cookie == cookie;
    [
        format!("/proc/{pid}/task/{tid}/ns/net"),
        format!("/proc/{pid}/ns/net"),
    ]
    .iter()
    .find_map(|path| open(path).ok().filter(matches))
    .or_else(|| {
        let mut seen = HashSet::new();
        let mut fitting = |inode: u64, path: &Path| {
            let new = seen.insert(inode);
            new.then(|| open(path).ok().filter(matches)).flatten()
        };
        mounts()
            .into_iter()
            .find_map(|(inode, path)| fitting(inode, &path))
            .or_else(|| {
                processes().find_map(|process| {
                    let path = process.join("ns/net");
                    fitting(inode(&path)?, &path)
                })
            })
    })
}

/// A namespace by a process in it.
///
/// # Errors
/// When the process is gone.
pub fn of_process(pid: u32) -> io::Result<NetNs> {
    open(format!("/proc/{pid}/ns/net"))
}

/// The namespaces of the processes in a cgroup and below it: inode number, and
/// one process in each. Reads one file for each cgroup and process.
///
/// # Errors
/// When the cgroup cannot be read.
pub fn below(cgroup: &Path) -> io::Result<HashMap<u64, u32>> {
    let mut found = HashMap::new();
    let mut open = vec![cgroup.to_owned()];
    let mut visited = 0;
    while let Some(directory) = open.pop() {
        visited += 1;
        if visited > CGROUPS {
            break;
        }
        // A cgroup that was removed meanwhile has nobody in it.
        let processes = fs::read_to_string(directory.join("cgroup.procs"));
        if let (Err(error), true) = (&processes, visited == 1) {
            return Err(io::Error::new(error.kind(), error.to_string()));
        }
        for pid in processes.unwrap_or_default().lines() {
            // 0: a process outside of our own process namespace.
            if let Some(pid) = pid.parse().ok().filter(|pid| *pid != 0)
                && let Some(inode) = inode(Path::new(&format!("/proc/{pid}/ns/net")))
            {
                found.entry(inode).or_insert(pid);
            }
        }
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(entry.path());
            }
        }
    }
    Ok(found)
}

/// Which of these namespaces (by inode number) are in use: a task is in it, or
/// it is mounted somewhere.
pub fn in_use<S: BuildHasher>(asked: &HashSet<u64, S>) -> HashSet<u64> {
    if asked.is_empty() {
        return HashSet::new();
    }
    let mut used: HashSet<u64> = mounts()
        .into_iter()
        .map(|(inode, _)| inode)
        .filter(|inode| asked.contains(inode))
        .collect();
    for process in processes() {
        if used.len() == asked.len() {
            return used;
        }
        used.extend(inode(&process.join("ns/net")).filter(|inode| asked.contains(inode)));
    }
    if used.len() == asked.len() {
        return used;
    }
    // Threads that went elsewhere than their process are rare: they are looked
    // for only before something would be given up. Our own enter namespaces
    // for a moment, to make sockets.
    let own = Path::new("/proc").join(std::process::id().to_string());
    for process in processes().filter(|process| *process != own) {
        for task in fs::read_dir(process.join("task"))
            .into_iter()
            .flatten()
            .flatten()
        {
            used.extend(inode(&task.path().join("ns/net")).filter(|inode| asked.contains(inode)));
        }
    }
    used
}

/// Whether an application still has its end of a connection to one of our
/// listeners in the namespace: its socket is there and belongs to a file.
///
/// # Errors
/// When the namespace cannot be entered or its sockets not be read.
pub fn has_clients(netns: &NetNs, ports: &[u16]) -> io::Result<bool> {
    netns.enter(|| {
        for file in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
            match fs::read_to_string(file) {
                Ok(text) if names_client(&text, ports) => return Ok(true),
                Ok(_) => {}
                // A kernel without IPv6.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    })
}

/// proc_net_tcp: `sl local rem st queues tr retrnsmt uid timeout inode …`. A
/// socket whose last descriptor is closed has the inode 0.
fn names_client(text: &str, ports: &[u16]) -> bool {
    text.lines().skip(1).any(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (remote, inode) = (fields.nth(2), fields.nth(6));
        let port = remote
            .and_then(|remote| remote.rsplit_once(':'))
            .and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
        port.is_some_and(|port| port != 0 && ports.contains(&port))
            && inode.is_some_and(|inode| inode != "0")
    })
}

/// Inode number of the namespace behind a link of `/proc`.
pub(super) fn inode(path: &Path) -> Option<u64> {
    // namespaces(7): the link reads `net:[4026531840]`.
    let target = fs::read_link(path).ok()?;
    number(target.to_str()?)
}

fn number(text: &str) -> Option<u64> {
    text.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

fn processes() -> impl Iterator<Item = PathBuf> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            name.to_str()
                .is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit()))
        })
        .map(|entry| entry.path())
}

/// Network namespaces that are mounted where the first process or we see it:
/// inode number and a path under which it can be opened.
fn mounts() -> Vec<(u64, PathBuf)> {
    let mut found = Vec::new();
    for (file, root) in [
        ("/proc/1/mountinfo", "/proc/1/root"),
        ("/proc/self/mountinfo", ""),
    ] {
        // Without a process 1 that may be looked at, our own view must do.
        let text = fs::read_to_string(file).unwrap_or_default();
        found.extend(text.lines().filter_map(|line| mount(line, root)));
    }
    found
}

/// proc_pid_mountinfo(5): fourth field the root within the file system, which
/// for a namespace is `net:[…]`, fifth the mount point.
fn mount(line: &str, root: &str) -> Option<(u64, PathBuf)> {
    let mut fields = line.split(' ').skip(3);
    let inode = number(fields.next()?)?;
    let point = fields.next()?;
    // Octal escapes stand for blanks; no runtime makes such names.
    Some((inode, PathBuf::from(format!("{root}{point}"))))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn mounts_and_links_tell_inode_numbers() {
        let line = "620 29 0:4 net:[4026532411] /run/netns/a rw shared:5 - nsfs nsfs rw";
        assert_eq!(
            mount(line, "/proc/1/root"),
            Some((4_026_532_411, "/proc/1/root/run/netns/a".into()))
        );
        let other = "29 1 0:26 / /run rw,nosuid shared:2 - tmpfs tmpfs rw";
        assert_eq!(mount(other, ""), None);
        assert_eq!(mount("", ""), None);
        assert_eq!(number("mnt:[4026532411]"), None);
        assert!(inode(Path::new("/proc/self/ns/net")).is_some());
    }

    #[test]
    fn the_own_namespace_is_in_use_and_a_made_up_one_is_not() {
        let own = inode(Path::new("/proc/self/ns/net")).unwrap();
        assert_eq!(in_use(&HashSet::from([own, 1])), HashSet::from([own]));
        assert!(in_use(&HashSet::<u64>::new()).is_empty());
    }

    #[test]
    fn only_client_ends_that_somebody_holds_count() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
   0: 0100007F:9C40 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 71 1 0 100 0 0 10 0\n\
   1: 0100007F:8001 0100007F:9C40 01 00000000:00000000 02:00000000 00000000  1000        0 INODE 2 0 20 4 30 10 -1\n\
   2: 0100007F:9C40 0100007F:8001 01 00000000:00000000 00:00000000 00000000     0        0 73 1 0 20 4 30 10 -1\n";
        assert!(names_client(&text.replace("INODE", "72"), &[0x9c40]));
        assert!(!names_client(&text.replace("INODE", "0"), &[0x9c40]));
        assert!(!names_client(&text.replace("INODE", "72"), &[0x9c41, 0]));
        assert!(!names_client("", &[1]));
    }

    #[test]
    fn a_cgroup_that_is_not_there_is_an_error() {
        assert!(below(Path::new("/nonexistent")).is_err());
    }
}

//! What the host must offer, each checked with a sentence of its own.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::thread::CapabilitySet;

use super::error::CaptureError;

/// Oldest kernel, as major and minor version.
const FLOOR: (u32, u32) = (5, 15);

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// `CGROUP2_SUPER_MAGIC` and `BPF_FS_MAGIC`, from `linux/magic.h`.
const CGROUP2_MAGIC: u64 = 0x6367_7270;
const BPF_MAGIC: u64 = 0xcafe_4a11;

/// Root of the unified cgroup hierarchy, wherever it is mounted.
///
/// # Errors
/// When none is mounted, or the mount table cannot be read.
pub fn cgroup_root() -> Result<PathBuf, CaptureError> {
    let table = fs::read_to_string(MOUNTINFO).map_err(|error| CaptureError::Read {
        path: MOUNTINFO.into(),
        error,
    })?;
    cgroup_mount(&table).ok_or(CaptureError::NoCgroup2)
}

/// Finds the mount point in the text of a mountinfo file (proc(5)): the mount
/// of the hierarchy's root, else (in a container) of the part that is visible.
fn cgroup_mount(table: &str) -> Option<PathBuf> {
    let mut found: Option<PathBuf> = None;
    for line in table.lines() {
        let Some((mount, kind)) = line.split_once(" - ") else {
            continue;
        };
        if kind.split(' ').next() != Some("cgroup2") {
            continue;
        }
        let mut fields = mount.split(' ').skip(3);
        let (Some(root), Some(point)) = (fields.next(), fields.next()) else {
            continue;
        };
        let point = PathBuf::from(unescape(point));
        if root == "/" {
            return Some(point);
        }
        found.get_or_insert(point);
    }
    found
}

/// Undoes the octal escapes of proc(5): space, tab, newline, backslash.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

/// Opens a directory of the unified hierarchy.
pub(super) fn open_cgroup(path: &Path) -> Result<OwnedFd, CaptureError> {
    let not = |error| CaptureError::NotCgroup2 {
        path: path.into(),
        error,
    };
    let fd = rustix::fs::open(
        path,
        OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY,
        Mode::empty(),
    )
    .map_err(|error| not(Some(error.into())))?;
    let kind = rustix::fs::fstatfs(&fd).map_err(|error| not(Some(error.into())))?;
    if kind.f_type.cast_unsigned() != CGROUP2_MAGIC {
        return Err(not(None));
    }
    Ok(fd)
}

/// The id of a cgroup: its inode number.
pub(super) fn cgroup_id(cgroup: &OwnedFd, path: &Path) -> Result<u64, CaptureError> {
    rustix::fs::fstat(cgroup)
        .map(|found| found.st_ino)
        .map_err(|error| CaptureError::Read {
            path: path.into(),
            error: error.into(),
        })
}

/// Capabilities, kernel version and BTF.
pub(super) fn check() -> Result<(), CaptureError> {
    capabilities()?;
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    if version(&release).is_some_and(|found| found < FLOOR) {
        return Err(CaptureError::Kernel { release });
    }
    if aya::features().btf().is_none() {
        return Err(CaptureError::Btf);
    }
    Ok(())
}

/// Whether a path is on a bpf file system.
pub(super) fn is_bpffs(path: &Path) -> bool {
    File::open(path)
        .ok()
        .and_then(|file| rustix::fs::fstatfs(&file).ok())
        .is_some_and(|kind| kind.f_type.cast_unsigned() == BPF_MAGIC)
}

/// Whether programs may choose the errno of a refusal (`bpf_set_retval`, since
/// Linux 5.18).
pub(super) fn has_set_retval() -> bool {
    version(&rustix::system::uname().release().to_string_lossy())
        .is_none_or(|found| found >= (5, 18))
}

/// Number of possible CPUs, which per-CPU maps have a value for.
pub(super) fn cpus() -> Result<usize, CaptureError> {
    aya::util::nr_cpus().map_err(|(path, error)| CaptureError::Read {
        path: path.into(),
        error,
    })
}

fn capabilities() -> Result<(), CaptureError> {
    let held = rustix::thread::capabilities(None)
        .map(|sets| sets.effective)
        .map_err(|error| CaptureError::Probe {
            step: "read the agent's capabilities",
            error: error.into(),
        })?;
    // CAP_SYS_ADMIN stands for CAP_BPF in the kernel, and is needed besides to
    // enter network namespaces.
    for (set, name) in [
        (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN"),
        (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
    ] {
        if !held.contains(set) {
            return Err(CaptureError::Capability { name });
        }
    }
    Ok(())
}

/// Major and minor number of a kernel release such as `6.1.0-18-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_unified_hierarchy_is_found_wherever_it_is_mounted() {
        let hybrid = "\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw
";
        assert_eq!(cgroup_mount(hybrid), Some("/sys/fs/cgroup/unified".into()));
        let container = "\
10 9 0:26 /../.. /host\\040cg ro - cgroup2 cgroup rw
11 9 0:26 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw
";
        assert_eq!(cgroup_mount(container), Some("/sys/fs/cgroup".into()));
        assert_eq!(
            cgroup_mount(container.lines().next().unwrap()),
            Some("/host cg".into())
        );
        assert_eq!(cgroup_mount("32 31 0:29 / /a rw - cgroup cgroup rw"), None);
    }

    #[test]
    fn kernel_releases_compare() {
        assert_eq!(version("6.1.0-18-cloud-amd64"), Some((6, 1)));
        assert_eq!(version("5.15.0"), Some((5, 15)));
        assert_eq!(version("6.18-rc1"), Some((6, 18)));
        assert!(version("5.4.0-generic").unwrap() < FLOOR);
        assert!(version("5.15.0-generic").unwrap() >= FLOOR);
    }

    #[test]
    fn a_plain_directory_is_no_cgroup() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(
            open_cgroup(directory.path()),
            Err(CaptureError::NotCgroup2 { error: None, .. })
        ));
        assert!(matches!(
            open_cgroup(&directory.path().join("none")),
            Err(CaptureError::NotCgroup2 { error: Some(_), .. })
        ));
    }
}

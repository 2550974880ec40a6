//! What this host must offer before the kernel programs can run, each missing
//! thing told in one sentence that says what to do.

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// Oldest kernel with everything that the programs call.
const KERNEL_FLOOR: (u32, u32) = (5, 15);

/// Whether this process has user id 0.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// Root is needed to load BPF, make namespaces and install packages.
pub(crate) fn require_root(what: &str) -> Result<(), Failure> {
    if is_root() {
        return Ok(());
    }
    Err(Failure::with_remedy(
        format!("{what} needs root"),
        "run it as `sudo --preserve-env=PATH,HOME cargo xtask ...`",
    ))
}

/// Checks all that loading, attaching and pinning need.
pub(crate) fn require_kernel() -> Result<(), Failure> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_err(|e| Failure::io("/proc/sys/kernel/osrelease", &e))?;
    check_release(release.trim())?;
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Err(Failure::with_remedy(
            format!("kernel {} has no /sys/kernel/btf/vmlinux", release.trim()),
            "boot one built with CONFIG_DEBUG_INFO_BTF=y, as distributions' own kernels are",
        ));
    }
    let filesystems = fs::read_to_string("/proc/filesystems")
        .map_err(|e| Failure::io("/proc/filesystems", &e))?;
    if !filesystems.lines().any(|line| line.ends_with("\tbpf")) {
        return Err(Failure::with_remedy(
            format!("kernel {} has no bpf file system", release.trim()),
            "boot one built with CONFIG_BPF_SYSCALL=y and CONFIG_CGROUP_BPF=y",
        ));
    }
    cgroup_root().map(|_| ())
}

/// Where the unified hierarchy is mounted, wherever that is.
pub(crate) fn cgroup_root() -> Result<PathBuf, Failure> {
    let mounts = fs::read_to_string("/proc/self/mounts")
        .map_err(|e| Failure::io("/proc/self/mounts", &e))?;
    find_cgroup2(&mounts).ok_or_else(|| {
        Failure::with_remedy(
            "no cgroup v2 hierarchy is mounted",
            "boot with systemd.unified_cgroup_hierarchy=1, or \
             `mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified`",
        )
    })
}

fn find_cgroup2(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, point, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(point))
    })
}

fn check_release(release: &str) -> Result<(), Failure> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        return Ok(());
    };
    if (major, minor) >= KERNEL_FLOOR {
        return Ok(());
    }
    Err(Failure::with_remedy(
        format!("kernel {release} is too old"),
        format!("boot {}.{} or newer", KERNEL_FLOOR.0, KERNEL_FLOOR.1),
    ))
}

/// Finds a program on PATH, and in the folders for administrators' programs,
/// which a user's PATH often lacks.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| {
            fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.mode() & 0o111 != 0)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unified_hierarchy_is_found_beside_the_old_one() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(
            find_cgroup2(mounts),
            Some(PathBuf::from("/sys/fs/cgroup/unified"))
        );
        assert_eq!(find_cgroup2("tmpfs /sys/fs/cgroup tmpfs rw 0 0\n"), None);
    }

    #[test]
    fn kernels_below_the_floor_are_refused() {
        assert!(check_release("5.10.0-30-amd64").is_err());
        assert!(check_release("5.15.1").is_ok());
        assert!(check_release("6.1.0-40-cloud-amd64").is_ok());
        assert!(check_release("unreadable").is_ok());
    }
}

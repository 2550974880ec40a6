//! What the process asks of the kernel for itself, before all else.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;

use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Moves into the host's cgroup namespace, when run in a container that sees
/// the host's processes (`hostPID`): there `/proc/PID/cgroup` and the mounts
/// are written relative to the container's own cgroup (cgroup_namespaces(7)).
/// Must be called before any thread is made. Whether it moved.
///
/// # Errors
/// When the namespace cannot be entered (no `CAP_SYS_ADMIN`).
pub fn enter_host_cgroups() -> io::Result<bool> {
    let host = "/proc/1/ns/cgroup";
    // Without the rights to read the host's, it is not for us to enter.
    let (Ok(theirs), Ok(ours)) = (fs::read_link(host), fs::read_link("/proc/self/ns/cgroup"))
    else {
        return Ok(false);
    };
    if theirs == ours {
        return Ok(false);
    }
    move_into_link_name_space(
        File::open(host)?.as_fd(),
        Some(LinkNameSpaceType::ControlGroup),
    )?;
    Ok(true)
}

/// Keys and payload are in our memory: no core dump, and no other process of
/// the same user may read it (`PR_SET_DUMPABLE`).
///
/// # Errors
/// Those of `prctl`.
pub fn forbid_dumps() -> io::Result<()> {
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Raises the soft limit of open descriptors to the hard one. Returns the limit
/// in force; `None` is unlimited.
///
/// # Errors
/// Those of `setrlimit`.
pub fn raise_descriptor_limit() -> io::Result<Option<u64>> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        setrlimit(
            Resource::Nofile,
            Rlimit {
                current: limit.maximum,
                maximum: limit.maximum,
            },
        )?;
    }
    Ok(limit.maximum)
}

/// Descriptors that the agent needs beside connections: listeners, maps, name
/// servers, health checks, idle upstream connections.
const OTHERS: u64 = 1024;

/// Connections that `descriptors` allow: each takes one to the application and
/// one to the service.
pub fn connections_for(descriptors: Option<u64>) -> u32 {
    let pairs = descriptors.unwrap_or(u64::MAX).saturating_sub(OTHERS) / 2;
    u32::try_from(pairs).unwrap_or(u32::MAX).max(16)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let raised = raise_descriptor_limit().unwrap();
        assert_eq!(getrlimit(Resource::Nofile).current, raised);
    }

    #[test]
    fn connections_leave_descriptors_for_the_rest() {
        assert_eq!(connections_for(Some(21_024)), 10_000);
        assert_eq!(connections_for(Some(256)), 16);
        assert_eq!(connections_for(None), u32::MAX);
    }
}

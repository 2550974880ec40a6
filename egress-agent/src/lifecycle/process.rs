//! What the process asks of the kernel for itself, before all else.

use std::io;

use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};

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

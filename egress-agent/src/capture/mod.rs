//! The kernel side seen from the agent: loads, attaches and pins the programs,
//! gives every map a typed face, and recovers what a redirected connection
//! really dialled.

use std::fmt;
use std::net::SocketAddr;

use crate::policy::snapshot::ServiceId;

mod bypass;
mod control;
mod cut;
mod direct;
mod direct_reports;
mod error;
mod kernel;
pub mod keys;
pub mod namespaces;
mod numbering;
mod origins;
mod outbound;
mod pins;
mod probe;
mod reports;
mod services;
pub mod sockets;
mod status;
mod sys;
mod system;

pub use bypass::Bypass;
pub use control::KernelSettings;
pub use cut::Target as DirectTarget;
pub use direct::{DirectBalance, DirectKeepalive, DirectPlan, DirectSlot};
pub use direct_reports::{DirectOutcome, DirectReport, DirectReports, ResetBy};
pub use error::CaptureError;
pub use kernel::{Kernel, Options};
pub use numbering::Numbered;
pub use origins::{Origins, address, ip};
pub use outbound::{AllowedNetwork, OutboundControl, Refusals, Refused, Transport, Unregistered};
pub use pins::clean_up;
pub use reports::{Reports, watch_descriptor};
pub use services::{Changes, MapKey};
pub use status::{AttachedProgram, Counters, Usage};
pub use system::cgroup_root;

/// A connection that a kernel program handed to the agent: who called, from
/// where, to what.
#[derive(Clone, Debug)]
pub struct Captured {
    /// The client's own address, as `accept` sees it.
    pub peer: SocketAddr,
    /// The destination that the application dialled (IPv4-mapped addresses
    /// already made IPv4).
    pub original: SocketAddr,
    /// The registered service that the destination belongs to.
    pub service: ServiceId,
    /// The destination does not belong to this service alone (a real address
    /// that its host resolved to, a whole port): Host or SNI has the last word.
    pub name_decides: bool,
    /// Who called.
    pub caller: Caller,
}

/// Who made a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    /// Cgroup id (inode number in the unified hierarchy).
    pub cgroup: u64,
    /// Network namespace cookie.
    pub netns: u64,
    /// Process id in the initial namespace.
    pub pid: u32,
    /// User id in the initial namespace.
    pub uid: u32,
    /// Task name.
    pub comm: Comm,
}

/// A task name: at most fifteen bytes, zero padded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Comm(pub [u8; 16]);

impl fmt::Display for Comm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.0.iter().position(|&b| b == 0).unwrap_or(16);
        // A task may name itself in any bytes; control characters and invalid
        // UTF-8 must not reach a log as they are.
        for part in self.0[..end].utf8_chunks() {
            for c in part.valid().chars() {
                if c.is_control() {
                    write!(f, "{}", c.escape_default())?;
                } else {
                    fmt::Write::write_char(f, c)?;
                }
            }
            if !part.invalid().is_empty() {
                f.write_str("\u{fffd}")?;
            }
        }
        Ok(())
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds, the clock of `bpf_ktime_get_ns`.
fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // The clock starts at boot: neither part is negative.
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

//! The self-test: proves through the hooks themselves that a connection of a
//! process in the captured cgroup reaches the agent with its record.
//!
//! A child process is made inside a cgroup of its own below the captured one,
//! in a network namespace of its own that has no way out. It dials a reserved
//! address and reports what it saw; the agent then looks for the record.
//! Nothing of this touches other processes, and nothing stays behind.
#![allow(unsafe_code, reason = "messages of a child process, as bytes")]

mod child;

use std::io;
use std::mem;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use egress_common::{
    ExactKey, FAILURE_CLOSED, Listeners, SCOPE_ALL, ServiceValue, VERDICT_PROXY, mapped,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use self::child::{ADDRESS, ADDRESS_BESIDE_OBSOLETE, Child, PORT, Ready, Report};
use super::error::CaptureError;
use super::kernel::Kernel;
use super::services::{MapKey, Store};
use super::sys;

/// Service number of the probe's entry.
const SERVICE: u32 = u32::MAX - 1;

/// Time for the whole probe.
const DEADLINE: Duration = Duration::from_secs(5);

const CGROUP_PREFIX: &str = "egress-probe-";

impl Kernel {
    /// Proves that capture works, by a connection that a short-lived process
    /// inside the captured cgroup makes. [`Kernel::configure`] must have been
    /// called. Takes some milliseconds, at most five seconds.
    ///
    /// # Errors
    /// [`CaptureError::NotCaptured`] when the connection was not redirected
    /// or its record is wrong; [`CaptureError::Probe`] when the test could not
    /// be made.
    pub fn prove(&self) -> Result<(), CaptureError> {
        self.heartbeat()?;
        let cgroup = ProbeCgroup::new(self)?;
        let target = if self.has_obsolete() {
            ADDRESS_BESIDE_OBSOLETE
        } else {
            ADDRESS
        };
        let key = MapKey::Exact(ExactKey {
            scope: SCOPE_ALL,
            port: PORT,
            reserved: 0,
            address: mapped(target.octets()),
        });
        let value = ServiceValue {
            service: SERVICE,
            verdict: VERDICT_PROXY,
            on_failure: FAILURE_CLOSED,
            specificity: 128,
            flags: 0,
        };
        self.maps.store.set(&key, value)?;
        let outcome = self.probe(&cgroup, target);
        self.maps.store.remove(&key)?;
        outcome
    }

    fn probe(&self, cgroup: &ProbeCgroup<'_>, target: Ipv4Addr) -> Result<(), CaptureError> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(failed("make a pair of sockets"))?;
        let child = Child::start(&cgroup.directory, &ours, &theirs, target)
            .map_err(|error| fail("make a process in the captured cgroup", error))?;
        drop(theirs);
        let deadline = Instant::now() + DEADLINE;
        let ready: Ready =
            receive(&ours, deadline).map_err(|error| fail("hear from its process", error))?;
        if ready.error != 0 {
            return Err(fail(
                "listen in its network namespace",
                io::Error::from_raw_os_error(ready.error),
            ));
        }
        let mut listeners: Listeners = sys::zeroed();
        listeners.tcp4 = ready.port;
        self.set_listeners(ready.netns, &listeners)?;
        let outcome = rustix::net::send(&ours, &[1], SendFlags::NOSIGNAL)
            .map_err(failed("speak to its process"))
            .and_then(|_| {
                receive(&ours, deadline).map_err(|error| fail("hear from its process", error))
            })
            .and_then(|report| {
                self.judge(cgroup, SocketAddrV4::new(target, PORT), &ready, &report)
            });
        self.remove_listeners(ready.netns)?;
        drop(child);
        outcome
    }

    fn judge(
        &self,
        cgroup: &ProbeCgroup<'_>,
        dialled: SocketAddrV4,
        ready: &Ready,
        report: &Report,
    ) -> Result<(), CaptureError> {
        let not = |reason: String| Err(CaptureError::NotCaptured { reason });
        if report.error != 0 {
            return not(format!(
                "connecting to {dialled} answered: {}; another program on the same hooks may \
                 have changed or refused it",
                io::Error::from_raw_os_error(report.error)
            ));
        }
        let peer = SocketAddrV4::new(
            Ipv4Addr::from(u32::from_be(report.peer)),
            u16::from_be(report.peer_port),
        );
        if peer != dialled {
            return not(format!("getpeername showed {peer}, not {dialled}"));
        }
        let local = SocketAddrV4::new(Ipv4Addr::LOCALHOST, u16::from_be(report.local_port));
        match self.take_origin(ready.netns, local.into(), ready.port)? {
            None => not(format!("the connection from {local} left no record")),
            Some(record)
                if record.original != SocketAddr::V4(dialled)
                    || record.service.0 != SERVICE
                    || record.caller.cgroup != cgroup.id =>
            {
                not(format!("its record says {record:?}"))
            }
            Some(_) => Ok(()),
        }
    }
}

fn fail(step: &'static str, error: io::Error) -> CaptureError {
    CaptureError::Probe { step, error }
}

fn failed(step: &'static str) -> impl Fn(rustix::io::Errno) -> CaptureError {
    move |error| fail(step, error.into())
}

/// A cgroup below the captured one, removed again.
struct ProbeCgroup<'a> {
    parent: &'a OwnedFd,
    name: String,
    directory: OwnedFd,
    id: u64,
}

impl<'a> ProbeCgroup<'a> {
    fn new(kernel: &'a Kernel) -> Result<Self, CaptureError> {
        let parent = &kernel.cgroup_fd;
        remove_stale(parent);
        let name = format!(
            "{CGROUP_PREFIX}{}-{:x}",
            std::process::id(),
            fastrand::u32(..)
        );
        rustix::fs::mkdirat(parent, &name, Mode::from_raw_mode(0o755))
            .map_err(failed("make a cgroup below the captured one"))?;
        let open = || {
            let directory = rustix::fs::openat(
                parent,
                &name,
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            // The id of a cgroup is its inode number.
            let id = rustix::fs::fstat(&directory)?.st_ino;
            Ok((directory, id))
        };
        match open() {
            Ok((directory, id)) => Ok(Self {
                parent,
                name,
                directory,
                id,
            }),
            Err(error) => {
                let _ = rustix::fs::unlinkat(parent, &name, AtFlags::REMOVEDIR);
                Err(failed("open its cgroup")(error))
            }
        }
    }
}

impl Drop for ProbeCgroup<'_> {
    fn drop(&mut self) {
        if let Err(error) = rustix::fs::unlinkat(self.parent, &self.name, AtFlags::REMOVEDIR) {
            tracing::warn!(cgroup = self.name, %error, "cannot remove the cgroup of the self-test");
        }
    }
}

/// Removes what an agent that was killed in its self-test left. A cgroup with a
/// process in it is not removed by the kernel, so a running probe is safe.
fn remove_stale(parent: &OwnedFd) {
    let Ok(entries) = rustix::fs::Dir::read_from(parent) else {
        return;
    };
    for entry in entries.flatten() {
        if entry
            .file_name()
            .to_bytes()
            .starts_with(CGROUP_PREFIX.as_bytes())
        {
            let _ = rustix::fs::unlinkat(parent, entry.file_name(), AtFlags::REMOVEDIR);
        }
    }
}

fn receive<T: Copy>(socket: &OwnedFd, deadline: Instant) -> io::Result<T> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
    let mut wait = [PollFd::new(socket, PollFlags::IN)];
    if poll(&mut wait, Some(&timeout))? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut value = mem::MaybeUninit::<T>::uninit();
    let (got, _) = rustix::net::recv(
        socket,
        // SAFETY: exactly the bytes of `value`, as bytes that need not be
        // initialized.
        unsafe {
            std::slice::from_raw_parts_mut(
                value.as_mut_ptr().cast::<mem::MaybeUninit<u8>>(),
                size_of::<T>(),
            )
        },
        RecvFlags::empty(),
    )
    .map(|(bytes, length)| (bytes.0.len(), length))?;
    if got != size_of::<T>() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // SAFETY: all bytes were received; `T` is one of the two messages above,
    // which are made of integers.
    Ok(unsafe { value.assume_init() })
}

//! The child process of the self-test: a client in the captured cgroup, and a
//! listener in the place of the agent's, in a network namespace of their own.
#![allow(
    unsafe_code,
    reason = "a child made with clone3(2) that may use nothing but system calls"
)]

use std::io;
use std::mem;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::super::sys;

/// What the child dials: in a part of the virtual addresses that is kept for
/// this, so no host ever has it. The programs of another egress on this cgroup
/// refuse it, as it is not theirs: that is how one is noticed.
pub(super) const ADDRESS: Ipv4Addr = Ipv4Addr::new(240, 240, 255, 1);
/// What it dials beside programs of an agent before, whose maps have another
/// layout and which stay until ours are proven: an address of loopback where
/// nobody listens, which they let pass.
pub(super) const ADDRESS_BESIDE_OBSOLETE: Ipv4Addr = Ipv4Addr::new(127, 83, 255, 1);
pub(super) const PORT: u16 = 1;

/// What the child says about itself before it dials.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Ready {
    /// Cookie of its network namespace.
    pub(super) netns: u64,
    /// `errno` of what failed, or 0.
    pub(super) error: i32,
    /// Port of its listener, host order.
    pub(super) port: u16,
    padding: u16,
}

/// What the child saw.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Report {
    /// `errno` of `connect`, or 0.
    pub(super) error: i32,
    /// Answer of `getpeername`: address and port in network order.
    pub(super) peer: u32,
    pub(super) peer_port: u16,
    /// Own port, network order.
    pub(super) local_port: u16,
}

/// The child process; killed and waited for when dropped.
pub(super) struct Child {
    pidfd: OwnedFd,
}

impl Child {
    pub(super) fn start(
        cgroup: &OwnedFd,
        parents: &OwnedFd,
        childs: &OwnedFd,
        target: Ipv4Addr,
    ) -> io::Result<Self> {
        let mut pidfd: libc::c_int = -1;
        // SAFETY: all-zero is a valid value of this type made of integers.
        let mut arguments: libc::clone_args = unsafe { mem::zeroed() };
        // No exit signal: the agent's handling of its own children is not
        // disturbed.
        arguments.flags = (libc::CLONE_PIDFD | libc::CLONE_NEWNET) as u64 | CLONE_INTO_CGROUP;
        arguments.pidfd = (&raw mut pidfd).expose_provenance() as u64;
        arguments.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
        let (parents, childs) = (parents.as_raw_fd(), childs.as_raw_fd());
        // What the child has to enter itself; negative: it is there.
        let mut enter = -1;
        // SAFETY: without CLONE_VM this is a fork. The child runs `child`
        // alone, which calls nothing but system calls and never returns.
        let mut pid = unsafe {
            libc::syscall(
                libc::SYS_clone3,
                &raw mut arguments,
                size_of::<libc::clone_args>(),
            )
        };
        // systemd's RestrictNamespaces= lets nobody call it, since a filter
        // cannot look at its flags.
        if pid < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ENOSYS) {
            enter = cgroup.as_raw_fd();
            // SAFETY: as above. The descriptor goes to the third argument.
            pid = unsafe {
                libc::syscall(
                    libc::SYS_clone,
                    libc::CLONE_PIDFD | libc::CLONE_NEWNET,
                    0,
                    &raw mut pidfd,
                    0,
                    0,
                )
            };
        }
        match pid {
            0 => {
                // SAFETY: this is the child, which has these descriptors.
                unsafe { child(parents, childs, enter, target) }
            }
            pid if pid < 0 => Err(io::Error::last_os_error()),
            _ => {
                // SAFETY: the kernel made this descriptor for us.
                let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
                Ok(Self { pidfd })
            }
        }
    }
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// `AF_INET` and `IFF_UP` in the types of the structures that hold them.
const AF_INET: libc::sa_family_t = 2;
const IFF_UP: libc::c_short = 1;

impl Drop for Child {
    fn drop(&mut self) {
        let fd = self.pidfd.as_raw_fd();
        // SAFETY: plain system calls on our own descriptor; `waitid` may be
        // given no place for its answer. __WALL: the child has no exit signal.
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                fd,
                libc::SIGKILL,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            );
            libc::syscall(
                libc::SYS_waitid,
                libc::P_PIDFD,
                fd,
                std::ptr::null_mut::<libc::siginfo_t>(),
                libc::WEXITED | libc::__WALL,
                std::ptr::null_mut::<libc::rusage>(),
            );
        }
    }
}

/// The child's whole life. It is a copy of one thread of a process with many,
/// so it must not allocate, lock or unwind.
///
/// # Safety
/// Only for the child of a fork, with two descriptors that it has.
unsafe fn child(
    parents: libc::c_int,
    channel: libc::c_int,
    cgroup: libc::c_int,
    target: Ipv4Addr,
) -> ! {
    // SAFETY: system calls with pointers to locals of the sizes given.
    unsafe {
        // Else the channel would never end when the agent dies.
        libc::close(parents);
        let mut ready = Ready {
            netns: 0,
            error: 0,
            port: 0,
            padding: 0,
        };
        let listener = if cgroup >= 0 && !join(cgroup) {
            -1
        } else {
            listen(&mut ready)
        };
        if listener < 0 {
            ready.error = *libc::__errno_location();
        }
        libc::write(channel, (&raw const ready).cast(), size_of::<Ready>());
        let mut go = 0_u8;
        if listener >= 0 && libc::read(channel, (&raw mut go).cast(), 1) == 1 {
            let report = dial(target);
            libc::write(channel, (&raw const report).cast(), size_of::<Report>());
            // Stay until the agent has read the record and lets go.
            libc::read(channel, (&raw mut go).cast(), 1);
        }
        libc::_exit(0)
    }
}

/// Enters a cgroup. False: see `errno`.
///
/// # Safety
/// As [`child`].
unsafe fn join(cgroup: libc::c_int) -> bool {
    // SAFETY: as in `child`; the strings are of the lengths given.
    unsafe {
        let members = libc::openat(cgroup, c"cgroup.procs".as_ptr(), libc::O_WRONLY);
        members >= 0
            && libc::write(members, c"0".as_ptr().cast(), 1) == 1
            && libc::close(members) == 0
    }
}

/// Brings loopback up and listens on it. Negative: see `errno`.
///
/// # Safety
/// As [`child`].
unsafe fn listen(ready: &mut Ready) -> libc::c_int {
    // SAFETY: as in `child`.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
        if socket < 0 {
            return -1;
        }
        let mut request: libc::ifreq = mem::zeroed();
        request.ifr_name[0] = b'l'.cast_signed();
        request.ifr_name[1] = b'o'.cast_signed();
        request.ifr_ifru.ifru_flags = IFF_UP;
        if libc::ioctl(socket, libc::SIOCSIFFLAGS as _, &raw const request) < 0 {
            return -1;
        }
        let mut address = socket_address(Ipv4Addr::LOCALHOST, 0);
        let mut length = ADDRESS_LENGTH;
        if libc::bind(socket, (&raw const address).cast(), length) < 0
            || libc::listen(socket, 1) < 0
            || libc::getsockname(socket, (&raw mut address).cast(), &raw mut length) < 0
        {
            return -1;
        }
        ready.port = u16::from_be(address.sin_port);
        match sys::netns_cookie(BorrowedFd::borrow_raw(socket)) {
            Ok(cookie) => ready.netns = cookie,
            Err(_) => return -1,
        }
        socket
    }
}

/// Dials a reserved address, as an application would.
///
/// # Safety
/// As [`child`].
unsafe fn dial(target: Ipv4Addr) -> Report {
    let mut report = Report {
        error: 0,
        peer: 0,
        peer_port: 0,
        local_port: 0,
    };
    // SAFETY: as in `child`.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
        let address = socket_address(target, PORT);
        if socket < 0 || libc::connect(socket, (&raw const address).cast(), ADDRESS_LENGTH) < 0 {
            report.error = *libc::__errno_location();
            return report;
        }
        let mut name = address;
        let mut length = ADDRESS_LENGTH;
        if libc::getpeername(socket, (&raw mut name).cast(), &raw mut length) == 0 {
            report.peer = name.sin_addr.s_addr;
            report.peer_port = name.sin_port;
        }
        length = ADDRESS_LENGTH;
        if libc::getsockname(socket, (&raw mut name).cast(), &raw mut length) == 0 {
            report.local_port = name.sin_port;
        }
    }
    report
}

const ADDRESS_LENGTH: libc::socklen_t = 16;
const _: () = assert!(size_of::<libc::sockaddr_in>() == 16);

fn socket_address(ip: Ipv4Addr, port: u16) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: AF_INET,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from(ip).to_be(),
        },
        sin_zero: [0; 8],
    }
}

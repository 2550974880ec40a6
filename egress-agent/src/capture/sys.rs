//! The system calls of this room that no library has a safe function for:
//! bpf(2) on maps from several threads at once, on links and pins, and a socket
//! option.
#![allow(unsafe_code, reason = "raw bpf(2) and getsockopt(2) calls")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

pub(super) use self::links::{attached, cgroup_of, detach, link, pin, pinned, replace_program};
pub(super) use self::maps::{PerCpu, Table, map_sizes, mark_socket, zeroed};

mod links;
mod maps;

const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;

const SO_NETNS_COOKIE: libc::c_int = 71;

fn address<T>(value: *const T) -> u64 {
    value.expose_provenance() as u64
}

/// One bpf(2) call.
///
/// # Safety
/// `attributes` must be what `command` expects, and every pointer in it good
/// for the accesses that the command makes.
unsafe fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads and writes `size` bytes at `attributes`; the
    // rest is the caller's promise.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// The part that `BPF_OBJ_GET_INFO_BY_FD` reads.
#[repr(C)]
#[derive(Default)]
struct InfoAttributes {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// Fills `info` with what the kernel tells about an object.
fn info<T>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let mut attributes = InfoAttributes {
        bpf_fd: object.as_raw_fd().cast_unsigned(),
        info_len: u32::try_from(size_of::<T>()).map_err(io::Error::other)?,
        info: address(&raw const *info),
    };
    // SAFETY: the kernel writes at most `info_len` bytes, the size of `info`,
    // which is made of integers.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes) }.map(drop)
}

/// `SO_NETNS_COOKIE` of a socket (since Linux 5.14).
///
/// # Errors
/// What `getsockopt(2)` answers.
pub(super) fn netns_cookie(socket: impl AsFd) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length: libc::socklen_t = 8;
    // SAFETY: the kernel writes at most `length` bytes, the size of `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(cookie)
}

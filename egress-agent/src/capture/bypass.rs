//! The mark that lets the agent's own sockets pass, and the namespace cookie of
//! a socket: two small system calls that no library has a safe function for.
#![allow(unsafe_code, reason = "raw bpf(2) and getsockopt(2) calls")]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use egress_common::{SOCKET_BYPASS, SocketState};

/// Marks sockets through the descriptor of the socket-storage map `SOCKETS`. A
/// workload cannot forge the mark, since it does not have the descriptor.
#[derive(Clone, Debug)]
pub struct Bypass {
    map: Arc<OwnedFd>,
}

/// The part of `union bpf_attr` that `BPF_MAP_UPDATE_ELEM` reads.
#[repr(C)]
#[derive(Default)]
struct MapElement {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const SO_NETNS_COOKIE: libc::c_int = 71;

impl Bypass {
    /// Takes the descriptor of the map `SOCKETS`.
    pub fn new(map: OwnedFd) -> Self {
        Self { map: Arc::new(map) }
    }

    /// Marks one socket.
    ///
    /// # Errors
    /// What `bpf(2)` answers: no memory, or a descriptor that is no socket.
    pub fn mark(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        // SAFETY: all-zero bytes are a valid value of a type made of integers.
        let mut state: SocketState = unsafe { mem::zeroed() };
        state.kind = SOCKET_BYPASS;
        let fd = socket.as_raw_fd();
        let element = MapElement {
            map_fd: self.map.as_raw_fd().cast_unsigned(),
            key: (&raw const fd).expose_provenance() as u64,
            value: (&raw const state).expose_provenance() as u64,
            ..MapElement::default()
        };
        // SAFETY: the kernel reads `size` bytes of `element`, and through it
        // four bytes of key and one `SocketState`; all live until the call
        // returns, and it writes to none of them.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_MAP_UPDATE_ELEM,
                &raw const element,
                size_of::<MapElement>(),
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// `SO_NETNS_COOKIE` of a socket (since Linux 5.14).
///
/// # Errors
/// What `getsockopt(2)` answers.
pub(super) fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length: libc::socklen_t = 8;
    // SAFETY: the kernel writes at most `length` bytes, the size of `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
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

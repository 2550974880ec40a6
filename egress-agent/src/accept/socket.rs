//! Small things that sockets need and no library offers.
#![allow(unsafe_code, reason = "one ioctl that rustix has no function for")]

use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{self, Getter, Opcode};
use tokio::net::TcpStream;

/// `SIOCOUTQ` (include/uapi/linux/sockios.h), the same number as `TIOCOUTQ`.
#[expect(
    clippy::cast_possible_truncation,
    reason = "numbers of ioctls have 32 bits"
)]
const SIOCOUTQ: Opcode = libc::TIOCOUTQ as Opcode;

/// Closes with a reset, so that the other side learns that this was no
/// orderly end. What has not been sent is thrown away.
pub fn reset(stream: TcpStream) {
    // Fails only on a descriptor that is no socket.
    let _ = stream.set_zero_linger();
    drop(stream);
}

/// Bytes that the peer has not acknowledged yet.
///
/// # Errors
/// What `ioctl(2)` answers.
pub fn unacknowledged(socket: impl AsFd) -> io::Result<usize> {
    // SAFETY: SIOCOUTQ writes one `int` (tcp(7)), which is what the getter
    // provides room for.
    let bytes: libc::c_int =
        unsafe { ioctl::ioctl(socket, Getter::<SIOCOUTQ, libc::c_int>::new())? };
    Ok(usize::try_from(bytes).unwrap_or(0))
}

//! Datagrams with the local address that they came to, and answers that leave
//! from a chosen one: `IP_PKTINFO` (ip(7)), which no library that we use has a
//! safe function for.
#![allow(unsafe_code, reason = "raw setsockopt(2), recvmsg(2), sendmsg(2)")]

mod batch;

pub use batch::{Answers, Batch, COUNT, LENGTH, Received};

use std::io;
use std::mem;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

/// Room for one control message with an `in_pktinfo`, aligned as they are.
#[repr(C)]
#[derive(Clone, Copy)]
struct Control {
    header: libc::cmsghdr,
    info: libc::in_pktinfo,
    padding: u32,
}

const CONTROL_LENGTH: usize = size_of::<libc::cmsghdr>() + size_of::<libc::in_pktinfo>();

/// Asks the kernel to say where each datagram came to. IPv4 sockets only.
///
/// # Errors
/// What `setsockopt(2)` answers.
pub fn enable(socket: &impl AsFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads four bytes of `on`.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_PKTINFO,
            (&raw const on).cast(),
            libc::socklen_t::try_from(size_of_val(&on)).unwrap_or_default(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sends one datagram from the local address `from`.
///
/// # Errors
/// What `sendmsg(2)` answers.
pub fn send(
    socket: &impl AsFd,
    datagram: &[u8],
    from: Ipv4Addr,
    to: SocketAddrV4,
) -> io::Result<()> {
    // SAFETY: all-zero bytes are valid values of these types, which are made
    // of integers and raw pointers.
    let (mut name, mut control, mut message) = unsafe {
        (
            mem::zeroed::<libc::sockaddr_in>(),
            mem::zeroed::<Control>(),
            mem::zeroed::<libc::msghdr>(),
        )
    };
    name.sin_family = libc::sa_family_t::try_from(libc::AF_INET).unwrap_or_default();
    name.sin_port = to.port().to_be();
    name.sin_addr.s_addr = u32::from_ne_bytes(to.ip().octets());
    control.header.cmsg_len = CONTROL_LENGTH;
    control.header.cmsg_level = libc::IPPROTO_IP;
    control.header.cmsg_type = libc::IP_PKTINFO;
    control.info.ipi_spec_dst.s_addr = u32::from_ne_bytes(from.octets());
    let mut vector = libc::iovec {
        // sendmsg only reads it; the type is shared with recvmsg.
        iov_base: ptr::from_ref(datagram).cast_mut().cast(),
        iov_len: datagram.len(),
    };
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = name_length();
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control>();
    // SAFETY: the kernel reads name, datagram and control, which are live and
    // as long as the message says.
    let sent = unsafe {
        libc::sendmsg(
            socket.as_fd().as_raw_fd(),
            &raw const message,
            libc::MSG_NOSIGNAL,
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn name_length() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<libc::sockaddr_in>()).unwrap_or_default()
}

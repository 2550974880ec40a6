//! Datagrams with the local address that they came to, and answers that leave
//! from a chosen one: `IP_PKTINFO` (ip(7)), which no library that we use has a
//! safe function for.
#![allow(unsafe_code, reason = "raw setsockopt(2), recvmsg(2), sendmsg(2)")]

use std::io;
use std::mem;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

/// A datagram that was received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Datagram {
    /// Bytes of it that are in the buffer.
    pub length: usize,
    /// It was longer than the buffer.
    pub truncated: bool,
    /// Where it came from.
    pub source: SocketAddrV4,
    /// The address in its header.
    pub destination: Ipv4Addr,
}

/// Room for one control message with an `in_pktinfo`, aligned as they are.
#[repr(C)]
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

/// Receives one datagram on a socket that was [`enable`]d.
///
/// # Errors
/// What `recvmsg(2)` answers, and `InvalidData` when the kernel did not say
/// where the datagram came to.
pub fn receive(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<Datagram> {
    // SAFETY: all-zero bytes are valid values of these types, which are made
    // of integers and raw pointers.
    let (mut name, mut control, mut message) = unsafe {
        (
            mem::zeroed::<libc::sockaddr_in>(),
            mem::zeroed::<Control>(),
            mem::zeroed::<libc::msghdr>(),
        )
    };
    let mut vector = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = name_length();
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control>();
    // SAFETY: name, buffer and control are live, writable and as long as the
    // message says, and nothing else refers to them during the call.
    let length = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, 0) };
    let Ok(length) = usize::try_from(length) else {
        return Err(io::Error::last_os_error());
    };
    // Only one kind of control message was asked for, and it fits.
    let told = message.msg_controllen >= CONTROL_LENGTH
        && control.header.cmsg_level == libc::IPPROTO_IP
        && control.header.cmsg_type == libc::IP_PKTINFO
        && message.msg_namelen == name_length();
    if !told {
        let text = "a datagram without IP_PKTINFO";
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(Datagram {
        length,
        truncated: message.msg_flags & libc::MSG_TRUNC != 0,
        source: SocketAddrV4::new(address(name.sin_addr), u16::from_be(name.sin_port)),
        destination: address(control.info.ipi_addr),
    })
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
    // SAFETY: as in `receive`.
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

fn address(raw: libc::in_addr) -> Ipv4Addr {
    Ipv4Addr::from(raw.s_addr.to_ne_bytes())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

    use std::net::{SocketAddr, UdpSocket};

    use super::*;

    #[test]
    fn tells_the_destination_and_answers_from_it() {
        let server = UdpSocket::bind("0.0.0.0:0").unwrap();
        enable(&server).unwrap();
        let port = server.local_addr().unwrap().port();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let meant: Ipv4Addr = "127.83.1.7".parse().unwrap();
        client.send_to(b"question", (meant, port)).unwrap();
        let mut buffer = [0; 64];
        let datagram = receive(&server, &mut buffer).unwrap();
        assert_eq!(&buffer[..datagram.length], b"question");
        assert_eq!(datagram.destination, meant);
        assert_eq!(
            SocketAddr::V4(datagram.source),
            client.local_addr().unwrap()
        );
        assert!(!datagram.truncated);

        send(&server, b"answer", datagram.destination, datagram.source).unwrap();
        let (length, from) = client.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"answer");
        assert_eq!(from, SocketAddr::from((meant, port)));
    }

    #[test]
    fn says_that_a_datagram_did_not_fit_and_that_none_is_there() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        enable(&server).unwrap();
        server.set_nonblocking(true).unwrap();
        let error = receive(&server, &mut [0; 4]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client
            .send_to(b"question", server.local_addr().unwrap())
            .unwrap();
        let datagram = receive(&server, &mut [0; 4]).unwrap();
        assert_eq!((datagram.length, datagram.truncated), (4, true));
    }

    #[test]
    fn needs_to_be_enabled() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client
            .send_to(b"question", server.local_addr().unwrap())
            .unwrap();
        let error = receive(&server, &mut [0; 64]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}

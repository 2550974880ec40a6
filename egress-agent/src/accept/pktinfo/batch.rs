//! Many datagrams with one system call: recvmmsg(2), sendmmsg(2).
#![allow(unsafe_code, reason = "raw recvmmsg(2) and sendmmsg(2)")]

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use super::{CONTROL_LENGTH, Control};

/// Most datagrams of one call.
pub const COUNT: usize = 32;
/// Bytes that are kept of a datagram.
pub const LENGTH: usize = 4096;

/// An address of either family.
#[repr(C)]
#[derive(Clone, Copy)]
union Name {
    family: libc::sa_family_t,
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

/// A datagram that was received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Received<'a> {
    /// What it holds, or the beginning of it.
    pub bytes: &'a [u8],
    /// It was longer than [`LENGTH`].
    pub truncated: bool,
    /// Where it came from.
    pub source: SocketAddr,
    /// The IPv4 address in its header, if the socket was
    /// [enabled](super::enable) to tell.
    pub destination: Option<Ipv4Addr>,
}

/// Room for datagrams.
pub struct Batch {
    bytes: Box<[u8]>,
    names: [Name; COUNT],
    controls: [Control; COUNT],
    heads: [Head; COUNT],
    count: usize,
}

/// What the kernel said of one.
#[derive(Clone, Copy, Default)]
struct Head {
    length: usize,
    told: bool,
    truncated: bool,
}

impl Default for Batch {
    fn default() -> Self {
        // SAFETY: all-zero bytes are valid values of these types, which are
        // made of integers.
        let (names, controls) = unsafe { (mem::zeroed(), mem::zeroed()) };
        Self {
            bytes: vec![0; COUNT * LENGTH].into_boxed_slice(),
            names,
            controls,
            heads: [Head::default(); COUNT],
            count: 0,
        }
    }
}

impl Batch {
    /// Takes what waits on a socket, at most [`COUNT`] datagrams, and says how
    /// many those were. Never waits.
    ///
    /// # Errors
    /// What `recvmmsg(2)` answers; `WouldBlock` when there is nothing.
    pub fn receive(&mut self, socket: &impl AsFd) -> io::Result<usize> {
        self.count = 0;
        // SAFETY: all-zero bytes are valid values of these types, which are
        // made of integers and raw pointers.
        let (mut vectors, mut messages) = unsafe {
            (
                mem::zeroed::<[libc::iovec; COUNT]>(),
                mem::zeroed::<[libc::mmsghdr; COUNT]>(),
            )
        };
        let rooms = self.bytes.chunks_exact_mut(LENGTH);
        let places = self.names.iter_mut().zip(&mut self.controls);
        for (((message, vector), room), (name, control)) in
            messages.iter_mut().zip(&mut vectors).zip(rooms).zip(places)
        {
            vector.iov_base = room.as_mut_ptr().cast();
            vector.iov_len = room.len();
            let header = &mut message.msg_hdr;
            header.msg_name = ptr::from_mut(name).cast();
            header.msg_namelen = length_of::<Name>();
            header.msg_iov = vector;
            header.msg_iovlen = 1;
            header.msg_control = ptr::from_mut(control).cast();
            header.msg_controllen = size_of::<Control>();
        }
        // SAFETY: names, buffers and control messages are live, writable, as
        // long as their headers say, each used by one header, and nothing else
        // refers to them during the call.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_fd().as_raw_fd(),
                messages.as_mut_ptr(),
                length(COUNT),
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        let Ok(count) = usize::try_from(count) else {
            return Err(io::Error::last_os_error());
        };
        for ((head, message), control) in self.heads.iter_mut().zip(&messages).zip(&self.controls) {
            let header = &message.msg_hdr;
            *head = Head {
                length: usize::try_from(message.msg_len).unwrap_or(0).min(LENGTH),
                // Only one kind of control message was asked for, and it fits.
                told: header.msg_controllen >= CONTROL_LENGTH
                    && control.header.cmsg_level == libc::IPPROTO_IP
                    && control.header.cmsg_type == libc::IP_PKTINFO,
                truncated: header.msg_flags & libc::MSG_TRUNC != 0,
            };
        }
        self.count = count.min(COUNT);
        Ok(self.count)
    }

    /// One of those that were received last.
    pub fn get(&self, index: usize) -> Option<Received<'_>> {
        if index >= self.count {
            return None;
        }
        let head = self.heads.get(index)?;
        let start = index * LENGTH;
        let destination = head.told.then(|| {
            let raw = self.controls[index].info.ipi_addr;
            Ipv4Addr::from(raw.s_addr.to_ne_bytes())
        });
        Some(Received {
            bytes: self.bytes.get(start..start + head.length)?,
            truncated: head.truncated,
            source: self.names[index].address()?,
            destination,
        })
    }
}

impl Name {
    fn address(&self) -> Option<SocketAddr> {
        // SAFETY: the union was zeroed, so all of it is initialised, and every
        // field takes any bytes.
        unsafe {
            match libc::c_int::from(self.family) {
                libc::AF_INET => Some(SocketAddr::new(
                    IpAddr::V4(Ipv4Addr::from(self.v4.sin_addr.s_addr.to_ne_bytes())),
                    u16::from_be(self.v4.sin_port),
                )),
                libc::AF_INET6 => Some(SocketAddr::V6(SocketAddrV6::new(
                    Ipv6Addr::from(self.v6.sin6_addr.s6_addr),
                    u16::from_be(self.v6.sin6_port),
                    self.v6.sin6_flowinfo,
                    self.v6.sin6_scope_id,
                ))),
                _ => None,
            }
        }
    }

    /// With its length.
    fn of(address: SocketAddr) -> (Self, libc::socklen_t) {
        // SAFETY: all-zero bytes are a valid value of integers.
        let mut name: Self = unsafe { mem::zeroed() };
        match address {
            SocketAddr::V4(v4) => {
                name.v4 = libc::sockaddr_in {
                    sin_family: family(libc::AF_INET),
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr {
                        s_addr: u32::from_ne_bytes(v4.ip().octets()),
                    },
                    sin_zero: [0; 8],
                };
                (name, length_of::<libc::sockaddr_in>())
            }
            SocketAddr::V6(v6) => {
                name.v6 = libc::sockaddr_in6 {
                    sin6_family: family(libc::AF_INET6),
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr {
                        s6_addr: v6.ip().octets(),
                    },
                    sin6_scope_id: v6.scope_id(),
                };
                (name, length_of::<libc::sockaddr_in6>())
            }
        }
    }
}

/// Datagrams to be sent together.
#[derive(Default)]
pub struct Answers {
    bytes: Vec<u8>,
    list: Vec<Answer>,
}

#[derive(Clone)]
struct Answer {
    bytes: Range<usize>,
    from: Option<Ipv4Addr>,
    to: SocketAddr,
}

impl Answers {
    /// Adds a datagram to `to` with what `write` appends, unless it returns
    /// false. It leaves from the socket's own address, or from `from`.
    pub fn add(
        &mut self,
        from: Option<Ipv4Addr>,
        to: SocketAddr,
        write: impl FnOnce(&mut Vec<u8>) -> bool,
    ) -> bool {
        let start = self.bytes.len();
        if !write(&mut self.bytes) {
            self.bytes.truncate(start);
            return false;
        }
        let bytes = start..self.bytes.len();
        self.list.push(Answer { bytes, from, to });
        true
    }

    /// Sends all and forgets them. One that cannot be sent is lost, as
    /// datagrams are; those for which the socket has no room are given to
    /// `later`. Says how many were lost.
    pub fn send(
        &mut self,
        socket: &impl AsFd,
        mut later: impl FnMut(&[u8], Option<Ipv4Addr>, SocketAddr),
    ) -> usize {
        let (mut sent, mut lost) = (0, 0);
        while let Some(rest) = self.list.get(sent..).filter(|rest| !rest.is_empty()) {
            match self.send_some(socket, rest) {
                Ok(count) => sent += count.max(1),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    for answer in rest {
                        later(&self.bytes[answer.bytes.clone()], answer.from, answer.to);
                    }
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // It is about the first of them.
                Err(_) => {
                    lost += 1;
                    sent += 1;
                }
            }
        }
        self.list.clear();
        self.bytes.clear();
        lost
    }

    fn send_some(&self, socket: &impl AsFd, list: &[Answer]) -> io::Result<usize> {
        // SAFETY: all-zero bytes are valid values of these types, which are
        // made of integers and raw pointers.
        let (mut names, mut controls, mut vectors, mut messages) = unsafe {
            (
                mem::zeroed::<[Name; COUNT]>(),
                mem::zeroed::<[Control; COUNT]>(),
                mem::zeroed::<[libc::iovec; COUNT]>(),
                mem::zeroed::<[libc::mmsghdr; COUNT]>(),
            )
        };
        let places = names.iter_mut().zip(&mut controls);
        let headers = messages.iter_mut().zip(&mut vectors).zip(places);
        let mut count = 0;
        for (answer, ((message, vector), (name, control))) in list.iter().zip(headers) {
            let bytes = &self.bytes[answer.bytes.clone()];
            // sendmmsg only reads it; the type is shared with recvmmsg.
            vector.iov_base = bytes.as_ptr().cast_mut().cast();
            vector.iov_len = bytes.len();
            let header = &mut message.msg_hdr;
            (*name, header.msg_namelen) = Name::of(answer.to);
            header.msg_name = ptr::from_mut(name).cast();
            header.msg_iov = vector;
            header.msg_iovlen = 1;
            if let (Some(from), SocketAddr::V4(_)) = (answer.from, answer.to) {
                control.header.cmsg_len = CONTROL_LENGTH;
                control.header.cmsg_level = libc::IPPROTO_IP;
                control.header.cmsg_type = libc::IP_PKTINFO;
                control.info.ipi_spec_dst.s_addr = u32::from_ne_bytes(from.octets());
                header.msg_control = ptr::from_mut(control).cast();
                header.msg_controllen = size_of::<Control>();
            }
            count += 1;
        }
        // SAFETY: the kernel reads names, datagrams and control messages, which
        // are live and as long as their headers say, and writes the lengths
        // that were sent into the headers.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_fd().as_raw_fd(),
                messages.as_mut_ptr(),
                length(count),
                libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

fn family(family: libc::c_int) -> libc::sa_family_t {
    libc::sa_family_t::try_from(family).unwrap_or_default()
}

fn length(count: usize) -> libc::c_uint {
    libc::c_uint::try_from(count).unwrap_or_default()
}

fn length_of<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::net::UdpSocket;

    use super::*;
    use crate::accept::pktinfo::{enable, send};

    #[test]
    fn tells_destinations_and_answers_from_them() {
        let server = UdpSocket::bind("0.0.0.0:0").unwrap();
        enable(&server).unwrap();
        let port = server.local_addr().unwrap().port();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let meant = [Ipv4Addr::new(127, 83, 1, 7), Ipv4Addr::new(127, 83, 1, 8)];
        client.send_to(b"first", (meant[0], port)).unwrap();
        client.send_to(b"second", (meant[1], port)).unwrap();
        let mut batch = Batch::default();
        assert_eq!(batch.receive(&server).unwrap(), 2);
        let mut answers = Answers::default();
        for (index, expected) in [b"first".as_slice(), b"second"].into_iter().enumerate() {
            let received = batch.get(index).unwrap();
            assert_eq!(received.bytes, expected);
            assert_eq!(received.destination, Some(meant[index]));
            assert_eq!(received.source, client.local_addr().unwrap());
            assert!(!received.truncated);
            let added = answers.add(received.destination, received.source, |out| {
                out.extend_from_slice(received.bytes);
                true
            });
            assert!(added);
            let none = answers.add(None, received.source, |out| {
                out.push(0);
                false
            });
            assert!(!none);
        }
        assert_eq!(batch.get(2), None);
        assert_eq!(answers.send(&server, |_, _, _| {}), 0);
        let mut buffer = [0; 64];
        for (expected, from) in [b"first".as_slice(), b"second"].into_iter().zip(meant) {
            let (length, source) = client.recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], expected);
            assert_eq!(source, SocketAddr::from((from, port)));
        }
        send(
            &server,
            b"one",
            meant[1],
            match client.local_addr().unwrap() {
                SocketAddr::V4(address) => address,
                SocketAddr::V6(_) => return,
            },
        )
        .unwrap();
        let (length, source) = client.recv_from(&mut buffer).unwrap();
        assert_eq!(
            (&buffer[..length], source.ip()),
            (&b"one"[..], meant[1].into())
        );
    }

    #[test]
    fn more_than_one_call_holds_is_left_for_the_next() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        for number in 0..u8::try_from(COUNT + 3).unwrap() {
            client
                .send_to(&[number], server.local_addr().unwrap())
                .unwrap();
        }
        let mut batch = Batch::default();
        assert_eq!(batch.receive(&server).unwrap(), COUNT);
        assert_eq!(batch.get(COUNT - 1).unwrap().bytes, [31]);
        assert_eq!(batch.receive(&server).unwrap(), 3);
        assert_eq!(batch.get(0).unwrap().bytes, [32]);
        assert_eq!(batch.get(0).unwrap().destination, None, "it was not asked");
        assert_eq!(batch.get(3), None);
        let error = batch.receive(&server).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(batch.get(0), None);
    }

    #[test]
    fn serves_ipv6_and_says_what_did_not_fit() {
        let server = UdpSocket::bind("[::1]:0").unwrap();
        let client = UdpSocket::bind("[::1]:0").unwrap();
        client
            .send_to(&[7; LENGTH + 1], server.local_addr().unwrap())
            .unwrap();
        let mut batch = Batch::default();
        assert_eq!(batch.receive(&server).unwrap(), 1);
        let received = batch.get(0).unwrap();
        assert_eq!((received.bytes.len(), received.truncated), (LENGTH, true));
        assert_eq!(received.source, client.local_addr().unwrap());
        let mut answers = Answers::default();
        // The first cannot be sent, and does not hold the second up.
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 9));
        for to in [nowhere, received.source] {
            answers.add(None, to, |out| {
                out.extend_from_slice(b"answer");
                true
            });
        }
        assert_eq!(answers.send(&server, |_, _, _| {}), 1);
        let mut buffer = [0; 64];
        let (length, _) = client.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"answer");
    }
}

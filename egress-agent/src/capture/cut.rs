//! Ends direct connections whose endpoint is no more: they are the kernel's
//! alone, so the kernel is asked to abort them (`SOCK_DESTROY` of sock_diag(7),
//! `ss -K`). Which sockets those are, the storage of the direct path on each
//! of them says, which a dump of sockets can carry (since Linux 5.9): no
//! connection that another program opened to the same address is touched.
//!
//! Needs a kernel with `CONFIG_INET_DIAG_DESTROY`.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use egress_common::direct::{DirectSocket, STAGE_ESTABLISHED};
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
};

use super::kernel::Kernel;
use super::sockets::NetNs;

/// Where direct connections went, and the number of the endpoint there.
pub type Target = (SocketAddr, u64);

/// Limit on one answer of the kernel, which does not wait for anybody.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(5);
/// The kernel fills at most 32 KiB at a time (`NLMSG_GOODSIZE`, `af_netlink`).
const ROOM: usize = 64 * 1024;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
/// The type of an attribute without its flags.
const NLA_TYPE: u16 = 0x3fff;
const NLA_F_NESTED: u16 = 0x8000;

const INET_DIAG_REQ_SK_BPF_STORAGES: u16 = 2;
const SK_DIAG_BPF_STORAGE_REQ_MAP_FD: u16 = 1;
const INET_DIAG_SK_BPF_STORAGES: u16 = 20;
const SK_DIAG_BPF_STORAGE: u16 = 1;
const SK_DIAG_BPF_STORAGE_MAP_VALUE: u16 = 3;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
/// Every state in which there is a connection: ESTABLISHED, FIN_WAIT1,
/// FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING (`net/tcp_states.h`).
const STATES: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct inet_diag_sockid`.
const ID: usize = 48;
/// `struct inet_diag_msg`.
const MESSAGE: usize = 4 + ID + 20;

impl Kernel {
    /// Aborts the direct connections to endpoints in the given network
    /// namespaces, and says how many those were. Blocks.
    ///
    /// # Errors
    /// `Unsupported` where the kernel cannot abort connections; else what
    /// netlink answers.
    pub fn cut_direct(&self, namespaces: &[NetNs], targets: &[Target]) -> io::Result<usize> {
        let map = self.maps.direct_sockets.as_fd();
        let mut cut = 0;
        for netns in namespaces {
            // One that is gone has no connections.
            let Ok(netlink) = netns.enter(open) else {
                continue;
            };
            cut += cut_in(&netlink, map, targets)?;
        }
        Ok(cut)
    }
}

fn open() -> io::Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    set_socket_timeout(&socket, Timeout::Recv, Some(LIMIT))?;
    Ok(socket)
}

fn cut_in(netlink: &OwnedFd, map: BorrowedFd<'_>, targets: &[Target]) -> io::Result<usize> {
    let mut found = Vec::new();
    let ports: HashSet<u16> = targets.iter().map(|(address, _)| address.port()).collect();
    for port in ports {
        // IPv4-mapped addresses are IPv6 sockets.
        for family in [AF_INET, AF_INET6] {
            send(netlink, &dump(family, port, map))?;
            receive(netlink, |bytes| found.extend(listed(bytes, targets))).map_err(|error| {
                match error.kind() {
                    // No `tcp_diag` in this kernel, nor a module of it.
                    io::ErrorKind::NotFound => io::ErrorKind::Unsupported.into(),
                    _ => error,
                }
            })?;
        }
    }
    let mut cut = 0;
    for (family, id) in found {
        send(netlink, &destroy(family, &id))?;
        match receive(netlink, |_| {}) {
            Ok(()) => cut += 1,
            // It ended by itself.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(cut)
}

fn send(netlink: &OwnedFd, request: &[u8]) -> io::Result<()> {
    sendto(
        netlink,
        request,
        SendFlags::empty(),
        &SocketAddrNetlink::new(0, 0),
    )?;
    Ok(())
}

/// Takes answers until the last, or the acknowledgement.
fn receive(netlink: &OwnedFd, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let mut room = vec![0; ROOM];
    loop {
        let (length, _) = recv(netlink, &mut room[..], RecvFlags::empty())?;
        let mut rest = room.get(..length).unwrap_or_default();
        while let Some((kind, body, after)) = message(rest) {
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return result(body),
                _ => take(body),
            }
            rest = after;
        }
    }
}

/// `struct nlmsgerr`; 0 is an acknowledgement.
fn result(body: &[u8]) -> io::Result<()> {
    match body.first_chunk().map(|error| i32::from_ne_bytes(*error)) {
        Some(0) => Ok(()),
        // EOPNOTSUPP is of kind `Unsupported`.
        Some(error) => Err(io::Error::from_raw_os_error(-error)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Type and body of the first message, and what follows.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
    let kind = u16::from_ne_bytes([*bytes.get(4)?, *bytes.get(5)?]);
    let body = bytes.get(HEADER..length)?;
    Some((
        kind,
        body,
        bytes.get(length.next_multiple_of(4)..).unwrap_or_default(),
    ))
}

/// The attributes in `bytes`.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes([*bytes.get(2)?, *bytes.get(3)?]) & NLA_TYPE;
        let body = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut all = attributes(bytes);
    all.find_map(|(kind, body)| (kind == wanted).then_some(body))
}

/// Family and `struct inet_diag_sockid` of a socket of a dump, if it is one of
/// ours to one of the targets.
fn listed(body: &[u8], targets: &[Target]) -> Option<(u8, [u8; ID])> {
    let family = *body.first()?;
    let id: [u8; ID] = body.get(4..4 + ID)?.try_into().ok()?;
    let port = u16::from_be_bytes([id[2], id[3]]);
    let remote: [u8; 16] = id.get(20..36)?.try_into().ok()?;
    let remote: IpAddr = if family == AF_INET {
        IpAddr::from([remote[0], remote[1], remote[2], remote[3]])
    } else {
        IpAddr::from(remote)
    };
    let remote = SocketAddr::new(remote.to_canonical(), port);
    let storages = attribute(body.get(MESSAGE..)?, INET_DIAG_SK_BPF_STORAGES)?;
    let value = attributes(storages)
        .filter(|(kind, _)| *kind == SK_DIAG_BPF_STORAGE)
        .find_map(|(_, storage)| attribute(storage, SK_DIAG_BPF_STORAGE_MAP_VALUE))?;
    let word = |at: usize| Some(u64::from_ne_bytes(value.get(at..at + 8)?.try_into().ok()?));
    let stage = word(std::mem::offset_of!(DirectSocket, stage))?;
    let endpoint = word(std::mem::offset_of!(DirectSocket, endpoint))?;
    (stage == STAGE_ESTABLISHED && targets.contains(&(remote, endpoint))).then_some((family, id))
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
fn request(kind: u16, flags: u16, family: u8, id: &[u8; ID], attributes: &[u8]) -> Vec<u8> {
    let length = HEADER + 8 + ID + attributes.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(u32::try_from(length).unwrap_or_default().to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    // Sequence number and port: the answers are all for us, in order.
    bytes.extend([0; 8]);
    bytes.extend([family, IPPROTO_TCP, 0, 0]);
    bytes.extend(STATES.to_ne_bytes());
    bytes.extend(id);
    bytes.extend(attributes);
    bytes
}

/// Asks for all connections to a port, with their storage of one map.
fn dump(family: u8, port: u16, map: BorrowedFd<'_>) -> Vec<u8> {
    let mut id = [0; ID];
    id[2..4].copy_from_slice(&port.to_be_bytes());
    let mut storages = Vec::with_capacity(12);
    for word in [12, INET_DIAG_REQ_SK_BPF_STORAGES | NLA_F_NESTED] {
        storages.extend(word.to_ne_bytes());
    }
    for word in [8, SK_DIAG_BPF_STORAGE_REQ_MAP_FD] {
        storages.extend(word.to_ne_bytes());
    }
    storages.extend(map.as_raw_fd().to_ne_bytes());
    request(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family, &id, &storages)
}

/// Aborts one; the cookie in the id says that it is still the same.
fn destroy(family: u8, id: &[u8; ID]) -> Vec<u8> {
    request(SOCK_DESTROY, NLM_F_ACK, family, id, &[])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    fn nested(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(4 + body.len())
            .unwrap()
            .to_ne_bytes()
            .to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// What the kernel says of a socket with this storage.
    fn socket(family: u8, remote: &[u8], port: u16, stage: u64, endpoint: u64) -> Vec<u8> {
        let mut body = vec![0; MESSAGE];
        body[0] = family;
        body[6..8].copy_from_slice(&port.to_be_bytes());
        body[24..24 + remote.len()].copy_from_slice(remote);
        let mut value = vec![0; size_of::<DirectSocket>()];
        value[..8].copy_from_slice(&stage.to_ne_bytes());
        value[8..16].copy_from_slice(&endpoint.to_ne_bytes());
        let mut storage = nested(2, &[1, 0, 0, 0]);
        storage.extend(nested(SK_DIAG_BPF_STORAGE_MAP_VALUE, &value));
        let storages = nested(SK_DIAG_BPF_STORAGE | NLA_F_NESTED, &storage);
        body.extend(nested(8, &[0]));
        body.extend(nested(INET_DIAG_SK_BPF_STORAGES, &storages));
        body
    }

    #[test]
    fn only_established_connections_to_the_endpoint_are_listed() {
        let target = |text: &str| (text.parse().unwrap(), 7);
        let targets = [target("10.0.0.1:80"), target("[2001:db8::1]:80")];
        let v4 = [10, 0, 0, 1];
        let mapped: [u8; 16] = "::ffff:10.0.0.1"
            .parse::<std::net::Ipv6Addr>()
            .unwrap()
            .octets();
        let v6: [u8; 16] = "2001:db8::1"
            .parse::<std::net::Ipv6Addr>()
            .unwrap()
            .octets();
        let is = |body: &[u8]| listed(body, &targets).is_some();
        assert!(is(&socket(AF_INET, &v4, 80, STAGE_ESTABLISHED, 7)));
        assert!(is(&socket(AF_INET6, &mapped, 80, STAGE_ESTABLISHED, 7)));
        assert!(is(&socket(AF_INET6, &v6, 80, STAGE_ESTABLISHED, 7)));
        assert!(!is(&socket(AF_INET, &v4, 81, STAGE_ESTABLISHED, 7)));
        assert!(!is(&socket(AF_INET, &v4, 80, 2, 7)));
        assert!(!is(&socket(AF_INET, &v4, 80, STAGE_ESTABLISHED, 8)));
        assert!(!is(
            &socket(AF_INET, &v4, 80, STAGE_ESTABLISHED, 7)[..MESSAGE]
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = message(&bytes);
            listed(&bytes, &[]);
            let _ = attributes(&bytes).count();
        }
    }
}

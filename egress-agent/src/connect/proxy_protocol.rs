//! The PROXY protocol header (HAProxy's proxy-protocol.txt, versions 1 and 2),
//! sent before any TLS byte.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::policy::model::ProxyProtocol;

const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_PROXY: u8 = 0x21;
const V2_LOCAL: u8 = 0x20;
const V2_TCP4: u8 = 0x11;
const V2_TCP6: u8 = 0x21;

/// The header for a connection from `source` that goes on to `remote`.
///
/// A redirected connection comes from loopback, which says nothing to the
/// service: then the source is our own address towards the service, which is
/// the workload's (the socket is made in its namespace), with the
/// application's port. The destination is the endpoint's: a virtual address
/// would say nothing either.
pub(super) fn header(
    version: ProxyProtocol,
    source: SocketAddr,
    local: Option<SocketAddr>,
    remote: SocketAddr,
) -> Vec<u8> {
    let remote_ip = remote.ip().to_canonical();
    let mut ip = source.ip().to_canonical();
    if ip.is_loopback() || ip.is_ipv4() != remote_ip.is_ipv4() {
        match local {
            Some(local) => ip = local.ip().to_canonical(),
            None => return local_header(version),
        }
    }
    let (from, to) = (source.port(), remote.port());
    match version {
        ProxyProtocol::V1 => {
            let family = if remote_ip.is_ipv4() { "TCP4" } else { "TCP6" };
            format!("PROXY {family} {ip} {remote_ip} {from} {to}\r\n").into_bytes()
        }
        ProxyProtocol::V2 => {
            let mut addresses = Vec::with_capacity(36);
            let family = match (ip, remote_ip) {
                (IpAddr::V4(ip), IpAddr::V4(remote)) => {
                    addresses.extend(ip.octets());
                    addresses.extend(remote.octets());
                    V2_TCP4
                }
                (ip, remote) => {
                    addresses.extend(v6(ip));
                    addresses.extend(v6(remote));
                    V2_TCP6
                }
            };
            addresses.extend(from.to_be_bytes());
            addresses.extend(to.to_be_bytes());
            v2(V2_PROXY, family, &addresses)
        }
    }
}

/// The header of a connection with no addresses to tell.
pub(super) fn local_header(version: ProxyProtocol) -> Vec<u8> {
    match version {
        ProxyProtocol::V1 => b"PROXY UNKNOWN\r\n".to_vec(),
        ProxyProtocol::V2 => v2(V2_LOCAL, 0, &[]),
    }
}

fn v2(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
    let mut header = Vec::with_capacity(16 + addresses.len());
    header.extend(V2_SIGNATURE);
    header.extend([command, family]);
    let length = u16::try_from(addresses.len()).unwrap_or(u16::MAX);
    header.extend(length.to_be_bytes());
    header.extend(addresses);
    header
}

fn v6(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V6(ip) => ip.octets(),
        IpAddr::V4(ip) => Ipv4Addr::to_ipv6_mapped(&ip).octets(),
    }
}

//! The address of an application as services would see it.
//!
//! A connection that the kernel hands over arrives from a loopback address,
//! since it was redirected there before its source address was chosen. What
//! the network would have seen is what the routing table of the application's
//! namespace chooses: it is what `consistentHash.useSourceIp` hashes and what
//! the PROXY protocol tells.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::time::Instant;

use crate::capture::sockets::{NetNs, Sockets};

/// How long an answer of the routing table is believed.
const FRESH: Duration = Duration::from_secs(5);
/// Namespaces remembered; past that the list begins anew.
const LIMIT: usize = 1024;

/// Source addresses by namespace and family, for one worker.
#[derive(Debug, Default)]
pub(super) struct Sources(RefCell<HashMap<(u64, bool), (IpAddr, Instant)>>);

impl Sources {
    /// Where a connection from `peer` to `original` comes from.
    pub(super) fn of(
        &self,
        sockets: &Sockets,
        netns: &NetNs,
        peer: SocketAddr,
        original: SocketAddr,
    ) -> SocketAddr {
        let original = original.ip();
        // An application that chose its address itself keeps it.
        if !peer.ip().is_loopback() || original.is_loopback() {
            return peer;
        }
        let now = Instant::now();
        let mut known = self.0.borrow_mut();
        let key = (netns.cookie, original.is_ipv4());
        if let Some((ip, at)) = known.get(&key)
            && now.duration_since(*at) < FRESH
        {
            return SocketAddr::new(*ip, peer.port());
        }
        // Without a route there is no better address than the one we have.
        let ip = chosen(sockets, netns, original.is_ipv4()).unwrap_or(peer.ip());
        if known.len() >= LIMIT {
            known.clear();
        }
        known.insert(key, (ip, now));
        SocketAddr::new(ip, peer.port())
    }
}

/// The source address towards the default route. Connecting a UDP socket
/// looks the route up and sends nothing.
fn chosen(sockets: &Sockets, netns: &NetNs, v4: bool) -> io::Result<IpAddr> {
    let (any, far): (IpAddr, IpAddr) = if v4 {
        // 192.88.99.1 and 2001:db8:: are nobody's (RFC 7526, RFC 3849).
        (
            Ipv4Addr::UNSPECIFIED.into(),
            Ipv4Addr::new(192, 88, 99, 1).into(),
        )
    } else {
        let far = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1);
        (Ipv6Addr::UNSPECIFIED.into(), far.into())
    };
    let socket = sockets.udp(netns, SocketAddr::new(any, 0))?;
    // Any port but 53 will do; 9 is discard.
    socket.connect((far, 9))?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_redirected_connection_has_the_address_of_its_namespace() {
        let sources = Sources::default();
        let (sockets, netns) = (Sockets::unmarked(), NetNs::current().unwrap());
        let of = |peer: &str, original: &str| {
            let found = sources.of(&sockets, &netns, address(peer), address(original));
            found.to_string()
        };
        // What the application chose itself, and what never left the host.
        assert_eq!(of("192.0.2.7:1000", "10.0.0.1:80"), "192.0.2.7:1000");
        assert_eq!(of("127.0.0.1:1000", "127.0.0.9:80"), "127.0.0.1:1000");
        let known = |v4, ip: &str| {
            let entry = (ip.parse().unwrap(), Instant::now());
            sources.0.borrow_mut().insert((netns.cookie, v4), entry);
        };
        known(true, "192.0.2.2");
        known(false, "2001:db8::2");
        assert_eq!(of("127.0.0.1:1000", "10.0.0.1:80"), "192.0.2.2:1000");
        assert_eq!(of("[::1]:7", "[2001:db8:1::1]:80"), "[2001:db8::2]:7");
    }
}

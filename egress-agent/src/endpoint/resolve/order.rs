//! Which family is dialled first.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::capture::sockets::{NetNs, Sockets};

/// Where this node can go.
pub trait Routes: Send + Sync + 'static {
    /// Whether IPv6 addresses come first, given one address of each family
    /// that the name has.
    fn prefer_v6(&self, v4: Option<IpAddr>, v6: Option<IpAddr>) -> bool;
}

/// Asks the kernel's routing table, as getaddrinfo does: a destination that no
/// source address can reach comes last (RFC 6724 section 6, rule 1), else IPv6
/// goes first, as in the default policy table (rule 6). Racing the two is the
/// dialler's business.
#[derive(Clone, Debug)]
pub struct SocketRoutes {
    sockets: Sockets,
    netns: NetNs,
}

impl SocketRoutes {
    /// The routes of a network namespace.
    pub const fn new(sockets: Sockets, netns: NetNs) -> Self {
        Self { sockets, netns }
    }

    /// Connecting a UDP socket finds the route and sends nothing.
    fn reaches(&self, ip: IpAddr) -> bool {
        let any: IpAddr = if ip.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let socket = self.sockets.udp(&self.netns, SocketAddr::new(any, 0));
        // Any port but 53 will do; 9 is discard.
        socket.is_ok_and(|socket| socket.connect((ip, 9)).is_ok())
    }
}

impl Routes for SocketRoutes {
    fn prefer_v6(&self, v4: Option<IpAddr>, v6: Option<IpAddr>) -> bool {
        match (v4, v6) {
            (Some(v4), Some(v6)) => self.reaches(v6) || !self.reaches(v4),
            (_, v6) => v6.is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn loopback_is_always_reached() {
        let routes = SocketRoutes::new(Sockets::unmarked(), NetNs::current().unwrap());
        let v4 = Some(IpAddr::from(Ipv4Addr::LOCALHOST));
        let v6 = Some(IpAddr::from(Ipv6Addr::LOCALHOST));
        assert!(routes.prefer_v6(v4, v6));
        assert!(routes.prefer_v6(None, v6));
        assert!(!routes.prefer_v6(v4, None));
        assert!(routes.reaches(Ipv4Addr::LOCALHOST.into()));
    }
}

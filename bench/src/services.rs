//! The external services that every path leads to: one table, from which the
//! server, the policy and each peer's configuration are made.

use crate::serve::{Listener, Speaks, Tls};

/// One service. Every one has an address of its own in the world.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Service {
    pub(crate) name: &'static str,
    /// Last byte of its address.
    pub(crate) number: u8,
    /// What clients dial.
    pub(crate) port: u16,
    /// What the server listens on: another port where TLS is originated.
    pub(crate) upstream_port: u16,
    pub(crate) speaks: Speaks,
    pub(crate) tls: Tls,
    /// Whether the kernel alone may carry it (no limit that needs the agent).
    pub(crate) direct: bool,
}

impl Service {
    pub(crate) fn host(&self) -> String {
        format!("{}.bench.example", self.name)
    }

    pub(crate) fn address(&self) -> String {
        format!("203.0.113.{}", self.number)
    }

    /// What the server itself listens on for it.
    pub(crate) fn listener(&self) -> Listener {
        Listener {
            port: self.upstream_port,
            speaks: self.speaks,
            tls: self.tls,
        }
    }
}

const fn plain(name: &'static str, number: u8, port: u16, speaks: Speaks) -> Service {
    Service {
        name,
        number,
        port,
        upstream_port: port,
        speaks,
        tls: Tls::Off,
        direct: false,
    }
}

const fn tls(
    name: &'static str,
    number: u8,
    port: u16,
    upstream_port: u16,
    speaks: Speaks,
    tls: Tls,
) -> Service {
    Service {
        name,
        number,
        port,
        upstream_port,
        speaks,
        tls,
        direct: false,
    }
}

const fn direct(mut service: Service) -> Service {
    service.direct = true;
    service
}

pub(crate) const HTTP1: Service = plain("http1", 11, 8080, Speaks::Http1);
pub(crate) const HTTP2: Service = plain("http2", 12, 8081, Speaks::Http2);
pub(crate) const ECHO: Service = plain("echo", 13, 9000, Speaks::Echo);
pub(crate) const BULK: Service = plain("bulk", 14, 9001, Speaks::Bulk);
pub(crate) const DIRECT_ECHO: Service = direct(plain("direct-echo", 15, 9010, Speaks::Echo));
pub(crate) const DIRECT_BULK: Service = direct(plain("direct-bulk", 16, 9011, Speaks::Bulk));
pub(crate) const TLS_HTTP: Service = tls("tls", 17, 8082, 8443, Speaks::Http1, Tls::Resumed);
pub(crate) const TLS_RESUMED: Service = tls("resumed", 18, 8083, 8444, Speaks::Http1, Tls::Resumed);
pub(crate) const TLS_FULL: Service = tls("full", 19, 8084, 8445, Speaks::Http1, Tls::Full);
pub(crate) const TLS_BULK: Service = tls("tls-bulk", 20, 9002, 8446, Speaks::Bulk, Tls::Resumed);

pub(crate) const ALL: [Service; 10] = [
    HTTP1,
    HTTP2,
    ECHO,
    BULK,
    DIRECT_ECHO,
    DIRECT_BULK,
    TLS_HTTP,
    TLS_RESUMED,
    TLS_FULL,
    TLS_BULK,
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn nothing_is_given_twice() {
        let ports: BTreeSet<_> = ALL.iter().map(|service| service.port).collect();
        let upstream: BTreeSet<_> = ALL.iter().map(|service| service.upstream_port).collect();
        let numbers: BTreeSet<_> = ALL.iter().map(|service| service.number).collect();
        assert_eq!((ports.len(), upstream.len(), numbers.len()), (10, 10, 10));
    }
}

//! What is measured: each workload is the same fixed work for every path.

use std::time::Duration;

use serde::Serialize;

use crate::load::{Kind, Load};
use crate::services::{self, Service};

/// What a workload's work is counted in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Unit {
    Request,
    Connection,
    Gigabyte,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) service: Service,
    pub(crate) kind: Kind,
    pub(crate) unit: Unit,
    pub(crate) connections: usize,
    /// Requests, connections, or megabytes of each connection.
    pub(crate) work: u64,
    pub(crate) rate: Option<u32>,
    pub(crate) size: usize,
    /// Part of `--quick`.
    pub(crate) quick: bool,
}

/// Longest that one run may take.
const DEADLINE: Duration = Duration::from_mins(1);

impl Workload {
    /// The load of one round, to be sent to `target`; `share` shortens it.
    pub(crate) fn load(&self, target: String, share: f64) -> Load {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "far below 2^52"
        )]
        let work = (self.work as f64 * share) as u64;
        Load {
            target,
            kind: self.kind,
            connections: self.connections,
            work: if self.unit == Unit::Gigabyte {
                work * 1_000_000
            } else {
                work
            },
            rate: self.rate,
            size: self.size,
            watched: Vec::new(),
            deadline: DEADLINE,
        }
    }
}

const BASE: Workload = Workload {
    name: "",
    title: "",
    service: services::HTTP1,
    kind: Kind::Http1,
    unit: Unit::Request,
    connections: 64,
    work: 30_000,
    rate: None,
    size: 1024,
    quick: true,
};

const HTTP2: Workload = Workload {
    service: services::HTTP2,
    kind: Kind::Http2,
    ..BASE
};

const BULK: Workload = Workload {
    service: services::BULK,
    kind: Kind::Bulk,
    unit: Unit::Gigabyte,
    connections: 1,
    work: 1_500,
    ..BASE
};

const CONNECT: Workload = Workload {
    service: services::ECHO,
    kind: Kind::Connect,
    unit: Unit::Connection,
    connections: 8,
    work: 6_000,
    ..BASE
};

pub(crate) const ALL: [Workload; 18] = [
    Workload {
        name: "http1-1k",
        title: "HTTP/1.1, 1 KB, 64 connections, as fast as it goes",
        ..BASE
    },
    Workload {
        name: "http1-1k-2000",
        title: "HTTP/1.1, 1 KB, 64 connections, 2,000 requests a second",
        work: 6_000,
        rate: Some(2_000),
        ..BASE
    },
    Workload {
        name: "http1-100k",
        title: "HTTP/1.1, 100 KB, 64 connections, as fast as it goes",
        work: 8_000,
        size: 102_400,
        quick: false,
        ..BASE
    },
    Workload {
        name: "http2-1k",
        title: "HTTP/2, 1 KB, 16 connections of 4 requests, as fast as it goes",
        ..HTTP2
    },
    Workload {
        name: "http2-1k-2000",
        title: "HTTP/2, 1 KB, 16 connections, 2,000 requests a second",
        work: 6_000,
        rate: Some(2_000),
        quick: false,
        ..HTTP2
    },
    Workload {
        name: "http2-100k",
        title: "HTTP/2, 100 KB, 16 connections of 4 requests, as fast as it goes",
        work: 6_000,
        size: 102_400,
        quick: false,
        ..HTTP2
    },
    Workload {
        name: "tcp-bulk-1",
        title: "Opaque TCP through the agent, one stream",
        ..BULK
    },
    Workload {
        name: "tcp-bulk-4",
        title: "Opaque TCP through the agent, four streams",
        connections: 4,
        work: 400,
        ..BULK
    },
    Workload {
        name: "tcp-echo",
        title: "Opaque TCP through the agent, 1 KB there and back on 8 connections",
        service: services::ECHO,
        kind: Kind::Echo,
        connections: 8,
        work: 20_000,
        quick: false,
        ..BASE
    },
    Workload {
        name: "tcp-connect",
        title: "Connect, 1 KB there and back, close, through the agent",
        ..CONNECT
    },
    Workload {
        name: "direct-bulk",
        title: "Bulk, path chosen by the kernel (no proxy)",
        service: services::DIRECT_BULK,
        ..BULK
    },
    Workload {
        name: "direct-echo",
        title: "1 KB there and back on one connection, path chosen by the kernel",
        service: services::DIRECT_ECHO,
        kind: Kind::Echo,
        connections: 1,
        work: 10_000,
        ..BASE
    },
    Workload {
        name: "direct-connect",
        title: "Connect, 1 KB, close, one at a time, path chosen by the kernel",
        service: services::DIRECT_ECHO,
        connections: 1,
        work: 4_000,
        ..CONNECT
    },
    Workload {
        name: "tls-1k",
        title: "TLS origination, HTTP/1.1, 1 KB, 64 connections",
        service: services::TLS_HTTP,
        ..BASE
    },
    Workload {
        name: "tls-bulk",
        title: "TLS origination, opaque TCP, one stream",
        service: services::TLS_BULK,
        work: 800,
        ..BULK
    },
    Workload {
        name: "tls-full",
        title: "TLS origination, a full handshake for each request",
        service: services::TLS_FULL,
        kind: Kind::Http1UpstreamCloses,
        connections: 16,
        work: 1_500,
        ..BASE
    },
    Workload {
        name: "tls-resumed",
        title: "TLS origination, a resumed handshake for each request",
        service: services::TLS_RESUMED,
        kind: Kind::Http1UpstreamCloses,
        connections: 16,
        work: 2_000,
        quick: false,
        ..BASE
    },
    Workload {
        name: "tcp-upstreams",
        title: "HTTP/1.1, 1 KB, a new connection to the service for each request",
        kind: Kind::Http1UpstreamCloses,
        connections: 16,
        work: 5_000,
        quick: false,
        ..BASE
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let names: std::collections::BTreeSet<_> = ALL.iter().map(|one| one.name).collect();
        assert_eq!(names.len(), ALL.len());
    }

    #[test]
    fn a_share_shortens_the_work() {
        let load = BULK.load("a:1".to_owned(), 0.5);
        assert_eq!(load.work, 750_000_000);
        assert_eq!(BASE.load("a:1".to_owned(), 0.1).work, 3_000);
    }
}

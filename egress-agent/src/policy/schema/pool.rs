//! `connectionPool`.

use serde::Serialize;

use super::reader::Reader;
use super::{Spanned, Time};
use crate::policy::check;
use crate::policy::diagnostic::Span;
use crate::policy::yaml::Node;

/// `connectionPool`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Pool {
    /// `tcp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<Box<Tcp>>,
    /// `http`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<Box<Http>>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

/// `tcp`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tcp {
    /// `maxConnections`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<Spanned<i32>>,
    /// `connectTimeout`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_timeout: Option<Time>,
    /// `maxConnectionDuration`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connection_duration: Option<Time>,
    /// `idleTimeout`; zero switches it off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Time>,
    /// `tcpKeepalive`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_keepalive: Option<Box<Keepalive>>,
}

/// `tcpKeepalive`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Keepalive {
    /// `probes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probes: Option<Spanned<u32>>,
    /// `time`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
    /// `interval`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<Time>,
}

/// `http`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Http {
    /// `http1MaxPendingRequests`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http1_max_pending_requests: Option<Spanned<i32>>,
    /// `http2MaxRequests`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http2_max_requests: Option<Spanned<i32>>,
    /// `maxRequestsPerConnection`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_requests_per_connection: Option<Spanned<i32>>,
    /// `maxRetries`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<Spanned<i32>>,
    /// `idleTimeout`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Time>,
    /// `h2UpgradePolicy`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub h2_upgrade_policy: Option<Spanned<Upgrade>>,
    /// `useClientProtocol`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_client_protocol: Option<Spanned<bool>>,
    /// `maxConcurrentStreams`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_concurrent_streams: Option<Spanned<i32>>,
    /// `http2KeepAlive`.
    #[serde(rename = "http2KeepAlive", skip_serializing_if = "Option::is_none")]
    pub http2_keep_alive: Option<Box<Ping>>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

/// `http2KeepAlive`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Ping {
    /// `interval`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<Time>,
    /// `timeout`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Time>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

words! {
    /// `h2UpgradePolicy`.
    pub enum Upgrade {
        /// No.
        Default = "DEFAULT",
        /// No.
        DoNotUpgrade = "DO_NOT_UPGRADE",
        /// HTTP/2 whatever the port says.
        Upgrade = "UPGRADE",
    }
}

/// Reads and checks a `connectionPool`.
pub fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Pool> {
    let pool = reader.object(node, |r, f| Pool {
        tcp: r.boxed(f, "tcp", tcp),
        http: r.boxed(f, "http", http),
        span: f.span,
    })?;
    check::destination_rule::check_pool(reader, &pool);
    Some(pool)
}

fn tcp(reader: &mut Reader<'_>, node: &Node) -> Option<Tcp> {
    reader.object(node, |r, f| Tcp {
        max_connections: r.field(f, "maxConnections", Reader::integer),
        connect_timeout: r.time_field(f, "connectTimeout"),
        max_connection_duration: r.time_field(f, "maxConnectionDuration"),
        idle_timeout: r.field(f, "idleTimeout", Reader::time_or_off),
        tcp_keepalive: r.boxed(f, "tcpKeepalive", |r, n| {
            r.object(n, |r, f| Keepalive {
                probes: r.field(f, "probes", Reader::integer),
                time: r.time_field(f, "time"),
                interval: r.time_field(f, "interval"),
            })
        }),
    })
}

fn http(reader: &mut Reader<'_>, node: &Node) -> Option<Http> {
    reader.object(node, |r, f| Http {
        http1_max_pending_requests: r.field(f, "http1MaxPendingRequests", Reader::integer),
        http2_max_requests: r.field(f, "http2MaxRequests", Reader::integer),
        max_requests_per_connection: r.field(f, "maxRequestsPerConnection", Reader::integer),
        max_retries: r.field(f, "maxRetries", Reader::integer),
        idle_timeout: r.time_field(f, "idleTimeout"),
        h2_upgrade_policy: r.field(f, "h2UpgradePolicy", |r, n| r.word(n, Upgrade::WORDS)),
        use_client_protocol: r.field(f, "useClientProtocol", Reader::boolean),
        max_concurrent_streams: r.field(f, "maxConcurrentStreams", Reader::integer),
        http2_keep_alive: r.boxed(f, "http2KeepAlive", |r, n| {
            r.object(n, |r, f| Ping {
                interval: r.time_field(f, "interval"),
                timeout: r.time_field(f, "timeout"),
                span: f.span,
            })
        }),
        span: f.span,
    })
}

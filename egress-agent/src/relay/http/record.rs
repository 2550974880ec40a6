//! What is known about a request when it has ended.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderValue, Method, StatusCode, Version};
use tokio::time::Instant;

use crate::connect::pool::Security;
use crate::endpoint::resolved::Destination;
use crate::flag::Flag;
use crate::policy::snapshot::Cluster;

/// One request, with the fields of Istio's default access log.
#[derive(Debug)]
pub struct Record {
    /// When its head was complete.
    pub started: Instant,
    /// Method.
    pub method: Method,
    /// Path and query as requested.
    pub path: Option<PathAndQuery>,
    /// Version that the application speaks.
    pub version: Version,
    /// Authority as requested.
    pub authority: Option<HeaderValue>,
    /// `user-agent`, kept only if the log wants details.
    pub user_agent: Option<HeaderValue>,
    /// `x-request-id`, kept only if the log wants details.
    pub request_id: Option<HeaderValue>,
    /// `x-forwarded-for`, kept only if the log wants details.
    pub forwarded_for: Option<HeaderValue>,
    /// Name of the route.
    pub route: Option<Arc<str>>,
    /// Status sent to the application; `None` when none was.
    pub status: Option<StatusCode>,
    /// gRPC status of the answer.
    pub grpc_status: Option<u8>,
    /// Flags in Envoy's order.
    pub flags: Vec<Flag>,
    /// Where the answer comes from, in Envoy's words
    /// (`%RESPONSE_CODE_DETAILS%`), if it is as it was meant to be.
    pub answer: Option<&'static str>,
    /// What went wrong.
    pub details: Box<str>,
    /// Body bytes from the application.
    pub received: u64,
    /// Body bytes to the application.
    pub sent: u64,
    /// From the start to the end of the response.
    pub duration: Duration,
    /// From sending the last try to its response's head
    /// (`x-envoy-upstream-service-time`).
    pub service_time: Option<Duration>,
    /// The endpoint that answered, or was tried last.
    pub upstream: Option<Destination>,
    /// What protects the connection to it.
    pub security: Security,
    /// Our own address on the connection to it.
    pub upstream_local: Option<SocketAddr>,
    /// The cluster.
    pub cluster: Option<Arc<Cluster>>,
    /// Tries, the first included; 0 when nothing was sent.
    pub attempts: u32,
    /// Times that a connection which had gone stale was replaced unseen.
    pub reconnects: u32,
}

impl Default for Record {
    /// A request that begins now.
    fn default() -> Self {
        Self {
            started: Instant::now(),
            method: Method::GET,
            path: None,
            version: Version::HTTP_11,
            authority: None,
            user_agent: None,
            request_id: None,
            forwarded_for: None,
            route: None,
            status: None,
            grpc_status: None,
            flags: Vec::new(),
            answer: None,
            details: Box::default(),
            received: 0,
            sent: 0,
            duration: Duration::ZERO,
            service_time: None,
            upstream: None,
            security: Security::None,
            upstream_local: None,
            cluster: None,
            attempts: 0,
            reconnects: 0,
        }
    }
}

impl Record {
    /// Adds a flag once.
    pub(super) fn flag(&mut self, flag: Flag) {
        if let Err(at) = self.flags.binary_search(&flag) {
            self.flags.insert(at, flag);
        }
    }
}

/// Takes the finished requests of one connection.
pub trait Log {
    /// Whether what only a log shows of a request is to be kept: path,
    /// authority, headers, route, times.
    fn wants_details(&self) -> bool;

    /// A request has ended; called exactly once for each.
    fn request(&self, record: &Record);
}

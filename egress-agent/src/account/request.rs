//! The record of one HTTP request.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Version};

use super::log::json;
use super::record::ConnectionRecord;
use super::series::{self, FlagSet};
use crate::endpoint::resolved::Destination;
use crate::flag::Flag;
use crate::policy::snapshot::Cluster;

/// A request that has ended, as far as metrics tell.
#[derive(Clone, Copy, Debug)]
pub struct RequestEnd<'a> {
    /// From its head to the end of its response.
    pub duration: Duration,
    /// Body bytes from the application.
    pub received: u64,
    /// Body bytes to the application.
    pub sent: u64,
    /// Flags.
    pub flags: &'a [Flag],
    /// `response_code`; 0 when the client got no response.
    pub status: u16,
    /// grpc-status, when the response had one; this makes it `grpc`.
    pub grpc: Option<u8>,
    /// What left this node: `none`, `tls` or `mutual_tls`.
    pub security: &'static str,
    /// Tries made, the first included.
    pub attempts: u32,
}

/// What only the log shows of a request.
#[derive(Clone, Copy, Debug)]
pub struct RequestDetails<'a> {
    /// `method`.
    pub method: &'a Method,
    /// `path`, with the query, as the client sent it.
    pub path: Option<&'a PathAndQuery>,
    /// `protocol`: that of the client.
    pub protocol: Version,
    /// `authority`, as the client sent it.
    pub authority: Option<&'a HeaderValue>,
    /// `user_agent`.
    pub user_agent: Option<&'a HeaderValue>,
    /// `request_id`: the field `x-request-id`.
    pub request_id: Option<&'a HeaderValue>,
    /// `x_forwarded_for`.
    pub forwarded_for: Option<&'a HeaderValue>,
    /// `response_code_details` of an answer as it was meant to be:
    /// `via_upstream` or `direct_response`. Else the cause tells them.
    pub answer: Option<&'static str>,
    /// `cause`: what went wrong, in words.
    pub cause: Option<&'a str>,
    /// `route_name`.
    pub route: Option<&'a str>,
    /// The cluster it was routed to.
    pub cluster: Option<&'a Cluster>,
    /// `endpoint`: of the last try.
    pub endpoint: Option<&'a Destination>,
    /// `upstream_local_address`.
    pub upstream_local: Option<SocketAddr>,
    /// `upstream_service_time`: from the request sent to the response head.
    pub service_time: Option<Duration>,
}

impl ConnectionRecord {
    /// A request on this connection has ended: counts it and, where there is a
    /// log, writes its line. To be called once for each.
    pub fn request<'a>(&self, end: &RequestEnd<'_>, details: impl FnOnce() -> RequestDetails<'a>) {
        let Some((account, connection)) = self.open_line() else {
            return;
        };
        let Some(service) = &connection.service else {
            return;
        };
        let mut flags = FlagSet::default();
        for flag in end.flags {
            flags.add(*flag);
        }
        let kind = series::RequestEnd {
            protocol: if end.grpc.is_some() { "grpc" } else { "http" },
            flags,
            status: end.status,
            grpc: end.grpc,
        };
        let workload = &connection.origin.workload;
        account.series.borrow_mut().ended(
            &account.metrics,
            service,
            workload,
            end.security,
            kind,
            end.duration,
        );
        if let Some(log) = &account.log {
            let origin = self.origin_text();
            let started = SystemTime::now() - end.duration;
            log.line(|text| json::request(text, started, origin, flags, end, &details()));
        }
    }
}

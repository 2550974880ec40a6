//! The record of one HTTP request.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::uri::{Authority, PathAndQuery};
use http::{HeaderValue, Method, Version};
use tokio::time::Instant;

use super::Account;
use super::log::Line;
use super::record::Origin;
use super::series::{FlagSet, RequestEnd};
use crate::endpoint::resolved::Destination;
use crate::flag::Flag;
use crate::policy::snapshot::{Cluster, Service};

/// Bytes of the bodies, counted while they move.
#[derive(Debug, Default)]
pub struct RequestTraffic {
    /// Of the request.
    pub received: Cell<u64>,
    /// Of the response.
    pub sent: Cell<u64>,
}

/// What a request's line says. Values are those of the `http` crate, so that
/// filling them in copies no text.
#[derive(Debug)]
pub struct RequestLine {
    /// Who and from where.
    pub(super) origin: Arc<Origin>,
    /// The service whose port was dialled.
    pub(super) service: Arc<Service>,
    pub(super) started: Instant,
    pub(super) started_at: SystemTime,
    pub(super) duration: Duration,
    pub(super) received: u64,
    pub(super) sent: u64,
    pub(super) flags: FlagSet,
    /// `method`.
    pub method: Method,
    /// `path`, with the query, as the client sent it.
    pub path: Option<PathAndQuery>,
    /// `protocol`: that of the client.
    pub protocol: Version,
    /// `authority`, as the client sent it.
    pub authority: Option<Authority>,
    /// `user_agent`.
    pub user_agent: Option<HeaderValue>,
    /// `request_id`: the field `x-request-id`.
    pub request_id: Option<HeaderValue>,
    /// `x_forwarded_for`.
    pub forwarded_for: Option<HeaderValue>,
    /// `response_code`; 0 when the client got no response.
    pub response_code: u16,
    /// grpc-status, when the response had one; this makes it `grpc`.
    pub grpc_status: Option<u8>,
    /// `response_code_details` of an answer as it was meant to be:
    /// `via_upstream` or `direct_response`. Else the cause tells them.
    pub details: Option<&'static str>,
    /// `cause`: what went wrong, in words.
    pub cause: Option<String>,
    /// `route_name`.
    pub route_name: Option<Arc<str>>,
    /// The cluster it was routed to; its service is the label of the metrics.
    pub cluster: Option<Arc<Cluster>>,
    /// `endpoint`: of the last try.
    pub endpoint: Option<Destination>,
    /// `upstream_local_address`.
    pub upstream_local: Option<std::net::SocketAddr>,
    /// `upstream_service_time`: from the request sent to the response head.
    pub upstream_service_time: Option<Duration>,
    /// Tries made, the first included.
    pub attempts: u32,
    /// What left this node: `none`, `tls` or `mutual_tls`.
    pub security: &'static str,
}

/// The record of one request. Dropping it writes it, exactly once.
#[derive(Debug)]
pub struct RequestRecord {
    account: Account,
    traffic: Rc<RequestTraffic>,
    line: Option<Box<RequestLine>>,
}

impl RequestRecord {
    pub(super) fn new(
        account: &Account,
        origin: Arc<Origin>,
        service: Arc<Service>,
        started: Instant,
    ) -> Self {
        Self {
            account: account.clone(),
            traffic: Rc::default(),
            line: Some(Box::new(RequestLine {
                origin,
                service,
                started,
                // Only the log shows it.
                started_at: if account.0.log.is_some() {
                    SystemTime::now() - started.elapsed()
                } else {
                    SystemTime::UNIX_EPOCH
                },
                duration: Duration::ZERO,
                received: 0,
                sent: 0,
                flags: FlagSet::default(),
                method: Method::GET,
                path: None,
                protocol: Version::HTTP_11,
                authority: None,
                user_agent: None,
                request_id: None,
                forwarded_for: None,
                response_code: 0,
                grpc_status: None,
                details: None,
                cause: None,
                route_name: None,
                cluster: None,
                endpoint: None,
                upstream_local: None,
                upstream_service_time: None,
                attempts: 0,
                security: "none",
            })),
        }
    }

    /// Fills in what is known.
    pub fn edit(&mut self, change: impl FnOnce(&mut RequestLine)) {
        if let Some(line) = &mut self.line {
            change(line);
        }
    }

    /// Adds a flag.
    pub fn flag(&mut self, flag: Flag) {
        self.edit(|line| line.flags.add(flag));
    }

    /// It failed; the last cause given stands.
    pub fn failed(&mut self, flag: Flag, cause: String) {
        self.edit(|line| {
            line.flags.add(flag);
            line.cause = Some(cause);
        });
    }

    /// Counters for the bodies.
    pub fn traffic(&self) -> Rc<RequestTraffic> {
        self.traffic.clone()
    }

    /// Whether there is a log, so that what only the log shows is worth
    /// filling in.
    pub fn is_logged(&self) -> bool {
        self.account.0.log.is_some()
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        let Some(mut line) = self.line.take() else {
            return;
        };
        line.received = self.traffic.received.get();
        line.sent = self.traffic.sent.get();
        line.duration = line.started.elapsed();
        let account = &self.account.0;
        let end = RequestEnd {
            protocol: if line.grpc_status.is_some() {
                "grpc"
            } else {
                "http"
            },
            flags: line.flags,
            status: line.response_code,
            grpc: line.grpc_status,
        };
        let series = account.series.borrow_mut().request(
            &account.metrics,
            &line.service,
            &line.origin.workload,
            line.security,
            end,
        );
        series.ended(line.duration);
        if let Some(log) = &account.log {
            log.write(Line::Request(line));
        }
    }
}

//! The JSON form of a line. These names are a contract: see the README.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use http::{HeaderValue, Version};
use jiff::Timestamp;
use serde::Serialize;

use super::Line;
use crate::account::record::{ConnectionLine, Origin};
use crate::account::request::RequestLine;
use crate::connect::TlsFacts;
use crate::endpoint::resolved::Destination;
use crate::identify::Spoken;
use crate::policy::snapshot::{Cluster, Service};
use crate::route::headers::push_cluster;
use crate::secret::iana_name;

/// What connections and requests have in common.
#[derive(Serialize)]
struct Common<'a> {
    start_time: String,
    duration_ms: f64,
    /// `proxy`: through the agent.
    via: &'static str,
    pid: u32,
    comm: String,
    uid: u32,
    cgroup: u64,
    netns: u64,
    namespace: &'a str,
    workload: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    workload_instance: Option<&'a str>,
    client_address: String,
    original_destination: String,
    /// `HOST:PORT`.
    service: Option<String>,
    service_namespace: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subset: Option<&'a str>,
    endpoint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_local_address: Option<String>,
    attempts: u32,
    bytes_received: u64,
    bytes_sent: u64,
    response_flags: String,
    cause: Option<&'a str>,
}

#[derive(Serialize)]
struct ConnectionJson<'a> {
    #[serde(flatten)]
    common: Common<'a>,
    protocol: &'static str,
    /// The name that the application asked for.
    host: Option<&'a str>,
    spoken: &'static str,
    /// Sent to the service, or by an application that speaks TLS itself.
    sni: Option<&'a str>,
    tls_version: Option<&'static str>,
    tls_cipher: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_resumed: Option<bool>,
    connect_ms: Option<f64>,
    tls_handshake_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'static str>,
}

#[derive(Serialize)]
struct RequestJson<'a> {
    #[serde(flatten)]
    common: Common<'a>,
    protocol: &'static str,
    method: &'a str,
    path: Option<&'a str>,
    authority: Option<&'a str>,
    response_code: u16,
    response_code_details: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc_status: Option<u8>,
    route_name: Option<&'a str>,
    upstream_cluster: Option<String>,
    request_id: Option<Cow<'a, str>>,
    user_agent: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    x_forwarded_for: Option<Cow<'a, str>>,
    /// Milliseconds.
    upstream_service_time: Option<f64>,
    connection_security_policy: &'static str,
}

pub(super) fn write(text: &mut Vec<u8>, line: &Line) -> serde_json::Result<()> {
    let start = text.len();
    let written = match line {
        Line::Connection(line) => write_connection(text, line),
        Line::Request(line) => serde_json::to_writer(&mut *text, &request(line)),
        Line::Flush(_) => return Ok(()),
    };
    match written {
        Ok(()) => text.push(b'\n'),
        Err(_) => text.truncate(start),
    }
    written
}

/// Without the end of the line.
pub(in crate::account) fn write_connection(
    text: &mut Vec<u8>,
    line: &ConnectionLine,
) -> serde_json::Result<()> {
    serde_json::to_writer(text, &connection(line))
}

fn connection(line: &ConnectionLine) -> ConnectionJson<'_> {
    let tls = line.tls.as_ref();
    let spoken_sni = match &line.spoken {
        Some(Spoken::Tls { sni }) => sni.as_deref(),
        _ => None,
    };
    ConnectionJson {
        common: Common {
            start_time: time(line.started_at()),
            duration_ms: millis(line.duration),
            service: line.service.as_deref().map(name_of),
            service_namespace: line.service.as_deref().map(|s| &*s.key.namespace),
            subset: line.cluster.as_deref().and_then(subset),
            endpoint: line.endpoint.as_ref().map(Destination::to_string),
            upstream_local_address: line.local.map(|local| local.to_string()),
            attempts: line.attempts,
            bytes_received: line.received,
            bytes_sent: line.sent,
            response_flags: line.flags.text(),
            cause: line.cause.as_deref(),
            ..common(&line.origin)
        },
        protocol: "tcp",
        host: line.host.as_deref(),
        spoken: match &line.spoken {
            Some(Spoken::Http) => "http",
            Some(Spoken::Tls { .. }) => "tls",
            Some(Spoken::Opaque | Spoken::Unheard) => "opaque",
            None => "-",
        },
        sni: tls.and_then(|tls| tls.sni.as_deref()).or(spoken_sni),
        tls_version: tls.map(TlsFacts::version_name),
        tls_cipher: tls.and_then(|tls| tls.cipher).map(iana_name),
        tls_resumed: tls.map(|tls| tls.resumed),
        connect_ms: line.connect_time.map(millis),
        tls_handshake_ms: line.tls_time.map(millis),
        note: line.note,
    }
}

fn request(line: &RequestLine) -> RequestJson<'_> {
    RequestJson {
        common: Common {
            start_time: time(line.started_at),
            duration_ms: millis(line.duration),
            service: Some(name_of(&line.service)),
            service_namespace: Some(&line.service.key.namespace),
            subset: line.cluster.as_deref().and_then(subset),
            endpoint: line.endpoint.as_ref().map(Destination::to_string),
            upstream_local_address: line.upstream_local.map(|local| local.to_string()),
            attempts: line.attempts,
            bytes_received: line.received,
            bytes_sent: line.sent,
            response_flags: line.flags.text(),
            cause: line.cause.as_deref(),
            ..common(&line.origin)
        },
        protocol: match line.protocol {
            Version::HTTP_09 | Version::HTTP_10 => "HTTP/1.0",
            Version::HTTP_2 => "HTTP/2",
            _ => "HTTP/1.1",
        },
        method: line.method.as_str(),
        path: line.path.as_ref().map(http::uri::PathAndQuery::as_str),
        authority: line.authority.as_ref().map(http::uri::Authority::as_str),
        response_code: line.response_code,
        response_code_details: line.details.or(line.cause.as_deref()),
        grpc_status: line.grpc_status,
        route_name: line.route_name.as_deref(),
        upstream_cluster: line.cluster.as_deref().map(cluster_name),
        request_id: line.request_id.as_ref().map(lossy),
        user_agent: line.user_agent.as_ref().map(lossy),
        x_forwarded_for: line.forwarded_for.as_ref().map(lossy),
        upstream_service_time: line.upstream_service_time.map(millis),
        connection_security_policy: line.security,
    }
}

fn common(origin: &Origin) -> Common<'_> {
    let captured = &origin.captured;
    Common {
        start_time: String::new(),
        duration_ms: 0.0,
        via: if origin.direct { "direct" } else { "proxy" },
        pid: captured.caller.pid,
        comm: captured.caller.comm.to_string(),
        uid: captured.caller.uid,
        cgroup: captured.caller.cgroup,
        netns: captured.caller.netns,
        namespace: &origin.workload.client.namespace,
        workload: &origin.workload.name,
        workload_instance: origin.workload.instance.as_deref(),
        client_address: captured.peer.to_string(),
        original_destination: captured.original.to_string(),
        service: None,
        service_namespace: None,
        subset: None,
        endpoint: None,
        upstream_local_address: None,
        attempts: 0,
        bytes_received: 0,
        bytes_sent: 0,
        response_flags: String::new(),
        cause: None,
    }
}

impl ConnectionLine {
    fn started_at(&self) -> SystemTime {
        self.origin.started_at
    }
}

fn name_of(service: &Service) -> String {
    format!("{}:{}", service.key.host, service.key.port)
}

/// As Istio names it.
fn cluster_name(cluster: &Cluster) -> String {
    let mut name = String::new();
    push_cluster(cluster, &mut name);
    name
}

fn subset(cluster: &Cluster) -> Option<&str> {
    (!cluster.key.subset.is_empty()).then_some(&*cluster.key.subset)
}

fn lossy(value: &HeaderValue) -> Cow<'_, str> {
    String::from_utf8_lossy(value.as_bytes())
}

/// RFC 3339 in UTC with milliseconds.
fn time(at: SystemTime) -> String {
    Timestamp::try_from(at).map_or_else(|_| "-".to_owned(), |at| format!("{at:.3}"))
}

/// Milliseconds with three decimals.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1_000_000.0).round() / 1000.0
}

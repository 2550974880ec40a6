//! The JSON form of a line. These names are a contract: see the README.

use std::cell::RefCell;
use std::fmt::Display;
use std::io::Write as _;
use std::net::{SocketAddr, SocketAddrV4};
use std::time::{Duration, SystemTime};

use http::{HeaderValue, Version};
use jiff::Timestamp;
use serde::Serialize;

use crate::account::record::{ConnectionLine, Origin};
use crate::account::request::{RequestDetails, RequestEnd};
use crate::account::series::FlagSet;
use crate::connect::TlsFacts;
use crate::endpoint::resolved::Destination;
use crate::identify::Spoken;
use crate::policy::snapshot::{Cluster, Service};
use crate::route::headers::push_cluster;
use crate::secret::iana_name;

/// Fields of an object, each with a comma before it but the first.
struct Fields<'t>(&'t mut Vec<u8>);

impl Fields<'_> {
    /// `name` needs no escapes.
    fn name(&mut self, name: &str) {
        if !matches!(self.0.last(), Some(b'{') | None) {
            self.0.push(b',');
        }
        self.0.push(b'"');
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    /// Text, numbers, and `null` for none.
    fn add(&mut self, name: &str, value: impl Serialize) {
        self.name(name);
        // Neither these values nor writing to memory can fail.
        let _ = serde_json::to_writer(&mut *self.0, &value);
    }

    /// Left out where there is none.
    fn add_if(&mut self, name: &str, value: Option<impl Serialize>) {
        if let Some(value) = value {
            self.add(name, value);
        }
    }

    /// What needs no escapes.
    fn plain(&mut self, name: &str, value: impl FnOnce(&mut Vec<u8>)) {
        self.name(name);
        self.0.push(b'"');
        value(self.0);
        self.0.push(b'"');
    }

    fn address(&mut self, name: &str, address: &SocketAddr) {
        self.plain(name, |text| push_address(text, address));
    }

    fn endpoint(&mut self, endpoint: Option<&Destination>) {
        match endpoint {
            Some(Destination::Tcp(address)) => self.address("endpoint", address),
            other => self.add("endpoint", other.map(Destination::to_string)),
        }
    }

    /// Milliseconds with three decimals.
    fn millis(&mut self, name: &str, duration: Option<Duration>) {
        self.name(name);
        match duration {
            Some(duration) => push_millis(self.0, duration),
            None => self.0.extend_from_slice(b"null"),
        }
    }

    fn header(&mut self, name: &str, value: &HeaderValue) {
        self.add(name, String::from_utf8_lossy(value.as_bytes()));
    }

    fn start(&mut self, at: SystemTime, duration: Duration) {
        self.plain("start_time", |text| push_time(text, at));
        self.millis("duration_ms", Some(duration));
    }
}

/// What the lines of one connection and of its requests have in common, as
/// fields without braces.
pub(in crate::account) fn origin(text: &mut Vec<u8>, origin: &Origin, service: Option<&Service>) {
    let captured = &origin.captured;
    let mut fields = Fields(text);
    fields.add("via", if origin.direct { "direct" } else { "proxy" });
    fields.add("pid", captured.caller.pid);
    fields.add("comm", captured.caller.comm.to_string());
    fields.add("uid", captured.caller.uid);
    fields.add("cgroup", captured.caller.cgroup);
    fields.add("netns", captured.caller.netns);
    fields.add("namespace", &*origin.workload.client.namespace);
    fields.add("workload", &*origin.workload.name);
    fields.add_if("workload_instance", origin.workload.instance.as_deref());
    fields.address("client_address", &captured.peer);
    fields.address("original_destination", &captured.original);
    // `HOST:PORT`.
    let name = service.map(|service| format!("{}:{}", service.key.host, service.key.port));
    fields.add("service", name);
    fields.add("service_namespace", service.map(|s| &*s.key.namespace));
}

pub(in crate::account) fn connection(text: &mut Vec<u8>, line: &ConnectionLine) {
    text.push(b'{');
    let mut fields = Fields(text);
    fields.start(line.origin.started_at, line.duration);
    let mut common = Vec::new();
    origin(&mut common, &line.origin, line.service.as_deref());
    fields.0.push(b',');
    fields.0.extend_from_slice(&common);
    fields.add_if("subset", line.cluster.as_deref().and_then(subset));
    fields.endpoint(line.endpoint.as_ref());
    if let Some(local) = &line.local {
        fields.address("upstream_local_address", local);
    }
    fields.add("attempts", line.attempts);
    fields.add("bytes_received", line.received);
    fields.add("bytes_sent", line.sent);
    fields.add("response_flags", line.flags.text());
    fields.add("cause", line.cause.as_deref());
    fields.add("protocol", "tcp");
    // The name that the application asked for.
    fields.add("host", line.host.as_deref());
    let spoken = match &line.spoken {
        Some(Spoken::Http) => "http",
        Some(Spoken::Tls { .. }) => "tls",
        Some(Spoken::Opaque | Spoken::Unheard) => "opaque",
        None => "-",
    };
    fields.add("spoken", spoken);
    let tls = line.tls.as_ref();
    // Sent to the service, or by an application that speaks TLS itself.
    let spoken_sni = match &line.spoken {
        Some(Spoken::Tls { sni }) => sni.as_deref(),
        _ => None,
    };
    fields.add("sni", tls.and_then(|tls| tls.sni.as_deref()).or(spoken_sni));
    fields.add("tls_version", tls.map(TlsFacts::version_name));
    fields.add("tls_cipher", tls.and_then(|tls| tls.cipher).map(iana_name));
    fields.add_if("tls_resumed", tls.map(|tls| tls.resumed));
    fields.millis("connect_ms", line.connect_time);
    fields.millis("tls_handshake_ms", line.tls_time);
    fields.add_if("note", line.note);
    text.push(b'}');
}

/// `common` is what [`origin`] made.
pub(in crate::account) fn request(
    text: &mut Vec<u8>,
    started: SystemTime,
    common: &[u8],
    flags: FlagSet,
    end: &RequestEnd<'_>,
    details: &RequestDetails<'_>,
) {
    text.push(b'{');
    let mut fields = Fields(text);
    fields.start(started, end.duration);
    fields.0.push(b',');
    fields.0.extend_from_slice(common);
    fields.add_if("subset", details.cluster.and_then(subset));
    fields.endpoint(details.endpoint);
    if let Some(local) = &details.upstream_local {
        fields.address("upstream_local_address", local);
    }
    fields.add("attempts", end.attempts);
    fields.add("bytes_received", end.received);
    fields.add("bytes_sent", end.sent);
    if end.flags.is_empty() {
        fields.plain("response_flags", |text| text.push(b'-'));
    } else {
        fields.add("response_flags", flags.text());
    }
    fields.add("cause", details.cause);
    let protocol = match details.protocol {
        Version::HTTP_09 | Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    };
    fields.add("protocol", protocol);
    fields.add("method", details.method.as_str());
    fields.add("path", details.path.map(http::uri::PathAndQuery::as_str));
    match details.authority {
        Some(authority) => fields.header("authority", authority),
        None => fields.add("authority", ()),
    }
    fields.add("response_code", end.status);
    fields.add("response_code_details", details.answer.or(details.cause));
    fields.add_if("grpc_status", end.grpc);
    fields.add("route_name", details.route);
    let cluster = details.cluster.map(|cluster| {
        let mut name = String::new();
        push_cluster(cluster, &mut name);
        name
    });
    fields.add("upstream_cluster", cluster);
    for (name, value) in [
        ("request_id", details.request_id),
        ("user_agent", details.user_agent),
    ] {
        match value {
            Some(value) => fields.header(name, value),
            None => fields.add(name, ()),
        }
    }
    if let Some(value) = details.forwarded_for {
        fields.header("x_forwarded_for", value);
    }
    fields.millis("upstream_service_time", details.service_time);
    fields.add("connection_security_policy", end.security);
    text.push(b'}');
}

fn subset(cluster: &Cluster) -> Option<&str> {
    (!cluster.key.subset.is_empty()).then_some(&*cluster.key.subset)
}

fn push(text: &mut Vec<u8>, value: impl Display) {
    // Writing to memory cannot fail.
    let _ = write!(text, "{value}");
}

fn push_number(text: &mut Vec<u8>, number: impl Serialize) {
    let _ = serde_json::to_writer(text, &number);
}

fn push_address(text: &mut Vec<u8>, address: &SocketAddr) {
    match address {
        SocketAddr::V4(address) => push_v4(text, *address),
        SocketAddr::V6(_) => push(text, address),
    }
}

fn push_v4(text: &mut Vec<u8>, address: SocketAddrV4) {
    for (index, octet) in address.ip().octets().into_iter().enumerate() {
        if index > 0 {
            text.push(b'.');
        }
        push_number(text, octet);
    }
    text.push(b':');
    push_number(text, address.port());
}

fn push_millis(text: &mut Vec<u8>, duration: Duration) {
    // To the nearest microsecond.
    let micros = (duration.as_nanos() + 500) / 1000;
    let micros = u64::try_from(micros).unwrap_or(u64::MAX);
    push_number(text, micros / 1000);
    text.push(b'.');
    push_thousandths(text, micros % 1000);
}

fn push_thousandths(text: &mut Vec<u8>, thousandths: u64) {
    for power in [100, 10, 1] {
        let digit = u8::try_from(thousandths / power % 10).unwrap_or_default();
        text.push(b'0' + digit);
    }
}

thread_local! {
    /// The second that was written last, and its text.
    static SECOND: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
}

/// RFC 3339 in UTC with milliseconds.
fn push_time(text: &mut Vec<u8>, at: SystemTime) {
    let Ok(since) = at.duration_since(SystemTime::UNIX_EPOCH) else {
        text.push(b'-');
        return;
    };
    SECOND.with_borrow_mut(|(second, known)| {
        if *second != since.as_secs() {
            let whole = SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs());
            let Ok(whole) = Timestamp::try_from(whole) else {
                text.push(b'-');
                return;
            };
            *known = whole.strftime("%Y-%m-%dT%H:%M:%S").to_string();
            *second = since.as_secs();
        }
        text.extend_from_slice(known.as_bytes());
        text.push(b'.');
        push_thousandths(text, u64::from(since.subsec_millis()));
        text.push(b'Z');
    });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut text = Vec::new();
        write(&mut text);
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn times_are_those_of_jiff() {
        for millis in [0, 1, 999, 1_000, 1_763_712_345_678, 4_102_444_800_123] {
            let at = SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
            let wanted = format!("{:.3}", Timestamp::try_from(at).unwrap());
            assert_eq!(text(|text| push_time(text, at)), wanted);
        }
        let before = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(text(|text| push_time(text, before)), "-");
    }

    proptest! {
        #[test]
        fn milliseconds_have_three_decimals(nanos in 0..u64::MAX / 2) {
            let written = text(|text| push_millis(text, Duration::from_nanos(nanos)));
            let micros = (nanos + 500) / 1000;
            prop_assert_eq!(written, format!("{}.{:03}", micros / 1000, micros % 1000));
        }

        #[test]
        fn addresses_are_those_of_the_standard_library(address: SocketAddr) {
            prop_assert_eq!(text(|text| push_address(text, &address)), address.to_string());
        }
    }
}

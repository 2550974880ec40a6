//! The JSON form of a line. These names are a contract: see the README.

use std::cell::RefCell;
use std::fmt::Display;
use std::io::Write as _;
use std::net::{SocketAddr, SocketAddrV4};
use std::time::{Duration, SystemTime};

use http::{HeaderValue, Version};
use jiff::Timestamp;

use crate::account::record::{ConnectionLine, Origin};
use crate::account::request::{RequestDetails, RequestEnd};
use crate::account::series::FlagSet;
use crate::connect::TlsFacts;
use crate::endpoint::resolved::Destination;
use crate::identify::Spoken;
use crate::policy::model::HostPattern;
use crate::policy::snapshot::{Cluster, Service};
use crate::secret::iana_name;

/// What stands before a value: a comma and the field's name, which needs no
/// escapes, as one piece of text.
macro_rules! key {
    ($name:literal) => {
        concat!(",\"", $name, "\":").as_bytes()
    };
}

/// Fields of an object, each with a comma before it. The keys are those of
/// [`key`].
struct Fields<'t>(&'t mut Vec<u8>);

impl Fields<'_> {
    fn key(&mut self, key: &[u8]) {
        self.0.extend_from_slice(key);
    }

    fn null(&mut self, key: &[u8]) {
        self.key(key);
        self.0.extend_from_slice(b"null");
    }

    fn text(&mut self, key: &[u8], value: &str) {
        self.key(key);
        push_text(self.0, value);
    }

    /// `null` for none.
    fn text_or_null(&mut self, key: &[u8], value: Option<&str>) {
        match value {
            Some(value) => self.text(key, value),
            None => self.null(key),
        }
    }

    /// Left out where there is none.
    fn text_if(&mut self, key: &[u8], value: Option<&str>) {
        if let Some(value) = value {
            self.text(key, value);
        }
    }

    fn number(&mut self, key: &[u8], value: impl itoa::Integer) {
        self.key(key);
        push_number(self.0, value);
    }

    /// What needs no escapes.
    fn plain(&mut self, key: &[u8], value: impl FnOnce(&mut Vec<u8>)) {
        self.key(key);
        self.0.push(b'"');
        value(self.0);
        self.0.push(b'"');
    }

    fn address(&mut self, key: &[u8], address: &SocketAddr) {
        self.plain(key, |text| push_address(text, address));
    }

    fn endpoint(&mut self, endpoint: Option<&Destination>) {
        let key = key!("endpoint");
        match endpoint {
            Some(Destination::Tcp(address)) => self.address(key, address),
            Some(other) => self.text(key, &other.to_string()),
            None => self.null(key),
        }
    }

    /// Milliseconds with three decimals.
    fn millis(&mut self, key: &[u8], duration: Option<Duration>) {
        match duration {
            Some(duration) => {
                self.key(key);
                push_millis(self.0, duration);
            }
            None => self.null(key),
        }
    }

    /// Bytes that are no text are replaced.
    fn header(&mut self, key: &[u8], value: &HeaderValue) {
        let value = value.as_bytes();
        if value.is_ascii() && !needs_escape(value) {
            self.plain(key, |text| text.extend_from_slice(value));
        } else {
            self.text(key, &String::from_utf8_lossy(value));
        }
    }

    fn header_or_null(&mut self, key: &[u8], value: Option<&HeaderValue>) {
        match value {
            Some(value) => self.header(key, value),
            None => self.null(key),
        }
    }

    /// `-` for none.
    fn flags(&mut self, flags: FlagSet) {
        if flags == FlagSet::default() {
            self.plain(key!("response_flags"), |text| text.push(b'-'));
        } else {
            self.text(key!("response_flags"), &flags.text());
        }
    }

    /// The first two fields of a line.
    fn start(&mut self, at: SystemTime, duration: Duration) {
        self.0.extend_from_slice(b"{\"start_time\":\"");
        push_time(self.0, at);
        self.0.extend_from_slice(b"\",\"duration_ms\":");
        push_millis(self.0, duration);
    }
}

/// What the lines of one connection and of its requests have in common, as
/// fields with a comma before each.
pub(in crate::account) fn origin(text: &mut Vec<u8>, origin: &Origin, service: Option<&Service>) {
    let captured = &origin.captured;
    let mut fields = Fields(text);
    fields.text(key!("via"), if origin.direct { "direct" } else { "proxy" });
    fields.number(key!("pid"), captured.caller.pid);
    fields.text(key!("comm"), &captured.caller.comm.to_string());
    fields.number(key!("uid"), captured.caller.uid);
    fields.number(key!("cgroup"), captured.caller.cgroup);
    fields.number(key!("netns"), captured.caller.netns);
    fields.text(key!("namespace"), &origin.workload.client.namespace);
    fields.text(key!("workload"), &origin.workload.name);
    let instance = origin.workload.instance.as_deref();
    fields.text_if(
        key!("workload_instance"),
        // A cgroup that is nobody's unit or container is both.
        instance.filter(|instance| *instance != &*origin.workload.name),
    );
    fields.address(key!("client_address"), &captured.peer);
    fields.address(key!("original_destination"), &captured.original);
    if let Some(service) = service {
        // `HOST:PORT`.
        fields.plain(key!("service"), |text| {
            push_host(text, &service.key.host);
            text.push(b':');
            push_number(text, service.key.port);
        });
        fields.text(key!("service_namespace"), &service.key.namespace);
    } else {
        fields.null(key!("service"));
        fields.null(key!("service_namespace"));
    }
}

pub(in crate::account) fn connection(text: &mut Vec<u8>, line: &ConnectionLine) {
    let mut fields = Fields(text);
    fields.start(line.origin.started_at, line.duration);
    origin(fields.0, &line.origin, line.service.as_deref());
    fields.text_if(key!("subset"), line.cluster.as_deref().and_then(subset));
    fields.endpoint(line.endpoint.as_ref());
    if let Some(local) = &line.local {
        fields.address(key!("upstream_local_address"), local);
    }
    fields.number(key!("attempts"), line.attempts);
    fields.number(key!("bytes_received"), line.received);
    fields.number(key!("bytes_sent"), line.sent);
    fields.flags(line.flags);
    fields.text_if(key!("cause"), line.cause.as_deref());
    fields.text(key!("protocol"), "tcp");
    // The name that the application asked for.
    fields.text_or_null(key!("host"), line.host.as_deref());
    let spoken = match &line.spoken {
        Some(Spoken::Http) => "http",
        Some(Spoken::Tls { .. }) => "tls",
        Some(Spoken::Opaque | Spoken::Unheard) => "opaque",
        None => "-",
    };
    fields.text(key!("spoken"), spoken);
    let tls = line.tls.as_ref();
    // Sent to the service, or by an application that speaks TLS itself.
    let spoken_sni = match &line.spoken {
        Some(Spoken::Tls { sni }) => sni.as_deref(),
        _ => None,
    };
    let sni = tls.and_then(|tls| tls.sni.as_deref()).or(spoken_sni);
    fields.text_or_null(key!("sni"), sni);
    fields.text_or_null(key!("tls_version"), tls.map(TlsFacts::version_name));
    let cipher = tls.and_then(|tls| tls.cipher).map(iana_name);
    fields.text_or_null(key!("tls_cipher"), cipher.as_deref());
    if let Some(tls) = tls {
        fields.key(key!("tls_resumed"));
        let resumed: &[u8] = if tls.resumed { b"true" } else { b"false" };
        fields.0.extend_from_slice(resumed);
    }
    fields.millis(key!("connect_ms"), line.connect_time);
    fields.millis(key!("tls_handshake_ms"), line.tls_time);
    fields.text_if(key!("note"), line.note);
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
    text.reserve(common.len() + 1024);
    let mut fields = Fields(text);
    fields.start(started, end.duration);
    fields.0.extend_from_slice(common);
    fields.text_if(key!("subset"), details.cluster.and_then(subset));
    fields.endpoint(details.endpoint);
    if let Some(local) = &details.upstream_local {
        fields.address(key!("upstream_local_address"), local);
    }
    fields.number(key!("attempts"), end.attempts);
    fields.number(key!("bytes_received"), end.received);
    fields.number(key!("bytes_sent"), end.sent);
    fields.flags(flags);
    fields.text_if(key!("cause"), details.cause);
    let protocol = match details.protocol {
        Version::HTTP_09 | Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    };
    fields.text(key!("protocol"), protocol);
    fields.text(key!("method"), details.method.as_str());
    let path = details.path.map(http::uri::PathAndQuery::as_str);
    fields.text_or_null(key!("path"), path);
    fields.header_or_null(key!("authority"), details.authority);
    fields.number(key!("response_code"), end.status);
    let answer = details.answer.or(details.cause);
    fields.text_or_null(key!("response_code_details"), answer);
    if let Some(status) = end.grpc {
        fields.number(key!("grpc_status"), status);
    }
    fields.text_or_null(key!("route_name"), details.route);
    match details.cluster {
        Some(cluster) => fields.plain(key!("upstream_cluster"), |text| {
            push_cluster(text, cluster);
        }),
        None => fields.null(key!("upstream_cluster")),
    }
    fields.header_or_null(key!("request_id"), details.request_id);
    fields.header_or_null(key!("user_agent"), details.user_agent);
    if let Some(value) = details.forwarded_for {
        fields.header(key!("x_forwarded_for"), value);
    }
    fields.millis(key!("upstream_service_time"), details.service_time);
    fields.text(key!("connection_security_policy"), end.security);
    text.push(b'}');
}

fn subset(cluster: &Cluster) -> Option<&str> {
    (!cluster.key.subset.is_empty()).then_some(&*cluster.key.subset)
}

fn push(text: &mut Vec<u8>, value: impl Display) {
    // Writing to memory cannot fail.
    let _ = write!(text, "{value}");
}

/// With quotes, and escapes where it needs any.
fn push_text(text: &mut Vec<u8>, value: &str) {
    if needs_escape(value.as_bytes()) {
        // Neither a string nor writing to memory can fail.
        let _ = serde_json::to_writer(text, value);
    } else {
        text.push(b'"');
        text.extend_from_slice(value.as_bytes());
        text.push(b'"');
    }
}

/// Whether text must not stand in JSON as it is (RFC 8259 section 7). Without
/// an early end, so that the compiler looks at many bytes at once.
fn needs_escape(text: &[u8]) -> bool {
    let escaped = |byte: u8| byte < b' ' || byte == b'"' || byte == b'\\';
    text.iter()
        .fold(false, |found, &byte| found | escaped(byte))
}

fn push_number(text: &mut Vec<u8>, number: impl itoa::Integer) {
    text.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// A host of a ServiceEntry: a DNS name, maybe with a wildcard.
fn push_host(text: &mut Vec<u8>, host: &HostPattern) {
    match host.exact() {
        Some(name) => text.extend_from_slice(name.as_bytes()),
        None => push(text, host),
    }
}

/// Envoy's name of a cluster. Its parts are DNS names, which need no escapes.
fn push_cluster(text: &mut Vec<u8>, cluster: &Cluster) {
    let key = &cluster.key;
    text.extend_from_slice(b"outbound|");
    push_number(text, key.service.port);
    text.push(b'|');
    text.extend_from_slice(key.subset.as_bytes());
    text.push(b'|');
    push_host(text, &key.service.host);
}

fn push_address(text: &mut Vec<u8>, address: &SocketAddr) {
    match address {
        SocketAddr::V4(address) => push_v4(text, *address),
        SocketAddr::V6(_) => push(text, address),
    }
}

fn push_v4(text: &mut Vec<u8>, address: SocketAddrV4) {
    // 255.255.255.255:65535
    let mut written = [0; 21];
    let mut length = 0;
    let mut add = |byte| {
        written[length] = byte;
        length += 1;
    };
    for (index, octet) in address.ip().octets().into_iter().enumerate() {
        if index > 0 {
            add(b'.');
        }
        if octet >= 100 {
            add(b'0' + octet / 100);
        }
        if octet >= 10 {
            add(b'0' + octet / 10 % 10);
        }
        add(b'0' + octet % 10);
    }
    add(b':');
    text.extend_from_slice(&written[..length]);
    push_number(text, address.port());
}

fn push_millis(text: &mut Vec<u8>, duration: Duration) {
    // To the nearest microsecond.
    let part = u64::from(duration.subsec_nanos() + 500) / 1000;
    let micros = duration
        .as_secs()
        .saturating_mul(1_000_000)
        .saturating_add(part);
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
        fn text_is_that_of_serde(value: String) {
            let wanted = serde_json::to_string(&value).unwrap();
            prop_assert_eq!(text(|text| push_text(text, &value)), wanted);
        }

        #[test]
        fn headers_are_read_back(value in "[\\t -~]{0,40}", bytes: Vec<u8>) {
            for value in [value.as_bytes(), &bytes] {
                let Ok(header) = HeaderValue::from_bytes(value) else {
                    continue;
                };
                let line = text(|text| {
                    text.extend_from_slice(b"{\"first\":0");
                    Fields(text).header(key!("header"), &header);
                    text.push(b'}');
                });
                let read: serde_json::Value = serde_json::from_str(&line).unwrap();
                let wanted = String::from_utf8_lossy(value);
                prop_assert_eq!(read["header"].as_str(), Some(&*wanted));
            }
        }

        #[test]
        fn addresses_are_those_of_the_standard_library(address: SocketAddr) {
            prop_assert_eq!(text(|text| push_address(text, &address)), address.to_string());
        }
    }
}

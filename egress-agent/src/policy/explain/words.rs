//! Model values as the words of the fields that they come from.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use ipnet::IpNet;

use super::report;
use crate::policy::model::{
    DocumentRef, EndpointAddress, EndpointSpec, Labels, LocalityPattern, Protocol, Resolution,
};
use crate::policy::routes::StringMatch;
use crate::policy::snapshot::Cluster;

pub(super) fn document(document: &DocumentRef) -> report::Document {
    report::Document {
        kind: document.kind.to_owned(),
        namespace: document.namespace.to_string(),
        name: document.name.to_string(),
        source: document.source.to_string(),
        line: document.line,
    }
}

pub(super) fn labels(labels: &Labels) -> BTreeMap<String, String> {
    labels
        .iter()
        .map(|(key, value)| (key.to_string(), value.to_string()))
        .collect()
}

pub(super) const fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http => "HTTP",
        Protocol::Https => "HTTPS",
        Protocol::Http2 => "HTTP2",
        Protocol::Grpc => "GRPC",
        Protocol::GrpcWeb => "GRPC-WEB",
        Protocol::Tcp => "TCP",
        Protocol::Tls => "TLS",
        Protocol::Mongo => "MONGO",
        Protocol::Mysql => "MYSQL",
        Protocol::Redis => "REDIS",
        Protocol::Udp => "UDP",
        Protocol::Unset => "no protocol",
    }
}

pub(super) const fn resolution(resolution: Resolution) -> &'static str {
    match resolution {
        Resolution::None => "NONE",
        Resolution::Static => "STATIC",
        Resolution::Dns => "DNS",
        Resolution::DnsRoundRobin => "DNS_ROUND_ROBIN",
        Resolution::DynamicDns => "DYNAMIC_DNS",
    }
}

/// `HOST:PORT`, with the subset where there is one.
pub(super) fn cluster(cluster: &Cluster) -> String {
    let key = &cluster.key;
    let name = format!("{}:{}", cluster.target.host, cluster.target.port);
    if key.subset.is_empty() {
        name
    } else {
        format!("{name} subset {}", key.subset)
    }
}

/// A single address without its prefix length.
pub(super) fn network(net: IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() {
        net.addr().to_string()
    } else {
        net.to_string()
    }
}

/// Address and port, or Unix socket.
pub(super) fn address(endpoint: &EndpointSpec) -> String {
    match &endpoint.address {
        EndpointAddress::Ip(ip) => std::net::SocketAddr::new(*ip, endpoint.port).to_string(),
        EndpointAddress::Name(name) => format!("{name}:{}", endpoint.port),
        EndpointAddress::Unix(path) => format!("unix://{path}"),
    }
}

pub(super) fn locality(pattern: &LocalityPattern) -> String {
    pattern.parts.join("/")
}

/// As Istio writes durations, without parts that are zero.
pub(super) fn duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis == 0 {
        return "0s".to_owned();
    }
    let (hours, minutes) = (millis / 3_600_000, millis / 60_000 % 60);
    let (seconds, rest) = (millis / 1000 % 60, millis % 1000);
    let mut out = String::new();
    for (count, unit) in [(hours, "h"), (minutes, "m"), (seconds, "s"), (rest, "ms")] {
        if count > 0 {
            let _ = write!(out, "{count}{unit}");
        }
    }
    out
}

/// `none` where off.
pub(super) fn limit(limit: Option<Duration>) -> String {
    limit.map_or_else(|| "none".to_owned(), duration)
}

pub(super) fn count(count: u32) -> String {
    if count >= i32::MAX as u32 {
        "unlimited".to_owned()
    } else {
        count.to_string()
    }
}

/// Parts per million as per cent.
pub(super) fn share(parts_per_million: u32) -> String {
    format!("{}%", f64::from(parts_per_million) / 10_000.0)
}

pub(super) fn string_match(wanted: &StringMatch) -> String {
    match wanted {
        StringMatch::Present => "is present".to_owned(),
        StringMatch::Exact(text) => format!("is {text}"),
        StringMatch::Prefix(text) => format!("starts with {text}"),
        StringMatch::Regex(regex) => {
            let text = regex.as_str();
            let inner = text
                .strip_prefix(r"\A(?:")
                .and_then(|text| text.strip_suffix(r")\z"));
            format!("matches {}", inner.unwrap_or(text))
        }
    }
}

pub(super) fn setting(field: &str, value: impl Into<String>, default: bool) -> report::Setting {
    report::Setting {
        field: field.to_owned(),
        value: value.into(),
        default,
    }
}

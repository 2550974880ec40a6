//! The checked model: values only, with every default resolved and nothing
//! left to parse. Units and defaults are those of the Istio field named.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

mod tls;
mod traffic;

pub use tls::{ClientTls, CredentialForm, HeaderCredential, Identity, StartTls, TlsExtra, Trust};
pub use traffic::{
    Algorithm, ConnectionPool, HashKey, HashTable, HealthCheck, Keepalive, LoadBalancer,
    LocalityLb, LocalityPattern, OutlierDetection, Probe, ProxyProtocol, RetryBudget,
    TrafficPolicy, Tunnel, UpstreamHttp, Warmup,
};

/// Labels of a workload or an endpoint.
pub type Labels = BTreeMap<Box<str>, Box<str>>;

/// Where a value was written: document and place, for messages and `explain`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct DocumentRef {
    /// `ServiceEntry`, `DestinationRule` or `VirtualService`.
    pub kind: &'static str,
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// File, or the name of another source.
    pub source: Arc<str>,
    /// Line of the document's first line, from 1.
    pub line: u32,
}

impl fmt::Display for DocumentRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// A host of a ServiceEntry, DestinationRule or VirtualService, lower case.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum HostPattern {
    /// A full name (no trailing dot) or an IP address as text.
    Exact(Arc<str>),
    /// `*` followed by this suffix (which is empty for `*` itself, and starts
    /// with a dot for `*.a.com`).
    Suffix(Arc<str>),
}

impl HostPattern {
    /// Whether `name` (lower case, no trailing dot) is covered: equal, or a
    /// non-empty label part before the suffix.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *name,
            Self::Suffix(suffix) if suffix.starts_with('.') => {
                name.len() > suffix.len() && name.ends_with(&**suffix)
            }
            Self::Suffix(suffix) => name.ends_with(&**suffix),
        }
    }

    /// The full name, unless this is a wildcard.
    pub fn exact(&self) -> Option<&Arc<str>> {
        match self {
            Self::Exact(name) => Some(name),
            Self::Suffix(_) => None,
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Suffix(suffix) => write!(f, "*{suffix}"),
        }
    }
}

/// `exportTo`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Visibility {
    /// `*`, or empty.
    All,
    /// These namespaces only (`.` already resolved); empty for `~`.
    Namespaces(Vec<Arc<str>>),
}

impl Visibility {
    /// Whether a client in `namespace` may see the thing.
    pub fn includes(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Namespaces(names) => names.iter().any(|name| **name == *namespace),
        }
    }
}

/// `ports[].protocol` of a ServiceEntry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Protocol {
    /// `HTTP` and `HTTP_PROXY`.
    Http,
    /// `HTTPS`.
    Https,
    /// `HTTP2`.
    Http2,
    /// `GRPC`.
    Grpc,
    /// `GRPC-WEB`.
    GrpcWeb,
    /// `TCP`.
    Tcp,
    /// `TLS`.
    Tls,
    /// `MONGO`.
    Mongo,
    /// `MYSQL`.
    Mysql,
    /// `REDIS`.
    Redis,
    /// `UDP`: registered, and refused at `connect` and `sendmsg`.
    Udp,
    /// None written: decided by the client's first bytes.
    Unset,
}

impl Protocol {
    /// HTTP in the clear is what the application speaks on such a port.
    pub const fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2 | Self::Grpc | Self::GrpcWeb)
    }

    /// TLS is what the wire carries on such a port (`HTTPS`, `TLS`).
    pub const fn is_tls(self) -> bool {
        matches!(self, Self::Https | Self::Tls)
    }

    /// The client of such a protocol always speaks first, so its first bytes
    /// may be waited for.
    pub const fn client_speaks_first(self) -> bool {
        self.is_http() || self.is_tls()
    }
}

/// `resolution` of a ServiceEntry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Resolution {
    /// To the address the client dialled.
    None,
    /// The listed endpoints.
    Static,
    /// Every address of the newest answer; vanished ones drain.
    Dns,
    /// Every address of the newest answer, round robin by default; live
    /// connections are never drained.
    DnsRoundRobin,
    /// The name that the application asked for, resolved per connection.
    DynamicDns,
}

/// `region/zone/subzone`; an empty part is unknown.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Locality {
    /// First part.
    pub region: Box<str>,
    /// Second part.
    pub zone: Box<str>,
    /// Third part.
    pub subzone: Box<str>,
}

impl Locality {
    /// Reads `region[/zone[/subzone]]`; further segments are ignored.
    pub fn parse(text: &str) -> Self {
        let mut parts = text.split('/').map(Box::from);
        let mut next = || parts.next().unwrap_or_default();
        Self {
            region: next(),
            zone: next(),
            subzone: next(),
        }
    }
}

impl fmt::Display for Locality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.region)?;
        if !self.zone.is_empty() {
            write!(f, "/{}", self.zone)?;
        }
        if !self.subzone.is_empty() {
            write!(f, "/{}", self.subzone)?;
        }
        Ok(())
    }
}

/// Where an endpoint is.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum EndpointAddress {
    /// An IP address.
    Ip(IpAddr),
    /// A name to resolve (DNS resolutions only).
    Name(Arc<str>),
    /// A Unix socket path; an abstract one starts with `@`.
    Unix(Arc<str>),
}

/// One of a ServiceEntry's `endpoints[]`, for one service port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointSpec {
    /// Address.
    pub address: EndpointAddress,
    /// Port: `ports` of the endpoint, else `targetPort`, else the service port.
    pub port: u16,
    /// `weight`, at least 1.
    pub weight: u32,
    /// `locality`, or the label that stands for it.
    pub locality: Locality,
    /// `labels`.
    pub labels: Labels,
}

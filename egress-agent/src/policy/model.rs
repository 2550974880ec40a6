//! The checked model: values only, with every default resolved and nothing
//! left to parse. Units and defaults are those of the Istio field named.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

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

impl Default for TrafficPolicy {
    /// What acts without a DestinationRule.
    fn default() -> Self {
        Self {
            connection_pool: ConnectionPool::default(),
            load_balancer: LoadBalancer::default(),
            outlier_detection: None,
            tls: None,
            tunnel: None,
            proxy_protocol: None,
            retry_budget: None,
            health_check: None,
        }
    }
}

/// `trafficPolicy` as it applies to one service port and subset, with every
/// default filled in.
#[derive(Clone, PartialEq, Debug)]
pub struct TrafficPolicy {
    /// `connectionPool`.
    pub connection_pool: ConnectionPool,
    /// `loadBalancer`.
    pub load_balancer: LoadBalancer,
    /// `outlierDetection`; `None` when absent.
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS to originate; `None` sends the bytes as the client spoke them.
    pub tls: Option<ClientTls>,
    /// `tunnel`.
    pub tunnel: Option<Tunnel>,
    /// `proxyProtocol`.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// `retryBudget`.
    pub retry_budget: Option<RetryBudget>,
    /// `egress-agent.dev/health-check`.
    pub health_check: Option<HealthCheck>,
}

/// `connectionPool`.
#[derive(Clone, PartialEq, Debug)]
pub struct ConnectionPool {
    /// `tcp.maxConnections` (2^32-1).
    pub max_connections: u32,
    /// `tcp.connectTimeout` (10s): TCP and TLS handshake together.
    pub connect_timeout: Duration,
    /// `tcp.maxConnectionDuration` (none).
    pub max_connection_duration: Option<Duration>,
    /// `tcp.idleTimeout` (1h); `None` when written as `0s`.
    pub idle_timeout: Option<Duration>,
    /// `tcp.tcpKeepalive`; `None` leaves SO_KEEPALIVE off.
    pub keepalive: Option<Keepalive>,
    /// `http.http1MaxPendingRequests` (2^32-1), for HTTP/1.1 and HTTP/2.
    pub max_pending_requests: u32,
    /// `http.http2MaxRequests` (2^32-1), for HTTP/1.1 and HTTP/2.
    pub max_requests: u32,
    /// `http.maxRequestsPerConnection`; `None` = unlimited.
    pub max_requests_per_connection: Option<u32>,
    /// `http.maxRetries` (2^32-1), in flight for the whole cluster.
    pub max_retries: u32,
    /// `http.idleTimeout`, else `tcp.idleTimeout`, else 1h.
    pub http_idle_timeout: Option<Duration>,
    /// HTTP version towards the service.
    pub http_version: UpstreamHttp,
    /// `http.maxConcurrentStreams` (2^31-1).
    pub max_concurrent_streams: u32,
    /// `http.http2KeepAlive` as (interval, timeout).
    pub http2_keepalive: Option<(Duration, Duration)>,
}

impl Default for ConnectionPool {
    fn default() -> Self {
        let hour = Duration::from_hours(1);
        Self {
            max_connections: u32::MAX,
            connect_timeout: Duration::from_secs(10),
            max_connection_duration: None,
            idle_timeout: Some(hour),
            keepalive: None,
            max_pending_requests: u32::MAX,
            max_requests: u32::MAX,
            max_requests_per_connection: None,
            max_retries: u32::MAX,
            http_idle_timeout: Some(hour),
            http_version: UpstreamHttp::ByPort,
            max_concurrent_streams: i32::MAX as u32,
            http2_keepalive: None,
        }
    }
}

/// HTTP version towards the service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UpstreamHttp {
    /// HTTP/2 when the port says HTTP2 or GRPC, else HTTP/1.1.
    ByPort,
    /// `h2UpgradePolicy: UPGRADE`: HTTP/2.
    Upgrade,
    /// `useClientProtocol`: the client's version.
    SameAsClient,
}

/// `tcpKeepalive`; `None` leaves the operating system's value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Keepalive {
    /// `time`: idle time before the first probe.
    pub time: Option<Duration>,
    /// `interval` between probes.
    pub interval: Option<Duration>,
    /// `probes` without answer before the connection is dead.
    pub probes: Option<u32>,
}

/// `loadBalancer`.
#[derive(Clone, PartialEq, Debug)]
pub struct LoadBalancer {
    /// `simple` or `consistentHash`.
    pub algorithm: Algorithm,
    /// `localityLbSetting`.
    pub locality: LocalityLb,
    /// `warmup`.
    pub warmup: Option<Warmup>,
}

impl Default for LoadBalancer {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::LeastRequest,
            locality: LocalityLb::default(),
            warmup: None,
        }
    }
}

/// How one endpoint is chosen among those of a priority level.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Algorithm {
    /// `LEAST_REQUEST`, the default.
    LeastRequest,
    /// `ROUND_ROBIN`, weighted.
    RoundRobin,
    /// `RANDOM`.
    Random,
    /// `PASSTHROUGH`: the address that the client dialled.
    Passthrough,
    /// `consistentHash`.
    Hash {
        /// What is hashed.
        key: HashKey,
        /// Ring or table.
        table: HashTable,
    },
}

/// What `consistentHash` hashes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HashKey {
    /// `httpHeaderName`, lower case.
    Header(Box<str>),
    /// `httpCookie`.
    Cookie {
        /// `name`.
        name: Box<str>,
        /// `path`.
        path: Option<Box<str>>,
        /// `ttl`; `None`: the cookie is never set, only read. Zero: a session
        /// cookie.
        ttl: Option<Duration>,
        /// `attributes` as written.
        attributes: Vec<(Box<str>, Box<str>)>,
    },
    /// `useSourceIp`.
    SourceIp,
    /// `httpQueryParameterName`.
    QueryParameter(Box<str>),
}

/// Algorithm of `consistentHash`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HashTable {
    /// `ringHash.minimumRingSize` (1024).
    Ring(u64),
    /// `maglev.tableSize`, a prime (65537).
    Maglev(u64),
}

/// `localityLbSetting`.
#[derive(Clone, PartialEq, Debug)]
pub struct LocalityLb {
    /// `enabled` (true).
    pub enabled: bool,
    /// `distribute`: from, and the weight in per cent of each destination.
    pub distribute: Vec<(LocalityPattern, Vec<(LocalityPattern, u32)>)>,
    /// `failover`: from region, to region.
    pub failover: Vec<(Box<str>, Box<str>)>,
    /// `failoverPriority`: label, and the value that an endpoint must have
    /// (`None`: the client's own value).
    pub failover_priority: Vec<(Box<str>, Option<Box<str>>)>,
}

impl Default for LocalityLb {
    fn default() -> Self {
        Self {
            enabled: true,
            distribute: Vec::new(),
            failover: Vec::new(),
            failover_priority: Vec::new(),
        }
    }
}

/// `region/zone/subzone` where the last part may be `*` or absent.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct LocalityPattern {
    /// Parts before the wildcard or the end, one to three.
    pub parts: Vec<Box<str>>,
}

/// `warmup`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Warmup {
    /// `duration`.
    pub duration: Duration,
    /// `minimumPercent` (10), 0 to 100.
    pub minimum_percent: f64,
    /// `aggression` (1), above 0.
    pub aggression: f64,
}

/// `outlierDetection`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OutlierDetection {
    /// `consecutive5xxErrors` (5); `None` when 0.
    pub consecutive_5xx: Option<u32>,
    /// `consecutiveGatewayErrors`; `None` when absent or 0.
    pub consecutive_gateway: Option<u32>,
    /// `splitExternalLocalOriginErrors`.
    pub split_local: bool,
    /// `consecutiveLocalOriginFailures` (5); `None` when 0.
    pub consecutive_local: Option<u32>,
    /// `interval` (10s).
    pub interval: Duration,
    /// `baseEjectionTime` (30s).
    pub base_ejection_time: Duration,
    /// `maxEjectionPercent`; `None` when unset: 10, but at least one host in
    /// each locality.
    pub max_ejection_percent: Option<u32>,
    /// `minHealthPercent` (0).
    pub min_health_percent: u32,
    /// `outlierDetectionHttpErrorCodes`; empty = every 5xx.
    pub http_error_codes: Vec<u16>,
}

/// `tls` of a trafficPolicy, when its mode is not DISABLE.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ClientTls {
    /// Client certificate, if any.
    pub identity: Identity,
    /// What the server's chain must lead to.
    pub trust: Trust,
    /// `sni`; `None`: the host requested.
    pub sni: Option<Arc<str>>,
    /// `subjectAltNames` (of the rule, else of the ServiceEntry); empty: the
    /// name sent as SNI.
    pub subject_alt_names: Vec<Arc<str>>,
    /// `insecureSkipVerify`.
    pub insecure_skip_verify: bool,
    /// Namespaces where a `credentialName` is looked for, first match wins:
    /// the rule's and the root namespace (the client's goes before them).
    pub secret_namespaces: Vec<Arc<str>>,
    /// Knobs that Istio has no field for.
    pub extra: TlsExtra,
}

impl ClientTls {
    /// `mode: SIMPLE` with nothing else: the system's roots, and the name of
    /// the host requested.
    pub fn simple() -> Self {
        Self {
            identity: Identity::None,
            trust: Trust::System { crl: None },
            sni: None,
            subject_alt_names: Vec::new(),
            insecure_skip_verify: false,
            secret_namespaces: Vec::new(),
            extra: TlsExtra::default(),
        }
    }
}

/// `egress-agent.dev/` annotations on TLS.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct TlsExtra {
    /// `egress-agent.dev/tls-min-version`: true for 1.3 only.
    pub only_tls13: bool,
    /// `egress-agent.dev/tls-cipher-suites`, IANA names; empty: the defaults.
    pub cipher_suites: Vec<Box<str>>,
    /// `egress-agent.dev/starttls`.
    pub starttls: Option<StartTls>,
}

/// A protocol whose TLS starts inside it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum StartTls {
    /// PostgreSQL's SSLRequest.
    Postgres,
    /// MySQL and MariaDB.
    Mysql,
    /// SMTP.
    Smtp,
    /// IMAP.
    Imap,
    /// LDAP.
    Ldap,
}

impl StartTls {
    /// As the annotation says it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Mysql => "mysql",
            Self::Smtp => "smtp",
            Self::Imap => "imap",
            Self::Ldap => "ldap",
        }
    }
}

/// Client certificate.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Identity {
    /// `mode: SIMPLE`.
    None,
    /// `clientCertificate` and `privateKey`.
    Files {
        /// PEM chain.
        certificate: PathBuf,
        /// PEM key.
        key: PathBuf,
    },
    /// `credentialName` with `mode: MUTUAL`.
    Secret(Arc<str>),
    /// `mode: ISTIO_MUTUAL`.
    Mesh,
}

/// Trust anchors and revocation.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Trust {
    /// The operating system's roots, and an optional `caCrl`.
    System {
        /// `caCrl`.
        crl: Option<PathBuf>,
    },
    /// `caCertificates`, and an optional `caCrl`.
    File {
        /// PEM certificates.
        ca: PathBuf,
        /// `caCrl`.
        crl: Option<PathBuf>,
    },
    /// The CA of a `credentialName`.
    Secret(Arc<str>),
    /// The mesh's own roots.
    Mesh,
}

/// `tunnel`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tunnel {
    /// POST rather than CONNECT.
    pub post: bool,
    /// `targetHost`.
    pub target_host: Arc<str>,
    /// `targetPort`.
    pub target_port: u16,
}

/// `proxyProtocol.version`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProxyProtocol {
    /// V1, text.
    V1,
    /// V2, binary.
    V2,
}

/// `retryBudget`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct RetryBudget {
    /// `percent` (20) of active and pending requests, 0 to 100.
    pub percent: f64,
    /// `minRetryConcurrency` (3).
    pub min_retry_concurrency: u32,
    /// `budgetInterval` (0).
    pub interval: Duration,
}

/// `egress-agent.dev/health-check`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HealthCheck {
    /// What is tried.
    pub probe: Probe,
    /// Between two checks of one endpoint.
    pub interval: Duration,
    /// Of one check.
    pub timeout: Duration,
    /// Failures in a row before an endpoint is out.
    pub unhealthy_threshold: u32,
    /// Successes in a row before it is back.
    pub healthy_threshold: u32,
}

/// What a health check tries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Probe {
    /// A TCP connection.
    Tcp,
    /// A TLS handshake with the policy's settings.
    Tls,
    /// An HTTP request.
    Http {
        /// Path and query.
        path: Box<str>,
        /// Statuses that count as well, as inclusive ranges.
        expected: Vec<(u16, u16)>,
    },
}

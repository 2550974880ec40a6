//! `trafficPolicy`, but for TLS.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use super::{ClientTls, HeaderCredential};

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
            credential: None,
        }
    }
}

/// `trafficPolicy` as it applies to one service port and subset, with every
/// default filled in.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
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
    /// `egress-agent.dev/inject-credential`.
    pub credential: Option<HeaderCredential>,
}

/// `connectionPool`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
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
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum UpstreamHttp {
    /// HTTP/2 when the port says HTTP2 or GRPC, else HTTP/1.1.
    ByPort,
    /// `h2UpgradePolicy: UPGRADE`: HTTP/2.
    Upgrade,
    /// `useClientProtocol`: the client's version.
    SameAsClient,
}

/// `tcpKeepalive`; `None` leaves the operating system's value.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Keepalive {
    /// `time`: idle time before the first probe.
    pub time: Option<Duration>,
    /// `interval` between probes.
    pub interval: Option<Duration>,
    /// `probes` without answer before the connection is dead.
    pub probes: Option<u32>,
}

/// `loadBalancer`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
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
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
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
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
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
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum HashTable {
    /// `ringHash.minimumRingSize` (1024).
    Ring(u64),
    /// `maglev.tableSize`, a prime (65537).
    Maglev(u64),
}

/// `localityLbSetting`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
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

// What was checked is no NaN.
impl Eq for Warmup {}

impl Hash for Warmup {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.duration.hash(state);
        bits(self.minimum_percent).hash(state);
        bits(self.aggression).hash(state);
    }
}

/// Equal for numbers that are equal: zero has two signs.
fn bits(number: f64) -> u64 {
    (number + 0.0).to_bits()
}

/// `outlierDetection`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
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

/// `tunnel`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Tunnel {
    /// POST rather than CONNECT.
    pub post: bool,
    /// `targetHost`.
    pub target_host: Arc<str>,
    /// `targetPort`.
    pub target_port: u16,
}

/// `proxyProtocol.version`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
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

// What was checked is no NaN.
impl Eq for RetryBudget {}

impl Hash for RetryBudget {
    fn hash<H: Hasher>(&self, state: &mut H) {
        bits(self.percent).hash(state);
        self.min_retry_concurrency.hash(state);
        self.interval.hash(state);
    }
}

/// `egress-agent.dev/health-check`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
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
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
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

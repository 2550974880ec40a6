//! The policy that acts on one port and subset, with defaults filled in.

use std::sync::Arc;
use std::time::Duration;

use super::rules::Rule;
use super::tls;
use crate::policy::check::load_balancer::MINIMUM_RING;
use crate::policy::document::Document;
use crate::policy::model::{
    Algorithm, ConnectionPool, HashKey, HashTable, HeaderCredential, HealthCheck, Keepalive,
    LoadBalancer, LocalityLb, LocalityPattern, OutlierDetection, ProxyProtocol, RetryBudget,
    TrafficPolicy, Tunnel, UpstreamHttp, Warmup,
};
use crate::policy::schema::destination_rule::{self as shape, Blocks, ProxyVersion, Subset};
use crate::policy::schema::load_balancer::{self as balancer, Simple};
use crate::policy::schema::outlier::Outlier;
use crate::policy::schema::pool::{Pool, Upgrade};
use crate::policy::schema::tls::Tls;
use crate::policy::schema::{Spanned, Time, annotation};

/// The blocks that act, each from where it is taken.
#[derive(Clone, Copy, Default)]
pub(super) struct Blocks4<'d> {
    pub(super) balancer: Option<&'d balancer::LoadBalancer>,
    pub(super) locality: Option<&'d balancer::Locality>,
    pub(super) pool: Option<&'d Pool>,
    pub(super) outlier: Option<&'d Outlier>,
    pub(super) tls: Option<&'d Tls>,
    tunnel: Option<&'d shape::Tunnel>,
    proxy_protocol: Option<&'d shape::ProxyProtocol>,
    retry_budget: Option<&'d shape::RetryBudget>,
    /// `tcp.idleTimeout` of the top-level policy, which alone is read.
    pub(super) idle_timeout: Option<Time>,
}

impl<'d> Blocks4<'d> {
    /// All four of these, present or not.
    fn replace(&mut self, blocks: &'d Blocks) {
        self.balancer = blocks.load_balancer.as_deref();
        self.locality = locality(blocks);
        self.pool = blocks.connection_pool.as_deref();
        self.outlier = blocks.outlier_detection.as_deref();
        self.tls = blocks.tls.as_deref();
    }

    /// Those of these that are present, each whole.
    fn overlay(&mut self, blocks: &'d Blocks) {
        if blocks.load_balancer.is_some() || blocks.misplaced_locality.is_some() {
            self.balancer = blocks.load_balancer.as_deref();
            self.locality = locality(blocks);
        }
        self.pool = blocks.connection_pool.as_deref().or(self.pool);
        self.outlier = blocks.outlier_detection.as_deref().or(self.outlier);
        self.tls = blocks.tls.as_deref().or(self.tls);
    }

    fn others(&mut self, policy: &'d shape::TrafficPolicy) {
        self.tunnel = policy.tunnel.as_deref().or(self.tunnel);
        self.proxy_protocol = policy.proxy_protocol.as_ref().or(self.proxy_protocol);
        self.retry_budget = policy.retry_budget.as_deref().or(self.retry_budget);
    }
}

/// `localityLbSetting` where it belongs, else where it does not.
fn locality(blocks: &Blocks) -> Option<&balancer::Locality> {
    let inner = blocks.load_balancer.as_deref();
    inner
        .and_then(|balancer| balancer.locality_lb_setting.as_deref())
        .or(blocks.misplaced_locality.as_deref())
}

fn for_port(policy: &shape::TrafficPolicy, port: u16) -> Option<&Blocks> {
    let mut settings = policy.port_level_settings.iter();
    let fits = |p: &&shape::PortPolicy| p.port.is_some_and(|p| p.number() == u32::from(port));
    settings.find(fits).map(|p| &p.blocks)
}

/// Whether a rule or a subset has settings of its own for a port.
pub(super) fn has_port(rule: &Rule<'_>, subset: Option<&Subset>, port: u16) -> bool {
    let policies = subset.and_then(|subset| subset.traffic_policy.as_deref());
    let mut policies = rule
        .policy
        .map(|(_, policy)| policy)
        .into_iter()
        .chain(policies);
    policies.any(|policy| for_port(policy, port).is_some())
}

/// The blocks that act on a port and subset: the rule's port settings or its
/// policy, then what the subset says.
pub(super) fn blocks<'d>(rule: &Rule<'d>, port: u16, subset: Option<&'d Subset>) -> Blocks4<'d> {
    let mut out = Blocks4::default();
    if let Some((_, policy)) = rule.policy {
        match for_port(policy, port) {
            Some(blocks) => out.replace(blocks),
            None => out.replace(&policy.blocks),
        }
        out.others(policy);
        let pool = policy.blocks.connection_pool.as_deref();
        out.idle_timeout = pool
            .and_then(|p| p.tcp.as_deref())
            .and_then(|tcp| tcp.idle_timeout);
    }
    if let Some(policy) = subset.and_then(|subset| subset.traffic_policy.as_deref()) {
        match for_port(policy, port) {
            Some(blocks) => out.replace(blocks),
            None => out.overlay(&policy.blocks),
        }
        out.others(policy);
    }
    out
}

/// Every default filled in.
pub(super) fn build(blocks: &Blocks4<'_>, tls: &tls::Facts<'_>) -> TrafficPolicy {
    TrafficPolicy {
        connection_pool: pool(blocks.pool, blocks.idle_timeout),
        load_balancer: load_balancer(blocks),
        outlier_detection: blocks.outlier.map(outlier),
        tls: blocks.tls.and_then(|settings| tls::client(settings, tls)),
        tunnel: blocks.tunnel.and_then(|tunnel| {
            Some(Tunnel {
                post: tunnel.protocol.as_ref().is_some_and(|p| &***p == "POST"),
                target_host: Arc::from(&***tunnel.target_host.as_ref()?),
                target_port: u16::try_from(tunnel.target_port?.value).ok()?,
            })
        }),
        proxy_protocol: blocks.proxy_protocol.map(|settings| {
            match settings
                .version
                .map(|version| version.value)
                .unwrap_or_default()
            {
                ProxyVersion::V1 => ProxyProtocol::V1,
                ProxyVersion::V2 => ProxyProtocol::V2,
            }
        }),
        retry_budget: blocks.retry_budget.map(|budget| RetryBudget {
            percent: budget.percent.map_or(20.0, |percent| percent.value),
            min_retry_concurrency: budget.min_retry_concurrency.map_or(3, |min| min.value),
            interval: budget
                .budget_interval
                .map_or(Duration::ZERO, |time| time.duration()),
        }),
        health_check: tls.documents().find_map(health_check),
        credential: tls
            .documents()
            .find_map(|document| credential(document, &tls.options.root_namespace)),
    }
}

fn health_check(document: &Arc<Document>) -> Option<HealthCheck> {
    let (value, _) = document.annotation("health-check")?;
    annotation::health_check(value).ok()
}

fn credential(document: &Arc<Document>, root: &Arc<str>) -> Option<HeaderCredential> {
    let (value, _) = document.annotation("inject-credential")?;
    let mut credential = annotation::inject_credential(value).ok()?;
    for namespace in [&document.id.namespace, root] {
        if !credential.secret_namespaces.contains(namespace) {
            credential.secret_namespaces.push(Arc::clone(namespace));
        }
    }
    Some(credential)
}

/// A limit where 0 means the default.
fn limit(value: Option<Spanned<i32>>) -> Option<u32> {
    let value = u32::try_from(value?.value).ok()?;
    (value > 0).then_some(value)
}

fn pool(pool: Option<&Pool>, idle: Option<Time>) -> ConnectionPool {
    let mut out = ConnectionPool::default();
    if let Some(idle) = idle {
        out.idle_timeout = (idle.nanoseconds > 0).then(|| idle.duration());
    }
    let tcp = pool.and_then(|pool| pool.tcp.as_deref());
    let http = pool.and_then(|pool| pool.http.as_deref());
    let default = out.http_idle_timeout;
    out.http_idle_timeout = match (
        http.and_then(|http| http.idle_timeout),
        tcp.and_then(|tcp| tcp.idle_timeout),
    ) {
        (Some(time), _) => Some(time.duration()),
        (None, Some(time)) => (time.nanoseconds > 0).then(|| time.duration()),
        (None, None) => default,
    };
    if let Some(tcp) = tcp {
        out.max_connections = limit(tcp.max_connections).unwrap_or(out.max_connections);
        out.connect_timeout = tcp
            .connect_timeout
            .map_or(out.connect_timeout, |t| t.duration());
        out.max_connection_duration = tcp.max_connection_duration.map(|t| t.duration());
        out.keepalive = tcp.tcp_keepalive.as_deref().map(|keepalive| Keepalive {
            time: keepalive.time.map(|t| t.duration()),
            interval: keepalive.interval.map(|t| t.duration()),
            probes: keepalive.probes.map(|p| p.value).filter(|p| *p > 0),
        });
    }
    if let Some(http) = http {
        let or = |value, default| limit(value).unwrap_or(default);
        out.max_pending_requests = or(http.http1_max_pending_requests, out.max_pending_requests);
        out.max_requests = or(http.http2_max_requests, out.max_requests);
        out.max_requests_per_connection = limit(http.max_requests_per_connection);
        out.max_retries = or(http.max_retries, out.max_retries);
        out.max_concurrent_streams = or(http.max_concurrent_streams, out.max_concurrent_streams);
        out.http_version = if http.use_client_protocol.is_some_and(|b| b.value) {
            UpstreamHttp::SameAsClient
        } else if http
            .h2_upgrade_policy
            .is_some_and(|u| u.value == Upgrade::Upgrade)
        {
            UpstreamHttp::Upgrade
        } else {
            UpstreamHttp::ByPort
        };
        out.http2_keepalive = http
            .http2_keep_alive
            .as_deref()
            .and_then(|ping| Some((ping.interval?.duration(), ping.timeout?.duration())));
    }
    out
}

fn load_balancer(blocks: &Blocks4<'_>) -> LoadBalancer {
    let written = blocks.balancer;
    let algorithm = match written.and_then(|balancer| balancer.consistent_hash.as_deref()) {
        Some(hash) => consistent_hash(hash),
        None => match written
            .and_then(|balancer| balancer.simple)
            .map(|s| s.value)
        {
            None | Some(Simple::Unspecified | Simple::LeastConn | Simple::LeastRequest) => {
                Algorithm::LeastRequest
            }
            Some(Simple::Random) => Algorithm::Random,
            Some(Simple::Passthrough) => Algorithm::Passthrough,
            Some(Simple::RoundRobin) => Algorithm::RoundRobin,
        },
    };
    let warms = matches!(algorithm, Algorithm::LeastRequest | Algorithm::RoundRobin);
    LoadBalancer {
        algorithm,
        locality: blocks.locality.map(locality_lb).unwrap_or_default(),
        warmup: written.filter(|_| warms).and_then(warmup),
    }
}

fn warmup(balancer: &balancer::LoadBalancer) -> Option<Warmup> {
    let (duration, written) = match (&balancer.warmup, balancer.warmup_duration_secs) {
        (Some(warmup), _) => (warmup.duration?, Some(warmup)),
        (None, old) => (old?, None),
    };
    Some(Warmup {
        duration: duration.duration(),
        minimum_percent: written
            .and_then(|w| w.minimum_percent)
            .map_or(10.0, |percent| percent.value),
        aggression: written.and_then(|w| w.aggression).map_or(1.0, |a| a.value),
    })
}

fn consistent_hash(hash: &balancer::Hash) -> Algorithm {
    let text = |text: &crate::policy::schema::Text| text.value.clone();
    let key = if let Some(name) = &hash.http_header_name {
        HashKey::Header(name.to_ascii_lowercase().into())
    } else if let Some(cookie) = &hash.http_cookie {
        let value = |a: &balancer::Attribute| a.value.as_ref().map(text).unwrap_or_default();
        let attributes = cookie.attributes.iter();
        HashKey::Cookie {
            name: cookie.name.as_ref().map(text).unwrap_or_default(),
            path: cookie
                .path
                .as_ref()
                .map(text)
                .filter(|path| !path.is_empty()),
            ttl: cookie.ttl.map(|ttl| ttl.duration()),
            attributes: attributes
                .filter_map(|a| Some((text(a.name.as_ref()?), value(a))))
                .collect(),
        }
    } else if let Some(name) = &hash.http_query_parameter_name {
        HashKey::QueryParameter(text(name))
    } else if hash.use_source_ip.is_some_and(|source| source.value) {
        HashKey::SourceIp
    } else {
        // Nothing to hash: any endpoint will do.
        return Algorithm::Random;
    };
    let table = if let Some(maglev) = &hash.maglev {
        HashTable::Maglev(maglev.table_size.map_or(65537, |size| size.value))
    } else {
        let ring = hash.ring_hash.and_then(|ring| ring.minimum_ring_size);
        let size = ring.or(hash.minimum_ring_size).map(|size| size.value);
        HashTable::Ring(size.filter(|size| *size > 0).unwrap_or(MINIMUM_RING))
    };
    Algorithm::Hash { key, table }
}

fn locality_lb(setting: &balancer::Locality) -> LocalityLb {
    let pattern = |text: &str| LocalityPattern {
        parts: text
            .splitn(3, '/')
            .filter(|part| *part != "*")
            .map(Box::from)
            .collect(),
    };
    let boxed = |text: &Option<crate::policy::schema::Text>| {
        text.as_ref()
            .map(|text| text.value.clone())
            .unwrap_or_default()
    };
    LocalityLb {
        enabled: setting.enabled.is_none_or(|enabled| enabled.value),
        distribute: setting
            .distribute
            .iter()
            .map(|rule| {
                let to = rule.to.iter();
                let from = rule.from.as_ref().map_or("", |from| &***from);
                (
                    pattern(from),
                    to.map(|(name, weight)| (pattern(name), weight.value))
                        .collect(),
                )
            })
            .collect(),
        failover: setting
            .failover
            .iter()
            .map(|rule| (boxed(&rule.from), boxed(&rule.to)))
            .collect(),
        failover_priority: setting
            .failover_priority
            .iter()
            .map(|label| match label.split_once('=') {
                Some((key, value)) => (key.into(), Some(value.into())),
                None => (label.value.clone(), None),
            })
            .collect(),
    }
}

fn outlier(outlier: &Outlier) -> OutlierDetection {
    let errors = |value: Option<Spanned<u32>>, default: u32| {
        let value = value.map_or(default, |value| value.value);
        (value > 0).then_some(value)
    };
    let time = |time: Option<Time>, default: u64| {
        time.map_or(Duration::from_secs(default), |time| time.duration())
    };
    let split = outlier
        .split_external_local_origin_errors
        .is_some_and(|s| s.value);
    OutlierDetection {
        consecutive_5xx: errors(outlier.consecutive_5xx_errors, 5),
        consecutive_gateway: errors(outlier.consecutive_gateway_errors, 0),
        split_local: split,
        consecutive_local: errors(outlier.consecutive_local_origin_failures, 5),
        interval: time(outlier.interval, 10),
        base_ejection_time: time(outlier.base_ejection_time, 30),
        max_ejection_percent: limit(outlier.max_ejection_percent),
        min_health_percent: limit(outlier.min_health_percent).unwrap_or(0),
        http_error_codes: outlier
            .outlier_detection_http_error_codes
            .iter()
            .filter_map(|code| u16::try_from(code.value).ok())
            .collect(),
    }
}

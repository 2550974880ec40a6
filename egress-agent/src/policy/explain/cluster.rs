//! A cluster: resolution, endpoints, balancing, limits, ejection, TLS.

use super::report::{self, Setting};
use super::words::{self, setting};
use super::{LiveEndpoint, LiveView, Query};
use crate::policy::model::{
    Algorithm, ClientTls, ConnectionPool, EndpointAddress, EndpointSpec, HashKey, HashTable,
    HealthCheck, Identity, LoadBalancer, OutlierDetection, Probe, ProxyProtocol, Resolution,
    TrafficPolicy, Trust, UpstreamHttp,
};
use crate::policy::snapshot::{Cluster, Snapshot};

pub(super) fn describe(
    snapshot: &Snapshot,
    cluster: &Cluster,
    query: &Query,
    live: &dyn LiveView,
) -> report::Cluster {
    let policy = &*cluster.policy;
    let known = live.endpoints(cluster);
    let target = &cluster.target;
    report::Cluster {
        name: words::cluster(cluster),
        destination_rule: rule(snapshot, cluster),
        resolution: words::resolution(target.resolution).to_owned(),
        resolved: resolved(cluster),
        live: known.is_some(),
        endpoints: match known {
            Some(list) => list.into_iter().map(live_endpoint).collect(),
            None => cluster.endpoints.iter().map(written_endpoint).collect(),
        },
        load_balancer: load_balancer(&policy.load_balancer, target.resolution),
        limits: limits(policy),
        health: health(policy),
        tls: cluster
            .tls_for_cleartext_http()
            .map(|tls| self::tls(cluster, &tls, query)),
    }
}

/// The DestinationRule of a cluster, found among the views that have it.
fn rule(snapshot: &Snapshot, cluster: &Cluster) -> Option<report::Document> {
    if cluster.key.rule.is_empty() {
        return None;
    }
    let service = snapshot.service(cluster.target.service)?;
    let rules = service
        .views
        .iter()
        .filter_map(|view| view.destination_rule.as_deref());
    let mut same = rules
        .filter(|rule| cluster.key.rule.split_once('/') == Some((&*rule.namespace, &*rule.name)));
    same.next().map(words::document)
}

fn live_endpoint(endpoint: LiveEndpoint) -> report::Endpoint {
    report::Endpoint {
        address: endpoint.address,
        resolved_from: endpoint.resolved_from,
        weight: endpoint.weight,
        locality: endpoint.locality,
        health: Some(endpoint.health),
        detail: endpoint.detail,
        connections: Some(endpoint.connections),
        ..report::Endpoint::default()
    }
}

fn written_endpoint(endpoint: &EndpointSpec) -> report::Endpoint {
    report::Endpoint {
        address: words::address(endpoint),
        weight: endpoint.weight,
        locality: endpoint.locality.to_string(),
        labels: words::labels(&endpoint.labels),
        ..report::Endpoint::default()
    }
}

fn resolved(cluster: &Cluster) -> String {
    let target = &cluster.target;
    let names = cluster
        .endpoints
        .iter()
        .any(|endpoint| matches!(endpoint.address, EndpointAddress::Name(_)));
    match target.resolution {
        Resolution::None if target.target_port == target.port => {
            "to the address that the application dialled".to_owned()
        }
        Resolution::None => format!(
            "to the address that the application dialled, on port {}",
            target.target_port
        ),
        Resolution::Dns if names => {
            "every address of the newest DNS answer is an endpoint; connections to one that vanishes drain".to_owned()
        }
        Resolution::DnsRoundRobin if names => {
            "new connections go to all addresses of the newest DNS answer; open ones stay".to_owned()
        }
        Resolution::Static | Resolution::Dns | Resolution::DnsRoundRobin => {
            "the endpoints that are listed".to_owned()
        }
        Resolution::DynamicDns => format!(
            "the name that the application asks for is looked up for each connection, port {}",
            target.target_port
        ),
    }
}

fn load_balancer(balancer: &LoadBalancer, resolution: Resolution) -> Vec<Setting> {
    if resolution == Resolution::None {
        return Vec::new();
    }
    let mut out = Vec::new();
    match &balancer.algorithm {
        Algorithm::Hash { key, table } => {
            out.push(setting("consistentHash", hash_key(key), false));
            out.push(match table {
                HashTable::Ring(size) => {
                    setting("ringHash.minimumRingSize", size.to_string(), *size == 1024)
                }
                HashTable::Maglev(size) => setting("maglev.tableSize", size.to_string(), false),
            });
        }
        simple => out.push(setting(
            "simple",
            algorithm(simple),
            *simple == Algorithm::LeastRequest,
        )),
    }
    let locality = &balancer.locality;
    if !locality.enabled {
        out.push(setting("localityLbSetting.enabled", "false", false));
    }
    for (from, to) in &locality.distribute {
        let shares: Vec<String> = to
            .iter()
            .map(|(place, weight)| format!("{} {weight}%", words::locality(place)))
            .collect();
        let text = format!("from {} to {}", words::locality(from), shares.join(", "));
        out.push(setting("localityLbSetting.distribute", text, false));
    }
    for (from, to) in &locality.failover {
        let text = format!("from {from} to {to}");
        out.push(setting("localityLbSetting.failover", text, false));
    }
    if !locality.failover_priority.is_empty() {
        let keys = locality
            .failover_priority
            .iter()
            .map(|(key, value)| match value {
                Some(value) => format!("{key}={value}"),
                None => key.to_string(),
            });
        let text = keys.collect::<Vec<_>>().join(", ");
        out.push(setting("localityLbSetting.failoverPriority", text, false));
    }
    if let Some(warmup) = &balancer.warmup {
        let text = format!(
            "{}, from {}%, aggression {}",
            words::duration(warmup.duration),
            warmup.minimum_percent,
            warmup.aggression
        );
        out.push(setting("warmup", text, false));
    }
    out
}

const fn algorithm(algorithm: &Algorithm) -> &'static str {
    match algorithm {
        Algorithm::LeastRequest => "LEAST_REQUEST",
        Algorithm::RoundRobin => "ROUND_ROBIN",
        Algorithm::Random => "RANDOM",
        Algorithm::Passthrough => "PASSTHROUGH",
        Algorithm::Hash { .. } => "consistentHash",
    }
}

fn hash_key(key: &HashKey) -> String {
    match key {
        HashKey::Header(name) => format!("header {name}"),
        HashKey::Cookie { name, ttl, .. } => match ttl {
            None => format!("cookie {name}, which is read and never set"),
            Some(ttl) if ttl.is_zero() => format!("cookie {name}, set for the session"),
            Some(ttl) => format!("cookie {name}, set for {}", words::duration(*ttl)),
        },
        HashKey::SourceIp => "source address".to_owned(),
        HashKey::QueryParameter(name) => format!("query parameter {name}"),
    }
}

fn limits(policy: &TrafficPolicy) -> Vec<Setting> {
    let pool = &policy.connection_pool;
    let usual = ConnectionPool::default();
    let mut out = vec![
        setting(
            "tcp.maxConnections",
            words::count(pool.max_connections),
            pool.max_connections == usual.max_connections,
        ),
        setting(
            "tcp.connectTimeout",
            words::duration(pool.connect_timeout),
            pool.connect_timeout == usual.connect_timeout,
        ),
        setting(
            "tcp.idleTimeout",
            words::limit(pool.idle_timeout),
            pool.idle_timeout == usual.idle_timeout,
        ),
    ];
    let mut changed = |field: &str, value: String, same: bool| {
        if !same {
            out.push(setting(field, value, false));
        }
    };
    changed(
        "tcp.maxConnectionDuration",
        words::limit(pool.max_connection_duration),
        pool.max_connection_duration.is_none(),
    );
    if let Some(keepalive) = &pool.keepalive {
        let part = |value: Option<String>| value.unwrap_or_else(|| "the system's".to_owned());
        let text = format!(
            "time {}, interval {}, probes {}",
            part(keepalive.time.map(words::duration)),
            part(keepalive.interval.map(words::duration)),
            part(keepalive.probes.map(|probes| probes.to_string())),
        );
        changed("tcp.tcpKeepalive", text, false);
    }
    for (field, value, other) in [
        (
            "http.http1MaxPendingRequests",
            pool.max_pending_requests,
            usual.max_pending_requests,
        ),
        (
            "http.http2MaxRequests",
            pool.max_requests,
            usual.max_requests,
        ),
        ("http.maxRetries", pool.max_retries, usual.max_retries),
        (
            "http.maxConcurrentStreams",
            pool.max_concurrent_streams,
            usual.max_concurrent_streams,
        ),
    ] {
        changed(field, words::count(value), value == other);
    }
    if let Some(count) = pool.max_requests_per_connection {
        changed("http.maxRequestsPerConnection", count.to_string(), false);
    }
    changed(
        "http.idleTimeout",
        words::limit(pool.http_idle_timeout),
        pool.http_idle_timeout == pool.idle_timeout,
    );
    match pool.http_version {
        UpstreamHttp::ByPort => {}
        UpstreamHttp::Upgrade => changed(
            "http.h2UpgradePolicy",
            "UPGRADE: HTTP/2 to the service".into(),
            false,
        ),
        UpstreamHttp::SameAsClient => changed("http.useClientProtocol", "true".into(), false),
    }
    if let Some((interval, timeout)) = pool.http2_keepalive {
        let text = format!(
            "interval {}, timeout {}",
            words::duration(interval),
            words::duration(timeout)
        );
        changed("http.http2KeepAlive", text, false);
    }
    if let Some(budget) = &policy.retry_budget {
        let text = format!(
            "{}% of requests, at least {}",
            budget.percent, budget.min_retry_concurrency
        );
        changed("retryBudget", text, false);
    }
    if let Some(tunnel) = &policy.tunnel {
        let method = if tunnel.post { "POST" } else { "CONNECT" };
        let text = format!("{method} {}:{}", tunnel.target_host, tunnel.target_port);
        changed("tunnel", text, false);
    }
    if let Some(version) = policy.proxy_protocol {
        let version = match version {
            ProxyProtocol::V1 => "V1",
            ProxyProtocol::V2 => "V2",
        };
        changed("proxyProtocol", version.to_owned(), false);
    }
    out
}

fn health(policy: &TrafficPolicy) -> Vec<Setting> {
    let mut out = Vec::new();
    if let Some(outlier) = &policy.outlier_detection {
        ejection(outlier, &mut out);
    }
    if let Some(check) = &policy.health_check {
        out.push(setting(
            "egress-agent.dev/health-check",
            probe(check),
            false,
        ));
    }
    out
}

fn ejection(outlier: &OutlierDetection, out: &mut Vec<Setting>) {
    let count = |count: Option<u32>| count.map_or_else(|| "off".to_owned(), |n| n.to_string());
    let usual = outlier.consecutive_5xx == Some(5);
    out.push(setting(
        "consecutive5xxErrors",
        count(outlier.consecutive_5xx),
        usual,
    ));
    if outlier.consecutive_gateway.is_some() {
        out.push(setting(
            "consecutiveGatewayErrors",
            count(outlier.consecutive_gateway),
            false,
        ));
    }
    if outlier.split_local {
        let usual = outlier.consecutive_local == Some(5);
        out.push(setting(
            "consecutiveLocalOriginFailures",
            count(outlier.consecutive_local),
            usual,
        ));
    }
    if !outlier.http_error_codes.is_empty() {
        let codes: Vec<String> = outlier
            .http_error_codes
            .iter()
            .map(ToString::to_string)
            .collect();
        out.push(setting(
            "outlierDetectionHttpErrorCodes",
            codes.join(", "),
            false,
        ));
    }
    out.push(setting(
        "interval",
        words::duration(outlier.interval),
        outlier.interval.as_secs() == 10,
    ));
    out.push(setting(
        "baseEjectionTime",
        format!(
            "{} times the ejections in a row",
            words::duration(outlier.base_ejection_time)
        ),
        outlier.base_ejection_time.as_secs() == 30,
    ));
    out.push(match outlier.max_ejection_percent {
        Some(percent) => setting("maxEjectionPercent", format!("{percent}%"), false),
        None => setting(
            "maxEjectionPercent",
            "10%, but one endpoint of each locality always may",
            true,
        ),
    });
    if outlier.min_health_percent > 0 {
        let text = format!(
            "{}%: below it, all endpoints are used",
            outlier.min_health_percent
        );
        out.push(setting("minHealthPercent", text, false));
    }
}

fn probe(check: &HealthCheck) -> String {
    let what = match &check.probe {
        Probe::Tcp => "TCP".to_owned(),
        Probe::Tls => "TLS".to_owned(),
        Probe::Http { path, .. } => format!("GET {path}"),
    };
    format!(
        "{what} every {}, timeout {}, out after {}, back after {}",
        words::duration(check.interval),
        words::duration(check.timeout),
        check.unhealthy_threshold,
        check.healthy_threshold
    )
}

fn tls(cluster: &Cluster, tls: &ClientTls, query: &Query) -> report::Tls {
    let host = cluster.target.host.exact();
    let requested = "the host requested";
    let sni = match (&tls.sni, host) {
        (Some(sni), _) => sni.to_string(),
        (None, Some(host)) => host.to_string(),
        (None, None) => requested.to_owned(),
    };
    let accepted: Vec<String> = if tls.insecure_skip_verify {
        Vec::new()
    } else if tls.subject_alt_names.is_empty() {
        vec![sni.clone()]
    } else {
        tls.subject_alt_names
            .iter()
            .map(ToString::to_string)
            .collect()
    };
    let crl = |crl: &Option<std::path::PathBuf>| {
        crl.as_ref().map_or_else(String::new, |path| {
            format!(", revocations from {}", path.display())
        })
    };
    let mode = match tls.identity {
        Identity::None => "SIMPLE",
        Identity::Files { .. } | Identity::Secret(_) => "MUTUAL",
        Identity::Mesh => "ISTIO_MUTUAL",
    };
    let secret =
        matches!(tls.identity, Identity::Secret(_)) || matches!(tls.trust, Trust::Secret(_));
    let mut namespaces = Vec::new();
    if secret {
        let own = std::iter::once(&query.client.namespace);
        for namespace in own.chain(&tls.secret_namespaces) {
            let namespace = namespace.to_string();
            if !namespaces.contains(&namespace) {
                namespaces.push(namespace);
            }
        }
    }
    report::Tls {
        mode: mode.to_owned(),
        implied: cluster.key.rule.is_empty() || cluster.policy.tls.is_none(),
        sni,
        accepted_names: accepted,
        trust: if tls.insecure_skip_verify {
            "not checked".to_owned()
        } else {
            match &tls.trust {
                Trust::System { crl: path } => format!("the system's roots{}", crl(path)),
                Trust::File { ca, crl: path } => format!("{}{}", ca.display(), crl(path)),
                Trust::Secret(name) => format!("the CA of credential {name}"),
                Trust::Mesh => "the mesh's roots".to_owned(),
            }
        },
        client_certificate: match &tls.identity {
            Identity::None => None,
            Identity::Files { certificate, key } => {
                Some(format!("{}, key {}", certificate.display(), key.display()))
            }
            Identity::Secret(name) => Some(format!("of credential {name}")),
            Identity::Mesh => Some("the mesh identity of the agent's settings".to_owned()),
        },
        credential_namespaces: namespaces,
        versions: if tls.extra.only_tls13 {
            "TLS 1.3"
        } else {
            "TLS 1.2 and 1.3"
        }
        .to_owned(),
        cipher_suites: tls
            .extra
            .cipher_suites
            .iter()
            .map(ToString::to_string)
            .collect(),
        starttls: tls
            .extra
            .starttls
            .map(|protocol| protocol.name().to_owned()),
        insecure_skip_verify: tls.insecure_skip_verify,
    }
}

/// What an operator should look at in a cluster.
pub(super) fn warnings(cluster: &report::Cluster, out: &mut Vec<String>) {
    let name = &cluster.name;
    if cluster
        .tls
        .as_ref()
        .is_some_and(|tls| tls.insecure_skip_verify)
    {
        out.push(format!(
            "insecureSkipVerify: whoever answers for {name} is taken for the service; neither chain nor name is checked"
        ));
    }
    let listed = !matches!(cluster.resolution.as_str(), "NONE" | "DYNAMIC_DNS");
    if listed && cluster.endpoints.is_empty() {
        out.push(format!("{name} has no endpoints: connections fail with UH"));
    }
    let usable = |endpoint: &report::Endpoint| endpoint.health.as_deref() == Some("healthy");
    if cluster.live && !cluster.endpoints.is_empty() && !cluster.endpoints.iter().any(usable) {
        out.push(format!("no endpoint of {name} is healthy now"));
    }
}

//! The limits of a cluster: what it may open, wait for and retry, and when an
//! endpoint is out.

use super::report::Setting;
use super::words::{self, setting};
use crate::policy::model::{
    ConnectionPool, HealthCheck, OutlierDetection, Probe, ProxyProtocol, TrafficPolicy,
    UpstreamHttp,
};

/// Limits and timeouts of connections and requests.
pub(super) fn limits(policy: &TrafficPolicy) -> Vec<Setting> {
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

/// Outlier ejection and health checks.
pub(super) fn health(policy: &TrafficPolicy) -> Vec<Setting> {
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

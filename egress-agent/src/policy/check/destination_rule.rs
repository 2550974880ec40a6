//! Rules of `DestinationRule` and its traffic policies.

use super::load_balancer::check_locality;
use super::names::{
    Exported, check_export_to, check_label_map, check_port, check_selector, fqdn, ip, is_dns_label,
    wildcard_host,
};
use crate::policy::schema::destination_rule::{
    Blocks, DestinationRule, PortPolicy, Subset, TrafficPolicy, Tunnel,
};
use crate::policy::schema::outlier::Outlier;
use crate::policy::schema::pool::{Http, Pool, Upgrade};
use crate::policy::schema::reader::Reader;
use crate::policy::schema::tls::{Mode, Tls};
use crate::policy::schema::{Spanned, Text};

/// Reports what is wrong with a DestinationRule, but for its policies, which
/// report themselves.
pub fn check(reader: &mut Reader<'_>, rule: &DestinationRule) {
    match &rule.host {
        None => reader.required(rule.span, "host"),
        Some(host) => reader.within("host", |reader| {
            if let Err(problem) = wildcard_host(host) {
                reader.error("host", host.span, problem, "write a DNS name");
            }
        }),
    }
    reader.within("subsets", |reader| check_subsets(reader, &rule.subsets));
    let kind = if rule.workload_selector.is_some() {
        Exported::SelectedRule
    } else {
        Exported::Other
    };
    reader.within("exportTo", |reader| {
        check_export_to(reader, &rule.export_to, kind);
    });
    if let Some(selector) = &rule.workload_selector {
        reader.within("workloadSelector", |reader| {
            check_selector(reader, &selector.match_labels, 4096, selector.span);
        });
    }
}

fn check_subsets(reader: &mut Reader<'_>, subsets: &[Subset]) {
    for (index, subset) in subsets.iter().enumerate() {
        reader.at_index(index, |reader| {
            match &subset.name {
                None => reader.required(subset.span, "name"),
                Some(name) => {
                    check_subset_name(reader, name);
                    let same = |other: &Subset| other.name == subset.name;
                    if subsets[..index].iter().any(same) {
                        let message = format!("two subsets are named {:?}", &***name);
                        reader.error(
                            "subset-duplicate",
                            name.span,
                            message,
                            "give each its own name",
                        );
                    }
                }
            }
            reader.within("labels", |reader| check_label_map(reader, &subset.labels));
        });
    }
}

/// Reports a subset name that is none.
pub fn check_subset_name(reader: &mut Reader<'_>, name: &Text) {
    if !is_dns_label(name) {
        let message = format!("{:?} is not a subset name", &***name);
        reader.error(
            "subset-name",
            name.span,
            message,
            "letters, digits and `-`, at most 63",
        );
    }
}

/// Reports what is wrong with a `trafficPolicy`.
pub fn check_policy(reader: &mut Reader<'_>, policy: &TrafficPolicy) {
    let others = policy.tunnel.is_some()
        || policy.proxy_protocol.is_some()
        || policy.retry_budget.is_some()
        || !policy.port_level_settings.is_empty();
    if !others && !has_block(&policy.blocks) {
        let help = "add loadBalancer, connectionPool, outlierDetection, tls or another member, or leave it out";
        reader.error("empty", policy.span, "`trafficPolicy` has no member", help);
    }
    if policy.port_level_settings.len() > 4096 {
        reader.error(
            "too-many",
            policy.span,
            "`portLevelSettings` has at most 4096 items",
            "remove some",
        );
    }
    if let Some(tunnel) = &policy.tunnel {
        reader.within("tunnel", |reader| {
            if policy.proxy_protocol.is_some() {
                let message = "`tunnel` and `proxyProtocol` exclude each other";
                reader.error("one-of", tunnel.span, message, "keep one of them");
            }
            check_tunnel(reader, tunnel);
        });
    }
    if let Some(budget) = &policy.retry_budget
        && let Some(percent) = budget.percent
        && !(0.0..=100.0).contains(&percent.value)
    {
        let message = format!(
            "`retryBudget.percent` is {}, not a percentage",
            percent.value
        );
        reader.error("percentage", percent.span, message, "write 0 to 100");
    }
}

fn has_block(blocks: &Blocks) -> bool {
    blocks.load_balancer.is_some()
        || blocks.connection_pool.is_some()
        || blocks.outlier_detection.is_some()
        || blocks.tls.is_some()
        || blocks.misplaced_locality.is_some()
}

fn check_tunnel(reader: &mut Reader<'_>, tunnel: &Tunnel) {
    if let Some(protocol) = &tunnel.protocol
        && !matches!(&***protocol, "" | "CONNECT" | "POST")
    {
        let message = format!("{:?} is not a tunnel protocol", &***protocol);
        reader.error("enum", protocol.span, message, "write CONNECT or POST");
    }
    if let Some(protocol) = &tunnel.protocol
        && &***protocol == "POST"
    {
        let message = "tunnels by POST are not carried out: connections are refused";
        reader.warn("tunnel-post", protocol.span, message, "use CONNECT");
    }
    match &tunnel.target_host {
        None => reader.required(tunnel.span, "targetHost"),
        Some(host) => {
            if let Err(problem) = fqdn(host)
                && ip(host).is_none()
            {
                reader.error(
                    "host",
                    host.span,
                    problem,
                    "write a full name or an IP address",
                );
            }
        }
    }
    match tunnel.target_port {
        None => reader.required(tunnel.span, "targetPort"),
        Some(port) => {
            check_port(reader, port);
        }
    }
}

/// Reports what is wrong with one of `portLevelSettings`.
pub fn check_port_policy(reader: &mut Reader<'_>, policy: &PortPolicy) {
    match policy.port {
        None => reader.required(policy.span, "port"),
        // Istio lets such a number pass; it never fits a port.
        Some(port) if !(1..=65535).contains(&port.number()) => {
            let message = format!(
                "`port.number` is {}, so these settings fit no port",
                port.number()
            );
            reader.warn(
                "port-range",
                port.span,
                message,
                "write the number of a port",
            );
        }
        Some(_) => {}
    }
    if !has_block(&policy.blocks) {
        let message = "these port settings have no member";
        let help = "add loadBalancer, connectionPool, outlierDetection or tls";
        reader.error("empty", policy.span, message, help);
    }
}

/// Reports what is wrong between the blocks of a policy.
pub fn check_blocks(reader: &mut Reader<'_>, blocks: &Blocks) {
    let inner = blocks.load_balancer.as_deref();
    let setting = inner.and_then(|balancer| balancer.locality_lb_setting.as_deref());
    if let Some(misplaced) = &blocks.misplaced_locality {
        reader.within("localityLbSetting", |reader| {
            let (message, help) = if setting.is_some() {
                (
                    "`localityLbSetting` stands here and under `loadBalancer`; the one there counts",
                    "remove this one",
                )
            } else {
                (
                    "`localityLbSetting` belongs under `loadBalancer`; it is taken as if it stood there",
                    "move it into `loadBalancer`; Istio itself drops it here without a word",
                )
            };
            reader.warn("misplaced", misplaced.span, message, help);
            check_locality(reader, misplaced);
        });
    }
    if let Some(setting) = setting {
        reader.within("loadBalancer", |reader| {
            reader.within("localityLbSetting", |reader| {
                check_locality(reader, setting);
            });
        });
    }
    let zone = inner.and_then(|balancer| balancer.zone_aware_lb_setting.as_deref());
    let counting = [setting.or(blocks.misplaced_locality.as_deref()), zone];
    for setting in counting.into_iter().flatten() {
        let fails_over = !setting.failover.is_empty() || !setting.failover_priority.is_empty();
        if fails_over && blocks.outlier_detection.is_none() {
            let message =
                "failover does nothing without `outlierDetection`: no endpoint is ever found bad";
            reader.warn(
                "failover-without-outlier",
                setting.span,
                message,
                "add `outlierDetection` beside it",
            );
        }
    }
}

fn check_not_negative(reader: &mut Reader<'_>, name: &'static str, value: Option<Spanned<i32>>) {
    if let Some(value) = value
        && value.value < 0
    {
        reader.within(name, |reader| {
            let message = format!("`{name}` is {}; it must not be negative", value.value);
            reader.error(
                "number-range",
                value.span,
                message,
                "write 0 or more; 0 means the default",
            );
        });
    }
}

/// Reports what is wrong with a `connectionPool`.
pub fn check_pool(reader: &mut Reader<'_>, pool: &Pool) {
    if pool.http.is_none() && pool.tcp.is_none() {
        let message = "`connectionPool` has no member";
        reader.error(
            "empty",
            pool.span,
            message,
            "add `tcp` or `http`, or leave it out",
        );
    }
    if let Some(tcp) = &pool.tcp {
        reader.within("tcp", |reader| {
            check_not_negative(reader, "maxConnections", tcp.max_connections);
        });
    }
    if let Some(http) = &pool.http {
        reader.within("http", |reader| check_http(reader, http));
    }
}

fn check_http(reader: &mut Reader<'_>, http: &Http) {
    for (name, value) in [
        ("http1MaxPendingRequests", http.http1_max_pending_requests),
        ("http2MaxRequests", http.http2_max_requests),
        ("maxRequestsPerConnection", http.max_requests_per_connection),
        ("maxRetries", http.max_retries),
        ("maxConcurrentStreams", http.max_concurrent_streams),
    ] {
        check_not_negative(reader, name, value);
    }
    let upgrade = http
        .h2_upgrade_policy
        .is_some_and(|u| u.value == Upgrade::Upgrade);
    if let Some(client) = http.use_client_protocol
        && client.value
        && upgrade
    {
        let message = "`useClientProtocol` contradicts `h2UpgradePolicy: UPGRADE`";
        reader.error("one-of", client.span, message, "keep one of them");
    }
    if let Some(ping) = &http.http2_keep_alive {
        reader.within("http2KeepAlive", |reader| {
            if ping.interval.is_none() {
                reader.required(ping.span, "interval");
            }
            if ping.timeout.is_none() {
                reader.required(ping.span, "timeout");
            }
        });
    }
}

/// Reports what is wrong with an `outlierDetection`.
pub fn check_outlier(reader: &mut Reader<'_>, outlier: &Outlier) {
    if let Some(old) = outlier.consecutive_errors
        && old.value != 0
    {
        let message = "`consecutiveErrors` is gone and does nothing";
        reader.warn(
            "old-form",
            old.span,
            message,
            "write consecutive5xxErrors or consecutiveGatewayErrors",
        );
    }
    let split = outlier
        .split_external_local_origin_errors
        .is_some_and(|s| s.value);
    if let Some(local) = outlier.consecutive_local_origin_failures
        && local.value > 0
        && !split
    {
        let message =
            "`consecutiveLocalOriginFailures` needs `splitExternalLocalOriginErrors: true`";
        reader.error(
            "outlier-split",
            local.span,
            message,
            "add it, or remove the limit",
        );
    }
    for (name, percent) in [
        ("maxEjectionPercent", outlier.max_ejection_percent),
        ("minHealthPercent", outlier.min_health_percent),
    ] {
        if let Some(percent) = percent
            && !(0..=100).contains(&percent.value)
        {
            reader.within(name, |reader| {
                let message = format!("`{name}` is {}, not a percentage", percent.value);
                reader.error("percentage", percent.span, message, "write 0 to 100");
            });
        }
    }
    for code in &outlier.outlier_detection_http_error_codes {
        if !(100..=599).contains(&code.value) {
            let message = format!("{} is not an HTTP status", code.value);
            reader.error("http-status", code.span, message, "write 100 to 599");
        }
    }
    let (Some(gateway), Some(all)) = (
        outlier.consecutive_gateway_errors,
        Some(
            outlier
                .consecutive_5xx_errors
                .map_or(5, |limit| limit.value),
        ),
    ) else {
        return;
    };
    if gateway.value > 0 && all > 0 && gateway.value >= all {
        let message = format!(
            "`consecutiveGatewayErrors: {}` is never reached: consecutive5xxErrors ({all}) comes first",
            gateway.value
        );
        reader.warn(
            "outlier-order",
            gateway.span,
            message,
            "make it smaller than consecutive5xxErrors",
        );
    }
}

/// Reports what is wrong with a `tls`.
pub fn check_tls(reader: &mut Reader<'_>, tls: &Tls) {
    let mode = tls.mode();
    let set = |text: &Option<Text>| text.as_ref().is_some_and(|text| !text.is_empty());
    let span = |text: &Option<Text>| text.as_ref().map_or(tls.span, |text| text.span);
    if let Some(name) = &tls.credential_name
        && let Some(map) = name.strip_prefix("configmap://")
    {
        reader.within("credentialName", |reader| {
            check_config_map(reader, name, map)
        });
    }
    let skip = tls.insecure_skip_verify.filter(|skip| skip.value);
    if let Some(skip) = skip {
        let clash = match mode {
            Mode::Simple => {
                set(&tls.ca_certificates)
                    || set(&tls.credential_name)
                    || !tls.subject_alt_names.is_empty()
            }
            Mode::Mutual => set(&tls.ca_certificates) || !tls.subject_alt_names.is_empty(),
            Mode::Disable | Mode::IstioMutual => false,
        };
        if clash {
            let message = "`insecureSkipVerify` beside settings that say how to verify";
            reader.error(
                "tls-skip-verify",
                skip.span,
                message,
                "remove one or the other",
            );
        } else {
            let message = "`insecureSkipVerify` takes any certificate: whoever is on the path can read and change the traffic";
            reader.warn(
                "tls-insecure",
                skip.span,
                message,
                "name the CA in `caCertificates` or `credentialName`",
            );
        }
    }
    if matches!(mode, Mode::Simple | Mode::Mutual) && set(&tls.credential_name) {
        let files = [
            &tls.client_certificate,
            &tls.private_key,
            &tls.ca_certificates,
            &tls.ca_crl,
        ];
        if let Some(file) = files.into_iter().find(|file| set(file)) {
            let message = "a file beside `credentialName`: the credential holds all of them";
            reader.error(
                "tls-credential",
                span(file),
                message,
                "remove the file, or `credentialName`",
            );
        }
        return;
    }
    if mode == Mode::Mutual {
        for (name, file) in [
            ("clientCertificate", &tls.client_certificate),
            ("privateKey", &tls.private_key),
        ] {
            if !set(file) {
                let message = format!("mode MUTUAL needs `{name}`, or `credentialName`");
                reader.error("tls-mutual", span(file), message, format!("add `{name}`"));
            }
        }
    }
    if mode == Mode::Disable
        && (set(&tls.credential_name) || set(&tls.ca_certificates) || set(&tls.sni))
    {
        let message = "TLS settings without a `mode` do nothing: the traffic leaves as it came";
        reader.warn(
            "tls-disabled",
            tls.span,
            message,
            "add `mode: SIMPLE` or `mode: MUTUAL`",
        );
    }
}

/// `configmap://NAMESPACE/NAME`, in the namespace of the rule.
fn check_config_map(reader: &mut Reader<'_>, name: &Text, map: &str) {
    let own = reader.namespace.clone();
    let mut parts = map.split('/');
    let (namespace, object) = (parts.next().unwrap_or_default(), parts.next());
    if namespace.is_empty() || object.is_none_or(str::is_empty) {
        let message = format!("{:?} does not name a ConfigMap", &***name);
        let help = format!("write configmap://{own}/NAME");
        reader.error("tls-configmap", name.span, message, help);
    } else if namespace != &*own {
        let message = format!("{:?} is in another namespace than the rule", &***name);
        let help = format!("write configmap://{own}/NAME");
        reader.error("tls-configmap", name.span, message, help);
    } else {
        let message = "a ConfigMap can only hold the CA; it is looked for as a secret of that name";
        reader.warn("tls-configmap", name.span, message, "use a Secret");
    }
}

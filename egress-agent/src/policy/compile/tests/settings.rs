//! Paths, TLS, limits, numbers and warnings.

use super::*;

#[test]
fn what_needs_no_look_at_the_bytes_stays_direct() {
    let path = |port: &str, resolution: &str, rule: &str| {
        let mut text = entry("a", "shop", "a.example.com", port, resolution);
        if !rule.is_empty() {
            text += &document(
                "DestinationRule",
                "r",
                "shop",
                &format!("host: a.example.com\ntrafficPolicy:\n  {rule}"),
            );
        }
        build(&text).0.services[0].path.clone()
    };
    let dns = "resolution: DNS";
    for (port, rule) in [
        (TCP, ""),
        (
            TCP,
            "connectionPool: {tcp: {maxConnections: 3, connectTimeout: 2s, tcpKeepalive: {time: 60s}}}",
        ),
        (TCP, "outlierDetection: {consecutive5xxErrors: 2}"),
        (TCP, "connectionPool: {http: {maxRetries: 3}}"),
        (TCP, "loadBalancer: {simple: ROUND_ROBIN}"),
        (HTTPS, ""),
        (HTTPS, "outlierDetection: {}"),
    ] {
        let path = path(port, dns, rule);
        assert!(matches!(path, Path::Direct(_)), "{port} {rule}: {path:?}");
    }
    for (port, rule, word) in [
        (HTTP, "", "HTTP"),
        (TCP, "tls: {mode: SIMPLE}", "TLS"),
        (TCP, "proxyProtocol: {version: V2}", "proxyProtocol"),
        (
            TCP,
            "tunnel: {targetHost: x.example.com, targetPort: 1}",
            "tunnel",
        ),
        (
            TCP,
            "connectionPool: {tcp: {maxConnectionDuration: 1h}}",
            "maxConnectionDuration",
        ),
        (
            TCP,
            "connectionPool: {tcp: {idleTimeout: 1h}}",
            "idleTimeout",
        ),
        (
            TCP,
            "loadBalancer: {consistentHash: {useSourceIp: true}}",
            "consistentHash",
        ),
        (
            HTTPS,
            "connectionPool: {http: {maxRetries: 3}}",
            "connectionPool.http",
        ),
        (HTTPS, "retryBudget: {percent: 10}", "retryBudget"),
    ] {
        let Path::Proxy(reason) = path(port, dns, rule) else {
            panic!("{port} {rule}")
        };
        assert!(reason.contains(word), "{port} {rule}: {reason}");
    }
}

#[test]
fn tls_settings() {
    let tls = |tls: &str| {
        let text = entry(
            "a",
            "shop",
            "a.example.com",
            HTTPS,
            "resolution: DNS\nsubjectAltNames: [san.example.com]",
        ) + &document(
            "DestinationRule",
            "r",
            "shop",
            &format!("host: a.example.com\ntrafficPolicy:\n  tls: {tls}"),
        );
        let (snapshot, problems) = build(&text);
        (
            Arc::clone(&snapshot.services[0].views[0].cluster),
            rules(&problems),
        )
    };
    let (cluster, problems) = tls("{mode: MUTUAL, credentialName: c, sni: S.example.com}");
    let policy = cluster.policy.tls.as_ref().unwrap();
    assert_eq!(policy.identity, Identity::Secret("c".into()));
    assert_eq!(policy.trust, Trust::Secret("c".into()));
    assert_eq!(policy.sni.as_deref(), Some("s.example.com"));
    assert_eq!(&*policy.subject_alt_names[0], "san.example.com");
    let spaces: Vec<&str> = policy.secret_namespaces.iter().map(|n| &**n).collect();
    assert_eq!(spaces, ["shop", "istio-system"]);
    assert_eq!(problems, ["tls-in-tls"]);

    let (cluster, problems) = tls("{mode: SIMPLE, caCertificates: /ca, subjectAltNames: [x.y]}");
    let policy = cluster.policy.tls.as_ref().unwrap();
    assert!(matches!(&policy.trust, Trust::File { ca, .. } if ca.as_os_str() == "/ca"));
    assert_eq!(&*policy.subject_alt_names[0], "x.y");
    assert_eq!(problems, ["tls-in-tls"]);

    let (cluster, problems) = tls("{mode: DISABLE}");
    assert!(cluster.policy.tls.is_none());
    assert!(cluster.tls_for_cleartext_http().is_none());
    assert_eq!(problems, ["tls-off"]);

    let (cluster, problems) = tls("{mode: ISTIO_MUTUAL}");
    assert_eq!(
        cluster.policy.tls.as_ref().unwrap().identity,
        Identity::Mesh
    );
    assert_eq!(problems, ["tls-in-tls", "mesh-identity"]);
}

#[test]
fn starttls_is_guessed_from_plain_names_and_can_be_said() {
    let starttls = |port: &str, annotation: &str| {
        let rule = document(
            "DestinationRule",
            "r",
            "shop",
            "host: a.example.com\ntrafficPolicy: {tls: {mode: SIMPLE}}",
        );
        let rule = rule.replace(
            "  namespace: shop\n",
            &format!("  namespace: shop\n{annotation}"),
        );
        let (snapshot, _) =
            build(&(entry("a", "shop", "a.example.com", port, "resolution: DNS") + &rule));
        snapshot.services[0].views[0]
            .cluster
            .policy
            .tls
            .as_ref()
            .unwrap()
            .extra
            .starttls
    };
    let pg = "{number: 5432, name: postgres-main, protocol: TCP}";
    assert_eq!(starttls(pg, ""), Some(StartTls::Postgres));
    assert_eq!(starttls(TCP, ""), None);
    let said = |value: &str| format!("  annotations: {{egress-agent.dev/starttls: {value}}}\n");
    assert_eq!(starttls(TCP, &said("ldap")), Some(StartTls::Ldap));
    assert_eq!(starttls(pg, &said("none")), None);
    assert_eq!(
        starttls("{number: 3306, name: db, protocol: MYSQL}", ""),
        Some(StartTls::Mysql)
    );
}

#[test]
fn open_is_never_followed_where_tls_would_be_lost() {
    let text = entry("a", "shop", "a.example.com", HTTP, "resolution: DNS").replace(
        "  namespace: shop\n",
        "  namespace: shop\n  annotations: {egress-agent.dev/on-agent-failure: open}\n",
    );
    let (snapshot, _) = build(&text);
    assert_eq!(snapshot.services[0].on_agent_failure, OnAgentFailure::Open);
    let text = text
        + &document(
            "DestinationRule",
            "r",
            "shop",
            "host: a.example.com\ntrafficPolicy: {tls: {mode: SIMPLE}}",
        );
    let (snapshot, problems) = build(&text);
    assert_eq!(
        snapshot.services[0].on_agent_failure,
        OnAgentFailure::Closed
    );
    assert_eq!(rules(&problems), ["open-loses-tls"]);
}

#[test]
fn numbers_of_services_are_kept_and_never_given_again() {
    let options = Options::default();
    let mut ids = Ids::default();
    let mut compile = |text: &str| {
        let loaded = load_text("x", text, &options);
        compile(&mut ids, &loaded.documents, &options).0
    };
    let a = entry("a", "shop", "a.example.com", HTTP, "resolution: DNS");
    let b = entry("b", "shop", "b.example.com", HTTP, "resolution: DNS");
    let first = compile(&a);
    let both = compile(&(b.clone() + &a));
    assert_eq!(first.services[0].id, both.services[0].id);
    assert_eq!(both.generation, 2);
    let without = compile(&b);
    assert_eq!(without.services[0].id, both.services[1].id);
    let again = compile(&(a + &b));
    assert_ne!(again.services[0].id, first.services[0].id);
    assert!(again.services[0].id.0 > again.services[1].id.0);
}

#[test]
fn http_version_and_limits() {
    let text = entry("a", "shop", "a.example.com", HTTP, "resolution: DNS")
        + &document(
            "DestinationRule",
            "r",
            "shop",
            "host: a.example.com\ntrafficPolicy:\n  connectionPool:\n    tcp: {maxConnections: 0, idleTimeout: 0s}\n    http: {h2UpgradePolicy: UPGRADE, http1MaxPendingRequests: 4, maxRequestsPerConnection: 0, http2KeepAlive: {interval: 1s, timeout: 2s}}",
        );
    let (snapshot, _) = build(&text);
    let pool = &snapshot.services[0].views[0].cluster.policy.connection_pool;
    assert_eq!(pool.http_version, UpstreamHttp::Upgrade);
    assert_eq!(pool.max_connections, u32::MAX);
    assert_eq!(pool.max_pending_requests, 4);
    assert_eq!(pool.max_requests_per_connection, None);
    assert_eq!(pool.idle_timeout, None);
    assert_eq!(pool.http_idle_timeout, None);
    assert_eq!(
        pool.http2_keepalive,
        Some((Duration::from_secs(1), Duration::from_secs(2)))
    );
}

#[test]
fn default_retries_are_istios() {
    let text = entry("a", "shop", "a.example.com", HTTP, "resolution: DNS")
        + &document(
            "VirtualService",
            "v",
            "shop",
            "hosts: [a.example.com]\nhttp:\n- match: [{uri: {prefix: /a}}]\n  route: [{destination: {host: a.example.com}}]\n- match: [{uri: {prefix: /b}}]\n  retries: {attempts: 3, perTryTimeout: 5s, retryOn: \"5xx,503,unavailable\"}\n  timeout: 4s\n  route: [{destination: {host: a.example.com}}]\n- retries: {attempts: 0}\n  route: [{destination: {host: a.example.com}}]",
        );
    let (snapshot, _) = build(&text);
    let list = snapshot.services[0].views[0].http.clone().unwrap();
    assert_eq!(list[0].retries.attempts, 2);
    assert!(list[0].retries.on.connect_failure && list[0].retries.on.refused_stream);
    assert_eq!(list[0].retries.on.grpc, [14, 1]);
    let second = &list[1].retries;
    assert_eq!((second.attempts, second.per_try_timeout), (3, None));
    assert!(second.on.server_error && !second.on.connect_failure);
    assert_eq!(second.on.statuses[0], 503);
    assert_eq!(list[2].retries.attempts, 0);
}

#[test]
fn secrets_are_part_of_the_snapshot() {
    let text = "apiVersion: v1\nkind: Secret\nmetadata: {name: c, namespace: shop}\ndata: {cert: aGVsbG8=}\nstringData: {key: k}\n";
    let (snapshot, _) = build(text);
    let secret = &snapshot.secrets[&("shop".into(), "c".into())];
    assert_eq!(&**secret.data["cert"], b"hello");
    assert_eq!(&**secret.data["key"], b"k");
    assert!(!format!("{secret:?}").contains("hello"));
}

#[test]
fn warnings_about_documents_that_do_not_fit() {
    let text = entry(
        "a",
        "shop",
        "a.example.com",
        HTTP,
        "resolution: STATIC\nendpoints: [{address: 192.0.2.1}, {address: 192.0.2.2}]",
    ) + &document(
        "DestinationRule",
        "nothing",
        "shop",
        "host: b.example.com\ntrafficPolicy: {outlierDetection: {}}",
    ) + &document(
        "DestinationRule",
        "r",
        "shop",
        "host: a.example.com\ntrafficPolicy:\n  outlierDetection: {maxEjectionPercent: 49}\n  portLevelSettings: [{port: {number: 81}, tls: {mode: SIMPLE}}]\nsubsets: [{name: none, labels: {x: z}}]",
    ) + &document(
        "VirtualService",
        "v",
        "shop",
        "hosts: [c.example.com]\nhttp: [{route: [{destination: {host: d.example.com}}]}]",
    );
    let (_, problems) = build(&text);
    let mut names = rules(&problems);
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "destination-unknown",
            "ejection-never",
            "host-unregistered",
            "port-unknown",
            "rule-without-service",
            "subset-empty"
        ]
    );
    for problem in &problems {
        assert!(
            problem.help.is_some() && problem.location.is_some(),
            "{problem}"
        );
    }
}

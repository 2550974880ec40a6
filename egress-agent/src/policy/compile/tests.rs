#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::format_collect,
    clippy::type_complexity,
    clippy::duration_suboptimal_units,
    reason = "tests"
)]

use std::time::Duration;

use super::*;
use crate::policy::load::load_text;
use crate::policy::model::{
    Algorithm, EndpointAddress, Identity, Labels, Resolution, StartTls, Trust, UpstreamHttp,
};
use crate::policy::routes::{HttpAction, StringMatch, Target};
use crate::policy::snapshot::{Client, OnAgentFailure, Path, View};

/// Compiles a text that must be valid; `'` at the start of a line is the
/// margin.
fn build(text: &str) -> (Snapshot, Vec<Diagnostic>) {
    build_with(text, &Options::default())
}

fn build_with(text: &str, options: &Options) -> (Snapshot, Vec<Diagnostic>) {
    let loaded = load_text("test.yaml", text, options);
    assert!(loaded.is_valid(), "{:#?}", loaded.diagnostics);
    compile(&mut Ids::default(), &loaded.documents, options)
}

fn document(kind: &str, name: &str, namespace: &str, spec: &str) -> String {
    let spec: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata:\n  name: {name}\n  namespace: {namespace}\nspec:\n{spec}"
    )
}

fn entry(name: &str, namespace: &str, host: &str, port: &str, rest: &str) -> String {
    let spec = format!("hosts: [\"{host}\"]\nports: [{port}]\n{rest}");
    document("ServiceEntry", name, namespace, &spec)
}

const HTTP: &str = "{number: 80, name: http, protocol: HTTP}";
const HTTPS: &str = "{number: 443, name: https, protocol: HTTPS}";
const TCP: &str = "{number: 5432, name: db, protocol: TCP}";

fn service<'s>(snapshot: &'s Snapshot, host: &str, port: u16) -> &'s Service {
    let list = snapshot.services.iter();
    let mut list = list.filter(|s| s.key.host.to_string() == host && s.key.port == port);
    list.next().unwrap_or_else(|| panic!("no {host}:{port}"))
}

fn client(namespace: &str, labels: &[(&str, &str)]) -> Client {
    let labels: Labels = labels
        .iter()
        .map(|(k, v)| ((*k).into(), (*v).into()))
        .collect();
    Client {
        namespace: namespace.into(),
        labels: labels.into(),
    }
}

fn view<'s>(service: &'s Service, namespace: &str) -> &'s View {
    service.view(&client(namespace, &[])).unwrap()
}

fn rule_of(service: &Service, namespace: &str) -> Option<String> {
    let rule = view(service, namespace).destination_rule.as_ref()?;
    Some(format!("{}/{}", rule.namespace, rule.name))
}

fn rules(problems: &[Diagnostic]) -> Vec<&'static str> {
    problems.iter().map(|problem| problem.rule).collect()
}

#[test]
fn a_host_on_a_port_is_a_service_with_its_endpoints() {
    let (snapshot, problems) = build(&entry(
        "a",
        "shop",
        "Api.Example.com.",
        "{number: 80, name: http, protocol: HTTP, targetPort: 8080}, {number: 443, name: tls, protocol: tls}",
        "resolution: STATIC\nendpoints:\n- address: 192.0.2.1\n  weight: 0\n  ports: {tls: 8443}\n  locality: r/z/s/x\n- address: 192.0.2.2\n  labels: {istio-locality: r2.z2}",
    ));
    assert_eq!(rules(&problems), Vec::<&str>::new());
    assert_eq!(snapshot.services.len(), 2);
    let http = service(&snapshot, "api.example.com", 80);
    assert!(http.virtual_address);
    assert_eq!(http.target_port, 8080);
    let ports: Vec<u16> = http.endpoints.iter().map(|e| e.port).collect();
    assert_eq!(ports, [8080, 8080]);
    assert_eq!(http.endpoints[0].weight, 1);
    assert_eq!(http.endpoints[0].locality.to_string(), "r/z/s");
    assert_eq!(http.endpoints[1].locality.to_string(), "r2/z2");
    let tls = service(&snapshot, "api.example.com", 443);
    let ports: Vec<u16> = tls.endpoints.iter().map(|e| e.port).collect();
    assert_eq!(ports, [8443, 443]);
    assert!(matches!(http.path, Path::Proxy(_)));
    assert!(matches!(tls.path, Path::Direct(_)), "{:?}", tls.path);
    assert!(Arc::ptr_eq(
        &snapshot.by_id[&tls.id],
        &snapshot.by_host["api.example.com"][1]
    ));
    assert!(tls.views[0].cluster.tls_for_cleartext_http().is_some());
    assert!(http.views[0].cluster.tls_for_cleartext_http().is_none());
}

#[test]
fn a_name_to_resolve_is_its_own_endpoint() {
    let (snapshot, _) = build(&entry(
        "a",
        "shop",
        "api.example.com",
        HTTPS,
        "resolution: DNS",
    ));
    let service = service(&snapshot, "api.example.com", 443);
    assert_eq!(
        service.endpoints[0].address,
        EndpointAddress::Name("api.example.com".into())
    );
    assert_eq!(service.resolution, Resolution::Dns);
}

#[test]
fn port_settings_replace_all_four_blocks() {
    let text = entry(
        "a",
        "shop",
        "a.example.com",
        &format!("{HTTP}, {HTTPS}"),
        "resolution: DNS",
    ) + &document(
        "DestinationRule",
        "r",
        "shop",
        "host: a.example.com\ntrafficPolicy:\n  connectionPool: {tcp: {maxConnections: 7, idleTimeout: 5m}}\n  outlierDetection: {}\n  portLevelSettings:\n  - port: {number: 80}\n    tls: {mode: SIMPLE, sni: A.example.com}",
    );
    let (snapshot, _) = build(&text);
    let http = &service(&snapshot, "a.example.com", 80).views[0]
        .cluster
        .policy;
    assert_eq!(http.connection_pool.max_connections, u32::MAX);
    assert!(http.outlier_detection.is_none());
    assert_eq!(
        http.tls.as_ref().unwrap().sni.as_deref(),
        Some("a.example.com")
    );
    // Read from the top level, whatever the port says.
    assert_eq!(
        http.connection_pool.idle_timeout,
        Some(Duration::from_mins(5))
    );
    let https = service(&snapshot, "a.example.com", 443);
    let policy = &https.views[0].cluster.policy;
    assert_eq!(policy.connection_pool.max_connections, 7);
    assert!(policy.outlier_detection.is_some());
    assert!(policy.tls.is_none());
    let Path::Proxy(reason) = &https.path else {
        panic!()
    };
    assert!(reason.contains("idleTimeout"), "{reason}");
}

#[test]
fn a_subset_replaces_whole_blocks() {
    let text = entry(
        "a",
        "shop",
        "a.example.com",
        HTTP,
        "resolution: STATIC\nendpoints:\n- address: 192.0.2.1\n  labels: {v: one}\n- address: 192.0.2.2\n  labels: {v: two}",
    ) + &document(
        "DestinationRule",
        "r",
        "shop",
        "host: a.example.com\ntrafficPolicy:\n  connectionPool: {tcp: {maxConnections: 7, connectTimeout: 3s}}\n  loadBalancer: {simple: RANDOM}\nsubsets:\n- name: one\n  labels: {v: one}\n  trafficPolicy:\n    connectionPool: {tcp: {maxConnections: 9}}\n- name: ports\n  labels: {v: two}\n  trafficPolicy:\n    portLevelSettings:\n    - port: {number: 80}\n      outlierDetection: {}",
    );
    let (snapshot, problems) = build(&text);
    assert!(problems.is_empty(), "{problems:?}");
    let view = &service(&snapshot, "a.example.com", 80).views[0];
    let one = &view.subsets["one"];
    assert_eq!(one.endpoints.len(), 1);
    assert_eq!(one.policy.connection_pool.max_connections, 9);
    assert_eq!(
        one.policy.connection_pool.connect_timeout,
        Duration::from_secs(10)
    );
    assert_eq!(one.policy.load_balancer.algorithm, Algorithm::Random);
    let ports = &view.subsets["ports"].policy;
    assert_eq!(ports.load_balancer.algorithm, Algorithm::LeastRequest);
    assert_eq!(ports.connection_pool.max_connections, u32::MAX);
}

#[test]
fn the_clients_namespace_goes_before_the_services_and_the_root() {
    let rule = |namespace: &str, name: &str, host: &str, rest: &str| {
        let spec = format!(
            "host: \"{host}\"\ntrafficPolicy: {{loadBalancer: {{simple: RANDOM}}}}\n{rest}"
        );
        document("DestinationRule", name, namespace, &spec)
    };
    let text = entry("a", "shop", "a.example.com", HTTP, "resolution: DNS")
        + &rule("shop", "own", "a.example.com", "")
        + &rule("istio-system", "root", "*.example.com", "")
        + &rule("client", "mine", "*.com", "exportTo: [\".\"]")
        + &rule("other", "hidden", "a.example.com", "exportTo: [elsewhere]");
    let (snapshot, _) = build(&text);
    let service = service(&snapshot, "a.example.com", 80);
    assert_eq!(rule_of(service, "client").as_deref(), Some("client/mine"));
    assert_eq!(rule_of(service, "other").as_deref(), Some("shop/own"));
    assert_eq!(rule_of(service, "any").as_deref(), Some("shop/own"));
    assert_eq!(
        rule_of(service, "istio-system").as_deref(),
        Some("istio-system/root")
    );
}

#[test]
fn the_services_namespace_drops_its_best_host_rather_than_take_a_wider_one() {
    let rule = |name: &str, host: &str, to: &str| {
        let spec = format!(
            "host: \"{host}\"\ntrafficPolicy: {{loadBalancer: {{simple: RANDOM}}}}\nexportTo: [\"{to}\"]"
        );
        document("DestinationRule", name, "shop", &spec)
    };
    let text = entry("a", "shop", "a.example.com", HTTP, "resolution: DNS")
        + &rule("exact", "a.example.com", "friend")
        + &rule("wide", "*.example.com", "*");
    let (snapshot, _) = build(&text);
    let service = service(&snapshot, "a.example.com", 80);
    assert_eq!(rule_of(service, "friend").as_deref(), Some("shop/exact"));
    assert_eq!(rule_of(service, "stranger"), None);
}

#[test]
fn rules_of_one_host_are_merged_older_first() {
    let rule = |name: &str, created: &str, rest: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata:\n  name: {name}\n  namespace: shop\n  creationTimestamp: {created}\nspec:\n  host: a.example.com\n{rest}"
        )
    };
    let text = entry("a", "shop", "a.example.com", HTTP, "resolution: DNS")
        + &rule(
            "a",
            "2026-02-02T00:00:00Z",
            "  trafficPolicy: {loadBalancer: {simple: RANDOM}}\n  subsets: [{name: v1}, {name: v2}]\n",
        )
        + &rule(
            "b",
            "2026-01-01T00:00:00Z",
            "  trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}\n  subsets: [{name: v1}]\n",
        );
    let (snapshot, problems) = build(&text);
    let service = service(&snapshot, "a.example.com", 80);
    let view = &service.views[0];
    assert_eq!(rule_of(service, "any").as_deref(), Some("shop/b"));
    assert_eq!(
        view.cluster.policy.load_balancer.algorithm,
        Algorithm::RoundRobin
    );
    assert_eq!(
        view.subsets.keys().map(|k| &**k).collect::<Vec<_>>(),
        ["v1", "v2"]
    );
    assert_eq!(rules(&problems), ["rule-merged", "rule-merged"]);
}

#[test]
fn a_selector_fits_only_workloads_with_its_labels() {
    let text = entry("a", "shop", "a.example.com", HTTP, "resolution: DNS")
        + &document(
            "DestinationRule",
            "all",
            "shop",
            "host: a.example.com\ntrafficPolicy: {loadBalancer: {simple: RANDOM}}",
        )
        + &document(
            "DestinationRule",
            "some",
            "shop",
            "host: a.example.com\ntrafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}\nworkloadSelector: {matchLabels: {app: x}}",
        );
    let (snapshot, _) = build(&text);
    let service = service(&snapshot, "a.example.com", 80);
    let name = |client: &Client| {
        service
            .view(client)
            .unwrap()
            .destination_rule
            .as_ref()
            .unwrap()
            .name
            .to_string()
    };
    assert_eq!(name(&client("shop", &[("app", "x")])), "some");
    assert_eq!(name(&client("shop", &[("app", "y")])), "all");
    assert_eq!(name(&client("other", &[("app", "x")])), "all");
}

fn routes(view: &View) -> Vec<String> {
    let list = view.http.as_deref().unwrap();
    let name = |route: &crate::policy::routes::HttpRoute| match &route.action {
        HttpAction::Forward { destinations, .. } => destinations
            .iter()
            .map(|d| match &d.target {
                Target::Cluster(cluster) => format!(
                    "{}:{}/{}",
                    cluster.target.host, cluster.target.port, cluster.key.subset
                ),
                Target::Missing(why) => format!("missing: {why}"),
            })
            .collect::<Vec<_>>()
            .join(" "),
        other => format!("{other:?}"),
    };
    list.iter().map(name).collect()
}

#[test]
fn destinations_are_bound_to_clusters() {
    let text = entry("a", "shop", "a.example.com", HTTP, "resolution: DNS")
        + &entry(
            "b",
            "shop",
            "b.example.com",
            &format!("{HTTP}, {HTTPS}"),
            "resolution: DNS",
        )
        + &document(
            "DestinationRule",
            "b",
            "shop",
            "host: b.example.com\nsubsets: [{name: v1}]",
        )
        + &document(
            "VirtualService",
            "v",
            "shop",
            "hosts: [a.example.com]\nhttp:\n- match: [{uri: {regex: '/v\\d+'}, port: 80}, {port: 81}]\n  route: [{destination: {host: b.example.com, port: {number: 443}, subset: v1}}]\n- match: [{port: 8080}]\n  route: [{destination: {host: b.example.com}}]\n- match: [{gateways: [x/y]}]\n  route: [{destination: {host: b.example.com}}]\n- route: [{destination: {host: b.example.com}}, {destination: {host: b.example.com, subset: none}, weight: 1}, {destination: {host: c.example.com}}, {destination: {host: b.example.com, port: {number: 9}}}]\n",
        );
    let (snapshot, problems) = build(&text);
    let view = &service(&snapshot, "a.example.com", 80).views[0];
    assert_eq!(
        routes(view),
        [
            "b.example.com:443/v1",
            "b.example.com:80/ missing: no DestinationRule gives b.example.com the subset none missing: no ServiceEntry registers c.example.com missing: b.example.com has no port 9"
        ]
    );
    let first = &view.http.as_deref().unwrap()[0];
    assert_eq!(first.matches.len(), 1);
    let Some(StringMatch::Regex(regex)) = &first.matches[0].uri else {
        panic!()
    };
    assert!(regex.is_match("/v12") && !regex.is_match("/v12/"));
    assert_eq!(
        rules(&problems),
        ["subset-unknown", "destination-unknown", "port-unknown"]
    );
}

#[test]
fn https_ports_get_both_kinds_of_routes() {
    let text = entry("a", "shop", "a.example.com", HTTPS, "resolution: DNS")
        + &document(
            "VirtualService",
            "v",
            "shop",
            "hosts: [a.example.com]\nhttp: [{route: [{destination: {host: a.example.com}}]}]\ntls: [{match: [{sniHosts: [a.example.com]}], route: [{destination: {host: a.example.com}}]}]",
        );
    let (snapshot, _) = build(&text);
    let view = &service(&snapshot, "a.example.com", 443).views[0];
    assert!(view.http.is_some() && view.tls.is_some() && view.tcp.is_none());
}

#[test]
fn a_closer_host_and_a_narrower_export_win_among_virtual_services() {
    let v = |name: &str, namespace: &str, host: &str, to: &str| {
        let spec = format!(
            "hosts: [\"{host}\"]\nexportTo: [\"{to}\"]\nhttp: [{{route: [{{destination: {{host: a.example.com}}}}]}}]"
        );
        document("VirtualService", name, namespace, &spec)
    };
    let text = entry("a", "shop", "a.example.com", HTTP, "resolution: DNS")
        + &v("a-public", "shop", "a.example.com", "*")
        + &v("b-private", "mine", "a.example.com", ".")
        + &v("c-exported", "shop", "a.example.com", "friend")
        + &v("d-wide", "friend", "*.example.com", ".");
    let (snapshot, _) = build(&text);
    let service = service(&snapshot, "a.example.com", 80);
    let name = |namespace: &str| {
        view(service, namespace)
            .virtual_service
            .as_ref()
            .unwrap()
            .name
            .to_string()
    };
    assert_eq!(name("any"), "a-public");
    assert_eq!(name("mine"), "b-private");
    assert_eq!(name("friend"), "c-exported");
    let lost = &snapshot.lost[&service.id];
    assert!(
        lost.iter()
            .any(|l| &*l.document.name == "d-wide" && l.namespace.as_deref() == Some("friend")),
        "{lost:?}"
    );
}

#[test]
fn a_virtual_service_names_a_part_of_a_wildcard() {
    let text = entry(
        "a",
        "shop",
        "*.example.com",
        &format!("{HTTP}, {HTTPS}"),
        "resolution: NONE",
    ) + &document(
        "VirtualService",
        "v",
        "shop",
        "hosts: [x.example.com]\nhttp: [{timeout: 3s, route: [{destination: {host: \"*.example.com\"}}]}]",
    );
    let (snapshot, problems) = build(&text);
    assert!(problems.is_empty(), "{problems:?}");
    let part = service(&snapshot, "x.example.com", 80);
    let whole = service(&snapshot, "*.example.com", 80);
    assert!(Arc::ptr_eq(&part.views[0].cluster, &whole.views[0].cluster));
    assert!(part.views[0].http.is_some() && whole.views[0].http.is_none());
    assert_eq!(snapshot.services_of("x.example.com", "shop").count(), 2);
    assert_eq!(snapshot.services_of("y.example.com", "shop").count(), 2);
}

#[test]
fn a_host_that_nothing_registers_is_http_on_port_80() {
    let text = entry("a", "shop", "a.example.com", HTTP, "resolution: DNS")
        + &document(
            "VirtualService",
            "v",
            "shop",
            "hosts: [old.example.com, reviews]\nhttp: [{route: [{destination: {host: a.example.com}}]}]",
        );
    let (snapshot, problems) = build(&text);
    let old = service(&snapshot, "old.example.com", 80);
    assert_eq!(old.entry.kind, "VirtualService");
    assert_eq!(routes(&old.views[0]), ["a.example.com:80/"]);
    assert!(old.virtual_address);
    assert_eq!(snapshot.services.len(), 2);
    assert_eq!(rules(&problems), ["cluster-host"]);
}

#[test]
fn two_entries_that_claim_one_host() {
    let text = entry("b", "shop", "a.example.com", HTTP, "resolution: DNS")
        + &entry(
            "a",
            "shop",
            "a.example.com",
            &format!("{HTTP}, {HTTPS}"),
            "resolution: STATIC\nendpoints: [{address: 192.0.2.1}]",
        )
        + &entry("c", "other", "a.example.com", HTTP, "resolution: DNS");
    let (snapshot, problems) = build(&text);
    assert_eq!(snapshot.services.len(), 3);
    let own: Vec<_> = snapshot.services_of("a.example.com", "other").collect();
    assert_eq!(own.len(), 2);
    assert_eq!(rules(&problems), ["host-claimed", "host-claimed"]);
}

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

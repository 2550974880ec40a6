#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::format_collect,
    clippy::type_complexity,
    clippy::duration_suboptimal_units,
    reason = "tests"
)]

mod routing;
mod settings;

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

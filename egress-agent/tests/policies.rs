//! The fourteen input policies, compiled: what each must do, as far as a
//! snapshot shows it. They are read from `../../shared/policies`; the test says
//! so when that is not there.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use egress_agent::policy::Options;
use egress_agent::policy::compile::{Ids, compile};
use egress_agent::policy::diagnostic::Diagnostic;
use egress_agent::policy::load::load_paths;
use egress_agent::policy::model::{
    Algorithm, Identity, Resolution, TrafficPolicy, Trust, UpstreamHttp, Visibility,
};
use egress_agent::policy::routes::{HttpAction, HttpRoute, PathRewrite, StringMatch};
use egress_agent::policy::snapshot::{Path, Service, Snapshot};

fn all() -> Option<(Snapshot, Vec<Diagnostic>)> {
    let root = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/policies");
    if !root.is_dir() {
        println!("skipped: {} is not there", root.display());
        return None;
    }
    let options = Options::default();
    let loaded = load_paths(&[root], &options);
    assert!(loaded.is_valid(), "{:#?}", loaded.diagnostics);
    Some(compile(&mut Ids::default(), &loaded.documents, &options))
}

fn find(snapshot: &Snapshot, host: &str, port: u16) -> Arc<Service> {
    let list = snapshot.by_host.get(host).unwrap();
    Arc::clone(list.iter().find(|s| s.key.port == port).unwrap())
}

fn policy(service: &Service) -> &TrafficPolicy {
    assert_eq!(service.views.len(), 1);
    &service.views[0].cluster.policy
}

fn direct(service: &Service) -> bool {
    matches!(service.path, Path::Direct(_))
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn services_without_rules_are_direct() {
    let Some((snapshot, _)) = all() else { return };
    let database = find(&snapshot, "db.internal.corp", 5432);
    assert_eq!(database.resolution, Resolution::None);
    assert!(direct(&database) && !database.virtual_address && database.addresses.is_empty());
    let payments = find(&snapshot, "payments.provider.com", 443);
    assert!(direct(&payments));
    assert_eq!(payments.endpoints.len(), 3);
    assert!(
        payments
            .endpoints
            .iter()
            .all(|e| e.locality.region.is_empty())
    );
    assert_eq!(
        policy(&payments).load_balancer.algorithm,
        Algorithm::LeastRequest
    );
    let storage = find(&snapshot, "storage.googleapis.com", 443);
    assert!(direct(&storage) && storage.resolution == Resolution::Dns);
    let analytics = find(&snapshot, "analytics.dataservice.io", 443);
    assert!(direct(&analytics) && analytics.resolution == Resolution::DnsRoundRobin);
}

#[test]
fn limits_and_ejection() {
    let Some((snapshot, problems)) = all() else {
        return;
    };
    let api = find(&snapshot, "api.external-service.com", 443);
    assert!(!direct(&api));
    let p = policy(&api);
    assert_eq!(p.connection_pool.max_connections, 100);
    assert_eq!(p.connection_pool.connect_timeout, 5 * SECOND);
    assert_eq!(p.connection_pool.max_requests_per_connection, Some(100));
    assert_eq!(p.connection_pool.http_version, UpstreamHttp::Upgrade);
    let outlier = p.outlier_detection.as_ref().unwrap();
    assert_eq!(outlier.consecutive_5xx, Some(5));
    assert_eq!(outlier.consecutive_gateway, Some(3));
    assert_eq!(outlier.base_ejection_time, 60 * SECOND);
    assert_eq!(outlier.interval, 30 * SECOND);
    assert_eq!(outlier.max_ejection_percent, Some(50));
    assert_eq!(outlier.min_health_percent, 20);
    let waits = problems
        .iter()
        .any(|d| d.rule == "rule-without-service" && d.message.contains("api.partner-service.com"));
    assert!(waits);
    let limited = find(&snapshot, "api.limited-service.com", 443);
    let pool = &policy(&limited).connection_pool;
    assert_eq!(
        (
            pool.max_connections,
            pool.max_pending_requests,
            pool.max_requests
        ),
        (10, 50, 100)
    );
    assert_eq!(
        (pool.max_requests_per_connection, pool.max_retries),
        (Some(5), 2)
    );
}

#[test]
fn tls_is_originated() {
    let Some((snapshot, problems)) = all() else {
        return;
    };
    let http = find(&snapshot, "api.secure-service.com", 80);
    assert_eq!(http.target_port, 443);
    let tls = policy(&http).tls.as_ref().unwrap();
    assert_eq!(tls.sni.as_deref(), Some("api.secure-service.com"));
    assert_eq!(tls.trust, Trust::System { crl: None });
    let https = find(&snapshot, "api.secure-service.com", 443);
    assert!(policy(&https).tls.is_none() && direct(&https));

    let mutual = find(&snapshot, "secure.partner-api.com", 443);
    let tls = policy(&mutual).tls.as_ref().unwrap();
    assert!(matches!(&tls.identity, Identity::Files { certificate, key }
        if certificate.as_os_str() == "/etc/certs/client.pem" && key.as_os_str() == "/etc/certs/client-key.pem"));
    assert!(problems.iter().any(
        |d| d.rule == "rule-merged" && d.location.as_ref().unwrap().source.name.contains("09-")
    ));
}

#[test]
fn failover_by_region() {
    let Some((snapshot, _)) = all() else { return };
    let database = find(&snapshot, "db.global-service.com", 5432);
    assert!(direct(&database));
    let p = policy(&database);
    assert_eq!(p.load_balancer.locality.failover.len(), 3);
    assert_eq!(
        p.outlier_detection.as_ref().unwrap().max_ejection_percent,
        None
    );
    let regions: Vec<&str> = database
        .endpoints
        .iter()
        .map(|e| &*e.locality.region)
        .collect();
    assert_eq!(regions, ["us-east-1", "eu-west-1", "ap-southeast-1"]);
}

fn routes(service: &Service) -> Arc<[HttpRoute]> {
    service.views[0].http.clone().unwrap()
}

#[test]
fn routes_of_virtual_services() {
    let Some((snapshot, _)) = all() else { return };
    let flaky = find(&snapshot, "api.third-party.io", 443);
    let list = routes(&flaky);
    assert_eq!(list[0].timeout, Some(30 * SECOND));
    let retries = &list[0].retries;
    assert_eq!(
        (retries.attempts, retries.per_try_timeout),
        (3, Some(10 * SECOND))
    );
    assert!(retries.on.server_error && retries.on.reset && retries.on.connect_failure);
    assert!(retries.on.retriable_4xx);
    assert!(flaky.views[0].cluster.tls_for_cleartext_http().is_some());

    let legacy = find(&snapshot, "legacy.internal.corp", 80);
    assert_eq!(legacy.addresses[0].to_string(), "192.168.1.100/32");
    let list = routes(&legacy);
    assert_eq!(list.len(), 1);
    assert!(matches!(&list[0].matches[0].uri, Some(StringMatch::Prefix(p)) if &**p == "/api/v2"));
    assert_eq!(list[0].headers.request.add.len(), 2);
    let HttpAction::Forward {
        rewrite: Some(rewrite),
        ..
    } = &list[0].action
    else {
        panic!()
    };
    assert!(matches!(&rewrite.path, Some(PathRewrite::Uri(uri)) if &**uri == "/api/v1"));

    let payment = find(&snapshot, "api.payments.example.com", 443);
    let seen = ["production".into(), "istio-system".into()];
    assert_eq!(payment.visibility, Visibility::Namespaces(seen.to_vec()));
    assert!(policy(&payment).tls.is_some());
    assert_eq!(
        policy(&payment).load_balancer.algorithm,
        Algorithm::RoundRobin
    );
    let list = routes(&payment);
    let plan: Vec<_> = list
        .iter()
        .map(|r| {
            (
                r.timeout.unwrap(),
                r.retries.attempts,
                r.retries.per_try_timeout.unwrap(),
            )
        })
        .collect();
    assert_eq!(
        plan,
        [
            (60 * SECOND, 2, 25 * SECOND),
            (10 * SECOND, 3, 3 * SECOND),
            (30 * SECOND, 3, 10 * SECOND)
        ]
    );
}

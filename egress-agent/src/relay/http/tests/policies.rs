//! The HTTP behaviour of the input policies 11 to 14, with their values.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use super::rig::{Do, OK, Rig, ask, cluster, paused, request};
use super::routing::to;
use crate::policy::model::{Protocol, TrafficPolicy};
use crate::policy::routes::{
    HeaderList, HeaderOps, HeaderTemplate, HttpAction, HttpDestination, HttpRoute, PathRewrite,
    RetryOn, RetryPolicy, Rewrite, Target,
};
use crate::policy::snapshot::Cluster;
use crate::route::http::default_retries;
use crate::route::testing;

fn retries(attempts: u32, per_try: u64, on: RetryOn) -> RetryPolicy {
    RetryPolicy {
        attempts,
        per_try_timeout: Some(Duration::from_secs(per_try)),
        on,
        ..default_retries().clone()
    }
}

fn route(cluster: &Arc<Cluster>, prefix: &str, timeout: u64, retries: RetryPolicy) -> HttpRoute {
    HttpRoute {
        timeout: Some(Duration::from_secs(timeout)),
        retries,
        ..to(cluster, prefix)
    }
}

/// 11-flaky-external-api: 30s in all, 10s a try, 3 retries on
/// 5xx,reset,connect-failure,retriable-4xx; 10 requests a connection.
#[test]
fn flaky_external_api() {
    paused(async {
        let mut policy: TrafficPolicy = testing::traffic_policy();
        policy.connection_pool.max_connections = 50;
        policy.connection_pool.connect_timeout = Duration::from_secs(5);
        policy.connection_pool.max_requests_per_connection = Some(10);
        policy.connection_pool.max_retries = 3;
        let cluster = cluster(policy, Protocol::Https, 1);
        let on = RetryOn {
            server_error: true,
            reset: true,
            connect_failure: true,
            retriable_4xx: true,
            ..RetryOn::default()
        };
        let route = route(&cluster, "/", 30, retries(3, 10, on));
        let rig = Rig::new(cluster, Some(vec![route]));
        let conflict = "HTTP/1.1 409 Conflict\r\ncontent-length: 0\r\n\r\n";
        let failed = "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n";
        rig.script(&[
            Do::SayAndClose(failed),
            Do::Close,
            Do::Say(conflict),
            Do::Say(OK),
        ]);
        assert_eq!(rig.get("/").await.0, 200);
        assert_eq!(rig.record().attempts, 4);
        // Three tries of 10s fill the 30s.
        rig.script(&[Do::Silence, Do::Silence, Do::Silence, Do::Silence]);
        let started = Instant::now();
        assert_eq!(rig.get("/").await.0, 504);
        assert_eq!(started.elapsed().as_secs(), 30);
        assert_eq!(rig.record().flags, ["UT"]);
        rig.world.script.borrow_mut().clear();
        // Ten requests, then another connection.
        let before = rig.seen().len();
        let (mut stream, _) = rig.connect();
        for _ in 0..20 {
            assert_eq!(ask(&mut stream, &request("/")).await.status(), 200);
        }
        let seen = rig.seen();
        let first = seen[before].connection;
        let on_first = seen[before..].iter().filter(|s| s.connection == first);
        assert_eq!(on_first.count(), 10);
        assert_eq!(seen.last().unwrap().connection, first + 1);
    });
}

/// 12-legacy-http-service: /api/v2 leaves as /api/v1 with two headers; any
/// other path has no route.
#[test]
fn legacy_http_service() {
    paused(async {
        let cluster = cluster(testing::traffic_policy(), Protocol::Http, 1);
        let mut route = to(&cluster, "/api/v2");
        route.action = HttpAction::Forward {
            destinations: vec![HttpDestination {
                target: Target::Cluster(Arc::clone(&cluster)),
                weight: 1,
                headers: HeaderOps::default(),
            }],
            rewrite: Some(Rewrite {
                path: Some(PathRewrite::Uri("/api/v1".into())),
                authority: None,
            }),
        };
        let add = |name, value| {
            (
                HeaderName::from_static(name),
                HeaderTemplate::Fixed(HeaderValue::from_static(value)),
            )
        };
        route.headers.request = HeaderList {
            add: vec![
                add("x-legacy-client", "istio-mesh"),
                add("x-forwarded-proto", "https"),
            ],
            ..HeaderList::default()
        };
        let rig = Rig::new(cluster, Some(vec![route]));
        assert_eq!(rig.get("/api/v2/orders?x=1").await.0, 200);
        let seen = &rig.seen()[0];
        assert_eq!(seen.line(), "GET /api/v1/orders?x=1 HTTP/1.1");
        assert_eq!(seen.all("x-legacy-client"), ["istio-mesh"]);
        assert_eq!(seen.all("x-forwarded-proto"), ["https"]);
        assert_eq!(rig.get("/api/v1/orders").await.0, 404);
        assert_eq!(rig.record().flags, ["NR"]);
    });
}

/// 13-rate-limited-api: 10 connections, 50 waiting, 100 in flight, 5 requests
/// a connection; past that 503 UO at once.
#[test]
fn rate_limited_api() {
    paused(async {
        let mut policy = testing::traffic_policy();
        policy.connection_pool.max_connections = 10;
        policy.connection_pool.max_pending_requests = 50;
        policy.connection_pool.max_requests = 100;
        policy.connection_pool.max_requests_per_connection = Some(5);
        policy.connection_pool.max_retries = 2;
        let rig = Rig::new(cluster(policy, Protocol::Https, 1), None);
        let slow = Do::SayAfter(Duration::from_secs(2), OK);
        rig.script(&vec![slow; 60]);
        let mut clients = Vec::new();
        for n in 0..60 {
            let (mut stream, _) = rig.connect();
            let get = request(&format!("/{n}"));
            stream.write_all(get.as_bytes()).await.unwrap();
            clients.push(stream);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(rig.seen().len(), 10, "one for each connection");
        // Ten are served, fifty wait; the next one is told so at once.
        let started = Instant::now();
        let (mut stream, _) = rig.connect();
        let answer = ask(&mut stream, &request("/late")).await;
        assert_eq!(started.elapsed(), Duration::ZERO);
        assert_eq!(answer.status(), 503);
        assert_eq!(answer.header("x-envoy-overloaded"), Some("true"));
        assert!(answer.body.contains("overflow"), "{}", answer.body);
        assert_eq!(rig.record().flags, ["UO"]);
        for stream in &mut clients {
            assert_eq!(ask(stream, "").await.status(), 200);
        }
        assert_eq!(rig.world.most_open.get(), 10);
        let seen = rig.seen();
        assert_eq!(seen.len(), 60);
        for connection in 1..=rig.world.connections.get() {
            let on_it = seen.iter().filter(|s| s.connection == connection).count();
            assert!(on_it <= 5, "{on_it} on connection {connection}");
        }
    });
}

/// 14-payment-processor: three routes with their own times and retries.
#[test]
fn payment_processor() {
    paused(async {
        let cluster = cluster(testing::traffic_policy(), Protocol::Https, 1);
        let on = || RetryOn {
            server_error: true,
            reset: true,
            connect_failure: true,
            ..RetryOn::default()
        };
        let mut rest = route(&cluster, "/", 30, retries(3, 10, on()));
        rest.matches.clear();
        let routes = vec![
            route(&cluster, "/v1/charges", 60, retries(2, 25, on())),
            route(&cluster, "/v1/status", 10, retries(3, 3, on())),
            rest,
        ];
        let rig = Rig::new(cluster, Some(routes));
        for (path, seconds, tries) in [
            ("/v1/charges/7", 60, 3),
            ("/v1/status", 10, 4),
            ("/v1/refunds", 30, 3),
        ] {
            rig.world.script.borrow_mut().clear();
            rig.script(&vec![Do::Silence; 8]);
            let before = rig.seen().len();
            let started = Instant::now();
            assert_eq!(rig.get(path).await.0, 504, "{path}");
            assert_eq!(started.elapsed().as_secs(), seconds, "{path}");
            assert_eq!(rig.seen().len() - before, tries, "{path}");
        }
    });
}

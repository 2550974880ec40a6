//! What a VirtualService does to requests, seen from both ends.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use super::rig::{Do, HOST, OK, Rig, ask, paused, plain, request};
use crate::policy::model::Protocol;
use crate::policy::routes::{
    Abort, Fault, HeaderList, HeaderOps, HeaderTemplate, HttpAction, HttpDestination, HttpMatch,
    HttpRoute, Mirror, PathRewrite, Redirect, RedirectPort, Rewrite, StringMatch, Target,
    TemplatePart,
};
use crate::policy::snapshot::Cluster;
use crate::relay::http::Settings;
use crate::route::http::default_retries;
use crate::route::testing;

/// A route to `cluster` for paths with this prefix.
pub(super) fn to(cluster: &Arc<Cluster>, prefix: &str) -> HttpRoute {
    HttpRoute {
        name: "r".into(),
        matches: vec![HttpMatch {
            uri: Some(StringMatch::Prefix(prefix.into())),
            ..HttpMatch::default()
        }],
        action: HttpAction::Forward {
            destinations: vec![HttpDestination {
                target: Target::Cluster(Arc::clone(cluster)),
                weight: 1,
                headers: HeaderOps::default(),
            }],
            rewrite: None,
        },
        headers: HeaderOps::default(),
        timeout: None,
        retries: default_retries().clone(),
        fault: None,
        mirrors: Vec::new(),
    }
}

fn other(index: usize, addresses: &[&str]) -> Arc<Cluster> {
    let addresses: Vec<_> = addresses.iter().map(|a| a.parse().unwrap()).collect();
    let policy = testing::traffic_policy();
    testing::cluster(
        index,
        "other.example.com",
        Protocol::Http,
        policy,
        &addresses,
    )
}

fn fixed(text: &'static str) -> HeaderTemplate {
    HeaderTemplate::Fixed(HeaderValue::from_static(text))
}

fn name(text: &'static str) -> HeaderName {
    HeaderName::from_static(text)
}

#[test]
fn without_a_matching_route_404_nr() {
    paused(async {
        let plain = plain();
        let rig = Rig::new(Arc::clone(&plain), Some(vec![to(&plain, "/api")]));
        assert_eq!(rig.get("/api/x").await.0, 200);
        assert_eq!(rig.get("/other").await, (404, String::new()));
        assert_eq!(rig.record().flags, ["NR"]);
        assert_eq!(rig.seen().len(), 1);
    });
}

#[test]
fn a_missing_destination_is_503_nc() {
    paused(async {
        let plain = plain();
        let mut route = to(&plain, "/");
        route.action = HttpAction::Forward {
            destinations: vec![HttpDestination {
                target: Target::Missing("subset v9 of api.example.com".into()),
                weight: 1,
                headers: HeaderOps::default(),
            }],
            rewrite: None,
        };
        let rig = Rig::new(plain, Some(vec![route]));
        let (status, body) = rig.get("/").await;
        assert_eq!(status, 503);
        assert!(body.contains("subset v9"), "{body}");
        assert_eq!(rig.record().flags, ["NC"]);
    });
}

#[test]
fn paths_authorities_and_headers_are_rewritten() {
    paused(async {
        let plain = plain();
        let mut route = to(&plain, "/api/v2");
        route.action = HttpAction::Forward {
            destinations: vec![HttpDestination {
                target: Target::Cluster(Arc::clone(&plain)),
                weight: 1,
                headers: HeaderOps {
                    request: HeaderList {
                        set: vec![(name("x-who"), fixed("destination"))],
                        ..HeaderList::default()
                    },
                    ..HeaderOps::default()
                },
            }],
            rewrite: Some(Rewrite {
                path: Some(PathRewrite::Uri("/api/v1".into())),
                authority: Some(HeaderValue::from_static("inner.example.com")),
            }),
        };
        route.headers = HeaderOps {
            request: HeaderList {
                set: vec![(name("x-who"), fixed("route"))],
                add: vec![(
                    name("x-from"),
                    HeaderTemplate::Parts(vec![
                        TemplatePart::Text("ip=".into()),
                        TemplatePart::Variable("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT".into()),
                    ]),
                )],
                remove: vec![name("x-secret")],
            },
            response: HeaderList {
                set: vec![(
                    name("x-was"),
                    HeaderTemplate::Parts(vec![
                        TemplatePart::Variable("REQ(:path)".into()),
                        TemplatePart::Text(" ".into()),
                        TemplatePart::Variable("REQ(x-secret)".into()),
                        TemplatePart::Text(" ".into()),
                        TemplatePart::Variable("UPSTREAM_HOST".into()),
                    ]),
                )],
                remove: vec![name("server")],
                ..HeaderList::default()
            },
            authority: None,
        };
        let rig = Rig::new(plain, Some(vec![route]));
        rig.script(&[Do::Say(
            "HTTP/1.1 200 OK\r\nserver: old\r\ncontent-length: 0\r\n\r\n",
        )]);
        let (mut stream, _) = rig.connect();
        let ask_for =
            format!("GET /api/v2/users?id=1 HTTP/1.1\r\nHost: {HOST}\r\nX-Secret: s3\r\n\r\n");
        let answer = ask(&mut stream, &ask_for).await;
        let seen = &rig.seen()[0];
        assert_eq!(seen.line(), "GET /api/v1/users?id=1 HTTP/1.1");
        assert_eq!(seen.all("host"), ["inner.example.com"]);
        assert_eq!(seen.all("x-who"), ["destination"]);
        assert_eq!(seen.all("x-from"), ["ip=10.0.0.1"]);
        assert!(seen.all("x-secret").is_empty());
        assert_eq!(
            answer.header("x-was"),
            Some("/api/v2/users?id=1 s3 127.0.0.1:80")
        );
        assert_eq!(answer.header("server"), None);
    });
}

#[test]
fn redirects_and_direct_responses_reach_no_service() {
    paused(async {
        let plain = plain();
        let mut redirect = to(&plain, "/old");
        redirect.action = HttpAction::Redirect(Redirect {
            path: None,
            authority: None,
            scheme: Some("https".into()),
            port: RedirectPort::Keep,
            status: StatusCode::PERMANENT_REDIRECT,
        });
        let mut direct = to(&plain, "/");
        direct.action = HttpAction::Respond {
            status: StatusCode::IM_A_TEAPOT,
            body: "short and stout".into(),
        };
        let rig = Rig::new(plain, Some(vec![redirect, direct]));
        let (mut stream, _) = rig.connect();
        let answer = ask(&mut stream, &request("/old?q=1")).await;
        assert_eq!(answer.status(), 308);
        assert_eq!(
            answer.header("location"),
            Some("https://api.example.com/old?q=1")
        );
        let answer = ask(&mut stream, &request("/tea")).await;
        assert_eq!(
            (answer.status(), answer.body.as_str()),
            (418, "short and stout")
        );
        assert!(rig.seen().is_empty());
        assert_eq!(rig.record().route, "r");
    });
}

#[test]
fn weights_spread_requests_over_destinations() {
    paused(async {
        let plain = plain();
        let second = other(1, &["127.0.0.50:80"]);
        let mut route = to(&plain, "/");
        let share = |cluster: &Arc<Cluster>, weight| HttpDestination {
            target: Target::Cluster(Arc::clone(cluster)),
            weight,
            headers: HeaderOps::default(),
        };
        route.action = HttpAction::Forward {
            destinations: vec![share(&plain, 75), share(&second, 25)],
            rewrite: None,
        };
        let rig = Rig::with(plain, &[second], Some(vec![route]), Settings::default());
        fastrand::seed(11);
        let (mut stream, _) = rig.connect();
        for _ in 0..400 {
            ask(&mut stream, &request("/")).await;
        }
        let seen = rig.seen();
        let second = seen
            .iter()
            .filter(|s| s.address.ip().to_string() == "127.0.0.50");
        let second = second.count();
        assert!((70..130).contains(&second), "{second} of 400");
    });
}

#[test]
fn faults_delay_and_abort() {
    paused(async {
        let plain = plain();
        let mut slow = to(&plain, "/slow");
        slow.fault = Some(Fault {
            delay: Some((Duration::from_secs(3), 1_000_000)),
            abort: None,
        });
        let mut broken = to(&plain, "/broken");
        broken.fault = Some(Fault {
            delay: None,
            abort: Some((Abort::Http(StatusCode::BAD_GATEWAY), 1_000_000)),
        });
        let mut lucky = to(&plain, "/");
        lucky.fault = Some(Fault {
            delay: None,
            abort: Some((Abort::Grpc(14), 0)),
        });
        let rig = Rig::new(plain, Some(vec![slow, broken, lucky]));
        let started = Instant::now();
        assert_eq!(rig.get("/slow").await.0, 200);
        assert_eq!(started.elapsed().as_secs(), 3);
        assert_eq!(rig.record().flags, ["DI"]);
        assert_eq!(rig.get("/broken").await, (502, "fault filter abort".into()));
        assert_eq!(rig.record().flags, ["FI"]);
        assert_eq!(rig.get("/").await.0, 200);
    });
}

#[test]
fn mirrors_get_a_copy_and_never_hold_up_the_request() {
    paused(async {
        let plain = plain();
        let shadow = other(1, &["127.0.0.60:80"]);
        let dead = other(2, &["127.0.0.61:80"]);
        let mut route = to(&plain, "/");
        route.mirrors = [&shadow, &dead]
            .map(|cluster| Mirror {
                target: Target::Cluster(Arc::clone(cluster)),
                share: 1_000_000,
            })
            .into();
        let rig = Rig::with(
            plain,
            &[shadow, dead],
            Some(vec![route]),
            Settings::default(),
        );
        rig.world
            .refused
            .borrow_mut()
            .push("127.0.0.61:80".parse().unwrap());
        let (mut stream, _) = rig.connect();
        let started = Instant::now();
        let post =
            format!("POST /up HTTP/1.1\r\nHost: {HOST}:8080\r\nContent-Length: 5\r\n\r\nhello");
        assert_eq!(ask(&mut stream, &post).await.status(), 200);
        assert_eq!(started.elapsed(), Duration::ZERO);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let seen = rig.seen();
        assert_eq!(seen.len(), 2, "{seen:?}");
        let copy = seen
            .iter()
            .find(|one| one.address.ip().to_string() == "127.0.0.60")
            .unwrap();
        assert_eq!(copy.line(), "POST /up HTTP/1.1");
        assert_eq!(copy.all("host"), ["api.example.com-shadow:8080"]);
        assert_eq!(copy.body, b"hello");
        assert_eq!(rig.records().len(), 1, "a copy is not a request");
    });
}

#[test]
fn our_own_answers_to_grpc_are_trailers_only() {
    paused(async {
        let plain = plain();
        let rig = Rig::new(Arc::clone(&plain), Some(vec![to(&plain, "/known")]));
        let (mut stream, _) = rig.connect();
        let call = format!(
            "POST /unknown HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/grpc+proto\r\n\
             Content-Length: 0\r\n\r\n"
        );
        let answer = ask(&mut stream, &call).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.header("grpc-status"), Some("12"));
        assert_eq!(rig.record().grpc_status, Some(12));
        assert_eq!(rig.record().flags, ["NR"]);
    });
}

#[test]
fn a_timeout_covers_all_tries_and_the_body() {
    paused(async {
        let plain = plain();
        let mut route = to(&plain, "/");
        route.timeout = Some(Duration::from_secs(5));
        let rig = Rig::new(plain, Some(vec![route]));
        rig.script(&[Do::Silence]);
        let started = Instant::now();
        let (status, body) = rig.get("/").await;
        assert_eq!(started.elapsed().as_secs(), 5);
        assert_eq!(status, 504);
        assert!(body.starts_with("upstream request timeout"), "{body}");
        assert!(body.contains(HOST), "{body}");
        assert_eq!(rig.record().flags, ["UT"]);

        // The head came in time, the body did not.
        rig.script(&[Do::Say("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc")]);
        let started = Instant::now();
        let answer = rig.raw(request("/")).await;
        assert_eq!(started.elapsed().as_secs(), 5);
        assert!(answer.ends_with("abc"), "{answer}");
        assert_eq!(rig.record().flags, ["UT"]);
    });
}

#[test]
fn the_clock_of_a_timeout_starts_when_the_request_is_complete() {
    paused(async {
        let plain = plain();
        let mut route = to(&plain, "/");
        route.timeout = Some(Duration::from_secs(5));
        let rig = Rig::new(plain, Some(vec![route]));
        rig.script(&[Do::SayAfter(Duration::from_secs(4), OK)]);
        let (mut stream, _) = rig.connect();
        let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 2\r\n\r\na");
        stream.write_all(head.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!(ask(&mut stream, "b").await.status(), 200);
    });
}

#[test]
fn a_new_policy_applies_to_the_next_request_on_a_connection() {
    paused(async {
        let plain = plain();
        let rig = Rig::new(Arc::clone(&plain), None);
        let (mut stream, _) = rig.connect();
        assert_eq!(ask(&mut stream, &request("/x")).await.status(), 200);
        let next = Rig::new(Arc::clone(&plain), Some(vec![to(&plain, "/only")]));
        rig.live.store(next.live.load_full());
        assert_eq!(ask(&mut stream, &request("/x")).await.status(), 404);
        assert_eq!(ask(&mut stream, &request("/only")).await.status(), 200);
        // The service is gone: the answer under the old policy is the last.
        rig.live.store(Arc::default());
        let answer = ask(&mut stream, &request("/only")).await;
        assert_eq!(answer.header("connection"), Some("close"));
    });
}

#[test]
fn another_name_on_a_shared_address_is_sent_away() {
    paused(async {
        let rig = Rig::new(plain(), None);
        let stranger = "GET / HTTP/1.1\r\nHost: stranger.example.org\r\n\r\n";
        // An address of this service alone: whatever the Host, it is meant.
        let answer = rig.raw(stranger.to_owned() + &request("/")).await;
        assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");
        rig.name_decides.set(true);
        let answer = rig.raw(stranger).await;
        assert!(answer.starts_with("HTTP/1.1 421"), "{answer}");
        assert_eq!(rig.seen().len(), 2);
    });
}

#[test]
fn a_key_of_the_request_keeps_its_endpoint() {
    use crate::policy::model::{Algorithm, HashKey, HashTable};
    let rig = |key| {
        let mut policy = testing::traffic_policy();
        policy.load_balancer.algorithm = Algorithm::Hash {
            key,
            table: HashTable::Ring(1024),
        };
        Rig::new(super::rig::cluster(policy, Protocol::Http, 5), None)
    };
    paused(async move {
        let by_header = rig(HashKey::Header("x-user".into()));
        let (mut stream, _) = by_header.connect();
        for user in ["ann", "bob", "cid", "dan", "eve", "fay"].repeat(5) {
            let get = format!("GET /{user} HTTP/1.1\r\nHost: {HOST}\r\nX-User: {user}\r\n\r\n");
            assert_eq!(ask(&mut stream, &get).await.status(), 200);
        }
        let mut places = std::collections::BTreeMap::new();
        for seen in by_header.seen() {
            let place = places.entry(seen.line().to_owned()).or_insert(seen.address);
            assert_eq!(*place, seen.address);
        }
        let distinct: std::collections::BTreeSet<_> = places.values().collect();
        assert!(distinct.len() > 1, "{places:?}");

        let by_cookie = rig(HashKey::Cookie {
            name: "stick".into(),
            path: Some("/".into()),
            ttl: Some(Duration::from_mins(1)),
            attributes: vec![("SameSite".into(), "Lax".into())],
        });
        let (mut stream, _) = by_cookie.connect();
        let answer = ask(&mut stream, &request("/")).await;
        let cookie = answer.header("set-cookie").unwrap().to_owned();
        let (pair, rest) = cookie.split_once("; ").unwrap();
        assert!(pair.starts_with("stick=\""), "{cookie}");
        assert_eq!(rest, "Max-Age=60; Path=/; SameSite=Lax; HttpOnly");
        for _ in 0..10 {
            let get = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nCookie: a=b; {pair}\r\n\r\n");
            assert_eq!(ask(&mut stream, &get).await.header("set-cookie"), None);
        }
        let seen = by_cookie.seen();
        assert!(seen.iter().all(|one| one.address == seen[0].address));
    });
}

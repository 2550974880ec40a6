//! Retries: when, where to, how often, and when not.

use std::time::Duration;

use http::StatusCode;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use super::rig::{Do, HOST, OK, Rig, address, ask, cluster, paused, request};
use super::routing::to;
use crate::policy::model::{Protocol, TrafficPolicy};
use crate::policy::routes::{HttpRoute, RetryOn, RetryPolicy};
use crate::relay::http::retry::{TryEnd, backoff, retriable};
use crate::route::http::default_retries;
use crate::route::testing;

const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy";
const CONFLICT: &str = "HTTP/1.1 409 Conflict\r\ncontent-length: 0\r\n\r\n";

fn policy(attempts: u32, on: RetryOn) -> RetryPolicy {
    RetryPolicy {
        attempts,
        on,
        ..default_retries().clone()
    }
}

fn rig(endpoints: u8, retries: RetryPolicy) -> Rig {
    with_policy(endpoints, retries, testing::traffic_policy())
}

fn with_policy(endpoints: u8, retries: RetryPolicy, traffic: TrafficPolicy) -> Rig {
    let cluster = cluster(traffic, Protocol::Http, endpoints);
    let route = HttpRoute {
        retries,
        ..to(&cluster, "/")
    };
    Rig::new(cluster, Some(vec![route]))
}

fn server_errors() -> RetryOn {
    RetryOn {
        server_error: true,
        ..RetryOn::default()
    }
}

#[test]
fn each_word_of_retry_on_names_its_ends() {
    let response = |status: u16| TryEnd::Response {
        status: StatusCode::from_u16(status).unwrap(),
        grpc: None,
    };
    let grpc = TryEnd::Response {
        status: StatusCode::OK,
        grpc: Some(14),
    };
    let ends = [
        response(200),
        response(409),
        response(429),
        response(500),
        response(503),
        grpc,
        TryEnd::ConnectFailed,
        TryEnd::Refused,
        TryEnd::Reset { sent: true },
        TryEnd::Reset { sent: false },
        TryEnd::Timeout,
    ];
    let none = RetryOn::default;
    #[rustfmt::skip]
    let table: &[(&str, RetryOn, [u8; 11])] = &[
        //                                                              2 4 4 5 5 g c r s u t
        ("nothing", none(),                                            [0,0,0,0,0,0,0,0,0,0,0]),
        ("5xx", server_errors(),                                       [0,0,0,1,1,0,1,1,1,1,1]),
        ("gateway-error", RetryOn { gateway_error: true, ..none() },   [0,0,0,0,1,0,1,1,1,1,1]),
        ("reset", RetryOn { reset: true, ..none() },                   [0,0,0,0,0,0,1,1,1,1,1]),
        ("reset-before-request",
            RetryOn { reset_before_request: true, ..none() },          [0,0,0,0,0,0,1,1,0,1,0]),
        ("connect-failure",
            RetryOn { connect_failure: true, ..none() },               [0,0,0,0,0,0,1,0,0,0,0]),
        ("retriable-4xx", RetryOn { retriable_4xx: true, ..none() },   [0,1,0,0,0,0,0,0,0,0,0]),
        ("refused-stream",
            RetryOn { refused_stream: true, ..none() },                [0,0,0,0,0,0,0,1,0,0,0]),
        ("429", RetryOn { statuses: vec![StatusCode::TOO_MANY_REQUESTS], ..none() },
                                                                       [0,0,1,0,0,0,0,0,0,0,0]),
        ("unavailable", RetryOn { grpc: vec![14], ..none() },          [0,0,0,0,0,1,0,0,0,0,0]),
        ("default", default_retries().on.clone(),                      [0,0,0,0,0,1,1,1,0,0,0]),
    ];
    for (word, on, want) in table {
        for (end, want) in ends.iter().zip(want) {
            assert_eq!(retriable(on, *end), *want == 1, "{word}: {end:?}");
        }
    }
}

#[test]
fn backoff_grows_is_jittered_and_has_a_cap() {
    let base = Duration::from_millis(25);
    for (retry, most) in [(1, 25), (2, 75), (3, 175), (4, 250), (9, 250)] {
        let waits: Vec<_> = (0..200).map(|_| backoff(base, retry)).collect();
        let longest = waits.iter().max().unwrap();
        assert!(
            *longest <= Duration::from_millis(most),
            "{retry}: {longest:?}"
        );
        assert!(
            *longest > Duration::from_millis(most / 2),
            "{retry}: {longest:?}"
        );
        assert!(waits.iter().min().unwrap() < &Duration::from_millis(most / 4));
    }
}

#[test]
fn a_failing_answer_is_tried_again_elsewhere() {
    paused(async {
        let rig = rig(3, policy(2, server_errors()));
        rig.script(&[Do::Say(BUSY), Do::Say(BUSY), Do::Say(OK)]);
        let started = Instant::now();
        assert_eq!(rig.get("/").await, (200, "ok".into()));
        assert!(started.elapsed() < Duration::from_millis(100));
        let mut hosts: Vec<_> = rig.seen().iter().map(|seen| seen.address).collect();
        hosts.sort();
        assert_eq!(hosts, [address(1), address(2), address(3)]);
        let record = rig.record();
        assert_eq!(record.attempts, 3);
        assert!(record.flags.is_empty(), "{record:?}");
    });
}

#[test]
fn when_retries_are_used_up_the_last_answer_goes_out() {
    paused(async {
        let rig = rig(1, policy(2, server_errors()));
        rig.script(&[Do::Say(BUSY), Do::Say(BUSY), Do::Say(BUSY), Do::Say(OK)]);
        assert_eq!(rig.get("/").await, (503, "busy".into()));
        assert_eq!(rig.seen().len(), 3);
        assert_eq!(rig.record().flags, ["URX"]);
    });
}

#[test]
fn what_is_not_named_is_not_tried_again() {
    paused(async {
        let rig = rig(1, default_retries().clone());
        // A 503 answer has not been in Istio's default since 1.24.
        rig.script(&[Do::SayAndClose(BUSY), Do::Close, Do::Say(CONFLICT)]);
        assert_eq!(rig.get("/").await.0, 503);
        let (status, body) = rig.get("/").await;
        assert_eq!(status, 503);
        assert!(body.contains("connection termination"), "{body}");
        assert_eq!(rig.record().flags, ["UC"]);
        assert_eq!(rig.get("/").await.0, 409);
        assert_eq!(rig.seen().len(), 3);
    });
}

#[test]
fn a_refused_connection_is_tried_elsewhere_by_default() {
    paused(async {
        let rig = rig(2, default_retries().clone());
        rig.world.refused.borrow_mut().push(address(1));
        for _ in 0..10 {
            assert_eq!(rig.get("/").await.0, 200);
        }
        assert!(rig.seen().iter().all(|seen| seen.address == address(2)));
        assert!(rig.records().iter().any(|record| record.attempts == 2));
        rig.world.refused.borrow_mut().push(address(2));
        let mut last = (0, String::new());
        // Connections to the second are kept, so they must be used up first.
        let (mut stream, _) = rig.connect();
        for _ in 0..3 {
            let close = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
            rig.script(&[Do::SayAndClose(OK)]);
            let answer = ask(&mut stream, &close).await;
            last = (answer.status(), answer.body);
            if last.0 == 503 {
                break;
            }
        }
        assert_eq!(last.0, 503);
        assert!(last.1.contains("connection refused"), "{}", last.1);
        assert!(last.1.contains("UF"), "{}", last.1);
        assert_eq!(rig.record().flags, ["UF", "URX"]);
    });
}

#[test]
fn a_try_has_its_own_timeout() {
    paused(async {
        let mut retries = policy(3, server_errors());
        retries.per_try_timeout = Some(Duration::from_secs(2));
        let rig = rig(1, retries);
        rig.script(&[Do::Silence, Do::Silence, Do::Say(OK)]);
        let started = Instant::now();
        assert_eq!(rig.get("/").await.0, 200);
        assert_eq!(started.elapsed().as_secs(), 4);
        assert_eq!(rig.record().attempts, 3);
        rig.script(&[Do::Silence, Do::Silence, Do::Silence, Do::Silence]);
        let (status, _) = rig.get("/").await;
        assert_eq!(status, 504);
        assert_eq!(rig.record().flags, ["UT", "URX"]);
    });
}

#[test]
fn bodies_are_sent_again_up_to_the_bound() {
    paused(async {
        let rig = rig(1, policy(2, server_errors()));
        let post = |size: usize| {
            let body = "x".repeat(size);
            format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {size}\r\n\r\n{body}")
        };
        rig.script(&[Do::Say(BUSY), Do::Close]);
        let (mut stream, _) = rig.connect();
        assert_eq!(ask(&mut stream, &post(60_000)).await.status(), 200);
        let seen = rig.seen();
        assert_eq!(seen.len(), 3);
        assert!(seen.iter().all(|one| one.body == vec![b'x'; 60_000]));
        // Beyond the bound it is sent once.
        rig.script(&[Do::Say(BUSY)]);
        assert_eq!(ask(&mut stream, &post(70_000)).await.status(), 503);
        assert_eq!(rig.seen().len(), 4);
        // The same with a length that is not known in advance.
        rig.script(&[Do::Say(BUSY)]);
        let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n");
        let chunk = format!("{:x}\r\n{}\r\n", 30_000, "y".repeat(30_000));
        let chunked = format!("{head}{chunk}0\r\n\r\n");
        assert_eq!(ask(&mut stream, &chunked).await.status(), 200);
        assert_eq!(rig.seen().len(), 6);
        rig.script(&[Do::Say(BUSY)]);
        let chunked = format!("{head}{chunk}{chunk}{chunk}0\r\n\r\n");
        assert_eq!(ask(&mut stream, &chunked).await.status(), 503);
        assert_eq!(rig.seen().len(), 7);
    });
}

#[test]
fn nothing_is_repeated_once_the_answer_has_begun() {
    paused(async {
        let rig = rig(1, policy(3, server_errors()));
        rig.script(&[Do::SayAndClose(
            "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc",
        )]);
        let answer = rig.raw(request("/")).await;
        assert!(answer.ends_with("abc"), "{answer}");
        assert_eq!(rig.seen().len(), 1);
    });
}

#[test]
fn a_connection_that_went_stale_is_replaced_unseen() {
    paused(async {
        let rig = rig(1, policy(0, RetryOn::default()));
        let (mut stream, _) = rig.connect();
        assert_eq!(ask(&mut stream, &request("/")).await.status(), 200);
        // It takes the next request and dies without a byte.
        rig.script(&[Do::Close]);
        assert_eq!(ask(&mut stream, &request("/")).await.status(), 200);
        let record = rig.record();
        assert_eq!((record.attempts, record.reconnects), (1, 1));
        assert!(record.flags.is_empty());
        // A POST may have had its effect, so it is not sent twice.
        rig.script(&[Do::Close]);
        let post = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 2\r\n\r\nhi");
        let answer = ask(&mut stream, &post).await;
        assert_eq!(answer.status(), 503);
        assert_eq!(rig.record().flags, ["UC"]);
        // On a connection of its own nothing was stale.
        rig.script(&[Do::Close]);
        assert_eq!(ask(&mut stream, &request("/")).await.status(), 503);
    });
}

#[test]
fn a_connection_that_closed_while_idle_is_not_used() {
    paused(async {
        let rig = rig(1, policy(0, RetryOn::default()));
        rig.script(&[Do::SayAndClose(OK)]);
        let (mut stream, _) = rig.connect();
        assert_eq!(ask(&mut stream, &request("/")).await.status(), 200);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let post = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 2\r\n\r\nhi");
        assert_eq!(ask(&mut stream, &post).await.status(), 200);
        assert_eq!(rig.record().reconnects, 0);
    });
}

#[test]
fn retries_in_flight_are_limited() {
    paused(async {
        let mut traffic = testing::traffic_policy();
        traffic.connection_pool.max_retries = 1;
        let rig = with_policy(1, policy(5, server_errors()), traffic);
        rig.script(&[
            Do::Say(BUSY),
            // Its retry waits long, and with it the only place.
            Do::SayAfter(Duration::from_mins(1), OK),
            Do::Say(BUSY),
        ]);
        let (mut first, _) = rig.connect();
        first.write_all(request("/a").as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(rig.seen().len(), 2);
        assert_eq!(rig.get("/b").await, (503, "busy".into()));
        assert_eq!(rig.record().flags, ["UO"]);
        assert_eq!(ask(&mut first, "").await.status(), 200);
        // The place is free again.
        rig.script(&[Do::Say(BUSY), Do::Say(OK)]);
        assert_eq!(rig.get("/c").await.0, 200);
    });
}

#[test]
fn an_aborted_upload_is_the_clients_fault() {
    paused(async {
        let rig = rig(1, policy(3, server_errors()));
        let (mut stream, end) = rig.connect();
        let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 9\r\n\r\nabc");
        stream.write_all(head.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(stream);
        end.await.unwrap();
        assert_eq!(rig.record().flags, ["DC"]);
        assert!(rig.seen().is_empty());
    });
}

//! What goes over the wire on both sides.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;

use super::rig::{Do, HOST, OK, Rig, ask, paused, plain, read_all, request};
use crate::relay::http::Settings;

#[test]
fn a_request_is_forwarded_and_connections_are_kept_on_both_sides() {
    paused(async {
        let rig = Rig::new(plain(), None);
        let (mut stream, _) = rig.connect();
        for n in 0..3 {
            let answer = ask(&mut stream, &request(&format!("/{n}?q=1"))).await;
            assert_eq!((answer.status(), answer.body.as_str()), (200, "ok"));
        }
        let seen = rig.seen();
        assert_eq!(seen.len(), 3);
        assert!(seen.iter().all(|one| one.connection == 1));
        assert_eq!(seen[2].line(), "GET /2?q=1 HTTP/1.1");
        assert_eq!(seen[2].all("host"), [HOST]);
        assert_eq!(seen[2].all("x-forwarded-proto"), ["http"]);
        assert_eq!(seen[2].all("x-request-id")[0].len(), 36);
        assert!(seen[2].all("traceparent")[0].starts_with("00-"));
        let record = rig.record();
        assert_eq!((record.status, record.sent), (Some(200), 2));
        assert_eq!(record.route, "default");
        assert!(record.flags.is_empty());
    });
}

#[test]
fn ids_that_the_client_brings_are_kept() {
    paused(async {
        let rig = Rig::new(plain(), None);
        let (mut stream, _) = rig.connect();
        let request = format!(
            "GET / HTTP/1.1\r\nHost: {HOST}\r\nx-request-id: mine\r\n\
             x-forwarded-proto: https\r\ntraceparent: 00-aa-bb-01\r\n\r\n"
        );
        ask(&mut stream, &request).await;
        let seen = &rig.seen()[0];
        assert_eq!(seen.all("x-request-id"), ["mine"]);
        assert_eq!(seen.all("x-forwarded-proto"), ["https"]);
        assert_eq!(seen.all("traceparent"), ["00-aa-bb-01"]);
    });
}

#[test]
fn hop_by_hop_headers_stay_on_their_connection() {
    paused(async {
        let rig = Rig::new(plain(), None);
        rig.script(&[Do::Say(
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: x-hop\r\nx-hop: 1\r\n\
             keep-alive: timeout=5\r\nx-end: 2\r\n\r\nok",
        )]);
        let (mut stream, _) = rig.connect();
        let request = format!(
            "GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: keep-alive, x-mine\r\n\
             Connection: x-other\r\nX-Mine: 1\r\nX-Other: 2\r\nKeep-Alive: 300\r\n\
             Proxy-Connection: keep-alive\r\nTE: trailers, deflate\r\nUpgrade: h2c\r\n\
             X-End: 3\r\n\r\n"
        );
        let answer = ask(&mut stream, &request).await;
        let seen = &rig.seen()[0];
        for gone in [
            "connection",
            "x-mine",
            "x-other",
            "keep-alive",
            "proxy-connection",
            "upgrade",
        ] {
            assert!(seen.all(gone).is_empty(), "{gone} in {}", seen.head);
        }
        assert_eq!(seen.all("te"), ["trailers"]);
        assert_eq!(seen.all("x-end"), ["3"]);
        assert_eq!(answer.header("x-hop"), None);
        assert_eq!(answer.header("keep-alive"), None);
        assert_eq!(answer.header("x-end"), Some("2"));
    });
}

#[test]
fn connection_cannot_name_headers_that_give_the_message_its_meaning() {
    paused(async {
        let rig = Rig::new(plain(), None);
        let (mut stream, _) = rig.connect();
        let request = format!(
            "POST / HTTP/1.1\r\nHost: {HOST}\r\nConnection: host, content-length, authorization\r\n\
             Authorization: mine\r\nContent-Length: 3\r\n\r\nabc"
        );
        ask(&mut stream, &request).await;
        let seen = &rig.seen()[0];
        assert_eq!(seen.all("host"), [HOST]);
        assert_eq!(seen.all("content-length"), ["3"]);
        assert_eq!(seen.all("authorization"), ["mine"]);
        assert_eq!(seen.body, b"abc");
    });
}

#[test]
fn bodies_keep_their_framing() {
    paused(async {
        let rig = Rig::new(plain(), None);
        let (mut stream, _) = rig.connect();
        let head = format!("POST /up HTTP/1.1\r\nHost: {HOST}\r\n");
        ask(
            &mut stream,
            &format!("{head}Content-Length: 5\r\n\r\nhello"),
        )
        .await;
        ask(
            &mut stream,
            &format!(
                "{head}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n"
            ),
        )
        .await;
        ask(&mut stream, &format!("{head}Content-Length: 0\r\n\r\n")).await;
        let seen = rig.seen();
        assert_eq!(seen[0].all("content-length"), ["5"]);
        assert_eq!(seen[0].body, b"hello");
        assert_eq!(seen[1].all("transfer-encoding"), ["chunked"]);
        assert!(seen[1].all("content-length").is_empty());
        assert_eq!(seen[2].all("content-length"), ["0"]);
        assert_eq!(
            rig.records().iter().map(|r| r.received).collect::<Vec<_>>(),
            [5, 5, 0]
        );
    });
}

#[test]
fn a_chunked_answer_reaches_an_old_client_until_the_close() {
    paused(async {
        let rig = Rig::new(plain(), None);
        rig.script(&[Do::Say(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        )]);
        let answer = rig.raw("GET / HTTP/1.0\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nabc"), "{answer}");
        assert_eq!(rig.seen()[0].all("host"), [HOST]);
        assert_eq!(rig.seen()[0].line(), "GET / HTTP/1.1");
    });
}

#[test]
fn head_and_bodiless_answers_keep_their_length_and_the_connection() {
    paused(async {
        let rig = Rig::new(plain(), None);
        rig.script(&[
            Do::Say("HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n"),
            Do::Say("HTTP/1.1 304 Not Modified\r\netag: x\r\n\r\n"),
            Do::Say("HTTP/1.1 204 No Content\r\n\r\n"),
        ]);
        let (mut stream, _) = rig.connect();
        let head = format!("HEAD / HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut text = Vec::new();
        while !text.ends_with(b"\r\n\r\n") {
            stream.read_buf(&mut text).await.unwrap();
        }
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("content-length: 1000"), "{text}");
        assert_eq!(ask(&mut stream, &request("/")).await.status(), 304);
        assert_eq!(ask(&mut stream, &request("/")).await.status(), 204);
        assert_eq!(ask(&mut stream, &request("/")).await.body, "ok");
        assert_eq!(rig.world.connections.get(), 1);
        assert!(rig.records().iter().all(|record| record.flags.is_empty()));
    });
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    paused(async {
        let rig = Rig::new(plain(), None);
        rig.script(&[
            Do::SayAfter(
                Duration::from_millis(50),
                "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n1",
            ),
            Do::Say("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n2"),
        ]);
        let last = format!("GET /b HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
        let answer = rig.raw(request("/a") + &last).await;
        let first = answer.find("\r\n\r\n1").unwrap();
        assert!(answer[first..].ends_with("\r\n\r\n2"), "{answer}");
    });
}

#[test]
fn expect_100_continue_is_answered_here() {
    paused(async {
        let rig = Rig::new(plain(), None);
        let (mut stream, _) = rig.connect();
        let head = format!(
            "PUT / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut text = Vec::new();
        while !text.ends_with(b"\r\n\r\n") {
            stream.read_buf(&mut text).await.unwrap();
        }
        assert!(text.starts_with(b"HTTP/1.1 100 "), "{text:?}");
        let answer = ask(&mut stream, "abc").await;
        assert_eq!(answer.status(), 200);
        let seen = &rig.seen()[0];
        assert!(seen.all("expect").is_empty());
        assert_eq!(seen.body, b"abc");
    });
}

#[test]
fn informational_answers_do_not_end_the_request() {
    paused(async {
        let rig = Rig::new(plain(), None);
        rig.script(&[Do::Say(
            "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\n\
             content-length: 2\r\n\r\nok",
        )]);
        assert_eq!(rig.get("/").await, (200, "ok".to_owned()));
    });
}

#[test]
fn websocket_bytes_flow_both_ways_after_101() {
    paused(async {
        let rig = Rig::new(plain(), None);
        *rig.world.special.borrow_mut() = Some(Box::new(|mut stream| {
            tokio::task::spawn_local(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    stream.read_buf(&mut head).await.unwrap();
                }
                let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
                assert!(head.contains("connection: upgrade\r\n"), "{head}");
                assert!(head.contains("upgrade: websocket\r\n"), "{head}");
                stream
                    .write_all(
                        b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\n\
                          upgrade: websocket\r\nsec-websocket-accept: x\r\n\r\nhello",
                    )
                    .await
                    .unwrap();
                let mut said = [0; 3];
                stream.read_exact(&mut said).await.unwrap();
                assert_eq!(&said, b"hey");
                stream.write_all(b"bye").await.unwrap();
            });
        }));
        let (mut stream, end) = rig.connect();
        let ask = format!(
            "GET /ws HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Key: k\r\n\r\n"
        );
        stream.write_all(ask.as_bytes()).await.unwrap();
        let mut text = Vec::new();
        while !text.ends_with(b"hello") {
            stream.read_buf(&mut text).await.unwrap();
        }
        let text = String::from_utf8(text).unwrap();
        assert!(text.starts_with("HTTP/1.1 101"), "{text}");
        assert!(text.contains("upgrade: websocket"), "{text}");
        stream.write_all(b"hey").await.unwrap();
        let mut said = [0; 3];
        stream.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"bye");
        drop(stream);
        end.await.unwrap();
        let record = rig.record();
        assert_eq!(record.status, Some(101));
        assert_eq!((record.received, record.sent), (3, 8));
    });
}

#[test]
fn a_refused_upgrade_goes_on_with_http() {
    paused(async {
        let rig = Rig::new(plain(), None);
        let (mut stream, _) = rig.connect();
        let upgrade = format!(
            "GET /ws HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        );
        assert_eq!(ask(&mut stream, &upgrade).await.body, "ok");
        assert_eq!(ask(&mut stream, &request("/next")).await.body, "ok");
        // The same with the next request sent ahead.
        stream
            .write_all((upgrade + &request("/ahead")).as_bytes())
            .await
            .unwrap();
        let answer = ask(&mut stream, "").await;
        assert_eq!(answer.status(), 200);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(rig.seen().last().unwrap().line(), "GET /ahead HTTP/1.1");
    });
}

#[test]
fn connect_is_refused() {
    paused(async {
        let rig = Rig::new(plain(), None);
        let answer = rig
            .raw("CONNECT a.com:443 HTTP/1.1\r\nHost: a.com:443\r\n\r\n")
            .await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
        assert!(rig.seen().is_empty());
    });
}

#[test]
fn an_answer_that_breaks_off_is_not_completed() {
    paused(async {
        let rig = Rig::new(plain(), None);
        rig.script(&[
            Do::SayAndClose("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nabc"),
            Do::SayAndClose("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"),
        ]);
        let answer = rig.raw(request("/")).await;
        assert!(answer.ends_with("\r\n\r\nabc"), "{answer}");
        assert_eq!(rig.record().flags, ["UC"]);
        let answer = rig.raw(request("/")).await;
        assert!(!answer.contains("0\r\n\r\n"), "{answer}");
        assert_eq!(rig.record().flags, ["UC"]);
    });
}

#[test]
fn a_client_that_goes_away_is_recorded_and_its_request_dropped() {
    paused(async {
        let rig = Rig::new(plain(), None);
        rig.script(&[Do::Silence]);
        let (mut stream, end) = rig.connect();
        stream.write_all(request("/").as_bytes()).await.unwrap();
        sleep(Duration::from_secs(1)).await;
        assert_eq!(rig.world.open.get(), 1);
        drop(stream);
        end.await.unwrap();
        sleep(Duration::from_secs(1)).await;
        let record = rig.record();
        assert_eq!((record.status, record.flags), (None, vec!["DC"]));
        assert_eq!(rig.world.open.get(), 0, "the try is given up");
    });
}

#[test]
fn a_slow_head_gets_408_and_an_idle_client_is_closed() {
    paused(async {
        let rig = Rig::new(plain(), None);
        let started = tokio::time::Instant::now();
        let answer = rig.raw("GET / HTTP/1.1\r\nHost: ").await;
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
        let waited = started.elapsed();
        assert!(waited >= Duration::from_secs(30) && waited < Duration::from_secs(40));
        assert_eq!(rig.record().flags, ["DPE"]);

        let (mut stream, _) = rig.connect();
        ask(&mut stream, &request("/")).await;
        let started = tokio::time::Instant::now();
        assert_eq!(read_all(&mut stream).await, "");
        let waited = started.elapsed();
        assert!(waited >= Duration::from_hours(1), "{waited:?}");
        assert!(waited < Duration::from_secs(7300), "{waited:?}");
    });
}

#[test]
fn a_body_that_stands_still_ends_the_connection() {
    paused(async {
        let rig = Rig::new(plain(), None);
        let started = tokio::time::Instant::now();
        let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 9\r\n\r\nabc");
        rig.raw(head).await;
        let waited = started.elapsed();
        assert!(waited >= Duration::from_mins(5), "{waited:?}");
        assert!(waited < Duration::from_secs(700), "{waited:?}");
    });
}

#[test]
fn draining_ends_connections_after_their_request() {
    paused(async {
        let rig = Rig::new(plain(), None);
        rig.script(&[Do::SayAfter(Duration::from_secs(5), OK)]);
        let (mut busy, _) = rig.connect();
        let (mut idle, _) = rig.connect();
        busy.write_all(request("/").as_bytes()).await.unwrap();
        sleep(Duration::from_secs(1)).await;
        rig.drain.send(true).unwrap();
        assert_eq!(read_all(&mut idle).await, "");
        let answer = read_all(&mut busy).await;
        assert!(answer.contains("connection: close"), "{answer}");
        assert!(answer.ends_with("ok"), "{answer}");
    });
}

#[test]
fn counts_of_tries_and_times_are_told_when_asked_for() {
    paused(async {
        let settings = Settings {
            attempt_count: true,
            service_time: true,
            ..Settings::default()
        };
        let rig = Rig::with(plain(), &[], None, settings);
        rig.script(&[Do::SayAfter(Duration::from_millis(70), OK)]);
        let (mut stream, _) = rig.connect();
        let answer = ask(&mut stream, &request("/")).await;
        assert_eq!(answer.header("x-envoy-upstream-service-time"), Some("70"));
        assert_eq!(rig.seen()[0].all("x-envoy-attempt-count"), ["1"]);
    });
}

#[test]
fn an_early_answer_reaches_a_client_that_is_still_sending() {
    paused(async {
        let rig = Rig::new(plain(), None);
        *rig.world.special.borrow_mut() = Some(Box::new(|mut stream| {
            tokio::task::spawn_local(async move {
                let mut head = Vec::new();
                while memchr::memmem::find(&head, b"\r\n\r\n").is_none() {
                    stream.read_buf(&mut head).await.unwrap();
                }
                let refuse = b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig";
                stream.write_all(refuse).await.unwrap();
                let mut rest = Vec::new();
                let _ = stream.read_to_end(&mut rest).await;
            });
        }));
        let (mut stream, _) = rig.connect();
        let head = format!("PUT / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1000\r\n\r\nabc");
        let answer = ask(&mut stream, &head).await;
        assert_eq!((answer.status(), answer.body.as_str()), (413, "big"));
    });
}

/// Size of what `make` returns, without running it.
fn size_of_output<A, F: FnOnce(A) -> R, R>(_: F) -> usize {
    size_of::<R>()
}

#[test]
fn a_request_under_way_stays_small() {
    use crate::connect::Stream;
    use crate::relay::http::{exchange, forward};
    let handling = size_of::<exchange::Handling<Stream>>();
    assert!(handling <= 256, "{handling} bytes in each connection");
    let forwarding = size_of_output(forward::run::<Stream>);
    assert!(
        forwarding <= 2 * 1024,
        "{forwarding} bytes for each request"
    );
}

#[test]
fn a_connection_that_rested_goes_on_as_before() {
    paused(async {
        let rig = Rig::new(plain(), None);
        let (mut stream, _) = rig.connect();
        for n in 0..3 {
            assert_eq!(
                ask(&mut stream, &request(&format!("/{n}"))).await.status(),
                200
            );
            sleep(Duration::from_secs(10)).await;
        }
        // A response that is slow to be taken does not rest.
        rig.script(&[Do::SayAfter(Duration::from_secs(20), OK)]);
        assert_eq!(ask(&mut stream, &request("/slow")).await.status(), 200);
        sleep(Duration::from_secs(10)).await;
        // Numbers of requests go on: this one, and no other, is refused.
        let (good, bad) = (request("/good"), "GET /bad HTTP/1.1\r\n\r\n");
        stream.write_all((good + bad).as_bytes()).await.unwrap();
        let answer = read_all(&mut stream).await;
        assert_eq!(answer.matches("HTTP/1.1 200").count(), 1, "{answer}");
        assert_eq!(answer.matches("HTTP/1.1 400").count(), 1, "{answer}");
        assert_eq!(rig.seen().len(), 5);

        // The head of a request that follows a rest has its deadline, too.
        let (mut stream, _) = rig.connect();
        ask(&mut stream, &request("/")).await;
        sleep(Duration::from_secs(10)).await;
        stream.write_all(b"GET / HT").await.unwrap();
        let started = tokio::time::Instant::now();
        let answer = read_all(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
        assert!(started.elapsed() < Duration::from_secs(40));
    });
}

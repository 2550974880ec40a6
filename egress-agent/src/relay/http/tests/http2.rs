//! HTTP/2 on either side, and gRPC.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use tokio::io::DuplexStream;
use tokio::task::spawn_local;
use tokio::time::sleep;

use super::rig::{Do, HOST, OK, Rig, ask, cluster, paused, plain, request};
use super::routing::to;
use crate::policy::model::{Protocol, UpstreamHttp};
use crate::policy::routes::{HttpRoute, RetryOn, RetryPolicy};
use crate::route::http::default_retries;
use crate::route::testing;

pub(super) type Sender = h2::client::SendRequest<Bytes>;

/// An HTTP/2 client of the relay, with prior knowledge.
pub(super) async fn client(rig: &Rig) -> Sender {
    let (stream, _) = rig.connect();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    spawn_local(async move {
        let _ = connection.await;
    });
    sender
}

pub(super) fn get(path: &str) -> Request<()> {
    Request::get(format!("http://{HOST}{path}"))
        .version(Version::HTTP_2)
        .body(())
        .unwrap()
}

/// What came back.
pub(super) struct Got {
    pub(super) status: StatusCode,
    headers: HeaderMap,
    pub(super) body: Vec<u8>,
    pub(super) trailers: Option<HeaderMap>,
}

pub(super) async fn finish(answer: h2::client::ResponseFuture) -> Result<Got, h2::Error> {
    let (head, mut stream) = answer.await?.into_parts();
    let mut body = Vec::new();
    while let Some(data) = stream.data().await {
        let data = data?;
        let _ = stream.flow_control().release_capacity(data.len());
        body.extend_from_slice(&data);
    }
    Ok(Got {
        status: head.status,
        headers: head.headers,
        body,
        trailers: stream.trailers().await?,
    })
}

pub(super) async fn send(sender: &Sender, request: Request<()>) -> Result<Got, h2::Error> {
    let mut sender = sender.clone().ready().await?;
    finish(sender.send_request(request, true)?.0).await
}

/// What an HTTP/2 service does with each stream, by its number over all
/// connections.
pub(super) type Serve = Rc<dyn Fn(usize, Request<h2::RecvStream>, h2::server::SendResponse<Bytes>)>;

/// Makes the services behind the rig speak HTTP/2. The cell counts
/// connections.
pub(super) fn serve(rig: &Rig, serve: Serve) -> Rc<Cell<u32>> {
    let connections = Rc::new(Cell::new(0));
    let count = Rc::clone(&connections);
    let streams = Rc::new(Cell::new(0));
    *rig.world.special.borrow_mut() = Some(Box::new(move |stream: DuplexStream| {
        count.set(count.get() + 1);
        let (serve, streams) = (Rc::clone(&serve), Rc::clone(&streams));
        spawn_local(async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else {
                return;
            };
            while let Some(Ok((request, respond))) = connection.accept().await {
                let number = streams.get();
                streams.set(number + 1);
                serve(number, request, respond);
            }
        });
    }));
    connections
}

/// Answers with 200 and `body`.
pub(super) fn ok(mut respond: h2::server::SendResponse<Bytes>, body: &'static str) {
    let response = Response::new(());
    let mut stream = respond.send_response(response, false).unwrap();
    stream
        .send_data(Bytes::from_static(body.as_bytes()), true)
        .unwrap();
}

pub(super) fn rig(
    change: impl FnOnce(&mut crate::policy::model::TrafficPolicy),
    protocol: Protocol,
) -> Rig {
    let mut policy = testing::traffic_policy();
    change(&mut policy);
    Rig::new(cluster(policy, protocol, 1), None)
}

#[test]
fn http2_from_the_application_becomes_http1() {
    paused(async {
        let rig = Rig::new(plain(), None);
        let sender = client(&rig).await;
        let mut request = get("/a?b");
        request
            .headers_mut()
            .append("cookie", HeaderValue::from_static("a=1"));
        request
            .headers_mut()
            .append("cookie", HeaderValue::from_static("b=2"));
        let got = send(&sender, request).await.unwrap();
        assert_eq!(
            (got.status, got.body.as_slice()),
            (StatusCode::OK, &b"ok"[..])
        );
        let seen = &rig.seen()[0];
        assert_eq!(seen.line(), "GET /a?b HTTP/1.1");
        assert_eq!(seen.all("host"), [HOST]);
        assert_eq!(seen.all("cookie"), ["a=1; b=2"]);
        // Several at once, each on a connection of its own.
        rig.script(&[
            Do::SayAfter(Duration::from_secs(2), OK),
            Do::SayAfter(Duration::from_secs(1), OK),
        ]);
        let (one, two) = tokio::join!(send(&sender, get("/1")), send(&sender, get("/2")));
        assert!(one.is_ok() && two.is_ok());
        assert_eq!(rig.world.most_open.get(), 2);
    });
}

#[test]
fn a_body_of_unknown_length_is_chunked_for_http1() {
    paused(async {
        let rig = Rig::new(plain(), None);
        let mut sender = client(&rig).await.ready().await.unwrap();
        let post = Request::post(format!("http://{HOST}/up")).body(()).unwrap();
        let (answer, mut stream) = sender.send_request(post, false).unwrap();
        stream.send_data("hello".into(), false).unwrap();
        sleep(Duration::from_secs(1)).await;
        stream.send_data(" world".into(), true).unwrap();
        assert_eq!(finish(answer).await.unwrap().status, StatusCode::OK);
        let seen = &rig.seen()[0];
        assert_eq!(seen.all("transfer-encoding"), ["chunked"]);
        assert_eq!(
            String::from_utf8_lossy(&seen.body),
            "5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
        );
    });
}

#[test]
fn host_and_authority_must_agree() {
    paused(async {
        let rig = Rig::new(plain(), None);
        let sender = client(&rig).await;
        let mut request = get("/");
        request
            .headers_mut()
            .insert("host", HeaderValue::from_static("other.example.com"));
        let got = send(&sender, request).await.unwrap();
        assert_eq!(got.status, StatusCode::BAD_REQUEST);
        assert!(got.headers.get("connection").is_none());
        assert!(rig.seen().is_empty());
    });
}

#[test]
fn a_client_that_resets_its_stream_ends_the_try() {
    paused(async {
        let rig = Rig::new(plain(), None);
        rig.script(&[Do::Silence]);
        let mut sender = client(&rig).await.ready().await.unwrap();
        let (answer, mut stream) = sender.send_request(get("/"), true).unwrap();
        sleep(Duration::from_secs(1)).await;
        stream.send_reset(Reason::CANCEL);
        drop(answer);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(rig.record().flags, ["DC"]);
        assert_eq!(rig.world.open.get(), 0);
        // The connection goes on.
        assert_eq!(
            send(&sender, get("/")).await.unwrap().status,
            StatusCode::OK
        );
    });
}

#[test]
fn http1_from_the_application_becomes_http2_when_the_port_says_so() {
    paused(async {
        let rig = rig(|_| {}, Protocol::Http2);
        let heads = Rc::new(RefCell::new(Vec::new()));
        let kept = Rc::clone(&heads);
        let connections = serve(
            &rig,
            Rc::new(move |_, request, respond| {
                kept.borrow_mut().push(request.into_parts().0);
                ok(respond, "two");
            }),
        );
        let (mut stream, _) = rig.connect();
        for _ in 0..3 {
            let answer = ask(&mut stream, &request("/x?y")).await;
            assert_eq!(answer.head.lines().next(), Some("HTTP/1.1 200 OK"));
            assert!(answer.body.contains("two"), "{answer:?}");
        }
        assert_eq!(connections.get(), 1);
        let head = &heads.borrow()[0];
        assert_eq!(head.uri.to_string(), format!("http://{HOST}/x?y"));
        assert!(head.headers.get("host").is_none());
    });
}

#[test]
fn upgrade_policy_and_client_protocol_choose_the_version() {
    paused(async {
        let upgrade = rig(
            |p| p.connection_pool.http_version = UpstreamHttp::Upgrade,
            Protocol::Http,
        );
        serve(&upgrade, Rc::new(|_, _, respond| ok(respond, "two")));
        assert_eq!(upgrade.get("/").await.0, 200);

        let same = rig(
            |p| p.connection_pool.http_version = UpstreamHttp::SameAsClient,
            Protocol::Http,
        );
        assert_eq!(same.get("/").await.1, "ok");
        serve(&same, Rc::new(|_, _, respond| ok(respond, "two")));
        let sender = client(&same).await;
        assert_eq!(send(&sender, get("/")).await.unwrap().body, b"two");
    });
}

#[test]
fn a_connection_takes_no_more_streams_than_allowed() {
    paused(async {
        let rig = rig(
            |p| p.connection_pool.max_concurrent_streams = 2,
            Protocol::Http2,
        );
        let connections = serve(
            &rig,
            Rc::new(|_, _, respond| {
                spawn_local(async move {
                    sleep(Duration::from_secs(1)).await;
                    ok(respond, "ok");
                });
            }),
        );
        let sender = client(&rig).await;
        let all: Vec<_> = (0..5)
            .map(|_| {
                let sender = sender.clone();
                spawn_local(async move { send(&sender, get("/")).await.unwrap().status })
            })
            .collect();
        for one in all {
            assert_eq!(one.await.unwrap(), StatusCode::OK);
        }
        assert_eq!(connections.get(), 3);
    });
}

#[test]
fn requests_of_a_connection_are_limited_for_http2_too() {
    paused(async {
        let rig = rig(
            |p| p.connection_pool.max_requests_per_connection = Some(2),
            Protocol::Http2,
        );
        let connections = serve(&rig, Rc::new(|_, _, respond| ok(respond, "ok")));
        let sender = client(&rig).await;
        for _ in 0..5 {
            assert_eq!(
                send(&sender, get("/")).await.unwrap().status,
                StatusCode::OK
            );
        }
        assert_eq!(connections.get(), 3);
        // The full ones are closed.
        sleep(Duration::from_millis(1)).await;
        assert_eq!(rig.world.open.get(), 1);
    });
}

#[test]
fn a_refused_stream_is_tried_again() {
    paused(async {
        let rig = rig(|_| {}, Protocol::Http2);
        serve(
            &rig,
            Rc::new(|number, _, mut respond| {
                if number == 0 {
                    respond.send_reset(Reason::REFUSED_STREAM);
                } else {
                    ok(respond, "ok");
                }
            }),
        );
        let mut sender = client(&rig).await.ready().await.unwrap();
        let post = Request::post(format!("http://{HOST}/")).body(()).unwrap();
        let (answer, mut stream) = sender.send_request(post, false).unwrap();
        stream.send_data("hello".into(), true).unwrap();
        assert_eq!(finish(answer).await.unwrap().status, StatusCode::OK);
        assert_eq!(rig.record().attempts, 2);
    });
}

#[test]
fn another_reset_is_not_tried_again_by_default() {
    paused(async {
        let rig = rig(|_| {}, Protocol::Http2);
        serve(
            &rig,
            Rc::new(|_, _, mut respond| respond.send_reset(Reason::INTERNAL_ERROR)),
        );
        let sender = client(&rig).await;
        let got = send(&sender, get("/")).await.unwrap();
        assert_eq!(got.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(rig.record().flags, ["UR"]);
        assert!(String::from_utf8_lossy(&got.body).contains("remote reset"));
    });
}

#[test]
fn goaway_fails_no_request() {
    paused(async {
        let rig = rig(|_| {}, Protocol::Http2);
        let connections = Rc::new(Cell::new(0));
        let count = Rc::clone(&connections);
        *rig.world.special.borrow_mut() = Some(Box::new(move |stream| {
            count.set(count.get() + 1);
            spawn_local(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                let mut served = 0;
                while let Some(Ok((_, respond))) = connection.accept().await {
                    served += 1;
                    spawn_local(async move {
                        sleep(Duration::from_millis(100)).await;
                        ok(respond, "ok");
                    });
                    if served == 3 {
                        connection.graceful_shutdown();
                    }
                }
            });
        }));
        let sender = client(&rig).await;
        let mut all = Vec::new();
        for n in 0..30 {
            let sender = sender.clone();
            all.push(spawn_local(async move {
                send(&sender, get(&format!("/{n}"))).await.unwrap().status
            }));
            sleep(Duration::from_millis(20)).await;
        }
        for one in all {
            assert_eq!(one.await.unwrap(), StatusCode::OK);
        }
        assert!(connections.get() > 1);
        assert!(
            rig.records().iter().all(|r| r.flags.is_empty()),
            "{:?}",
            rig.records()
        );
    });
}

#[test]
fn grpc_streams_both_ways_and_keeps_its_trailers() {
    paused(async {
        let rig = rig(|_| {}, Protocol::Grpc);
        serve(
            &rig,
            Rc::new(|_, request, mut respond| {
                assert_eq!(request.headers()["te"], "trailers");
                spawn_local(async move {
                    let mut body = request.into_body();
                    let head = Response::builder()
                        .header("content-type", "application/grpc")
                        .body(())
                        .unwrap();
                    let mut stream = respond.send_response(head, false).unwrap();
                    // Echoes each message when it comes.
                    while let Some(Ok(data)) = body.data().await {
                        let _ = body.flow_control().release_capacity(data.len());
                        stream.send_data(data, false).unwrap();
                    }
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", HeaderValue::from_static("3"));
                    stream.send_trailers(trailers).unwrap();
                });
            }),
        );
        let mut sender = client(&rig).await.ready().await.unwrap();
        let call = Request::post(format!("http://{HOST}/svc/Method"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let (answer, mut up) = sender.send_request(call, false).unwrap();
        up.send_data("one".into(), false).unwrap();
        let mut down = answer.await.unwrap().into_body();
        assert_eq!(down.data().await.unwrap().unwrap(), "one");
        up.send_data("two".into(), false).unwrap();
        assert_eq!(down.data().await.unwrap().unwrap(), "two");
        up.send_data(Bytes::new(), true).unwrap();
        assert!(down.data().await.is_none());
        let trailers = down.trailers().await.unwrap().unwrap();
        assert_eq!(trailers["grpc-status"], "3");
        let record = rig.record();
        assert_eq!((record.status, record.grpc_status), (Some(200), Some(3)));
        assert_eq!((record.received, record.sent), (6, 6));
    });
}

#[test]
fn an_unavailable_grpc_service_is_tried_again() {
    paused(async {
        let cluster = cluster(testing::traffic_policy(), Protocol::Grpc, 2);
        let route = HttpRoute {
            retries: RetryPolicy {
                on: RetryOn {
                    grpc: vec![14],
                    ..RetryOn::default()
                },
                ..default_retries().clone()
            },
            ..to(&cluster, "/")
        };
        let rig = Rig::new(cluster, Some(vec![route]));
        serve(
            &rig,
            Rc::new(|number, _, mut respond| {
                let status = if number == 0 { "14" } else { "0" };
                let head = Response::builder()
                    .header("content-type", "application/grpc")
                    .header("grpc-status", status)
                    .body(())
                    .unwrap();
                respond.send_response(head, true).unwrap();
            }),
        );
        let sender = client(&rig).await;
        let got = send(&sender, get("/svc/Method")).await.unwrap();
        assert_eq!(got.headers["grpc-status"], "0");
        assert!(got.trailers.is_none());
        assert_eq!(rig.record().attempts, 2);
    });
}

#[test]
fn grpc_gets_our_answers_in_its_own_form() {
    paused(async {
        let rig = rig(|_| {}, Protocol::Grpc);
        rig.world.refused.borrow_mut().push(super::rig::address(1));
        let sender = client(&rig).await;
        let call = Request::post(format!("http://{HOST}/svc/Method"))
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        let got = send(&sender, call).await.unwrap();
        assert_eq!(got.status, StatusCode::OK);
        assert_eq!(got.headers["grpc-status"], "14");
        let message = got.headers["grpc-message"].to_str().unwrap();
        assert!(message.contains("connection refused"), "{message}");
        assert!(got.body.is_empty());
    });
}

#[test]
fn backpressure_reaches_the_service() {
    paused(async {
        let rig = rig(|_| {}, Protocol::Http);
        let written = Rc::new(Cell::new(0usize));
        let count = Rc::clone(&written);
        *rig.world.special.borrow_mut() = Some(Box::new(move |mut stream: DuplexStream| {
            let count = Rc::clone(&count);
            spawn_local(async move {
                use tokio::io::{AsyncReadExt, AsyncWriteExt};
                let mut head = vec![0; 1000];
                let _ = stream.read(&mut head).await;
                let _ = stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n")
                    .await;
                let chunk = vec![0; 10_000];
                while stream.write_all(&chunk).await.is_ok() {
                    count.set(count.get() + chunk.len());
                }
            });
        }));
        // A client that reads nothing of its 100 MB.
        let (mut stream, _) = rig.connect();
        tokio::io::AsyncWriteExt::write_all(&mut stream, request("/").as_bytes())
            .await
            .unwrap();
        sleep(Duration::from_secs(5)).await;
        assert!(
            written.get() < 600_000,
            "{} bytes were taken",
            written.get()
        );
        let sender = client(&rig).await;
        let (answer, _) = sender
            .clone()
            .ready()
            .await
            .unwrap()
            .send_request(get("/"), true)
            .unwrap();
        let answer = answer.await.unwrap();
        written.set(0);
        sleep(Duration::from_secs(5)).await;
        assert!(
            written.get() < 1_000_000,
            "{} bytes were taken",
            written.get()
        );
        drop(answer);
    });
}

#[test]
fn a_websocket_over_http2_reaches_an_http1_service() {
    paused(async {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let rig = Rig::new(plain(), None);
        *rig.world.special.borrow_mut() = Some(Box::new(|mut stream: DuplexStream| {
            spawn_local(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    stream.read_buf(&mut head).await.unwrap();
                }
                let head = String::from_utf8(head).unwrap();
                assert!(head.starts_with("GET /chat HTTP/1.1\r\n"), "{head}");
                assert!(head.contains("upgrade: websocket\r\n"), "{head}");
                assert!(head.contains("sec-websocket-key: "), "{head}");
                let answer = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                               upgrade: websocket\r\n\r\nhi";
                stream.write_all(answer).await.unwrap();
                let mut said = [0; 3];
                stream.read_exact(&mut said).await.unwrap();
                stream.write_all(&said).await.unwrap();
            });
        }));
        let mut sender = client(&rig).await.ready().await.unwrap();
        // The relay says that it takes extended CONNECT.
        sleep(Duration::from_secs(1)).await;
        assert!(sender.is_extended_connect_protocol_enabled());
        let connect = Request::connect(format!("http://{HOST}/chat"))
            .extension(h2::ext::Protocol::from_static("websocket"))
            .header("sec-websocket-version", "13")
            .body(())
            .unwrap();
        let (answer, mut up) = sender.send_request(connect, false).unwrap();
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let mut down = answer.into_body();
        up.send_data("hey".into(), false).unwrap();
        let mut got = Vec::new();
        while got.len() < 5 {
            got.extend_from_slice(&down.data().await.unwrap().unwrap());
        }
        assert_eq!(got, b"hihey");
        up.send_data(Bytes::new(), true).unwrap();
        while down.data().await.is_some() {}
        sleep(Duration::from_secs(1)).await;
        let record = rig.record();
        assert_eq!((record.received, record.sent), (3, 5));
        // A plain CONNECT is still refused.
        let connect = Request::connect("http://a.com:443").body(()).unwrap();
        let (answer, _) = sender
            .clone()
            .ready()
            .await
            .unwrap()
            .send_request(connect, true)
            .unwrap();
        assert_eq!(answer.await.unwrap().status(), StatusCode::FORBIDDEN);
    });
}

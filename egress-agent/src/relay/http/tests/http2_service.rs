//! Connections to services that speak HTTP/2: their streams, and their end.

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use tokio::io::DuplexStream;
use tokio::task::spawn_local;
use tokio::time::sleep;

use super::http2::{Sender, client, finish, get, ok, rig, send, serve};
use super::rig::{HOST, Rig, cluster, paused};
use super::routing::to;
use crate::policy::model::Protocol;
use crate::policy::routes::HttpRoute;
use crate::route::testing;

/// Size and number of the pieces of an upload.
const CHUNK: usize = 10_000;
const CHUNKS: usize = 500;

/// Begins a request whose body is still to come.
async fn begin(sender: &Sender) -> (h2::client::ResponseFuture, h2::SendStream<Bytes>) {
    let mut sender = sender.clone().ready().await.unwrap();
    let post = Request::post(format!("http://{HOST}/")).body(()).unwrap();
    sender.send_request(post, false).unwrap()
}

/// A service that takes what its first window holds of the first request, and
/// answers the others. Returns how many connections it has, and with which
/// reason the first request was reset.
fn serve_takes_first(rig: &Rig) -> (Rc<Cell<u32>>, Rc<RefCell<Option<Reason>>>) {
    let end = Rc::new(RefCell::new(None));
    let told = Rc::clone(&end);
    let connections = serve(
        rig,
        Rc::new(move |number, request, respond| {
            if number > 0 {
                return ok(respond, "ok");
            }
            let told = Rc::clone(&told);
            spawn_local(async move {
                let _respond = respond;
                let mut body = request.into_body();
                while let Some(data) = body.data().await {
                    if let Err(error) = data {
                        *told.borrow_mut() = error.reason();
                        return;
                    }
                }
            });
        }),
    );
    (connections, end)
}

#[test]
fn a_client_that_gives_up_its_upload_resets_one_stream() {
    paused(async {
        let rig = rig(|_| {}, Protocol::Http2);
        let (connections, end) = serve_takes_first(&rig);
        let sender = client(&rig).await;
        let (_answer, mut stream) = begin(&sender).await;
        stream.send_data("hello".into(), false).unwrap();
        sleep(Duration::from_secs(1)).await;
        assert_eq!(*end.borrow(), None);
        stream.send_reset(Reason::CANCEL);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(*end.borrow(), Some(Reason::CANCEL));
        assert_eq!(send(&sender, get("/")).await.unwrap().body, b"ok");
        assert_eq!(connections.get(), 1);
    });
}

#[test]
fn an_upload_is_read_as_the_service_takes_it() {
    paused(async {
        let rig = rig(|_| {}, Protocol::Http2);
        let taken = Rc::new(Cell::new(0));
        let go = Rc::new(tokio::sync::Notify::new());
        let (count, begun) = (Rc::clone(&taken), Rc::clone(&go));
        serve(
            &rig,
            Rc::new(move |_, request, respond| {
                let (count, begun) = (Rc::clone(&count), Rc::clone(&begun));
                spawn_local(async move {
                    begun.notified().await;
                    let mut body = request.into_body();
                    while let Some(data) = body.data().await {
                        let data = data.unwrap();
                        let _ = body.flow_control().release_capacity(data.len());
                        count.set(count.get() + data.len());
                    }
                    ok(respond, "ok");
                });
            }),
        );
        let (answer, mut stream) = begin(&client(&rig).await).await;
        let sent = Rc::new(Cell::new(0));
        let count = Rc::clone(&sent);
        spawn_local(async move {
            for n in 1..=CHUNKS {
                stream.reserve_capacity(CHUNK);
                while stream.capacity() < CHUNK {
                    std::future::poll_fn(|cx| stream.poll_capacity(cx)).await;
                }
                stream
                    .send_data(vec![0; CHUNK].into(), n == CHUNKS)
                    .unwrap();
                count.set(count.get() + CHUNK);
            }
        });
        sleep(Duration::from_secs(5)).await;
        assert!(sent.get() < 1_000_000, "{} bytes were taken", sent.get());
        go.notify_one();
        assert_eq!(finish(answer).await.unwrap().body, b"ok");
        assert_eq!(taken.get(), CHUNK * CHUNKS);
    });
}

#[test]
fn a_timeout_resets_a_stream_whose_upload_waits_for_the_service() {
    paused(async {
        let cluster = cluster(testing::traffic_policy(), Protocol::Http2, 1);
        let route = HttpRoute {
            timeout: Some(Duration::from_secs(2)),
            ..to(&cluster, "/")
        };
        let rig = Rig::new(cluster, Some(vec![route]));
        let (connections, end) = serve_takes_first(&rig);
        let sender = client(&rig).await;
        let (answer, mut stream) = begin(&sender).await;
        // All of it is taken from the client, and its end never leaves.
        for n in 1..=8 {
            stream.send_data(vec![0; CHUNK].into(), n == 8).unwrap();
        }
        let got = finish(answer).await.unwrap();
        assert_eq!(got.status, StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(rig.record().received, 8 * CHUNK as u64);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(*end.borrow(), Some(Reason::CANCEL));
        assert_eq!(send(&sender, get("/")).await.unwrap().body, b"ok");
        assert_eq!(connections.get(), 1);
    });
}

#[test]
fn trailers_that_must_not_be_are_left_out_both_ways() {
    fn trailers() -> HeaderMap {
        let names = [
            "x-sum",
            "host",
            "content-length",
            "authorization",
            "set-cookie",
        ];
        let one = |name| (HeaderName::from_static(name), HeaderValue::from_static("1"));
        names.into_iter().map(one).collect()
    }
    paused(async {
        let rig = rig(|_| {}, Protocol::Http2);
        let seen = Rc::new(RefCell::new(None));
        let told = Rc::clone(&seen);
        serve(
            &rig,
            Rc::new(move |_, request, mut respond| {
                let told = Rc::clone(&told);
                spawn_local(async move {
                    let mut body = request.into_body();
                    while body.data().await.is_some() {}
                    *told.borrow_mut() = body.trailers().await.unwrap();
                    let mut stream = respond.send_response(Response::new(()), false).unwrap();
                    stream.send_trailers(trailers()).unwrap();
                });
            }),
        );
        let (answer, mut stream) = begin(&client(&rig).await).await;
        stream.send_data("hello".into(), false).unwrap();
        stream.send_trailers(trailers()).unwrap();
        let got = finish(answer).await.unwrap();
        for trailers in [seen.take(), got.trailers] {
            let names: Vec<_> = trailers.iter().flatten().map(|(name, _)| name).collect();
            assert_eq!(names, ["x-sum"]);
        }
    });
}

#[test]
fn an_early_answer_ends_the_upload() {
    paused(async {
        let rig = rig(|_| {}, Protocol::Http2);
        serve(
            &rig,
            Rc::new(|_, _, mut respond| {
                let head = Response::builder()
                    .status(StatusCode::PAYLOAD_TOO_LARGE)
                    .body(())
                    .unwrap();
                let mut stream = respond.send_response(head, false).unwrap();
                stream.send_data("enough".into(), true).unwrap();
                spawn_local(async move {
                    // Whatever waits to be sent would be dropped.
                    sleep(Duration::from_millis(1)).await;
                    stream.send_reset(Reason::NO_ERROR);
                });
            }),
        );
        let (answer, mut stream) = begin(&client(&rig).await).await;
        stream.send_data("hello".into(), false).unwrap();
        let got = finish(answer).await.unwrap();
        assert_eq!(got.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(got.body, b"enough");
        assert!(rig.record().flags.is_empty(), "{:?}", rig.record());
    });
}

#[test]
fn an_idle_connection_is_closed() {
    paused(async {
        let rig = rig(
            |policy| policy.connection_pool.http_idle_timeout = Some(Duration::from_secs(10)),
            Protocol::Http2,
        );
        serve(&rig, Rc::new(|_, _, respond| ok(respond, "ok")));
        let sender = client(&rig).await;
        assert_eq!(send(&sender, get("/")).await.unwrap().body, b"ok");
        sleep(Duration::from_secs(8)).await;
        assert_eq!(rig.world.open.get(), 1);
        sleep(Duration::from_secs(4)).await;
        assert_eq!(rig.world.open.get(), 0);
    });
}

/// A service that answers one request on each connection, and from then on
/// either goes on as HTTP/2 does or never reads again.
fn serves_one(rig: &Rig, freezes: bool) {
    *rig.world.special.borrow_mut() = Some(Box::new(move |stream: DuplexStream| {
        spawn_local(async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((_, respond))) = connection.accept().await {
                ok(respond, "ok");
                if freezes {
                    // The answer has to leave.
                    let _ = tokio::time::timeout(Duration::from_secs(1), connection.accept()).await;
                    pending::<()>().await;
                }
            }
        });
    }));
}

#[test]
fn a_service_that_answers_no_pings_loses_its_connection() {
    for freezes in [false, true] {
        paused(async move {
            let times = (Duration::from_secs(10), Duration::from_secs(5));
            let rig = rig(
                |policy| policy.connection_pool.http2_keepalive = Some(times),
                Protocol::Http2,
            );
            serves_one(&rig, freezes);
            let sender = client(&rig).await;
            assert_eq!(send(&sender, get("/")).await.unwrap().body, b"ok");
            sleep(Duration::from_secs(12)).await;
            assert_eq!(rig.world.open.get(), 1);
            sleep(Duration::from_mins(1)).await;
            assert_eq!(rig.world.open.get(), u32::from(!freezes));
            assert_eq!(send(&sender, get("/")).await.unwrap().body, b"ok");
            let connections = if freezes { 2 } else { 1 };
            assert_eq!(rig.world.connections.get(), connections);
        });
    }
}

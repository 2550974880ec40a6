//! The HTTP/1 connection to a service: what it writes, how it reads what comes
//! in whatever pieces, and when it may be used again.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body_util::channel::{Channel, Sender};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::timeout;

use super::decode::{Chunk, Framing, HEAD_LIMIT, Malformed, Piece, head};
use super::{Connection, RequestHead, SendError, SendFailure};
use crate::testing::paused;

/// What is waited for that must not come.
const WHILE: Duration = Duration::from_secs(1);

type Body = BoxBody<Bytes, io::Error>;

fn nothing() -> Body {
    Empty::new()
        .map_err(|never: Infallible| match never {})
        .boxed()
}

fn text(body: &'static str) -> Body {
    let body = Full::new(Bytes::from_static(body.as_bytes()));
    body.map_err(|never: Infallible| match never {}).boxed()
}

/// A body whose length nobody knows.
fn streamed() -> (Sender<Bytes, io::Error>, Body) {
    let (sender, body) = Channel::new(8);
    (sender, body.boxed())
}

fn connect() -> (Connection<Body, DuplexStream>, DuplexStream) {
    let (near, far) = duplex(1 << 20);
    (Connection::new(near), far)
}

/// A request as the caller has it.
struct Request {
    method: Method,
    path: PathAndQuery,
    authority: HeaderValue,
    headers: HeaderMap,
}

impl Request {
    fn new(method: Method) -> Self {
        Self {
            method,
            path: PathAndQuery::from_static("/a?b"),
            authority: HeaderValue::from_static("api.example"),
            headers: HeaderMap::new(),
        }
    }

    fn head(&self) -> RequestHead<'_> {
        RequestHead {
            method: &self.method,
            path: &self.path,
            authority: &self.authority,
            parsed: None,
            headers: &self.headers,
            extra: [const { None }; 3],
            credential: None,
            tls: false,
            attempt: None,
            upgrade: None,
        }
    }

    async fn send(
        &self,
        connection: &mut Connection<Body, DuplexStream>,
        body: Body,
    ) -> Result<StatusCode, SendError> {
        let parts = connection.send(&self.head(), body).await?;
        Ok(parts.status)
    }
}

/// What has come so far.
async fn heard(far: &mut DuplexStream) -> String {
    let mut heard = BytesMut::new();
    while let Ok(Ok(1..)) = timeout(WHILE, far.read_buf(&mut heard)).await {}
    String::from_utf8(heard.to_vec()).unwrap()
}

/// The rest of the response's body, and its trailers.
async fn rest(
    connection: &mut Connection<Body, DuplexStream>,
) -> io::Result<(String, Option<HeaderMap>)> {
    let (mut body, mut trailers) = (Vec::new(), None);
    while let Some(frame) = poll_fn(|cx| connection.poll_frame(cx)).await {
        match frame?.into_data() {
            Ok(data) => body.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Ok((String::from_utf8(body).unwrap(), trailers))
}

#[test]
fn a_request_is_framed_by_what_is_known_of_its_body() {
    paused(async {
        let known = [
            (Method::GET, nothing(), "", ""),
            (Method::POST, nothing(), "content-length: 0\r\n", ""),
            (Method::PUT, text("abc"), "content-length: 3\r\n", "abc"),
        ];
        for (method, body, told, sent) in known {
            let (mut connection, mut far) = connect();
            let mut request = Request::new(method.clone());
            // Of the message on its way here.
            for (name, value) in [("transfer-encoding", "chunked"), ("connection", "x")] {
                let value = HeaderValue::from_static(value);
                request.headers.insert(name, value);
            }
            let _ = timeout(WHILE, request.send(&mut connection, body)).await;
            let wanted = format!("{method} /a?b HTTP/1.1\r\nhost: api.example\r\n{told}\r\n{sent}");
            assert_eq!(heard(&mut far).await, wanted);
        }
    });
}

#[test]
fn trailers_go_along_but_for_those_that_must_not() {
    paused(async {
        let (mut connection, mut far) = connect();
        let (mut sender, body) = streamed();
        sender
            .send_data(Bytes::from_static(b"hello"))
            .await
            .unwrap();
        let mut trailers = HeaderMap::new();
        let all = ["x-checksum", "host", "content-length", "authorization"];
        for name in all.into_iter().chain(["transfer-encoding", "te"]) {
            trailers.insert(HeaderName::from_static(name), HeaderValue::from_static("1"));
        }
        sender.send_trailers(trailers).await.unwrap();
        drop(sender);
        let request = Request::new(Method::POST);
        let _ = timeout(WHILE, request.send(&mut connection, body)).await;
        let sent = heard(&mut far).await;
        let (_, body) = sent.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, "5\r\nhello\r\n0\r\nx-checksum: 1\r\n\r\n");
    });
}

#[test]
fn trailers_of_a_response_are_passed_on_but_for_those_that_must_not() {
    paused(async {
        let (mut connection, mut far) = connect();
        far.write_all(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\
              grpc-status: 0\r\nContent-Length: 9\r\nSet-Cookie: a=b\r\n\r\n",
        )
        .await
        .unwrap();
        let request = Request::new(Method::GET);
        request.send(&mut connection, nothing()).await.unwrap();
        let (body, trailers) = rest(&mut connection).await.unwrap();
        let trailers = trailers.unwrap();
        assert_eq!(body, "ok");
        assert_eq!(
            (trailers.len(), &trailers["grpc-status"]),
            (1, &HeaderValue::from_static("0"))
        );
        assert!(connection.is_reusable());
    });
}

#[test]
fn one_request_follows_another_and_memory_is_used_again() {
    paused(async {
        let (mut connection, mut far) = connect();
        let request = Request::new(Method::GET);
        for body in ["one", "three", "", "seventeen"] {
            let length = body.len();
            far.write_all(
                format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n").as_bytes(),
            )
            .await
            .unwrap();
            far.write_all(body.as_bytes()).await.unwrap();
            let status = request.send(&mut connection, nothing()).await.unwrap();
            assert_eq!(status, StatusCode::OK);
            // As the caller takes it: at once where it is here.
            let all = match connection.whole() {
                Some(all) => String::from_utf8(all.to_vec()).unwrap(),
                None => rest(&mut connection).await.unwrap().0,
            };
            assert_eq!(all, body);
            assert!(connection.is_reusable() && connection.is_end_stream());
        }
        drop(heard(&mut far).await);
    });
}

/// What is read into memory that is used again must not change what was read
/// before and is still held.
#[test]
fn a_body_that_is_still_held_stays_as_it_was() {
    paused(async {
        let (mut connection, mut far) = connect();
        let request = Request::new(Method::GET);
        let mut held = Vec::new();
        for letter in ["a", "b", "c", "d"] {
            let body = letter.repeat(700);
            let response = format!("HTTP/1.1 200 OK\r\ncontent-length: 700\r\n\r\n{body}");
            far.write_all(response.as_bytes()).await.unwrap();
            request.send(&mut connection, nothing()).await.unwrap();
            held.push((connection.whole().unwrap(), body));
        }
        for (bytes, wanted) in held {
            assert_eq!(bytes, wanted);
        }
    });
}

#[test]
fn a_body_is_whole_only_when_all_of_it_has_come_and_the_request_is_sent() {
    paused(async {
        let (mut connection, mut far) = connect();
        let half = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nabc";
        far.write_all(half).await.unwrap();
        let request = Request::new(Method::GET);
        request.send(&mut connection, nothing()).await.unwrap();
        assert_eq!(connection.whole(), None);
        far.write_all(b"def").await.unwrap();
        assert_eq!(rest(&mut connection).await.unwrap().0, "abcdef");
        assert!(connection.is_reusable());

        // An answer before the end of the request.
        let (mut connection, mut far) = connect();
        let (mut sender, body) = streamed();
        sender
            .send_data(Bytes::from_static(b"begun"))
            .await
            .unwrap();
        far.write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig")
            .await
            .unwrap();
        let request = Request::new(Method::POST);
        request.send(&mut connection, body).await.unwrap();
        assert_eq!(connection.whole(), None);
        assert!(!connection.is_reusable());
        assert_eq!(rest(&mut connection).await.unwrap().0, "big");
        assert!(!connection.is_reusable());
        // The request goes on to its end, and then another may follow.
        drop(sender);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(connection.poll_frame(&mut cx).is_ready());
        assert!(connection.is_reusable());
        let sent = heard(&mut far).await;
        assert!(sent.ends_with("\r\n\r\n5\r\nbegun\r\n0\r\n\r\n"), "{sent}");
    });
}

#[test]
fn bytes_behind_a_response_end_the_connection() {
    paused(async {
        let (mut connection, mut far) = connect();
        far.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nxHTTP/1.1 200 OK\r\n")
            .await
            .unwrap();
        let request = Request::new(Method::GET);
        request.send(&mut connection, nothing()).await.unwrap();
        assert_eq!(connection.whole().unwrap(), "x");
        assert!(!connection.is_reusable());
    });
}

#[test]
fn a_connection_that_ends_says_how_far_the_request_had_come() {
    paused(async {
        let (mut connection, far) = connect();
        drop(far);
        let request = Request::new(Method::GET);
        let error = request.send(&mut connection, nothing()).await.unwrap_err();
        assert_eq!(error.failure, SendFailure::Unsent);

        let (mut connection, mut far) = connect();
        let (end, ()) = tokio::join!(request.send(&mut connection, nothing()), async {
            far.read_u8().await.unwrap();
            drop(far);
        });
        assert_eq!(end.unwrap_err().failure, SendFailure::Closed);
    });
}

#[test]
fn a_body_that_fails_is_the_clients_side() {
    paused(async {
        let (mut connection, _far) = connect();
        let (sender, body) = streamed();
        sender.abort(io::Error::other("gone"));
        let request = Request::new(Method::POST);
        let error = request.send(&mut connection, body).await.unwrap_err();
        assert_eq!(error.failure, SendFailure::RequestBody);
    });
}

type Read = Result<(Framing, bool), Malformed>;

/// How a head is read: its framing and whether another request may follow.
fn read(method: &Method, text: &str) -> Result<Option<(Framing, bool)>, Malformed> {
    let mut buffer = BytesMut::from(text);
    let head = head(&mut buffer, method, &mut HeaderMap::new())?;
    Ok(head.map(|head| (head.framing, head.keep_alive)))
}

/// RFC 9112 section 6.3, and what follows for the connection (section 9.3).
#[test]
fn framing_is_that_of_the_rfc() {
    let chunked = Framing::Chunked(Chunk::START);
    let cases: [(Method, &str, Read); 21] = [
        (
            Method::GET,
            "1.1 200|content-length: 3",
            Ok((Framing::Length(3), true)),
        ),
        (
            Method::GET,
            "1.1 200|transfer-encoding: chunked",
            Ok((chunked, true)),
        ),
        (
            Method::GET,
            "1.1 200|transfer-encoding: Chunked",
            Ok((chunked, true)),
        ),
        (
            Method::GET,
            "1.1 200|x: y",
            Ok((Framing::UntilClose, false)),
        ),
        (Method::GET, "1.1 204|x: y", Ok((Framing::Length(0), true))),
        (
            Method::GET,
            "1.1 304|content-length: 3",
            Ok((Framing::Length(0), true)),
        ),
        (
            Method::HEAD,
            "1.1 200|content-length: 3",
            Ok((Framing::Length(0), true)),
        ),
        (Method::HEAD, "1.1 200|x: y", Ok((Framing::Length(0), true))),
        (
            Method::GET,
            "1.0 200|content-length: 3",
            Ok((Framing::Length(3), false)),
        ),
        (
            Method::GET,
            "1.0 200|content-length: 3|connection: keep-alive",
            Ok((Framing::Length(3), true)),
        ),
        (
            Method::GET,
            "1.1 200|content-length: 3|connection: x, Close",
            Ok((Framing::Length(3), false)),
        ),
        (
            Method::GET,
            "1.1 200|content-length: 3|content-length: 3",
            Ok((Framing::Length(3), true)),
        ),
        (
            Method::GET,
            "1.1 200|content-length: 3, 3",
            Ok((Framing::Length(3), true)),
        ),
        // Both: the coding wins, and nothing may follow.
        (
            Method::GET,
            "1.1 200|content-length: 3|transfer-encoding: chunked",
            Ok((chunked, false)),
        ),
        (
            Method::GET,
            "1.1 200|content-length: 3, 4",
            Err(Malformed::Length),
        ),
        (
            Method::GET,
            "1.1 200|content-length: 3|content-length: 4",
            Err(Malformed::Length),
        ),
        (
            Method::GET,
            "1.1 200|content-length: +3",
            Err(Malformed::Length),
        ),
        (
            Method::GET,
            "1.1 200|content-length: 99999999999999999999",
            Err(Malformed::Length),
        ),
        (
            Method::GET,
            "1.0 200|transfer-encoding: chunked",
            Err(Malformed::Length),
        ),
        (
            Method::GET,
            "1.1 200|transfer-encoding: gzip, chunked",
            Err(Malformed::Chunk),
        ),
        (
            Method::GET,
            "1.1 200|transfer-encoding: chunked|transfer-encoding: chunked",
            Err(Malformed::Chunk),
        ),
    ];
    for (method, text, wanted) in cases {
        let text = format!("HTTP/{}\r\n\r\n", text.replace('|', "\r\n"));
        assert_eq!(read(&method, &text), wanted.map(Some), "{method} {text:?}");
    }
}

#[test]
fn a_head_that_never_ends_is_refused() {
    let mut text = String::from("HTTP/1.1 200 OK\r\n");
    text.push_str(&format!("x: {}\r\n", "y".repeat(1000)).repeat(HEAD_LIMIT / 1000));
    assert_eq!(read(&Method::GET, &text), Ok(None));
    text.push_str(&format!("z: {}\r\n", "y".repeat(1000)));
    assert_eq!(read(&Method::GET, &text), Err(Malformed::TooLarge));
    let lines = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(101));
    assert!(matches!(
        read(&Method::GET, &lines),
        Err(Malformed::Head(_))
    ));
}

/// Reads a chunked body that comes in pieces of these sizes: its data, whether
/// it ended, and what lies behind.
fn dechunk(text: &[u8], sizes: &[usize]) -> Result<(Vec<u8>, bool, Vec<u8>), Malformed> {
    let (mut chunk, mut buffer) = (Chunk::START, BytesMut::new());
    let (mut data, mut left) = (Vec::new(), text);
    let mut sizes = sizes.iter().cycle();
    loop {
        match chunk.next(&mut buffer)? {
            Piece::Data(piece) => data.extend_from_slice(&piece),
            Piece::End | Piece::Trailers(_) => {
                buffer.extend_from_slice(left);
                return Ok((data, true, buffer.to_vec()));
            }
            Piece::More if left.is_empty() => return Ok((data, false, Vec::new())),
            Piece::More => {
                let size = sizes.next().map_or(1, |size| *size).clamp(1, left.len());
                let (piece, rest) = left.split_at(size);
                buffer.extend_from_slice(piece);
                left = rest;
            }
        }
    }
}

#[test]
fn malformed_chunks_are_refused() {
    let all = [
        "g\r\n",
        "\r\n",
        "-1\r\n",
        "0x1\r\n",
        "1\nx\r\n0\r\n\r\n",
        "1\r\nxx\r\n",
        "1\r\nx\n0\r\n\r\n",
        "1 2\r\n",
        "11111111111111111\r\n",
        "0\r\nbad trailer\r\n\r\n",
        " 1\r\n",
    ];
    for text in all {
        assert_eq!(
            dechunk(text.as_bytes(), &[1]),
            Err(Malformed::Chunk),
            "{text:?}"
        );
    }
    let endless = format!("1;{}", "x".repeat(10_000));
    assert_eq!(dechunk(endless.as_bytes(), &[100]), Err(Malformed::Chunk));
}

proptest! {
    #[test]
    fn a_chunked_body_is_the_same_in_any_pieces(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..8),
        extension in prop::sample::select(vec!["", ";a=b", " ;a"]),
        trailers in prop::sample::select(vec!["", "x: y\r\n"]),
        behind in prop::collection::vec(any::<u8>(), 0..20),
        sizes in prop::collection::vec(1usize..30, 1..6),
    ) {
        let mut text = Vec::new();
        for chunk in &chunks {
            text.extend_from_slice(format!("{:x}{extension}\r\n", chunk.len()).as_bytes());
            text.extend_from_slice(chunk);
            text.extend_from_slice(b"\r\n");
        }
        text.extend_from_slice(format!("0\r\n{trailers}\r\n").as_bytes());
        text.extend_from_slice(&behind);
        prop_assert_eq!(dechunk(&text, &sizes), Ok((chunks.concat(), true, behind)));
    }

    #[test]
    fn what_is_written_in_chunks_reads_as_it_was(
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 0..5),
        sizes in prop::collection::vec(1usize..500, 1..4),
    ) {
        let wanted = pieces.concat();
        paused(async {
            let (mut connection, mut far) = connect();
            let (mut sender, body) = streamed();
            for piece in pieces {
                sender.send_data(piece.into()).await.unwrap();
            }
            drop(sender);
            let request = Request::new(Method::POST);
            let _ = timeout(WHILE, request.send(&mut connection, body)).await;
            let mut sent = Vec::new();
            let _ = timeout(WHILE, far.read_to_end(&mut sent)).await;
            let end = memchr::memmem::find(&sent, b"\r\n\r\n").unwrap() + 4;
            assert_eq!(dechunk(&sent[end..], &sizes), Ok((wanted, true, Vec::new())));
        });
    }

    #[test]
    fn no_bytes_break_the_reader(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        sizes in prop::collection::vec(1usize..30, 1..4),
    ) {
        let _ = dechunk(&bytes, &sizes);
        let mut text = b"HTTP/1.1 200 OK\r\n".to_vec();
        text.extend_from_slice(&bytes);
        text.extend_from_slice(b"\r\n\r\n");
        for text in [bytes, text] {
            let mut buffer = BytesMut::from(&text[..]);
            let before = buffer.len();
            let read = head(&mut buffer, &Method::GET, &mut HeaderMap::new());
            // Only what is whole is taken.
            let taken = before - buffer.len();
            prop_assert_eq!(taken > 0, matches!(read, Ok(Some(_))));
        }
    }

    #[test]
    fn a_head_is_the_same_in_any_pieces(
        values in prop::collection::vec("[ -~]{0,30}", 0..10),
        cut in 0usize..400,
    ) {
        let mut text = String::from("HTTP/1.1 200 OK\r\n");
        for (number, value) in values.iter().enumerate() {
            text.push_str(&format!("x-{number}: {value}\r\n"));
        }
        text.push_str("\r\n");
        let (mut buffer, mut spare) = (BytesMut::new(), HeaderMap::new());
        let cut = cut.min(text.len() - 1);
        buffer.extend_from_slice(&text.as_bytes()[..cut]);
        prop_assert!(head(&mut buffer, &Method::GET, &mut spare).unwrap().is_none());
        buffer.extend_from_slice(&text.as_bytes()[cut..]);
        let parts = head(&mut buffer, &Method::GET, &mut spare).unwrap().unwrap().parts;
        prop_assert_eq!(parts.headers.len(), values.len());
        for (number, value) in values.iter().enumerate() {
            let read = parts.headers.get(format!("x-{number}")).unwrap();
            prop_assert_eq!(read.to_str().unwrap(), value.trim_matches([' ', '\t']));
        }
    }
}

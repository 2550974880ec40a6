#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::head::{Head, http_head, http1_host};
use super::sniff::tell;
use super::*;

/// A ClientHello of rustls for a name, as one record.
fn hello(name: &'static str) -> Vec<u8> {
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::aws_lc_rs::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .unwrap()
    .with_root_certificates(rustls::RootCertStore::empty())
    .with_no_client_auth();
    let mut client =
        rustls::ClientConnection::new(Arc::new(config), name.try_into().unwrap()).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// The same handshake message in records of at most `size` bytes.
fn fragmented(record: &[u8], size: usize) -> Vec<u8> {
    record[5..]
        .chunks(size)
        .flat_map(|chunk| {
            let length = u16::try_from(chunk.len()).unwrap().to_be_bytes();
            [&[22, 3, 1], &length[..], chunk].concat()
        })
        .collect()
}

fn named(name: &str) -> Hello {
    Hello::Yes(Some(name.into()))
}

#[test]
fn a_hello_of_rustls_names_its_server() {
    assert_eq!(
        client_hello(&hello("API.example.com")),
        named("api.example.com")
    );
    // No SNI for an address (RFC 6066 section 3).
    assert_eq!(client_hello(&hello("192.0.2.1")), Hello::Yes(None));
}

#[test]
fn what_comes_after_the_hello_does_not_matter() {
    let mut bytes = hello("a.example");
    bytes.extend(b"\x14\x03\x03\x00\x01\x01 early data");
    assert_eq!(client_hello(&bytes), named("a.example"));
}

#[test]
fn other_protocols_are_told_at_once() {
    for other in [
        &b"GET / HTTP/1.1\r\n"[..],
        b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
        b"SSH-2.0-OpenSSH_9\r\n",
        b"\x16\x02\x00",
        // A server's handshake message, and an empty record.
        b"\x16\x03\x03\x00\x04\x02\x00\x00\x00",
        b"\x16\x03\x03\x00\x00",
        b"\x80\x2e\x01\x03\x01",
    ] {
        assert_eq!(client_hello(other), Hello::No, "{other:?}");
    }
    assert_eq!(client_hello(b""), Hello::Partial);
    assert_eq!(client_hello(b"\x16"), Hello::Partial);
}

#[test]
fn names_that_are_no_names_are_not_taken() {
    let good = hello("good.example.com");
    let at = good.windows(4).position(|w| w == b"good").unwrap();
    for bad in [&b"go d"[..], b"go\0d", b"go\xffd", b"go/d"] {
        let mut bytes = good.clone();
        bytes[at..at + 4].copy_from_slice(bad);
        assert_eq!(client_hello(&bytes), Hello::Yes(None), "{bad:?}");
    }
}

proptest! {
    #[test]
    fn a_hello_in_any_fragments_is_the_same_hello(size in 1_usize..600) {
        let bytes = fragmented(&hello("split.example.com"), size);
        prop_assert_eq!(client_hello(&bytes), named("split.example.com"));
    }

    #[test]
    fn every_prefix_of_a_hello_is_partial(size in 1_usize..600, cut in 0.0_f64..1.0) {
        let bytes = fragmented(&hello("split.example.com"), size);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a share of a small length"
        )]
        let cut = (bytes.len() as f64 * cut) as usize;
        prop_assert_eq!(client_hello(&bytes[..cut]), Hello::Partial);
    }

    #[test]
    fn no_bytes_make_the_parsers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = client_hello(&bytes);
        let _ = http_head(&bytes);
        let _ = http1_host(&bytes);
    }

    #[test]
    fn no_damage_to_a_hello_makes_the_parser_panic(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        size in 20_usize..600,
    ) {
        let mut bytes = fragmented(&hello("split.example.com"), size);
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        let _ = client_hello(&bytes);
    }

    #[test]
    fn every_prefix_of_a_request_line_is_partial(cut in 0_usize..27) {
        let line = b"POST /a?b=c%20d HTTP/1.1\r\n";
        let expected = if cut >= 26 { Head::Http1 } else { Head::Partial };
        prop_assert_eq!(http_head(&line[..cut.min(26)]), expected);
    }
}

#[test]
fn request_lines_are_told_from_their_look_alikes() {
    for (bytes, verdict) in [
        (&b"GET / HTTP/1.0\r\n"[..], Head::Http1),
        (b"\r\nGET / HTTP/1.1\n", Head::Http1),
        (b"OPTIONS * HTTP/1.1\r\n", Head::Http1),
        (b"CONNECT a:1 HTTP/1.1\r\n", Head::Http1),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Head::Http2),
        (b"PRI * HTTP/2.0\r\n\r\n", Head::Partial),
        // SMTP, Redis inline, IMAP, PostgreSQL, MySQL.
        (b"EHLO me.example\r\n", Head::No),
        (b"GET key\r\n", Head::No),
        (b"*1\r\n$4\r\nPING\r\n", Head::No),
        (b"a1 LOGIN x y\r\n", Head::No),
        (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", Head::No),
        (b"GET \x00\x01", Head::No),
        (b"GET  HTTP/1.1\r\n", Head::No),
        (b"", Head::Partial),
        (b"\r", Head::Partial),
        (b"G", Head::Partial),
    ] {
        assert_eq!(http_head(bytes), verdict, "{}", bytes.escape_ascii());
    }
    assert_eq!(http_head(&[b'A'; 40]), Head::No);
    let endless = [b"GET /", &[b'a'; 9000][..]].concat();
    assert_eq!(http_head(&endless), Head::No);
}

#[test]
fn the_host_of_a_request_is_found() {
    let host = |text: &str| http1_host(text.as_bytes());
    let told = |name: &str| Some(Name::Told(name.into()));
    assert_eq!(
        host("GET / HTTP/1.1\r\nA: b\r\nhOST:  Api.Example.com:8080 \r\n\r\n"),
        told("api.example.com")
    );
    assert_eq!(
        host("GET http://u@other.example./x HTTP/1.1\r\nHost: a\r\n\r\n"),
        told("other.example")
    );
    assert_eq!(
        host("GET / HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n"),
        told("2001:db8::1")
    );
    assert_eq!(host("GET / HTTP/1.0\r\nA: b\r\n\r\n"), Some(Name::Missing));
    assert_eq!(host("GET / HTTP/1.1\r\nHost: a\r\n"), None);
}

#[test]
fn an_http_port_asks_only_whether_it_is_tls() {
    let ask = |bytes: &[u8], look, host| tell(bytes, Question { look, host }).map(|h| h.spoken);
    assert_eq!(ask(b"\x00", Look::TlsOrHttp, false), Some(Spoken::Http));
    assert_eq!(ask(b"\x00", Look::Any, false), Some(Spoken::Opaque));
    assert_eq!(ask(b"GE", Look::Any, false), None);
    assert_eq!(ask(b"GE", Look::TlsOnly, false), Some(Spoken::Opaque));
    assert_eq!(ask(b"GET / HTTP/1.1\r\n", Look::TlsOrHttp, true), None);
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap());
    let (client, accepted) = tokio::join!(client, listener.accept());
    let client = client.unwrap();
    client.set_nodelay(true).unwrap();
    (client, accepted.unwrap().0)
}

const ANY: Question = Question {
    look: Look::Any,
    host: false,
};

fn patience() -> Patience {
    Patience {
        first: Some(Duration::from_secs(5)),
        rest: Duration::from_secs(5),
    }
}

#[tokio::test]
async fn bytes_that_trickle_in_are_waited_for_and_stay() {
    let (mut client, server) = pair().await;
    let bytes = hello("slow.example.com");
    let sent = bytes.clone();
    let send = async move {
        for byte in sent {
            client.write_all(&[byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        client
    };
    let (heard, _client) = tokio::join!(sniff(&server, ANY, patience()), send);
    let sni = Some("slow.example.com".into());
    assert_eq!(heard.unwrap().spoken, Spoken::Tls { sni });
    let mut peeked = vec![0; bytes.len()];
    // Everything is still there to be read.
    server.readable().await.unwrap();
    assert_eq!(server.try_read(&mut peeked).unwrap(), bytes.len());
    assert_eq!(peeked, bytes);
}

#[tokio::test]
async fn a_half_close_after_a_part_decides() {
    let (mut client, server) = pair().await;
    client.write_all(b"GET /").await.unwrap();
    client.shutdown().await.unwrap();
    let heard = timeout(Duration::from_secs(5), sniff(&server, ANY, patience()));
    assert_eq!(heard.await.unwrap().unwrap().spoken, Spoken::Opaque);
}

#[tokio::test]
async fn a_client_that_leaves_is_told_from_one_that_breaks_off() {
    let (client, server) = pair().await;
    drop(client);
    let heard = sniff(&server, ANY, patience()).await;
    assert!(matches!(heard, Err(Silence::Gone(None))), "{heard:?}");

    let (client, server) = pair().await;
    reset(client);
    let heard = sniff(&server, ANY, patience()).await;
    assert!(matches!(heard, Err(Silence::Gone(Some(_)))), "{heard:?}");
}

#[tokio::test(start_paused = true)]
async fn waiting_has_an_end() {
    let (mut client, server) = pair().await;
    let start = tokio::time::Instant::now();
    let heard = sniff(&server, ANY, patience()).await;
    assert!(matches!(heard, Err(Silence::TimedOut)), "{heard:?}");
    assert_eq!(start.elapsed(), Duration::from_secs(5));

    client.write_all(b"GET").await.unwrap();
    let start = tokio::time::Instant::now();
    let heard = sniff(&server, ANY, patience()).await;
    assert_eq!(heard.unwrap().spoken, Spoken::Opaque);
    assert!(start.elapsed() >= Duration::from_secs(5));
}

#[tokio::test]
async fn a_hello_too_long_to_look_at_is_still_tls() {
    let (mut client, server) = pair().await;
    let mut bytes = vec![22, 3, 1, 0x40, 0, 1, 0, 0x50, 0];
    bytes.resize(5 + 0x4000, 0);
    bytes.extend([22, 3, 1, 0x10, 4]);
    bytes.resize(bytes.len() + 0x1004, 0);
    let (_, heard) = tokio::join!(client.write_all(&bytes), sniff(&server, ANY, patience()));
    // The limit is reached before the message is complete.
    assert_eq!(heard.unwrap().spoken, Spoken::Tls { sni: None });
}

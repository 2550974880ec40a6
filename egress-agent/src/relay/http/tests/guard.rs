//! What the guard lets through, and that nothing else reaches a service.

use proptest::prelude::*;

use super::rig::{HOST, Rig, paused, plain};
use crate::relay::http::guard::{Guard, HEAD_LIMIT, Next};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

fn verdict(bytes: &[u8]) -> Result<usize, u16> {
    match Guard::after(0).follow(bytes) {
        (pass, Next::All | Next::Partial) => Ok(pass),
        (_, Next::Refuse(refusal)) => Err(refusal.status.as_u16()),
    }
}

#[test]
fn ordinary_messages_pass_whole() {
    for message in [
        GET.to_owned(),
        format!("\r\n{GET}"),
        GET.repeat(3),
        "GET /a?b HTTP/1.0\r\n\r\n".to_owned(),
        "GET HTTP://a/b HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "GET /ftp://b HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "POST / HTTP/1.1\r\nHost: a:80\r\nContent-Length: 3\r\n\r\nabc".to_owned() + GET,
        "POST / HTTP/1.1\r\nhost:[::1]:80\r\ntransfer-encoding: Chunked \r\n\r\n\
         3\r\nabc\r\n1f;ext=\"v\"\r\n0123456789012345678901234567890\r\n000\r\nx-t: 1\r\n\r\n"
            .to_owned()
            + GET,
    ] {
        assert_eq!(verdict(message.as_bytes()), Ok(message.len()), "{message}");
    }
}

/// Requests that servers are known to read in different ways.
const AMBIGUOUS: &[(&str, u16)] = &[
    // Two lengths.
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\nabc",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x3\r\n\r\nabc",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\nabc",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3 3\r\n\r\nabc",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\nabc",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 3\r\n\r\nabc",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length\t: 3\r\n\r\nabc",
        400,
    ),
    // Absolute forms of what is no HTTP resource.
    ("GET htp://a/b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET ftp://a/b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    // Transfer codings.
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        501,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        501,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        501,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
        501,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
        501,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    // Lines.
    ("GET / HTTP/1.1\nHost: a\n\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\n\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: y\rZ: 1\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n\tz\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n", 400),
    ("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (
        "\r\n\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
    ),
    // The request line.
    ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET /  HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 505),
    ("GET /#x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505),
    ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    ("GET / http/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET /\r\nHost: a\r\n\r\n", 400),
    (" GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    // Host.
    ("GET / HTTP/1.1\r\nX: y\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost:\r\n\r\n", 400),
    // Chunks.
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\n0\r\n\r\n",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3 \r\nabc\r\n0\r\n\r\n",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n;x\r\nabc\r\n0\r\n\r\n",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n00000000000000003\r\nabc\r\n0\r\n\r\n",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;a\nb\r\nabc\r\n0\r\n\r\n",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\n\r\n",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n x\r\n\r\n",
        400,
    ),
    // Not HTTP at all.
    ("\x16\x03\x01\x02\x00\x01\x00", 400),
    ("\0\0\0\x08\x04\u{2}", 400),
];

#[test]
fn ambiguous_messages_are_refused() {
    for (message, status) in AMBIGUOUS {
        assert_eq!(verdict(message.as_bytes()), Err(*status), "{message:?}");
    }
}

#[test]
fn too_much_is_refused_with_the_status_for_it() {
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(40_000));
    assert_eq!(verdict(long.as_bytes()), Err(414));
    let large = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
        "x".repeat(HEAD_LIMIT)
    );
    assert_eq!(verdict(large.as_bytes()), Err(431));
    let many = format!(
        "GET / HTTP/1.1\r\nHost: a\r\n{}\r\n",
        "X: y\r\n".repeat(100)
    );
    assert_eq!(verdict(many.as_bytes()), Err(431));
    // The same without an end: the limit holds while it is still coming.
    assert_eq!(verdict(&long.as_bytes()[..long.len() - 4]), Err(414));
    assert_eq!(verdict(&long.as_bytes()[..30_000]), Ok(0));
    assert_eq!(verdict(&large.as_bytes()[..large.len() - 4]), Err(431));
}

#[test]
fn a_refused_request_is_answered_and_the_connection_closed() {
    paused(async {
        let rig = Rig::new(plain(), None);
        let mut number = 0;
        for (message, status) in AMBIGUOUS {
            let answer = rig.raw(format!("{message}{GET}")).await;
            let want = format!("HTTP/1.1 {status} ");
            assert!(answer.starts_with(&want), "{message:?} got {answer}");
            assert!(answer.contains("connection: close"), "{answer}");
            assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
            number += 1;
            assert_eq!(rig.records().len(), number);
            assert_eq!(rig.record().flags, ["DPE"]);
            assert!(!rig.record().details.is_empty());
        }
        // The heads before bad chunks were sent on; no such message was
        // completed.
        assert!(rig.seen().is_empty(), "{:?}", rig.seen());
    });
}

#[test]
fn requests_before_a_refused_one_are_served() {
    paused(async {
        let rig = Rig::new(plain(), None);
        let good = format!("GET /good HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
        let answer = rig
            .raw(format!("{good}{good}GET /bad HTTP/1.1\r\n\r\n{good}"))
            .await;
        assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");
        assert_eq!(answer.matches("HTTP/1.1 400").count(), 1, "{answer}");
        assert_eq!(rig.seen().len(), 2);
    });
}

proptest! {
    /// However the bytes are cut, the verdict is the same.
    #[test]
    fn cuts_do_not_matter(
        choice in 0..AMBIGUOUS.len() + 2,
        cuts in proptest::collection::vec(1usize..20, 1..40),
    ) {
        let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
                       5;x\r\nhello\r\n0\r\nT: 1\r\n\r\n";
        let message = match AMBIGUOUS.get(choice) {
            Some((message, _)) => format!("{GET}{message}"),
            None if choice == AMBIGUOUS.len() => format!("{chunked}{GET}"),
            None => format!("{GET}\r\n{GET}"),
        };
        let bytes = message.as_bytes();
        let whole = Guard::after(0).follow(bytes);
        let mut guard = Guard::after(0);
        let mut held: Vec<u8> = Vec::new();
        let mut passed = 0;
        let mut refused = None;
        let mut rest = bytes;
        let mut cuts = cuts.iter().cycle();
        while !rest.is_empty() && refused.is_none() {
            let take = (*cuts.next().unwrap()).min(rest.len());
            held.extend_from_slice(&rest[..take]);
            rest = &rest[take..];
            let (pass, next) = guard.follow(&held);
            passed += pass;
            held.drain(..pass);
            match next {
                Next::All => prop_assert!(held.is_empty()),
                Next::Partial => {}
                Next::Refuse(refusal) => refused = Some(refusal.status),
            }
        }
        match whole {
            (_, Next::Refuse(refusal)) => prop_assert_eq!(refused, Some(refusal.status)),
            (pass, _) => {
                prop_assert_eq!(refused, None);
                prop_assert_eq!(passed, pass);
            }
        }
    }

    /// No input makes the guard panic or pass more than it was given.
    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let (pass, _) = Guard::after(0).follow(&bytes);
        prop_assert!(pass <= bytes.len());
    }
}

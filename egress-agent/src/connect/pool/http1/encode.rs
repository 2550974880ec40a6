//! Requests as they go over an HTTP/1 connection (RFC 9112).

use std::io::Write as _;

use http::header::{CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, Method};
use http_body::SizeHint;

use crate::connect::pool::RequestHead;

/// How a request's body is framed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Framing {
    /// So many bytes are still to come.
    Length(u64),
    /// Chunks.
    Chunked,
}

/// Writes a head. The framing headers are always our own: what the caller's
/// headers say of length and coding described the message on its way here.
pub(super) fn head(out: &mut Vec<u8>, head: &RequestHead<'_>, body: &SizeHint) -> Framing {
    let line = head.method.as_str().len() + head.path.as_str().len() + 16;
    out.reserve(line + head.headers.len() * 48 + 128);
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(head.path.as_str().as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    field(out, HOST.as_str(), head.authority.as_bytes());
    let mut cookies = 0;
    let mut length = false;
    for (name, value) in head.headers {
        match *name {
            CONTENT_LENGTH => length = true,
            HOST | TRANSFER_ENCODING | EXPECT | CONNECTION | UPGRADE => {}
            COOKIE => cookies += 1,
            _ => field(out, name.as_str(), value.as_bytes()),
        }
    }
    if cookies > 0 {
        cookie(out, head.headers);
    }
    for (name, value) in head.extra.iter().flatten() {
        field(out, name.as_str(), value);
    }
    if let Some((name, value)) = head.credential {
        field(out, name.as_str(), value.as_bytes());
    }
    if let Some(attempt) = head.attempt {
        let _ = write!(out, "x-envoy-attempt-count: {attempt}\r\n");
    }
    if let Some(protocol) = head.upgrade {
        field(out, CONNECTION.as_str(), b"upgrade");
        field(out, UPGRADE.as_str(), protocol.as_bytes());
    }
    let framing = match body.exact() {
        Some(0) => {
            // Methods that usually have a body say that theirs is empty.
            if length || matches!(*head.method, Method::POST | Method::PUT | Method::PATCH) {
                out.extend_from_slice(b"content-length: 0\r\n");
            }
            Framing::Length(0)
        }
        Some(length) => {
            let _ = write!(out, "content-length: {length}\r\n");
            Framing::Length(length)
        }
        None => {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
            Framing::Chunked
        }
    };
    out.extend_from_slice(b"\r\n");
    framing
}

/// HTTP/2 may split the Cookie header; HTTP/1 has it in one line (RFC 9113
/// section 8.2.3).
fn cookie(out: &mut Vec<u8>, headers: &HeaderMap) {
    out.extend_from_slice(b"cookie: ");
    for (number, value) in headers.get_all(COOKIE).iter().enumerate() {
        if number > 0 {
            out.extend_from_slice(b"; ");
        }
        out.extend_from_slice(value.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

fn field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// The size line of a chunk.
pub(super) fn chunk(out: &mut Vec<u8>, size: usize) {
    let _ = write!(out, "{size:x}\r\n");
}

/// The end of a chunked body.
pub(super) fn last_chunk(out: &mut Vec<u8>, trailers: Option<&HeaderMap>) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers.into_iter().flatten() {
        field(out, name.as_str(), value.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

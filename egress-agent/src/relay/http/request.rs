//! A request's head on its way to the service.

use std::fmt::Write as _;

use http::header::{CONNECTION, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::Settings;
use crate::connect::pool::Field;

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(super) const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Takes out what concerns only the connection to the client (RFC 9110 section
/// 7.6.1): the headers that `Connection` names, and those known to be of that
/// kind. `te: trailers` stays, because gRPC asks for it; the framing headers
/// are made anew by the connection to the service.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    // Most messages have none, and looking is cheaper than removing.
    if !headers.keys().any(is_hop_by_hop) {
        return;
    }
    if headers.get_all(CONNECTION).iter().nth(1).is_some() {
        let all: Vec<_> = headers.get_all(CONNECTION).iter().cloned().collect();
        headers.remove(CONNECTION);
        for one in &all {
            strip_named(headers, one);
        }
    } else if let Some(connection) = headers.remove(CONNECTION) {
        strip_named(headers, &connection);
        if !headers.keys().any(is_hop_by_hop) {
            return;
        }
    }
    let trailers = headers.get(TE).is_some_and(|te| {
        te.as_bytes()
            .split(|&byte| byte == b',')
            .any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    });
    for name in [TE, TRANSFER_ENCODING, UPGRADE, KEEP_ALIVE, PROXY_CONNECTION] {
        headers.remove(name);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(*name, CONNECTION | TE | TRANSFER_ENCODING | UPGRADE)
        || matches!(name.as_str(), "keep-alive" | "proxy-connection")
}

/// Removes the headers that a `Connection` header names. Some names would
/// change the meaning of the message if a client could have them removed, so
/// they stay.
fn strip_named(headers: &mut HeaderMap, connection: &HeaderValue) {
    for name in connection.as_bytes().split(|&byte| byte == b',') {
        let name = name.trim_ascii();
        if name.eq_ignore_ascii_case(b"keep-alive")
            || name.eq_ignore_ascii_case(b"close")
            || name.eq_ignore_ascii_case(b"te")
            || name.is_empty()
        {
            continue;
        }
        if let Ok(name) = HeaderName::from_bytes(name)
            && !matches!(
                name.as_str(),
                "host" | "content-length" | "cookie" | "authorization"
            )
        {
            headers.remove(name);
        }
    }
}

/// The protocol that a client asks to change to, if it asks properly.
pub(super) fn upgrade_of(headers: &HeaderMap) -> Option<HeaderValue> {
    let named = headers.get_all(CONNECTION).iter().any(|value| {
        value
            .as_bytes()
            .split(|&byte| byte == b',')
            .any(|name| name.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
    });
    let protocol = headers.get(UPGRADE)?;
    // h2c is not a protocol behind HTTP but HTTP itself; a server may ignore
    // the offer, and RFC 9113 has withdrawn it.
    (named && !protocol.as_bytes().eq_ignore_ascii_case(b"h2c")).then(|| protocol.clone())
}

/// What Envoy adds to a request, where neither the client nor the policy has
/// it. Kept apart from the headers, which saves making them grow.
#[derive(Clone, Debug, Default)]
pub(super) struct Added {
    request_id: Option<[u8; 36]>,
    forwarded_proto: bool,
    traceparent: Option<[u8; 55]>,
}

impl Added {
    /// Made once for a request: all its tries carry the same.
    pub(super) fn new(headers: &HeaderMap, settings: &Settings) -> Self {
        let lacks = |name: HeaderName| !headers.contains_key(name);
        Self {
            request_id: (settings.request_id && lacks(REQUEST_ID)).then(request_id),
            forwarded_proto: settings.forwarded_proto && lacks(FORWARDED_PROTO),
            traceparent: (settings.trace_context && lacks(TRACEPARENT))
                .then(|| traceparent(settings.trace_sampling)),
        }
    }

    /// `x-request-id`, if it was made here.
    pub(super) fn request_id(&self) -> Option<HeaderValue> {
        HeaderValue::from_bytes(self.request_id.as_ref()?).ok()
    }

    pub(super) fn fields(&self) -> [Option<Field<'_>>; 3] {
        [
            self.request_id.as_ref().map(|id| (REQUEST_ID, &id[..])),
            self.forwarded_proto
                .then_some((FORWARDED_PROTO, &b"http"[..])),
            self.traceparent
                .as_ref()
                .map(|trace| (TRACEPARENT, &trace[..])),
        ]
    }
}

/// A random UUID (RFC 9562 version 4).
fn request_id() -> [u8; 36] {
    let (high, low) = (fastrand::u64(..), fastrand::u64(..));
    let high = hex(high & !0xf000 | 0x4000);
    let low = hex(low & !(3 << 62) | 1 << 63);
    let mut id = [b'-'; 36];
    id[..8].copy_from_slice(&high[..8]);
    id[9..13].copy_from_slice(&high[8..12]);
    id[14..18].copy_from_slice(&high[12..]);
    id[19..23].copy_from_slice(&low[..4]);
    id[24..].copy_from_slice(&low[4..]);
    id
}

/// `00-TRACE-SPAN-FLAGS` (W3C Trace Context), sampled for the given share in
/// parts per million.
fn traceparent(sampling: u32) -> [u8; 55] {
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    // All zeroes would be invalid.
    text[3..19].copy_from_slice(&hex(fastrand::u64(..)));
    text[19..35].copy_from_slice(&hex(fastrand::u64(..) | 1));
    text[36..52].copy_from_slice(&hex(fastrand::u64(..) | 1));
    if crate::route::http::hit(sampling) {
        text[54] = b'1';
    }
    text
}

/// Sixteen digits, lower case. All of them at once: every byte of a word is
/// one half of a byte of the number.
fn hex(number: u64) -> [u8; 16] {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let digits = |half: u32| -> [u8; 8] {
        // Spread eight halves of a byte over eight bytes.
        let mut spread = u64::from(half);
        spread = (spread | spread << 16) & 0x0000_ffff_0000_ffff;
        spread = (spread | spread << 8) & 0x00ff_00ff_00ff_00ff;
        spread = (spread | spread << 4) & 0x0f0f_0f0f_0f0f_0f0f;
        // 1 in each byte of ten and more, which carries into its high half.
        let letters = ((spread + ONES * 6) >> 4) & ONES;
        (spread + ONES * u64::from(b'0') + letters * u64::from(b'a' - b'0' - 10)).to_be_bytes()
    };
    let mut text = [0; 16];
    #[expect(clippy::cast_possible_truncation, reason = "both halves are taken")]
    let (high, low) = ((number >> 32) as u32, number as u32);
    text[..8].copy_from_slice(&digits(high));
    text[8..].copy_from_slice(&digits(low));
    text
}

/// The host of an authority with `-shadow` behind it, as Envoy marks mirrored
/// requests.
pub(super) fn shadow_authority(authority: &str) -> Option<HeaderValue> {
    let host = crate::route::http::without_port(authority);
    let mut shadow = String::with_capacity(authority.len() + 7);
    let _ = write!(shadow, "{host}-shadow{}", &authority[host.len()..]);
    HeaderValue::try_from(shadow).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn digits_are_those_of_the_standard_library(number: u64) {
            prop_assert_eq!(hex(number).to_vec(), format!("{number:016x}").into_bytes());
        }
    }

    #[test]
    fn identifiers_have_their_form() {
        for _ in 0..100 {
            let id = request_id().map(char::from);
            assert_eq!([id[8], id[13], id[18], id[23]], ['-'; 4]);
            assert_eq!(id[14], '4');
            assert!(matches!(id[19], '8' | '9' | 'a' | 'b'));
            assert_eq!(
                id.iter().filter(|digit| digit.is_ascii_hexdigit()).count(),
                32
            );
            let trace = traceparent(0).map(char::from);
            assert_eq!([trace[2], trace[35], trace[52]], ['-'; 3]);
            assert_eq!(
                trace
                    .iter()
                    .filter(|digit| digit.is_ascii_hexdigit())
                    .count(),
                52
            );
        }
    }
}

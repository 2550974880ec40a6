//! What may stand behind a body.

use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_TYPE, COOKIE, EXPECT, HOST, MAX_FORWARDS, PRAGMA, PROXY_AUTHORIZATION, RANGE,
    SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName};

/// Fields that frame or route a message, prove who sent it, change what is done
/// with it, or concern one connection. Whoever merges trailers into the headers
/// would take them for what the head said (RFC 9110 section 6.5.1).
const FORBIDDEN: [HeaderName; 21] = [
    AUTHORIZATION,
    CACHE_CONTROL,
    CONNECTION,
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    CONTENT_RANGE,
    CONTENT_TYPE,
    COOKIE,
    EXPECT,
    HOST,
    HeaderName::from_static("keep-alive"),
    MAX_FORWARDS,
    PRAGMA,
    PROXY_AUTHORIZATION,
    HeaderName::from_static("proxy-connection"),
    RANGE,
    SET_COOKIE,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Trailers without what must not be among them.
pub(super) fn allowed(mut trailers: HeaderMap) -> HeaderMap {
    // Each gRPC call has some, hardly any has one of these: looking is cheaper
    // than removing.
    if trailers.keys().any(|name| FORBIDDEN.contains(name)) {
        for name in &FORBIDDEN {
            if trailers.remove(name).is_some() {
                tracing::debug!(%name, "a trailer that must not be one is left out");
            }
        }
    }
    trailers
}

//! Answers that the agent makes by itself, in the form that Envoy gives them.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// An answer of the agent's own.
#[derive(Clone, Debug)]
pub(super) struct Local {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
    /// `x-envoy-overloaded: true`: a limit is reached.
    pub(super) overloaded: bool,
    /// `grpc-status`, where it is not derived from the status.
    pub(super) grpc: Option<u8>,
    pub(super) location: Option<HeaderValue>,
}

impl Local {
    pub(super) fn new(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self {
            status,
            body: body.into(),
            overloaded: false,
            grpc: None,
            location: None,
        }
    }

    /// Status, headers and body, as HTTP or, for a gRPC call, as a
    /// trailers-only answer (gRPC over HTTP/2, "Responses").
    pub(super) fn into_parts(self, grpc: bool) -> (StatusCode, HeaderMap, Bytes) {
        let mut headers = HeaderMap::new();
        if self.overloaded {
            headers.insert(OVERLOADED, HeaderValue::from_static("true"));
        }
        if grpc && self.location.is_none() {
            let status = self.grpc.unwrap_or_else(|| grpc_status(self.status));
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert(GRPC_STATUS, HeaderValue::from(u16::from(status)));
            if !self.body.is_empty() {
                headers.insert(GRPC_MESSAGE, percent_encoded(&self.body));
            }
            return (StatusCode::OK, headers, Bytes::new());
        }
        if let Some(location) = self.location {
            headers.insert(LOCATION, location);
        }
        if let Some(status) = self.grpc {
            headers.insert(GRPC_STATUS, HeaderValue::from(u16::from(status)));
        }
        if !self.body.is_empty() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        }
        (self.status, headers, self.body)
    }
}

/// Whether a request is a gRPC call (Envoy `Grpc::Common::hasGrpcContentType`).
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        value
            .as_bytes()
            .strip_prefix(b"application/grpc")
            .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    })
}

/// The gRPC status for an HTTP status (gRPC "HTTP to gRPC Status Code
/// Mapping").
pub(super) const fn grpc_status(status: StatusCode) -> u8 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// Percent-encoding of gRPC messages: printable ASCII but `%` stays.
fn percent_encoded(message: &[u8]) -> HeaderValue {
    let mut out = Vec::with_capacity(message.len());
    for &byte in message {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            out.push(byte);
        } else {
            let digits = b"0123456789ABCDEF";
            out.extend([
                b'%',
                digits[usize::from(byte >> 4)],
                digits[usize::from(byte & 15)],
            ]);
        }
    }
    HeaderValue::from_bytes(&out).unwrap_or(HeaderValue::from_static(""))
}

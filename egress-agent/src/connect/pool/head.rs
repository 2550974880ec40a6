//! The head of a request, as the pool is given it.

use http::header::{CONNECTION, EXPECT, HOST, HeaderValue, TRANSFER_ENCODING, UPGRADE};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{HeaderMap, HeaderName, Method, Request};

use super::error::{SendError, SendFailure};

const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");

/// Headers that HTTP/2 has in another form, or not at all.
const HTTP1: [HeaderName; 5] = [HOST, TRANSFER_ENCODING, EXPECT, CONNECTION, UPGRADE];

fn is_of_http1(name: &HeaderName) -> bool {
    matches!(
        *name,
        HOST | TRANSFER_ENCODING | EXPECT | CONNECTION | UPGRADE
    )
}

/// A field: its name in lower case, and its value, which must be one.
pub type Field<'a> = (HeaderName, &'a [u8]);

/// The head of a request. It is only looked at, so that it can be sent again.
#[derive(Clone, Debug)]
pub struct RequestHead<'a> {
    /// Method.
    pub method: &'a Method,
    /// Path and query.
    pub path: &'a PathAndQuery,
    /// Host or `:authority`.
    pub authority: &'a HeaderValue,
    /// The same as a part of a URI, where it was read as one already.
    pub parsed: Option<&'a Authority>,
    /// Headers. Those that frame a message or concern one connection are made
    /// by the connection itself and left out if they are here.
    pub headers: &'a HeaderMap,
    /// Fields that are not among `headers` and go with them.
    pub extra: [Option<Field<'a>>; 3],
    /// A header of which the application knows nothing; it is not among
    /// `headers` either.
    pub credential: Option<(&'a HeaderName, &'a HeaderValue)>,
    /// `https` rather than `http`.
    pub tls: bool,
    /// Number of the try, for `x-envoy-attempt-count`.
    pub attempt: Option<u32>,
    /// Protocol to change to (HTTP/1).
    pub upgrade: Option<&'a HeaderValue>,
}

impl RequestHead<'_> {
    /// The request as HTTP/2 has it.
    pub(super) fn http2<B>(&self, body: B) -> Result<Request<B>, SendError> {
        let unfit = |error: http::Error| SendError::new(SendFailure::RequestBody, error);
        let authority = match self.parsed {
            Some(authority) => authority.clone(),
            None => Authority::try_from(self.authority.as_bytes())
                .map_err(|error| unfit(error.into()))?,
        };
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(if self.tls {
            Scheme::HTTPS
        } else {
            Scheme::HTTP
        });
        parts.authority = Some(authority);
        parts.path_and_query = Some(self.path.clone());
        let uri = Uri::from_parts(parts).map_err(|error| unfit(error.into()))?;
        let mut headers = self.headers.clone();
        // Looking is cheaper than removing, and a client that speaks HTTP/2
        // has none of them.
        if headers.keys().any(is_of_http1) {
            for name in HTTP1 {
                headers.remove(name);
            }
        }
        for (name, value) in self.extra.iter().flatten() {
            if let Ok(mut value) = HeaderValue::from_bytes(value) {
                // Made for this request, so never seen again: HPACK is not to
                // put it into its tables, where it would drive out others.
                value.set_sensitive(value.len() > 32);
                headers.insert(name, value);
            }
        }
        if let Some((name, value)) = self.credential {
            // Marked as sensitive: HPACK keeps it out of its tables.
            headers.insert(name, value.clone());
        }
        if let Some(attempt) = self.attempt {
            headers.insert(ATTEMPT_COUNT, HeaderValue::from(attempt));
        }
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.version_mut() = http::Version::HTTP_2;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        Ok(request)
    }
}

//! Compiled routes of a VirtualService: matchers ready to run, destinations
//! bound to clusters.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use ipnet::IpNet;
use regex::Regex;

use super::model::{HostPattern, Labels};
use super::snapshot::Cluster;

/// `http[]`.
#[derive(Debug)]
pub struct HttpRoute {
    /// `name`, joined with the match's name where one matched.
    pub name: Arc<str>,
    /// Any of these; empty matches everything.
    pub matches: Vec<HttpMatch>,
    /// What is done.
    pub action: HttpAction,
    /// `headers` of the route.
    pub headers: HeaderOps,
    /// `timeout`.
    pub timeout: Option<Duration>,
    /// `retries`, or Istio's default.
    pub retries: RetryPolicy,
    /// `fault`.
    pub fault: Option<Fault>,
    /// `mirror` and `mirrors`.
    pub mirrors: Vec<Mirror>,
}

/// One block of `match[]`: every part that is set must fit.
#[derive(Debug, Default)]
pub struct HttpMatch {
    /// `name`.
    pub name: Option<Arc<str>>,
    /// `uri` against the path without the query.
    pub uri: Option<StringMatch>,
    /// `ignoreUriCase`.
    pub ignore_uri_case: bool,
    /// `scheme`.
    pub scheme: Option<StringMatch>,
    /// `method`.
    pub method: Option<StringMatch>,
    /// `authority`.
    pub authority: Option<StringMatch>,
    /// `headers`.
    pub headers: Vec<(RequestField, StringMatch)>,
    /// `withoutHeaders`: none may match.
    pub without_headers: Vec<(RequestField, StringMatch)>,
    /// `queryParams`.
    pub query_params: Vec<(Box<str>, StringMatch)>,
    /// `port` that the client dialled.
    pub port: Option<u16>,
    /// `sourceLabels`.
    pub source_labels: Labels,
    /// `sourceNamespace`.
    pub source_namespace: Option<Arc<str>>,
}

/// What a key of `headers` or `withoutHeaders` of a match names: a header, or
/// one of HTTP/2's pseudo-headers, which Istio takes there too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestField {
    /// A header.
    Header(HeaderName),
    /// `:method`.
    Method,
    /// `:scheme`.
    Scheme,
    /// `:authority`, or `host`, which is the same to Envoy.
    Authority,
    /// `:path`: the path and the query.
    Path,
    /// What no request has: `:status`, a claim of a JWT, a name that HTTP
    /// cannot carry.
    Never(Box<str>),
}

impl RequestField {
    /// What `name` stands for.
    pub fn new(name: &str) -> Self {
        match name {
            ":method" => Self::Method,
            ":scheme" => Self::Scheme,
            ":authority" => Self::Authority,
            ":path" => Self::Path,
            _ => match HeaderName::from_bytes(name.as_bytes()) {
                Ok(http::header::HOST) => Self::Authority,
                Ok(name) => Self::Header(name),
                Err(_) => Self::Never(name.into()),
            },
        }
    }
}

impl From<HeaderName> for RequestField {
    fn from(name: HeaderName) -> Self {
        Self::Header(name)
    }
}

impl fmt::Display for RequestField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header(name) => name.as_str(),
            Self::Method => ":method",
            Self::Scheme => ":scheme",
            Self::Authority => ":authority",
            Self::Path => ":path",
            Self::Never(name) => name,
        })
    }
}

/// A string match; case-sensitive.
#[derive(Debug, Clone)]
pub enum StringMatch {
    /// `{}`: present.
    Present,
    /// `exact`.
    Exact(Box<str>),
    /// `prefix`.
    Prefix(Box<str>),
    /// `regex`, anchored at both ends.
    Regex(Regex),
}

/// What an HTTP route does.
#[derive(Debug)]
pub enum HttpAction {
    /// `route`.
    Forward {
        /// Weighted destinations, at least one.
        destinations: Vec<HttpDestination>,
        /// `rewrite`.
        rewrite: Option<Rewrite>,
    },
    /// `redirect`.
    Redirect(Redirect),
    /// `directResponse`.
    Respond {
        /// `status`.
        status: StatusCode,
        /// `body`.
        body: bytes::Bytes,
    },
}

/// `route[]` of an HTTP route.
#[derive(Debug)]
pub struct HttpDestination {
    /// Where to.
    pub target: Target,
    /// Share; a single destination has 1.
    pub weight: u32,
    /// `headers` of the destination.
    pub headers: HeaderOps,
}

/// A destination, bound when the policy was compiled.
#[derive(Debug, Clone)]
pub enum Target {
    /// To this cluster.
    Cluster(Arc<Cluster>),
    /// Host, port or subset that does not exist: 503 NC. The text says which.
    Missing(Box<str>),
}

/// `headers`: operations in the order set, add, remove.
#[derive(Debug, Clone, Default)]
pub struct HeaderOps {
    /// On the request.
    pub request: HeaderList,
    /// On the response.
    pub response: HeaderList,
    /// Authority given by a `set` or `add` of `host` or `:authority`.
    pub authority: Option<HeaderTemplate>,
}

/// Operations on one set of headers.
#[derive(Debug, Clone, Default)]
pub struct HeaderList {
    /// `set`: replaces.
    pub set: Vec<(HeaderName, HeaderTemplate)>,
    /// `add`: appends.
    pub add: Vec<(HeaderName, HeaderTemplate)>,
    /// `remove`.
    pub remove: Vec<HeaderName>,
}

/// A header value, whose `%…%` parts are filled per request.
#[derive(Debug, Clone)]
pub enum HeaderTemplate {
    /// Nothing to fill.
    Fixed(HeaderValue),
    /// Text and variables in turn.
    Parts(Vec<TemplatePart>),
}

/// Part of a template.
#[derive(Debug, Clone)]
pub enum TemplatePart {
    /// As is.
    Text(Box<str>),
    /// An Envoy variable, without its percent signs.
    Variable(Box<str>),
}

/// `rewrite`.
#[derive(Debug)]
pub struct Rewrite {
    /// Path.
    pub path: Option<PathRewrite>,
    /// `authority`.
    pub authority: Option<HeaderValue>,
}

/// Rewrite of the path; the query stays.
#[derive(Debug)]
pub enum PathRewrite {
    /// `uri`: the matched prefix under a prefix match, else the whole path.
    Uri(Box<str>),
    /// `uriRegexRewrite`.
    Regex {
        /// `match`.
        pattern: Regex,
        /// `rewrite`, already in the regex crate's `${1}` form.
        replacement: Box<str>,
    },
}

/// `redirect`.
#[derive(Debug)]
pub struct Redirect {
    /// `uri` or `prefixRewrite`.
    pub path: Option<RedirectPath>,
    /// `authority`.
    pub authority: Option<Box<str>>,
    /// `scheme`.
    pub scheme: Option<Box<str>>,
    /// `port` or `derivePort`.
    pub port: RedirectPort,
    /// `redirectCode` (301).
    pub status: StatusCode,
}

/// Path of a redirect.
#[derive(Debug)]
pub enum RedirectPath {
    /// `uri`.
    Full(Box<str>),
    /// `prefixRewrite`.
    Prefix(Box<str>),
}

/// Port of a redirect.
#[derive(Debug)]
pub enum RedirectPort {
    /// The port of the request's authority, as it is.
    Keep,
    /// `port`.
    Fixed(u16),
    /// `FROM_PROTOCOL_DEFAULT`: 80 or 443.
    ProtocolDefault,
    /// `FROM_REQUEST_PORT`.
    RequestPort,
}

/// `retries`.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// Retries after the first try (2 when the block is absent).
    pub attempts: u32,
    /// `perTryTimeout`.
    pub per_try_timeout: Option<Duration>,
    /// `retryOn`.
    pub on: RetryOn,
    /// `backoff`, the base (25ms).
    pub backoff: Duration,
    /// `retryRemoteLocalities`.
    pub remote_localities: bool,
    /// `retryIgnorePreviousHosts` (true).
    pub ignore_previous_hosts: bool,
}

/// Words of `retryOn`.
#[derive(Debug, Clone, Default)]
pub struct RetryOn {
    /// `5xx`.
    pub server_error: bool,
    /// `gateway-error`.
    pub gateway_error: bool,
    /// `reset`.
    pub reset: bool,
    /// `reset-before-request`.
    pub reset_before_request: bool,
    /// `connect-failure`.
    pub connect_failure: bool,
    /// `retriable-4xx`: 409.
    pub retriable_4xx: bool,
    /// `refused-stream`.
    pub refused_stream: bool,
    /// Status codes written out.
    pub statuses: Vec<StatusCode>,
    /// gRPC statuses by number: cancelled 1, deadline-exceeded 4, internal 13,
    /// resource-exhausted 8, unavailable 14.
    pub grpc: Vec<u8>,
}

/// `fault`.
#[derive(Debug)]
pub struct Fault {
    /// `delay`: time, and the share of requests in parts per million.
    pub delay: Option<(Duration, u32)>,
    /// `abort`: what, and the share in parts per million.
    pub abort: Option<(Abort, u32)>,
}

/// What an abort answers.
#[derive(Debug, Clone, Copy)]
pub enum Abort {
    /// `httpStatus`.
    Http(StatusCode),
    /// `grpcStatus`, by number.
    Grpc(u8),
}

/// `mirror` or one of `mirrors`.
#[derive(Debug)]
pub struct Mirror {
    /// Where to.
    pub target: Target,
    /// Share of requests in parts per million.
    pub share: u32,
}

/// `tls[]` or `tcp[]`: any block of `matches` (empty: everything), then
/// weighted destinations.
#[derive(Debug)]
pub struct OpaqueRoute {
    /// Match blocks.
    pub matches: Vec<OpaqueMatch>,
    /// Destinations and their shares.
    pub destinations: Vec<(Target, u32)>,
}

/// One match block of a `tls` or `tcp` route.
#[derive(Debug, Default)]
pub struct OpaqueMatch {
    /// `sniHosts`; empty for `tcp`.
    pub sni_hosts: Vec<HostPattern>,
    /// `destinationSubnets`.
    pub destination_subnets: Vec<IpNet>,
    /// `port`.
    pub port: Option<u16>,
    /// `sourceLabels`.
    pub source_labels: Labels,
    /// `sourceNamespace`.
    pub source_namespace: Option<Arc<str>>,
}

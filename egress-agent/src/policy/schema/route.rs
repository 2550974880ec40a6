//! `http[]` of a VirtualService.

use serde::Serialize;

use super::reader::Reader;
use super::virtual_service::{Destination, destination};
use super::{Entries, Spanned, Text, Time, entries};
use crate::policy::check;
use crate::policy::diagnostic::Span;
use crate::policy::yaml::Node;

/// One of `http`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpRoute {
    /// `name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Text>,
    /// `match`.
    #[serde(rename = "match", skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<HttpMatch>,
    /// `route`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub route: Vec<HttpDestination>,
    /// `redirect`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redirect: Option<Box<Redirect>>,
    /// `directResponse`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_response: Option<Box<DirectResponse>>,
    /// `delegate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delegate: Option<Box<Delegate>>,
    /// `rewrite`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rewrite: Option<Box<Rewrite>>,
    /// `timeout`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Time>,
    /// `retries`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<Box<Retries>>,
    /// `fault`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<Box<Fault>>,
    /// `mirror`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mirror: Option<Box<Destination>>,
    /// `mirrors`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<Mirror>,
    /// `mirrorPercentage`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mirror_percentage: Option<Percent>,
    /// `mirrorPercent` or `mirror_percent`, the old forms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mirror_percent: Option<Spanned<u32>>,
    /// `corsPolicy`, which is only checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cors_policy: Option<Box<Cors>>,
    /// `headers`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers: Option<Box<Headers>>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

/// One of `match`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpMatch {
    /// `name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Text>,
    /// `uri`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uri: Option<StringMatch>,
    /// `scheme`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<StringMatch>,
    /// `method`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<StringMatch>,
    /// `authority`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authority: Option<StringMatch>,
    /// `headers`.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "entries")]
    pub headers: Entries<StringMatch>,
    /// `port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<Spanned<u32>>,
    /// `sourceLabels`.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "entries")]
    pub source_labels: Entries<Text>,
    /// `gateways`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<Text>,
    /// `queryParams`.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "entries")]
    pub query_params: Entries<StringMatch>,
    /// `ignoreUriCase`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ignore_uri_case: Option<Spanned<bool>>,
    /// `withoutHeaders`.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "entries")]
    pub without_headers: Entries<StringMatch>,
    /// `sourceNamespace`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_namespace: Option<Text>,
    /// `statPrefix`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stat_prefix: Option<Text>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

/// `exact`, `prefix`, `regex`, or nothing: present. Two are equal when they
/// match the same.
#[derive(Clone, Debug, Default, Serialize)]
pub struct StringMatch {
    /// `exact`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact: Option<Text>,
    /// `prefix`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<Text>,
    /// `regex`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regex: Option<Text>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

impl PartialEq for StringMatch {
    fn eq(&self, other: &Self) -> bool {
        self.exact == other.exact && self.prefix == other.prefix && self.regex == other.regex
    }
}

/// One of `route`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct HttpDestination {
    /// `destination`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<Destination>,
    /// `weight`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<Spanned<i32>>,
    /// `headers`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers: Option<Box<Headers>>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

/// `headers`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Headers {
    /// `request`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<Box<HeaderOperations>>,
    /// `response`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<Box<HeaderOperations>>,
}

/// `request` or `response` of `headers`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct HeaderOperations {
    /// `set`.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "entries")]
    pub set: Entries<Text>,
    /// `add`.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "entries")]
    pub add: Entries<Text>,
    /// `remove`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<Text>,
}

/// `redirect`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Redirect {
    /// `uri`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uri: Option<Text>,
    /// `prefixRewrite`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix_rewrite: Option<Text>,
    /// `authority`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authority: Option<Text>,
    /// `port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<Spanned<u32>>,
    /// `derivePort`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub derive_port: Option<Spanned<DerivePort>>,
    /// `scheme`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<Text>,
    /// `redirectCode`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redirect_code: Option<Spanned<u32>>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

words! {
    /// `derivePort`.
    pub enum DerivePort {
        /// 80 or 443.
        Protocol = "FROM_PROTOCOL_DEFAULT",
        /// That of the request.
        Request = "FROM_REQUEST_PORT",
    }
}

/// `directResponse`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct DirectResponse {
    /// `status`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Spanned<u32>>,
    /// `body`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<Body>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

/// `body` of a direct response.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Body {
    /// `string`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub string: Option<Text>,
    /// `bytes`, in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Text>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

/// `delegate`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Delegate {
    /// `name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Text>,
    /// `namespace`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Text>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

/// `rewrite`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rewrite {
    /// `uri`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uri: Option<Text>,
    /// `authority`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authority: Option<Text>,
    /// `uriRegexRewrite`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uri_regex_rewrite: Option<RegexRewrite>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

/// `uriRegexRewrite`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RegexRewrite {
    /// `match`.
    #[serde(rename = "match", skip_serializing_if = "Option::is_none")]
    pub pattern: Option<Text>,
    /// `rewrite`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rewrite: Option<Text>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

/// `retries`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Retries {
    /// `attempts`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<Spanned<i32>>,
    /// `perTryTimeout`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_try_timeout: Option<Time>,
    /// `retryOn`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_on: Option<Text>,
    /// `backoff`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Time>,
    /// `retryRemoteLocalities`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_remote_localities: Option<Spanned<bool>>,
    /// `retryIgnorePreviousHosts`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_ignore_previous_hosts: Option<Spanned<bool>>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

/// `fault`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Fault {
    /// `delay`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<Box<Delay>>,
    /// `abort`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abort: Option<Box<Abort>>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

/// `delay`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Delay {
    /// `fixedDelay`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fixed_delay: Option<Time>,
    /// `exponentialDelay`, which is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exponential_delay: Option<Time>,
    /// `percentage`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percentage: Option<Percent>,
    /// `percent`, the old form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<Spanned<i32>>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

/// `abort`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Abort {
    /// `httpStatus`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_status: Option<Spanned<i32>>,
    /// `grpcStatus`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<Text>,
    /// `http2Error`, which is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http2_error: Option<Text>,
    /// `percentage`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percentage: Option<Percent>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

/// A percentage with its `value`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percent {
    /// `value`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<Spanned<f64>>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

impl Percent {
    /// The value, 0 when unset.
    pub fn get(&self) -> f64 {
        self.value.map_or(0.0, |value| value.value)
    }
}

/// One of `mirrors`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Mirror {
    /// `destination`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<Destination>,
    /// `percentage`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percentage: Option<Percent>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

/// `corsPolicy`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cors {
    /// `allowOrigin`, the old form.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow_origin: Vec<Text>,
    /// `allowOrigins`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow_origins: Vec<StringMatch>,
    /// `allowMethods`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow_methods: Vec<Text>,
    /// `allowHeaders`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow_headers: Vec<Text>,
    /// `exposeHeaders`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub expose_headers: Vec<Text>,
    /// `maxAge`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Time>,
    /// `allowCredentials`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_credentials: Option<Spanned<bool>>,
    /// `unmatchedPreflights`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unmatched_preflights: Option<Spanned<Preflights>>,
    /// Where it is.
    #[serde(skip)]
    pub span: Span,
}

words! {
    /// `unmatchedPreflights`.
    pub enum Preflights {
        /// The default.
        Unspecified = "UNSPECIFIED",
        /// On to the service.
        Forward = "FORWARD",
        /// Answered.
        Ignore = "IGNORE",
    }
}

/// Reads and checks one of `http`.
pub fn http_route(reader: &mut Reader<'_>, node: &Node) -> Option<HttpRoute> {
    reader.object(node, |r, f| {
        let old = r.nullable(f, "mirror_percent", Reader::integer);
        HttpRoute {
            name: r.text_field(f, "name"),
            matches: r.list(f, "match", http_match),
            route: r.list(f, "route", |r, n| {
                r.object(n, |r, f| HttpDestination {
                    destination: r.field(f, "destination", destination),
                    weight: r.field(f, "weight", Reader::integer),
                    headers: r.boxed(f, "headers", headers),
                    span: f.span,
                })
            }),
            redirect: r.boxed(f, "redirect", redirect),
            direct_response: r.boxed(f, "directResponse", direct_response),
            delegate: r.boxed(f, "delegate", |r, n| {
                r.object(n, |r, f| Delegate {
                    name: r.text_field(f, "name"),
                    namespace: r.text_field(f, "namespace"),
                    span: f.span,
                })
            }),
            rewrite: r.boxed(f, "rewrite", rewrite),
            timeout: r.time_field(f, "timeout"),
            retries: r.boxed(f, "retries", retries),
            fault: r.boxed(f, "fault", fault),
            mirror: r.boxed(f, "mirror", destination),
            mirrors: r.list(f, "mirrors", |r, n| {
                r.object(n, |r, f| Mirror {
                    destination: r.field(f, "destination", destination),
                    percentage: r.field(f, "percentage", percent),
                    span: f.span,
                })
            }),
            mirror_percentage: r.field(f, "mirrorPercentage", percent),
            mirror_percent: r.nullable(f, "mirrorPercent", Reader::integer).or(old),
            cors_policy: r.boxed(f, "corsPolicy", cors),
            headers: r.boxed(f, "headers", headers),
            span: f.span,
        }
    })
}

fn http_match(reader: &mut Reader<'_>, node: &Node) -> Option<HttpMatch> {
    reader.object(node, |r, f| HttpMatch {
        name: r.text_field(f, "name"),
        uri: r.field(f, "uri", string_match),
        scheme: r.field(f, "scheme", string_match),
        method: r.field(f, "method", string_match),
        authority: r.field(f, "authority", string_match),
        headers: r.map(f, "headers", string_match),
        port: r.field(f, "port", Reader::integer),
        source_labels: r.text_map(f, "sourceLabels"),
        gateways: r.texts(f, "gateways"),
        query_params: r.map(f, "queryParams", string_match),
        ignore_uri_case: r.field(f, "ignoreUriCase", Reader::boolean),
        without_headers: r.map(f, "withoutHeaders", string_match),
        source_namespace: r.text_field(f, "sourceNamespace"),
        stat_prefix: r.text_field(f, "statPrefix"),
        span: f.span,
    })
}

fn string_match(reader: &mut Reader<'_>, node: &Node) -> Option<StringMatch> {
    let text = reader.object(node, |r, f| StringMatch {
        exact: r.text_field(f, "exact"),
        prefix: r.text_field(f, "prefix"),
        regex: r.text_field(f, "regex"),
        span: f.span,
    })?;
    check::route::check_one_match(reader, &text);
    Some(text)
}

fn headers(reader: &mut Reader<'_>, node: &Node) -> Option<Headers> {
    let operations = |r: &mut Reader<'_>, n: &Node| {
        r.object(n, |r, f| HeaderOperations {
            set: r.text_map(f, "set"),
            add: r.text_map(f, "add"),
            remove: r.texts(f, "remove"),
        })
    };
    let headers = reader.object(node, |r, f| Headers {
        request: r.boxed(f, "request", operations),
        response: r.boxed(f, "response", operations),
    })?;
    check::route::check_headers(reader, &headers);
    Some(headers)
}

fn redirect(reader: &mut Reader<'_>, node: &Node) -> Option<Redirect> {
    reader.object(node, |r, f| Redirect {
        uri: r.text_field(f, "uri"),
        prefix_rewrite: r.text_field(f, "prefixRewrite"),
        authority: r.text_field(f, "authority"),
        port: r.field(f, "port", Reader::integer),
        derive_port: r.field(f, "derivePort", |r, n| r.word(n, DerivePort::WORDS)),
        scheme: r.text_field(f, "scheme"),
        redirect_code: r.field(f, "redirectCode", Reader::integer),
        span: f.span,
    })
}

fn direct_response(reader: &mut Reader<'_>, node: &Node) -> Option<DirectResponse> {
    reader.object(node, |r, f| DirectResponse {
        status: r.field(f, "status", Reader::integer),
        body: r.field(f, "body", |r, n| {
            r.object(n, |r, f| Body {
                string: r.text_field(f, "string"),
                bytes: r.text_field(f, "bytes"),
                span: f.span,
            })
        }),
        span: f.span,
    })
}

fn rewrite(reader: &mut Reader<'_>, node: &Node) -> Option<Rewrite> {
    reader.object(node, |r, f| Rewrite {
        uri: r.text_field(f, "uri"),
        authority: r.text_field(f, "authority"),
        uri_regex_rewrite: r.field(f, "uriRegexRewrite", |r, n| {
            r.object(n, |r, f| RegexRewrite {
                pattern: r.text_field(f, "match"),
                rewrite: r.text_field(f, "rewrite"),
                span: f.span,
            })
        }),
        span: f.span,
    })
}

fn retries(reader: &mut Reader<'_>, node: &Node) -> Option<Retries> {
    reader.object(node, |r, f| Retries {
        attempts: r.field(f, "attempts", Reader::integer),
        per_try_timeout: r.time_field(f, "perTryTimeout"),
        retry_on: r.text_field(f, "retryOn"),
        backoff: r.time_field(f, "backoff"),
        retry_remote_localities: r.nullable(f, "retryRemoteLocalities", Reader::boolean),
        retry_ignore_previous_hosts: r.nullable(f, "retryIgnorePreviousHosts", Reader::boolean),
        span: f.span,
    })
}

fn fault(reader: &mut Reader<'_>, node: &Node) -> Option<Fault> {
    reader.object(node, |r, f| Fault {
        delay: r.boxed(f, "delay", |r, n| {
            r.object(n, |r, f| Delay {
                fixed_delay: r.time_field(f, "fixedDelay"),
                exponential_delay: r.time_field(f, "exponentialDelay"),
                percentage: r.field(f, "percentage", percent),
                percent: r.field(f, "percent", Reader::integer),
                span: f.span,
            })
        }),
        abort: r.boxed(f, "abort", |r, n| {
            r.object(n, |r, f| Abort {
                http_status: r.field(f, "httpStatus", Reader::integer),
                grpc_status: r.text_field(f, "grpcStatus"),
                http2_error: r.text_field(f, "http2Error"),
                percentage: r.field(f, "percentage", percent),
                span: f.span,
            })
        }),
        span: f.span,
    })
}

fn percent(reader: &mut Reader<'_>, node: &Node) -> Option<Percent> {
    reader.object(node, |r, f| Percent {
        value: r.field(f, "value", Reader::number),
        span: f.span,
    })
}

fn cors(reader: &mut Reader<'_>, node: &Node) -> Option<Cors> {
    reader.object(node, |r, f| Cors {
        allow_origin: r.texts(f, "allowOrigin"),
        allow_origins: r.list(f, "allowOrigins", string_match),
        allow_methods: r.texts(f, "allowMethods"),
        allow_headers: r.texts(f, "allowHeaders"),
        expose_headers: r.texts(f, "exposeHeaders"),
        max_age: r.time_field(f, "maxAge"),
        allow_credentials: r.nullable(f, "allowCredentials", Reader::boolean),
        unmatched_preflights: r.field(f, "unmatchedPreflights", |r, n| {
            r.word(n, Preflights::WORDS)
        }),
        span: f.span,
    })
}

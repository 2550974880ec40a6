//! `http[]` of a VirtualService.

mod action;
pub(super) mod read;

use serde::Serialize;

use super::virtual_service::Destination;
use super::{Entries, Spanned, Text, Time, entries};
use crate::policy::diagnostic::Span;

pub use action::{Body, Delegate, DerivePort, DirectResponse, Redirect, RegexRewrite, Rewrite};

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

//! What an HTTP route does but forward: redirects, answers, rewrites.

use serde::Serialize;

use super::super::{Spanned, Text};
use crate::policy::diagnostic::Span;

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

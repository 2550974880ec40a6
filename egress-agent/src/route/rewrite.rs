//! `rewrite` and `redirect`: the path and authority that leave, and the
//! `Location` that is answered.

use std::borrow::Cow;
use std::fmt::Write as _;

use ::http::HeaderValue;
use ::http::uri::PathAndQuery;

use super::RouteError;
use super::http::{Chosen, Forward, RequestFacts};
use super::matching::without_port;
use crate::policy::routes::{
    HttpMatch, PathRewrite, Redirect, RedirectPath, RedirectPort, Rewrite, StringMatch,
};

/// The path and query that leave, or `None` where they leave as they came.
///
/// # Errors
/// [`RouteError::BadRewrite`] when the result cannot be a request target.
pub fn path(
    forward: &Forward<'_>,
    facts: &RequestFacts<'_>,
) -> Result<Option<PathAndQuery>, RouteError> {
    let Some((Some(rewrite), chosen)) = forward
        .rewrite
        .map(|rewrite| rewrite.path.as_ref())
        .zip(forward.chosen)
    else {
        return Ok(None);
    };
    let new = rewritten(rewrite, chosen.matched, facts.path);
    if new == facts.path {
        return Ok(None);
    }
    let target = target(&new, facts.query);
    PathAndQuery::try_from(target.as_str())
        .map(Some)
        .map_err(|_| RouteError::BadRewrite {
            route: chosen.route.name.as_ref().into(),
            target: target.into(),
        })
}

/// The authority that a `rewrite` gives, if any. (One given by header
/// operations is a template: [`super::headers::authority`].)
pub fn authority(rewrite: Option<&Rewrite>) -> Option<&HeaderValue> {
    rewrite.and_then(|rewrite| rewrite.authority.as_ref())
}

/// Under a prefix match `uri` takes the place of just that prefix, else of the
/// whole path (Istio `HTTPRewrite.uri`).
fn rewritten<'p>(
    rewrite: &PathRewrite,
    matched: Option<&HttpMatch>,
    path: &'p str,
) -> Cow<'p, str> {
    match rewrite {
        PathRewrite::Uri(new) => replace_prefix(new, matched, path).into(),
        PathRewrite::Regex {
            pattern,
            replacement,
        } => pattern.replace_all(path, &**replacement),
    }
}

/// `new` in place of the prefix that `matched` names, else of the whole path.
fn replace_prefix(new: &str, matched: Option<&HttpMatch>, path: &str) -> String {
    let rest = match matched.and_then(|block| block.uri.as_ref()) {
        Some(StringMatch::Prefix(prefix)) => path.get(prefix.len()..).unwrap_or_default(),
        _ => "",
    };
    [new, rest].concat()
}

fn target(path: &str, query: Option<&str>) -> String {
    let slash = if path.starts_with('/') { "" } else { "/" };
    match query {
        // A rewrite that brings a query of its own keeps it in front.
        Some(query) if path.contains('?') => [slash, path, "&", query].concat(),
        Some(query) => [slash, path, "?", query].concat(),
        None => [slash, path].concat(),
    }
}

/// The `Location` of a redirect (Envoy `RedirectAction`): what is not given
/// stays as it was requested, the query too unless the new path has one.
///
/// # Errors
/// [`RouteError::BadRewrite`] when the result cannot be a header value.
pub fn location(
    redirect: &Redirect,
    chosen: &Chosen<'_>,
    facts: &RequestFacts<'_>,
) -> Result<HeaderValue, RouteError> {
    let scheme = redirect.scheme.as_deref().unwrap_or(facts.scheme);
    let host = redirect.authority.as_deref().unwrap_or(facts.authority);
    let mut out = String::with_capacity(128);
    let _ = write!(out, "{scheme}://");
    match redirect.port {
        RedirectPort::Keep => {
            // A default port that belongs to the old scheme would be wrong
            // under the new one.
            let default = format!(":{}", default_port(facts.scheme));
            if scheme != facts.scheme && redirect.authority.is_none() && host.ends_with(&default) {
                out.push_str(without_port(host));
            } else {
                out.push_str(host);
            }
        }
        RedirectPort::ProtocolDefault => out.push_str(without_port(host)),
        RedirectPort::Fixed(port) => push_port(&mut out, host, port, scheme),
        RedirectPort::RequestPort => push_port(&mut out, host, facts.port, scheme),
    }
    let path = match &redirect.path {
        None => Cow::Borrowed(facts.path),
        Some(RedirectPath::Full(path)) => Cow::Borrowed(&**path),
        Some(RedirectPath::Prefix(new)) => {
            Cow::Owned(replace_prefix(new, chosen.matched, facts.path))
        }
    };
    if !path.starts_with('/') {
        out.push('/');
    }
    out.push_str(&path);
    if let Some(query) = facts.query
        && !path.contains('?')
    {
        let _ = write!(out, "?{query}");
    }
    HeaderValue::try_from(out).map_err(|_| RouteError::BadRewrite {
        route: chosen.route.name.as_ref().into(),
        target: path.into(),
    })
}

fn push_port(out: &mut String, host: &str, port: u16, scheme: &str) {
    out.push_str(without_port(host));
    if port != default_port(scheme) {
        let _ = write!(out, ":{port}");
    }
}

fn default_port(scheme: &str) -> u16 {
    if scheme == "https" { 443 } else { 80 }
}

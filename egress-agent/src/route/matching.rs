//! Whether one match block fits a request.

use std::borrow::Cow;

use ::http::{HeaderMap, HeaderName};

use super::http::RequestFacts;
use crate::policy::routes::{HttpMatch, RequestField, StringMatch};

/// Whether every part of `block` that is set fits. The cheap and the most
/// telling parts come first.
pub(super) fn fits(block: &HttpMatch, facts: &RequestFacts<'_>) -> bool {
    block.port.is_none_or(|port| port == facts.port)
        && block
            .method
            .as_ref()
            .is_none_or(|want| text(want, facts.method.as_str()))
        && block
            .uri
            .as_ref()
            .is_none_or(|want| path(want, facts.path, block.ignore_uri_case))
        && block
            .scheme
            .as_ref()
            .is_none_or(|want| text(want, facts.scheme))
        && block
            .authority
            .as_ref()
            .is_none_or(|want| text(want, without_port(facts.authority)))
        && block
            .headers
            .iter()
            .all(|(name, want)| field(want, name, facts))
        && !block
            .without_headers
            .iter()
            .any(|(name, want)| field(want, name, facts))
        && block
            .query_params
            .iter()
            .all(|(name, want)| parameter(want, name, facts.query))
        && block
            .source_namespace
            .as_ref()
            .is_none_or(|name| *name == facts.client.namespace)
        && block
            .source_labels
            .iter()
            .all(|(key, value)| facts.client.labels.get(key) == Some(value))
}

/// A string match against text that is there.
fn text(want: &StringMatch, value: &str) -> bool {
    match want {
        StringMatch::Present => true,
        StringMatch::Exact(exact) => **exact == *value,
        StringMatch::Prefix(prefix) => value.starts_with(&**prefix),
        StringMatch::Regex(regex) => regex.is_match(value),
    }
}

/// `uri`: `ignoreUriCase` acts on exact and prefix (ASCII case, as Envoy's
/// `case_sensitive: false`).
fn path(want: &StringMatch, value: &str, ignore_case: bool) -> bool {
    match want {
        StringMatch::Exact(exact) if ignore_case => exact.eq_ignore_ascii_case(value),
        StringMatch::Prefix(prefix) if ignore_case => value
            .as_bytes()
            .get(..prefix.len())
            .is_some_and(|head| head.eq_ignore_ascii_case(prefix.as_bytes())),
        _ => text(want, value),
    }
}

/// `headers` and `withoutHeaders`. The authority is compared with its port and
/// without, as a client may send either.
fn field(want: &StringMatch, field: &RequestField, facts: &RequestFacts<'_>) -> bool {
    match field {
        RequestField::Header(name) => header(want, name, facts.headers),
        RequestField::Method => text(want, facts.method.as_str()),
        RequestField::Scheme => text(want, facts.scheme),
        RequestField::Authority => {
            text(want, facts.authority) || text(want, without_port(facts.authority))
        }
        RequestField::Path => match facts.query {
            Some(query) => text(want, &format!("{}?{query}", facts.path)),
            None => text(want, facts.path),
        },
        RequestField::Never(_) => false,
    }
}

/// A header: an absent header fits nothing; several
/// values are one, joined by commas, as in Envoy.
fn header(want: &StringMatch, name: &HeaderName, headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(name).iter();
    let Some(first) = values.next() else {
        return false;
    };
    if matches!(want, StringMatch::Present) {
        return true;
    }
    let mut joined = Cow::Borrowed(first.as_bytes());
    for value in values {
        let all = joined.to_mut();
        all.push(b',');
        all.extend_from_slice(value.as_bytes());
    }
    match want {
        StringMatch::Present => true,
        StringMatch::Exact(exact) => exact.as_bytes() == &*joined,
        StringMatch::Prefix(prefix) => joined.starts_with(prefix.as_bytes()),
        StringMatch::Regex(regex) => {
            std::str::from_utf8(&joined).is_ok_and(|value| regex.is_match(value))
        }
    }
}

/// `queryParams`: the first value of the name, as written (Envoy does not
/// decode percent signs here); a name without `=` has the empty value.
fn parameter(want: &StringMatch, name: &str, query: Option<&str>) -> bool {
    query_value(query, name).is_some_and(|value| text(want, value))
}

/// First value of a query parameter, undecoded.
pub fn query_value<'q>(query: Option<&'q str>, name: &str) -> Option<&'q str> {
    query?.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    })
}

/// The authority without its port, and without the brackets' content touched:
/// `[::1]:80` gives `[::1]`.
pub fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port))
            if port.bytes().all(|byte| byte.is_ascii_digit())
                && (!host.contains(':') || host.ends_with(']')) =>
        {
            host
        }
        _ => authority,
    }
}

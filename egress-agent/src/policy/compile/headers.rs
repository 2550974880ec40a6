//! `headers` of a route: operations with their templates taken apart.

use http::{HeaderName, HeaderValue};

use crate::policy::check::header::is_authority;
use crate::policy::routes::{HeaderList, HeaderOps, HeaderTemplate, TemplatePart};
use crate::policy::schema::Text;
use crate::policy::schema::route::{HeaderOperations, Headers};

/// Operations ready to run.
pub(super) fn operations(headers: &Headers) -> HeaderOps {
    let request = headers.request.as_deref();
    let given = request.into_iter().flat_map(|r| r.set.iter().chain(&r.add));
    HeaderOps {
        authority: given
            .filter(|(name, value)| is_authority(name) && !value.is_empty())
            .find_map(|(_, value)| template(value)),
        request: request.map(list).unwrap_or_default(),
        response: headers.response.as_deref().map(list).unwrap_or_default(),
    }
}

fn list(operations: &HeaderOperations) -> HeaderList {
    let name = |name: &Text| HeaderName::from_bytes(name.as_bytes()).ok();
    let values = |list: &crate::policy::schema::Entries<Text>| {
        let list = list.iter().filter(|(name, _)| !is_authority(name));
        list.filter_map(|(key, value)| Some((name(key)?, template(value)?)))
            .collect()
    };
    HeaderList {
        set: values(&operations.set),
        add: values(&operations.add),
        remove: operations.remove.iter().filter_map(name).collect(),
    }
}

/// A value with its variables found; `%%` is a percent sign.
fn template(value: &str) -> Option<HeaderTemplate> {
    let mut parts = Vec::new();
    let mut text = String::new();
    let mut rest = value;
    while let Some((before, after)) = rest.split_once('%') {
        text.push_str(before);
        if let Some(after) = after.strip_prefix('%') {
            text.push('%');
            rest = after;
            continue;
        }
        let end = variable_end(after)?;
        if !text.is_empty() {
            parts.push(TemplatePart::Text(std::mem::take(&mut text).into()));
        }
        parts.push(TemplatePart::Variable(after[..end].into()));
        rest = &after[end + 1..];
    }
    text.push_str(rest);
    if parts.is_empty() {
        return HeaderValue::from_str(&text).ok().map(HeaderTemplate::Fixed);
    }
    if !text.is_empty() {
        parts.push(TemplatePart::Text(text.into()));
    }
    Some(HeaderTemplate::Parts(parts))
}

/// Where the percent sign is that ends a variable: behind its arguments, in
/// which percent signs mean nothing.
fn variable_end(text: &str) -> Option<usize> {
    let plain = text.find(['%', '('])?;
    if text[plain..].starts_with('%') {
        return Some(plain);
    }
    let close = plain + text[plain..].find(')')?;
    Some(close + text[close..].find('%')?)
}

//! Routes that no request can reach, because an earlier one takes them all.
//! Only warnings.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::policy::diagnostic::Span;
use crate::policy::schema::Entries;
use crate::policy::schema::reader::Reader;
use crate::policy::schema::route::{HttpMatch, HttpRoute, StringMatch};
use crate::policy::schema::virtual_service::VirtualService;

/// Reports routes and matches that do nothing.
pub fn check(reader: &mut Reader<'_>, service: &VirtualService) {
    reader.within("http", |reader| {
        let matches = |route: &HttpRoute| -> Vec<(String, Span)> {
            let matches = route.matches.iter();
            matches.map(|rule| (key_of_http(rule), rule.span)).collect()
        };
        let routes = service
            .http
            .iter()
            .map(|route| (matches(route), route.span));
        check_list(reader, routes);
        check_prefixes(reader, &service.http);
    });
    for (name, list) in [("tls", &service.tls), ("tcp", &service.tcp)] {
        reader.within(name, |reader| {
            let routes = list.iter().map(|route| {
                let matches = route.matches.iter();
                (
                    matches.map(|rule| (key(rule), rule.span)).collect(),
                    route.span,
                )
            });
            check_list(reader, routes);
        });
    }
}

fn key(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// What a match asks for, its name aside.
fn key_of_http(rule: &HttpMatch) -> String {
    key(&HttpMatch {
        name: None,
        ..rule.clone()
    })
}

fn check_list(reader: &mut Reader<'_>, routes: impl Iterator<Item = (Vec<(String, Span)>, Span)>) {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut catch_all = None;
    for (index, (matches, span)) in routes.enumerate() {
        if let Some(first) = catch_all {
            reader.at_index(index, |reader| {
                let message = format!("route {index} is never reached: route {first} has no `match` and takes everything");
                reader.warn("unreachable", span, message, "move the route without `match` to the end");
            });
        }
        if matches.is_empty() {
            catch_all.get_or_insert(index);
            continue;
        }
        for (key, span) in matches {
            if let Some(first) = seen.get(&key) {
                let message = format!("this match does nothing: route {first} has the same one");
                reader.at_index(index, |reader| {
                    reader.warn("duplicate-match", span, message, "remove one of them");
                });
            } else {
                seen.insert(key, index);
            }
        }
    }
}

/// The part of a match that decides whether one prefix hides another.
struct Prefix<'m> {
    route: usize,
    span: Span,
    text: &'m str,
    rule: &'m HttpMatch,
}

/// Reports prefixes that begin with the prefix of an earlier match which asks
/// for nothing more than they do.
fn check_prefixes(reader: &mut Reader<'_>, routes: &[HttpRoute]) {
    let mut earlier: Vec<Prefix<'_>> = Vec::new();
    for (route, http) in routes.iter().enumerate() {
        for rule in &http.matches {
            let uri = rule.uri.as_ref();
            let Some(prefix) = uri.and_then(|uri| uri.prefix.as_deref()) else {
                continue;
            };
            let this = Prefix {
                route,
                span: rule.span,
                text: prefix,
                rule,
            };
            // Bounded: a VirtualService of thousands of prefixes is not
            // compared pair by pair.
            if earlier.len() < 512 {
                if let Some(first) = earlier.iter().find(|first| hides(first, &this)) {
                    let message = format!(
                        "the prefix {prefix:?} is never reached: route {} already takes {:?}",
                        first.route, first.text
                    );
                    reader.at_index(route, |reader| {
                        reader.warn(
                            "shadowed",
                            this.span,
                            message,
                            "put the longer prefix first",
                        );
                    });
                }
                earlier.push(this);
            }
        }
    }
}

fn hides(first: &Prefix<'_>, later: &Prefix<'_>) -> bool {
    let (a, b) = (first.rule, later.rule);
    first.text != later.text
        && later.text.starts_with(first.text)
        && a.port == b.port
        && as_wide(a.method.as_ref(), b.method.as_ref())
        && as_wide(a.authority.as_ref(), b.authority.as_ref())
        && as_wide(a.scheme.as_ref(), b.scheme.as_ref())
        && all_as_wide(&a.headers, &b.headers)
        && all_as_wide(&a.query_params, &b.query_params)
        && a.without_headers == b.without_headers
        && a.source_labels == b.source_labels
        && a.source_namespace == b.source_namespace
        && a.gateways == b.gateways
}

fn as_wide(a: Option<&StringMatch>, b: Option<&StringMatch>) -> bool {
    let Some(a) = a else { return true };
    let Some(b) = b else { return false };
    a == b
        || a.prefix.as_ref().is_some_and(|prefix| {
            let narrower = b.exact.as_ref().or(b.prefix.as_ref());
            narrower.is_some_and(|text| text.starts_with(&***prefix))
        })
}

fn all_as_wide(a: &Entries<StringMatch>, b: &Entries<StringMatch>) -> bool {
    a.iter().all(|(name, a)| {
        let b = b.iter().find(|(other, _)| other.value == name.value);
        as_wide(Some(a), b.map(|(_, b)| b))
    })
}

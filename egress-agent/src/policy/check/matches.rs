//! Rules of the match blocks of HTTP routes.

use super::header::{is_claim, is_match_name};
use super::names::{check_label_map, check_port, is_dns_label};
use super::regexp;
use super::route::Place;
use super::virtual_service::check_gateways;
use crate::policy::routes::RequestField;
use crate::policy::schema::Text;
use crate::policy::schema::reader::Reader;
use crate::policy::schema::route::{HttpMatch, StringMatch};

/// Reports a string match with two kinds at once.
pub fn check_one_match(reader: &mut Reader<'_>, text: &StringMatch) {
    let kinds = [&text.exact, &text.prefix, &text.regex];
    if kinds.iter().filter(|kind| kind.is_some()).count() > 1 {
        let message = "only one of `exact`, `prefix` and `regex` can be given";
        reader.error("one-of", text.span, message, "keep one of them");
    }
}

fn check_string(reader: &mut Reader<'_>, text: &StringMatch, empty_prefix: bool) {
    if let Some(prefix) = &text.prefix
        && prefix.is_empty()
        && !empty_prefix
    {
        let message = "an empty `prefix` matches everything";
        reader.error(
            "match-empty",
            prefix.span,
            message,
            "write `{}` to ask that it is there",
        );
    }
    check_regex(reader, text);
}

pub(super) fn check_regex(reader: &mut Reader<'_>, text: &StringMatch) {
    let Some(regex) = &text.regex else { return };
    if regex.is_empty() {
        let message = "an empty `regex` matches only the empty string";
        reader.error(
            "match-empty",
            regex.span,
            message,
            "write an expression, or `exact: \"\"`",
        );
    } else if let Err(problem) = regexp::compile(regex) {
        reader.error(
            "regex",
            regex.span,
            problem,
            "write it in RE2's syntax: github.com/google/re2/wiki/Syntax",
        );
    }
}

pub(super) fn check_match(reader: &mut Reader<'_>, rule: &HttpMatch, place: Place) {
    if let Some(uri) = &rule.uri {
        reader.within("uri", |reader| check_string(reader, uri, true));
    }
    for (name, text) in [
        ("scheme", &rule.scheme),
        ("method", &rule.method),
        ("authority", &rule.authority),
    ] {
        if let Some(text) = text {
            reader.within(name, |reader| check_string(reader, text, false));
        }
    }
    reader.within("queryParams", |reader| {
        for (name, text) in &rule.query_params {
            reader.at_key(name, |reader| check_string(reader, text, false));
        }
    });
    for (field, list, without) in [
        ("headers", &rule.headers, false),
        ("withoutHeaders", &rule.without_headers, true),
    ] {
        reader.within(field, |reader| {
            for (name, text) in list {
                reader.at_key(name, |reader| {
                    check_header_match(reader, name, text, without, place);
                });
            }
        });
    }
    // Zero is the same as none.
    if let Some(port) = rule.port
        && port.value != 0
    {
        reader.within("port", |reader| check_port(reader, port));
    }
    reader.within("sourceLabels", |reader| {
        check_label_map(reader, &rule.source_labels);
    });
    reader.within("gateways", |reader| check_gateways(reader, &rule.gateways));
    if let Some(namespace) = &rule.source_namespace
        && !namespace.is_empty()
        && !is_dns_label(namespace)
    {
        let message = format!("{:?} is not a namespace", &***namespace);
        reader.error(
            "namespace",
            namespace.span,
            message,
            "write the name of a namespace",
        );
    }
    if let Some(prefix) = &rule.stat_prefix {
        reader.no_meaning(
            prefix.span,
            "statPrefix",
            "metrics carry the name of the route",
        );
    }
}

fn check_header_match(
    reader: &mut Reader<'_>,
    name: &Text,
    text: &StringMatch,
    without: bool,
    place: Place,
) {
    if is_claim(name) {
        if !place.gateways_only {
            let message = format!(
                "{:?}: claims of a JWT are known to gateways alone",
                &***name
            );
            reader.error("header-claim", name.span, message, "match a header");
        }
    } else if name.is_empty() {
        reader.error(
            "header-name",
            name.span,
            "a header name must not be empty",
            "name the header",
        );
    } else if !is_match_name(name) {
        let message = format!("{:?} is not a header name", &***name);
        reader.error(
            "header-name",
            name.span,
            message,
            "letters, digits and signs such as `-`, `_` and `.`; or :method, :scheme, :authority, :path",
        );
    } else if RequestField::new(name) == RequestField::Never(name.value.clone()) {
        let message = format!("no request has a header {:?}", &***name);
        reader.warn("header-name", name.span, message, "remove it");
    }
    // A lone star is Istio's way to ask for presence here.
    let star = without && text.regex.as_ref().is_some_and(|regex| &***regex == "*");
    if !star {
        check_string(reader, text, false);
    }
}

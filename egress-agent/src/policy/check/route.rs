//! Rules of one HTTP route.

use super::action::{
    check_authority_once, check_body, check_redirect, check_rewrite, check_status,
};
use super::destination_rule::check_subset_name;
use super::fault::{check_fault, check_mirrors};
use super::header::{Operation, check_operation, check_value, is_header_name};
use super::matches::{check_match, check_regex};
use super::names::{check_port, wildcard_host};
use super::retries::check_retries;
use crate::policy::diagnostic::Span;
use crate::policy::schema::reader::Reader;
use crate::policy::schema::route::{Cors, HeaderOperations, Headers, HttpDestination, HttpRoute};
use crate::policy::schema::virtual_service::{Destination, Weighted};
use crate::policy::schema::{Entries, Spanned, Text};

#[expect(clippy::ref_option, reason = "fields are asked as they stand")]
pub(super) fn set(text: &Option<Text>) -> bool {
    text.as_ref().is_some_and(|text| !text.is_empty())
}

/// What kind of VirtualService a route stands in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The VirtualService has no hosts: others delegate to it.
    pub delegate: bool,
    /// It is bound to gateways alone.
    pub gateways_only: bool,
}

/// Reports what is wrong with a route, but for its destinations and headers,
/// which report themselves.
pub fn check_http(reader: &mut Reader<'_>, route: &HttpRoute, place: Place) {
    check_action(reader, route, place);
    for (index, rule) in route.matches.iter().enumerate() {
        reader.within("match", |reader| {
            reader.at_index(index, |reader| check_match(reader, rule, place));
        });
    }
    if let Some(redirect) = &route.redirect {
        reader.within("redirect", |reader| check_redirect(reader, redirect, route));
    }
    if let Some(response) = &route.direct_response {
        reader.within("directResponse", |reader| {
            match response.status {
                None => reader.required(response.span, "status"),
                Some(status) => check_status(reader, i64::from(status.value), status.span),
            }
            if let Some(body) = &response.body {
                reader.within("body", |reader| check_body(reader, body));
            }
        });
    }
    if let Some(rewrite) = &route.rewrite {
        reader.within("rewrite", |reader| check_rewrite(reader, rewrite));
    }
    check_authority_once(reader, route);
    if let Some(retries) = &route.retries {
        reader.within("retries", |reader| check_retries(reader, retries, route));
    }
    if let Some(fault) = &route.fault {
        reader.within("fault", |reader| check_fault(reader, fault));
    }
    check_mirrors(reader, route);
    if let Some(cors) = &route.cors_policy {
        reader.within("corsPolicy", |reader| check_cors(reader, cors));
    }
    reader.within("route", |reader| {
        check_http_destinations(reader, &route.route);
    });
}

fn clash(reader: &mut Reader<'_>, span: Span, a: &str, b: &str) {
    let message = format!("`{a}` and `{b}` exclude each other");
    reader.error("one-of", span, message, "keep one of them");
}

/// Exactly one of route, redirect and directResponse; or a delegate alone.
fn check_action(reader: &mut Reader<'_>, route: &HttpRoute, place: Place) {
    let forwards = !route.route.is_empty();
    if let Some(delegate) = &route.delegate
        && !place.delegate
    {
        if let Some(redirect) = &route.redirect {
            clash(reader, redirect.span, "redirect", "delegate");
        }
        if forwards {
            clash(reader, route.span, "route", "delegate");
        }
        let why = "VirtualServices are not chained; this route is passed over";
        reader.within("delegate", |reader| {
            reader.no_meaning(delegate.span, "delegate", why);
        });
        return;
    }
    if let Some(redirect) = &route.redirect {
        if route.direct_response.is_some() {
            clash(reader, redirect.span, "redirect", "directResponse");
        }
        if forwards {
            clash(reader, redirect.span, "redirect", "route");
        }
    }
    if let Some(response) = &route.direct_response
        && forwards
    {
        clash(reader, response.span, "directResponse", "route");
    }
    let action = if route.redirect.is_some() {
        Some("redirect")
    } else {
        route.direct_response.as_deref().map(|_| "directResponse")
    };
    if let Some(action) = action {
        if let Some(fault) = &route.fault {
            clash(reader, fault.span, "fault", action);
        }
        if let Some(rewrite) = &route.rewrite {
            clash(reader, rewrite.span, "rewrite", action);
        }
    } else if !forwards {
        let message = "the route says nothing about what to do";
        reader.error(
            "required",
            route.span,
            message,
            "add `route`, `redirect` or `directResponse`",
        );
    }
    if let Some(delegate) = &route.delegate {
        let message = "a VirtualService without hosts cannot delegate further";
        reader.error("delegate", delegate.span, message, "remove `delegate`");
    }
    if let Some(mirror) = &route.mirror
        && !route.mirrors.is_empty()
    {
        let message = "`mirror` and `mirrors` exclude each other";
        reader.error("one-of", mirror.span, message, "move it into `mirrors`");
    }
}

fn check_cors(reader: &mut Reader<'_>, cors: &Cors) {
    reader.no_meaning(
        cors.span,
        "corsPolicy",
        "browsers ask servers, and this is the client's side",
    );
    for origin in &cors.allow_origins {
        let text = origin
            .exact
            .as_ref()
            .or(origin.prefix.as_ref())
            .or(origin.regex.as_ref());
        if text.is_none_or(|text| text.is_empty()) {
            reader.error(
                "match-empty",
                origin.span,
                "an origin must not be empty",
                "write exact, prefix or regex",
            );
        } else {
            check_regex(reader, origin);
        }
    }
    for method in &cors.allow_methods {
        let known = [
            "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE", "*",
        ];
        if !known.contains(&&***method) {
            let message = format!("{:?} is not an HTTP method", &***method);
            reader.error("http-method", method.span, message, "write one in capitals");
        }
    }
    for name in cors.allow_headers.iter().chain(&cors.expose_headers) {
        if !is_header_name(name) {
            let message = format!("{:?} is not a header name", &***name);
            reader.error(
                "header-name",
                name.span,
                message,
                "letters, digits and signs such as `-`, `_` and `.`",
            );
        }
    }
    if let Some(age) = cors.max_age
        && age.nanoseconds % 1_000_000_000 != 0
    {
        reader.error(
            "duration-range",
            age.span,
            "`maxAge` must be in whole seconds",
            "round it",
        );
    }
}

/// Reports what is wrong with a `headers`.
pub fn check_headers(reader: &mut Reader<'_>, headers: &Headers) {
    for (name, operations, value) in [
        ("request", &headers.request, Operation::RequestValue),
        ("response", &headers.response, Operation::Other),
    ] {
        if let Some(operations) = operations {
            reader.within(name, |reader| check_operations(reader, operations, value));
        }
    }
}

fn check_operations(reader: &mut Reader<'_>, operations: &HeaderOperations, kind: Operation) {
    let mut values = |name: &'static str, list: &Entries<Text>| {
        reader.within(name, |reader| {
            for (name, value) in list {
                reader.at_key(name, |reader| {
                    check_operation(reader, name, name.span, kind);
                    check_value(reader, value, value.span);
                });
            }
        });
    };
    values("set", &operations.set);
    values("add", &operations.add);
    reader.within("remove", |reader| {
        for (index, name) in operations.remove.iter().enumerate() {
            reader.at_index(index, |reader| {
                check_operation(reader, name, name.span, Operation::Other);
            });
        }
    });
}

/// Reports what is wrong with a `destination`.
pub fn check_destination(reader: &mut Reader<'_>, destination: &Destination) {
    match &destination.host {
        None => reader.required(destination.span, "host"),
        Some(host) => reader.within("host", |reader| {
            let problem = if &***host == "*" {
                Err("a destination cannot be every host".to_owned())
            } else {
                wildcard_host(host)
            };
            if let Err(problem) = problem {
                reader.error(
                    "host",
                    host.span,
                    problem,
                    "write the host of a ServiceEntry",
                );
            }
        }),
    }
    if let Some(subset) = destination.subset.as_ref().filter(|text| !text.is_empty()) {
        reader.within("subset", |reader| check_subset_name(reader, subset));
    }
    if let Some(port) = &destination.port {
        reader.within("port", |reader| {
            let number = port.number.unwrap_or(Spanned::new(0, port.span));
            check_port(reader, number);
        });
    }
}

fn check_http_destinations(reader: &mut Reader<'_>, list: &[HttpDestination]) {
    let weights = list
        .iter()
        .map(|d| (d.destination.is_none(), d.weight, d.span));
    check_weights(reader, weights);
}

/// Reports what is wrong with the destinations of a `tls` or `tcp` route.
pub fn check_destinations(reader: &mut Reader<'_>, list: &[Weighted]) {
    let weights = list
        .iter()
        .map(|d| (d.destination.is_none(), d.weight, d.span));
    check_weights(reader, weights);
}

fn check_weights(
    reader: &mut Reader<'_>,
    list: impl ExactSizeIterator<Item = (bool, Option<Spanned<i32>>, Span)>,
) {
    let several = list.len() > 1;
    let mut sum: i64 = 0;
    let mut first = None;
    for (index, (missing, weight, span)) in list.enumerate() {
        first.get_or_insert(span);
        reader.at_index(index, |reader| {
            if missing {
                reader.required(span, "destination");
            }
            if let Some(weight) = weight {
                sum += i64::from(weight.value);
                if weight.value < 0 {
                    let message = format!("`weight` is {}; it must not be negative", weight.value);
                    reader.error("number-range", weight.span, message, "write 0 or more");
                }
            }
        });
    }
    if let Some(span) = first
        && several
        && sum == 0
    {
        let message = "the weights add up to 0, so no destination is ever chosen";
        reader.error(
            "weights",
            span,
            message,
            "give at least one destination a weight",
        );
    }
}

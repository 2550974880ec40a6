//! Rules of one HTTP route.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::destination_rule::check_subset_name;
use super::header::{
    Operation, check_operation, check_value, is_authority, is_claim, is_match_name,
};
use super::names::{check_label_map, check_port, is_dns_label, wildcard_host};
use super::regexp;
use super::virtual_service::check_gateways;
use crate::policy::diagnostic::Span;
use crate::policy::schema::reader::Reader;
use crate::policy::schema::route::{
    Abort, Body, Cors, Fault, HeaderOperations, Headers, HttpDestination, HttpMatch, HttpRoute,
    Percent, Redirect, Retries, Rewrite, StringMatch,
};
use crate::policy::schema::virtual_service::{Destination, Weighted};
use crate::policy::schema::{Entries, Spanned, Text};

#[expect(clippy::ref_option, reason = "fields are asked as they stand")]
fn set(text: &Option<Text>) -> bool {
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

fn check_regex(reader: &mut Reader<'_>, text: &StringMatch) {
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

fn check_match(reader: &mut Reader<'_>, rule: &HttpMatch, place: Place) {
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
            "letters, digits, `-` and `_`",
        );
    }
    // A lone star is Istio's way to ask for presence here.
    let star = without && text.regex.as_ref().is_some_and(|regex| &***regex == "*");
    if !star {
        check_string(reader, text, false);
    }
}

fn check_redirect(reader: &mut Reader<'_>, redirect: &Redirect, route: &HttpRoute) {
    let port = redirect.port.is_some() || redirect.derive_port.is_some();
    let target = [
        &redirect.uri,
        &redirect.prefix_rewrite,
        &redirect.authority,
        &redirect.scheme,
    ];
    if !port && !target.into_iter().any(set) {
        let message = "`redirect` does not say where to";
        reader.error(
            "required",
            redirect.span,
            message,
            "add uri, prefixRewrite, authority, scheme or port",
        );
    }
    if redirect.port.is_some() && redirect.derive_port.is_some() {
        let message = "`port` and `derivePort` exclude each other";
        reader.error("one-of", redirect.span, message, "keep one of them");
    }
    if let Some(prefix) = redirect
        .prefix_rewrite
        .as_ref()
        .filter(|text| !text.is_empty())
    {
        if set(&redirect.uri) {
            let message = "`uri` and `prefixRewrite` exclude each other";
            reader.error("one-of", prefix.span, message, "keep one of them");
        }
        let other = |uri: &&StringMatch| uri.prefix.is_none();
        let uris = route.matches.iter().filter_map(|rule| rule.uri.as_ref());
        if let Some(uri) = uris.into_iter().find(other) {
            let message =
                "`prefixRewrite` needs matches by `prefix`, so that there is one to replace";
            reader.error(
                "redirect-prefix",
                uri.span,
                message,
                "match by `prefix`, or redirect to a `uri`",
            );
        }
    }
    if let Some(code) = redirect.redirect_code
        && code.value != 0
    {
        if !(300..=399).contains(&code.value) {
            let message = format!("{} is not the status of a redirect", code.value);
            reader.error(
                "http-status",
                code.span,
                message,
                "write 301, 302, 303, 307 or 308",
            );
        } else if !matches!(code.value, 301 | 302 | 303 | 307 | 308) {
            let message = format!("{} makes no client go elsewhere", code.value);
            reader.warn(
                "http-status",
                code.span,
                message,
                "write 301, 302, 303, 307 or 308",
            );
        }
    }
    if let Some(scheme) = &redirect.scheme
        && !matches!(&***scheme, "" | "http" | "https")
    {
        let message = format!("{:?} is not a scheme to redirect to", &***scheme);
        reader.error("enum", scheme.span, message, "write http or https");
    }
    if let Some(port) = redirect.port
        && port.value > 0
    {
        check_port(reader, port);
    }
}

fn check_status(reader: &mut Reader<'_>, status: i64, span: Span) {
    if !(200..=600).contains(&status) {
        let message = format!("{status} is not the status of an answer");
        reader.error("http-status", span, message, "write 200 to 599");
    }
}

fn check_body(reader: &mut Reader<'_>, body: &Body) {
    const KILO: usize = 1024;
    if body.string.is_some() && body.bytes.is_some() {
        let message = "`string` and `bytes` exclude each other";
        reader.error("one-of", body.span, message, "keep one of them");
    }
    let (size, span) = match (&body.string, &body.bytes) {
        (Some(text), _) => (text.len(), text.span),
        (None, Some(encoded)) => match STANDARD.decode(encoded.as_bytes()) {
            Ok(bytes) => (bytes.len(), encoded.span),
            Err(error) => {
                let message = format!("`bytes` is not base64: {error}");
                reader.error(
                    "base64",
                    encoded.span,
                    message,
                    "encode it, or use `string`",
                );
                return;
            }
        },
        (None, None) => return,
    };
    if size > KILO * KILO {
        let message = format!("the body has {size} bytes; at most 1 MiB is allowed");
        reader.error("body-size", span, message, "serve it from somewhere else");
    } else if size > 100 * KILO {
        let message = format!("the body has {size} bytes and is held in memory");
        reader.warn("body-size", span, message, "keep it below 100 KiB");
    }
}

fn check_rewrite(reader: &mut Reader<'_>, rewrite: &Rewrite) {
    let regex = rewrite.uri_regex_rewrite.as_ref();
    if set(&rewrite.uri) && regex.is_some() {
        let message = "`uri` and `uriRegexRewrite` exclude each other";
        reader.error("one-of", rewrite.span, message, "keep one of them");
    }
    if !set(&rewrite.uri) && regex.is_none() && !set(&rewrite.authority) {
        let message = "`rewrite` changes nothing";
        reader.error(
            "required",
            rewrite.span,
            message,
            "add uri, uriRegexRewrite or authority",
        );
    }
    let Some(regex) = regex else { return };
    reader.within("uriRegexRewrite", |reader| {
        if !set(&regex.pattern) {
            reader.required(regex.span, "match");
        }
        if !set(&regex.rewrite) {
            reader.required(regex.span, "rewrite");
        }
        if let Some(pattern) = regex.pattern.as_ref().filter(|text| !text.is_empty())
            && let Err(problem) = regexp::compile_search(pattern)
        {
            reader.error(
                "regex",
                pattern.span,
                problem,
                "write it in RE2's syntax: github.com/google/re2/wiki/Syntax",
            );
        }
    });
}

/// The authority may be rewritten in one place only.
fn check_authority_once(reader: &mut Reader<'_>, route: &HttpRoute) {
    let rewrite = route
        .rewrite
        .as_deref()
        .and_then(|rewrite| rewrite.authority.as_ref());
    let request = route
        .headers
        .as_deref()
        .and_then(|headers| headers.request.as_deref());
    let operations = request.into_iter().flat_map(|r| r.set.iter().chain(&r.add));
    let values = operations.filter(|(name, _)| is_authority(name));
    let mut current = rewrite;
    for (_, next) in values {
        // An empty value before does not count; an empty one after does.
        if let Some(current) = current.filter(|text| !text.is_empty()) {
            let message = format!(
                "the authority is rewritten twice: to {:?} and to {:?}",
                &***current, &***next
            );
            reader.error("authority-twice", next.span, message, "keep one of them");
            return;
        }
        current = Some(next);
    }
}

/// Words of `retryOn`, without status codes.
pub const RETRY_WORDS: [&str; 16] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "envoy-ratelimited",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

/// Whether a status code is registered (IANA), as far as Go names it.
pub fn is_registered_status(code: i64) -> bool {
    matches!(
        code,
        100..=103 | 200..=208 | 226 | 300..=305 | 307 | 308 | 400..=418 | 421..=426 | 428 | 429
            | 431 | 451 | 500..=508 | 510 | 511
    )
}

fn check_retries(reader: &mut Reader<'_>, retries: &Retries, route: &HttpRoute) {
    let attempts = retries.attempts.map_or(0, |attempts| attempts.value);
    let span = retries
        .attempts
        .map_or(retries.span, |attempts| attempts.span);
    if attempts < 0 {
        let message = format!("`attempts` is {attempts}; it must not be negative");
        reader.error("number-range", span, message, "write 0 for no retries");
    }
    let more = retries.per_try_timeout.is_some()
        || set(&retries.retry_on)
        || retries.retry_remote_localities.is_some();
    if attempts == 0 && more {
        let message =
            "`attempts` is 0, so there are no retries that the other settings could shape";
        reader.error(
            "retry-attempts",
            span,
            message,
            "write `attempts`, or remove the others",
        );
    }
    if let (Some(each), Some(all)) = (retries.per_try_timeout, route.timeout)
        && each.value >= all.value
    {
        let message = "`perTryTimeout` is not below `timeout`, so it never acts";
        reader.warn(
            "retry-timeout",
            each.span,
            message,
            "make it smaller than `timeout`",
        );
    }
    let Some(words) = retries.retry_on.as_ref().filter(|text| !text.is_empty()) else {
        return;
    };
    for word in words.split(',') {
        let code = word.parse::<i64>().unwrap_or(0);
        if RETRY_WORDS.contains(&word) {
            if matches!(
                word,
                "retriable-headers" | "envoy-ratelimited" | "http3-post-connect-failure"
            ) {
                reader.within("retryOn", |reader| {
                    reader.no_meaning(words.span, word, "nothing here sends it");
                });
            }
        } else if !is_registered_status(code) {
            let message = format!("{word:?} is not a reason to retry");
            let trimmed = word.trim();
            let help = if RETRY_WORDS.contains(&trimmed) || trimmed != word {
                "no blanks between the words".to_owned()
            } else {
                let nearest = crate::policy::schema::reader::nearest(word, RETRY_WORDS.into_iter());
                nearest.map_or_else(
                    || format!("a status code, or one of {}", RETRY_WORDS.join(", ")),
                    |nearest| format!("did you mean `{nearest}`?"),
                )
            };
            reader.within("retryOn", |reader| {
                reader.error("retry-on", words.span, message, help);
            });
        }
    }
}

fn check_share(reader: &mut Reader<'_>, percent: &Percent) {
    let value = percent.get();
    let span = percent.value.map_or(percent.span, |value| value.span);
    if !(0.0..=100.0).contains(&value) || (value > 0.0 && value < 0.0001) {
        let message = format!("{value} is not a percentage");
        reader.error("percentage", span, message, "write 0, or 0.0001 to 100");
    }
}

fn check_fault(reader: &mut Reader<'_>, fault: &Fault) {
    if fault.delay.is_none() && fault.abort.is_none() {
        let message = "`fault` does nothing";
        reader.error(
            "empty",
            fault.span,
            message,
            "add `delay` or `abort`, or remove it",
        );
    }
    if let Some(delay) = &fault.delay {
        reader.within("delay", |reader| {
            if let Some(percentage) = &delay.percentage {
                check_share(reader, percentage);
            } else if let Some(old) = delay.percent {
                reader.warn(
                    "old-form",
                    old.span,
                    "`percent` is the old form of `percentage.value`",
                    "write `percentage: {value: …}`",
                );
            }
            if let Some(exponential) = delay.exponential_delay {
                let message = "`exponentialDelay` is not supported";
                reader.error("fault-delay", exponential.span, message, "use `fixedDelay`");
                if delay.fixed_delay.is_some() {
                    reader.error(
                        "one-of",
                        delay.span,
                        "two delays at once",
                        "keep `fixedDelay`",
                    );
                }
            }
            check_never(reader, delay.percentage.as_ref(), delay.percent, delay.span);
        });
    }
    if let Some(abort) = &fault.abort {
        reader.within("abort", |reader| check_abort(reader, abort));
    }
}

/// A share that was left out is none at all.
fn check_never(
    reader: &mut Reader<'_>,
    percentage: Option<&Percent>,
    old: Option<Spanned<i32>>,
    span: Span,
) {
    let old = old.is_some_and(|old| old.value > 0);
    if percentage.is_none_or(|percentage| percentage.get() == 0.0) && !old {
        let message = "no `percentage`, so no request is affected";
        reader.warn(
            "fault-percentage",
            span,
            message,
            "add `percentage: {value: 100}`",
        );
    }
}

fn check_abort(reader: &mut Reader<'_>, abort: &Abort) {
    if let Some(percentage) = &abort.percentage {
        check_share(reader, percentage);
    }
    let kinds = [
        abort.http_status.is_some(),
        abort.grpc_status.is_some(),
        abort.http2_error.is_some(),
    ];
    match kinds.iter().filter(|kind| **kind).count() {
        0 => {
            let message = "`abort` names no status, so it does nothing";
            reader.warn(
                "fault-abort",
                abort.span,
                message,
                "add `httpStatus` or `grpcStatus`",
            );
        }
        1 => check_never(reader, abort.percentage.as_ref(), None, abort.span),
        _ => reader.error(
            "one-of",
            abort.span,
            "`abort` takes one status",
            "keep one of httpStatus and grpcStatus",
        ),
    }
    if let Some(status) = abort.http_status {
        check_status(reader, i64::from(status.value), status.span);
    }
    if let Some(status) = &abort.grpc_status
        && grpc_status(status).is_none()
    {
        let message = format!("{:?} is not the name of a gRPC status", &***status);
        reader.error(
            "grpc-status",
            status.span,
            message,
            "write a name such as UNAVAILABLE or NOT_FOUND",
        );
    }
    if let Some(error) = &abort.http2_error {
        let message = "`http2Error` is not supported";
        reader.error(
            "fault-abort",
            error.span,
            message,
            "use `httpStatus` or `grpcStatus`",
        );
    }
}

/// The number of a gRPC status by its name.
pub fn grpc_status(name: &str) -> Option<u8> {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    let index = NAMES.iter().position(|known| *known == name)?;
    u8::try_from(index).ok()
}

fn check_mirrors(reader: &mut Reader<'_>, route: &HttpRoute) {
    if let Some(old) = route.mirror_percent {
        let message = "`mirrorPercent` is the old form of `mirrorPercentage`";
        reader.warn(
            "old-form",
            old.span,
            message,
            "write `mirrorPercentage: {value: …}`",
        );
        if old.value > 100 {
            let message = format!("`mirrorPercent` is {}, not a percentage", old.value);
            reader.error("percentage", old.span, message, "write 0 to 100");
        }
    }
    let shares = route
        .mirrors
        .iter()
        .filter_map(|mirror| mirror.percentage.as_ref());
    for share in route.mirror_percentage.iter().chain(shares) {
        if !(0.0..=100.0).contains(&share.get()) {
            let message = format!("{} is not a percentage", share.get());
            let span = share.value.map_or(share.span, |value| value.span);
            reader.error("percentage", span, message, "write 0 to 100");
        }
    }
    for (index, mirror) in route.mirrors.iter().enumerate() {
        if mirror.destination.is_none() {
            reader.within("mirrors", |reader| {
                reader.at_index(index, |reader| reader.required(mirror.span, "destination"));
            });
        }
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
        if &***name != "*" && !is_match_name(name) {
            let message = format!("{:?} is not a header name", &***name);
            reader.error(
                "header-name",
                name.span,
                message,
                "letters, digits, `-` and `_`",
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

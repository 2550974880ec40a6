//! Reading `http` routes.

use super::{
    Abort, Body, Cors, Delay, Delegate, DerivePort, DirectResponse, Fault, HeaderOperations,
    Headers, HttpDestination, HttpMatch, HttpRoute, Mirror, Percent, Preflights, Redirect,
    RegexRewrite, Retries, Rewrite, StringMatch,
};
use crate::policy::check;
use crate::policy::schema::reader::Reader;
use crate::policy::schema::virtual_service::destination;
use crate::policy::yaml::Node;

/// Reads and checks one of `http`.
pub(in crate::policy::schema) fn http_route(
    reader: &mut Reader<'_>,
    node: &Node,
) -> Option<HttpRoute> {
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
    check::matches::check_one_match(reader, &text);
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

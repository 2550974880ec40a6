//! HTTP routes in words.

use std::fmt::Write;

use super::{Shown, all_of, shares, source};
use crate::policy::explain::query::Query;
use crate::policy::explain::report::{Route, Setting};
use crate::policy::explain::words::{self, setting};
use crate::policy::routes::{
    Abort, Fault, HeaderList, HeaderTemplate, HttpAction, HttpDestination, HttpMatch, HttpRoute,
    PathRewrite, RetryOn, RetryPolicy, Rewrite, TemplatePart,
};
use crate::policy::snapshot::{Service, View};
use crate::route::http::{self, Chosen, Forward, RequestFacts};
use crate::route::rewrite;

/// The routes of requests in the clear: of a URL the one that matches.
pub(super) fn routes(
    service: &Service,
    view: &View,
    query: &Query,
    asked: bool,
    shown: &mut Shown,
) -> (String, Option<Vec<Route>>) {
    let Some(routes) = &view.http else {
        shown.goes_to(&view.cluster);
        let text = format!(
            "no VirtualService: to the service itself; {}",
            default_retries()
        );
        return (text, Some(Vec::new()));
    };
    let of = routes.len();
    let Some(written) = query.target.path_and_query.as_deref() else {
        let list = routes.iter().enumerate();
        let list = list.map(|(at, route)| describe(route, at + 1, of, None, shown));
        let text =
            "http routes of the VirtualService, the first that matches; name a URL to see which"
                .to_owned();
        return (text, Some(list.collect()));
    };
    let (path, rest) = match written.split_once('?') {
        Some((path, rest)) => (path, Some(rest)),
        None => (written, None),
    };
    // As a client writes it: without the port where it is the scheme's own.
    let authority = if service.key.port == 80 {
        query.target.host.to_string()
    } else {
        format!("{}:{}", query.target.host, service.key.port)
    };
    let facts = RequestFacts {
        method: &query.method,
        path,
        query: rest,
        scheme: "http",
        authority: &authority,
        headers: &query.headers,
        port: service.key.port,
        client: &query.client,
    };
    let line = format!("{} {written}", query.method);
    let Some(chosen) = http::route(routes, &facts) else {
        if asked {
            shown.warn(format!(
                "no http route matches {line}: the application gets 404 NR"
            ));
        }
        let text = format!("none of the {of} http routes matches {line}: 404 NR");
        return (text, None);
    };
    let number = routes
        .iter()
        .position(|route| std::ptr::eq(route, chosen.route));
    let number = number.map_or(0, |number| number + 1);
    let route = describe(chosen.route, number, of, Some((&chosen, &facts)), shown);
    (
        format!("{line} takes an http route of the VirtualService"),
        Some(vec![route]),
    )
}

/// A route, whatever the request.
pub(super) fn route_in_words(
    route: &HttpRoute,
    number: usize,
    of: usize,
    shown: &mut Shown,
) -> Route {
    describe(route, number, of, None, shown)
}

type Request<'a> = Option<(&'a Chosen<'a>, &'a RequestFacts<'a>)>;

fn describe(
    route: &HttpRoute,
    number: usize,
    of: usize,
    request: Request<'_>,
    shown: &mut Shown,
) -> Route {
    let mut out = Route {
        number,
        of,
        name: request.map_or_else(
            || route.name.to_string(),
            |(chosen, _)| chosen.name().to_string(),
        ),
        matches: match request.and_then(|(chosen, _)| chosen.matched) {
            Some(block) => vec![block_text(block)],
            None => route.matches.iter().map(block_text).collect(),
        },
        ..Route::default()
    };
    match &route.action {
        HttpAction::Redirect(redirect) => {
            let to =
                request.and_then(|(chosen, facts)| rewrite::location(redirect, chosen, facts).ok());
            let to = to.map_or_else(String::new, |to| {
                format!(" to {}", String::from_utf8_lossy(to.as_bytes()))
            });
            out.answer = Some(format!("redirect {}{to}", redirect.status.as_u16()));
        }
        HttpAction::Respond { status, body } => {
            out.answer = Some(format!(
                "status {}, {} bytes of body",
                status.as_u16(),
                body.len()
            ));
        }
        HttpAction::Forward {
            destinations,
            rewrite,
        } => {
            forward(destinations, shown, &mut out);
            if let Some(rewrite) = rewrite {
                rewritten(rewrite, destinations, request, &mut out.actions);
            }
            plan(route, &mut out.actions);
            headers(route, destinations, &mut out.actions);
        }
    }
    if let Some(fault) = &route.fault {
        faults(fault, &mut out.actions);
    }
    for mirror in &route.mirrors {
        let to = shown.destination(&mirror.target, 0.0);
        let text = format!(
            "{} of requests to {}",
            words::share(mirror.share),
            to.cluster
        );
        out.actions.push(setting("mirror", text, false));
    }
    out
}

fn forward(destinations: &[HttpDestination], shown: &mut Shown, out: &mut Route) {
    let weights: Vec<u32> = destinations.iter().map(|one| one.weight).collect();
    out.destinations = destinations
        .iter()
        .zip(shares(&weights))
        .map(|(one, percent)| shown.destination(&one.target, percent))
        .collect();
}

/// `rewrite`, on the request where there is one.
fn rewritten(
    rewrite: &Rewrite,
    destinations: &[HttpDestination],
    request: Request<'_>,
    out: &mut Vec<Setting>,
) {
    if let Some(path) = &rewrite.path {
        let mut text = match path {
            PathRewrite::Uri(new) => format!("path to {new}"),
            PathRewrite::Regex {
                pattern,
                replacement,
            } => format!("path {pattern} to {replacement}"),
        };
        let cluster = destinations.iter().find_map(|one| match &one.target {
            crate::policy::routes::Target::Cluster(cluster) => Some(cluster),
            crate::policy::routes::Target::Missing(_) => None,
        });
        if let Some(((chosen, facts), cluster)) = request.zip(cluster) {
            let forward = Forward::to_explain(*chosen, cluster, rewrite);
            text = match rewrite::path(&forward, facts) {
                Ok(Some(new)) => format!("{} leaves as {new}", facts.path),
                Ok(None) => format!("{} stays", facts.path),
                Err(error) => error.to_string(),
            };
        }
        out.push(setting("rewrite.uri", text, false));
    }
    if let Some(authority) = &rewrite.authority {
        let text = String::from_utf8_lossy(authority.as_bytes());
        out.push(setting("rewrite.authority", text, false));
    }
}

fn plan(route: &HttpRoute, out: &mut Vec<Setting>) {
    out.push(setting(
        "timeout",
        words::limit(route.timeout),
        route.timeout.is_none(),
    ));
    let text = retries(&route.retries, route.timeout);
    let usual = text == retries(http::default_retries(), None);
    out.push(setting("retries", text, usual));
}

fn retries(retries: &RetryPolicy, timeout: Option<std::time::Duration>) -> String {
    if retries.attempts == 0 {
        return "none".to_owned();
    }
    let mut text = format!("{} on {}", retries.attempts, retry_on(&retries.on));
    match retries.per_try_timeout {
        Some(each) if timeout.is_some_and(|all| each >= all) => {
            let _ = write!(
                text,
                "; perTryTimeout {} is not below timeout and ignored",
                words::duration(each)
            );
        }
        Some(each) => {
            let _ = write!(text, "; each try {}", words::duration(each));
        }
        None => {}
    }
    if retries.backoff.as_millis() != 25 {
        let _ = write!(text, "; backoff from {}", words::duration(retries.backoff));
    }
    if retries.remote_localities {
        text += "; in other localities too";
    }
    if !retries.ignore_previous_hosts {
        text += "; endpoints tried before are tried again";
    }
    text
}

fn default_retries() -> String {
    format!("retries {}", retries(http::default_retries(), None))
}

fn retry_on(on: &RetryOn) -> String {
    let words = [
        (on.server_error, "5xx"),
        (on.gateway_error, "gateway-error"),
        (on.reset, "reset"),
        (on.reset_before_request, "reset-before-request"),
        (on.connect_failure, "connect-failure"),
        (on.retriable_4xx, "retriable-4xx"),
        (on.refused_stream, "refused-stream"),
    ];
    let mut out: Vec<String> = words
        .iter()
        .filter(|(set, _)| *set)
        .map(|(_, word)| (*word).to_owned())
        .collect();
    out.extend(on.statuses.iter().map(|status| status.as_u16().to_string()));
    let mut codes = on.grpc.clone();
    codes.sort_unstable();
    out.extend(codes.iter().map(|code| {
        match code {
            1 => "cancelled",
            4 => "deadline-exceeded",
            8 => "resource-exhausted",
            13 => "internal",
            14 => "unavailable",
            _ => "another gRPC status",
        }
        .to_owned()
    }));
    if out.is_empty() {
        return "nothing".to_owned();
    }
    out.join(", ")
}

fn faults(fault: &Fault, out: &mut Vec<Setting>) {
    if let Some((time, share)) = fault.delay {
        let text = format!(
            "{} for {} of requests",
            words::duration(time),
            words::share(share)
        );
        out.push(setting("fault.delay", text, false));
    }
    if let Some((what, share)) = fault.abort {
        let what = match what {
            Abort::Http(status) => format!("status {}", status.as_u16()),
            Abort::Grpc(code) => format!("gRPC status {code}"),
        };
        let text = format!("{what} for {} of requests", words::share(share));
        out.push(setting("fault.abort", text, false));
    }
}

fn headers(route: &HttpRoute, destinations: &[HttpDestination], out: &mut Vec<Setting>) {
    let mut one = |side: &str, list: &HeaderList, of: &str| {
        for (word, items) in [("set", &list.set), ("add", &list.add)] {
            for (name, value) in items {
                let text = format!("{name}: {}{of}", template(value));
                out.push(setting(&format!("headers.{side}.{word}"), text, false));
            }
        }
        for name in &list.remove {
            out.push(setting(
                &format!("headers.{side}.remove"),
                format!("{name}{of}"),
                false,
            ));
        }
    };
    one("request", &route.headers.request, "");
    one("response", &route.headers.response, "");
    let several = destinations.len() > 1;
    for (at, destination) in destinations.iter().enumerate() {
        let of = if several {
            format!(" (destination {})", at + 1)
        } else {
            String::new()
        };
        one("request", &destination.headers.request, &of);
        one("response", &destination.headers.response, &of);
    }
    let authorities =
        std::iter::once(&route.headers).chain(destinations.iter().map(|one| &one.headers));
    for authority in authorities.filter_map(|ops| ops.authority.as_ref()) {
        out.push(setting(
            "headers.request.set",
            format!("host: {}", template(authority)),
            false,
        ));
    }
}

fn template(value: &HeaderTemplate) -> String {
    match value {
        HeaderTemplate::Fixed(value) => String::from_utf8_lossy(value.as_bytes()).into_owned(),
        HeaderTemplate::Parts(parts) => parts
            .iter()
            .map(|part| match part {
                TemplatePart::Text(text) => text.replace('%', "%%"),
                TemplatePart::Variable(name) => format!("%{name}%"),
            })
            .collect(),
    }
}

fn block_text(block: &HttpMatch) -> String {
    let mut parts = Vec::new();
    let mut part = |what: &str, wanted: &crate::policy::routes::StringMatch| {
        parts.push(format!("{what} {}", words::string_match(wanted)));
    };
    let path = if block.ignore_uri_case {
        "path (any case)"
    } else {
        "path"
    };
    for (what, wanted) in [
        (path, &block.uri),
        ("scheme", &block.scheme),
        ("method", &block.method),
        ("authority", &block.authority),
    ] {
        if let Some(wanted) = wanted {
            part(what, wanted);
        }
    }
    for (name, wanted) in &block.headers {
        part(&format!("header {name}"), wanted);
    }
    for (name, wanted) in &block.query_params {
        part(&format!("query parameter {name}"), wanted);
    }
    for (name, wanted) in &block.without_headers {
        parts.push(format!("not header {name} {}", words::string_match(wanted)));
    }
    source(
        block.port,
        &block.source_labels,
        block.source_namespace.as_deref(),
        &mut parts,
    );
    all_of(&parts)
}

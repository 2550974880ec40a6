//! One HTTP route of a VirtualService, with its destinations bound.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, StatusCode};
use regex::Regex;

use super::headers::operations;
use super::hosts::pattern;
use crate::policy::check::action::base64;
use crate::policy::check::fault::grpc_status;
use crate::policy::check::names::subnet;
use crate::policy::check::regexp;
use crate::policy::model::Labels;
use crate::policy::routes::{
    Abort, Fault, HttpAction, HttpDestination, HttpMatch, HttpRoute, Mirror, OpaqueMatch,
    OpaqueRoute, PathRewrite, Redirect, RedirectPath, RedirectPort, RequestField, RetryOn,
    RetryPolicy, Rewrite, StringMatch, Target,
};
use crate::policy::schema::route::{self as shape, DerivePort, Percent};
use crate::policy::schema::virtual_service::{self as vs, Destination};
use crate::policy::schema::{Entries, Text};

/// Expressions that were compiled already: one text is compiled once.
#[derive(Debug, Default)]
pub(super) struct Expressions {
    whole: HashMap<Box<str>, Regex>,
    search: HashMap<Box<str>, Regex>,
}

impl Expressions {
    fn whole(&mut self, text: &str) -> Option<Regex> {
        memo(&mut self.whole, text, regexp::compile)
    }

    fn search(&mut self, text: &str) -> Option<Regex> {
        memo(&mut self.search, text, regexp::compile_search)
    }
}

fn memo(
    known: &mut HashMap<Box<str>, Regex>,
    text: &str,
    compile: fn(&str) -> Result<Regex, String>,
) -> Option<Regex> {
    if let Some(regex) = known.get(text) {
        return Some(regex.clone());
    }
    // It was compiled when the document was checked.
    let regex = compile(text).ok()?;
    known.insert(text.into(), regex.clone());
    Some(regex)
}

/// Binds a destination to a cluster.
pub(super) type Bind<'b> = dyn FnMut(&Destination) -> Target + 'b;

fn set(text: Option<&Text>) -> Option<&str> {
    text.map(|text| &***text).filter(|text| !text.is_empty())
}

fn labels(list: &Entries<Text>) -> Labels {
    let list = list.iter();
    list.map(|(key, value)| (key.value.clone(), value.value.clone()))
        .collect()
}

/// Whether a block is for the mesh, and for a port.
fn applies(gateways: &[Text], wanted: Option<u32>, port: u16) -> bool {
    (gateways.is_empty() || gateways.iter().any(|name| &***name == "mesh"))
        && wanted.is_none_or(|wanted| wanted == 0 || wanted == u32::from(port))
}

/// A route as it acts on a port; `None` when it does not.
pub(super) fn http(
    route: &shape::HttpRoute,
    port: u16,
    expressions: &mut Expressions,
    bind: &mut Bind<'_>,
) -> Option<HttpRoute> {
    let fits =
        |rule: &&shape::HttpMatch| applies(&rule.gateways, rule.port.map(|port| port.value), port);
    let matches: Vec<HttpMatch> = route
        .matches
        .iter()
        .filter(fits)
        .filter_map(|rule| http_match(rule, expressions))
        .collect();
    if route.delegate.is_some() || (matches.is_empty() && !route.matches.is_empty()) {
        return None;
    }
    let timeout = route.timeout.map(|timeout| timeout.duration());
    Some(HttpRoute {
        name: set(route.name.as_ref()).unwrap_or_default().into(),
        matches,
        action: action(route, expressions, bind)?,
        headers: route.headers.as_deref().map(operations).unwrap_or_default(),
        timeout,
        retries: retries(route.retries.as_deref(), timeout),
        fault: route.fault.as_deref().map(fault),
        mirrors: mirrors(route, bind),
    })
}

fn string(text: &shape::StringMatch, expressions: &mut Expressions) -> Option<StringMatch> {
    Some(if let Some(exact) = &text.exact {
        StringMatch::Exact(exact.value.clone())
    } else if let Some(prefix) = &text.prefix {
        StringMatch::Prefix(prefix.value.clone())
    } else if let Some(regex) = &text.regex {
        // Istio's sign for presence under withoutHeaders.
        if &***regex == "*" {
            StringMatch::Present
        } else {
            StringMatch::Regex(expressions.whole(regex)?)
        }
    } else {
        StringMatch::Present
    })
}

fn http_match(rule: &shape::HttpMatch, expressions: &mut Expressions) -> Option<HttpMatch> {
    let ignore_case = rule.ignore_uri_case.is_some_and(|ignore| ignore.value);
    let mut one = |text: &Option<shape::StringMatch>| match text {
        Some(text) => string(text, expressions).map(Some),
        None => Some(None),
    };
    let (uri, scheme) = (one(&rule.uri)?, one(&rule.scheme)?);
    let (method, authority) = (one(&rule.method)?, one(&rule.authority)?);
    let mut headers = |list: &Entries<shape::StringMatch>| -> Option<Vec<_>> {
        let list = list
            .iter()
            .map(|(name, text)| Some((RequestField::new(name), string(text, expressions)?)));
        list.collect()
    };
    let (with, without) = (headers(&rule.headers)?, headers(&rule.without_headers)?);
    let query = rule.query_params.iter();
    let query = query.map(|(name, text)| Some((name.value.clone(), string(text, expressions)?)));
    Some(HttpMatch {
        name: set(rule.name.as_ref()).map(Arc::from),
        uri,
        ignore_uri_case: ignore_case,
        scheme,
        method,
        authority,
        headers: with,
        without_headers: without,
        query_params: query.collect::<Option<_>>()?,
        port: rule
            .port
            .and_then(|port| u16::try_from(port.value).ok())
            .filter(|port| *port != 0),
        source_labels: labels(&rule.source_labels),
        source_namespace: set(rule.source_namespace.as_ref()).map(Arc::from),
    })
}

fn action(
    route: &shape::HttpRoute,
    expressions: &mut Expressions,
    bind: &mut Bind<'_>,
) -> Option<HttpAction> {
    if let Some(to) = &route.redirect {
        return Some(HttpAction::Redirect(redirect(to)));
    }
    if let Some(response) = &route.direct_response {
        let body = response.body.as_ref();
        let text = body.and_then(|body| body.string.as_ref());
        let bytes = match (text, body.and_then(|body| body.bytes.as_ref())) {
            (Some(text), _) => text.as_bytes().to_vec(),
            (None, Some(encoded)) => base64(encoded).unwrap_or_default(),
            (None, None) => Vec::new(),
        };
        let status = u16::try_from(response.status?.value).ok()?;
        return Some(HttpAction::Respond {
            status: StatusCode::from_u16(status).ok()?,
            body: bytes.into(),
        });
    }
    let single = route.route.len() == 1;
    let destinations: Vec<HttpDestination> = route
        .route
        .iter()
        .filter_map(|entry| {
            Some(HttpDestination {
                target: bind(entry.destination.as_ref()?),
                weight: weight(single, entry.weight),
                headers: entry.headers.as_deref().map(operations).unwrap_or_default(),
            })
        })
        .collect();
    if destinations.is_empty() {
        return None;
    }
    Some(HttpAction::Forward {
        destinations,
        rewrite: route.rewrite.as_deref().map(|to| rewrite(to, expressions)),
    })
}

fn weight(single: bool, weight: Option<crate::policy::schema::Spanned<i32>>) -> u32 {
    if single {
        return 1;
    }
    weight.map_or(0, |weight| u32::try_from(weight.value).unwrap_or(0))
}

fn redirect(to: &shape::Redirect) -> Redirect {
    let code = to.redirect_code.map_or(301, |code| code.value);
    let code = u16::try_from(code)
        .ok()
        .filter(|code| *code != 0)
        .unwrap_or(301);
    Redirect {
        path: match (set(to.uri.as_ref()), set(to.prefix_rewrite.as_ref())) {
            (Some(uri), _) => Some(RedirectPath::Full(uri.into())),
            (None, Some(prefix)) => Some(RedirectPath::Prefix(prefix.into())),
            (None, None) => None,
        },
        authority: set(to.authority.as_ref()).map(Box::from),
        scheme: set(to.scheme.as_ref()).map(Box::from),
        port: match (to.port, to.derive_port.map(|derive| derive.value)) {
            (_, Some(DerivePort::Protocol)) => RedirectPort::ProtocolDefault,
            (_, Some(DerivePort::Request)) => RedirectPort::RequestPort,
            (Some(port), None) if port.value > 0 => {
                u16::try_from(port.value).map_or(RedirectPort::Keep, RedirectPort::Fixed)
            }
            _ => RedirectPort::Keep,
        },
        status: StatusCode::from_u16(code).unwrap_or(StatusCode::MOVED_PERMANENTLY),
    }
}

fn rewrite(to: &shape::Rewrite, expressions: &mut Expressions) -> Rewrite {
    let path = if let Some(uri) = set(to.uri.as_ref()) {
        Some(PathRewrite::Uri(uri.into()))
    } else {
        to.uri_regex_rewrite.as_ref().and_then(|regex| {
            Some(PathRewrite::Regex {
                pattern: expressions.search(regex.pattern.as_ref()?)?,
                replacement: regexp::replacement(regex.rewrite.as_deref()?).into(),
            })
        })
    };
    Rewrite {
        path,
        authority: set(to.authority.as_ref()).and_then(|text| HeaderValue::from_str(text).ok()),
    }
}

/// Istio's default, and the words of a block.
fn retries(block: Option<&shape::Retries>, timeout: Option<Duration>) -> RetryPolicy {
    let mut on = RetryOn {
        connect_failure: true,
        refused_stream: true,
        grpc: vec![14, 1],
        ..RetryOn::default()
    };
    if let Some(words) = block.and_then(|block| set(block.retry_on.as_ref())) {
        on = retry_on(words);
    }
    let attempts = block.map_or(2, |block| {
        let attempts = block.attempts.map_or(0, |attempts| attempts.value);
        u32::try_from(attempts).unwrap_or(0)
    });
    let each = block
        .and_then(|block| block.per_try_timeout)
        .map(|t| t.duration());
    RetryPolicy {
        attempts,
        // One that is not shorter than the whole never acts.
        per_try_timeout: each.filter(|each| timeout.is_none_or(|timeout| *each < timeout)),
        on,
        backoff: block
            .and_then(|block| block.backoff)
            .map_or(Duration::from_millis(25), |backoff| backoff.duration()),
        remote_localities: block
            .and_then(|block| block.retry_remote_localities)
            .is_some_and(|remote| remote.value),
        ignore_previous_hosts: block
            .and_then(|block| block.retry_ignore_previous_hosts)
            .is_none_or(|ignore| ignore.value),
    }
}

fn retry_on(words: &str) -> RetryOn {
    let mut on = RetryOn::default();
    for word in words.split(',') {
        match word {
            "5xx" => on.server_error = true,
            "gateway-error" => on.gateway_error = true,
            "reset" => on.reset = true,
            "reset-before-request" => on.reset_before_request = true,
            "connect-failure" => on.connect_failure = true,
            "retriable-4xx" => on.retriable_4xx = true,
            "refused-stream" => on.refused_stream = true,
            "cancelled" => on.grpc.push(1),
            "deadline-exceeded" => on.grpc.push(4),
            "resource-exhausted" => on.grpc.push(8),
            "internal" => on.grpc.push(13),
            "unavailable" => on.grpc.push(14),
            other => {
                let code = other.parse::<u16>().ok();
                on.statuses
                    .extend(code.and_then(|code| StatusCode::from_u16(code).ok()));
            }
        }
    }
    on
}

/// Parts per million.
fn share(percent: f64) -> u32 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "0 to a million"
    )]
    let share = (percent.clamp(0.0, 100.0) * 10_000.0).round() as u32;
    share
}

fn fault(fault: &shape::Fault) -> Fault {
    let percent = |percent: Option<&Percent>| percent.map_or(0.0, Percent::get);
    let delay = fault.delay.as_deref().and_then(|delay| {
        let old = delay.percent.map_or(0.0, |old| f64::from(old.value));
        let percent = delay.percentage.as_ref().map_or(old, Percent::get);
        Some((delay.fixed_delay?.duration(), share(percent)))
    });
    let abort = fault.abort.as_deref().and_then(|abort| {
        let what = match (abort.http_status, &abort.grpc_status) {
            (Some(status), _) => {
                let code = u16::try_from(status.value).ok()?;
                Abort::Http(StatusCode::from_u16(code).ok()?)
            }
            (None, Some(name)) => Abort::Grpc(grpc_status(name)?),
            (None, None) => return None,
        };
        Some((what, share(percent(abort.percentage.as_ref()))))
    });
    Fault { delay, abort }
}

fn mirrors(route: &shape::HttpRoute, bind: &mut Bind<'_>) -> Vec<Mirror> {
    let mut out = Vec::new();
    if let Some(destination) = &route.mirror {
        let old = route.mirror_percent.map(|old| f64::from(old.value));
        let percent = route.mirror_percentage.as_ref().map(Percent::get).or(old);
        out.push(Mirror {
            target: bind(destination),
            share: share(percent.unwrap_or(100.0)),
        });
    }
    for mirror in &route.mirrors {
        if let Some(destination) = &mirror.destination {
            out.push(Mirror {
                target: bind(destination),
                share: share(mirror.percentage.as_ref().map_or(100.0, Percent::get)),
            });
        }
    }
    out
}

/// A `tls` or `tcp` route as it acts on a port; `None` when it does not.
pub(super) fn opaque(
    route: &vs::OpaqueRoute,
    port: u16,
    bind: &mut Bind<'_>,
) -> Option<OpaqueRoute> {
    let matches: Vec<OpaqueMatch> = route
        .matches
        .iter()
        .filter(|rule| applies(&rule.gateways, rule.port.map(|port| port.value), port))
        .map(|rule| OpaqueMatch {
            sni_hosts: rule.sni_hosts.iter().map(|host| pattern(host)).collect(),
            destination_subnets: rule
                .destination_subnets
                .iter()
                .filter_map(|network| Some(subnet(network).ok()?.trunc()))
                .collect(),
            port: rule
                .port
                .and_then(|port| u16::try_from(port.value).ok())
                .filter(|port| *port != 0),
            source_labels: labels(&rule.source_labels),
            source_namespace: set(rule.source_namespace.as_ref()).map(Arc::from),
        })
        .collect();
    if matches.is_empty() && !route.matches.is_empty() {
        return None;
    }
    let single = route.route.len() == 1;
    let destinations: Vec<(Target, u32)> = route
        .route
        .iter()
        .filter_map(|entry| {
            let target = bind(entry.destination.as_ref()?);
            Some((target, weight(single, entry.weight)))
        })
        .collect();
    (!destinations.is_empty()).then_some(OpaqueRoute {
        matches,
        destinations,
    })
}

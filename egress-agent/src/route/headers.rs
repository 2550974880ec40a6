//! Header operations and their templates (`headers` of a VirtualService).

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::SystemTime;

use ::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};

use crate::policy::routes::{HeaderList, HeaderOps, HeaderTemplate, TemplatePart};
use crate::policy::snapshot::Cluster;

/// What the variables of a template can speak of. A part that is not known
/// (yet) fills its variables with `-`, as in Envoy.
#[derive(Clone, Copy, Debug)]
pub struct Variables<'a> {
    /// The application's address.
    pub remote: SocketAddr,
    /// The address that the application dialled.
    pub dialled: SocketAddr,
    /// When the request began.
    pub start: SystemTime,
    /// Version that the application speaks.
    pub version: Version,
    /// Method.
    pub method: &'a Method,
    /// Path and query as requested.
    pub path: &'a str,
    /// Authority as requested.
    pub authority: &'a str,
    /// The cluster that the request goes to.
    pub cluster: Option<&'a Cluster>,
    /// Name of the route.
    pub route: &'a str,
    /// The endpoint that answered.
    pub upstream: Option<SocketAddr>,
    /// Request headers, for a request's own templates.
    pub request: Option<&'a HeaderMap>,
    /// What [`save`] kept of the request headers for the response's templates.
    pub saved: &'a [(Box<str>, Option<HeaderValue>)],
    /// Status of the response.
    pub status: Option<StatusCode>,
    /// Headers of the response.
    pub response: Option<&'a HeaderMap>,
}

/// Carries out `list` on the headers of a request, in the order set, add,
/// remove.
pub fn apply_request(list: &HeaderList, headers: &mut HeaderMap, variables: &Variables<'_>) {
    apply(list, headers, |headers, template| {
        let request = Some(headers);
        fill(
            template,
            &Variables {
                request,
                ..*variables
            },
        )
    });
}

/// Carries out `list` on the headers of a response, in the order set, add,
/// remove.
pub fn apply_response(list: &HeaderList, headers: &mut HeaderMap, variables: &Variables<'_>) {
    apply(list, headers, |headers, template| {
        let response = Some(headers);
        fill(
            template,
            &Variables {
                response,
                ..*variables
            },
        )
    });
}

fn apply(
    list: &HeaderList,
    headers: &mut HeaderMap,
    fill: impl Fn(&HeaderMap, &HeaderTemplate) -> Option<HeaderValue>,
) {
    for (name, template) in &list.set {
        if let Some(value) = fill(headers, template) {
            headers.insert(name, value);
        }
    }
    for (name, template) in &list.add {
        if let Some(value) = fill(headers, template) {
            headers.append(name, value);
        }
    }
    for name in &list.remove {
        headers.remove(name);
    }
}

/// Whether `list` does nothing.
pub fn is_empty(list: &HeaderList) -> bool {
    list.set.is_empty() && list.add.is_empty() && list.remove.is_empty()
}

/// The authority that header operations give; the destination's, coming last,
/// wins.
pub fn authority<'r>(
    ops: impl Iterator<Item = &'r HeaderOps>,
    variables: &Variables<'_>,
) -> Option<HeaderValue> {
    ops.filter_map(|ops| ops.authority.as_ref())
        .last()
        .and_then(|template| fill(template, variables))
}

/// Keeps the request headers that templates of the response refer to, since
/// the headers themselves leave with the request.
pub fn save<'r>(
    ops: impl Iterator<Item = &'r HeaderOps>,
    variables: &Variables<'_>,
) -> Vec<(Box<str>, Option<HeaderValue>)> {
    ops.flat_map(|ops| ops.response.set.iter().chain(&ops.response.add))
        .filter_map(|(_, template)| match template {
            HeaderTemplate::Fixed(_) => None,
            HeaderTemplate::Parts(parts) => Some(parts),
        })
        .flatten()
        .filter_map(|part| match part {
            TemplatePart::Variable(name) if name.starts_with("REQ") => Some(&**name),
            _ => None,
        })
        .map(|name| {
            let mut out = String::new();
            variables.variable(name, &mut out);
            (name.into(), HeaderValue::try_from(out).ok())
        })
        .collect()
}

/// Fills a template. `None` when the result cannot be a header value.
pub fn fill(template: &HeaderTemplate, variables: &Variables<'_>) -> Option<HeaderValue> {
    match template {
        HeaderTemplate::Fixed(value) => Some(value.clone()),
        HeaderTemplate::Parts(parts) => {
            let mut out = String::new();
            for part in parts {
                match part {
                    TemplatePart::Text(text) => out.push_str(text),
                    TemplatePart::Variable(name) => variables.variable(name, &mut out),
                }
            }
            HeaderValue::try_from(out).ok()
        }
    }
}

impl Variables<'_> {
    /// Writes one variable; a name that is none of Envoy's, or that means
    /// nothing here, stays as text.
    fn variable(&self, variable: &str, out: &mut String) {
        if let Some((_, value)) = self.saved.iter().find(|(name, _)| **name == *variable) {
            out.push_str(value.as_ref().and_then(|v| v.to_str().ok()).unwrap_or("-"));
            return;
        }
        let (name, argument, limit) = split(variable);
        let start = out.len();
        match (name, argument) {
            ("DOWNSTREAM_REMOTE_ADDRESS" | "DOWNSTREAM_DIRECT_REMOTE_ADDRESS", None) => {
                push(out, self.remote);
            }
            (
                "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT"
                | "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT",
                None,
            ) => push(out, self.remote.ip()),
            ("DOWNSTREAM_REMOTE_PORT" | "DOWNSTREAM_DIRECT_REMOTE_PORT", None) => {
                push(out, self.remote.port());
            }
            ("DOWNSTREAM_LOCAL_ADDRESS", None) => push(out, self.dialled),
            ("DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", None) => push(out, self.dialled.ip()),
            ("DOWNSTREAM_LOCAL_PORT", None) => push(out, self.dialled.port()),
            ("PROTOCOL", None) => out.push_str(protocol(self.version)),
            ("START_TIME", format) => push_time(self.start, format, out),
            ("ROUTE_NAME", None) => out.push_str(dash_if_empty(self.route)),
            ("UPSTREAM_CLUSTER", None) => match self.cluster {
                Some(cluster) => push_cluster(cluster, out),
                None => out.push('-'),
            },
            ("UPSTREAM_HOST" | "UPSTREAM_REMOTE_ADDRESS", None) => match self.upstream {
                Some(address) => push(out, address),
                None => out.push('-'),
            },
            ("UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", None) => match self.upstream {
                Some(address) => push(out, address.ip()),
                None => out.push('-'),
            },
            ("RESPONSE_CODE", None) => match self.status {
                Some(status) => out.push_str(status.as_str()),
                None => out.push('-'),
            },
            ("HOSTNAME", None) => out.push_str(hostname()),
            ("REQ", Some(names)) => push_first(names, out, |name| self.request_header(name)),
            ("RESP", Some(names)) => push_first(names, out, |name| {
                let name = HeaderName::try_from(name).ok()?;
                self.response?.get(name)?.to_str().ok()
            }),
            _ => {
                out.push('%');
                out.push_str(variable);
                out.push('%');
                return;
            }
        }
        if let Some(limit) = limit {
            let end = (start..=out.len().min(start.saturating_add(limit)))
                .rev()
                .find(|&at| out.is_char_boundary(at))
                .unwrap_or(start);
            out.truncate(end);
        }
    }

    fn request_header(&self, name: &str) -> Option<&str> {
        if name.eq_ignore_ascii_case(":path") {
            Some(self.path)
        } else if name.eq_ignore_ascii_case(":authority") || name.eq_ignore_ascii_case("host") {
            Some(self.authority)
        } else if name.eq_ignore_ascii_case(":method") {
            Some(self.method.as_str())
        } else if name.eq_ignore_ascii_case(":scheme") {
            Some("http")
        } else {
            let name = HeaderName::try_from(name).ok()?;
            self.request?.get(name)?.to_str().ok()
        }
    }
}

/// Envoy's name of a cluster as Istio makes it: `outbound|PORT|SUBSET|HOST`.
pub fn push_cluster(cluster: &Cluster, out: &mut String) {
    let key = &cluster.key;
    let _ = write!(
        out,
        "outbound|{}|{}|{}",
        key.service.port, key.subset, key.service.host
    );
}

/// `HTTP/1.1` and its kin.
pub fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

/// `NAME(argument):limit` in its parts.
fn split(variable: &str) -> (&str, Option<&str>, Option<usize>) {
    let Some((name, rest)) = variable.split_once('(') else {
        return (variable, None, None);
    };
    match rest.rsplit_once(')') {
        Some((argument, "")) => (name, Some(argument), None),
        Some((argument, tail)) => match tail.strip_prefix(':').map(str::parse) {
            Some(Ok(limit)) => (name, Some(argument), Some(limit)),
            _ => (variable, None, None),
        },
        None => (variable, None, None),
    }
}

/// `X?Y`: the first header that is there.
fn push_first<'v>(names: &str, out: &mut String, get: impl Fn(&str) -> Option<&'v str>) {
    let value = names.split('?').find_map(get);
    out.push_str(value.unwrap_or("-"));
}

fn push(out: &mut String, value: impl std::fmt::Display) {
    let _ = write!(out, "{value}");
}

fn dash_if_empty(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// Envoy's default `%Y-%m-%dT%H:%M:%E3SZ`, or the format given.
fn push_time(time: SystemTime, format: Option<&str>, out: &mut String) {
    let Ok(time) = jiff::Timestamp::try_from(time) else {
        out.push('-');
        return;
    };
    let mark = out.len();
    let format = format.unwrap_or("%Y-%m-%dT%H:%M:%S.%3fZ");
    if write!(out, "{}", time.strftime(format)).is_err() {
        out.truncate(mark);
        out.push('-');
    }
}

fn hostname() -> &'static str {
    static NAME: LazyLock<String> = LazyLock::new(|| {
        rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned()
    });
    &NAME
}

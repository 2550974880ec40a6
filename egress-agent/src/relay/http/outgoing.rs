//! A request as it leaves.

use std::rc::Rc;
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, UPGRADE};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{HeaderMap, HeaderValue, Method, Request, Version};
use hyper::body::Incoming;

use super::exchange::Exchange;
use super::request;
use super::upload::{RequestBody, Upload};
use crate::connect::pool::{Io, Version as Wire};
use crate::route::headers::{self as ops, Variables};
use crate::route::http::Forward;
use crate::route::rewrite;

/// A request as it came.
pub(super) struct Call {
    pub(super) head: Parts,
    pub(super) body: Incoming,
    pub(super) authority: HeaderValue,
    /// The path that the route rewrote it to.
    pub(super) path: Option<PathAndQuery>,
}

/// A request as it leaves, except for what differs between tries.
#[derive(Clone)]
pub(super) struct Outgoing {
    pub(super) method: Method,
    pub(super) path: PathAndQuery,
    pub(super) authority: HeaderValue,
    /// `None` while they are out with a try.
    pub(super) headers: Option<HeaderMap>,
    /// Version that the client speaks.
    pub(super) version: Version,
    /// The protocol that the client asks to change to.
    pub(super) upgrade: Option<HeaderValue>,
}

/// What a try decides about the request it sends.
pub(super) struct Form<'a> {
    pub(super) wire: Wire,
    pub(super) tls: bool,
    /// Number of the try, if the service is to be told.
    pub(super) attempt: Option<u32>,
    pub(super) upload: Option<&'a Rc<Upload>>,
    /// Another try may come.
    pub(super) keep: bool,
}

/// Request headers that templates of the response speak of.
pub(super) type Saved<'r> = Vec<(&'r str, Option<HeaderValue>)>;

/// Makes what leaves out of what came: rewrites, header operations, and
/// without what concerned only the client's connection.
pub(super) fn prepare<'r, S: Io>(
    exchange: &Exchange<S>,
    plan: &Forward<'r>,
    call: Call,
    upgrade_asked: bool,
) -> (Outgoing, Saved<'r>, Incoming) {
    let Call {
        head,
        body,
        authority,
        path,
    } = call;
    let Parts {
        method,
        uri,
        version,
        mut headers,
        ..
    } = head;
    let upgrade = upgrade_asked
        .then(|| request::upgrade_of(&headers))
        .flatten();
    request::strip_hop_by_hop(&mut headers);
    let mut saved = Saved::new();
    let mut given = rewrite::authority(plan.rewrite).cloned();
    if has_operations(plan) {
        let variables = variables(exchange, plan);
        let with_request = Variables {
            request: Some(&headers),
            ..variables
        };
        saved = ops::save(plan.header_ops(), &with_request);
        given = given.or(ops::authority(plan.header_ops(), &with_request));
        for list in plan.header_ops() {
            ops::apply_request(&list.request, &mut headers, &variables);
        }
    }
    request::add_defaults(&mut headers, &exchange.client.worker.settings);
    let path = path
        .or_else(|| uri.into_parts().path_and_query)
        .unwrap_or_else(|| PathAndQuery::from_static("/"));
    let mut authority = given.unwrap_or(authority);
    if authority.is_empty() {
        // HTTP/1.0 may leave Host out; the service must get one.
        let host = &exchange.client.caller.host;
        authority = HeaderValue::from_str(host).unwrap_or(authority);
    }
    let outgoing = Outgoing {
        method,
        path,
        authority,
        headers: Some(headers),
        version,
        upgrade,
    };
    (outgoing, saved, body)
}

fn has_operations(plan: &Forward<'_>) -> bool {
    plan.header_ops().any(|list| {
        list.authority.is_some() || !ops::is_empty(&list.request) || !ops::is_empty(&list.response)
    })
}

/// What templates can speak of before there is a response.
pub(super) fn variables<'a, S: Io>(exchange: &'a Exchange<S>, plan: &Forward<'a>) -> Variables<'a> {
    let record = &exchange.record;
    Variables {
        remote: exchange.client.caller.peer,
        dialled: exchange.client.caller.original,
        start: SystemTime::now() - record.started.elapsed(),
        version: record.version,
        method: &record.method,
        path: record.path.as_ref().map_or("/", PathAndQuery::as_str),
        authority: record
            .authority
            .as_ref()
            .and_then(|authority| authority.to_str().ok())
            .unwrap_or_default(),
        cluster: Some(plan.cluster),
        route: record.route.as_deref().unwrap_or_default(),
        upstream: None,
        request: None,
        saved: &[],
        status: None,
        response: None,
    }
}

impl Outgoing {
    /// Whether a try can be made with it.
    pub(super) const fn is_here(&self) -> bool {
        self.headers.is_some()
    }

    /// Takes a request back that was not sent.
    pub(super) fn take_back(&mut self, request: Request<RequestBody>) {
        self.headers = Some(request.into_parts().0.headers);
    }

    /// The request of one try. `None` when it is out with an earlier one.
    pub(super) fn request(&mut self, form: &Form<'_>) -> Option<Request<RequestBody>> {
        let mut headers = if form.keep {
            self.headers.clone()?
        } else {
            self.headers.take()?
        };
        let http2 = form.wire == Wire::Http2;
        request::translate(&mut headers, self.version, http2);
        if let Some(attempt) = form.attempt {
            headers.insert(request::ATTEMPT_COUNT, HeaderValue::from(attempt));
        }
        let mut request = Request::new(match form.upload {
            Some(upload) => RequestBody::upload(upload),
            None => RequestBody::empty(),
        });
        *request.method_mut() = self.method.clone();
        if http2 {
            *request.version_mut() = Version::HTTP_2;
            *request.uri_mut() = self.full_uri(form.tls)?;
        } else {
            headers.insert(HOST, self.authority.clone());
            if let Some(protocol) = &self.upgrade {
                headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
                headers.insert(UPGRADE, protocol.clone());
            }
            *request.uri_mut() = Uri::from(self.path.clone());
        }
        *request.headers_mut() = headers;
        Some(request)
    }

    /// A copy for a mirror: no upgrade, the authority marked, the body whole.
    pub(super) fn shadow(&self) -> Option<Self> {
        let authority = self.authority.to_str().ok()?;
        Some(Self {
            authority: request::shadow_authority(authority)?,
            upgrade: None,
            ..self.clone()
        })
    }

    /// The request of a mirror.
    pub(super) fn with_body(
        &mut self,
        form: &Form<'_>,
        body: Bytes,
    ) -> Option<Request<RequestBody>> {
        let request = self.request(form)?;
        let (mut head, _) = request.into_parts();
        if !body.is_empty() {
            head.headers
                .insert(CONTENT_LENGTH, HeaderValue::from(body.len() as u64));
        }
        Some(Request::from_parts(head, RequestBody::full(body)))
    }

    fn full_uri(&self, tls: bool) -> Option<Uri> {
        let authority = Authority::try_from(self.authority.as_bytes()).ok()?;
        let scheme = if tls { Scheme::HTTPS } else { Scheme::HTTP };
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(scheme);
        parts.authority = Some(authority);
        parts.path_and_query = Some(self.path.clone());
        Uri::from_parts(parts).ok()
    }
}

//! A request as it leaves.

use std::time::SystemTime;

use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;

use super::ServiceStream;
use super::exchange::Exchange;
use super::extended::Extended;
use super::request::{self, Added};
use crate::connect::pool::RequestHead;
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
    /// It is an extended CONNECT.
    pub(super) extended: Option<Extended>,
}

/// A request as it leaves. Tries only look at it, so that it can be sent again.
#[derive(Clone)]
pub(super) struct Outgoing {
    pub(super) method: Method,
    pub(super) path: PathAndQuery,
    pub(super) authority: HeaderValue,
    /// The authority as it was read already, where that was needed.
    parsed: Option<Authority>,
    pub(super) headers: HeaderMap,
    added: Added,
    /// Version that the client speaks.
    pub(super) version: Version,
    /// The protocol that the client asks to change to.
    pub(super) upgrade: Option<HeaderValue>,
}

/// A request taken apart for its way.
pub(super) struct Prepared {
    pub(super) outgoing: Outgoing,
    pub(super) saved: Saved,
    pub(super) body: Option<Incoming>,
    /// The client's stream, if it is to carry another protocol.
    pub(super) extended: Option<OnUpgrade>,
}

/// Request headers that templates of the response speak of.
pub(super) type Saved = Vec<(Box<str>, Option<HeaderValue>)>;

/// Makes what leaves out of what came: rewrites, header operations, and
/// without what concerned only the client's connection.
pub(super) fn prepare<S: ServiceStream>(
    exchange: &mut Exchange<S>,
    plan: &Forward<'_>,
    call: Call,
    upgrade_asked: bool,
) -> Prepared {
    let Call {
        head,
        body,
        authority,
        path,
        extended,
    } = call;
    let Parts {
        method,
        uri,
        version,
        mut headers,
        ..
    } = head;
    let upgrade = match &extended {
        Some(extended) => Some(extended.protocol.clone()),
        None if upgrade_asked => request::upgrade_of(&headers),
        None => None,
    };
    request::strip_hop_by_hop(&mut headers);
    let mut saved = Saved::new();
    let mut given = rewrite::authority(plan.rewrite).cloned();
    if has_operations(plan) {
        // Templates may speak of it, also those of the response.
        let record = &mut exchange.open.record;
        record.method = method.clone();
        record.path = uri.path_and_query().cloned();
        record.authority = Some(authority.clone());
        record.route = Some(plan.name());
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
    if let Some(credential) = &plan.cluster.policy.credential {
        headers.remove(&credential.header);
    }
    let added = Added::new(&headers, &exchange.open.client.worker.settings);
    let record = &mut exchange.open.record;
    if exchange.open.client.logs() && record.request_id.is_none() {
        record.request_id = added.request_id();
    }
    let parsed = uri.authority().filter(|_| given.is_none()).cloned();
    let path = path
        .or_else(|| uri.into_parts().path_and_query)
        .unwrap_or_else(|| PathAndQuery::from_static("/"));
    let mut authority = given.unwrap_or(authority);
    if authority.is_empty() {
        // HTTP/1.0 may leave Host out; the service must get one.
        let host = &exchange.open.client.caller.host;
        authority = HeaderValue::from_str(host).unwrap_or(authority);
    }
    let outgoing = Outgoing {
        method,
        path,
        authority,
        parsed,
        headers,
        added,
        version,
        upgrade,
    };
    Prepared {
        outgoing,
        saved,
        // The stream of an extended CONNECT is no body.
        body: extended.is_none().then_some(body),
        extended: extended.map(|extended| extended.stream),
    }
}

fn has_operations(plan: &Forward<'_>) -> bool {
    plan.header_ops().any(|list| {
        list.authority.is_some() || !ops::is_empty(&list.request) || !ops::is_empty(&list.response)
    })
}

/// What templates can speak of before there is a response.
pub(super) fn variables<'a, S: ServiceStream>(
    exchange: &'a Exchange<S>,
    plan: &Forward<'a>,
) -> Variables<'a> {
    let record = &exchange.open.record;
    Variables {
        remote: exchange.open.client.caller.peer,
        dialled: exchange.open.client.caller.original,
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
    /// Takes a header out.
    pub(super) fn remove(&mut self, name: &HeaderName) {
        self.headers.remove(name);
    }

    /// The head of one try.
    pub(super) fn head(&self, tls: bool, attempt: Option<u32>) -> RequestHead<'_> {
        RequestHead {
            method: &self.method,
            path: &self.path,
            authority: &self.authority,
            parsed: self.parsed.as_ref(),
            headers: &self.headers,
            extra: self.added.fields(),
            credential: None,
            tls,
            attempt,
            upgrade: self.upgrade.as_ref(),
        }
    }

    /// A copy for a mirror: no upgrade, the authority marked.
    pub(super) fn shadow(&self) -> Option<Self> {
        let authority = self.authority.to_str().ok()?;
        Some(Self {
            authority: request::shadow_authority(authority)?,
            parsed: None,
            upgrade: None,
            ..self.clone()
        })
    }
}

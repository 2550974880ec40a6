//! What one request gets: an answer of our own, or the service's.

use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{CONNECTION, HOST, USER_AGENT};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::ServiceStream;
use super::client::{Client, Found, Open};
use super::extended;
use super::forward::{self, Sending};
use super::guard;
use super::local::{self, Local};
use super::outgoing::Call;
use super::record::Record;
use super::request::REQUEST_ID;
use super::response::ResponseBody;
use crate::flag::Flag;
use crate::route::http::{Forward, RequestFacts, Routed, decide};
use crate::route::{RouteError, rewrite};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// One request, until its response takes over.
pub(super) struct Exchange<S: ServiceStream> {
    pub(super) open: Box<Open<S>>,
    /// It is a gRPC call: our own answers must be, too.
    pub(super) grpc: bool,
}

/// The answering of one request. What can be answered at once is not boxed.
pub(super) enum Handling<S: ServiceStream> {
    Done(Option<Response<ResponseBody<S>>>),
    Forwarding(
        Rc<Client<S>>,
        Pin<Box<dyn Future<Output = Response<ResponseBody<S>>>>>,
    ),
}

impl<S: ServiceStream> Future for Handling<S> {
    /// Never fails: what goes wrong is an answer.
    type Output = Result<Response<ResponseBody<S>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Done(response) => match response.take() {
                Some(response) => Poll::Ready(Ok(response)),
                // Polled again after its end, which hyper does not do.
                None => Poll::Pending,
            },
            Self::Forwarding(client, forwarding) => {
                let response = ready!(forwarding.as_mut().poll(cx));
                client.state.answer_upgrade();
                Poll::Ready(Ok(response))
            }
        }
    }
}

/// Answers one request.
pub(super) fn handle<S: ServiceStream>(
    client: &Rc<Client<S>>,
    request: Request<Incoming>,
) -> Handling<S> {
    match answer(client, request) {
        Ok(sending) => Handling::Forwarding(Rc::clone(client), Box::pin(forward::run(sending))),
        Err(response) => {
            client.state.answer_upgrade();
            Handling::Done(Some(response))
        }
    }
}

/// Decides what a request gets: to be sent on, or, as the error, an answer of
/// our own.
#[expect(
    clippy::result_large_err,
    reason = "both ways are common, and a box would cost one of them"
)]
fn answer<S: ServiceStream>(
    client: &Rc<Client<S>>,
    mut request: Request<Incoming>,
) -> Result<Box<Sending<S>>, Response<ResponseBody<S>>> {
    let refusal = client.state.begin();
    let extended = extended::take(&mut request);
    let (head, body) = request.into_parts();
    let mut exchange = Exchange {
        // gRPC calls are POST.
        grpc: head.method == Method::POST && local::is_grpc(&head.headers),
        open: Open::new(Rc::clone(client), record(&head, client.logs())),
    };
    if let Some(refusal) = refusal {
        return Err(exchange.refuse(refusal.status, refusal.reason));
    }
    let authority = match authority(&head) {
        Ok(authority) => authority,
        Err(reason) => return Err(exchange.refuse(StatusCode::BAD_REQUEST, reason)),
    };
    if client.logs() {
        exchange.open.record.authority = Some(authority.clone());
    }
    if head.method == Method::CONNECT {
        // As Envoy does where no CONNECT upgrade is configured.
        return Err(exchange.refuse(StatusCode::FORBIDDEN, "CONNECT is not proxied"));
    }
    // Checked when it was read, so it is text.
    let name = authority.to_str().unwrap_or_default();
    let bound = match client.service(name) {
        Found::Bound(bound) => bound,
        Found::Misdirected => {
            let reason = "the host of this request is not registered; connect to it anew";
            return Err(exchange.refuse(StatusCode::MISDIRECTED_REQUEST, reason));
        }
    };
    let facts = RequestFacts {
        method: &head.method,
        path: head.uri.path(),
        query: head.uri.query(),
        scheme: "http",
        authority: name,
        headers: &head.headers,
        port: client.caller.original.port(),
        client: &client.caller.client,
    };
    match decision(bound.view(), &facts) {
        Ok(Decision::Forward(plan, path)) => {
            let call = Call {
                head,
                body,
                authority,
                path,
                extended,
            };
            Sending::new(exchange, &bound, &plan, call)
        }
        Ok(Decision::Answer(local, route)) => {
            exchange.open.record.route = Some(route);
            exchange.open.record.answer = Some("direct_response");
            Err(exchange.local(local))
        }
        Err(error) => {
            let local = match error {
                RouteError::NoRoute => Local::new(StatusCode::NOT_FOUND, Bytes::new()),
                RouteError::NoCluster(_) | RouteError::BadRewrite { .. } => {
                    Local::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
                }
            };
            exchange.open.record.details = error.to_string().into();
            exchange.open.record.flag(error.flag());
            Err(exchange.local(local))
        }
    }
}

/// What the routes say, with everything that needs a look at the request.
enum Decision<'r> {
    /// Send it on, with this path in place of the requested one.
    Forward(Forward<'r>, Option<PathAndQuery>),
    /// An answer, and the route's name.
    Answer(Local, Arc<str>),
}

fn decision<'r>(
    view: &'r crate::policy::snapshot::View,
    facts: &RequestFacts<'_>,
) -> Result<Decision<'r>, RouteError> {
    Ok(match decide(view, facts)? {
        Routed::Forward(plan) => {
            let path = rewrite::path(&plan, facts)?;
            Decision::Forward(plan, path)
        }
        Routed::Redirect(redirect, chosen) => {
            let local = Local {
                location: Some(rewrite::location(redirect, &chosen, facts)?),
                ..Local::new(redirect.status, Bytes::new())
            };
            Decision::Answer(local, chosen.name())
        }
        Routed::Respond {
            status,
            body,
            chosen,
        } => {
            let local = Local::new(status, body.clone());
            Decision::Answer(local, chosen.name())
        }
    })
}

impl<S: ServiceStream> Exchange<S> {
    /// An answer of our own, which ends the request.
    pub(super) fn local(mut self, local: Local) -> Response<ResponseBody<S>> {
        let record = &mut self.open.record;
        let (status, headers, body) = local.into_parts(self.grpc);
        if self.grpc {
            record.grpc_status = super::retry::grpc_status(&headers);
        }
        record.status = Some(status);
        record.sent = body.len() as u64;
        let mut response = Response::new(ResponseBody::full(body));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        if self.open.client.orphaned.get() {
            close(&mut response);
        }
        self.open.finish(Instant::now());
        response
    }

    /// An answer to a request that the client should not have sent; the
    /// connection ends with it.
    pub(super) fn refuse(
        mut self,
        status: StatusCode,
        reason: &'static str,
    ) -> Response<ResponseBody<S>> {
        let record = &mut self.open.record;
        record.flag(Flag::DownstreamProtocolError);
        record.details = reason.into();
        let mut response = self.local(Local::new(status, reason));
        close(&mut response);
        response
    }
}

/// Ends the connection with this response (HTTP/1; over HTTP/2 the header is
/// not allowed and hyper takes it out).
pub(super) fn close<B>(response: &mut Response<B>) {
    response
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
}

fn record(head: &Parts, details: bool) -> Record {
    let base = Record {
        version: head.version,
        ..Record::default()
    };
    if !details {
        return base;
    }
    let kept = |name: HeaderName| head.headers.get(name).cloned();
    Record {
        method: head.method.clone(),
        path: head.uri.path_and_query().cloned(),
        user_agent: kept(USER_AGENT),
        request_id: kept(REQUEST_ID),
        forwarded_for: kept(FORWARDED_FOR),
        ..base
    }
}

/// The authority of a request: that of the target where it has one (HTTP/2,
/// and the absolute form, which wins over Host by RFC 9112 section 3.2.2),
/// else Host. An HTTP/1.0 request may have none.
fn authority(head: &Parts) -> Result<HeaderValue, &'static str> {
    let host = head.headers.get(HOST);
    let Some(authority) = head.uri.authority() else {
        return Ok(host.cloned().unwrap_or(HeaderValue::from_static("")));
    };
    let authority = authority.as_str();
    if !guard::is_authority(authority.as_bytes()) {
        return Err("malformed authority");
    }
    if head.version == Version::HTTP_2
        && host.is_some_and(|host| !host.as_bytes().eq_ignore_ascii_case(authority.as_bytes()))
    {
        return Err("Host differs from :authority");
    }
    HeaderValue::from_str(authority).map_err(|_| "malformed authority")
}

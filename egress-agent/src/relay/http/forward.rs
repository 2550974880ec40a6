//! A request that goes to a service: limits, faults, mirrors, tries, and the
//! response on its way back.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, SET_COOKIE, UPGRADE};
use http::{HeaderName, HeaderValue, Response, StatusCode, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};

use super::ServiceStream;
use super::affinity::{Affinity, affinity};
use super::client::Bound;
use super::deadline::Deadline;
use super::exchange::{self, Exchange};
use super::extended::Tunnelled;
use super::failure::Failure;
use super::guarded::Upgrade;
use super::mirror;
use super::outgoing::{Call, Outgoing, Prepared, Saved, prepare, variables};
use super::request;
use super::response::{Ending, ResponseBody, Stream};
use super::retry;
use super::tries::{Answer, Tries};
use super::upgrade::Tunnel;
use super::upload::Upload;
use crate::endpoint::Permit;
use crate::endpoint::resolved::Destination;
use crate::flag::Flag;
use crate::policy::routes::Abort;
use crate::relay::Limits;
use crate::route::headers::{self as ops, Variables};
use crate::route::http::{Forward, Place, draw_fault};

const SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");

/// A request on its way to a service.
pub(super) struct Sending<S: ServiceStream> {
    exchange: Exchange<S>,
    bound: Rc<Bound>,
    place: Place,
    /// `fault` as drawn for this request.
    fault: (Option<Duration>, Option<Abort>),
    outgoing: Outgoing,
    saved: Saved,
    affinity: Affinity,
    body: Option<Incoming>,
    /// The client's stream, if it is to carry another protocol.
    extended: Option<OnUpgrade>,
}

impl<S: ServiceStream> Sending<S> {
    /// Makes what leaves out of what came.
    #[expect(
        clippy::result_large_err,
        reason = "the response is what the caller returns in its turn"
    )]
    pub(super) fn new(
        mut exchange: Exchange<S>,
        bound: &Rc<Bound>,
        plan: &Forward<'_>,
        call: Call,
    ) -> Result<Box<Self>, Response<ResponseBody<S>>> {
        if exchange.open.client.logs() {
            exchange.open.record.route = Some(plan.name());
            exchange.open.record.cluster = Some(Arc::clone(plan.cluster));
        }
        if bound.set(plan.cluster.index).is_none() {
            return Err(fail(exchange, &Failure::no_cluster()));
        }
        let fault = plan
            .chosen
            .and_then(|chosen| chosen.route.fault.as_ref())
            .map_or((None, None), draw_fault);
        let affinity = affinity(
            &plan.cluster.policy,
            &call.head.headers,
            call.head.uri.query(),
            exchange.open.client.caller.peer.ip(),
        );
        let asked = exchange.open.client.state.upgrade.get() == Upgrade::Asked;
        let Prepared {
            outgoing,
            saved,
            body,
            extended,
        } = prepare(&mut exchange, plan, call, asked);
        Ok(Box::new(Self {
            exchange,
            bound: Rc::clone(bound),
            place: plan.place(),
            fault,
            outgoing,
            saved,
            affinity,
            body: body.filter(|body| !body.is_end_stream()),
            extended,
        }))
    }
}

/// Sends a request on, as often as the plan allows, and answers with what
/// comes of it.
pub(super) async fn run<S: ServiceStream>(
    mut sending: Box<Sending<S>>,
) -> Response<ResponseBody<S>> {
    let bound = Rc::clone(&sending.bound);
    let plan = Forward::at(bound.view(), sending.place);
    let set = plan.and_then(|plan| bound.set(plan.cluster.index));
    let (Some(plan), Some(set)) = (plan, set) else {
        return fail(sending.exchange, &Failure::no_cluster());
    };
    let (delay, abort) = sending.fault;
    if let Some(delay) = delay {
        sending.exchange.open.record.flag(Flag::DelayInjected);
        Box::pin(sleep(delay)).await;
    }
    if let Some(abort) = abort {
        return fail(sending.exchange, &Failure::injected(abort));
    }
    let permit = match set.request_permit() {
        Ok(permit) => permit,
        Err(overflow) => {
            return fail(sending.exchange, &Failure::overflow(overflow.to_string()));
        }
    };
    let mirrors = mirror::drawn(plan.mirrors());
    let upload = sending.body.take().map(|body| {
        let keep = retry::may_replay(plan.retries)
            || retry::idempotent(&sending.outgoing.method)
            || !mirrors.is_empty();
        Upload::new(body, keep)
    });
    if !mirrors.is_empty() {
        let (exchange, outgoing) = (&sending.exchange, &sending.outgoing);
        mirror::send(exchange, &bound, &mirrors, outgoing, upload.as_ref());
    }
    let mut deadline = plan
        .timeout
        .map(|after| Deadline::new(after, upload.as_ref()));
    let timed_out = (plan.timeout.is_some() || plan.per_try_timeout().is_some())
        .then(|| Rc::new(Cell::new(false)));
    let end = {
        let sending = &mut *sending;
        let mut tries = Tries {
            exchange: &mut sending.exchange,
            bound: &bound,
            plan: &plan,
            set,
            outgoing: &sending.outgoing,
            upload: upload.as_ref(),
            timed_out: timed_out.clone(),
            hash: sending.affinity.hash,
        };
        let mut run = pin!(tries.run());
        poll_fn(|cx| {
            if let Poll::Ready(end) = run.as_mut().poll(cx) {
                return Poll::Ready(end);
            }
            let Some(deadline) = &mut deadline else {
                return Poll::Pending;
            };
            ready!(deadline.poll(cx));
            if let Some(flag) = &timed_out {
                flag.set(true);
            }
            let after = plan.timeout.unwrap_or_default().as_millis();
            let details = format!("the route's timeout of {after} ms passed");
            Poll::Ready(Err(Failure::timeout(None, details)))
        })
        .await
    };
    match end {
        Ok(answer) => {
            let held = Held {
                upload,
                deadline,
                permit,
            };
            respond(sending, &plan, answer, held)
        }
        Err(failure) => {
            let mut exchange = sending.exchange;
            if let Some(upload) = &upload {
                exchange.open.record.received = upload.received();
                if exchange.open.record.version == Version::HTTP_2 {
                    upload.drain();
                }
            }
            fail(exchange, &failure)
        }
    }
}

/// What a request holds beyond the head of its response.
struct Held {
    upload: Option<Rc<Upload>>,
    deadline: Option<Deadline>,
    permit: Permit,
}

fn fail<S: ServiceStream>(
    mut exchange: Exchange<S>,
    failure: &Failure,
) -> Response<ResponseBody<S>> {
    if let Some(refusal) = exchange.open.client.state.body_refusal() {
        return exchange.refuse(refusal.status, refusal.reason);
    }
    if let Some(flag) = failure.flag {
        exchange.open.record.flag(flag);
    }
    exchange.open.record.details = if failure.details.is_empty() {
        failure.text.as_str().into()
    } else {
        failure.details.as_str().into()
    };
    let host = Rc::clone(&exchange.open.client);
    let local = failure.local(&host.caller.host);
    exchange.local(local)
}

/// What holds for a connection that has changed its protocol.
fn limits(plan: &Forward<'_>) -> Limits {
    let pool = &plan.cluster.policy.connection_pool;
    Limits {
        idle: pool.idle_timeout,
        deadline: pool
            .max_connection_duration
            .map(|longest| Instant::now() + longest),
    }
}

/// Passes a response on.
fn respond<S: ServiceStream>(
    sending: Box<Sending<S>>,
    plan: &Forward<'_>,
    answer: Answer<S>,
    held: Held,
) -> Response<ResponseBody<S>> {
    let Sending {
        mut exchange,
        saved,
        affinity,
        extended,
        outgoing,
        ..
    } = *sending;
    let Answer {
        mut head,
        mut lease,
        picked,
        grpc,
        retry_permit,
    } = answer;
    lease.recycle(outgoing.headers);
    let changes = head.status == StatusCode::SWITCHING_PROTOCOLS;
    let protocol = changes
        .then(|| head.headers.get(UPGRADE).cloned())
        .flatten();
    request::strip_hop_by_hop(&mut head.headers);
    if exchange.open.client.worker.settings.service_time {
        let time = exchange.open.record.service_time.unwrap_or_default();
        let time = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        head.headers.insert(SERVICE_TIME, HeaderValue::from(time));
    }
    if let Some(cookie) = affinity.cookie {
        head.headers.append(SET_COOKIE, cookie);
    }
    if plan.header_ops().any(|list| !ops::is_empty(&list.response)) {
        let upstream = match &exchange.open.record.upstream {
            Some(Destination::Tcp(address)) => Some(*address),
            _ => None,
        };
        let variables = Variables {
            upstream,
            saved: &saved,
            status: Some(head.status),
            ..variables(&exchange, plan)
        };
        for list in plan.header_ops() {
            ops::apply_response(&list.response, &mut head.headers, &variables);
        }
    }
    // The version is that of each connection.
    head.version = match exchange.open.record.version {
        Version::HTTP_2 => Version::HTTP_2,
        _ => Version::HTTP_11,
    };
    exchange.open.record.status = Some(head.status);
    exchange.open.record.answer = Some("via_upstream");
    exchange.open.record.grpc_status = grpc;
    let open = exchange.open;
    let orphaned = open.client.orphaned.get();
    let client = &open.client;
    let asked = client.state.upgrade.get() == Upgrade::Asked;
    if changes && (asked || extended.is_some()) {
        let client = Rc::clone(client);
        let tunnel = Tunnel {
            upstream: lease,
            limits: limits(plan),
            open,
            _picked: picked,
            _permit: held.permit,
        };
        if let Some(stream) = extended {
            // RFC 8441: success, and the stream is open.
            head.status = StatusCode::OK;
            spawn_local(async move {
                if let Ok(stream) = stream.await {
                    let stream = Tunnelled::new(stream);
                    tunnel.run(&client, stream, Bytes::new()).await;
                }
            });
        } else {
            client.state.upgrade.set(Upgrade::Accepted);
            head.headers
                .insert(CONNECTION, HeaderValue::from_static("upgrade"));
            if let Some(protocol) = protocol {
                head.headers.insert(UPGRADE, protocol);
            }
            client.tunnel.replace(Some(tunnel));
        }
        return Response::from_parts(head, ResponseBody::full(Bytes::new()));
    }
    let mut ending = Ending {
        open,
        lease,
        upload: held.upload,
        _picked: picked,
        _permits: (held.permit, retry_permit),
    };
    let body = if ending.lease.is_end_stream() {
        ending.complete();
        ResponseBody::full(Bytes::new())
    } else if let Some(body) = ending.lease.whole() {
        ending.open.record.sent = body.len() as u64;
        ending.complete();
        ResponseBody::full(body)
    } else {
        ResponseBody::stream(Box::new(Stream {
            ending: Some(ending),
            deadline: held.deadline,
            broken: None,
        }))
    };
    let mut response = Response::from_parts(head, body);
    if orphaned {
        exchange::close(&mut response);
    }
    response
}

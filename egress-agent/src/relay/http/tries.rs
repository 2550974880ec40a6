//! One try after another, as far as the plan allows. Nothing else repeats a
//! request.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use http::response;
use tokio::time::{Instant, sleep, timeout};

use super::ServiceStream;
use super::client::Bound;
use super::deadline::Deadline;
use super::exchange::Exchange;
use super::failure::Failure;
use super::outgoing::Outgoing;
use super::retry::{self, TryEnd, retriable};
use super::upload::{RequestBody, Upload};
use crate::connect::origination;
use crate::connect::pool::{Lease, SendFailure, Version as Wire, Want};
use crate::endpoint::{EndpointId, EndpointSet, Outcome, Permit, PickContext, PickError, Picked};
use crate::flag::Flag;
use crate::identify::Spoken;
use crate::policy::model::{Protocol, UpstreamHttp};
use crate::policy::snapshot::Cluster;
use crate::route::http::{Forward, without_port};

/// Times that a connection found dead is replaced within one try.
const RECONNECTS: u32 = 3;

/// The tries of one request.
pub(super) struct Tries<'a, S: ServiceStream> {
    pub(super) exchange: &'a mut Exchange<S>,
    pub(super) bound: &'a Rc<Bound>,
    pub(super) plan: &'a Forward<'a>,
    pub(super) set: &'a Arc<EndpointSet>,
    pub(super) outgoing: &'a Outgoing,
    pub(super) upload: Option<&'a Rc<Upload>>,
    /// Set when a timeout ends a try; made only where there is one.
    pub(super) timed_out: Option<Rc<Cell<bool>>>,
    /// Hash of the `consistentHash` key.
    pub(super) hash: Option<u64>,
}

/// A response whose head is here; its body is the lease's.
pub(super) struct Answer<S: ServiceStream> {
    pub(super) head: response::Parts,
    pub(super) lease: Lease<RequestBody, S>,
    pub(super) picked: Judged,
    /// `grpc-status` of a trailers-only answer.
    pub(super) grpc: Option<u8>,
    /// Held while a retry is under way.
    pub(super) retry_permit: Option<Permit>,
}

/// A pick that is told how it went even when the try is dropped halfway.
pub(super) struct Judged {
    pub(super) picked: Picked,
    pub(super) timed_out: Option<Rc<Cell<bool>>>,
}

impl Drop for Judged {
    fn drop(&mut self) {
        // Only the first report counts.
        let timed_out = self.timed_out.as_ref().is_some_and(|flag| flag.get());
        self.picked.report(if timed_out {
            Outcome::Timeout
        } else {
            Outcome::Cancelled
        });
    }
}

/// Endpoints that tries went to; without a list as long as there is one try.
#[derive(Default)]
struct Tried {
    earlier: Vec<EndpointId>,
    last: Option<EndpointId>,
}

impl Tried {
    fn so_far(&mut self) -> &[EndpointId] {
        self.earlier.extend(self.last.take());
        &self.earlier
    }
}

impl<S: ServiceStream> Tries<'_, S> {
    /// Tries until there is an answer that nobody would rather not have.
    ///
    /// # Errors
    /// The last try's failure.
    pub(super) async fn run(&mut self) -> Result<Answer<S>, Failure> {
        let policy = self.plan.retries;
        let mut tried = Tried::default();
        let mut retries = 0;
        let mut permit: Option<Permit> = None;
        loop {
            self.exchange.open.record.attempts = retries + 1;
            let mut result = self.limited(&mut tried).await;
            let end = match &result {
                Ok(answer) => Some(answer.end()),
                Err(failure) => failure.end,
            };
            if let Ok(answer) = &mut result {
                answer.retry_permit = permit.take();
            }
            let again = end.is_some_and(|end| retriable(&policy.on, end)) && policy.attempts > 0;
            if !again {
                return result;
            }
            if retries == policy.attempts {
                self.exchange
                    .open
                    .record
                    .flag(Flag::UpstreamRetryLimitExceeded);
                return result;
            }
            if !self.can_repeat() {
                return result;
            }
            let Ok(granted) = self.set.retry_permit() else {
                self.exchange.open.record.flag(Flag::UpstreamOverflow);
                return result;
            };
            permit = Some(granted);
            if let Ok(answer) = result {
                discard(answer);
            }
            retries += 1;
            let wait = retry::backoff(policy.backoff, retries);
            tracing::debug!(retries, ?end, ?wait, "request is retried");
            sleep(wait).await;
        }
    }

    /// Whether the request is still here to be sent again.
    fn can_repeat(&self) -> bool {
        self.upload.is_none_or(|upload| upload.can_send())
    }

    /// One try within `perTryTimeout`.
    async fn limited(&mut self, tried: &mut Tried) -> Result<Answer<S>, Failure> {
        let Some(after) = self.plan.per_try_timeout() else {
            return self.once(tried).await;
        };
        let mut deadline = Deadline::new(after, self.upload);
        let flag = self.timed_out.clone();
        let end = {
            let mut once = pin!(self.once(tried));
            poll_fn(|cx| match once.as_mut().poll(cx) {
                Poll::Ready(end) => Poll::Ready(Some(end)),
                Poll::Pending if deadline.poll(cx).is_ready() => {
                    if let Some(flag) = &flag {
                        flag.set(true);
                    }
                    Poll::Ready(None)
                }
                Poll::Pending => Poll::Pending,
            })
            .await
        };
        if let Some(flag) = &flag {
            flag.set(false);
        }
        end.unwrap_or_else(|| {
            let details = format!("perTryTimeout of {} ms passed", after.as_millis());
            Err(Failure::timeout(Some(TryEnd::Timeout), details))
        })
    }

    /// One try: an endpoint, a connection, the request, the response's head.
    async fn once(&mut self, tried: &mut Tried) -> Result<Answer<S>, Failure> {
        let credential = self
            .exchange
            .open
            .client
            .credential(self.plan.cluster)
            .map_err(|error| Failure::credential(&error))?;
        let picked = self.pick(tried.so_far()).await?;
        let policy = &self.plan.cluster.policy;
        if self.plan.retries.ignore_previous_hosts && self.plan.retries.attempts > 0 {
            tried.last = Some(picked.endpoint.id);
        }
        let picked = Judged {
            picked,
            timed_out: self.timed_out.clone(),
        };
        self.exchange.open.record.upstream = Some(picked.picked.destination.clone());
        let client = Rc::clone(&self.exchange.open.client);
        let tls = origination(self.plan.cluster, &Spoken::Http);
        let wire = self.wire(self.plan.cluster);
        let identity = client.identity(self.plan.cluster, tls, || self.server_name(), wire);
        let host = client.host(self.set, policy, &picked.picked, &identity);
        let mut place = (picked, host);
        let mut reconnects = 0;
        let mut want = if retry::idempotent(&self.outgoing.method) && self.can_repeat() {
            Want::Open
        } else {
            Want::Checked
        };
        loop {
            let reach = client.reach(tls);
            let (acquired, other) = self.acquire(&place, &identity, reach, want).await;
            if let Some(other) = other {
                place = other;
                self.exchange.open.record.upstream = Some(place.0.picked.destination.clone());
            }
            let picked = &place.0;
            let mut lease = acquired.map_err(|error| Failure::acquire(&error))?;
            self.exchange.open.record.upstream_local = lease.local();
            self.exchange.open.record.security = lease.security();
            let body = match self.upload {
                Some(upload) => RequestBody::upload(upload),
                None => RequestBody::empty(),
            };
            let attempt = client.worker.settings.attempt_count;
            let attempt = attempt.then_some(self.exchange.open.record.attempts);
            let mut head = self.outgoing.head(identity.tls.is_some(), attempt);
            head.credential = credential.as_ref().map(|(name, value)| (*name, value));
            let timed = client.logs() || client.worker.settings.service_time;
            let sent = timed.then(Instant::now);
            let error = match lease.send(&head, body).await {
                Ok(head) => {
                    self.exchange.open.record.service_time = sent.map(|sent| sent.elapsed());
                    let grpc = retry::grpc_status(&head.headers);
                    picked.picked.report(match grpc {
                        Some(status) => Outcome::GrpcStatus(status),
                        None => Outcome::Status(head.status.as_u16()),
                    });
                    return Ok(Answer {
                        head,
                        lease,
                        picked: place.0,
                        grpc,
                        retry_permit: None,
                    });
                }
                Err(error) => error,
            };
            let details = error.to_string();
            let failure = error.failure;
            // A connection that lay idle may have been closed by the service
            // just now; that says nothing about the request.
            let stale = lease.reused()
                && match failure {
                    SendFailure::Unsent | SendFailure::Refused => true,
                    SendFailure::Closed => retry::idempotent(&self.outgoing.method),
                    _ => false,
                };
            if stale && reconnects < RECONNECTS && self.can_repeat() {
                reconnects += 1;
                want = if failure != SendFailure::Unsent || reconnects == RECONNECTS {
                    Want::Fresh
                } else {
                    Want::Checked
                };
                self.exchange.open.record.reconnects += 1;
                tracing::debug!(%details, "a stale connection is replaced");
                continue;
            }
            picked.picked.report(match failure {
                SendFailure::RequestBody => Outcome::Cancelled,
                _ => Outcome::Reset,
            });
            return Err(Failure::send(failure, details));
        }
    }

    /// An endpoint; waits for the first resolution of its name, if need be.
    async fn pick(&self, tried: &[EndpointId]) -> Result<Picked, Failure> {
        let context = self.pick_context(tried);
        let picked = match self.set.pick(&context) {
            Err(PickError::Unresolved) => {
                let most = self.plan.cluster.policy.connection_pool.connect_timeout;
                let _ = timeout(most, Box::pin(self.set.resolved(context.host))).await;
                self.set.pick(&context)
            }
            picked => picked,
        };
        picked.map_err(|error| Failure::pick(error, self.set.explain(error, context.host)))
    }

    pub(super) fn pick_context<'a>(&'a self, tried: &'a [EndpointId]) -> PickContext<'a> {
        let caller = &self.exchange.open.client.caller;
        PickContext {
            client: &caller.client,
            original: caller.original,
            host: &self.bound.host,
            hash: self.hash,
            tried,
            remote_localities: self.plan.retries.remote_localities,
        }
    }

    /// The host of the request as it leaves.
    fn server_name(&self) -> Arc<str> {
        let authority = self.outgoing.authority.to_str().unwrap_or_default();
        let name = without_port(authority);
        let name = name.strip_suffix('.').unwrap_or(name);
        if name.eq_ignore_ascii_case(&self.bound.host) {
            Arc::clone(&self.bound.host)
        } else {
            name.to_ascii_lowercase().into()
        }
    }

    fn wire(&self, cluster: &Cluster) -> Wire {
        if self.outgoing.upgrade.is_some() {
            return Wire::Http1;
        }
        let http2 = match cluster.policy.connection_pool.http_version {
            UpstreamHttp::Upgrade => true,
            UpstreamHttp::SameAsClient => self.outgoing.version == http::Version::HTTP_2,
            UpstreamHttp::ByPort => {
                matches!(cluster.target.protocol, Protocol::Http2 | Protocol::Grpc)
            }
        };
        if http2 { Wire::Http2 } else { Wire::Http1 }
    }
}

impl<S: ServiceStream> Answer<S> {
    fn end(&self) -> TryEnd {
        TryEnd::Response {
            status: self.head.status,
            grpc: self.grpc,
        }
    }
}

/// An answer that nobody will see. Its connection is worth reading a short
/// rest for.
fn discard<S: ServiceStream>(answer: Answer<S>) {
    /// Most of an unwanted answer that is read.
    const MOST: u64 = 64 * 1024;
    const LONGEST: Duration = Duration::from_secs(1);
    let mut lease = answer.lease;
    if lease.is_end_stream() {
        lease.give_back(Instant::now());
    } else if lease.size_hint().upper().is_some_and(|size| size <= MOST) {
        tokio::task::spawn_local(async move {
            let rest = poll_fn(|cx| {
                loop {
                    match ready!(lease.poll_frame(cx)) {
                        Some(Ok(_)) => {}
                        Some(Err(_)) => return Poll::Ready(false),
                        None => return Poll::Ready(true),
                    }
                }
            });
            if timeout(LONGEST, rest).await == Ok(true) {
                lease.give_back(Instant::now());
            }
        });
    }
}

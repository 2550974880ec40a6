//! A connection for one try, over the address family that answers.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::sleep;

use super::ServiceStream;
use super::tries::{Judged, Tries};
use super::upload::RequestBody;
use crate::connect::pool::{AcquireError, Host, Identity, Lease, Reach, Want};

/// How long an address has to itself (RFC 8305 section 5 recommends this).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

type Acquired<S> = Result<Lease<RequestBody, S>, AcquireError>;
/// An endpoint and its part of the pool.
pub(super) type Place<S> = (Judged, Rc<Host<RequestBody, S>>);

impl<S: ServiceStream> Tries<'_, S> {
    /// A connection to the endpoint of `place`, or, where that does not answer
    /// for a moment, to the other address family of its name: then that place
    /// is returned as well. A failure is told to its endpoint.
    pub(super) async fn acquire(
        &self,
        place: &Place<S>,
        identity: &Identity,
        reach: Reach<'_>,
        want: Want,
    ) -> (Acquired<S>, Option<Place<S>>) {
        let (picked, host) = place;
        let mut first = pin!(host.acquire(&picked.picked, reach, want));
        let polled = poll_fn(|cx| Poll::Ready(first.as_mut().poll(cx))).await;
        if let Poll::Ready(lease) = polled {
            return (told(picked, lease), None);
        }
        // Boxed: rare, and it must not make every request's future larger.
        Box::pin(self.race(picked, first, identity, reach, want)).await
    }

    async fn race(
        &self,
        picked: &Judged,
        mut first: Pin<&mut impl Future<Output = Acquired<S>>>,
        identity: &Identity,
        reach: Reach<'_>,
        want: Want,
    ) -> (Acquired<S>, Option<Place<S>>) {
        let other = tokio::select! {
            biased;
            lease = &mut first => return (told(picked, lease), None),
            () = sleep(ATTEMPT_DELAY) => self.sibling(picked),
        };
        let Some(other) = other else {
            return (told(picked, first.await), None);
        };
        let policy = &self.plan.cluster.policy;
        let client = &self.exchange.open.client;
        let host = client.host(self.set, policy, &other.picked, identity);
        let lease = {
            let mut second = pin!(host.acquire(&other.picked, reach, want));
            tokio::select! {
                biased;
                lease = &mut first => match told(picked, lease) {
                    Err(_) => told(&other, second.await),
                    lease => return (lease, None),
                },
                lease = &mut second => match told(&other, lease) {
                    Err(_) => return (told(picked, first.await), None),
                    lease => lease,
                },
            }
        };
        (lease, Some((other, host)))
    }

    /// An endpoint of the other address family. None while places under
    /// `maxConnections` are short, which is another reason for a wait.
    fn sibling(&self, picked: &Judged) -> Option<Judged> {
        if self.hash.is_some() || self.set.connections_wanted() > 0 {
            return None;
        }
        let context = self.pick_context(&[]);
        let other = self.set.pick_sibling(&context, &picked.picked.endpoint)?;
        Some(Judged {
            picked: other,
            timed_out: self.timed_out.clone(),
        })
    }
}

fn told<S: ServiceStream>(picked: &Judged, lease: Acquired<S>) -> Acquired<S> {
    if let Err(AcquireError::Dial(dial)) = &lease {
        picked.picked.report(dial.outcome);
    }
    lease
}

//! `mirror` and `mirrors`: copies of a request whose answers do not matter,
//! and which the request itself never waits for.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout};

use super::ServiceStream;
use super::client::Bound;
use super::exchange::Exchange;
use super::outgoing::Outgoing;
use super::upload::{RequestBody, Upload};
use crate::connect::origination;
use crate::connect::pool::{Version as Wire, Want};
use crate::endpoint::{Outcome, PickContext};
use crate::identify::Spoken;
use crate::policy::routes::{Mirror, Target};
use crate::policy::snapshot::Cluster;
use crate::route::http::hit;

/// Copies under way in one worker; more are not sent.
const MOST: u32 = 256;
/// How long a copy may take.
const LONGEST: Duration = Duration::from_secs(15);

thread_local! {
    static UNDER_WAY: Cell<u32> = const { Cell::new(0) };
}

/// One copy under way.
struct Place;

impl Place {
    fn take() -> Option<Self> {
        let taken = UNDER_WAY.get();
        (taken < MOST).then(|| {
            UNDER_WAY.set(taken + 1);
            Self
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        UNDER_WAY.set(UNDER_WAY.get().saturating_sub(1));
    }
}

/// The mirrors that this request goes to.
pub(super) fn drawn(mirrors: &[Mirror]) -> Vec<Arc<Cluster>> {
    mirrors
        .iter()
        .filter(|mirror| hit(mirror.share))
        .filter_map(|mirror| match &mirror.target {
            Target::Cluster(cluster) => Some(Arc::clone(cluster)),
            Target::Missing(_) => None,
        })
        .collect()
}

/// Sends copies to `clusters`, each by a task of its own. A request with a
/// body is copied once its body is here, and only if it was small enough to
/// be kept.
pub(super) fn send<S: ServiceStream>(
    exchange: &Exchange<S>,
    bound: &Rc<Bound>,
    clusters: &[Arc<Cluster>],
    outgoing: &Outgoing,
    upload: Option<&Rc<Upload>>,
) {
    for cluster in clusters {
        let (Some(place), Some(shadow)) = (Place::take(), outgoing.shadow()) else {
            tracing::debug!("a mirrored request is left out: too many under way");
            continue;
        };
        let client = Rc::clone(&exchange.open.client);
        let (bound, cluster) = (Rc::clone(bound), Arc::clone(cluster));
        let upload = upload.cloned();
        spawn_local(async move {
            let work = async {
                let body = match &upload {
                    None => Bytes::new(),
                    Some(upload) => {
                        poll_fn(|cx| upload.poll_ended(cx)).await;
                        let Some(body) = upload.kept() else { return };
                        body
                    }
                };
                copy(&client, &bound, &cluster, shadow, body).await;
            };
            if timeout(LONGEST, work).await.is_err() {
                tracing::debug!("a mirrored request took too long");
            }
            drop(place);
        });
    }
}

async fn copy<S: ServiceStream>(
    client: &Rc<super::client::Client<S>>,
    bound: &Bound,
    cluster: &Arc<Cluster>,
    mut shadow: Outgoing,
    body: Bytes,
) {
    let Ok(credential) = client.credential(cluster) else {
        return;
    };
    if let Some((name, _)) = &credential {
        shadow.remove(name);
    }
    let Some(set) = bound.set(cluster.index) else {
        return;
    };
    let context = PickContext {
        client: &client.caller.client,
        original: client.caller.original,
        host: &bound.host,
        hash: None,
        tried: &[],
        remote_localities: false,
    };
    let Ok(_permit) = set.request_permit() else {
        return;
    };
    let Ok(picked) = set.pick(&context) else {
        return;
    };
    let host = &cluster.target.host;
    let name = host
        .exact()
        .cloned()
        .unwrap_or_else(|| Arc::clone(&bound.host));
    let policy = &cluster.policy;
    let tls = origination(cluster, &Spoken::Http);
    let identity = client.identity(cluster, tls, || name, Wire::Http1);
    let host = client.worker.pool.host(set, policy, &picked, &identity);
    let Ok(mut lease) = host
        .acquire(&picked, client.reach(tls), Want::Checked)
        .await
    else {
        return;
    };
    let mut head = shadow.head(identity.tls.is_some(), None);
    head.credential = credential.as_ref().map(|(name, value)| (*name, value));
    if let Ok(response) = lease.send(&head, RequestBody::full(body)).await {
        picked.report(Outcome::Status(response.status.as_u16()));
        let whole = poll_fn(|cx| {
            loop {
                match ready!(lease.poll_frame(cx)) {
                    Some(Ok(_)) => {}
                    Some(Err(_)) => return Poll::Ready(false),
                    None => return Poll::Ready(true),
                }
            }
        });
        if whole.await {
            lease.give_back(Instant::now());
        }
    }
}

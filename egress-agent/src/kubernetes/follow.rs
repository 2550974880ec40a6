//! Lists and watches a set of objects for ever, so that no change is missed.
//!
//! A list gives the resource version from which the watch goes on; bookmarks
//! move it forward while nothing changes. When the server no longer has what
//! came after it (410 Gone, as a status or in the stream), everything is listed
//! again. A stream that ends or breaks is opened again from the last version
//! seen. Every failure waits longer than the one before, and a server that
//! closes each stream at once counts as failing, so that nothing here turns in
//! circles.

use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use futures_util::TryStreamExt;
use kube::Api;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::Resource;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout};

use super::KubernetesError;
use super::backoff::Backoff;
use super::health::Row;

/// Objects in one page of a list, as client-go asks for.
const PAGE: u32 = 500;
/// Time for one page.
const LIST_DEADLINE: Duration = Duration::from_mins(1);
/// Time for a watch to be opened.
const WATCH_DEADLINE: Duration = Duration::from_secs(30);
/// Silence after which a stream is taken for dead. Servers send a bookmark
/// about once a minute.
const SILENCE: Duration = Duration::from_secs(150);
/// The server is asked to end each stream after this long or up to twice.
const STREAM: u32 = 240;
/// A stream that lived this long was good.
const LIVED: Duration = Duration::from_secs(10);

/// What happened to the set.
#[derive(Debug)]
pub enum Event<K> {
    /// It is exactly this.
    Listed(Vec<K>),
    /// This one is new or other than before.
    Applied(K),
    /// This one is gone.
    Deleted(K),
}

/// The server does not serve this kind (404).
#[derive(Debug)]
pub struct NotServed;

/// Why a stream ended.
enum End {
    /// As streams do; go on from the same version.
    Closed,
    /// List again.
    Gone(KubernetesError),
    /// Go on from the same version, later.
    Failed(KubernetesError, Option<Duration>),
    NotServed,
}

impl From<kube::Error> for End {
    fn from(error: kube::Error) -> Self {
        let pause = match &error {
            kube::Error::Api(status) => status
                .details
                .as_ref()
                .map(|details| u64::from(details.retry_after_seconds))
                .filter(|seconds| *seconds > 0)
                .map(|seconds| Duration::from_secs(seconds.min(60))),
            _ => None,
        };
        let error = KubernetesError::from(error);
        match (&error, error.status()) {
            (_, Some(404)) => Self::NotServed,
            (_, Some(410)) => Self::Gone(error),
            // The same event would come again.
            (KubernetesError::Malformed(_), _) => Self::Gone(error),
            _ => Self::Failed(error, pause),
        }
    }
}

/// Follows the objects of `api` that `fields` (a field selector) chooses, and
/// hands each change to `take`.
///
/// Ends only when the server does not serve the kind. Nothing is lost when
/// this is dropped and called anew: it lists again.
pub async fn follow<K>(
    api: &Api<K>,
    fields: Option<&str>,
    row: &Row,
    mut take: impl FnMut(Event<K>),
) -> NotServed
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let mut backoff = Backoff::default();
    let mut version: Option<String> = None;
    loop {
        let began = Instant::now();
        let mut good = false;
        let end = match &mut version {
            None => match list(api, fields).await {
                Ok((objects, listed)) => {
                    row.listed();
                    good = true;
                    version = Some(listed);
                    take(Event::Listed(objects));
                    End::Closed
                }
                Err(end) => end,
            },
            Some(version) => {
                let (end, moved) = stream(api, fields, version, row, &mut take).await;
                good |= moved || began.elapsed() >= LIVED;
                end
            }
        };
        if good {
            backoff.reset();
        }
        let pause = match end {
            End::Closed if good => None,
            End::Closed => Some(backoff.wait()),
            End::Gone(error) => {
                tracing::debug!(what = %row.what(), "listing again: {error}");
                version = None;
                // The first time at once: a gap is being closed.
                if backoff.failures() == 0 {
                    backoff.wait();
                    None
                } else {
                    row.failed(&error.to_string());
                    Some(backoff.wait())
                }
            }
            End::Failed(error, pause) => {
                let wait = backoff.wait();
                if backoff.failures() == 1 {
                    tracing::warn!(what = %row.what(), "{error}");
                } else {
                    tracing::debug!(what = %row.what(), "{error}");
                }
                if error.status() == Some(403) {
                    row.refused(&error.to_string());
                } else {
                    row.failed(&error.to_string());
                }
                Some(wait.max(pause.unwrap_or_default()))
            }
            End::NotServed => return NotServed,
        };
        if let Some(pause) = pause {
            sleep(pause).await;
        }
    }
}

/// Every object, page by page, and the version of the list.
async fn list<K>(api: &Api<K>, fields: Option<&str>) -> Result<(Vec<K>, String), End>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let mut objects = Vec::new();
    let mut parameters = ListParams {
        field_selector: fields.map(Into::into),
        limit: Some(PAGE),
        ..ListParams::default()
    };
    loop {
        let page = timeout(LIST_DEADLINE, api.list(&parameters))
            .await
            .map_err(|_| End::Failed(KubernetesError::Slow("a list"), None))??;
        objects.extend(page.items);
        let next = page.metadata.continue_.filter(|token| !token.is_empty());
        if next.is_some() {
            parameters.continue_token = next;
            continue;
        }
        let version = page.metadata.resource_version.filter(|v| !v.is_empty());
        let version = version.ok_or_else(|| {
            let why = "a list without a resourceVersion";
            End::Failed(KubernetesError::Malformed(why.into()), None)
        })?;
        return Ok((objects, version));
    }
}

/// Opens a stream and hands on what comes, moving `version` forward. How it
/// ended, and whether anything came.
async fn stream<K>(
    api: &Api<K>,
    fields: Option<&str>,
    version: &mut String,
    row: &Row,
    take: &mut impl FnMut(Event<K>),
) -> (End, bool)
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let parameters = WatchParams {
        field_selector: fields.map(Into::into),
        // Not all agents of a cluster at the same time.
        timeout: Some(fastrand::u32(STREAM..2 * STREAM)),
        bookmarks: true,
        ..WatchParams::default()
    };
    let opened = timeout(WATCH_DEADLINE, api.watch(&parameters, version)).await;
    let events = match opened {
        Err(_) => return (End::Failed(KubernetesError::Slow("a watch"), None), false),
        Ok(Err(error)) => return (error.into(), false),
        Ok(Ok(events)) => events,
    };
    row.watching();
    let mut events = pin!(events);
    let mut moved = false;
    loop {
        let event = match timeout(SILENCE, events.try_next()).await {
            // A proxy between may have lost the connection.
            Err(_) => return (End::Closed, moved),
            Ok(Ok(None)) => return (End::Closed, moved),
            Ok(Err(error)) => return (error.into(), moved),
            Ok(Ok(Some(event))) => event,
        };
        let seen = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                let seen = object.meta().resource_version.clone();
                take(Event::Applied(object));
                seen
            }
            WatchEvent::Deleted(object) => {
                let seen = object.meta().resource_version.clone();
                take(Event::Deleted(object));
                seen
            }
            WatchEvent::Bookmark(bookmark) => Some(bookmark.metadata.resource_version),
            WatchEvent::Error(status) => return (kube::Error::Api(status).into(), moved),
        };
        let Some(seen) = seen.filter(|seen| !seen.is_empty()) else {
            let why = KubernetesError::Malformed("an object without a resourceVersion".into());
            return (End::Gone(why), moved);
        };
        *version = seen;
        moved = true;
        row.contact();
    }
}

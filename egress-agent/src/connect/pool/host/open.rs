//! Requests that find no connection: they queue for one that becomes free, and
//! open a new one where the limits allow it.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::super::conn::Places;
use super::super::error::{AcquireError, DialError};
use super::super::lease::{Held, Http1, Http2, Lease};
use super::super::{DialRequest, Dialled, Io, PENDING_TIMEOUT, Payload, Reach, Version};
use super::super::{http1, http2};
use super::{Host, Want};
use crate::endpoint::{ConnectionGuard, Outcome, Permit, Picked};
use crate::flag::Side;

/// While a request waits for a place under `maxConnections`, other workers may
/// give one back without our being told; so it is asked for again.
const PERMIT_POLL: Duration = Duration::from_millis(20);

impl<B, S: Io> Host<B, S>
where
    B: Payload,
{
    /// A connection as soon as one is free, or there is a place for a new one.
    pub(super) async fn wait(
        self: &Rc<Self>,
        picked: &Picked,
        reach: Reach<'_>,
        want: Want,
    ) -> Result<Lease<B, S>, AcquireError> {
        let _pending = self.set.pending_permit().map_err(AcquireError::Overflow)?;
        let _waiting = Counted::new(&self.waiting);
        let started = Instant::now();
        let deadline = started + PENDING_TIMEOUT;
        // Set while only a place under `maxConnections` is missing.
        let mut wanted = None;
        loop {
            let notified = self.wake.notified();
            if want != Want::Fresh
                && let Some(lease) = self.take(want)
            {
                return Ok(lease);
            }
            if self.may_open() {
                if let Ok((permit, guard)) = self.set.connection_permit_for(&picked.endpoint) {
                    return self.open(picked, reach, permit, guard).await;
                }
                if self
                    .pool
                    .upgrade()
                    .is_some_and(|pool| pool.evict(&self.set))
                {
                    // An HTTP/2 connection gives its place back when its task
                    // has ended.
                    tokio::task::yield_now().await;
                    continue;
                }
                if wanted.is_none() {
                    wanted = Some(self.set.want_connection());
                }
                self.set.ask_for_connection();
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(AcquireError::Waited(now - started));
            }
            let again = (now + PERMIT_POLL).min(deadline);
            tokio::select! {
                () = notified => {}
                () = sleep_until(again) => {}
            }
        }
    }

    /// HTTP/2: the streams of one connection under way serve many requests, so
    /// no second one is opened meanwhile.
    fn may_open(&self) -> bool {
        self.key.identity.version == Version::Http1
            || self.only_http1.get()
            || self.opening.get() == 0
    }

    async fn open(
        self: &Rc<Self>,
        picked: &Picked,
        reach: Reach<'_>,
        permit: Permit,
        guard: ConnectionGuard,
    ) -> Result<Lease<B, S>, AcquireError> {
        let _opening = Counted::new(&self.opening);
        // Whoever waits for this connection must look again, however it ends.
        let _wake = Wake(&self.wake);
        let pool = self.pool.upgrade().ok_or(AcquireError::Closing)?;
        let dialled = pool
            .dialler()
            .dial(DialRequest {
                picked,
                policy: &self.policy,
                identity: &self.key.identity,
                reach,
            })
            .await
            .map_err(AcquireError::Dial)?;
        let places = Places::new(permit, guard, &self.wake);
        self.start(dialled, places).await.map_err(|error| {
            let message = format!("HTTP/2 with {:?}: {error}", picked.destination);
            AcquireError::Dial(DialError {
                outcome: Outcome::ConnectFailed,
                side: Side::Upstream,
                elsewhere: true,
                message: message.into(),
            })
        })
    }

    async fn start(
        self: &Rc<Self>,
        dialled: Dialled<S>,
        places: Places,
    ) -> Result<Lease<B, S>, h2::Error> {
        let wanted = self.key.identity.version == Version::Http2;
        let opened = Instant::now();
        // Without ALPN (cleartext) HTTP/2 is spoken by prior knowledge.
        if wanted && dialled.http2.unwrap_or(true) {
            let connection = http2::Connection::start(dialled.io, self.limits(), places).await?;
            let connection = Rc::new(Http2 {
                connection,
                local: dialled.local,
                security: dialled.security,
                replaced: dialled.replaced,
                opened,
                since: Cell::new(opened),
                requests: Cell::new(0),
                streams: Cell::new(0),
                draining: Cell::new(self.retired.get()),
            });
            self.count_http2(&connection);
            if !connection.draining.get() {
                self.http2.borrow_mut().push(Rc::clone(&connection));
            }
            return Ok(Lease::new(self, Held::Http2(connection, None), false));
        }
        self.only_http1.set(wanted);
        let http1 = Box::new(Http1 {
            connection: http1::Connection::new(dialled.io),
            local: dialled.local,
            security: dialled.security,
            replaced: dialled.replaced,
            opened,
            since: opened,
            requests: 0,
            places,
        });
        Ok(Lease::new(self, Held::Http1(http1), false))
    }
}

/// Counts one up while it lives.
struct Counted<'a>(&'a Cell<u32>);

impl<'a> Counted<'a> {
    fn new(count: &'a Cell<u32>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// Wakes everyone in the queue when dropped.
struct Wake<'a>(&'a Notify);

impl Drop for Wake<'_> {
    fn drop(&mut self) {
        self.0.notify_waiters();
    }
}

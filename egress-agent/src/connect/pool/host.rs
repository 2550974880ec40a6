//! The connections to one address, for one kind of caller.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep_until};

use super::conn::{self, Places};
use super::error::{AcquireError, DialError};
use super::http1::Connection;
use super::lease::{Held, Http1, Http2, Lease};
use super::{DialRequest, Dialled, Identity, Io, Key, Payload, Pool, Reach, Version};
use crate::endpoint::resolved::Destination;
use crate::endpoint::{ConnectionGuard, Endpoint, EndpointSet, Outcome, Permit, Picked};
use crate::flag::Side;
use crate::policy::model::{ConnectionPool, TrafficPolicy};

/// While a request waits for a place under `maxConnections`, other workers may
/// give one back without our being told; so it is asked for again.
const PERMIT_POLL: Duration = Duration::from_millis(20);
/// How often idle connections are looked at for an address that vanished.
const GONE_POLL: Duration = Duration::from_secs(5);

/// What kind of connection a request wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Want {
    /// Any; should it turn out dead, the request can be sent again.
    Open,
    /// One that is not known to be dead.
    Checked,
    /// A new one.
    Fresh,
}

/// The connections to one address, for one kind of caller.
pub struct Host<B, S> {
    pool: Weak<Pool<B, S>>,
    key: Key,
    set: Arc<EndpointSet>,
    endpoint: Arc<Endpoint>,
    policy: Arc<TrafficPolicy>,
    /// Idle HTTP/1 connections; the one used last is used next, so that the
    /// rest can grow old.
    idle: RefCell<Vec<Box<Http1<B, S>>>>,
    http2: RefCell<Vec<Rc<Http2<B>>>>,
    /// Connections being opened.
    opening: Cell<u32>,
    /// Requests in the queue.
    waiting: Cell<u32>,
    wake: Rc<Notify>,
    /// Takes no connection back.
    retired: Cell<bool>,
    /// Wakes the task that closes idle connections; `None`: it does not run.
    reaper: RefCell<Option<Waker>>,
    /// The service answered ALPN without h2.
    only_http1: Cell<bool>,
}

impl<B, S> std::fmt::Debug for Host<B, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host")
            .field("destination", &self.key.destination)
            .field("idle", &self.idle.borrow().len())
            .field("http2", &self.http2.borrow().len())
            .field("waiting", &self.waiting.get())
            .finish_non_exhaustive()
    }
}

impl<B, S: Io> Host<B, S>
where
    B: Payload,
{
    pub(super) fn new(
        pool: Weak<Pool<B, S>>,
        key: Key,
        set: Arc<EndpointSet>,
        endpoint: Arc<Endpoint>,
        policy: Arc<TrafficPolicy>,
    ) -> Rc<Self> {
        Rc::new(Self {
            pool,
            key,
            set,
            endpoint,
            policy,
            idle: RefCell::default(),
            http2: RefCell::default(),
            opening: Cell::new(0),
            waiting: Cell::new(0),
            wake: Rc::new(Notify::new()),
            retired: Cell::new(false),
            reaper: RefCell::new(None),
            only_http1: Cell::new(false),
        })
    }

    pub(super) const fn key(&self) -> &Key {
        &self.key
    }

    /// Whether connections made here fit `policy`, and the address is still
    /// one of the service's.
    pub(super) fn serves(&self, policy: &Arc<TrafficPolicy>) -> bool {
        !self.endpoint.is_gone() && (Arc::ptr_eq(&self.policy, policy) || *self.policy == **policy)
    }

    /// Whether this is the host for a pick, and takes requests.
    pub fn is_for(
        &self,
        set: &Arc<EndpointSet>,
        policy: &Arc<TrafficPolicy>,
        destination: &Destination,
        identity: &Identity,
    ) -> bool {
        !self.retired.get()
            && !self.endpoint.is_gone()
            && Arc::ptr_eq(&self.set, set)
            && Arc::ptr_eq(&self.policy, policy)
            && self.key.destination == *destination
            && self.key.identity == *identity
    }

    fn limits(&self) -> &ConnectionPool {
        &self.policy.connection_pool
    }

    /// Closes what is idle and takes nothing back.
    pub(super) fn retire(&self) {
        self.retired.set(true);
        for http1 in self.idle.take() {
            http1.connection.close();
        }
        for connection in self.http2.borrow_mut().drain(..) {
            connection.draining.set(true);
        }
        self.wake.notify_waiters();
    }

    /// Closes the connection that has been idle longest.
    pub(super) fn close_one_idle(&self) -> bool {
        let mut idle = self.idle.borrow_mut();
        if !idle.is_empty() {
            idle.remove(0).connection.close();
            return true;
        }
        drop(idle);
        let mut http2 = self.http2.borrow_mut();
        match http2.iter().position(|c| c.streams.get() == 0) {
            Some(at) => {
                drop(http2.remove(at));
                true
            }
            None => false,
        }
    }

    /// A connection for one request: one that is open, or a new one, or the
    /// next that becomes free.
    ///
    /// # Errors
    /// [`AcquireError`].
    pub async fn acquire(
        self: &Rc<Self>,
        picked: &Picked,
        reach: Reach<'_>,
        want: Want,
    ) -> Result<Lease<B, S>, AcquireError> {
        if want != Want::Fresh
            && self.waiting.get() == 0
            && let Some(lease) = self.take(want)
        {
            return Ok(lease);
        }
        // Boxed: rare, and it must not make every request's future larger.
        Box::pin(self.wait(picked, reach, want)).await
    }

    /// An open connection with room.
    fn take(self: &Rc<Self>, want: Want) -> Option<Lease<B, S>> {
        let limits = self.limits();
        if self.key.identity.version == Version::Http2 && !self.only_http1.get() {
            let mut connections = self.http2.borrow_mut();
            connections.retain(|c| !c.sender.is_closed() && !c.draining.get());
            let found = connections.iter().find(|connection| {
                // What the service allows, as far as it has said so.
                let room = connection.room.get().min(limits.max_concurrent_streams);
                connection.streams.get() < room.max(1)
            })?;
            let connection = Rc::clone(found);
            drop(connections);
            self.count_http2(&connection);
            return Some(Lease::new(self, Held::Http2(connection, None), true));
        }
        loop {
            let mut http1 = self.idle.borrow_mut().pop()?;
            let mut cx = Context::from_waker(Waker::noop());
            // The task that watches idle connections may be about to learn of
            // a close that this one knows already.
            let alive = want == Want::Open || http1.connection.poll_idle(&mut cx).is_pending();
            if alive && !self.too_old(http1.opened) {
                return Some(Lease::new(self, Held::Http1(http1), true));
            }
            http1.connection.close();
        }
    }

    fn too_old(&self, opened: Instant) -> bool {
        self.limits()
            .max_connection_duration
            .is_some_and(|longest| opened.elapsed() >= longest)
    }

    /// A stream is about to begin on `connection`: after the last one that is
    /// allowed it takes no more.
    fn count_http2(&self, connection: &Rc<Http2<B>>) {
        let last = self
            .limits()
            .max_requests_per_connection
            .is_some_and(|most| connection.requests.get() + 1 >= most);
        if last || self.too_old(connection.opened) {
            connection.draining.set(true);
        }
    }

    async fn wait(
        self: &Rc<Self>,
        picked: &Picked,
        reach: Reach<'_>,
        want: Want,
    ) -> Result<Lease<B, S>, AcquireError> {
        let _pending = self.set.pending_permit().map_err(AcquireError::Overflow)?;
        let _waiting = Counted::new(&self.waiting);
        let started = Instant::now();
        let deadline = started + super::PENDING_TIMEOUT;
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
    ) -> hyper::Result<Lease<B, S>> {
        let wanted = self.key.identity.version == Version::Http2;
        let opened = Instant::now();
        // Without ALPN (cleartext) HTTP/2 is spoken by prior knowledge.
        if wanted && dialled.http2.unwrap_or(true) {
            let (sender, room) = conn::http2(dialled.io, self.limits(), places).await?;
            let connection = Rc::new(Http2 {
                sender,
                room,
                local: dialled.local,
                security: dialled.security,
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
            connection: Connection::new(dialled.io),
            local: dialled.local,
            security: dialled.security,
            opened,
            since: opened,
            requests: 0,
            places,
        });
        Ok(Lease::new(self, Held::Http1(http1), false))
    }

    /// Takes a connection back whose response has ended.
    pub(super) fn put(self: &Rc<Self>, mut http1: Box<Http1<B, S>>, now: Instant) {
        let used_up = self
            .limits()
            .max_requests_per_connection
            .is_some_and(|most| http1.requests >= most);
        if used_up
            || self.retired.get()
            || self.endpoint.is_gone()
            || self.is_wanted_elsewhere()
            || !http1.connection.is_reusable()
            || self.too_old(http1.opened)
        {
            http1.connection.close();
            return;
        }
        http1.since = now;
        self.reap();
        if let Some(waker) = &*self.reaper.borrow() {
            let mut cx = Context::from_waker(waker);
            if http1.connection.poll_idle(&mut cx).is_ready() {
                http1.connection.close();
                return;
            }
        }
        self.idle.borrow_mut().push(http1);
        if self.waiting.get() > 0 {
            self.wake.notify_one();
        }
    }

    /// Whether a free connection goes to a request that waits elsewhere (at
    /// another worker, for another address): by lot, so that each waits its
    /// share.
    fn is_wanted_elsewhere(&self) -> bool {
        let wanted = self.set.connections_wanted();
        wanted > 0 && fastrand::u32(..wanted) >= self.waiting.get()
    }

    /// A stream of an HTTP/2 connection has ended.
    pub(super) fn stream_ended(self: &Rc<Self>, connection: &Rc<Http2<B>>) {
        if connection.streams.get() == 0 {
            connection.since.set(Instant::now());
            if connection.draining.get() || connection.sender.is_closed() {
                self.http2
                    .borrow_mut()
                    .retain(|one| !Rc::ptr_eq(one, connection));
            } else {
                self.reap();
            }
        }
        if self.waiting.get() > 0 {
            self.wake.notify_one();
        }
    }

    /// Starts the task that closes idle connections, if it does not run.
    fn reap(self: &Rc<Self>) {
        if self.reaper.borrow().is_some() {
            return;
        }
        // Until the task has run for the first time.
        *self.reaper.borrow_mut() = Some(Waker::noop().clone());
        let (host, set) = (Rc::downgrade(self), Arc::clone(&self.set));
        let mut asked = Box::pin(set.connection_asked_for());
        let mut timer = Box::pin(sleep_until(Instant::now()));
        spawn_local(poll_fn(move |cx| {
            let Some(host) = host.upgrade() else {
                return Poll::Ready(());
            };
            while asked.as_mut().poll(cx).is_ready() {
                asked.set(set.connection_asked_for());
                if host.is_wanted_elsewhere() {
                    host.close_one_idle();
                }
            }
            loop {
                *host.reaper.borrow_mut() = Some(cx.waker().clone());
                let Some(next) = host.sweep(cx) else {
                    *host.reaper.borrow_mut() = None;
                    // Two hands: this task's and the pool's.
                    if Rc::strong_count(&host) <= 2
                        && let Some(pool) = host.pool.upgrade()
                    {
                        pool.forget(&host);
                    }
                    return Poll::Ready(());
                };
                timer.as_mut().reset(next);
                if timer.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
            }
        }));
    }

    /// Closes idle connections that the service has closed, or that have been
    /// idle for too long. Returns when to look again, `None`: nothing is idle.
    /// The task is woken earlier when something happens on one of them.
    fn sweep(&self, cx: &mut Context<'_>) -> Option<Instant> {
        let now = Instant::now();
        let longest = self.limits().http_idle_timeout;
        // An address that vanished (from DNS, or from the policy) gets no
        // further request; what is under way may end.
        let gone = self.endpoint.is_gone();
        let stays = |since: Instant| !gone && longest.is_none_or(|longest| now < since + longest);
        let mut idle = self.idle.borrow_mut();
        let mut at = 0;
        while at < idle.len() {
            let http1 = &mut idle[at];
            if stays(http1.since) && http1.connection.poll_idle(cx).is_pending() {
                at += 1;
            } else {
                idle.remove(at).connection.close();
            }
        }
        let mut http2 = self.http2.borrow_mut();
        http2.retain(|connection| {
            !connection.sender.is_closed()
                && (connection.streams.get() > 0 || stays(connection.since.get()))
        });
        let oldest = idle
            .iter()
            .map(|http1| http1.since)
            .chain(http2.iter().map(|http2| http2.since.get()))
            .min()?;
        // Without a timeout there is still the list to be kept short.
        let longest = longest.unwrap_or(Duration::from_hours(1));
        let next = (oldest + longest).min(now + GONE_POLL);
        Some(next.max(now + Duration::from_millis(100)))
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

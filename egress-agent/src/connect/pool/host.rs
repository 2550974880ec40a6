//! The connections to one address, for one kind of caller.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep_until};

use super::conn::{self, Places};
use super::error::{AcquireError, DialError};
use super::lease::{Held, Http1, Http2, Lease};
use super::{DialRequest, Dialled, Identity, Io, Key, Payload, Pool, Version};
use crate::endpoint::resolved::Destination;
use crate::endpoint::{ConnectionGuard, EndpointSet, Outcome, Permit, Picked};
use crate::flag::Side;
use crate::policy::model::{ConnectionPool, TrafficPolicy};

/// While a request waits for a place under `maxConnections`, other workers may
/// give one back without our being told; so it is asked for again.
const PERMIT_POLL: Duration = Duration::from_millis(20);

/// The connections to one address, for one kind of caller.
pub struct Host<B, S> {
    pool: Weak<Pool<B, S>>,
    key: Key,
    set: Arc<EndpointSet>,
    policy: Arc<TrafficPolicy>,
    /// Idle HTTP/1 connections; the one used last is used next, so that the
    /// rest can grow old.
    idle: RefCell<Vec<Http1<B, S>>>,
    http2: RefCell<Vec<Rc<Http2<B>>>>,
    /// Connections being opened.
    opening: Cell<u32>,
    /// Requests in the queue.
    waiting: Cell<u32>,
    wake: Notify,
    /// Takes no connection back.
    retired: Cell<bool>,
    /// The task that closes idle connections runs.
    reaping: Cell<bool>,
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
        policy: Arc<TrafficPolicy>,
    ) -> Rc<Self> {
        Rc::new(Self {
            pool,
            key,
            set,
            policy,
            idle: RefCell::default(),
            http2: RefCell::default(),
            opening: Cell::new(0),
            waiting: Cell::new(0),
            wake: Notify::new(),
            retired: Cell::new(false),
            reaping: Cell::new(false),
            only_http1: Cell::new(false),
        })
    }

    pub(super) const fn key(&self) -> &Key {
        &self.key
    }

    /// Whether connections made here fit `policy`.
    pub(super) fn serves(&self, policy: &Arc<TrafficPolicy>) -> bool {
        Arc::ptr_eq(&self.policy, policy) || *self.policy == **policy
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
        self.idle.take();
        for connection in self.http2.borrow_mut().drain(..) {
            connection.draining.set(true);
        }
        self.wake.notify_waiters();
    }

    /// Closes the connection that has been idle longest.
    pub(super) fn close_one_idle(&self) -> bool {
        let mut idle = self.idle.borrow_mut();
        if !idle.is_empty() {
            drop(idle.remove(0));
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
        fresh: bool,
    ) -> Result<Lease<B, S>, AcquireError> {
        if !fresh
            && self.waiting.get() == 0
            && let Some(lease) = self.take()
        {
            return Ok(lease);
        }
        // Boxed: rare, and it must not make every request's future larger.
        Box::pin(self.wait(picked, fresh)).await
    }

    /// An open connection with room.
    fn take(self: &Rc<Self>) -> Option<Lease<B, S>> {
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
            return Some(Lease::new(self, Held::Http2(connection), true));
        }
        loop {
            let connection = self.idle.borrow_mut().pop()?;
            if !connection.sender.is_closed() && !self.too_old(connection.opened) {
                return Some(Lease::new(self, Held::Http1(connection), true));
            }
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
        fresh: bool,
    ) -> Result<Lease<B, S>, AcquireError> {
        let _pending = self.set.pending_permit().map_err(AcquireError::Overflow)?;
        let _waiting = Counted::new(&self.waiting);
        let started = Instant::now();
        let deadline = started + super::PENDING_TIMEOUT;
        loop {
            let notified = self.wake.notified();
            if !fresh && let Some(lease) = self.take() {
                return Ok(lease);
            }
            if self.may_open() {
                match self.set.connection_permit_for(&picked.endpoint) {
                    Ok((permit, guard)) => return self.open(picked, permit, guard).await,
                    Err(_) => {
                        let evicted = self.pool.upgrade().is_some_and(|p| p.evict(&self.set));
                        if evicted {
                            // Its place comes back once its task has ended.
                            tokio::task::yield_now().await;
                        }
                    }
                }
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
            })
            .await
            .map_err(AcquireError::Dial)?;
        let places = Places {
            _permit: permit,
            _guard: guard,
        };
        self.start(dialled, places).await.map_err(|error| {
            AcquireError::Dial(DialError {
                outcome: Outcome::ConnectFailed,
                side: Side::Upstream,
                message: format!("HTTP handshake with {:?}: {error}", picked.destination).into(),
            })
        })
    }

    async fn start(
        self: &Rc<Self>,
        dialled: Dialled<S>,
        places: Places,
    ) -> hyper::Result<Lease<B, S>> {
        let host = Rc::downgrade(self);
        let closed = move || {
            if let Some(host) = host.upgrade() {
                host.wake.notify_one();
            }
        };
        let wanted = self.key.identity.version == Version::Http2;
        let opened = Instant::now();
        // Without ALPN (cleartext) HTTP/2 is spoken by prior knowledge.
        if wanted && dialled.http2.unwrap_or(true) {
            let (sender, room) = conn::http2(dialled.io, self.limits(), places, closed).await?;
            let connection = Rc::new(Http2 {
                sender,
                room,
                local: dialled.local,
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
            return Ok(Lease::new(self, Held::Http2(connection), false));
        }
        self.only_http1.set(wanted);
        let (sender, upgrade) = conn::http1(dialled.io, places, closed).await?;
        let connection = Http1 {
            sender,
            upgrade,
            local: dialled.local,
            opened,
            since: opened,
            requests: 0,
        };
        Ok(Lease::new(self, Held::Http1(connection), false))
    }

    /// Takes a connection back whose request and response are complete.
    pub(super) fn put(self: &Rc<Self>, mut connection: Http1<B, S>) {
        let used_up = self
            .limits()
            .max_requests_per_connection
            .is_some_and(|most| connection.requests >= most);
        if used_up
            || self.retired.get()
            || connection.sender.is_closed()
            || self.too_old(connection.opened)
        {
            drop(connection);
            return;
        }
        connection.since = Instant::now();
        self.idle.borrow_mut().push(connection);
        if self.waiting.get() > 0 {
            self.wake.notify_one();
        }
        self.reap();
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

    /// Sees to it that idle connections close in time, and that a host
    /// without any is forgotten. One task for all of them, which sleeps until
    /// the oldest is due, so that a request pays nothing for it.
    fn reap(self: &Rc<Self>) {
        if self.reaping.replace(true) {
            return;
        }
        let host = Rc::downgrade(self);
        let pool = self.pool.clone();
        // `0s` turns the timeout off; the task then only looks for closed ones.
        let longest = self
            .limits()
            .http_idle_timeout
            .unwrap_or(Duration::from_secs(3600));
        let off = self.limits().http_idle_timeout.is_none();
        spawn_local(async move {
            let mut next = Instant::now() + longest;
            loop {
                sleep_until(next).await;
                let Some(host) = host.upgrade() else { return };
                let now = Instant::now();
                let stays = |since: Instant| off || now < since + longest;
                let mut idle = host.idle.borrow_mut();
                idle.retain(|c| stays(c.since) && !c.sender.is_closed());
                let mut http2 = host.http2.borrow_mut();
                http2.retain(|c| {
                    !c.sender.is_closed() && (c.streams.get() > 0 || stays(c.since.get()))
                });
                let oldest = idle
                    .iter()
                    .map(|c| c.since)
                    .chain(http2.iter().map(|c| c.since.get()))
                    .min();
                let Some(oldest) = oldest else {
                    host.reaping.set(false);
                    drop((idle, http2));
                    // Two hands: this task's and the pool's.
                    if Rc::strong_count(&host) <= 2
                        && let Some(pool) = pool.upgrade()
                    {
                        pool.forget(&host);
                    }
                    return;
                };
                next = (oldest + longest).max(now + Duration::from_millis(100));
            }
        });
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

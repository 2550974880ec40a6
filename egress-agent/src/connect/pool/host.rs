//! The connections to one address, for one kind of caller.

mod idle;
mod open;

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Waker};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::error::AcquireError;
use super::lease::{Held, Http1, Http2, Lease};
use super::{Identity, Io, Key, Payload, Pool, Reach, Version};
use crate::endpoint::resolved::Destination;
use crate::endpoint::{Endpoint, EndpointSet, Picked};
use crate::policy::model::{ConnectionPool, TrafficPolicy};

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
    http2: RefCell<Vec<Rc<Http2>>>,
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
            connections
                .retain(|c| !c.connection.is_closed() && !c.draining.get() && !c.replaced.is_set());
            let found = connections.iter().find(|connection| {
                // What the service allows, as far as it has said so.
                let room = connection
                    .connection
                    .room()
                    .min(limits.max_concurrent_streams);
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
            if alive && !http1.replaced.is_set() && !self.too_old(http1.opened) {
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
    fn count_http2(&self, connection: &Rc<Http2>) {
        let last = self
            .limits()
            .max_requests_per_connection
            .is_some_and(|most| connection.requests.get() + 1 >= most);
        if last || self.too_old(connection.opened) {
            connection.draining.set(true);
        }
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
            || http1.replaced.is_set()
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
    pub(super) fn stream_ended(self: &Rc<Self>, connection: &Rc<Http2>) {
        if connection.streams.get() == 0 {
            connection.since.set(Instant::now());
            if connection.draining.get() || connection.connection.is_closed() {
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
}

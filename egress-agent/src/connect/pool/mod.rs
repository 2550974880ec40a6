//! Connections to services, kept between requests.
//!
//! Each worker has one [`Pool`] of its own, so nothing here is shared between
//! threads but the limits and counters of the endpoint set. A [`Host`] holds
//! what one address offers to one kind of caller: idle HTTP/1 connections, and
//! HTTP/2 connections with room for more streams. A request asks for a
//! [`Lease`], sends on it, and gives it back when its response has ended.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::capture::sockets::NetNs;
use crate::endpoint::resolved::Destination;
use crate::endpoint::{EndpointSet, Picked};
use crate::policy::model::{ClientTls, TrafficPolicy};
use crate::secret::Replaced;

mod conn;
mod dialler;
mod error;
mod head;
mod host;
mod http1;
mod http2;
mod lease;
mod trailers;

pub use conn::LocalExec;
pub use dialler::Dialler;
pub use error::{AcquireError, DialError, SendError, SendFailure};
pub use head::{Field, RequestHead};
pub use host::{Host, Want};
pub use lease::{Lease, Upgraded};

/// How long a request waits for a connection where neither route nor try has
/// a timeout.
pub const PENDING_TIMEOUT: Duration = Duration::from_mins(1);

/// What an upstream byte stream must offer.
pub trait Io: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static> Io for T {}

/// The body of a request, as it is sent. Its errors are the client's.
pub trait Payload:
    http_body::Body<Data = bytes::Bytes, Error = std::io::Error> + Unpin + 'static
{
}
impl<T> Payload for T where
    T: http_body::Body<Data = bytes::Bytes, Error = std::io::Error> + Unpin + 'static
{
}

/// HTTP version towards the service.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Version {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2: with prior knowledge in the clear; by ALPN over TLS, where a
    /// service that does not offer it gets HTTP/1.1.
    Http2,
}

/// What makes a connection unfit for another caller.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Identity {
    /// Network namespace whose addresses and routes the connection uses.
    pub netns: u64,
    /// With TLS: the namespace whose secrets are presented, and the name
    /// that is asked for and checked.
    pub tls: Option<(Arc<str>, Arc<str>)>,
    /// Version.
    pub version: Version,
    /// With the PROXY protocol: the application's address, which the service
    /// is told once for each connection.
    pub source: Option<SocketAddr>,
}

/// Which connections can stand for each other.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Key {
    /// The endpoint set, by address: sets outlive snapshots, and a host holds
    /// on to its own.
    set: usize,
    destination: Destination,
    identity: Identity,
}

/// How a new connection is made, beyond what its [`Identity`] says.
#[derive(Clone, Copy, Debug)]
pub struct Reach<'a> {
    /// The application's namespace; its cookie is the identity's.
    pub netns: &'a NetNs,
    /// The application's own address, for the PROXY header.
    pub source: SocketAddr,
    /// TLS to originate, if the identity says so.
    pub tls: Option<&'a ClientTls>,
}

/// What a dial is asked for.
#[derive(Clone, Copy, Debug)]
pub struct DialRequest<'a> {
    /// The endpoint.
    pub picked: &'a Picked,
    /// The policy that the connection is made under.
    pub policy: &'a Arc<TrafficPolicy>,
    /// Who it is for.
    pub identity: &'a Identity,
    /// How.
    pub reach: Reach<'a>,
}

/// A connection that is up, TLS included.
#[derive(Debug)]
pub struct Dialled<S> {
    /// The stream.
    pub io: S,
    /// ALPN settled on HTTP/2; `None`: nothing was negotiated.
    pub http2: Option<bool>,
    /// Our own address.
    pub local: Option<SocketAddr>,
    /// What protects it.
    pub security: Security,
    /// The material that it was made with is out of force: no further request
    /// goes over it.
    pub replaced: Replaced,
}

/// `connection_security_policy` of a connection to a service.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Security {
    /// In the clear.
    #[default]
    None,
    /// TLS.
    Tls,
    /// TLS with a client certificate.
    MutualTls,
}

impl Security {
    /// Istio's word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Tls => "tls",
            Self::MutualTls => "mutual_tls",
        }
    }
}

/// A dial under way; boxed, since connections are rare beside requests.
pub type Dialling<'a, S> = Pin<Box<dyn Future<Output = Result<Dialled<S>, DialError>> + 'a>>;

/// Opens connections within `connectTimeout`.
pub trait Dial<S> {
    /// Opens one.
    fn dial<'a>(&'a self, request: DialRequest<'a>) -> Dialling<'a, S>;
}

/// The connections of one worker. `B` is the body of requests, `S` the stream.
pub struct Pool<B, S> {
    hosts: RefCell<HashMap<Key, Rc<Host<B, S>>>>,
    dial: Box<dyn Dial<S>>,
    closing: Cell<bool>,
}

impl<B, S> std::fmt::Debug for Pool<B, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool")
            .field("hosts", &self.hosts.borrow().len())
            .finish_non_exhaustive()
    }
}

impl<B, S: Io> Pool<B, S>
where
    B: Payload,
{
    /// An empty pool that opens connections with `dial`.
    pub fn new(dial: impl Dial<S> + 'static) -> Rc<Self> {
        Rc::new(Self {
            hosts: RefCell::default(),
            dial: Box::new(dial),
            closing: Cell::new(false),
        })
    }

    /// What `picked` offers to callers of this `identity`. A changed policy
    /// retires what was opened under the old one: idle connections close,
    /// busy ones finish what they are at.
    pub fn host(
        self: &Rc<Self>,
        set: &Arc<EndpointSet>,
        policy: &Arc<TrafficPolicy>,
        picked: &Picked,
        identity: &Identity,
    ) -> Rc<Host<B, S>> {
        let key = Key {
            set: Arc::as_ptr(set) as usize,
            destination: picked.destination.clone(),
            identity: identity.clone(),
        };
        let mut hosts = self.hosts.borrow_mut();
        let make = |key: Key| {
            let (pool, set, policy) = (Rc::downgrade(self), Arc::clone(set), Arc::clone(policy));
            Host::new(pool, key, set, Arc::clone(&picked.endpoint), policy)
        };
        match hosts.entry(key) {
            Entry::Vacant(entry) => {
                let host = make(entry.key().clone());
                Rc::clone(entry.insert(host))
            }
            Entry::Occupied(mut entry) => {
                if !entry.get().serves(policy) {
                    entry.get().retire();
                    let host = make(entry.key().clone());
                    entry.insert(host);
                }
                Rc::clone(entry.get())
            }
        }
    }

    /// Closes idle connections, and takes none back from now on.
    pub fn close(&self) {
        self.closing.set(true);
        for (_, host) in self.hosts.borrow_mut().drain() {
            host.retire();
        }
    }

    /// Closes idle connections of a network namespace (by cookie) that its
    /// callers have left; busy ones finish what they are at.
    pub fn leave_namespace(&self, netns: u64) {
        self.hosts.borrow_mut().retain(|key, host| {
            let left = key.identity.netns == netns;
            if left {
                host.retire();
            }
            !left
        });
    }

    /// Number of addresses that connections are kept for.
    pub fn len(&self) -> usize {
        self.hosts.borrow().len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.hosts.borrow().is_empty()
    }

    fn dialler(&self) -> &dyn Dial<S> {
        &*self.dial
    }

    /// Closes one idle connection of `set`, to make room under its
    /// `maxConnections`. Whether there was one.
    fn evict(&self, set: &Arc<EndpointSet>) -> bool {
        let place = Arc::as_ptr(set) as usize;
        self.hosts
            .borrow()
            .iter()
            .filter(|(key, _)| key.set == place)
            .any(|(_, host)| host.close_one_idle())
    }

    /// Forgets a host that keeps nothing any more.
    fn forget(&self, host: &Rc<Host<B, S>>) {
        let mut hosts = self.hosts.borrow_mut();
        if hosts
            .get(host.key())
            .is_some_and(|kept| Rc::ptr_eq(kept, host))
        {
            hosts.remove(host.key());
        }
    }
}

//! One client connection: who calls, and what policy it falls under.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use tokio::time::Instant;

use super::guarded::State;
use super::record::{Log, Record};
use super::upgrade::Tunnel;
use super::upload::RequestBody;
use super::{Current, ServiceStream, Worker};
use crate::capture::sockets::NetNs;
use crate::connect::pool::{Host, Identity, Reach, Version};
use crate::endpoint::{EndpointSet, Picked};
use crate::flag::Flag;
use crate::policy::model::{ClientTls, TrafficPolicy};
use crate::policy::snapshot::{Client as PolicyClient, Cluster, Service, View};
use crate::secret::SecretError;

/// Who calls, and what the connection was dialled to.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The application's address.
    pub peer: SocketAddr,
    /// The address that the application dialled.
    pub original: SocketAddr,
    /// The address dialled is not one of this service alone.
    pub name_decides: bool,
    /// Network namespace of the application.
    pub netns: NetNs,
    /// Name that the connection was identified by, lower case.
    pub host: Arc<str>,
    /// Who it is for policy.
    pub client: PolicyClient,
}

/// A service as one client sees it, under one policy.
pub(super) struct Bound {
    pub(super) live: Current,
    pub(super) service: Arc<Service>,
    view: usize,
    /// The name that was asked for, lower case.
    pub(super) host: Arc<str>,
}

impl Bound {
    pub(super) fn new(
        live: Current,
        service: Arc<Service>,
        host: Arc<str>,
        client: &PolicyClient,
    ) -> Option<Rc<Self>> {
        let view = service
            .views
            .iter()
            .position(|view| view.clients.fit(client))?;
        Some(Rc::new(Self {
            live,
            service,
            view,
            host,
        }))
    }

    pub(super) fn view(&self) -> &View {
        &self.service.views[self.view]
    }

    pub(super) fn set(&self, cluster: usize) -> Option<&Arc<EndpointSet>> {
        self.live.sets.get(cluster)
    }
}

/// One client connection.
pub(super) struct Client<S: ServiceStream> {
    pub(super) worker: Rc<Worker<S>>,
    pub(super) caller: Caller,
    log: Box<dyn Log>,
    pub(super) state: Rc<State>,
    /// What the connection was identified as, under the newest policy seen.
    bound: RefCell<Rc<Bound>>,
    /// The service is gone from the policy: the connection ends with the
    /// response under way.
    pub(super) orphaned: Cell<bool>,
    /// The host used last: nearly always the one used next.
    last: RefCell<Option<Rc<Host<RequestBody, S>>>>,
    /// What follows when the response is a 101.
    pub(super) tunnel: RefCell<Option<Tunnel<S>>>,
}

/// What a request's Host leads to.
pub(super) enum Found {
    /// A service.
    Bound(Rc<Bound>),
    /// The connection was dialled to an address that several names share, and
    /// this request names one that is not registered.
    Misdirected,
}

impl<S: ServiceStream> Client<S> {
    pub(super) fn new(
        worker: Rc<Worker<S>>,
        caller: Caller,
        log: Box<dyn Log>,
        bound: Rc<Bound>,
    ) -> Rc<Self> {
        Rc::new(Self {
            worker,
            caller,
            log,
            state: State::new(),
            bound: RefCell::new(bound),
            orphaned: Cell::new(false),
            last: RefCell::new(None),
            tunnel: RefCell::new(None),
        })
    }

    /// What the connection itself was identified as, under the newest policy.
    fn own(&self) -> Rc<Bound> {
        let bound = Rc::clone(&self.bound.borrow());
        let live = self.worker.live();
        if Rc::ptr_eq(&live, &bound.live) {
            return bound;
        }
        // A new policy: the service may have changed, or be gone.
        let fresh = live
            .snapshot
            .service(bound.service.id)
            .cloned()
            .and_then(|service| {
                let host = Arc::clone(&bound.host);
                Bound::new(Rc::clone(&live), service, host, &self.caller.client)
            });
        if let Some(fresh) = fresh {
            self.bound.replace(Rc::clone(&fresh));
            fresh
        } else {
            self.orphaned.set(true);
            bound
        }
    }

    /// The service that a request for `authority` is for. A name that is
    /// registered on the dialled port says so by itself; any other belongs to
    /// what was dialled.
    pub(super) fn service(&self, authority: &str) -> Found {
        let own = self.own();
        let host = crate::route::http::without_port(authority);
        let host = host.strip_suffix('.').unwrap_or(host);
        if host.is_empty() || host.eq_ignore_ascii_case(&own.host) {
            return Found::Bound(own);
        }
        let host = host.to_ascii_lowercase();
        let client = &self.caller.client;
        let named = own
            .live
            .snapshot
            .services_of(&host, &client.namespace)
            .find(|service| service.key.port == own.service.key.port)
            .cloned();
        if let Some(service) = named {
            let live = Rc::clone(&own.live);
            if let Some(bound) = Bound::new(live, service, host.into(), client) {
                return Found::Bound(bound);
            }
        }
        if self.caller.name_decides {
            return Found::Misdirected;
        }
        Found::Bound(own)
    }

    /// Whether there is a log that shows each request.
    pub(super) fn logs(&self) -> bool {
        self.log.wants_details()
    }

    /// The header that requests of this client to `cluster` are given.
    ///
    /// # Errors
    /// What keeps the secret from being used.
    pub(super) fn credential<'c>(
        &self,
        cluster: &'c Cluster,
    ) -> Result<Option<(&'c HeaderName, HeaderValue)>, SecretError> {
        let Some(credential) = &cluster.policy.credential else {
            return Ok(None);
        };
        let namespace = &self.caller.client.namespace;
        let value = self.worker.secrets.header_value(credential, namespace)?;
        Ok(Some((&credential.header, value)))
    }

    /// How a new connection for this client is made.
    pub(super) const fn reach<'a>(&'a self, tls: Option<&'a ClientTls>) -> Reach<'a> {
        Reach {
            netns: &self.caller.netns,
            source: self.caller.peer,
            tls,
        }
    }

    /// Whose connections may carry a request of this client to `cluster`;
    /// `name` is the host of the request as it leaves.
    pub(super) fn identity(
        &self,
        cluster: &Cluster,
        tls: Option<&ClientTls>,
        name: impl FnOnce() -> Arc<str>,
        version: Version,
    ) -> Identity {
        let caller = &self.caller;
        Identity {
            netns: caller.netns.cookie,
            tls: tls.map(|tls| {
                let name = tls.sni.clone().unwrap_or_else(name);
                (Arc::clone(&caller.client.namespace), name)
            }),
            version,
            source: cluster.policy.proxy_protocol.map(|_| caller.peer),
        }
    }

    /// The pool's host for a pick.
    pub(super) fn host(
        &self,
        set: &Arc<EndpointSet>,
        policy: &Arc<TrafficPolicy>,
        picked: &Picked,
        identity: &Identity,
    ) -> Rc<Host<RequestBody, S>> {
        let mut last = self.last.borrow_mut();
        if let Some(host) = &*last
            && host.is_for(set, policy, &picked.destination, identity)
        {
            return Rc::clone(host);
        }
        let host = self.worker.pool.host(set, policy, picked, identity);
        *last = Some(Rc::clone(&host));
        host
    }
}

/// A request under way. When it is dropped, its record is written, whatever
/// has become of it.
pub(super) struct Open<S: ServiceStream> {
    pub(super) client: Rc<Client<S>>,
    pub(super) record: Record,
    /// When it had its answer, good or bad.
    answered: Option<Instant>,
}

impl<S: ServiceStream> Open<S> {
    pub(super) fn new(client: Rc<Client<S>>, record: Record) -> Box<Self> {
        client.state.active.set(client.state.active.get() + 1);
        Box::new(Self {
            client,
            record,
            answered: None,
        })
    }

    /// The answer is complete, at `now`.
    pub(super) fn finish(mut self: Box<Self>, now: Instant) {
        self.answered = Some(now);
    }

    /// Something broke off what was going well.
    pub(super) fn broken(mut self: Box<Self>, flag: Flag, details: &str) {
        self.answered = Some(Instant::now());
        self.record.flag(flag);
        self.record.answer = None;
        self.record.details = details.into();
    }
}

impl<S: ServiceStream> Drop for Open<S> {
    fn drop(&mut self) {
        let (client, record) = (&self.client, &mut self.record);
        let now = self.answered.unwrap_or_else(Instant::now);
        if self.answered.is_none() {
            record.flag(Flag::DownstreamConnectionTermination);
            record.details = "the application went away before the response".into();
        }
        record.duration = now - record.started;
        client.state.last.set(now);
        let active = client.state.active.get();
        client.state.active.set(active.saturating_sub(1));
        client.log.request(record);
    }
}

//! What a worker needs to carry connections.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arc_swap::{ArcSwap, Cache};
use tokio::sync::watch;

use super::complaints::Complaints;
use super::source::Sources;
use crate::accept::{IntakeStats, Origins};
use crate::account::{AccessLog, Account, Metrics};
use crate::capture::sockets::{NetNs, Sockets};
use crate::capture::{Caller, Captured};
use crate::connect::Stream;
use crate::connect::pool::{Dialler, Pool};
use crate::endpoint::Live;
use crate::identify::{Callers, HostNames, Identified, Workload};
use crate::lifecycle::drain::{Drain, DrainGuard};
use crate::policy::model::{ConnectionPool, LoadBalancer, TrafficPolicy};
use crate::relay::{Buffers, http};
use crate::secret::Secrets;

/// Settings of the data path.
#[derive(Clone, Debug)]
pub struct Settings {
    /// From a client's first byte on, until what is unclear counts as opaque.
    pub sniff_timeout: Duration,
    /// Open connections of one worker; more are reset.
    pub max_connections: usize,
    /// Endpoints tried for one opaque connection.
    pub connect_attempts: u32,
    /// HTTP.
    pub http: http::Settings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            sniff_timeout: Duration::from_secs(10),
            max_connections: 100_000,
            connect_attempts: 3,
            http: http::Settings::default(),
        }
    }
}

/// What all workers share.
pub struct Shared {
    /// Policy and endpoint sets in force.
    pub live: Arc<ArcSwap<Live>>,
    /// Where redirected connections were going.
    pub origins: Arc<dyn Origins>,
    /// Names behind virtual addresses.
    pub names: Arc<dyn HostNames>,
    /// Workloads behind cgroups.
    pub callers: Arc<dyn Callers>,
    /// Makes upstream sockets.
    pub sockets: Sockets,
    /// TLS material.
    pub secrets: Arc<Secrets>,
    /// Metrics of the data path.
    pub metrics: Arc<Metrics>,
    /// The access log, if there is one.
    pub log: Option<AccessLog>,
    /// Counters of the accept loops.
    pub intake: Arc<IntakeStats>,
    /// Counts open connections, for the drain of the process.
    pub drain: Drain,
    /// Settings.
    pub settings: Settings,
}

/// What one worker has.
pub struct Context {
    shared: Arc<Shared>,
    live: RefCell<Cache<Arc<ArcSwap<Live>>, Arc<Live>>>,
    /// Records.
    pub account: Account,
    /// Spare buffers.
    pub buffers: Buffers,
    /// HTTP: pools and settings.
    pub http: Rc<http::Worker<Stream>>,
    /// Tells HTTP connections to end after their request.
    draining: watch::Sender<bool>,
    /// Failures told in the log.
    pub(super) complaints: Complaints,
    sources: Sources,
}

impl Context {
    /// For one worker.
    pub fn new(shared: Arc<Shared>) -> Self {
        let (draining, drain) = watch::channel(false);
        let dialler = Dialler {
            sockets: shared.sockets.clone(),
            secrets: Arc::clone(&shared.secrets),
        };
        let http = http::Worker::new(
            Pool::new(dialler),
            Arc::clone(&shared.live),
            shared.settings.http.clone(),
            Buffers::default(),
            drain,
        );
        Self {
            http,
            draining,
            live: RefCell::new(Cache::new(shared.live.clone())),
            account: Account::new(shared.metrics.clone(), shared.log.clone()),
            buffers: Buffers::default(),
            complaints: Complaints::default(),
            sources: Sources::default(),
            shared,
        }
    }

    /// The policy in force, which stays the same for what holds on to it.
    pub fn live(&self) -> Arc<Live> {
        self.live.borrow_mut().load().clone()
    }

    /// Counts a connection as open until the guard is dropped.
    pub fn open(&self) -> DrainGuard {
        self.shared.drain.enter()
    }

    /// Lets HTTP connections end: idle ones now, busy ones with their
    /// response.
    pub fn drain_http(&self) {
        self.draining.send_replace(true);
    }

    /// Settings.
    pub fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    /// Makes upstream sockets.
    pub fn sockets(&self) -> &Sockets {
        &self.shared.sockets
    }

    /// TLS material.
    pub fn secrets(&self) -> &Arc<Secrets> {
        &self.shared.secrets
    }

    /// Names behind virtual addresses.
    pub fn names(&self) -> &dyn HostNames {
        &*self.shared.names
    }

    /// Who is behind a connection.
    pub fn workload_of(&self, caller: &Caller) -> Workload {
        self.shared.callers.workload_of(caller)
    }

    /// The address that a service would see, were the connection not carried.
    pub(super) fn source(&self, netns: &NetNs, captured: &Captured) -> SocketAddr {
        let (peer, original) = (captured.peer, captured.original);
        self.sources.of(self.sockets(), netns, peer, original)
    }

    /// Istio's defaults, for connections that no policy is about.
    pub fn default_policy(&self) -> &'static TrafficPolicy {
        static DEFAULT: LazyLock<TrafficPolicy> = LazyLock::new(|| TrafficPolicy {
            connection_pool: ConnectionPool::default(),
            load_balancer: LoadBalancer::default(),
            outlier_detection: None,
            tls: None,
            tunnel: None,
            proxy_protocol: None,
            retry_budget: None,
            health_check: None,
        });
        &DEFAULT
    }

    /// Tells a failure in the log, once a minute for each service and cause.
    pub(super) fn complain(&self, identified: &Identified, cause: &str) {
        let Identified {
            service,
            host,
            captured,
            ..
        } = identified;
        self.complaints.tell(service, host, &captured.caller, cause);
    }
}

//! The set of endpoints of one cluster: the face that the flow sees.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::Instant;

use super::changes::Watchers;
use super::config::{Config, Mode, is_virtual};
use super::error::PickError;
use super::health::ProbeFailure;
use super::host::{Endpoint, EndpointId};
use super::index::Index;
use super::limits::Limits;
use super::live::Options;
use super::names::{NAME_IDLE, Names};
use super::outcome::Outcome;
use super::outlier::Generation;
use super::picked::{PickContext, Picked};
use super::pool::{Dialled, Kind, Pool};
use super::resolved::{Destination, ResolvedEndpoint};
use super::shared::{SetCounters, Shared, bump};
use super::told::Told;
use super::wanted::Wanted;
use crate::policy::model::Resolution;
use crate::policy::snapshot::{Cluster, ClusterKey};

/// The endpoints of one cluster, its limits and its outlier detection.
#[derive(Debug)]
pub struct EndpointSet {
    pub(super) shared: Arc<Shared>,
    /// What resolution gave.
    pub(super) pool: Arc<Pool>,
    /// What clients dialled.
    pub(super) dialled: OnceLock<Arc<Pool>>,
    /// What resolution gave for each name that clients asked for.
    pub(super) names: OnceLock<Box<Names>>,
    resolved: Told<Resolved>,
    pub(super) resolution: Mutex<ResolutionState>,
}

/// How far resolution has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Resolved {
    Pending,
    Failed,
    Done,
}

/// When resolution last worked and failed.
#[derive(Clone, Default, Debug)]
pub(super) struct ResolutionState {
    pub(super) success: Option<Instant>,
    pub(super) failure: Option<(Instant, Arc<str>)>,
}

impl ResolutionState {
    /// The last lookup failed.
    fn is_failed(&self) -> bool {
        self.failure
            .as_ref()
            .is_some_and(|(failed, _)| self.success.is_none_or(|at| at <= *failed))
    }
}

impl EndpointSet {
    /// A set for `cluster`; a STATIC one has its endpoints at once.
    pub fn new(cluster: Arc<Cluster>, options: &Options) -> Arc<Self> {
        Self::watched(cluster, &Arc::new(options.clone()), Arc::default())
    }

    pub(super) fn watched(
        cluster: Arc<Cluster>,
        options: &Arc<Options>,
        watchers: Arc<Watchers>,
    ) -> Arc<Self> {
        let now = Instant::now();
        let set = Arc::new_cyclic(|me| {
            let shared = Arc::new(Shared {
                key: cluster.key.clone(),
                limits: Limits::new(&cluster.policy),
                counters: SetCounters::default(),
                wanted: Wanted::default(),
                created: now,
                version: OnceLock::new(),
                watchers,
                set: me.clone(),
                config: ArcSwap::from_pointee(Config::new(cluster, Arc::clone(options))),
            });
            Self {
                pool: Pool::new(Arc::clone(&shared), Kind::Resolved),
                dialled: OnceLock::new(),
                names: OnceLock::new(),
                resolved: Told::new(Resolved::Pending),
                resolution: Mutex::default(),
                shared,
            }
        });
        set.seed();
        set
    }

    /// Identity of the cluster.
    pub fn key(&self) -> &ClusterKey {
        &self.shared.key
    }

    /// The cluster as the newest snapshot has it.
    pub fn cluster(&self) -> Arc<Cluster> {
        Arc::clone(&self.shared.config.load().cluster)
    }

    /// Counters, for metrics.
    pub fn counters(&self) -> &SetCounters {
        &self.shared.counters
    }

    /// Tells each change of what may be picked; the value is a version.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared
            .version
            .get_or_init(|| watch::Sender::new(0))
            .subscribe()
    }

    /// Takes over a new version of the cluster. Endpoints keep their state and
    /// limits what they have counted.
    pub(super) fn reconfigure(&self, cluster: Arc<Cluster>, options: &Arc<Options>) {
        let next = Arc::new(Config::new(cluster, Arc::clone(options)));
        let before = self.shared.config.swap(Arc::clone(&next));
        if next.chooses_as(&before) {
            return;
        }
        self.shared.limits.configure(next.policy());
        self.seed();
        let now = Instant::now();
        for pool in self.pools() {
            pool.reconfigure(now);
        }
    }

    /// STATIC endpoints need no resolution.
    fn seed(&self) {
        if let Some(endpoints) = self.shared.config.load().static_endpoints() {
            self.update(endpoints);
        }
    }

    /// The newest result of resolution, whole. Endpoints that stay keep their
    /// state; those that vanished take no new connection, and with resolution
    /// DNS their connections drain ([`Endpoint::drained`]).
    pub fn update(&self, endpoints: Vec<ResolvedEndpoint>) {
        let now = Instant::now();
        self.pool.update(endpoints, now);
        self.resolution().success = Some(now);
        self.resolved.set(Resolved::Done);
    }

    /// What is left after a lookup failed: the last good addresses, those of
    /// other names, or none once the names' own servers have denied them for
    /// long enough.
    pub fn update_despite(&self, endpoints: Vec<ResolvedEndpoint>, error: Arc<str>) {
        let any = !endpoints.is_empty();
        self.pool.update(endpoints, Instant::now());
        self.resolution_failed(error);
        if any {
            self.resolved.set(Resolved::Done);
        }
    }

    /// Resolution failed; what was resolved before stays in use.
    pub fn resolution_failed(&self, error: Arc<str>) {
        self.resolution().failure = Some((Instant::now(), error));
        self.resolved
            .change(|state| (state == Resolved::Pending).then_some(Resolved::Failed));
    }

    pub(super) fn resolution(&self) -> std::sync::MutexGuard<'_, ResolutionState> {
        self.resolution
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Completes when the first resolution (for `DYNAMIC_DNS`: of `host`) has
    /// succeeded or failed: wait with a deadline after
    /// [`PickError::Unresolved`], then pick again.
    pub async fn resolved(&self, host: &str) {
        let name = self.names.get().and_then(|names| names.get(host));
        let resolved = name.as_ref().map_or(&self.resolved, |name| &name.resolved);
        resolved.wait_for(|state| state != Resolved::Pending).await;
    }

    /// `error` in words, for a pick with this `host`; of a name that has not
    /// been resolved, with what its resolver said.
    pub fn explain(&self, error: PickError, host: &str) -> String {
        let reason = if self.shared.config.load().mode == Mode::Named {
            let name = self.names.get().and_then(|names| names.get(host));
            name.and_then(|name| name.failure())
        } else {
            let failure = self.resolution().failure.clone();
            failure.map(|(_, reason)| reason)
        };
        match reason.filter(|_| error == PickError::Unresolved) {
            Some(reason) => format!("{error}: {reason}"),
            None => error.to_string(),
        }
    }

    /// Chooses an endpoint.
    ///
    /// # Errors
    /// When there is none, or none that may be used.
    pub fn pick(self: &Arc<Self>, context: &PickContext<'_>) -> Result<Picked, PickError> {
        let picked = self.choose(context);
        if picked.is_err() {
            bump(&self.counters().no_endpoint);
        }
        picked
    }

    fn choose(&self, context: &PickContext<'_>) -> Result<Picked, PickError> {
        let config = self.shared.config.load();
        match config.mode {
            Mode::Dialled { port } => {
                let address = context.original.ip();
                if is_virtual(address) {
                    return match self.pool.pick(context) {
                        Ok(endpoint) => Ok(Picked::new(&self.pool, endpoint)),
                        Err(PickError::Empty) => Err(PickError::Virtual),
                        Err(error) => Err(error),
                    };
                }
                let pool = self.dialled_pool();
                let endpoint = pool.dial(SocketAddr::new(address, port), Instant::now())?;
                Ok(Picked::new(pool, endpoint))
            }
            Mode::Named => {
                let name = self.name(context.host);
                match name.pool.pick(context) {
                    Ok(endpoint) => Ok(Picked::new(&name.pool, endpoint)),
                    Err(PickError::Empty) => Err(PickError::Unresolved),
                    Err(error) => Err(error),
                }
            }
            Mode::Resolved => match self.pool.pick(context) {
                Ok(endpoint) => Ok(Picked::new(&self.pool, endpoint)),
                Err(PickError::Empty) if self.is_unresolved(&config) => Err(PickError::Unresolved),
                Err(error) => Err(error),
            },
        }
    }

    /// Clients decide the address (resolution NONE, PASSTHROUGH).
    pub fn is_dialled(&self) -> bool {
        matches!(self.shared.config.load().mode, Mode::Dialled { .. })
    }

    fn is_unresolved(&self, config: &Config) -> bool {
        let cluster = &config.cluster;
        cluster.target.resolution != Resolution::Static
            && !cluster.endpoints.is_empty()
            && (self.resolved.get() != Resolved::Done || self.resolution().is_failed())
    }

    fn dialled_pool(&self) -> &Arc<Pool> {
        self.dialled.get_or_init(|| {
            let dialled = Dialled {
                index: Index::new(),
                panic: std::sync::atomic::AtomicBool::new(false),
            };
            let kind = Kind::Dialled(Box::new(dialled));
            Pool::new(Arc::clone(&self.shared), kind)
        })
    }

    pub(super) fn second(&self, now: Instant) -> u64 {
        self.shared.age(now).as_secs()
    }

    /// Every pool of this set.
    pub(super) fn pools(&self) -> Vec<Arc<Pool>> {
        let named = self
            .names
            .get()
            .map(|names| names.pools())
            .unwrap_or_default();
        std::iter::once(&self.pool)
            .chain(self.dialled.get())
            .cloned()
            .chain(named)
            .collect()
    }

    /// Every endpoint, whatever its state.
    pub fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        let pools = self.pools();
        let members = |pool: &Arc<Pool>| {
            let inner = pool.lock();
            let endpoints = inner.members.iter().map(|m| Arc::clone(&m.endpoint));
            endpoints.collect::<Vec<_>>()
        };
        pools.iter().flat_map(members).collect()
    }

    /// The endpoint at an address; where clients decide the address
    /// (resolution NONE, PASSTHROUGH), it is made when it is not known yet.
    pub fn endpoint_at(&self, address: SocketAddr) -> Option<Arc<Endpoint>> {
        let config = self.shared.config.load();
        if let Mode::Dialled { .. } = config.mode
            && !is_virtual(address.ip())
        {
            let pool = self.dialled_pool();
            return match pool.dial(address, Instant::now()) {
                Ok(endpoint) => Some(endpoint),
                Err(_) => pool.endpoint_at(&Destination::Tcp(address)),
            };
        }
        let destination = Destination::Tcp(address);
        self.pools()
            .iter()
            .find_map(|pool| pool.endpoint_at(&destination))
    }

    /// Takes into account how a connection went that was not picked here: one
    /// of the direct path, which began in the given period
    /// ([`Endpoint::generation`] when its slot was written).
    pub fn report(&self, endpoint: &Arc<Endpoint>, period: Generation, outcome: Outcome) {
        let config = self.shared.config.load();
        let named = || {
            let mut pools = self.pools().into_iter();
            pools.find(|pool| pool.endpoint_at(&endpoint.destination).is_some())
        };
        let pool = match config.mode {
            Mode::Resolved => Some(Arc::clone(&self.pool)),
            Mode::Dialled { .. } => self.dialled.get().cloned(),
            Mode::Named => named(),
        };
        if let Some(pool) = pool {
            pool.judge(endpoint, period, outcome);
        }
    }

    /// Takes the result of an active health check into account.
    pub(super) fn checked(&self, id: EndpointId, result: Result<(), ProbeFailure>, now: Instant) {
        for pool in self.pools() {
            pool.checked(id, result, now);
        }
    }

    /// Does what is due at `now`: readmission, slow start, forgetting. Says
    /// when to come again.
    pub fn sweep(&self, now: Instant) -> Option<Instant> {
        let mut next = None;
        if let Some(names) = self.names.get() {
            let idle = self.shared.age(now).saturating_sub(NAME_IDLE).as_secs();
            if names.forget_unused(idle) {
                // Whoever keeps their addresses fresh may stop.
                self.shared.changed();
            }
            if !names.is_empty() {
                next = Some(now + NAME_IDLE / 10);
            }
        }
        let pools = self.pools();
        let due = pools.iter().filter_map(|pool| pool.sweep(now));
        due.chain(next).min()
    }

    /// When [`Self::sweep`] has something to do.
    pub(super) fn next_sweep(&self, now: Instant) -> Option<Instant> {
        let config = self.shared.config.load();
        let named = self.names.get().map(|_| now + NAME_IDLE / 10);
        let pools = self.pools();
        let due = pools
            .iter()
            .filter_map(|pool| pool.next_sweep(&pool.lock(), &config, now));
        due.chain(named).min()
    }
}

//! The set of endpoints of one cluster: the face that the flow sees.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::Instant;

use super::error::PickError;
use super::host::{ConnectionGuard, Endpoint};
use super::limits::{LimitKind, Limits, Overflow, Permit};
use super::live::Options;
use super::picked::{PickContext, Picked};
use super::pool::Pool;
use super::resolved::{Destination, ResolvedEndpoint};
use crate::policy::model::{Algorithm, EndpointAddress, Locality, Resolution};
use crate::policy::snapshot::{Cluster, ClusterKey};

/// Counters of a cluster, for metrics.
#[derive(Debug, Default)]
pub struct SetCounters {
    /// Picks that found no endpoint (`UH`, `DF`).
    pub no_endpoint: AtomicU64,
}

/// The endpoints of one cluster, its limits and its outlier detection.
#[derive(Debug)]
pub struct EndpointSet {
    key: ClusterKey,
    cluster: ArcSwap<Cluster>,
    limits: Arc<Limits>,
    counters: SetCounters,
    pool: Arc<Pool>,
    resolved: watch::Sender<bool>,
}

impl EndpointSet {
    /// A set for `cluster`; a STATIC one has its endpoints at once.
    pub fn new(cluster: Arc<Cluster>, _options: &Options) -> Arc<Self> {
        let set = Arc::new(Self {
            key: cluster.key.clone(),
            limits: Limits::new(&cluster.policy, Instant::now()),
            counters: SetCounters::default(),
            pool: Pool::new(),
            resolved: watch::Sender::new(false),
            cluster: ArcSwap::new(cluster),
        });
        set.seed();
        set
    }

    /// Identity of the cluster.
    pub const fn key(&self) -> &ClusterKey {
        &self.key
    }

    /// The cluster as the newest snapshot has it.
    pub fn cluster(&self) -> Arc<Cluster> {
        self.cluster.load_full()
    }

    /// Counters, for metrics.
    pub const fn counters(&self) -> &SetCounters {
        &self.counters
    }

    /// Takes over a new version of the cluster. Endpoints keep their state and
    /// limits what they have counted.
    pub(super) fn reconfigure(&self, cluster: Arc<Cluster>, _options: &Options) {
        self.limits.configure(&cluster.policy);
        self.cluster.store(cluster);
        self.seed();
    }

    /// STATIC endpoints need no resolution.
    fn seed(&self) {
        let cluster = self.cluster.load();
        if cluster.target.resolution != Resolution::Static {
            return;
        }
        let endpoints = cluster
            .endpoints
            .iter()
            .filter_map(|spec| {
                let destination = match &spec.address {
                    EndpointAddress::Ip(ip) => Destination::Tcp(SocketAddr::new(*ip, spec.port)),
                    EndpointAddress::Unix(path) => Destination::Unix(Arc::clone(path)),
                    EndpointAddress::Name(_) => return None,
                };
                Some(ResolvedEndpoint {
                    destination,
                    name: None,
                    weight: spec.weight,
                    locality: spec.locality.clone(),
                    labels: spec.labels.clone(),
                })
            })
            .collect();
        self.update(endpoints);
    }

    /// The newest result of resolution, whole. Endpoints that stay keep their
    /// state; those that vanished take no new connection, and with resolution
    /// DNS their connections drain ([`Endpoint::drained`]).
    pub fn update(&self, endpoints: Vec<ResolvedEndpoint>) {
        self.pool.update(endpoints);
        self.resolved.send_replace(true);
    }

    /// Completes when the cluster has been resolved for the first time.
    pub async fn resolved(&self) {
        let mut resolved = self.resolved.subscribe();
        let _ = resolved.wait_for(|resolved| *resolved).await;
    }

    /// Chooses an endpoint.
    ///
    /// # Errors
    /// When there is none, or none that may be used.
    pub fn pick(self: &Arc<Self>, context: &PickContext<'_>) -> Result<Picked, PickError> {
        let cluster = self.cluster.load();
        let endpoint = match (
            cluster.target.resolution,
            &cluster.policy.load_balancer.algorithm,
        ) {
            (Resolution::None, _) | (_, Algorithm::Passthrough) => {
                Arc::new(Endpoint::new(ResolvedEndpoint {
                    destination: Destination::Tcp(SocketAddr::new(
                        context.original.ip(),
                        cluster.target.target_port,
                    )),
                    name: None,
                    weight: 1,
                    locality: Locality::default(),
                    labels: crate::policy::model::Labels::default(),
                }))
            }
            _ if !*self.resolved.borrow() => return Err(PickError::Unresolved),
            _ => self.pool.pick(context)?,
        };
        Ok(Picked::new(&self.pool, endpoint))
    }

    /// A place under `maxConnections`.
    ///
    /// # Errors
    /// When none is free: TCP closes at once, HTTP waits.
    pub fn connection_permit(&self) -> Result<Permit, Overflow> {
        self.limits.permit(LimitKind::Connections)
    }

    /// As [`Self::connection_permit`], and counts the connection as one of the
    /// endpoint's. An endpoint without any connection gets one beyond the limit
    /// (HTTP; ISTIO-API section 10), and no more than one.
    ///
    /// # Errors
    /// When none is free and the endpoint has a connection already.
    pub fn connection_permit_for(
        &self,
        endpoint: &Endpoint,
    ) -> Result<(Permit, ConnectionGuard), Overflow> {
        match self.limits.permit(LimitKind::Connections) {
            Ok(permit) => Ok((permit, endpoint.open_connection())),
            Err(overflow) => {
                let guard = endpoint.first_connection().ok_or(overflow)?;
                Ok((self.limits.force(LimitKind::Connections), guard))
            }
        }
    }

    /// A place under `http2MaxRequests`.
    ///
    /// # Errors
    /// When none is free: 503 with flag `UO`.
    pub fn request_permit(&self) -> Result<Permit, Overflow> {
        self.limits.permit(LimitKind::Requests)
    }

    /// A place under `http1MaxPendingRequests`, held while a request waits for
    /// a connection.
    ///
    /// # Errors
    /// When none is free: 503 with flag `UO`.
    pub fn pending_permit(&self) -> Result<Permit, Overflow> {
        self.limits.permit(LimitKind::Pending)
    }

    /// A place under `maxRetries` or the retry budget.
    ///
    /// # Errors
    /// When none is free: the last answer goes out.
    pub fn retry_permit(&self) -> Result<Permit, Overflow> {
        self.limits.permit(LimitKind::Retries)
    }
}

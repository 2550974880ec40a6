//! What a set follows: the cluster's policy and where this node is.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::live::Options;
use super::locality;
use super::resolved::{Destination, ResolvedEndpoint};
use crate::policy::model::{
    Algorithm, EndpointAddress, Locality, OutlierDetection, Resolution, TrafficPolicy, Warmup,
};
use crate::policy::snapshot::Cluster;

#[derive(Debug)]
pub(super) struct Config {
    pub(super) cluster: Arc<Cluster>,
    pub(super) options: Arc<Options>,
    pub(super) mode: Mode,
    /// Labels of the client on which its table depends (`failoverPriority`
    /// entries without a value).
    pub(super) client_keys: Box<[Box<str>]>,
}

/// Where the endpoints of a cluster come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    /// From resolution.
    Resolved,
    /// The address that the application dialled (resolution NONE, or
    /// PASSTHROUGH), on this port.
    Dialled {
        /// `targetPort`, else the port.
        port: u16,
    },
    /// From resolution of the name asked for (`DYNAMIC_DNS`).
    Named,
}

impl Config {
    pub(super) fn new(cluster: Arc<Cluster>, options: Arc<Options>) -> Self {
        let balancer = &cluster.policy.load_balancer;
        let mode = if cluster.target.resolution == Resolution::None
            || balancer.algorithm == Algorithm::Passthrough
        {
            Mode::Dialled {
                port: cluster.target.target_port,
            }
        } else if cluster.target.resolution == Resolution::DynamicDns {
            Mode::Named
        } else {
            Mode::Resolved
        };
        Self {
            client_keys: locality::client_keys(&cluster.policy),
            cluster,
            options,
            mode,
        }
    }

    pub(super) fn policy(&self) -> &TrafficPolicy {
        &self.cluster.policy
    }

    pub(super) fn outlier(&self) -> Option<&OutlierDetection> {
        self.policy().outlier_detection.as_ref()
    }

    pub(super) fn locality(&self) -> &Locality {
        &self.options.locality
    }

    /// `minHealthPercent`, 0 to 100; 0: never panic.
    pub(super) fn panic_percent(&self) -> u32 {
        self.outlier().map_or(0, |o| o.min_health_percent.min(100))
    }

    /// `warmup`, which only ROUND_ROBIN and LEAST_REQUEST know.
    pub(super) fn warmup(&self) -> Option<&Warmup> {
        let balancer = &self.policy().load_balancer;
        match balancer.algorithm {
            Algorithm::RoundRobin | Algorithm::LeastRequest => balancer.warmup.as_ref(),
            Algorithm::Random | Algorithm::Passthrough | Algorithm::Hash { .. } => None,
        }
    }

    /// Whether the connections of an address that vanished are closed after a
    /// grace time: resolution DNS only (ISTIO-API section 7).
    pub(super) fn drains(&self) -> bool {
        self.cluster.target.resolution == Resolution::Dns
    }

    /// Whether the same endpoints are picked from in the same way, so that
    /// only `cluster` itself needs to be replaced.
    pub(super) fn chooses_as(&self, other: &Self) -> bool {
        let (a, b) = (&self.cluster, &other.cluster);
        self.options == other.options
            && self.mode == other.mode
            && a.target.resolution == b.target.resolution
            && a.endpoints == b.endpoints
            && a.policy == b.policy
    }

    /// STATIC endpoints, which need no resolution.
    pub(super) fn static_endpoints(&self) -> Option<Vec<ResolvedEndpoint>> {
        if self.cluster.target.resolution != Resolution::Static {
            return None;
        }
        let endpoints = self.cluster.endpoints.iter().filter_map(|spec| {
            let destination = match &spec.address {
                EndpointAddress::Ip(ip) => Destination::Tcp(SocketAddr::new(*ip, spec.port)),
                EndpointAddress::Unix(path) => Destination::Unix(Arc::clone(path)),
                // The policy compiler refuses names under STATIC.
                EndpointAddress::Name(_) => return None,
            };
            Some(ResolvedEndpoint {
                destination,
                name: None,
                weight: spec.weight,
                locality: spec.locality.clone(),
                labels: spec.labels.clone(),
            })
        });
        Some(endpoints.collect())
    }
}

/// Whether DNS capture made this address up: nothing can be dialled there.
pub(super) fn is_virtual(address: IpAddr) -> bool {
    let mapped = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    egress_common::is_virtual(&mapped.octets())
}

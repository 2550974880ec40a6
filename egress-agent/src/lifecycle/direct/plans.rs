//! Which endpoints the kernel may pick for a service, and how.

use std::hash::Hasher;
use std::net::SocketAddr;
use std::sync::Arc;

use twox_hash::XxHash64;

use super::{Direct, Seat, planned};
use crate::capture::{DirectBalance, DirectKeepalive, DirectPlan, DirectSlot};
use crate::endpoint::EndpointSet;
use crate::policy::model::{Algorithm, Resolution, TrafficPolicy};
use crate::policy::snapshot::{ClusterKey, OnAgentFailure, Path, Service, ServiceId};

/// Places in a service's slot table. Weights are rounded to shares of it.
const SLOTS: u16 = 256;

impl Direct {
    /// The other agent gave up: what it wrote is replaced.
    pub(super) fn resume(&mut self) {
        self.planned = planned(&self.kernel);
        let live = self.live.load_full();
        for set in &live.sets {
            self.plan(set);
        }
    }

    /// Writes the plan of the service whose cluster changed.
    pub(super) fn plan(&mut self, set: &Arc<EndpointSet>) {
        let cluster = set.cluster();
        let id = cluster.target.service;
        let live = self.live.load();
        let Some(service) = live.snapshot.service(id) else {
            return self.remove(id);
        };
        let chosen = sole_cluster(service).is_some_and(|sole| *sole == cluster.key);
        let Some(balance) = balance(&cluster.policy).filter(|_| chosen) else {
            if chosen || !matches!(service.path, Path::Direct(_)) {
                self.remove(id);
            }
            return;
        };
        // Names that are not resolved yet: the agent can wait for them, unless
        // the endpoints that an agent before knew are at hand.
        if set.endpoints().is_empty() {
            if !self.adopted.contains(&id) {
                self.remove(id);
            }
            return;
        }
        self.adopted.remove(&id);
        let slots = set.slots(&self.client, SLOTS);
        let mut plan = plan_of(&cluster.policy, balance);
        for slot in &slots.endpoints {
            let number = number(id, slot.address);
            self.seats.insert(
                number,
                Seat {
                    set: Arc::clone(set),
                    endpoint: Arc::clone(&slot.endpoint),
                    generation: slot.generation,
                },
            );
        }
        plan.slots = slots
            .table
            .iter()
            .take(period(slots.endpoints.iter().map(|slot| slot.places)))
            .filter_map(|&place| slots.endpoints.get(usize::from(place)))
            .map(|slot| DirectSlot {
                endpoint: number(id, slot.address),
                address: slot.address,
            })
            .collect();
        match self.kernel.set_direct(id, &plan) {
            Ok(new) => {
                self.planned.insert(id);
                if new {
                    tracing::debug!(host = %cluster.target.host, slots = plan.slots.len(), "direct");
                }
            }
            Err(error) => {
                tracing::error!(host = %cluster.target.host, "through the agent: {error}");
                self.remove(id);
            }
        }
    }

    pub(super) fn remove(&mut self, id: ServiceId) {
        if self.planned.remove(&id)
            && let Err(error) = self.kernel.remove_direct(id)
        {
            tracing::error!("{error}");
        }
    }
}

/// The number of an endpoint in the kernel: the same for every agent, since the
/// kernel's counters outlive them.
fn number(service: ServiceId, address: SocketAddr) -> u64 {
    let mut hasher = XxHash64::with_seed(0);
    hasher.write_u32(service.0);
    hasher.write(&crate::capture::address(address.ip()));
    hasher.write_u16(address.port());
    // 0 stands for none.
    hasher.finish().max(1)
}

/// Places after which a table repeats, in which endpoints have so many each.
fn period(places: impl Iterator<Item = u16>) -> usize {
    let (mut divisor, mut sum) = (0, 0);
    for places in places {
        sum += usize::from(places);
        let (mut a, mut b) = (divisor, usize::from(places));
        while b != 0 {
            (a, b) = (b, a % b);
        }
        divisor = a;
    }
    sum / divisor.max(1)
}

/// The cluster that every client of a direct service gets, if it is one. The
/// kernel has one plan for a service; where clients differ, the agent decides.
/// A proxied service has a plan for the time without an agent, if its policy
/// says `open`.
pub(super) fn sole_cluster(service: &Service) -> Option<&ClusterKey> {
    let proxied = matches!(service.path, Path::Proxy(_));
    let opens = service.on_agent_failure == OnAgentFailure::Open;
    if proxied && !opens || service.resolution == Resolution::None {
        return None;
    }
    let first = &service.views.first()?.cluster.key;
    let all = service.views.iter();
    all.map(|view| &view.cluster.key)
        .all(|key| key == first)
        .then_some(first)
}

/// The kernel's way to balance; `None` where it has none.
fn balance(policy: &TrafficPolicy) -> Option<DirectBalance> {
    match policy.load_balancer.algorithm {
        Algorithm::RoundRobin => Some(DirectBalance::RoundRobin),
        Algorithm::Random => Some(DirectBalance::Random),
        Algorithm::LeastRequest => Some(DirectBalance::LeastConnections),
        Algorithm::Passthrough | Algorithm::Hash { .. } => None,
    }
}

fn plan_of(policy: &TrafficPolicy, balance: DirectBalance) -> DirectPlan {
    let pool = &policy.connection_pool;
    DirectPlan {
        balance,
        max_connections: (pool.max_connections != u32::MAX).then_some(pool.max_connections),
        connect_timeout: Some(pool.connect_timeout),
        keepalive: pool.keepalive.map(|keepalive| DirectKeepalive {
            idle: keepalive.time.unwrap_or_default(),
            interval: keepalive.interval.unwrap_or_default(),
            probes: keepalive.probes.unwrap_or_default(),
        }),
        slots: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_equal_shares_repeats_after_one_round() {
        assert_eq!(period([25; 10].into_iter()), 10);
        assert_eq!(period([2, 4, 6].into_iter()), 6);
        assert_eq!(period([3, 4].into_iter()), 7);
        assert_eq!(period([].into_iter()), 0);
    }

    #[test]
    fn an_endpoint_has_one_number_for_every_agent() {
        let address = SocketAddr::from(([203, 0, 113, 1], 80));
        assert_eq!(number(ServiceId(1), address), number(ServiceId(1), address));
        assert_ne!(number(ServiceId(1), address), number(ServiceId(2), address));
        // Written down, since an agent of another version must agree.
        assert_eq!(number(ServiceId(1), address), 7_776_184_259_020_771_118);
    }
}

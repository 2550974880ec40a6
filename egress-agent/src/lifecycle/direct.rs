//! The direct path: gives the kernel the endpoints that it may pick, and turns
//! its reports into verdicts, records and metrics.

use std::collections::{HashMap, HashSet};
use std::hash::Hasher;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::Instant;
use twox_hash::XxHash64;

use super::bridges::Callers;
use super::drains::Drains;
use crate::account::{Account, DirectConnection, DirectEnd};
use crate::capture::{
    Captured, DirectBalance, DirectKeepalive, DirectOutcome, DirectPlan, DirectReport,
    DirectReports, DirectSlot, Kernel, ResetBy,
};
use crate::endpoint::resolved::Destination;
use crate::endpoint::{Changes, Endpoint, EndpointSet, Generation, Live, Outcome};
use crate::flag::Flag;
use crate::identify::Callers as _;
use crate::policy::model::{Algorithm, Resolution, TrafficPolicy};
use crate::policy::snapshot::{Client, OnAgentFailure, Path, Service, ServiceId};

/// Places in a service's slot table. Weights are rounded to shares of it.
const SLOTS: u16 = 256;
/// How often counters of what is gone are freed, and plans of services that
/// are gone taken away.
const COLLECT: Duration = Duration::from_secs(5);
/// Reports taken in a row before others have their turn.
const BATCH: usize = 256;
/// How long plans and addresses of an agent before stay in force while their
/// names are not resolved again.
const ADOPTED: Duration = Duration::from_secs(10);

/// Owner of the kernel's plans.
pub(super) struct Direct {
    kernel: Arc<Kernel>,
    live: Arc<ArcSwap<Live>>,
    callers: Callers,
    account: Account,
    client: Client,
    /// Services that have a plan. The kernel's room keeps what it says.
    planned: HashSet<ServiceId>,
    /// Services whose plan is that of an agent before.
    adopted: HashSet<ServiceId>,
    /// Until when it stays if nothing takes its place.
    adopted_until: Option<Instant>,
    /// What the endpoint number of a report stands for.
    seats: HashMap<u64, Seat>,
    drains: Drains,
}

/// Services of which the kernel has a plan already.
fn planned(kernel: &Kernel) -> HashSet<ServiceId> {
    let plans = kernel.adopted_plans().into_iter();
    plans.map(|(service, _)| service).collect()
}

struct Seat {
    set: Arc<EndpointSet>,
    endpoint: Arc<Endpoint>,
    generation: Generation,
}

impl Direct {
    pub(super) fn new(
        kernel: Arc<Kernel>,
        live: Arc<ArcSwap<Live>>,
        callers: Callers,
        account: Account,
        namespace: &Arc<str>,
        drains: Drains,
    ) -> Self {
        let planned = planned(&kernel);
        Self {
            adopted: planned.clone(),
            adopted_until: kernel.is_adopted().then(|| Instant::now() + ADOPTED),
            kernel,
            live,
            callers,
            account,
            client: Client {
                namespace: Arc::clone(namespace),
                labels: Arc::default(),
            },
            planned,
            seats: HashMap::new(),
            drains,
        }
    }

    /// Follows endpoint sets and reports for ever. While `paused` is true
    /// another agent does both.
    pub(super) async fn run(
        mut self,
        mut changes: Changes,
        reports: DirectReports,
        mut paused: watch::Receiver<bool>,
    ) {
        let mut reports = match reports.watched() {
            Ok(reports) => reports,
            Err(error) => {
                tracing::error!("direct connections are not reported: {error}");
                return;
            }
        };
        let mut collect = tokio::time::interval(COLLECT);
        collect.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if *paused.borrow_and_update() {
                if paused.wait_for(|paused| !paused).await.is_err() {
                    return;
                }
                self.resume();
            }
            tokio::select! {
                // An agent that is about to end drops the sender.
                Ok(()) = paused.changed() => {}
                sets = changes.next() => {
                    for set in sets {
                        self.plan(&set);
                    }
                }
                ready = reports.readable_mut() => {
                    let Ok(mut ready) = ready else { return };
                    let ring = ready.get_inner_mut();
                    let mut batch = Vec::new();
                    while batch.len() < BATCH && let Some(report) = ring.next() {
                        batch.push(report);
                    }
                    if batch.len() < BATCH {
                        ready.clear_ready();
                    }
                    for report in batch {
                        self.report(report);
                    }
                }
                _ = collect.tick() => self.collect(),
            }
        }
    }

    /// The other agent gave up: what it wrote is replaced.
    fn resume(&mut self) {
        self.planned = planned(&self.kernel);
        let live = self.live.load_full();
        for set in &live.sets {
            self.plan(set);
        }
    }

    /// Writes the plan of the service whose cluster changed.
    fn plan(&mut self, set: &Arc<EndpointSet>) {
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

    fn remove(&mut self, id: ServiceId) {
        if self.planned.remove(&id)
            && let Err(error) = self.kernel.remove_direct(id)
        {
            tracing::error!("{error}");
        }
    }

    fn collect(&mut self) {
        if self
            .adopted_until
            .is_some_and(|until| until <= Instant::now())
        {
            self.adopted_until = None;
            for id in std::mem::take(&mut self.adopted) {
                self.remove(id);
            }
            match self.kernel.forget_adopted() {
                Ok(0) => {}
                Ok(gone) => tracing::debug!(gone, "addresses of the agent before are forgotten"),
                Err(error) => tracing::error!("{error}"),
            }
        }
        let live = self.live.load();
        let gone: Vec<ServiceId> = self
            .planned
            .iter()
            .filter(|id| {
                live.snapshot
                    .service(**id)
                    .is_none_or(|service| sole_cluster(service).is_none())
            })
            .copied()
            .collect();
        for id in gone {
            self.remove(id);
        }
        let now = Instant::now();
        let mut over = Vec::new();
        self.seats.retain(|number, seat| {
            let open = self.kernel.direct_connections_of(*number).unwrap_or(0);
            let drained = seat.endpoint.drain_deadline().is_some_and(|at| at <= now);
            if open > 0
                && drained
                && let Destination::Tcp(address) = seat.endpoint.destination
            {
                over.push((address, *number));
            }
            seat.endpoint
                .set_direct_connections(u32::try_from(open).unwrap_or(u32::MAX));
            open > 0 || !seat.endpoint.is_gone()
        });
        self.drains.cut(&self.kernel, over);
        if let Err(error) = self.kernel.collect_direct() {
            tracing::error!("{error}");
        }
    }

    fn report(&self, report: DirectReport) {
        let seat = report.endpoint.and_then(|number| self.seats.get(&number));
        let verdict = match report.outcome {
            DirectOutcome::Established => Some(Outcome::Connected),
            DirectOutcome::Failed => Some(Outcome::ConnectFailed),
            _ => None,
        };
        if let (Some(seat), Some(verdict)) = (seat, verdict) {
            seat.set.report(&seat.endpoint, seat.generation, verdict);
        }
        let live = self.live.load();
        let Some(service) = live.snapshot.service(report.service) else {
            return;
        };
        let workload = self.callers.workload_of(&report.caller);
        let end = match report.outcome {
            DirectOutcome::Established => {
                return self.account.direct_opened(service, &workload);
            }
            outcome => end(outcome, report.destination),
        };
        let Some(cluster) = seat
            .map(|seat| seat.set.cluster())
            .or_else(|| Some(Arc::clone(&service.views.last()?.cluster)))
        else {
            return;
        };
        let connection = DirectConnection {
            captured: Captured {
                peer: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
                original: report.original,
                service: report.service,
                name_decides: false,
                caller: report.caller,
            },
            workload,
            service: Arc::clone(service),
            cluster,
            endpoint: report.destination.map(Destination::Tcp),
            age: report.age,
            handshake: report.handshake,
        };
        self.account.direct_ended(connection, end);
    }
}

fn end(outcome: DirectOutcome, destination: Option<SocketAddr>) -> DirectEnd {
    let failed = |flag, cause: String| DirectEnd::Failed {
        flag,
        cause,
        received: 0,
        sent: 0,
    };
    let to = || destination.map_or_else(String::new, |address| format!(" to {address}"));
    match outcome {
        DirectOutcome::Closed {
            sent,
            received,
            reset: None,
        } => DirectEnd::Closed {
            received: sent,
            sent: received,
        },
        // It reached the other side as it was.
        DirectOutcome::Closed {
            sent,
            received,
            reset: Some(by),
        } => DirectEnd::Failed {
            flag: match by {
                ResetBy::Application => Flag::DownstreamConnectionTermination,
                ResetBy::Endpoint => Flag::UpstreamConnectionTermination,
            },
            cause: match by {
                ResetBy::Application => "the application reset the connection".to_owned(),
                ResetBy::Endpoint => {
                    format!("the connection{} was reset, or timed out", to())
                }
            },
            received: sent,
            sent: received,
        },
        DirectOutcome::Overflow => failed(
            Flag::UpstreamOverflow,
            "every place under maxConnections is taken".to_owned(),
        ),
        DirectOutcome::NoEndpoint => failed(
            Flag::NoHealthyUpstream,
            "no endpoint may be used: all are ejected or failed their health check".to_owned(),
        ),
        DirectOutcome::Failed | DirectOutcome::Established => failed(
            Flag::UpstreamConnectionFailure,
            format!("connecting{} failed: refused, timed out or given up", to()),
        ),
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
fn sole_cluster(service: &Service) -> Option<&crate::policy::snapshot::ClusterKey> {
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

//! The direct path: gives the kernel the endpoints that it may pick, and turns
//! its reports into verdicts, records and metrics.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use self::plans::sole_cluster;
use self::reports::Reading;
use super::bridges::Callers;
use super::drains::Drains;
use crate::account::Account;
use crate::capture::{DirectReports, Kernel};
use crate::endpoint::resolved::Destination;
use crate::endpoint::{Changes, Endpoint, EndpointSet, Generation, Live};
use crate::policy::snapshot::{Client, ServiceId};

mod plans;
mod reports;

/// How often counters of what is gone are freed, and plans of services that
/// are gone taken away.
const COLLECT: Duration = Duration::from_secs(5);
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
        self,
        mut changes: Changes,
        reports: DirectReports,
        mut paused: watch::Receiver<bool>,
    ) {
        let reports = match reports.watched() {
            Ok(reports) => reports,
            Err(error) => {
                tracing::error!("direct connections are not reported: {error}");
                return;
            }
        };
        let mut collect = interval(COLLECT);
        collect.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reading = Reading::new(self, reports, paused.clone());
        loop {
            if *paused.borrow_and_update() {
                if paused.wait_for(|paused| !paused).await.is_err() {
                    return;
                }
                reading.direct.resume();
                reading.look_again();
            }
            let again = reading.again;
            tokio::select! {
                // An agent that is about to end drops the sender.
                Ok(()) = paused.changed() => {}
                sets = changes.next() => {
                    for set in sets {
                        reading.direct.plan(&set);
                    }
                }
                ready = reading.reports.readable_mut() => {
                    let Ok(mut ready) = ready else { return };
                    if reading.direct.read(ready.get_inner_mut()) {
                        ready.clear_ready();
                    }
                    reading.look_again();
                }
                () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {
                    if reading.direct.read(reading.reports.get_mut()) {
                        reading.again = None;
                    }
                }
                _ = collect.tick() => reading.direct.collect(),
            }
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
}

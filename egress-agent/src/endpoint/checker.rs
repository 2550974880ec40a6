//! When active health checks run: every endpoint at its own time, with jitter,
//! and never more than a number of them at once.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use super::changes::Changes;
use super::health::{ProbeFailure, ProbeTarget, Prober};
use super::host::{Endpoint, EndpointId};
use super::set::EndpointSet;

#[derive(Debug)]
struct Plan {
    set: Weak<EndpointSet>,
    endpoint: Arc<Endpoint>,
    /// `None` while a check runs.
    due: Option<Instant>,
}

pub(super) struct Checker {
    changes: Changes,
    prober: Arc<dyn Prober>,
    /// Checks that may run at once.
    limit: usize,
    plans: HashMap<EndpointId, Plan>,
    queue: BinaryHeap<Reverse<(Instant, EndpointId)>>,
    running: JoinSet<Result<(), ProbeFailure>>,
    tasks: HashMap<Id, EndpointId>,
}

impl Checker {
    pub(super) fn new(changes: Changes, prober: Arc<dyn Prober>, limit: usize) -> Self {
        Self {
            changes,
            prober,
            limit: limit.max(1),
            plans: HashMap::new(),
            queue: BinaryHeap::new(),
            running: JoinSet::new(),
            tasks: HashMap::new(),
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            let due = self.queue.peek().map(|Reverse((due, _))| *due);
            let room = self.running.len() < self.limit;
            tokio::select! {
                sets = self.changes.next() => {
                    let now = Instant::now();
                    for set in &sets {
                        self.plan(set, now);
                    }
                }
                Some(done) = self.running.join_next_with_id(), if !self.running.is_empty() => {
                    match done {
                        Ok((task, result)) => self.finish(task, result),
                        // The probe panicked: a failure like any other.
                        Err(error) => self.finish(error.id(), Err(ProbeFailure::Protocol)),
                    }
                }
                () = wait(due), if room && due.is_some() => self.start(Instant::now()),
            }
        }
    }

    /// Plans checks of endpoints that have none, and brings forward those that
    /// are further away than a shortened interval.
    fn plan(&mut self, set: &Arc<EndpointSet>, now: Instant) {
        let cluster = set.cluster();
        let Some(check) = &cluster.policy.health_check else {
            return;
        };
        if set.is_dialled() {
            // Nobody asked us to knock at every address that clients dial.
            return;
        }
        for endpoint in set.endpoints() {
            let id = endpoint.id;
            let plan = self.plans.entry(id).or_insert_with(|| Plan {
                set: Arc::downgrade(set),
                endpoint: Arc::clone(&endpoint),
                due: Some(now + check.interval * 2),
            });
            plan.endpoint = endpoint;
            if plan
                .due
                .is_some_and(|due| due > now + longest(check.interval))
            {
                // The first checks of many endpoints are spread evenly.
                let due = now + check.interval.mul_f64(fastrand::f64());
                plan.due = Some(due);
                self.queue.push(Reverse((due, id)));
            }
        }
    }

    fn start(&mut self, now: Instant) {
        let Some(Reverse((due, id))) = self.queue.pop() else {
            return;
        };
        let Some(plan) = self.plans.get_mut(&id).filter(|p| p.due == Some(due)) else {
            // Replanned since.
            return;
        };
        debug_assert!(due <= now, "started before its time");
        let set = plan.set.upgrade().filter(|_| !plan.endpoint.is_gone());
        let target = set.and_then(|set| {
            let cluster = set.cluster();
            let check = cluster.policy.health_check.clone()?;
            Some((cluster, check))
        });
        let Some((cluster, check)) = target else {
            self.plans.remove(&id);
            return;
        };
        plan.due = None;
        let endpoint = Arc::clone(&plan.endpoint);
        let probe = self.prober.probe(ProbeTarget { cluster, endpoint });
        let task = self.running.spawn(async move {
            let checked = timeout(check.timeout, probe).await;
            checked.unwrap_or(Err(ProbeFailure::Timeout))
        });
        self.tasks.insert(task.id(), id);
    }

    fn finish(&mut self, task: Id, result: Result<(), ProbeFailure>) {
        let Some(id) = self.tasks.remove(&task) else {
            return;
        };
        let Some(plan) = self.plans.get_mut(&id) else {
            return;
        };
        let set = plan.set.upgrade();
        let interval = set.as_ref().and_then(|set| {
            let cluster = set.cluster();
            cluster.policy.health_check.as_ref().map(|c| c.interval)
        });
        let (Some(set), Some(interval)) = (set, interval) else {
            self.plans.remove(&id);
            return;
        };
        let now = Instant::now();
        set.checked(id, result, now);
        let due = now + interval.mul_f64(0.9 + 0.2 * fastrand::f64());
        plan.due = Some(due);
        self.queue.push(Reverse((due, id)));
    }
}

/// An interval with its full jitter.
fn longest(interval: Duration) -> Duration {
    interval.mul_f64(1.1) + Duration::from_millis(1)
}

async fn wait(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

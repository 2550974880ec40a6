//! Tells the operator what `registry-only` refuses.

use std::sync::Arc;
use std::time::Duration;

use egress_common::caller::Refusal;
use tokio::time::Instant;

use super::capture_metrics::CaptureMetrics;
use crate::admin::view;
use crate::capture::{Refusals, Unregistered};
use crate::dns::registry::Registry as Names;
use crate::dns::seen::SeenNames;
use crate::workload::Workload;
use crate::workload::directory::Directory;

/// Lines that one second may have; more are counted, and the count is told.
const LINES: u32 = 20;
const SECOND: Duration = Duration::from_secs(1);
/// Reports taken in a row before others have their turn.
const BATCH: usize = 256;

/// A limit on lines, with a count of those that were left out.
#[derive(Debug)]
struct Limit {
    since: Instant,
    said: u32,
    left_out: u64,
}

impl Limit {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            said: 0,
            left_out: 0,
        }
    }

    /// Whether a line may go out; if it is the first after some that were left
    /// out, how many those were.
    fn allow(&mut self) -> Option<u64> {
        if self.since.elapsed() >= SECOND {
            self.since = Instant::now();
            self.said = 0;
        }
        if self.said >= LINES {
            self.left_out += 1;
            return None;
        }
        self.said += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

/// Counts and logs refusals for ever, each caller and destination at most once in ten
/// seconds.
pub(super) async fn tell_refusals(
    refusals: Refusals,
    directory: Directory,
    names: Arc<Names>,
    metrics: CaptureMetrics,
) {
    let mut reports = match refusals.watched() {
        Ok(reports) => reports,
        Err(error) => {
            tracing::error!("refusals are not told: {error}");
            return;
        }
    };
    let mut limit = Limit::new();
    loop {
        let mut batch: Vec<Refusal> = Vec::new();
        {
            let Ok(mut ready) = reports.readable_mut().await else {
                return;
            };
            let ring = ready.get_inner_mut();
            while batch.len() < BATCH
                && let Some(report) = ring.next()
            {
                batch.push(report);
            }
            if batch.len() < BATCH {
                ready.clear_ready();
            }
        }
        for report in batch {
            let refused = Refusals::read(&report);
            let caller = &refused.caller;
            let workload = directory.lookup(caller.cgroup, caller.pid).await;
            metrics.refused(&report, &workload.client.namespace, &workload.name);
            if let Some(left_out) = limit.allow() {
                tell(&refused, left_out, &workload, &names);
            }
        }
    }
}

fn tell(refused: &Unregistered, left_out: u64, workload: &Workload, names: &Names) {
    let caller = &refused.caller;
    let names = names.seen().names(refused.destination.ip());
    if left_out > 0 {
        tracing::warn!(left_out, "refusals were not told one by one: too many");
    }
    tracing::warn!(
        namespace = &*workload.client.namespace,
        workload = &*workload.name,
        cgroup = &*workload.cgroup,
        pid = caller.pid,
        uid = caller.uid,
        comm = %caller.comm,
        netns = caller.netns,
        destination = %refused.destination,
        transport = %refused.transport,
        name = names.first().map_or("", |name| &**name),
        count = refused.count,
        "refused: not registered"
    );
}

/// A destination as the admin API tells it.
pub(super) fn view(
    one: &Unregistered,
    directory: &Directory,
    names: &SeenNames,
) -> view::Unregistered {
    let caller = &one.caller;
    let workload = directory
        .known(caller.cgroup)
        .unwrap_or_else(|| directory.stranger());
    view::Unregistered {
        namespace: workload.client.namespace.to_string(),
        workload: workload.name.to_string(),
        cgroup: workload.cgroup.to_string(),
        comm: caller.comm.to_string(),
        pid: caller.pid,
        uid: caller.uid,
        netns: caller.netns,
        destination: one.destination.to_string(),
        transport: one.transport.to_string(),
        names: names
            .names(one.destination.ip())
            .iter()
            .map(ToString::to_string)
            .collect(),
        refused: one.refused,
        count: one.count,
        first_seconds: one.first.as_secs(),
        last_seconds: one.last.as_secs(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn lines_are_limited_and_those_left_out_are_counted() {
        let mut limit = Limit::new();
        for _ in 0..LINES {
            assert_eq!(limit.allow(), Some(0));
        }
        assert_eq!((limit.allow(), limit.allow()), (None, None));
        tokio::time::advance(SECOND).await;
        assert_eq!((limit.allow(), limit.allow()), (Some(2), Some(0)));
    }
}

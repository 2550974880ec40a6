//! What the kernel's reports mean: verdicts on endpoints, records and metrics.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Direct;
use crate::account::{DirectConnection, DirectEnd};
use crate::capture::{Captured, DirectOutcome, DirectReport, DirectReports, ResetBy};
use crate::endpoint::Outcome;
use crate::endpoint::resolved::Destination;
use crate::flag::Flag;
use crate::identify::Callers as _;

/// Reports taken in a row before others have their turn.
const BATCH: usize = 256;

/// The reports and who reads them. Those that the kernel did not find worth a
/// wake-up are read when this is dropped: the agent ends.
pub(super) struct Reading {
    pub(super) direct: Direct,
    pub(super) reports: AsyncFd<DirectReports>,
    /// When to look for reports that came without a wake-up.
    pub(super) again: Option<Instant>,
    /// Another agent reads them.
    paused: watch::Receiver<bool>,
}

impl Reading {
    pub(super) fn new(
        direct: Direct,
        reports: AsyncFd<DirectReports>,
        paused: watch::Receiver<bool>,
    ) -> Self {
        let mut new = Self {
            direct,
            reports,
            again: None,
            paused,
        };
        // The agent before may have been woken just now.
        new.look_again();
        new
    }

    /// The kernel has woken us, and will not for a while.
    pub(super) fn look_again(&mut self) {
        self.again = Some(Instant::now() + DirectReports::LOOK_AGAIN);
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        if !*self.paused.borrow() {
            // More than the ring holds; what still comes is the next agent's.
            (0..32).any(|_| self.direct.read(self.reports.get_mut()));
        }
    }
}

impl Direct {
    /// Takes some reports; true: there are no more.
    pub(super) fn read(&self, reports: &mut DirectReports) -> bool {
        let mut left = BATCH;
        while left > 0 {
            let Some(report) = reports.next() else {
                return true;
            };
            self.report(report);
            left -= 1;
        }
        false
    }

    pub(super) fn report(&self, report: DirectReport) {
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

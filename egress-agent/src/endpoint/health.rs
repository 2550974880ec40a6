//! Active health checks (`egress-agent.dev/health-check`): what a check says,
//! and what follows from it.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use tokio::time::Instant;

use super::host::{Endpoint, EndpointId, OUT_UNHEALTHY};
use super::pool::Pool;
use super::shared::bump;
use crate::policy::model::HealthCheck;
use crate::policy::snapshot::Cluster;

/// What is to be checked: `cluster.policy.health_check` says how.
#[derive(Clone, Debug)]
pub struct ProbeTarget {
    /// The cluster, with its TLS settings.
    pub cluster: Arc<Cluster>,
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
}

/// Why a check failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProbeFailure {
    /// No connection.
    Connect(io::ErrorKind),
    /// Not done within `timeout`.
    Timeout,
    /// The TLS handshake failed.
    Tls,
    /// A status that is not among those expected.
    Status(u16),
    /// No valid HTTP response.
    Protocol,
    /// The check could not be made, for a reason of this node: it says nothing
    /// about the endpoint.
    NotTried,
}

impl fmt::Display for ProbeFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(kind) => write!(f, "connect: {kind}"),
            Self::Timeout => f.write_str("timeout"),
            Self::Tls => f.write_str("TLS handshake failed"),
            Self::Status(status) => write!(f, "status {status}"),
            Self::Protocol => f.write_str("no valid HTTP response"),
            Self::NotTried => f.write_str("not tried"),
        }
    }
}

impl std::error::Error for ProbeFailure {}

/// The future of one check.
pub type ProbeFuture = Pin<Box<dyn Future<Output = Result<(), ProbeFailure>> + Send>>;

/// Carries out checks. The deadline is kept by the caller, which drops the
/// future.
pub trait Prober: Send + Sync {
    /// Checks one endpoint.
    fn probe(&self, target: ProbeTarget) -> ProbeFuture;
}

/// What the checks of one endpoint said so far.
#[derive(Debug, Default)]
pub(super) struct CheckState {
    failures: u32,
    successes: u32,
    /// Why it is out; `None` while it counts as healthy. An endpoint that was
    /// not checked yet is taken as healthy, so that a start of the agent is no
    /// outage.
    pub(super) unhealthy: Option<ProbeFailure>,
    pub(super) last: Option<Instant>,
}

impl CheckState {
    /// Takes a result; true when the endpoint went out or came back.
    fn record(&mut self, policy: &HealthCheck, result: Result<(), ProbeFailure>) -> bool {
        match result {
            Ok(()) => {
                self.failures = 0;
                self.successes = self.successes.saturating_add(1);
                if self.unhealthy.is_some() && self.successes >= policy.healthy_threshold {
                    self.unhealthy = None;
                    return true;
                }
                false
            }
            Err(failure) => {
                self.successes = 0;
                self.failures = self.failures.saturating_add(1);
                let was = self.unhealthy.is_some();
                if was || self.failures >= policy.unhealthy_threshold {
                    self.unhealthy = Some(failure);
                }
                self.unhealthy.is_some() && !was
            }
        }
    }
}

impl Pool {
    /// Takes the result of a check into account.
    pub(super) fn checked(&self, id: EndpointId, result: Result<(), ProbeFailure>, now: Instant) {
        let config = self.shared.config.load();
        let mut inner = self.lock();
        let Some(policy) = &config.policy().health_check else {
            return;
        };
        let Some(member) = inner.members.iter_mut().find(|member| member.id() == id) else {
            return;
        };
        let counters = &self.shared.counters;
        match result {
            Err(ProbeFailure::NotTried) => return,
            Err(_) => bump(&counters.checks_failed),
            Ok(()) => bump(&counters.checks_passed),
        }
        member.check.last = Some(now);
        if !member.check.record(policy, result) {
            return;
        }
        let out = member.check.unhealthy;
        member.set_out(OUT_UNHEALTHY, out.is_some());
        let (cluster, endpoint) = (self.shared.name(), &member.endpoint.destination);
        if let Some(why) = out {
            tracing::warn!(%cluster, %endpoint, %why, "endpoint fails its health check");
        } else {
            // Envoy's slow start begins again here too.
            member.since = now;
            tracing::info!(%cluster, %endpoint, "endpoint passes its health check");
        }
        self.publish(&inner, &config, now);
    }
}

//! What a set looks like from outside: `egressctl proxy-config endpoints`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::eject::{ejection_end, millis};
use super::host::Endpoint;
use super::limits::LimitKind;
use super::outlier::EjectReason;
use super::pool::{Member, Pool};
use super::set::EndpointSet;
use super::table::Table;
use crate::policy::model::{Algorithm, HashTable, OutlierDetection, Resolution};

/// State of a set at one moment.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SetStatus {
    /// Host of the service.
    pub host: String,
    /// Port of the service.
    pub port: u16,
    /// Namespace of the ServiceEntry.
    pub namespace: Arc<str>,
    /// Subset, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subset: Option<Box<str>>,
    /// DestinationRule as `namespace/name`, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_rule: Option<Box<str>>,
    /// `resolution`.
    pub resolution: &'static str,
    /// `loadBalancer`.
    pub load_balancer: &'static str,
    /// Milliseconds since resolution last succeeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolved_ms_ago: Option<u64>,
    /// Why resolution last failed, while it has not succeeded since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolution_error: Option<Arc<str>>,
    /// Priority levels, for a client without labels.
    pub levels: Vec<LevelStatus>,
    /// Limits.
    pub limits: Vec<LimitStatus>,
    /// Endpoints.
    pub endpoints: Vec<EndpointStatus>,
}

/// One priority level.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LevelStatus {
    /// From 0, the first used.
    pub priority: usize,
    /// Endpoints that may be picked.
    pub healthy: u32,
    /// All endpoints.
    pub total: u32,
    /// Share of the load.
    pub load_percent: u32,
    /// All are used, healthy or not (`minHealthPercent`).
    pub panic: bool,
}

/// One limit.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LimitStatus {
    /// Istio field.
    pub name: &'static str,
    /// Taken now.
    pub current: u32,
    /// Limit; none when it is 2^32-1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Times that it was reached.
    pub overflows: u64,
}

/// One endpoint.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointStatus {
    /// Where.
    pub address: String,
    /// Name that it was resolved from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Arc<str>>,
    /// `region/zone/subzone`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub locality: String,
    /// Priority level, for a client without labels; none when no level uses
    /// it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<usize>,
    /// `weight`.
    pub weight: u32,
    /// State.
    #[serde(flatten)]
    pub state: EndpointState,
    /// Open connections of the agent.
    pub active_connections: u32,
    /// Open connections of the direct path.
    pub direct_connections: u32,
    /// Requests in flight (HTTP) or connections (TCP).
    pub active_requests: u32,
    /// Times picked.
    pub picks: u64,
    /// Connections opened.
    pub connections: u64,
    /// Good verdicts.
    pub successes: u64,
    /// Bad verdicts.
    pub failures: u64,
    /// Connect attempts that failed.
    pub connect_failures: u64,
    /// Times ejected.
    pub ejections: u64,
    /// Errors in a row: 5xx, gateway, local.
    pub consecutive: [u16; 3],
    /// The newest failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<FailureStatus>,
}

/// A failure.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FailureStatus {
    /// What.
    pub what: String,
    /// Milliseconds ago.
    pub ms_ago: u64,
}

/// Whether an endpoint may be picked, and if not, why.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(
    tag = "state",
    rename_all = "kebab-case",
    rename_all_fields = "camelCase"
)]
pub enum EndpointState {
    /// May be picked.
    Healthy,
    /// Ejected by outlier detection.
    Ejected {
        /// Which counter reached its limit.
        reason: EjectReason,
        /// Ejections in a row.
        times: u32,
        /// Milliseconds until its time is over; the next `interval` sweep
        /// readmits it.
        remaining_ms: u64,
        /// When that is, RFC 3339.
        until: String,
    },
    /// Fails its active health check.
    Unhealthy {
        /// Why.
        reason: String,
    },
    /// Vanished from DNS; its connections drain.
    Draining {
        /// Milliseconds until they are closed.
        remaining_ms: u64,
        /// When that is, RFC 3339.
        until: String,
    },
    /// Vanished; its connections go on until they end.
    Gone,
}

impl EndpointSet {
    /// What the set looks like now.
    pub fn status(&self) -> SetStatus {
        let now = Instant::now();
        let config = self.shared.config.load();
        let (key, cluster) = (self.key(), &config.cluster);
        let resolution = self
            .resolution
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone();
        let error = resolution
            .failure
            .filter(|(at, _)| resolution.success.is_none_or(|success| success < *at));
        let levels = self.pool.table(None);
        let levels = levels.iter().flat_map(|table| table.levels.iter());
        let limit = |kind: LimitKind| {
            let limit = self.shared.limits.limit(kind);
            LimitStatus {
                name: kind.field(),
                current: self.shared.limits.current(kind),
                limit: (limit != u32::MAX).then_some(limit),
                overflows: self.shared.limits.overflows(kind),
            }
        };
        SetStatus {
            host: key.service.host.to_string(),
            port: key.service.port,
            namespace: Arc::clone(&key.service.namespace),
            subset: (!key.subset.is_empty()).then(|| key.subset.clone()),
            destination_rule: (!key.rule.is_empty()).then(|| key.rule.clone()),
            resolution: match cluster.target.resolution {
                Resolution::None => "NONE",
                Resolution::Static => "STATIC",
                Resolution::Dns => "DNS",
                Resolution::DnsRoundRobin => "DNS_ROUND_ROBIN",
                Resolution::DynamicDns => "DYNAMIC_DNS",
            },
            load_balancer: match cluster.policy.load_balancer.algorithm {
                Algorithm::LeastRequest => "LEAST_REQUEST",
                Algorithm::RoundRobin => "ROUND_ROBIN",
                Algorithm::Random => "RANDOM",
                Algorithm::Passthrough => "PASSTHROUGH",
                Algorithm::Hash { table, .. } => match table {
                    HashTable::Ring(_) => "RING_HASH",
                    HashTable::Maglev(_) => "MAGLEV",
                },
            },
            resolved_ms_ago: resolution
                .success
                .map(|at| millis(now.saturating_duration_since(at))),
            resolution_error: error.map(|(_, error)| error),
            levels: levels
                .enumerate()
                .map(|(priority, level)| LevelStatus {
                    priority,
                    healthy: level.health.healthy,
                    total: level.health.total,
                    load_percent: level.load.percent,
                    panic: level.load.panic,
                })
                .collect(),
            limits: LimitKind::ALL.into_iter().map(limit).collect(),
            endpoints: self
                .pools()
                .iter()
                .flat_map(|pool| pool.status(config.outlier(), now))
                .collect(),
        }
    }
}

impl Pool {
    fn status(&self, policy: Option<&OutlierDetection>, now: Instant) -> Vec<EndpointStatus> {
        let table = self.table(None);
        let inner = self.lock();
        let age = self.shared.age(now);
        let present = inner.members.iter().map(|member| {
            let state = match (member.ejection, policy, &member.check.unhealthy) {
                (Some(ejection), Some(policy), _) => {
                    let end = ejection_end(policy, ejection, member.times);
                    let left = end.saturating_duration_since(now);
                    EndpointState::Ejected {
                        reason: ejection.reason,
                        times: member.times,
                        remaining_ms: millis(left),
                        until: wall_clock(left),
                    }
                }
                (_, _, Some(failure)) => EndpointState::Unhealthy {
                    reason: failure.to_string(),
                },
                _ => EndpointState::Healthy,
            };
            describe(member, state, table.as_deref(), age)
        });
        let departed = inner.departed.iter().map(|departed| {
            let state = match departed.member.endpoint.drain_deadline() {
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(now);
                    EndpointState::Draining {
                        remaining_ms: millis(left),
                        until: wall_clock(left),
                    }
                }
                None => EndpointState::Gone,
            };
            describe(&departed.member, state, None, age)
        });
        present.chain(departed).collect()
    }
}

fn describe(
    member: &Member,
    state: EndpointState,
    table: Option<&Table>,
    age: Duration,
) -> EndpointStatus {
    let endpoint: &Endpoint = &member.endpoint;
    let counters = endpoint.counters();
    let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let failure = endpoint.state.last_failure.get();
    EndpointStatus {
        address: endpoint.destination.to_string(),
        name: endpoint.name.clone(),
        locality: endpoint.locality.to_string(),
        priority: table.and_then(|table| {
            let mut levels = table.levels.iter();
            levels.position(|level| level.all.iter().any(|other| other.id == endpoint.id))
        }),
        weight: endpoint.weight,
        state,
        active_connections: endpoint.active_connections(),
        direct_connections: endpoint.direct_connections(),
        active_requests: endpoint.active_requests(),
        picks: read(&counters.picks),
        connections: read(&counters.connections),
        successes: read(&counters.successes),
        failures: read(&counters.failures),
        connect_failures: read(&counters.connect_failures),
        ejections: read(&counters.ejections),
        consecutive: endpoint.state.tally.counts(),
        last_failure: failure.map(|(outcome, at)| FailureStatus {
            what: outcome.to_string(),
            ms_ago: millis(age.saturating_sub(at)),
        }),
    }
}

/// The time of day a while from now.
fn wall_clock(left: Duration) -> String {
    let until = jiff::Timestamp::now() + left;
    format!("{until:.0}")
}

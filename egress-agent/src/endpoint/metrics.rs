//! The endpoint sets as metrics, read when they are asked for.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::live::Live;
use super::set::EndpointSet;
use super::status::{EndpointState, EndpointStatus, LimitStatus, SetStatus};

/// A set with more endpoints than this is told as a whole only.
const ENDPOINTS_OF_A_SET: usize = 100;
/// Endpoints told one by one, over all sets.
const ENDPOINTS: usize = 2000;

/// Reads what the sets in force have counted.
#[derive(Debug)]
pub struct Metrics(Arc<ArcSwap<Live>>);

impl Metrics {
    /// Of the sets of what is in force.
    pub const fn new(live: Arc<ArcSwap<Live>>) -> Self {
        Self(live)
    }
}

/// Labels of a set, and up to three more.
type Labels = Vec<(&'static str, String)>;

/// One set at the moment of the scrape.
struct Told {
    set: Arc<EndpointSet>,
    labels: Labels,
    status: SetStatus,
    one_by_one: bool,
}

impl Told {
    /// Labels of one endpoint, and more.
    fn of(&self, endpoint: &EndpointStatus, more: &[(&'static str, &str)]) -> Labels {
        let mut labels = self.labels(&[
            ("address", endpoint.address.as_str()),
            ("name", endpoint.name.as_deref().unwrap_or_default()),
            ("locality", endpoint.locality.as_str()),
        ]);
        let more = more.iter().map(|(key, value)| (*key, (*value).to_owned()));
        labels.extend(more);
        labels
    }

    fn labels(&self, more: &[(&'static str, &str)]) -> Labels {
        let mut labels = self.labels.clone();
        let more = more.iter().map(|(key, value)| (*key, (*value).to_owned()));
        labels.extend(more);
        labels
    }
}

/// Reads a counter of a set.
type Read = fn(&EndpointSet) -> &AtomicU64;
/// Counters told apart by a label, with its values.
type Named = &'static [(&'static str, Read)];
/// Name, help and value of a counter of a set.
type OfSet = (&'static str, &'static str, Read);
/// Value of a gauge of a set.
type GaugeOfSet = (&'static str, &'static str, fn(&EndpointSet) -> &AtomicU32);
/// Value of one limit.
type OfLimit = (
    &'static str,
    &'static str,
    bool,
    fn(&LimitStatus) -> Option<u64>,
);
/// Value of one endpoint.
type OfEndpoint = (&'static str, &'static str, bool, fn(&EndpointStatus) -> u64);

const GAUGES: [GaugeOfSet; 3] = [
    ("egress_endpoints", "Endpoints of a cluster", |set| {
        &set.counters().endpoints
    }),
    (
        "egress_endpoints_available",
        "Endpoints of a cluster that may be picked",
        |set| &set.counters().available,
    ),
    (
        "egress_endpoints_ejected",
        "Endpoints of a cluster that outlier detection has ejected",
        |set| &set.counters().ejected,
    ),
];

const COUNTERS: [OfSet; 4] = [
    (
        "egress_outlier_ejections_refused",
        "Ejections that maxEjectionPercent did not allow",
        |set| &set.counters().ejections_refused,
    ),
    (
        "egress_outlier_readmissions",
        "Ejected endpoints that were readmitted",
        |set| &set.counters().readmissions,
    ),
    (
        "egress_outlier_late_reports",
        "Results that did not count, since their endpoint was ejected or readmitted meanwhile",
        |set| &set.counters().late_reports,
    ),
    (
        "egress_no_endpoint",
        "Picks that found no endpoint (flags UH and DF)",
        |set| &set.counters().no_endpoint,
    ),
];

const EJECTIONS: Named = &[
    ("consecutive-5xx", |set| &set.counters().ejections_5xx),
    ("consecutive-gateway", |set| {
        &set.counters().ejections_gateway
    }),
    ("consecutive-local-origin", |set| {
        &set.counters().ejections_local
    }),
];

const CHECKS: Named = &[
    ("passed", |set| &set.counters().checks_passed),
    ("failed", |set| &set.counters().checks_failed),
];

const LIMITS: [OfLimit; 3] = [
    (
        "egress_limit",
        "Limits of connectionPool, counted for this node over all workers; without a value where \
         there is none",
        false,
        |limit| limit.limit.map(u64::from),
    ),
    (
        "egress_limit_taken",
        "Places taken under a limit",
        false,
        |limit| Some(limit.current.into()),
    ),
    (
        "egress_limit_overflows",
        "Times that a limit was reached",
        true,
        |limit| Some(limit.overflows),
    ),
];

const EACH: [OfEndpoint; 9] = [
    (
        "egress_endpoint_weight",
        "Weight of an endpoint",
        false,
        |endpoint| endpoint.weight.into(),
    ),
    (
        "egress_endpoint_out_seconds",
        "Seconds until the ejection of an endpoint ends, or the connections to one that vanished \
         are closed; 0 for others",
        false,
        |endpoint| match endpoint.state {
            EndpointState::Ejected { remaining_ms, .. }
            | EndpointState::Draining { remaining_ms, .. } => remaining_ms.div_ceil(1000),
            _ => 0,
        },
    ),
    (
        "egress_endpoint_last_failure_timestamp_seconds",
        "When an endpoint failed last, Unix time; 0: never",
        false,
        |endpoint| {
            let failure = endpoint.last_failure.as_ref();
            failure.map_or(0, |failure| unix_seconds_ago(failure.ms_ago))
        },
    ),
    (
        "egress_endpoint_available",
        "Whether an endpoint may be picked",
        false,
        |endpoint| u64::from(endpoint.state == EndpointState::Healthy),
    ),
    (
        "egress_endpoint_connections",
        "Open connections to an endpoint, those of the direct path included",
        false,
        |endpoint| u64::from(endpoint.active_connections) + u64::from(endpoint.direct_connections),
    ),
    (
        "egress_endpoint_requests",
        "Requests (HTTP) or connections (TCP) of an endpoint in flight",
        false,
        |endpoint| endpoint.active_requests.into(),
    ),
    (
        "egress_endpoint_picks",
        "Times that an endpoint was picked",
        true,
        |endpoint| endpoint.picks,
    ),
    (
        "egress_endpoint_failures",
        "Connections and requests that failed by an endpoint",
        true,
        |endpoint| endpoint.failures,
    ),
    (
        "egress_endpoint_ejections",
        "Times that an endpoint was ejected",
        true,
        |endpoint| endpoint.ejections,
    ),
];

fn unix_seconds_ago(ms: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default()
        .saturating_sub(Duration::from_millis(ms))
        .as_secs()
}

/// State and reason, as `proxy-config endpoints` says them.
fn state(state: &EndpointState) -> (&'static str, String) {
    match state {
        EndpointState::Healthy => ("healthy", String::new()),
        EndpointState::Ejected { reason, .. } => ("ejected", reason.to_string()),
        // What a check says may be anything.
        EndpointState::Unhealthy { .. } => ("unhealthy", "health-check".to_owned()),
        EndpointState::Draining { .. } | EndpointState::Gone => ("draining", "dns".to_owned()),
    }
}

fn family<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help, counts): (&str, &str, bool),
    series: impl Iterator<Item = (Labels, u64)> + 'a,
) -> Result<(), fmt::Error> {
    let counter = ConstCounter::new(0_u64);
    let gauge = ConstGauge::new(0_i64);
    let kind = if counts {
        counter.metric_type()
    } else {
        gauge.metric_type()
    };
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    for (labels, value) in series {
        let one = family.encode_family(&labels)?;
        if counts {
            ConstCounter::new(value).encode(one)?;
        } else {
            ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(one)?;
        }
    }
    Ok(())
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let told = self.told();
        let encoder = &mut encoder;
        for (name, help, value) in GAUGES {
            let series = told.iter().map(|told| {
                let value = value(&told.set).load(Relaxed);
                (told.labels.clone(), value.into())
            });
            family(encoder, (name, help, false), series)?;
        }
        for (name, help, value) in COUNTERS {
            let series = told
                .iter()
                .map(|told| (told.labels.clone(), value(&told.set).load(Relaxed)));
            family(encoder, (name, help, true), series)?;
        }
        let named = |label: &'static str, values: Named| {
            let told = &told;
            told.iter().flat_map(move |told| {
                values.iter().map(move |(name, value)| {
                    let labels = told.labels(&[(label, name)]);
                    (labels, value(&told.set).load(Relaxed))
                })
            })
        };
        let help = "Ejections by outlier detection";
        let series = named("reason", EJECTIONS);
        family(encoder, ("egress_outlier_ejections", help, true), series)?;
        let help = "Active health checks";
        let series = named("result", CHECKS);
        family(encoder, ("egress_health_checks", help, true), series)?;
        for (name, help, counts, value) in LIMITS {
            let series = told.iter().flat_map(|told| {
                told.status.limits.iter().filter_map(move |limit| {
                    Some((told.labels(&[("limit", limit.name)]), value(limit)?))
                })
            });
            family(encoder, (name, help, counts), series)?;
        }
        for (name, help, counts, value) in EACH {
            let series = told.iter().filter(|told| told.one_by_one);
            let series = series.flat_map(|told| {
                let endpoints = told.status.endpoints.iter();
                endpoints.map(move |endpoint| (told.of(endpoint, &[]), value(endpoint)))
            });
            family(encoder, (name, help, counts), series)?;
        }
        let help = "1 for the state that an endpoint is in";
        let series = told.iter().filter(|told| told.one_by_one);
        let series = series.flat_map(|told| {
            told.status.endpoints.iter().map(move |endpoint| {
                let (state, reason) = state(&endpoint.state);
                let more = [("state", state), ("reason", reason.as_str())];
                (told.of(endpoint, &more), 1)
            })
        });
        family(encoder, ("egress_endpoint_state", help, false), series)?;
        Ok(())
    }
}

impl Metrics {
    fn told(&self) -> Vec<Told> {
        let live = self.0.load();
        let mut left = ENDPOINTS;
        let tell = |set: &Arc<EndpointSet>| {
            let status = set.status();
            let count = status.endpoints.len();
            let one_by_one = count <= ENDPOINTS_OF_A_SET.min(left);
            if one_by_one {
                left -= count;
            }
            Told {
                labels: labels(&status),
                set: Arc::clone(set),
                status,
                one_by_one,
            }
        };
        live.sets.iter().map(tell).collect()
    }
}

fn labels(status: &SetStatus) -> Labels {
    let text = |text: &Option<Box<str>>| text.as_deref().unwrap_or_default().to_owned();
    vec![
        ("destination_service", status.host.clone()),
        (
            "destination_service_namespace",
            status.namespace.to_string(),
        ),
        ("port", status.port.to_string()),
        ("subset", text(&status.subset)),
        ("destination_rule", text(&status.destination_rule)),
    ]
}

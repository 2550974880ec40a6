//! The metrics of the data path, under Istio's names and labels.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::histogram::DurationHistogram;
use crate::accept::IntakeStats;

/// Workloads that are told apart while the agent runs. Services, flags and
/// statuses are few; workloads come and go.
const WORKLOAD_LIMIT: usize = 500;
/// The workload of series past the limit.
const OTHER: &str = "other";

/// Istio's labels that the agent can fill. `reporter` is always `source`.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub(super) struct Labels {
    pub(super) reporter: &'static str,
    pub(super) source_workload: String,
    pub(super) source_workload_namespace: String,
    /// `HOST` of the service, a wildcard as written.
    pub(super) destination_service: String,
    pub(super) destination_service_name: String,
    pub(super) destination_service_namespace: String,
    /// `tcp`, `http` or `grpc`.
    pub(super) request_protocol: &'static str,
    /// Envoy's flags joined by commas, `-` for none.
    pub(super) response_flags: String,
    /// `none`, `tls` or `mutual_tls`: what left this node; `passthrough` for
    /// TLS of the application's own.
    pub(super) connection_security_policy: &'static str,
}

/// [`Labels`] and those of a response.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub(super) struct RequestLabels {
    #[prometheus(flatten)]
    pub(super) common: Labels,
    pub(super) response_code: u32,
    /// Empty when the response had none.
    pub(super) grpc_response_status: String,
}

/// Why a connection was relayed other than its policy says.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ServiceLabel {
    destination_service: String,
}

/// The metrics of the process; workers keep handles to their series.
#[derive(Debug, Default)]
pub struct Metrics {
    pub(super) opened: Family<Labels, Counter>,
    pub(super) closed: Family<Labels, Counter>,
    pub(super) sent: Family<Labels, Counter>,
    pub(super) received: Family<Labels, Counter>,
    pub(super) requests: Family<RequestLabels, Counter>,
    pub(super) durations: Family<RequestLabels, DurationHistogram>,
    client_tls: Family<ServiceLabel, Counter>,
    passed_on: Counter,
    log_dropped: Arc<Counter>,
    /// Namespace and name; looked at only when a worker meets a new series.
    workloads: Mutex<HashSet<(String, String)>>,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Puts them, and what the accept loops count, into a registry.
    pub fn register(&self, registry: &mut Registry, intake: Arc<IntakeStats>) {
        registry.register(
            "istio_tcp_connections_opened",
            "TCP connections opened",
            self.opened.clone(),
        );
        registry.register(
            "istio_tcp_connections_closed",
            "TCP connections closed",
            self.closed.clone(),
        );
        registry.register(
            "istio_tcp_sent_bytes",
            "Bytes sent to applications",
            self.sent.clone(),
        );
        registry.register(
            "istio_tcp_received_bytes",
            "Bytes received from applications",
            self.received.clone(),
        );
        registry.register("istio_requests", "HTTP requests", self.requests.clone());
        registry.register(
            "istio_request_duration_milliseconds",
            "Time from the first byte of a request to the last byte of its response",
            self.durations.clone(),
        );
        registry.register(
            "egress_client_tls_connections",
            "Connections whose application already spoke TLS on a port with TLS origination, \
             relayed untouched",
            self.client_tls.clone(),
        );
        registry.register(
            "egress_passed_on_connections",
            "Connections to an address that a registered host shares with another name, passed \
             on untouched",
            self.passed_on.clone(),
        );
        registry.register(
            "egress_access_log_dropped_lines",
            "Access log lines lost because the log was full or too slow",
            Counter::clone(&self.log_dropped),
        );
        registry.register_collector(Box::new(IntakeCollector(intake)));
    }

    /// A connection whose application already spoke TLS.
    pub fn client_spoke_tls(&self, service: &str) {
        self.client_tls
            .get_or_create(&ServiceLabel {
                destination_service: service.to_owned(),
            })
            .inc();
    }

    /// A connection that was passed on untouched.
    pub fn passed_on(&self) {
        self.passed_on.inc();
    }

    pub(super) fn log_dropped(&self) -> Arc<Counter> {
        self.log_dropped.clone()
    }

    /// The labels, or once too many workloads have been seen those of no
    /// workload in particular.
    pub(super) fn bounded(&self, labels: Labels) -> Labels {
        let workload = (
            labels.source_workload_namespace.clone(),
            labels.source_workload.clone(),
        );
        let mut known = self
            .workloads
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if known.contains(&workload) || known.len() < WORKLOAD_LIMIT {
            known.insert(workload);
            return labels;
        }
        Labels {
            source_workload: OTHER.to_owned(),
            source_workload_namespace: OTHER.to_owned(),
            ..labels
        }
    }
}

/// Reads the counters of the accept loops when asked.
#[derive(Debug)]
struct IntakeCollector(Arc<IntakeStats>);

impl prometheus_client::collector::Collector for IntakeCollector {
    fn encode(
        &self,
        mut encoder: prometheus_client::encoding::DescriptorEncoder<'_>,
    ) -> Result<(), fmt::Error> {
        use prometheus_client::encoding::EncodeMetric;
        use prometheus_client::metrics::counter::ConstCounter;
        use std::sync::atomic::Ordering::Relaxed;

        let stats = &self.0;
        for (name, help, value) in [
            (
                "egress_connections_accepted",
                "Redirected connections accepted",
                &stats.accepted,
            ),
            (
                "egress_connections_unknown_origin",
                "Connections to a listener that were not redirected there, reset",
                &stats.unknown_origin,
            ),
            (
                "egress_connections_over_limit",
                "Connections reset because too many were open",
                &stats.over_limit,
            ),
            (
                "egress_connections_failed_lookups",
                "Connections reset because their origin could not be read",
                &stats.failed_lookups,
            ),
            (
                "egress_accept_pauses",
                "Pauses of an accept loop because accept failed",
                &stats.pauses,
            ),
        ] {
            let counter = ConstCounter::new(value.load(Relaxed));
            let metric = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            counter.encode(metric)?;
        }
        Ok(())
    }
}

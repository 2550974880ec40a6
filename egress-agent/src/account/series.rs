//! Handles to the series that a worker uses, so that counting is one atomic
//! addition.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;

use super::histogram::DurationHistogram;
use super::metrics::{Labels, Metrics, RequestLabels};
use crate::flag::Flag;
use crate::identify::Workload;
use crate::policy::snapshot::{Service, ServiceId};

/// Keys of one worker's cache past which it starts anew.
const CACHE_LIMIT: usize = 8_192;

/// What tells TCP series apart.
#[derive(Clone, PartialEq, Eq, Hash)]
struct TcpKey {
    service: ServiceId,
    workload: Arc<str>,
    namespace: Arc<str>,
    security: &'static str,
}

/// What tells request series apart.
#[derive(Clone, PartialEq, Eq, Hash)]
struct RequestKey {
    tcp: TcpKey,
    protocol: &'static str,
    flags: FlagSet,
    status: u16,
    grpc: Option<u8>,
}

impl RequestKey {
    fn is_for(
        &self,
        service: &Service,
        workload: &Workload,
        security: &'static str,
        end: RequestEnd,
    ) -> bool {
        self.status == end.status
            && self.flags == end.flags
            && self.grpc == end.grpc
            && self.protocol == end.protocol
            && self.tcp.service == service.id
            && self.tcp.security == security
            && self.tcp.workload == workload.name
            && self.tcp.namespace == workload.client.namespace
    }
}

/// Flags in Envoy's order, at most four.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct FlagSet([Option<Flag>; 4]);

impl FlagSet {
    pub(super) fn add(&mut self, flag: Flag) {
        if self.0.contains(&Some(flag)) {
            return;
        }
        if let Some(free) = self.0.iter_mut().find(|place| place.is_none()) {
            *free = Some(flag);
            // `None`, which sorts first, belongs behind the flags.
            self.0
                .sort_unstable_by_key(|place| (place.is_none(), *place));
        }
    }

    pub(super) fn text(self) -> String {
        let codes: Vec<_> = self.0.iter().flatten().map(|flag| flag.code()).collect();
        if codes.is_empty() {
            return "-".to_owned();
        }
        codes.join(",")
    }
}

/// Series of the connections of one workload to one service.
pub(super) struct TcpSeries {
    metrics: Arc<Metrics>,
    labels: Labels,
    opened: Counter,
    sent: Counter,
    received: Counter,
    closed: RefCell<HashMap<FlagSet, Counter>>,
}

impl std::fmt::Debug for TcpSeries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TcpSeries")
            .field("labels", &self.labels)
            .finish_non_exhaustive()
    }
}

impl TcpSeries {
    pub(super) fn opened(&self) {
        self.opened.inc();
    }

    pub(super) fn sent(&self, bytes: u64) {
        self.sent.inc_by(bytes);
    }

    pub(super) fn received(&self, bytes: u64) {
        self.received.inc_by(bytes);
    }

    pub(super) fn closed(&self, flags: FlagSet) {
        self.closed
            .borrow_mut()
            .entry(flags)
            .or_insert_with(|| {
                let labels = Labels {
                    response_flags: flags.text(),
                    ..self.labels.clone()
                };
                self.metrics.closed.get_or_create_owned(&labels)
            })
            .inc();
    }
}

/// Series of requests that ended alike.
#[derive(Debug)]
pub(super) struct RequestSeries {
    requests: Counter,
    durations: DurationHistogram,
}

impl RequestSeries {
    pub(super) fn ended(&self, duration: Duration) {
        self.requests.inc();
        self.durations.observe(duration);
    }
}

/// The series that a worker has used.
#[derive(Default)]
pub(super) struct SeriesCache {
    tcp: HashMap<TcpKey, Rc<TcpSeries>>,
    requests: HashMap<RequestKey, Rc<RequestSeries>>,
    /// What was asked for last: requests come in runs of the same kind.
    last: Option<(RequestKey, Rc<RequestSeries>)>,
}

impl std::fmt::Debug for SeriesCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SeriesCache")
            .field("tcp", &self.tcp.len())
            .field("requests", &self.requests.len())
            .finish_non_exhaustive()
    }
}

/// How a request ended, as far as metrics tell.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestEnd {
    pub(super) protocol: &'static str,
    pub(super) flags: FlagSet,
    pub(super) status: u16,
    pub(super) grpc: Option<u8>,
}

impl SeriesCache {
    pub(super) fn tcp(
        &mut self,
        metrics: &Arc<Metrics>,
        service: &Service,
        workload: &Workload,
        security: &'static str,
    ) -> Rc<TcpSeries> {
        if self.tcp.len() >= CACHE_LIMIT {
            self.tcp.clear();
        }
        let key = key(service, workload, security);
        self.tcp
            .entry(key)
            .or_insert_with(|| {
                let labels = metrics.bounded(labels(service, workload, security, "tcp"));
                Rc::new(TcpSeries {
                    opened: metrics.opened.get_or_create_owned(&labels),
                    sent: metrics.sent.get_or_create_owned(&labels),
                    received: metrics.received.get_or_create_owned(&labels),
                    closed: RefCell::default(),
                    metrics: metrics.clone(),
                    labels,
                })
            })
            .clone()
    }

    /// Counts a request.
    pub(super) fn ended(
        &mut self,
        metrics: &Metrics,
        service: &Service,
        workload: &Workload,
        security: &'static str,
        end: RequestEnd,
        duration: Duration,
    ) {
        if let Some((key, series)) = &self.last
            && key.is_for(service, workload, security, end)
        {
            series.ended(duration);
            return;
        }
        if self.requests.len() >= CACHE_LIMIT {
            self.requests.clear();
        }
        let key = RequestKey {
            tcp: key(service, workload, security),
            protocol: end.protocol,
            flags: end.flags,
            status: end.status,
            grpc: end.grpc,
        };
        let series = self
            .requests
            .entry(key.clone())
            .or_insert_with(|| {
                let common = Labels {
                    response_flags: end.flags.text(),
                    ..labels(service, workload, security, end.protocol)
                };
                let labels = RequestLabels {
                    common: metrics.bounded(common),
                    response_code: u32::from(end.status),
                    grpc_response_status: end.grpc.map_or_else(String::new, |s| s.to_string()),
                };
                Rc::new(RequestSeries {
                    requests: metrics.requests.get_or_create_owned(&labels),
                    durations: metrics.durations.get_or_create_owned(&labels),
                })
            })
            .clone();
        series.ended(duration);
        self.last = Some((key, series));
    }
}

fn key(service: &Service, workload: &Workload, security: &'static str) -> TcpKey {
    TcpKey {
        service: service.id,
        workload: workload.name.clone(),
        namespace: workload.client.namespace.clone(),
        security,
    }
}

fn labels(
    service: &Service,
    workload: &Workload,
    security: &'static str,
    protocol: &'static str,
) -> Labels {
    let host = service.key.host.to_string();
    Labels {
        reporter: "source",
        source_workload: workload.name.to_string(),
        source_workload_namespace: workload.client.namespace.to_string(),
        destination_service: host.clone(),
        destination_service_name: host,
        destination_service_namespace: service.key.namespace.to_string(),
        request_protocol: protocol,
        response_flags: "-".to_owned(),
        connection_security_policy: security,
    }
}

//! What the kernel programs decided, as metrics, read when asked.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use egress_common::caller::{DestinationKey, Refusal};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::Registry;

use crate::capture::{CaptureError, Kernel, Refusals};

/// Series of refusals; those of more workloads are one, called [`OTHER`].
const SERIES: usize = 500;
/// Stands for the workloads past [`SERIES`].
const OTHER: &str = "other";
/// Pairs of caller and destination that are remembered: as many as the kernel
/// does.
const PAIRS: usize = 16384;

/// Labels of refusals: namespace and name of the workload, and the transport.
type Labels = (Arc<str>, Arc<str>, &'static str);

/// Where numbers come from.
trait Source: Send + Sync + 'static {
    /// How often this was refused so far; `None`: the kernel forgot it.
    fn refused(&self, key: &DestinationKey) -> Result<Option<u64>, CaptureError>;
    /// Decisions since the programs were loaded, by name.
    fn decisions(&self) -> Result<Vec<(&'static str, u64)>, CaptureError>;
}

impl Source for Kernel {
    fn refused(&self, key: &DestinationKey) -> Result<Option<u64>, CaptureError> {
        self.refusals_of(key)
    }

    fn decisions(&self) -> Result<Vec<(&'static str, u64)>, CaptureError> {
        Ok(self.counters()?.named().into())
    }
}

/// Counts what `registry-only` refuses, by workload. The kernel counts by
/// caller and destination; the first refusal of each pair is reported, and what
/// came after it is read when metrics are.
#[derive(Clone)]
pub(super) struct CaptureMetrics(Arc<Inner>);

struct Inner {
    source: Arc<dyn Source>,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    /// How often each pair was counted, and for whom.
    pairs: HashMap<DestinationKey, (u64, Labels)>,
    totals: BTreeMap<Labels, u64>,
}

impl Counts {
    fn add(&mut self, labels: &Labels, more: u64) {
        let labels = if self.totals.contains_key(labels) || self.totals.len() < SERIES {
            labels.clone()
        } else {
            (OTHER.into(), OTHER.into(), labels.2)
        };
        *self.totals.entry(labels).or_default() += more;
    }

    /// Adds what was refused since the last look.
    fn settle(&mut self, source: &dyn Source) {
        let mut added: Vec<(Labels, u64)> = Vec::new();
        self.pairs
            .retain(|key, (counted, labels)| match source.refused(key) {
                Ok(Some(now)) => {
                    added.push((labels.clone(), since(*counted, now)));
                    *counted = now;
                    true
                }
                Ok(None) => false,
                // Later, perhaps.
                Err(_) => true,
            });
        for (labels, more) in added {
            self.add(&labels, more);
        }
    }
}

/// The kernel starts again from one when it had forgotten a pair.
const fn since(counted: u64, now: u64) -> u64 {
    if now >= counted { now - counted } else { now }
}

impl CaptureMetrics {
    pub(super) fn new(kernel: Arc<Kernel>, registry: &mut Registry) -> Self {
        let metrics = Self(Arc::new(Inner {
            source: kernel,
            counts: Mutex::default(),
        }));
        registry.register_collector(Box::new(metrics.clone()));
        metrics
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Nothing panics while it is held.
        self.0.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a report of a refusal.
    pub(super) fn refused(&self, report: &Refusal, namespace: &Arc<str>, workload: &Arc<str>) {
        let transport = Refusals::read(report).transport.name();
        let labels = (Arc::clone(namespace), Arc::clone(workload), transport);
        let now = report.value.count;
        let mut counts = self.counts();
        if let Some((counted, _)) = counts.pairs.get_mut(&report.key) {
            let more = since(*counted, now);
            *counted = now;
            counts.add(&labels, more);
            return;
        }
        if counts.pairs.len() >= PAIRS {
            counts.settle(&*self.0.source);
        }
        if counts.pairs.len() < PAIRS {
            counts.pairs.insert(report.key, (now, labels.clone()));
        }
        counts.add(&labels, now);
    }
}

impl fmt::Debug for CaptureMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CaptureMetrics")
    }
}

impl Collector for CaptureMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // What cannot be read is missing, not wrong.
        if let Ok(decisions) = self.0.source.decisions() {
            let mut metric = encoder.encode_descriptor(
                "egress_capture_decisions",
                "Decisions of the kernel programs on connections and datagrams",
                None,
                MetricType::Counter,
            )?;
            for (decision, count) in decisions {
                let labels = [("decision", decision)];
                ConstCounter::new(count).encode(metric.encode_family(&labels)?)?;
            }
        }
        let mut counts = self.counts();
        counts.settle(&*self.0.source);
        let mut metric = encoder.encode_descriptor(
            "egress_refused_unregistered",
            "Connections and datagrams that registry-only refused",
            None,
            MetricType::Counter,
        )?;
        for ((namespace, workload, transport), count) in &counts.totals {
            let labels = [
                ("source_workload", &**workload),
                ("source_workload_namespace", &**namespace),
                ("transport", transport),
            ];
            ConstCounter::new(*count).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use egress_common::caller::{Destination, TRANSPORT_TCP, TRANSPORT_UDP};

    use super::*;

    #[derive(Default)]
    struct Fake(Mutex<HashMap<DestinationKey, u64>>);

    impl Source for Fake {
        fn refused(&self, key: &DestinationKey) -> Result<Option<u64>, CaptureError> {
            Ok(self.0.lock().unwrap().get(key).copied())
        }

        fn decisions(&self) -> Result<Vec<(&'static str, u64)>, CaptureError> {
            Ok(vec![("passed", 3)])
        }
    }

    fn key(cgroup: u64, port: u16, transport: u8) -> DestinationKey {
        DestinationKey {
            cgroup,
            address: [0; 16],
            port,
            transport,
            refused: 1,
            reserved: 0,
        }
    }

    fn report(key: DestinationKey, count: u64) -> Refusal {
        Refusal {
            key,
            value: Destination {
                count,
                first_ns: 0,
                last_ns: 0,
                told_ns: 0,
                netns: 0,
                pid: 0,
                uid: 0,
                comm: [0; 16],
            },
        }
    }

    fn metrics() -> (Arc<Fake>, CaptureMetrics, Registry) {
        let fake = Arc::new(Fake::default());
        let metrics = CaptureMetrics(Arc::new(Inner {
            source: Arc::<Fake>::clone(&fake),
            counts: Mutex::default(),
        }));
        let mut registry = Registry::default();
        registry.register_collector(Box::new(metrics.clone()));
        (fake, metrics, registry)
    }

    fn text(registry: &Registry) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        text
    }

    #[test]
    fn refusals_between_two_reports_count_once() {
        let (fake, metrics, registry) = metrics();
        let say = |key: DestinationKey, count: u64| {
            fake.0.lock().unwrap().insert(key, count);
            metrics.refused(&report(key, count), &"shop".into(), &"cart".into());
        };
        let (tcp, other, udp) = (
            key(1, 80, TRANSPORT_TCP),
            key(1, 81, TRANSPORT_TCP),
            key(1, 53, TRANSPORT_UDP),
        );
        say(tcp, 1);
        say(other, 1);
        say(udp, 1);
        // Not reported, since it was a moment ago.
        fake.0.lock().unwrap().insert(tcp, 5);
        let series = "source_workload=\"cart\",source_workload_namespace=\"shop\",transport";
        let line = |text: &str, transport: &str, count: u64| {
            let line =
                format!("egress_refused_unregistered_total{{{series}=\"{transport}\"}} {count}\n");
            assert!(text.contains(&line), "{text}");
        };
        let first = text(&registry);
        line(&first, "tcp", 6);
        line(&first, "udp", 1);
        assert!(first.contains("egress_capture_decisions_total{decision=\"passed\"} 3\n"));
        say(tcp, 7);
        line(&text(&registry), "tcp", 8);
        // Forgotten by the kernel, and then met again.
        fake.0.lock().unwrap().clear();
        line(&text(&registry), "tcp", 8);
        say(tcp, 1);
        line(&text(&registry), "tcp", 9);
    }

    #[test]
    fn series_and_pairs_are_bounded() {
        let (_, metrics, registry) = metrics();
        for n in 0..(PAIRS as u64 + 100) {
            let key = key(n, 80, TRANSPORT_TCP);
            let workload: Arc<str> = format!("w{n}").into();
            metrics.refused(&report(key, 1), &"shop".into(), &workload);
        }
        assert!(metrics.counts().pairs.len() <= PAIRS);
        let text = text(&registry);
        let lines = text
            .lines()
            .filter(|line| line.contains("egress_refused_unregistered_total"));
        assert_eq!(lines.count(), SERIES + 1);
        assert!(text.contains("source_workload=\"other\""), "no other");
        assert_eq!(
            metrics.counts().totals.values().sum::<u64>(),
            PAIRS as u64 + 100
        );
    }
}

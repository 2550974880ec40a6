//! How the watches fare, as metrics, read when asked.

use std::fmt;
use std::sync::{Arc, OnceLock};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::health::{Board, Watch};

/// Where the board is put once there is one.
#[derive(Clone, Debug, Default)]
pub struct Slot(Arc<OnceLock<Board>>);

impl Slot {
    /// Shows this board from now on; the first one stays.
    pub fn show(&self, board: Board) {
        // There is one API server in the life of a process.
        let _ = self.0.set(board);
    }

    /// Puts `egress_kubernetes_objects`, `egress_kubernetes_behind_seconds` and
    /// `egress_kubernetes_failures` into a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(Watches(self.clone())));
    }
}

#[derive(Debug)]
struct Watches(Slot);

/// `secrets NAMESPACE/NAME` would be a series for each Secret.
fn resource(watch: &Watch) -> &str {
    watch.what.split(' ').next().unwrap_or_default()
}

impl Collector for Watches {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(board) = self.0.0.get() else {
            return Ok(());
        };
        let mut sums: std::collections::BTreeMap<String, (usize, u64, u64)> =
            std::collections::BTreeMap::new();
        for watch in &board.report().watches {
            let sum = sums.entry(resource(watch).to_owned()).or_default();
            sum.0 += watch.objects;
            sum.1 = sum.1.max(watch.behind.as_secs());
            sum.2 += watch.failures;
        }
        let mut gauge = |name, help, value: fn(&(usize, u64, u64)) -> u64| -> fmt::Result {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (resource, sum) in &sums {
                let labels = [("resource", resource.as_str())];
                let value = i64::try_from(value(sum)).unwrap_or(i64::MAX);
                ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
            }
            Ok(())
        };
        gauge(
            "egress_kubernetes_objects",
            "Objects of the Kubernetes API server in force",
            |sum| sum.0 as u64,
        )?;
        gauge(
            "egress_kubernetes_behind_seconds",
            "Time since the Kubernetes API server was seen last; 0 while it is there",
            |sum| sum.1,
        )?;
        let name = "egress_kubernetes_failures";
        let help = "Requests to the Kubernetes API server that failed";
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (resource, sum) in &sums {
            let labels = [("resource", resource.as_str())];
            ConstCounter::new(sum.2).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn secrets_are_one_series() {
        let mut registry = Registry::default();
        let slot = Slot::default();
        slot.register(&mut registry);
        let text = |registry: &Registry| {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
            text
        };
        assert!(!text(&registry).contains("egress_kubernetes"));
        let board = Board::new("n1");
        let rows = [board.watch("secrets a/b"), board.watch("secrets c/d")];
        for row in &rows {
            row.objects(1);
            row.failed("down");
        }
        slot.show(board);
        let text = text(&registry);
        assert!(
            text.contains("egress_kubernetes_objects{resource=\"secrets\"} 2\n"),
            "{text}"
        );
        assert!(
            text.contains("egress_kubernetes_failures_total{resource=\"secrets\"} 2\n"),
            "{text}"
        );
    }
}

//! What happened to captured queries, as a metric.

use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;

use super::server::Counters;

/// Reads the [`Counters`] when they are asked for.
#[derive(Debug)]
pub struct Metrics(Arc<Counters>);

impl Metrics {
    /// Of these counters.
    pub const fn new(counters: Arc<Counters>) -> Self {
        Self(counters)
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let counter = ConstCounter::new(0_u64);
        let mut family = encoder.encode_descriptor(
            "egress_dns_queries",
            "Captured DNS queries by what happened to them",
            None,
            counter.metric_type(),
        )?;
        for (result, count) in self.0.read() {
            let labels = [("result", result)];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::sync::atomic::Ordering;

    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn tells_every_counter() {
        let counters = Arc::new(Counters::default());
        counters.answered.store(3, Ordering::Relaxed);
        counters.unanswered.store(1, Ordering::Relaxed);
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Metrics::new(counters)));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "egress_dns_queries_total{result=\"answered\"} 3",
            "egress_dns_queries_total{result=\"forwarded\"} 0",
            "egress_dns_queries_total{result=\"unanswered\"} 1",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}

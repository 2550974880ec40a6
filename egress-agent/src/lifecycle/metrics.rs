//! Metrics of the process itself, under the names that Prometheus' own client
//! libraries give them.

use std::fmt;
use std::fs;
use std::time::SystemTime;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::drain::Drain;
use super::panics;

/// Adds the metrics of the process to `registry`.
pub fn register(registry: &mut Registry, drain: &Drain) {
    let started = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64();
    registry.register_collector(Box::new(Process {
        drain: drain.clone(),
        started,
    }));
}

#[derive(Debug)]
struct Process {
    drain: Drain,
    started: f64,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let info = [("version", env!("CARGO_PKG_VERSION"))];
        let build = encoder.encode_descriptor(
            "egress_build_info",
            "Version of the agent; always 1",
            None,
            MetricType::Gauge,
        )?;
        Labelled(&info).encode(build)?;
        let mut gauge = |name: &str, help: &str, value: f64| -> fmt::Result {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            Gauge(value).encode(metric)
        };
        gauge(
            "egress_connections_open",
            "Connections through the agent that are open",
            precise(self.drain.live() as u64),
        )?;
        gauge(
            "egress_draining",
            "1 while the agent drains",
            if self.drain.is_draining() { 1.0 } else { 0.0 },
        )?;
        gauge(
            "process_start_time_seconds",
            "Start of the process since the Unix epoch",
            self.started,
        )?;
        // Where /proc cannot be read the metric is missing, not wrong.
        if let Some(open) = open_descriptors() {
            gauge("process_open_fds", "Open descriptors", precise(open))?;
        }
        if let Some(bytes) = resident_bytes() {
            gauge(
                "process_resident_memory_bytes",
                "Resident memory",
                precise(bytes),
            )?;
        }
        let panics = encoder.encode_descriptor(
            "egress_panics",
            "Panics since the start; each is a bug",
            None,
            MetricType::Counter,
        )?;
        Counter(panics::count()).encode(panics)
    }
}

/// As OpenMetrics has only floating point for gauges.
#[expect(
    clippy::cast_precision_loss,
    reason = "none of these numbers comes near 2^52"
)]
fn precise(number: u64) -> f64 {
    number as f64
}

struct Gauge(f64);

impl EncodeMetric for Gauge {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_gauge(&self.0)
    }
    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

struct Labelled<'a>(&'a [(&'static str, &'static str)]);

impl EncodeMetric for Labelled<'_> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_family(&self.0)?.encode_gauge(&1_i64)
    }
    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

struct Counter(u64);

impl EncodeMetric for Counter {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_counter::<prometheus_client::encoding::NoLabelSet, _, u64>(&self.0, None)
    }
    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

fn open_descriptors() -> Option<u64> {
    // The one that reads the directory is not counted.
    let open = fs::read_dir("/proc/self/fd").ok()?.count();
    u64::try_from(open.saturating_sub(1)).ok()
}

fn resident_bytes() -> Option<u64> {
    // proc_pid_status(5): `VmRSS:   1234 kB`.
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    kilobytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_text_has_every_metric_with_a_sensible_value() {
        let drain = Drain::new();
        let _open = (drain.enter(), drain.enter());
        let mut registry = Registry::default();
        register(&mut registry, &drain);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let value = |name: &str| -> f64 {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line.rsplit_once(' ').unwrap().1.parse().unwrap()
        };
        let build = format!(
            "egress_build_info{{version=\"{}\"}} 1",
            env!("CARGO_PKG_VERSION")
        );
        assert!(text.contains(&build), "{text}");
        assert!(
            (value("egress_connections_open") - 2.0).abs() < 0.1,
            "{text}"
        );
        assert!(value("process_start_time_seconds") > 1.7e9);
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(text.contains("egress_panics_total "), "{text}");
        assert!(text.contains("# TYPE egress_panics counter"), "{text}");
    }
}

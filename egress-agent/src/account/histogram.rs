//! A histogram that workers add to without a lock; prometheus-client's own
//! takes one for each value.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

/// Upper bounds in milliseconds: those of Istio's proxies.
const BOUNDS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// Durations in milliseconds.
#[derive(Clone, Debug, Default)]
pub(super) struct DurationHistogram(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// One for each bound, and one for what is above all.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    microseconds: AtomicU64,
}

impl DurationHistogram {
    pub(super) fn observe(&self, duration: Duration) {
        let millis = duration.as_secs_f64() * 1000.0;
        let place = BOUNDS.iter().position(|bound| millis <= *bound);
        if let Some(bucket) = self.0.buckets.get(place.unwrap_or(BOUNDS.len())) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        let microseconds = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.0
            .microseconds
            .fetch_add(microseconds, Ordering::Relaxed);
    }
}

impl EncodeMetric for DurationHistogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let mut count = 0;
        let buckets: Vec<(f64, u64)> = BOUNDS
            .iter()
            .copied()
            .chain([f64::INFINITY])
            .zip(&self.0.buckets)
            .map(|(bound, bucket)| {
                let value = bucket.load(Ordering::Relaxed);
                count += value;
                (bound, value)
            })
            .collect();
        #[expect(
            clippy::cast_precision_loss,
            reason = "exact below 2^53 microseconds, 285 years"
        )]
        let sum = self.0.microseconds.load(Ordering::Relaxed) as f64 / 1000.0;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

impl prometheus_client::metrics::TypedMetric for DurationHistogram {
    const TYPE: MetricType = MetricType::Histogram;
}

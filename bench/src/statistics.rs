//! Medians, spread, and ratios of rounds that stood beside each other.

use serde::Serialize;

use crate::measure::{Measured, Sample};
use crate::peer::Name;

/// A figure whose spread is above this part of it is not reported.
pub(crate) const TOO_NOISY: f64 = 0.25;
/// Rates and latencies are not reported when others took more than this part
/// of the machine (CPU for each unit is the proxy's own and bears more).
pub(crate) const CROWDED: f64 = 0.20;

/// The median of a metric over the rounds, and how far the rounds lie apart.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) median: f64,
    /// Half of the rounds lie within this part of the median, either side.
    pub(crate) spread: f64,
    pub(crate) rounds: usize,
}

impl Figure {
    pub(crate) fn of(mut values: Vec<f64>) -> Option<Self> {
        if values.is_empty() {
            return None;
        }
        let median = middle(&mut values);
        let mut distances: Vec<f64> = values.iter().map(|value| (value - median).abs()).collect();
        let spread = if median.abs() > 0.0 {
            middle(&mut distances) / median.abs()
        } else {
            0.0
        };
        Some(Self {
            median,
            spread,
            rounds: values.len(),
        })
    }

    /// Whether the rounds lie too far apart to say anything.
    pub(crate) fn is_noisy(&self) -> bool {
        self.spread > TOO_NOISY
    }
}

fn middle(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let half = values.len() / 2;
    let at = |index: usize| values.get(index).copied().unwrap_or_default();
    if values.len().is_multiple_of(2) {
        f64::midpoint(at(half.saturating_sub(1)), at(half))
    } else {
        at(half)
    }
}

/// Something that a sample says.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Metric {
    Cpu,
    Rate,
    P50,
    P99,
}

impl Metric {
    pub(crate) const ALL: [Self; 4] = [Self::Cpu, Self::Rate, Self::P50, Self::P99];

    fn value(self, sample: &Sample) -> Option<f64> {
        match self {
            Self::Cpu => sample.cpu,
            Self::Rate => Some(sample.rate),
            Self::P50 => sample.p50,
            Self::P99 => sample.p99,
        }
    }
}

impl Measured {
    fn values(&self, path: Name, metric: Metric) -> Vec<(usize, f64)> {
        self.samples
            .iter()
            .filter(|sample| sample.path == path && !self.is_void(path))
            .filter_map(|sample| Some((sample.round, metric.value(sample)?)))
            .collect()
    }

    pub(crate) fn is_void(&self, path: Name) -> bool {
        self.void.iter().any(|(void, _)| *void == path)
    }

    /// The figure of one path.
    pub(crate) fn figure(&self, path: Name, metric: Metric) -> Option<Figure> {
        Figure::of(self.values(path, metric).into_iter().map(|v| v.1).collect())
    }

    /// `path` divided by `base`, round by round: what disturbed the machine in
    /// a round disturbed both.
    pub(crate) fn ratio(&self, path: Name, base: Name, metric: Metric) -> Option<Figure> {
        let base = self.values(base, metric);
        Figure::of(
            self.values(path, metric)
                .into_iter()
                .filter_map(|(round, value)| {
                    let (_, base) = base.iter().find(|(other, _)| *other == round)?;
                    (*base > 0.0).then_some(value / base)
                })
                .collect(),
        )
    }

    /// The median share of the machine that others used.
    pub(crate) fn foreign(&self) -> f64 {
        Figure::of(self.samples.iter().map(|sample| sample.foreign).collect())
            .map_or(0.0, |figure| figure.median)
    }

    /// The median part of the requests that latencies leave out.
    pub(crate) fn stalled(&self) -> f64 {
        Figure::of(self.samples.iter().map(|sample| sample.stalled).collect())
            .map_or(0.0, |figure| figure.median)
    }

    /// Whether others used so much that rates and latencies say nothing.
    pub(crate) fn is_crowded(&self) -> bool {
        self.foreign() > CROWDED
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::float_cmp, reason = "tests")]
    use super::*;

    #[test]
    fn the_median_and_its_spread() {
        let figure = Figure::of(vec![10.0, 12.0, 11.0, 100.0, 9.0]).unwrap();
        assert_eq!(figure.median, 11.0);
        assert!((figure.spread - 1.0 / 11.0).abs() < 1e-9);
        assert!(!figure.is_noisy());
        assert!(Figure::of(vec![1.0, 5.0, 9.0]).unwrap().is_noisy());
        assert_eq!(Figure::of(vec![1.0, 3.0]).unwrap().median, 2.0);
        assert_eq!(Figure::of(Vec::new()), None);
    }
}

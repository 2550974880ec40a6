//! Slow start (`warmup`): a new endpoint's weight grows to its full value.

use std::time::Duration;

use super::weighted::scale;
use crate::policy::model::Warmup;

/// Weights are counted in 65,536ths while endpoints warm up.
pub(super) const UNIT: u64 = 1 << 16;

/// The weight of an endpoint that has been well for `age` (Envoy's slow start:
/// `max(minimum, (age / duration)^(1 / aggression))` of its full weight).
pub(super) fn weight(full: u32, warmup: Option<&Warmup>, age: Duration) -> u64 {
    let full = u64::from(full) * UNIT;
    let Some(warmup) = warmup.filter(|warmup| age < warmup.duration) else {
        return full;
    };
    let passed = age.as_secs_f64() / warmup.duration.as_secs_f64();
    let factor = passed
        .powf(1.0 / warmup.aggression)
        .max(warmup.minimum_percent / 100.0)
        .clamp(0.0, 1.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a factor between 0 and 1 in 2^32ths"
    )]
    let factor = (factor * f64::from(u32::MAX)) as u64;
    scale(factor << 32, full).max(1)
}

/// When the table is to be built again while an endpoint warms up: a hundred
/// steps, but not more often than ten times a second.
pub(super) fn step(warmup: &Warmup) -> Duration {
    (warmup.duration / 100).clamp(Duration::from_millis(100), Duration::from_secs(5))
}

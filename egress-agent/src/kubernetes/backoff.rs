//! How long to wait after a failure, so that neither we nor a thousand agents
//! that lost the same API server keep it busy.

use std::time::Duration;

/// Wait after the first failure, at most.
const FIRST: Duration = Duration::from_millis(500);
/// Longest wait.
const LAST: Duration = Duration::from_secs(30);

/// Waits that double, each drawn from the upper half of its range.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The last try was good.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }

    /// How many failures there were in a row.
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// The next wait.
    pub fn wait(&mut self) -> Duration {
        let limit = FIRST
            .saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX))
            .min(LAST);
        self.failures = self.failures.saturating_add(1);
        limit.mul_f64(fastrand::f64().mul_add(0.5, 0.5))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_never_vanish() {
        let mut backoff = Backoff::default();
        let mut limit = FIRST;
        for _ in 0..100 {
            let wait = backoff.wait();
            assert!(wait >= limit / 2 && wait <= limit, "{wait:?} of {limit:?}");
            limit = (limit * 2).min(LAST);
        }
        assert_eq!(limit, LAST);
        backoff.reset();
        assert!(backoff.wait() <= FIRST);
    }
}

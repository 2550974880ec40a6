//! Outlier detection (`outlierDetection`, ISTIO-API section 9): what counts,
//! when an endpoint is ejected and for how long.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

use super::outcome::{Outcome, grpc_to_http};
use crate::policy::model::OutlierDetection;

/// Why an endpoint was ejected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EjectReason {
    /// `consecutive5xxErrors`.
    #[serde(rename = "consecutive-5xx")]
    Consecutive5xx,
    /// `consecutiveGatewayErrors`.
    ConsecutiveGateway,
    /// `consecutiveLocalOriginFailures`.
    ConsecutiveLocalOrigin,
}

impl fmt::Display for EjectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Consecutive5xx => "consecutive-5xx",
            Self::ConsecutiveGateway => "consecutive-gateway",
            Self::ConsecutiveLocalOrigin => "consecutive-local-origin",
        })
    }
}

/// An outcome as the counters see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Signal {
    server: Effect,
    gateway: Effect,
    local: Effect,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Effect {
    Keep,
    Reset,
    Count,
}

impl Signal {
    const ERROR: Self = Self {
        server: Effect::Count,
        gateway: Effect::Reset,
        local: Effect::Keep,
    };
    const GATEWAY_ERROR: Self = Self {
        gateway: Effect::Count,
        ..Self::ERROR
    };
    const GOOD: Self = Self {
        server: Effect::Reset,
        gateway: Effect::Reset,
        local: Effect::Keep,
    };
    const LOCAL_FAILURE: Self = Self {
        server: Effect::Keep,
        gateway: Effect::Keep,
        local: Effect::Count,
    };
    const LOCAL_SUCCESS: Self = Self {
        local: Effect::Reset,
        ..Self::LOCAL_FAILURE
    };

    /// What an outcome means under a policy; `None`: nothing.
    pub(super) fn of(outcome: Outcome, policy: &OutlierDetection) -> Option<Self> {
        let local = |ok: bool| match (policy.split_local, ok) {
            (true, true) => Self::LOCAL_SUCCESS,
            (true, false) => Self::LOCAL_FAILURE,
            (false, true) => Self::GOOD,
            // Refused, reset: as 503; timed out: as 504.
            (false, false) => Self::GATEWAY_ERROR,
        };
        let response = |status: u16| {
            let error = if policy.http_error_codes.is_empty() {
                status >= 500
            } else {
                policy.http_error_codes.contains(&status)
            };
            let signal = match (error, status) {
                (false, _) => Self::GOOD,
                (true, 502..=504) => Self::GATEWAY_ERROR,
                (true, _) => Self::ERROR,
            };
            Self {
                // A response means that the connection was good.
                local: Effect::Reset,
                ..signal
            }
        };
        match outcome {
            Outcome::Connected => Some(local(true)),
            Outcome::ConnectRefused
            | Outcome::ConnectTimeout
            | Outcome::ConnectFailed
            | Outcome::TlsFailed
            | Outcome::Reset
            | Outcome::Timeout => Some(local(false)),
            Outcome::Status(status) => Some(response(status)),
            Outcome::GrpcStatus(status) => Some(response(grpc_to_http(status))),
            Outcome::Cancelled => None,
        }
    }
}

/// Number of a period of an endpoint's life: it grows when the endpoint is
/// ejected and when it is readmitted. What began in an earlier period says
/// nothing about the present one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Generation(u16);

/// A report of a period that is over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Late;

/// Errors in a row, and the period that they belong to, in one word, so that a
/// late report can never slip into a new period: generation, 5xx, gateway,
/// local, sixteen bits each.
#[derive(Debug, Default)]
pub(super) struct Tally(AtomicU64);

const SERVER: u32 = 32;
const GATEWAY: u32 = 16;
const LOCAL: u32 = 0;
/// A limit above this counts as this.
const MOST: u64 = u16::MAX as u64;

impl Tally {
    pub(super) fn generation(&self) -> Generation {
        Generation(generation(self.0.load(Ordering::Acquire)))
    }

    /// Begins a new period with counters cleared.
    pub(super) fn next_period(&self) {
        let _ = self
            .0
            .try_update(Ordering::AcqRel, Ordering::Relaxed, |word| {
                Some(u64::from(generation(word).wrapping_add(1)) << 48)
            });
    }

    /// Errors in a row: 5xx, gateway, local.
    pub(super) fn counts(&self) -> [u16; 3] {
        let word = self.0.load(Ordering::Acquire);
        [SERVER, GATEWAY, LOCAL].map(|shift| count(word, shift))
    }

    /// Counts a signal of the given period. When a counter reaches its limit,
    /// it restarts and the reason to eject is returned.
    ///
    /// # Errors
    /// When the period is over: nothing was counted.
    pub(super) fn count(
        &self,
        period: Generation,
        signal: Signal,
        policy: &OutlierDetection,
    ) -> Result<Option<EjectReason>, Late> {
        let rules = [
            (
                SERVER,
                signal.server,
                policy.consecutive_5xx,
                EjectReason::Consecutive5xx,
            ),
            (
                GATEWAY,
                signal.gateway,
                policy.consecutive_gateway,
                EjectReason::ConsecutiveGateway,
            ),
            (
                LOCAL,
                signal.local,
                policy.consecutive_local.filter(|_| policy.split_local),
                EjectReason::ConsecutiveLocalOrigin,
            ),
        ];
        let mut word = self.0.load(Ordering::Acquire);
        loop {
            if generation(word) != period.0 {
                return Err(Late);
            }
            let mut next = word;
            let mut reason = None;
            for (shift, effect, limit, why) in rules {
                let value = match effect {
                    Effect::Keep => continue,
                    Effect::Reset => 0,
                    Effect::Count => {
                        let value = u64::from(count(word, shift)) + 1;
                        if limit.is_some_and(|limit| value >= u64::from(limit).min(MOST)) {
                            // 5xx comes first, so it is the reason given when
                            // both are reached at once.
                            reason = reason.or(Some(why));
                            0
                        } else {
                            value.min(MOST)
                        }
                    }
                };
                next = next & !(MOST << shift) | value << shift;
            }
            // A good outcome after good ones changes nothing: no write.
            if next == word {
                return Ok(reason);
            }
            match self
                .0
                .compare_exchange_weak(word, next, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => return Ok(reason),
                Err(now) => word = now,
            }
        }
    }
}

fn generation(word: u64) -> u16 {
    count(word, 48)
}

fn count(word: u64, shift: u32) -> u16 {
    u16::try_from(word >> shift & MOST).unwrap_or(u16::MAX)
}

/// How long the `times`th ejection in a row lasts.
pub(super) fn ejection_time(policy: &OutlierDetection, times: u32) -> Duration {
    policy
        .base_ejection_time
        .saturating_mul(times.max(1))
        .min(longest(policy))
}

/// `max(300s, baseEjectionTime)`, Envoy's default `max_ejection_time`.
pub(super) fn longest(policy: &OutlierDetection) -> Duration {
    policy.base_ejection_time.max(Duration::from_mins(5))
}

/// Whether a set of `all` endpoints may have these numbers of ejected ones,
/// one for each locality that has any.
///
/// With `maxEjectionPercent` written: not more than that share of all. Else
/// 10 %, where a locality with a single ejected endpoint does not count: so
/// each locality may always lose one. A set of one endpoint loses it only when
/// 100 is written.
pub(super) fn may_be_ejected(
    policy: &OutlierDetection,
    all: usize,
    by_locality: impl Iterator<Item = usize>,
) -> bool {
    if let Some(percent) = policy.max_ejection_percent {
        let ejected: usize = by_locality.sum();
        return ejected * 100 <= percent as usize * all;
    }
    let (ejected, counted) = by_locality.fold((0, 0), |(ejected, counted), here| {
        (ejected + here, counted + if here > 1 { here } else { 0 })
    });
    if all == 1 {
        ejected == 0
    } else {
        counted * 100 <= 10 * all
    }
}
